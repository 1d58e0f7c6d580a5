import copy
import dataclasses
import json

import pytest
import torch

from tests.compress.baselines import (
    CAN_FORK,
    FAMILIES,
    MOES,
    equal_states,
    first_block,
    resumed,
    run,
    streamed,
    untouched,
)
from tests.compress.calibration import batches_of
from tests.models.test_roles_models import make, plain
from whet.compress.baselines.matrices import matrices
from whet.compress.baselines.pruning import Magnitude, SparseGPT, Wanda, owl_allocation
from whet.compress.magnitude import magnitude
from whet.compress.method import Job
from whet.compress.sparsegpt import sparsegpt
from whet.compress.statistics import output_error
from whet.compress.wanda import wanda
from whet.errors import NonFiniteError, OptionError
from whet.models.roles import blocks
from whet.spec import build

METHODS = [Magnitude(), Wanda(), SparseGPT(min_tokens=4)]
by_id = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.id)


def every_weight(model):
    for block in blocks(model):
        for matrix in matrices(model, block):
            yield matrix, matrix.read(model)


@by_id
@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_every_matrix_goes_and_nothing_else_changes(method, name):
    model, report = run(method, name)
    for matrix, weight in every_weight(model):
        assert int((weight == 0).sum()) == weight.numel() // 2, matrix
    assert untouched(model, make(name))
    assert report["sparsity"] == pytest.approx(0.5)
    assert report["weights"] == sum(w.numel() for _, w in every_weight(model))
    assert report == json.loads(json.dumps(report))


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "bert"])
def test_the_first_block_gets_what_the_solver_gives_for_the_whole_models_inputs(name):
    inputs = first_block(make(name), name)
    models = [run(method, name)[0] for method in METHODS]
    for matrix, (weight, seen) in inputs.items():
        by_hand = (magnitude(weight), wanda(weight, seen), sparsegpt(weight, seen))
        for model, expected in zip(models, by_hand, strict=True):
            assert torch.allclose(matrix.read(model), expected.weight, atol=1e-9), matrix


@pytest.mark.parametrize("method", [Magnitude, Wanda, SparseGPT])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_two_of_every_four_go(method, name):
    model, report = run(method(pattern="2:4"), name)
    for matrix, weight in every_weight(model):
        assert ((weight.reshape(-1, 4) == 0).sum(1) == 2).all(), matrix
    assert report["sparsity"] == 0.5


def test_sparsegpt_leaves_less_error_than_wanda_in_the_first_block():
    inputs = first_block(make("llama"), "llama")
    models = [run(method, "llama")[0] for method in (SparseGPT(), Wanda())]
    errors = [
        sum(output_error(w, m.read(model), seen) for m, (w, seen) in inputs.items())
        for model in models
    ]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "olmoe"])
@by_id
def test_streaming_prunes_as_memory_does_into_a_checkpoint(method, name, tmp_path):
    model, out, report = streamed(method, name, tmp_path)
    equal_states(type(model).from_pretrained(out), model)
    assert report["sparsity"] == pytest.approx(0.5)


@pytest.mark.skipif(not CAN_FORK, reason="stops a copy of this process")
@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("method", [Magnitude(), Wanda()], ids=lambda m: m.id)
def test_a_killed_run_goes_on(method, source, tmp_path):
    whole, again, *_ = resumed(method, "llama", tmp_path, source=source)
    if not source:
        equal_states(whole, again)


# --- experts


@pytest.mark.parametrize("name", MOES)
def test_experts_are_pruned_each_by_what_it_saw(name):
    before = make(name)
    model, report = run(Wanda(min_tokens=1), name)
    for block in blocks(model):
        if block.experts is None:
            continue
        name = f"{block.experts.module}.down_proj"
        assert report["blocks"][block.index]["layers"][name]["sparsity"] == pytest.approx(0.5)
        down = model.get_parameter(block.experts.down)
        old = before.get_parameter(block.experts.down)
        share = (down == 0).float().mean((1, 2))
        assert torch.allclose(share, torch.full_like(share, 0.5))
        by_size = torch.stack([magnitude(e, per="row").weight for e in old.detach()])
        assert not torch.equal(by_size, down)


def test_cold_experts_are_pruned_by_magnitude_and_named():
    before = make("olmoe")
    model, report = run(SparseGPT(min_tokens=10_000), "olmoe")
    experts = blocks(model)[0].experts
    for old, new in zip(
        before.get_parameter(experts.down), model.get_parameter(experts.down), strict=True
    ):
        assert torch.equal(magnitude(old.detach(), per="row").weight, new)
    assert report["cold_experts"][experts.module] == [0, 1, 2, 3]
    note = report["blocks"][0]["layers"][f"{experts.module}.down_proj"]["notes"]
    assert note == ["too few tokens: pruned by magnitude (experts 0, 1, 2, 3)"]
    assert report["notes"][0].startswith("too few tokens: pruned by magnitude")


# --- OWL


def test_owl_prunes_blocks_with_outliers_less_and_keeps_the_mean(tmp_path):
    model = make("llama")
    with torch.no_grad():  # inputs of block 1 with outliers
        model.model.layers[1].input_layernorm.weight[0] *= 60
    method = Wanda(ratios="owl", sparsity=0.5, scope="layer", outliers=3.0)
    job = Job(model=model, batches=batches_of("llama"), folder=tmp_path)
    found = owl_allocation(job, method, 0.5)
    assert found.sparsities[1] < found.sparsities[0]
    assert found.mean == pytest.approx(0.5, abs=1e-6)
    stored = json.loads((tmp_path / "owl.json").read_text())
    assert len(stored["ratios"]) == 2
    assert not (tmp_path / "owl").exists()
    report = method.apply(job)
    assert report["owl"]["sparsities"] == list(found.sparsities)
    shares = [
        sum(e["sparsity"] * e["weights"] for e in block["layers"].values())
        / sum(e["weights"] for e in block["layers"].values())
        for block in report["blocks"]
    ]
    assert shares == pytest.approx(list(found.sparsities), abs=0.02)


def test_owl_is_refused_where_it_cannot_work(tmp_path):
    with pytest.raises(OptionError, match=r"ratios='owl' gives shares, which pattern=2:4"):
        Wanda(ratios="owl", pattern="2:4")
    job = Job(model=make("llama"), batches=batches_of("llama"), source=tmp_path, folder=tmp_path)
    with pytest.raises(OptionError, match="looks at the whole model before"):
        owl_allocation(job, Wanda(ratios="owl"), 0.5)


# --- errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 1.0}, "sparsity=1 must be at least 0 and below 1"),
        ({"sparsity": 0.0}, "sparsity=0 drops nothing"),
        ({"pattern": "24"}, "must look like '2:4'"),
        ({"pattern": "2:4", "sparsity": 0.6}, r"pattern=2:4 is a sparsity of 0.5, and not"),
        ({"scope": "rwo"}, "scope='rwo' is not one of row, layer"),
        ({"ratios": "ow"}, "ratios='ow' is not one of uniform, owl"),
        ({"spread": -1.0}, "spread=-1 must be at least 0"),
        ({"outliers": 0.0}, "outliers=0 must be above 0"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(OptionError, match=says):
        build(Wanda, options, of="wanda")


def test_what_cannot_be_reached_is_refused():
    with pytest.raises(OptionError, match=r"sparsity=0.05 drops none of the 16 .*at least 0.0625"):
        Wanda(sparsity=0.05).check(plain("llama"))
    with pytest.raises(OptionError, match=r"pattern=2:4 cannot be made in .*10 inputs, which 4"):
        Magnitude(pattern="2:4").check(plain("qwen2_moe"))
    with pytest.raises(OptionError, match="block_size=6 must be a multiple of 4"):
        SparseGPT(pattern="2:4", block_size=6).check(plain("llama"))
    Wanda(sparsity=0.0834).check(plain("gpt2"))


def test_quantized_models_and_adapters_are_refused():
    model = plain("llama")
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(OptionError, match="quantized already"):
        Magnitude().check(model)
    model = plain("llama")
    model.model.layers[0].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(OptionError, match=r"up_proj is a Identity: linear layers"):
        Magnitude().check(model)


def test_activations_that_are_not_finite_are_one_sentence():
    model = plain("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="block 1 has NaN or infinity in batch 0"):
        Wanda().apply(Job(model=model, batches=batches_of("llama")))


def test_options_survive_being_written_out():
    for method in METHODS:
        text = {k: str(v) for k, v in dataclasses.asdict(method).items()}
        assert build(type(method), text, of=method.id) == method
        assert copy.copy(method).identity()["method"] == method.id
