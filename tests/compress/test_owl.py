import math

import pytest
import torch

from tests.compress.inputs import random
from whet.compress.owl import outlier_ratio, owl_sparsities
from whet.errors import InputError, NonFiniteError, OptionError


def test_the_ratio_counts_scores_above_a_multiple_of_the_blocks_mean():
    layers = [random(5, 8).abs() ** 3, random(3, 4, seed=1).abs() ** 3]
    every = [float(v) for s in layers for v in s.flatten()]
    mean = sum(every) / len(every)
    expected = 100 * sum(v > 3 * mean for v in every) / len(every)
    assert outlier_ratio(layers, 3) == pytest.approx(expected)
    assert 0 < expected < 20
    assert outlier_ratio([torch.ones(2, 2)]) == 0


def test_the_worked_case():
    # g = 0, .08, .16 with mean .08: densities .42, .5, .58.
    found = owl_sparsities([1, 2, 3], 0.5)
    assert found.sparsities == pytest.approx((0.58, 0.5, 0.42))


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("sizes", [None, [5, 1, 3, 2, 9, 4]])
def test_the_mean_is_the_sparsity_and_more_outliers_keep_more(sparsity, sizes):
    ratios = random(6).abs().tolist()
    found = owl_sparsities(ratios, sparsity, sizes=sizes)
    weights = sizes or [1] * 6
    mean = sum(s * n for s, n in zip(found.sparsities, weights, strict=True)) / sum(weights)
    assert mean == pytest.approx(sparsity, abs=1e-9)
    assert found.mean == pytest.approx(sparsity, abs=1e-9)
    assert not found.notes
    by_ratio = [s for _, s in sorted(zip(ratios, found.sparsities, strict=True))]
    assert by_ratio == sorted(by_ratio, reverse=True)
    assert by_ratio[0] - by_ratio[-1] == pytest.approx(0.16)


def test_equal_ratios_are_uniform():
    for ratios in ([0.0] * 3, [7.5] * 3, [2.0]):
        found = owl_sparsities(ratios, 0.5)
        assert found.sparsities == (0.5,) * len(ratios)
        assert not any(math.isnan(s) for s in found.sparsities)


@pytest.mark.parametrize(("sparsity", "expected"), [(0.02, 0.01), (0.95, 0.99)])
def test_sparsities_that_cannot_be_are_cut_off_and_the_result_says_so(sparsity, expected):
    found = owl_sparsities([1, 2, 3, 9], sparsity, spread=0.1)
    assert expected in found.sparsities
    assert all(0 < s <= 0.99 for s in found.sparsities)
    assert found.mean == pytest.approx(sum(found.sparsities) / 4)
    assert found.mean != pytest.approx(sparsity, abs=1e-4)
    (note,) = found.notes
    assert f"the mean {found.mean:.4f} and not {sparsity:g}" in note


def test_what_makes_no_sense_is_refused():
    with pytest.raises(OptionError, match="sparsity=1 "):
        owl_sparsities([1, 2], 1.0)
    with pytest.raises(OptionError, match="spread=-1"):
        owl_sparsities([1, 2], 0.5, spread=-1)
    with pytest.raises(InputError, match="2 ratios and 1 sizes"):
        owl_sparsities([1, 2], 0.5, sizes=[3])
    with pytest.raises(InputError, match="0 ratios"):
        owl_sparsities([], 0.5)
    with pytest.raises(NonFiniteError, match="not a number"):
        owl_sparsities([1, math.nan, 2], 0.5)
    with pytest.raises(NonFiniteError, match="scores"):
        outlier_ratio([torch.tensor([[math.nan, 1]])])
    with pytest.raises(InputError, match="empty"):
        outlier_ratio([])
