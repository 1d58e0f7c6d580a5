from __future__ import annotations

import itertools
import math

import pytest
import torch

from whet.errors import InputError, OptionError
from whet.layers.sparsify24 import (
    check_rule,
    draw24,
    groups,
    inclusion24,
    keep24,
    magnitude24,
    mvue24,
    select24,
    soft24,
    soft_scale,
    sparsity24,
)

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WORKED = torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=torch.float64)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_sorting(x):
    """Another way to the two largest: a stable sort of each group."""
    order = groups(x.abs().double()).argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(groups(x), dtype=torch.bool).scatter_(-1, order[..., :2], True)
    return keep.flatten(-2)


@pytest.mark.parametrize("dtype", FLOATS)
def test_exactly_the_two_largest_of_every_group_are_kept(dtype):
    x = random(3, 50, 32, dtype=dtype)
    x[0] = x[0].relu()  # many ties at zero
    x[1] = x[1].round()  # and elsewhere
    keep = keep24(x)
    assert torch.equal(keep, by_sorting(x))
    assert (groups(keep).sum(-1) == 2).all()


def test_every_pattern_of_ties_goes_to_the_lower_index():
    x = torch.tensor(list(itertools.product((-2.0, -1.0, -0.0, 0.0, 1.0, 2.0), repeat=4)))
    assert torch.equal(keep24(x), by_sorting(x))


@pytest.mark.parametrize("dtype", FLOATS)
def test_sparsifying_twice_or_what_is_sparse_changes_no_bit(dtype):
    x = random(20, 16, dtype=dtype)
    once = magnitude24(x)
    assert torch.equal(magnitude24(once), once)
    assert torch.equal(once, torch.where(keep24(x), x, 0))
    assert torch.equal(select24(x, keep24(x)), once)
    sparse = torch.tensor([[0.0, 5, 0, 1], [0, 0, 0, 2], [3, 3, 0, 0], [0, 0, 0, 0]], dtype=dtype)
    assert torch.equal(magnitude24(sparse), sparse)


def test_what_is_not_a_number_is_never_lost():
    nan, inf = math.nan, math.inf
    x = torch.tensor([[9.0, inf, nan, 1.0], [nan, 8.0, 7.0, 6.0], [-nan, nan, inf, nan]])
    assert keep24(x).tolist() == [
        [False, True, True, False],
        [True, True, False, False],
        [True, True, False, False],
    ]


@pytest.mark.parametrize(("zeros", "expected"), [(0.5, 0.1875), (0.8, 0.036)])
def test_dropped_share_of_independent_nonzeros_is_the_binomial_one(zeros, expected):
    # Beyond two nonzeros of four, all are dropped: E[(n - 2)+] / E[n] of a binomial n.
    p = 1 - zeros
    counts = [math.comb(4, n) * p**n * zeros ** (4 - n) for n in range(5)]
    assert (counts[3] + 2 * counts[4]) / (4 * p) == pytest.approx(expected)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(400_000, 4, generator=generator)
    x = x * (torch.rand(x.shape, generator=generator) >= zeros)
    dropped = 1 - (magnitude24(x) != 0).sum() / (x != 0).sum()
    assert float(dropped) == pytest.approx(expected, rel=0.01)


def test_inclusion_probabilities_of_the_worked_case():
    p = inclusion24(WORKED)
    assert p.tolist() == pytest.approx([0.789, 0.367, 0.191, 0.653], abs=5e-4)
    assert float(p.sum()) == pytest.approx(2, abs=1e-12)


def test_inclusion_probabilities_are_those_of_drawing_twice_by_enumeration():
    x = random(30, 4).abs()
    total = x.sum(-1)
    expected = torch.zeros_like(x)
    for i, j in itertools.permutations(range(4), 2):
        pair = x[:, i] / total * x[:, j] / (total - x[:, i])
        expected[:, i] += pair
        expected[:, j] += pair
    assert torch.allclose(inclusion24(x), expected, rtol=1e-12)
    assert torch.allclose(inclusion24(random(9, 8)).sum(-1), torch.tensor(4.0).double())


def test_a_group_of_two_or_fewer_is_kept_surely_and_unscaled():
    x = torch.tensor([[0.0, -4, 0, 1], [0, 0, 0, 2], [0, 0, 0, 0]])
    assert inclusion24(x).tolist() == [[0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert torch.equal(mvue24(x, torch.Generator().manual_seed(0)), x)


def test_the_mean_over_draws_is_what_was_drawn_from():
    x = torch.stack((WORKED, random(4), torch.tensor([1.0, 1.0, 1.0, 1e-3]).double()))
    draws = mvue24(x.expand(100_000, 3, 4), torch.Generator().manual_seed(2))
    assert (groups(draws != 0).sum(-1) <= 2).all()
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - x).abs() <= 4 * error).all()
    drawn = draw24(x.expand(100_000, 3, 4), torch.Generator().manual_seed(3)).double()
    assert torch.allclose(drawn.mean(0), inclusion24(x), atol=4 * 0.5 / 100_000**0.5)


def test_draws_come_from_their_generator():
    x = random(8, 16)
    one, again, other = (mvue24(x, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_soft_threshold_of_the_worked_case():
    assert soft24(WORKED).tolist() == [2, 0, 0, 1]
    assert soft24(-WORKED).tolist() == [-2, 0, 0, -1]
    soft = soft24(WORKED)
    assert float(soft_scale(WORKED)) == pytest.approx(float((WORKED @ soft) / (soft @ soft)))
    assert float(soft_scale(torch.zeros(8))) == 1


def test_the_soft_threshold_is_continuous_where_second_and_third_cross():
    below, above = (torch.tensor([3, 1 + e, 1, 0.2], dtype=torch.float64) for e in (-1e-9, 1e-9))
    assert (soft24(below) - soft24(above)).abs().max() < 1e-8
    hard = magnitude24(below), magnitude24(above)
    assert (hard[0] - hard[1]).abs().max() > 0.9


def test_the_soft_scale_is_the_best_one():
    x = random(40, 16)
    best = soft_scale(x)
    for factor in (0.99, 1.01):
        assert (x - best * soft24(x)).norm() < (x - factor * best * soft24(x)).norm()


def test_zeros_and_dropped_energy_are_counted():
    found = sparsity24(torch.tensor([[3.0, 1, 2, 0], [0, 0, 5, 0]]))
    assert found.zeros == 0.5
    assert found.dropped_energy == pytest.approx(1 / (9 + 1 + 4 + 25))
    assert sparsity24(torch.zeros(4)).dropped_energy == 0


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"a last dimension that 4 divides, got \[2, 6\]"):
        keep24(torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("rule", "gradient", "message"),
    [
        ("magnitud", "masked", "sparsify='magnitud' is unknown: did you mean 'magnitude'"),
        ("none", "mask", "gradient='mask' is unknown: did you mean 'masked'"),
        ("mvue", "masked", "sparsify='mvue' needs gradient='ste'"),
        ("soft", "masked", "sparsify='soft' needs gradient='ste'"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule, gradient, message):
    with pytest.raises(OptionError, match=message):
        check_rule(rule, gradient)
