import pytest
import torch

from tests.compress.inputs import correlated, random, statistics
from whet.compress.statistics import InputStatistics, output_error
from whet.errors import InputError


def same(one, two):
    assert one.count == two.count
    for field in ("square_sum", "abs_sum", "abs_max", "gram"):
        assert torch.allclose(getattr(one, field), getattr(two, field), rtol=1e-12)


def test_statistics_of_parts_add_up_in_any_order():
    x = correlated(30, 6)
    whole = statistics(x)
    parts = [statistics(p) for p in (x[:7], x[7:8], x[8:8], x[8:])]
    same(parts[0] + parts[1] + parts[2] + parts[3], whole)
    same(parts[3] + (parts[1] + parts[0]), whole)
    assert torch.allclose(whole.gram.diagonal(), whole.square_sum)


def test_padding_on_either_side_counts_for_nothing():
    x = correlated(8, 5).view(2, 4, 5)
    mask = torch.ones(2, 6, dtype=torch.bool)
    left, right = (torch.full((2, 6, 5), float("nan")).double() for _ in range(2))
    left[:, 2:], right[:, :4] = x, x
    same(statistics(left, mask=mask.index_fill(1, torch.tensor([0, 1]), False)), statistics(x))
    same(statistics(right, mask=mask.index_fill(1, torch.tensor([4, 5]), False)), statistics(x))


def test_low_precision_inputs_are_summed_in_float64():
    x = random(4096, 3, dtype=torch.bfloat16).abs() + 1
    found = statistics(x)
    assert found.gram.dtype == torch.float64
    assert torch.equal(found.gram, x.double().t() @ x.double())


def test_statistics_of_divided_inputs_are_those_of_the_division():
    x, s = correlated(30, 6), random(6).abs() + 0.1
    same(statistics(x).divided(s), statistics(x / s))


def test_the_output_error_is_that_of_the_outputs():
    x, weight, new = correlated(30, 6), random(4, 6), random(4, 6, seed=5)
    expected = (x @ (weight - new).t()).square().sum(1).mean()
    assert output_error(weight, new, statistics(x)) == pytest.approx(float(expected))
    assert output_error(weight, new, statistics(x[:0])) == 0


def test_different_layers_do_not_add_up():
    with pytest.raises(InputError, match="widths 6 and 5"):
        statistics(correlated(9, 6)) + statistics(correlated(9, 5))
    with pytest.raises(InputError, match="Gram matrices True and False"):
        statistics(correlated(9, 6)) + statistics(correlated(9, 6), gram=False)
    with pytest.raises(InputError, match="gram is missing"):
        output_error(random(2, 6), random(2, 6), statistics(correlated(9, 6), gram=False))


def test_nothing_seen_is_known():
    assert not InputStatistics.of(torch.zeros(3, 4)).seen
    assert statistics(correlated(3, 4)).seen
