import itertools

import pytest
import torch

from tests.compress.inputs import random, unchecked
from whet.compress.magnitude import kept_of, magnitude, magnitude_structured
from whet.compress.masks import Pattern
from whet.errors import InputError, NonFiniteError, OptionError


def test_no_other_choice_of_as_many_weights_is_nearer():
    weight = random(2, 4)
    found = magnitude(weight, 0.4)
    for zeros in itertools.combinations(range(8), 3):
        other = weight.flatten().clone()
        other[list(zeros)] = 0
        assert (found.weight - weight).norm() <= (other.view(2, 4) - weight).norm() + 1e-12
    assert found.sparsity == 3 / 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", [0.5, Pattern(2, 4)])
def test_weights_that_stay_do_not_change_a_bit(dtype, sparsity):
    weight = random(16, 32, dtype=dtype)
    found = magnitude(weight, sparsity, per="row")
    assert found.weight.dtype == dtype
    assert torch.equal(found.weight[found.keep], weight[found.keep])
    assert (found.weight[~found.keep] == 0).all()
    assert ((~found.keep).sum(1) == 16).all()


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_whole_rows_or_columns_of_smallest_norm_go(axis):
    weight = random(8, 10)
    found = magnitude_structured(weight, 0.25, axis)
    turned = weight if axis == "rows" else weight.t()
    norms = [float(r.square().sum()) ** 0.5 for r in turned]
    gone = sorted(range(len(norms)), key=norms.__getitem__)[: len(norms) // 4]
    kept = [i for i in range(len(norms)) if i not in gone]
    assert kept_of(weight, 0.25, axis).tolist() == kept
    result = found.weight if axis == "rows" else found.weight.t()
    assert (result[gone] == 0).all()
    assert torch.equal(result[kept], turned[kept])


def test_another_norm_may_choose_others():
    weight = torch.tensor([[3.0, 0, 0], [2, 2, 2]])
    assert kept_of(weight, 0.5, "rows", norm=float("inf")).tolist() == [0]
    assert kept_of(weight, 0.5, "rows", norm=1).tolist() == [1]


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        magnitude(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(InputError, match="floats"):
        magnitude_structured(torch.ones(2, 2, dtype=torch.int64).float()[:, :0], 0.5, "rows")
    with pytest.raises(OptionError, match="axis='row' is unknown: did you mean 'rows'"):
        unchecked(kept_of)(random(2, 2), 0.5, "row")
