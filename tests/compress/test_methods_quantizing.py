import copy

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tests.compress.baselines import (
    CAN_FORK,
    FAMILIES,
    MOES,
    equal_states,
    first_block,
    resumed,
    run,
    streamed,
)
from tests.compress.calibration import batches_of
from tests.models.test_roles_models import BASE, inputs, make, plain
from whet.compress.baselines.matrices import matrices
from whet.compress.baselines.pruning import SparseGPT
from whet.compress.baselines.quantizing import GPTQ, RTN
from whet.compress.calibrate import empty_model
from whet.compress.gptq import gptq
from whet.compress.method import Job
from whet.compress.rtn import rtn
from whet.compress.statistics import output_error
from whet.errors import OptionError
from whet.layers.packed_linear import PackedExperts, packed_layers, quantization_config_of
from whet.layers.quantizer import Grid, fake_quantize
from whet.models.edits import save_model
from whet.models.roles import blocks

G2 = {"group_size": 2}
PACKING = [
    RTN(**G2),
    RTN(bits=8, group_size=None),
    RTN(bits=8, group_size=None, activation_bits=8),
    GPTQ(min_tokens=4, act_order=True, **G2),
]


def say(method):
    return f"{method.id}{method.bits}a{method.activation_bits}"


def by_method(methods):
    return pytest.mark.parametrize("method", methods, ids=say)


def logits(model, name):
    with torch.no_grad():
        return model(**inputs(name)).logits


@by_method(PACKING)
@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "gpt2"])
def test_all_layers_of_the_blocks_are_packed_and_nothing_else(method, name):
    before = make(name)
    expected = {str(m) for block in blocks(before) for m in matrices(before, block)}
    model, report = run(method, name)
    names = set(report_layers(report))
    assert names == {n if ".experts." not in n else drop_number(n) for n in expected}
    packed = packed_layers(model)
    assert {n for n in packed if ".experts." not in n} == {
        n for n in expected if ".experts." not in n
    }
    for block in blocks(model):
        for layer, module in model.get_submodule(block.name).named_modules():
            if isinstance(module, nn.Linear):  # gates and modulations
                full = f"{block.name}.{layer}"
                assert torch.equal(module.weight, before.get_submodule(full).weight)
    own, old = model.state_dict(), before.state_dict()
    rest = [n for n in own if n in old and n.rpartition(".")[0] not in packed]
    assert rest
    assert all(torch.equal(own[n], old[n]) for n in rest)


def report_layers(report):
    return {name: entry for block in report["blocks"] for name, entry in block["layers"].items()}


def drop_number(name):
    head, _, tail = name.rpartition(".experts.")
    return f"{head}.experts.{tail.partition('.')[2]}"


@pytest.mark.parametrize("name", ["llama", "phi3", "bert"])
def test_the_first_block_gets_what_the_solver_gives_for_the_whole_models_inputs(name):
    grid = Grid(4, True, "channel")
    seen = first_block(make(name), name)
    one = {"group_size": None}
    compensated, nearest = run(GPTQ(**one), name)[0], run(RTN(**one), name)[0]
    for matrix, (weight, statistics) in seen.items():
        packed = compensated.get_submodule(matrix.module).dequantized()
        expected = gptq(weight, statistics, grid).weight
        # The largest number of a row lies between two of the grid's: sums in another order
        # turn such ties.
        assert ((packed - expected).abs() > 1e-9).double().mean() < 0.15
        errors = [output_error(weight, w, statistics) for w in (packed, expected)]
        assert errors[0] == pytest.approx(errors[1], rel=0.2)
        packed = nearest.get_submodule(matrix.module).dequantized()
        assert torch.equal(packed, rtn(weight, grid).weight)


def test_gptq_leaves_less_error_than_rounding_in_the_first_block():
    seen = first_block(make("llama"), "llama")
    errors = []
    for method in (GPTQ(**G2), RTN(**G2)):
        model = run(method, "llama")[0]
        errors.append(
            sum(
                output_error(w, model.get_submodule(m.module).dequantized(), s)
                for m, (w, s) in seen.items()
            )
        )
    assert errors[0] < 0.9 * errors[1]


@by_method(PACKING)
@pytest.mark.parametrize("name", ["llama", "olmoe", "mixtral", "opt"])
def test_an_empty_model_takes_the_shapes_of_the_result(method, name):
    model, _ = run(method, name, plain(name))
    empty = empty_model(type(model), plain(name).config)
    method.shape(empty)
    shapes = [{n: (t.shape, t.dtype) for n, t in m.state_dict().items()} for m in (model, empty)]
    assert shapes[0] == shapes[1]
    assert all(p.is_meta for p in empty.parameters())


# --- what is stored


def wide_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 48, "attention_bias": True}
    config = transformers.LlamaConfig(**{**BASE, **sizes})
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    "method",
    [
        RTN(group_size=16),
        RTN(group_size=16, symmetric=False),
        RTN(bits=8, group_size=None),
        GPTQ(bits=8, group_size=None, activation_bits=8),
        GPTQ(group_size=8, act_order=True),
    ],
    ids=say,
)
def test_the_stock_loader_gives_the_same_logits(method, tmp_path):
    model, _ = run(method, "llama", wide_llama())
    saved = save_model(model, None, tmp_path / "out", verify=False)
    assert (saved.packed, saved.edits, saved.model_type) == (True, (), "llama")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again, "llama"), logits(model, "llama"))


@pytest.mark.parametrize("name", ["olmoe", "mixtral"])
def test_a_mixture_with_packed_experts_is_saved_as_a_stock_checkpoint(name, tmp_path):
    model, _ = run(RTN(**G2), name, plain(name))
    saved = save_model(model, None, tmp_path / "out", verify=False)
    assert (saved.packed, saved.edits, saved.model_type) == (True, (), name)
    assert isinstance(model.model.layers[0].mlp.experts, PackedExperts)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(again, name), logits(model, name), atol=1e-4)


def test_a_folder_that_streaming_made_is_a_quantized_checkpoint(tmp_path):
    model, out, report = streamed(GPTQ(group_size=4), "llama-tied", tmp_path)
    again = AutoModelForCausalLM.from_pretrained(out)
    assert again.config.quantization_config.quant_method == "compressed-tensors"
    assert torch.equal(logits(again, "llama-tied"), logits(model, "llama-tied"))
    for name, layer in packed_layers(model).items():
        assert torch.equal(again.get_submodule(name).weight, layer.dequantized()), name
    assert len(report["blocks"]) == 2


def test_streaming_a_mixture_packs_its_experts(tmp_path):
    model, out, _ = streamed(RTN(group_size=4), "olmoe", tmp_path)
    again = AutoModelForCausalLM.from_pretrained(out)
    assert torch.allclose(logits(again, "olmoe"), logits(model, "olmoe"), atol=1e-4)
    assert isinstance(model.model.layers[0].mlp.experts, PackedExperts)


@pytest.mark.skipif(not CAN_FORK, reason="stops a copy of this process")
@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_a_killed_run_goes_on_with_packed_blocks(name, source, tmp_path):
    method = GPTQ(group_size=4, min_tokens=4) if name == "llama" else RTN(group_size=4)
    whole, again, first, second = resumed(method, name, tmp_path, source=source)
    equal_states(whole, again) if not source else None
    assert quantization_config_of(again) == quantization_config_of(whole) is not None
    if source:
        models = [AutoModelForCausalLM.from_pretrained(f) for f in (first, second)]
        assert torch.equal(logits(models[0], name), logits(models[1], name))


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_three_bits_are_on_the_grid_and_stored_as_numbers(name):
    model, report = run(RTN(bits=3, group_size=4), name)
    grid, before = Grid(3, True, "group", 4), make(name)
    for block in blocks(model):
        for matrix in matrices(model, block):
            old = matrix.read(before)
            assert torch.equal(matrix.read(model), fake_quantize(old, grid))
    assert quantization_config_of(model) is None
    assert report["notes"][0].startswith("3 bits: no packed layout, stored as numbers")


def test_conv1d_is_rounded_and_stored_as_numbers():
    model, report = run(GPTQ(group_size=4), "gpt2")
    assert quantization_config_of(model) is None
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer, Conv1D)
    rows = layer.weight.t().reshape(-1, 4)
    assert max(len(row.unique()) for row in rows / rows.abs().amax(1, keepdim=True)) <= 4
    assert "Conv1D: no packed layout, stored as numbers" in report["notes"][0]


@pytest.mark.parametrize("name", MOES)
def test_the_inputs_of_experts_are_not_rounded(name):
    method = RTN(bits=8, group_size=None, activation_bits=8)
    model, report = run(method, name)
    for layer_name, layer in packed_layers(model).items():
        assert (layer.activations is None) == (".experts." in layer_name)
    assert any("inputs of experts are not rounded" in note for note in report["notes"])


def test_zeros_of_a_pruned_model_stay():
    model, _ = run(SparseGPT(pattern="2:4"), "llama")
    zeros = {m: m.read(model) == 0 for b in blocks(model) for m in matrices(model, b)}
    model, _ = run(GPTQ(group_size=4, act_order=True), "llama", model)
    for matrix, gone in zeros.items():
        packed = model.get_submodule(matrix.module).dequantized()
        assert (packed[gone] == 0).all(), matrix
        assert (packed[~gone] != 0).double().mean() > 0.7


def test_cold_experts_are_rounded_to_nearest():
    model, report = run(GPTQ(group_size=4, min_tokens=10_000), "olmoe")
    before = make("olmoe")
    fused = before.model.layers[0].mlp.experts.down_proj
    for number, weight in enumerate(fused.detach()):
        packed = model.get_submodule(f"model.layers.0.mlp.experts.{number}.down_proj")
        assert torch.equal(packed.dequantized(), rtn(weight, Grid(4, True, "group", 4)).weight)
    assert report["cold_experts"]["model.layers.0.mlp.experts"] == [0, 1, 2, 3]
    assert report["notes"][0].startswith("too few tokens: rounded to nearest (experts 0, 1, 2, 3)")


# --- errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 1}, "bits=1 must be between 2 and 16"),
        ({"group_size": 0}, "group_size=0 must be at least 1"),
        ({"activation_bits": 4}, "activation_bits=4 must be 16"),
        ({"activation_bits": 8}, "activation_bits=8 needs bits=8, group_size=none"),
        ({"damp": -1.0}, "damp=-1 must be at least 0"),
        ({"block_size": 0}, "block_size=0 must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(OptionError, match=says):
        GPTQ(**options)


def test_models_that_do_not_fit_are_refused_before_any_work():
    with pytest.raises(
        OptionError, match=r"group_size=128 does not divide the 16 inputs.*choose 16"
    ):
        GPTQ().check(plain("llama"))
    with pytest.raises(OptionError, match=r"symmetric=false: .* is of a mixture"):
        RTN(group_size=2, symmetric=False).check(plain("olmoe"))
    with pytest.raises(OptionError, match=r"activation_bits=8: .* is a Conv1D"):
        RTN(bits=8, group_size=None, activation_bits=8).check(plain("gpt2"))
    model, _ = run(RTN(**G2), "llama")
    with pytest.raises(OptionError, match="quantized already"):
        GPTQ(**G2).check(model)
    with pytest.raises(OptionError, match="quantized already"):
        RTN(**G2).apply(Job(model=copy.deepcopy(model), batches=batches_of("llama")))
