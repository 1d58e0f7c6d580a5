import math

import pytest
import torch

from tests.compress.inputs import random, unchecked
from whet.compress.masks import Pattern, keep_by, share
from whet.errors import InputError, OptionError
from whet.layers.sparsify24 import keep24


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.29, 0.5, 0.999])
def test_exactly_the_floor_of_every_row_goes(sparsity):
    scores = random(7, 100).abs()
    keep = keep_by(scores, sparsity, "row")
    dropped = round(sparsity * 1000) * 100 // 1000
    assert ((~keep).sum(1) == dropped).all()
    for row, mask in zip(scores, keep, strict=True):
        assert row[mask].min() > (row[~mask].max() if dropped else -1)


def test_exactly_the_floor_of_the_layer_goes():
    scores = random(7, 9).abs()
    keep = keep_by(scores, 0.3, "layer")
    assert int((~keep).sum()) == math.floor(0.3 * 63)
    assert scores[keep].min() > scores[~keep].max()
    assert len(set((~keep).sum(1).tolist())) > 1


def test_a_share_is_meant_as_it_is_written():
    assert 0.29 * 100 < 29
    assert share(0.29, 100) == 29
    assert share(0.299, 100) == 29
    assert share(1 / 3, 3) == 1


def test_of_equals_the_first_go():
    scores = torch.tensor([[1.0, 0, 1, 1], [2, 2, 2, 2]])
    assert keep_by(scores, 0.5).tolist() == [[False, False, True, True]] * 2
    assert keep_by(scores, 0.5, "layer").tolist() == [[False] * 4, [True] * 4]
    assert keep_by(scores, Pattern(1, 2)).tolist() == [
        [True, False, False, True],
        [False, True, False, True],
    ]


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern(4, 8), Pattern(1, 2)])
def test_exactly_n_of_every_m_stay_and_they_are_the_highest(pattern):
    scores = random(6, 32).abs()
    keep = keep_by(scores, pattern).view(-1, pattern.of)
    assert (keep.sum(1) == pattern.kept).all()
    for group, mask in zip(scores.view(-1, pattern.of), keep, strict=True):
        assert group[mask].min() > group[~mask].max()


def test_two_of_four_are_those_of_the_activation_rule():
    x = random(50, 16)
    assert torch.equal(keep_by(x.abs(), Pattern(2, 4)), keep24(x))


def test_patterns_are_read_and_written():
    assert Pattern.parse(" 2:4") == Pattern(2, 4)
    assert str(Pattern(4, 8)) == "4:8"


@pytest.mark.parametrize("text", ["4:2", "0:4", "4:4", "2/4", "2", "-1:4", "a:b"])
def test_patterns_that_make_no_sense_are_refused(text):
    with pytest.raises(OptionError, match="pattern"):
        Pattern.parse(text)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan])
def test_sparsities_out_of_range_are_refused(sparsity):
    with pytest.raises(OptionError, match="must be at least 0 and below 1"):
        keep_by(random(2, 4), sparsity)


def test_widths_and_parts_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="pattern 2:4 needs a number of inputs that 4 divides"):
        keep_by(random(2, 6), Pattern(2, 4))
    with pytest.raises(OptionError, match="per='rows' is unknown: did you mean 'row'"):
        unchecked(keep_by)(random(2, 6), 0.5, "rows")
