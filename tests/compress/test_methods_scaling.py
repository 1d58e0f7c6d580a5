import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.compress.baselines import CAN_FORK, equal_states, first_block, resumed, run, streamed
from tests.models.test_roles_models import NAMES, make, output, plain, same
from whet.compress.awq import awq
from whet.compress.baselines.matrices import matrices
from whet.compress.baselines.quantizing import RTN
from whet.compress.baselines.scaling import AWQ, SmoothQuant, sites
from whet.compress.folding import multiply_inputs
from whet.errors import OptionError
from whet.layers.low_rank_linear import LowRankLinear
from whet.layers.packed_linear import packed_layers
from whet.layers.quantizer import Grid
from whet.models.edits import replace
from whet.models.roles import blocks


@pytest.mark.parametrize("name", NAMES)
def test_scales_fold_without_a_trace(name):
    model = make(name)
    before = output(model, name)
    generator = torch.Generator().manual_seed(0)
    for block in blocks(model):
        for site in sites(model, block):
            if site.folds:
                width = site.readers[0].read(model).shape[1]
                scale = (0.6 * torch.randn(width, generator=generator).double()).exp()
                site.fold(model, scale)
                for matrix in site.readers:
                    matrix.write(model, multiply_inputs(matrix.read(model), scale))
    same(output(model, name), before, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_is_in_one_site(name):
    model = make(name)
    for block in blocks(model):
        readers = [m for site in sites(model, block) for m in site.readers]
        assert len(readers) == len(set(readers))
        assert set(readers) == set(matrices(model, block))


# Sites of block 0 with a place for scales: what reads them, by last names.
FOLDED = {
    "llama": ["q_proj k_proj v_proj", "gate_proj up_proj", "down_proj"],
    "phi": ["q_proj k_proj v_proj fc1"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "opt": ["q_proj k_proj v_proj", "fc1", "out_proj", "fc2"],
    "opt-post": ["out_proj", "fc2"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "bert": ["dense"],
    "gemma3": ["q_proj k_proj v_proj", "gate_proj up_proj", "down_proj"],
    "mixtral": ["q_proj k_proj v_proj", *["experts"] * 4],
    "dit": ["0"],
}


@pytest.mark.parametrize("name", FOLDED)
def test_scales_go_where_something_makes_the_input(name):
    model = make(name)
    found = [s for s in sites(model, blocks(model)[0]) if s.folds]
    assert [" ".join(m.module.rpartition(".")[2] for m in s.readers) for s in found] == FOLDED[name]


def test_low_rank_layers_are_read_and_written_at_their_ends():
    model = make("opt")
    for layer in ("self_attn.v_proj", "self_attn.out_proj"):
        name = f"model.decoder.layers.0.{layer}"
        old = model.get_submodule(name)
        up, down = torch.randn(16, 3).double(), torch.randn(3, 16).double()
        replace(model, name, LowRankLinear.of(up, down, old.bias))
    before = output(model, "opt")
    found = sites(model, blocks(model)[0])
    site = next(s for s in found if s.writer and s.writer.module.endswith("v_proj.up"))
    assert site.readers[0].module.endswith("out_proj.down")
    scale = torch.rand(16).double() + 0.5
    site.fold(model, scale)
    weight = site.readers[0].read(model)
    site.readers[0].write(model, multiply_inputs(weight, scale))
    same(output(model, "opt"), before, "opt")


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmoe", "bert", "dit"])
def test_with_many_bits_the_models_are_what_they_were(name):
    model, _ = run(AWQ(bits=16, group_size=None, clip=False, min_tokens=4), name)
    before = output(make(name), name)
    difference = (output(model, name) - before).abs().max() / before.abs().max()
    assert 0 < difference < 1e-3


def test_the_first_block_gets_what_the_solver_gives():
    seen = first_block(make("llama"), "llama")
    model, report = run(AWQ(group_size=2), "llama")
    gate_up = [m for m in seen if m.module.endswith(("gate_proj", "up_proj"))]
    grid = Grid(4, True, "group", 2)
    made = awq([seen[m][0] for m in gate_up], seen[gate_up[0]][1], grid)
    gate = model.get_submodule(gate_up[0].module)  # no rows of it are scaled
    different = (gate.dequantized() - made.linears[0].weight).abs() > 1e-9
    assert different.double().mean() < 0.01
    entry = report["blocks"][0]["layers"][gate_up[0].module]
    assert entry["loss"] == pytest.approx(made.linears[0].report.loss, rel=1e-3)
    output_layer = report["blocks"][0]["layers"]["model.layers.0.self_attn.o_proj"]
    assert output_layer["notes"][0].startswith("no place for scales before it")


def test_smoothquant_smooths_what_norms_make_and_rounds_tokens():
    model, report = run(SmoothQuant(), "llama")
    assert [n.rpartition(".")[2] for n in report["blocks"][0]["smoothed"]] == [
        *("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    ]
    assert {(m.grid.bits, m.activations.bits) for m in packed_layers(model).values()} == {(8, 8)}
    error = (output(model, "llama") - output(make("llama"), "llama")).abs().max()
    assert 0 < error < 0.1 * output(make("llama"), "llama").abs().max()


def test_smoothing_helps_where_a_norm_makes_outliers():
    def outliers():
        model = make("qwen3")
        with torch.no_grad():
            for layer in model.model.layers:
                layer.input_layernorm.weight[:2] *= 100
                layer.self_attn.q_proj.weight[:, :2] /= 100
                layer.self_attn.k_proj.weight[:, :2] /= 100
                layer.self_attn.v_proj.weight[:, :2] /= 100
        return model

    before = output(outliers(), "qwen3")
    errors = [
        (output(run(method, "qwen3", outliers())[0], "qwen3") - before).square().mean()
        for method in (SmoothQuant(), RTN(bits=8, group_size=None, activation_bits=8))
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("method", [AWQ(group_size=4), SmoothQuant()], ids=lambda m: m.id)
def test_streaming_folds_and_packs(method, tmp_path):
    model, out, _ = streamed(method, "llama-tied", tmp_path)
    again = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    norm = model.model.layers[0].input_layernorm.weight
    assert torch.equal(again.model.layers[0].input_layernorm.weight, norm)
    assert not torch.equal(norm, plain("llama-tied").model.layers[0].input_layernorm.weight)


@pytest.mark.skipif(not CAN_FORK, reason="stops a copy of this process")
def test_a_killed_run_goes_on_with_its_norms(tmp_path):
    whole, again, *_ = resumed(SmoothQuant(), "llama", tmp_path)
    equal_states(whole, again)


def test_bad_options_are_refused():
    with pytest.raises(OptionError, match="alpha=2 must be between 0 and 1"):
        SmoothQuant(2.0)
    with pytest.raises(OptionError, match="steps=0 must be at least 1"):
        AWQ(steps=0)
