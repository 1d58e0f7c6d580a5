"""What holds for every solver."""

import pytest
import torch
from torch import nn

from tests.compress.inputs import correlated, random, statistics
from whet.compress.awq import awq
from whet.compress.gptq import gptq
from whet.compress.magnitude import magnitude, magnitude_structured
from whet.compress.masks import Pattern
from whet.compress.rtn import rtn
from whet.compress.sparsegpt import sparsegpt
from whet.compress.svd import svd, svd_diagonal, svd_whitened
from whet.compress.wanda import wanda
from whet.errors import NonFiniteError
from whet.layers.quantizer import Grid

GRID = Grid(4, False, "group", 8)
SOLVERS = {
    "magnitude": lambda w, s: magnitude(w),
    "rows": lambda w, s: magnitude_structured(w, 0.5, "rows"),
    "wanda": wanda,
    "sparsegpt": sparsegpt,
    "sparsegpt 2:4": lambda w, s: sparsegpt(w, s, Pattern(2, 4)),
    "rtn": lambda w, s: rtn(w, GRID),
    "gptq": lambda w, s: gptq(w, s, GRID),
    "gptq act-order": lambda w, s: gptq(w, s, GRID, act_order=True),
    "awq": lambda w, s: awq([w], s, GRID).linears[0],
    "svd": lambda w, s: svd(w, 3),
    "svd_diagonal": lambda w, s: svd_diagonal(w, s, 3),
    "svd_whitened": lambda w, s: svd_whitened(w, s, 3),
}


@pytest.fixture(params=SOLVERS)
def solver(request):
    return SOLVERS[request.param]


def test_what_goes_in_is_not_touched_and_no_gradient_comes_out(solver):
    x = correlated(60, 16)
    x[:, 3] = 0
    weight, stats = nn.Parameter(random(8, 16)), statistics(x)
    before, gram = weight.detach().clone(), stats.gram.clone()
    found = solver(weight, stats)
    assert not found.weight.requires_grad
    assert torch.equal(weight, before)
    assert torch.equal(stats.gram, gram)
    assert found.weight.data_ptr() != weight.data_ptr()


def test_the_same_comes_out_again(solver):
    weight, stats = random(8, 16), statistics(correlated(60, 16))
    assert torch.equal(solver(weight, stats).weight, solver(weight, stats).weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_stays_and_strided_weights_are_as_good(solver, dtype):
    weight, stats = random(8, 16, dtype=dtype), statistics(correlated(60, 16))
    found = solver(weight, stats).weight
    assert found.dtype == dtype
    assert torch.equal(solver(weight.t().contiguous().t(), stats).weight, found)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_units_of_the_inputs_do_not_matter(solver, size):
    weight, x = random(8, 16, dtype=torch.float32), correlated(60, 16)
    plain = solver(weight, statistics(x)).weight
    assert torch.allclose(solver(weight, statistics(x * size)).weight, plain, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(solver, bad):
    weight, stats = random(8, 16), statistics(correlated(60, 16))
    weight[2, 5] = bad
    with pytest.raises(NonFiniteError, match="a weight to be compressed holds NaN or infinity"):
        solver(weight, stats)
