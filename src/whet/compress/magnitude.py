"""Magnitude pruning: the smallest weights go, or the rows or columns of smallest norm.

Han et al., arXiv 1506.02626, section 3 (without the retraining). No calibration data. The usual
baseline compares weights within a layer ("layer"); "row" compares them as Wanda does.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet.compress.masks import Part, Pattern, check_sparsity, keep_by, keep_highest, share
from whet.compress.result import LayerReport, PrunedLinear, check_weight, working_type
from whet.errors import OptionError, nearest

Axis = Literal["rows", "columns"]


@torch.no_grad()
def magnitude(
    weight: Float[Tensor, "O I"], sparsity: float | Pattern = 0.5, *, per: Part = "layer"
) -> PrunedLinear:
    """Zero the weights of smallest |W|; kept ones do not change.

    Errors: see `masks.keep_by` and `result.check_weight`.
    """
    check_weight(weight)
    keep = keep_by(weight.abs(), sparsity, per)
    return PrunedLinear(torch.where(keep, weight, 0), keep, LayerReport("magnitude"))


@torch.no_grad()
def kept_of(
    weight: Float[Tensor, "O I"], sparsity: float, axis: Axis, *, norm: float = 2.0
) -> Int[Tensor, " kept"]:
    """Rows or columns that stay, ascending: all but the floor(n · sparsity) of smallest norm.

    Errors: OptionError for an unknown axis, or a sparsity outside [0, 1).
    """
    check_weight(weight)
    check_sparsity(sparsity)
    if axis not in get_args(Axis):
        raise OptionError(f"axis={axis!r} is unknown: {nearest(axis, get_args(Axis))}")
    dim = 1 if axis == "rows" else 0
    norms = torch.linalg.vector_norm(weight.to(working_type(weight)), norm, dim=dim)
    keep: Bool[Tensor, " n"] = keep_highest(norms[None], share(sparsity, len(norms)))[0]
    return keep.nonzero()[:, 0]


@torch.no_grad()
def magnitude_structured(
    weight: Float[Tensor, "O I"], sparsity: float, axis: Axis, *, norm: float = 2.0
) -> PrunedLinear:
    """Zero whole rows (outputs) or columns (inputs); `kept_of` says which stay."""
    kept = kept_of(weight, sparsity, axis, norm=norm)
    keep = torch.zeros_like(weight, dtype=torch.bool)
    keep.index_fill_(0 if axis == "rows" else 1, kept, True)
    return PrunedLinear(torch.where(keep, weight, 0), keep, LayerReport("magnitude"))
