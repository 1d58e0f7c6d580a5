from dataclasses import replace

import pytest
import torch

from tests.compress.inputs import correlated, random, statistics, white
from whet.compress.statistics import output_error
from whet.compress.svd import rank_of_budget, svd, svd_diagonal, svd_whitened
from whet.errors import InputError, NonFiniteError, OptionError

METHODS = {
    "svd": lambda w, stats, rank: svd(w, rank),
    "diagonal": svd_diagonal,
    "whitened": svd_whitened,
}


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_plain_truncation_leaves_the_small_singular_values(rank):
    weight = random(6, 9)
    singular = torch.linalg.svdvals(weight)
    found = svd(weight, rank)
    assert float((found.weight - weight).norm()) == pytest.approx(float(singular[rank:].norm()))
    assert torch.linalg.matrix_rank(found.weight) == rank
    assert (found.rank, found.up.shape, found.down.shape) == (rank, (6, rank), (rank, 9))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_whitened_truncation_has_the_least_output_error_of_all(shape, rank):
    weight, x = random(*shape), correlated(80, shape[1])
    stats = statistics(x)
    found = svd_whitened(weight, stats, rank)
    error = output_error(weight, found.weight, stats)
    # Eckart and Young for the outputs themselves, which any weight's outputs must be.
    outputs = torch.linalg.svdvals(x @ weight.t())
    assert error == pytest.approx(float(outputs[rank:].square().sum()) / 80)
    assert found.report.loss == pytest.approx(error)
    assert error < output_error(weight, svd(weight, rank).weight, stats)
    assert error <= output_error(weight, svd_diagonal(weight, stats, rank).weight, stats)
    for seed in range(20):
        near = found.up + 0.05 * random(*found.up.shape, seed=seed)
        other = near @ torch.linalg.lstsq(near, weight).solution
        assert error <= output_error(weight, other, stats)
        near = found.down + 0.01 * random(*found.down.shape, seed=seed)
        assert error <= output_error(weight, found.up @ near, stats)
        anything = random(shape[0], rank, seed=seed) @ random(rank, shape[1], seed=seed + 50)
        assert error <= output_error(weight, anything, stats)


def test_it_is_the_papers_product_with_an_inverse():
    weight, stats = random(6, 9), statistics(correlated(80, 9))
    factor = torch.linalg.cholesky(stats.gram)
    u, s, v = torch.linalg.svd(weight @ factor, full_matrices=False)
    expected = (u[:, :3] * s[:3]) @ v[:3] @ torch.linalg.inv(factor)
    assert torch.allclose(svd_whitened(weight, stats, 3).weight, expected, atol=1e-12)
    scale = (stats.abs_sum / stats.count) ** 0.5
    u, s, v = torch.linalg.svd(weight * scale, full_matrices=False)
    expected = (u[:, :3] * s[:3]) @ v[:3] / scale
    assert torch.allclose(svd_diagonal(weight, stats, 3).weight, expected, atol=1e-12)


def test_without_correlation_all_are_alike():
    weight = random(6, 9)
    plain = svd(weight, 4).weight
    assert torch.allclose(svd_whitened(weight, white(9), 4).weight, plain, atol=1e-12)
    assert torch.allclose(svd_diagonal(weight, white(9), 4).weight, plain, atol=1e-12)
    stats = statistics(correlated(80, 9))
    assert torch.allclose(svd_diagonal(weight, stats, 4, alpha=0).weight, plain, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_full_rank_changes_nothing(method, shape):
    weight, stats = random(*shape), statistics(correlated(80, shape[1]))
    found = METHODS[method](weight, stats, 6)
    assert torch.allclose(found.weight, weight, atol=1e-12)
    gram = found.up.t() @ found.up
    assert torch.allclose(gram, torch.eye(6).double(), atol=1e-12)


@pytest.mark.parametrize("method", ["diagonal", "whitened"])
def test_dead_channels_and_few_tokens_do_no_harm(method):
    weight, x = random(6, 9), correlated(4, 9)
    x[:, [2, 5]] = 0
    found = METHODS[method](weight, statistics(x), 4)
    assert found.weight.isfinite().all()
    assert found.report.dead == 2
    if method == "whitened":
        # Four tokens have outputs of rank four: nothing need be lost.
        assert output_error(weight, found.weight, statistics(x)) < 1e-4
        assert found.report.notes[0].startswith("damp was raised from 0 to 1e-")


def test_what_happened_otherwise_is_said():
    weight, stats = random(6, 9), statistics(correlated(80, 9))
    plain = svd(weight, 3).weight
    broken = stats.gram.clone()
    broken[0, 1] = broken[1, 0] = 1e6 * broken[0, 0]
    found = svd_whitened(weight, replace(stats, gram=broken), 3)
    assert torch.equal(found.weight, plain)
    assert found.report.method == "svd"
    assert found.report.notes == ("the Gram matrix has no Cholesky factor: truncated without data",)
    for method in ("diagonal", "whitened"):
        found = METHODS[method](weight, statistics(torch.zeros(3, 9).double()), 3)
        assert torch.equal(found.weight, plain)
        assert found.report.notes == ("no input was seen: truncated without data",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_factors_come_in_the_type_of_the_weight(dtype, method):
    weight, stats = random(6, 9, dtype=dtype), statistics(correlated(80, 9))
    found = METHODS[method](weight, stats, 6)
    assert found.up.dtype == found.down.dtype == dtype
    assert torch.allclose(found.weight.double(), weight.double(), atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("outputs", "inputs"), [(8, 8), (768, 3072), (5, 100)])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.9, 1.0])
def test_the_rank_is_the_largest_that_the_budget_holds(outputs, inputs, keep):
    rank = rank_of_budget(outputs, inputs, keep)
    budget = keep * outputs * inputs
    assert rank * (outputs + inputs) <= budget + 1e-6 < (rank + 1) * (outputs + inputs)


def test_what_makes_no_sense_is_refused():
    weight, stats = random(6, 9), statistics(correlated(80, 9))
    for rank in (0, 7):
        with pytest.raises(OptionError, match=f"rank={rank} must be between 1 and 6"):
            svd(weight, rank)
    for keep in (0.0, 1.1, float("nan")):
        with pytest.raises(OptionError, match="must be above 0 and at most 1"):
            rank_of_budget(6, 9, keep)
    with pytest.raises(OptionError, match=r"leaves no rank .* at least 0\.2778"):
        rank_of_budget(6, 9, 0.2)
    with pytest.raises(OptionError, match="alpha=-1"):
        svd_diagonal(weight, stats, 3, alpha=-1)
    with pytest.raises(OptionError, match="damp=-1"):
        svd_whitened(weight, stats, 3, damp=-1)
    with pytest.raises(InputError, match="gram is missing"):
        svd_whitened(weight, statistics(correlated(80, 9), gram=False), 3)
    with pytest.raises(NonFiniteError, match=r"do not fit torch\.float16"):
        svd(torch.full((40, 40), 60000.0, dtype=torch.float16), 1)
