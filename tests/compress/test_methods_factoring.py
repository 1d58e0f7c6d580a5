import copy

import pytest
import torch

from tests.compress.baselines import CAN_FORK, FAMILIES, equal_states, first_block, resumed, run
from tests.compress.calibration import batches_of
from tests.models.test_roles_models import make, plain
from whet.compress.baselines.factoring import ASVD, SVD, SVDLLM
from whet.compress.baselines.matrices import Matrix, matrices
from whet.compress.baselines.pruning import Wanda
from whet.compress.baselines.quantizing import RTN
from whet.compress.calibrate import empty_model, open_model
from whet.compress.method import Job
from whet.compress.statistics import output_error
from whet.compress.svd import rank_of_budget
from whet.errors import OptionError
from whet.layers.low_rank_linear import LowRankLinear
from whet.models.edits import save_model
from whet.models.roles import blocks

METHODS = [SVD(), ASVD(), SVDLLM()]


def product(model, name):
    layer = model.get_submodule(name)
    return layer.up.weight.detach() @ layer.down.weight.detach()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.id)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_becomes_two_within_its_share(method, name):
    before = make(name)
    model, report = run(method, name)
    count = 0
    for block in blocks(before):
        for matrix in matrices(before, block):
            if matrix.expert is None:
                rows, columns = matrix.read(before).shape
                layer = model.get_submodule(matrix.module)
                assert isinstance(layer, LowRankLinear)
                assert (layer.in_features, layer.out_features) == (columns, rows)
                assert layer.rank == rank_of_budget(rows, columns, 0.5)
                old = before.get_submodule(matrix.module).bias
                assert (layer.up.bias is None) == (old is None)
                assert old is None or torch.equal(layer.up.bias, old)
                count += 1
    assert count == sum(len(block["layers"]) for block in report["blocks"])
    assert report["left"] <= 0.5
    assert any("experts stay" in n for n in report.get("notes", ())) == (
        "moe" in name or name in ("mixtral", "olmoe")
    )


def test_each_leaves_least_of_the_error_that_it_is_made_for():
    seen = first_block(make("llama"), "llama")
    models = {method.id: run(method, "llama")[0] for method in METHODS}
    plain_errors, output_errors = {}, {}
    for method, model in models.items():
        plain_errors[method] = sum(
            float((w - product(model, m.module)).square().sum()) for m, (w, _) in seen.items()
        )
        output_errors[method] = sum(
            output_error(w, product(model, m.module), s) for m, (w, s) in seen.items()
        )
    assert min(plain_errors, key=plain_errors.get) == "svd"
    assert min(output_errors, key=output_errors.get) == "svd-llm"


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_an_empty_model_takes_the_shapes_of_the_result(name):
    model, _ = run(SVD(), name, plain(name))
    empty = empty_model(type(model), plain(name).config)
    SVD().shape(empty)
    shapes = [{n: (t.shape, t.dtype) for n, t in m.state_dict().items()} for m in (model, empty)]
    assert shapes[0] == shapes[1]


def test_what_is_saved_comes_back_and_can_be_quantized(tmp_path):
    import whet.auto  # noqa: F401

    model, _ = run(ASVD(), "llama", plain("llama"))
    run(Wanda(pattern=None, sparsity=0.5), "llama", model)
    saved = save_model(model, None, tmp_path / "out", verify=True)
    assert saved.model_type == "whet_llama"
    assert saved.difference < 1e-5
    model, _ = run(RTN(group_size=None), "llama", model)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.down.grid.bits == layer.up.grid.bits == 4


@pytest.mark.skipif(not CAN_FORK, reason="stops a copy of this process")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_killed_run_goes_on_with_low_rank_blocks(name, tmp_path):
    whole, again, *_ = resumed(SVDLLM(damp=0.01), name, tmp_path)
    equal_states(whole, again)


def test_what_cannot_be_done_is_refused(tmp_path):
    for keep in (0.0, 1.0):
        with pytest.raises(OptionError, match="must be above 0 and below 1"):
            SVD(keep)
    with pytest.raises(OptionError, match=r"keep=0\.05 leaves no rank for a"):
        SVD(0.05).check(plain("llama"))
    with pytest.raises(OptionError, match="alpha=-1 must be at least 0"):
        ASVD(alpha=-1.0)
    with pytest.raises(OptionError, match="damp=-1 must be at least 0"):
        SVDLLM(damp=-1.0)
    model, _ = run(SVD(), "llama")
    with pytest.raises(OptionError, match="q_proj is of low rank already"):
        SVD().check(model)
    source = tmp_path / "source"
    plain("llama").save_pretrained(source)
    job = Job(model=open_model(source), batches=batches_of("llama"), source=source)
    with pytest.raises(OptionError, match="asvd changes layers, and works on a model in memory"):
        ASVD().apply(job)


def test_low_rank_layers_are_pruned_as_two():
    model, _ = run(SVD(), "llama")
    before = copy.deepcopy(model)
    model, report = run(Wanda(), "llama", model)
    name = "model.layers.0.mlp.up_proj"
    assert {f"{name}.down", f"{name}.up"} <= set(report["blocks"][0]["layers"])
    for part in ("down", "up"):
        weight = Matrix(f"{name}.{part}").read(model)
        assert (weight == 0).any()
        assert not torch.equal(weight, Matrix(f"{name}.{part}").read(before))
