import itertools

import pytest
import torch

from tests.compress.inputs import correlated, random, statistics, white
from whet.compress.magnitude import magnitude
from whet.compress.masks import Pattern
from whet.compress.statistics import InputStatistics, output_error
from whet.compress.wanda import wanda, wanda_scores
from whet.errors import InputError, NonFiniteError


@pytest.mark.parametrize("sparsity", [0.3, 0.5, Pattern(2, 4)])
def test_with_equal_norms_it_is_magnitude_pruning_by_row(sparsity):
    weight = random(16, 40)
    found = wanda(weight, white(40), sparsity)
    assert torch.equal(found.keep, magnitude(weight, sparsity, per="row").keep)
    assert torch.equal(found.weight, torch.where(found.keep, weight, 0))


def test_scores_are_those_of_the_inputs_themselves():
    weight, x = random(3, 8), correlated(50, 8)
    expected = weight.abs() * torch.linalg.vector_norm(x, dim=0)
    assert torch.allclose(wanda_scores(weight, statistics(x).square_sum), expected)


def test_without_correlation_no_other_mask_loses_less():
    stats = white(6)
    squares = random(6, seed=3).square() + 0.1
    stats = InputStatistics(64, squares * 64, squares, squares, torch.diag(squares * 64))
    weight = random(3, 6)
    for row in weight.split(1):
        found = output_error(row, wanda(row, stats, 0.5).weight, stats)
        for zeros in itertools.combinations(range(6), 3):
            other = row.clone()
            other[:, list(zeros)] = 0
            assert found <= output_error(row, other, stats) + 1e-12


def test_a_factor_on_all_inputs_changes_nothing():
    weight, x = random(8, 16), correlated(50, 16)
    one, two = (wanda(weight, statistics(x * f), 0.5) for f in (1.0, 1000.0))
    assert torch.equal(one.keep, two.keep)


def test_the_sparsity_of_every_row_is_exact():
    found = wanda(random(9, 21), statistics(correlated(60, 21)), 0.5)
    assert ((~found.keep).sum(1) == 10).all()
    found = wanda(random(9, 24), statistics(correlated(60, 24)), Pattern(2, 4))
    assert (found.keep.view(-1, 4).sum(1) == 2).all()


def test_weights_of_dead_channels_go_first():
    x = correlated(60, 8)
    x[:, [1, 5]] = 0
    found = wanda(random(4, 8) * 100, statistics(x), 0.25)
    assert (~found.keep).nonzero()[:, 1].tolist() == [1, 5] * 4
    assert found.report.dead == 2


def test_a_layer_that_no_token_reached_is_pruned_by_magnitude_and_says_so():
    weight = random(4, 8)
    for x in (torch.zeros(0, 8), torch.zeros(5, 8)):
        found = wanda(weight, statistics(x.double()), 0.5)
        assert torch.equal(found.weight, magnitude(weight, 0.5, per="row").weight)
        assert found.report.method == "magnitude"
        assert found.report.notes == (f"no input was seen in {len(x)} tokens: pruned by magnitude",)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="statistics are of 7 channels: the layer has 8"):
        wanda(random(4, 8), statistics(correlated(9, 7)))
    broken = correlated(9, 8)
    broken[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="statistics"):
        wanda(random(4, 8), statistics(broken))
