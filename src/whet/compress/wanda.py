"""Wanda: pruning by weight times the norm of its input.

Sun et al., arXiv 2306.11695: the score of W_ij is |W_ij| · ‖X_j‖₂, compared within each output
row, with X_j the j-th input over all calibration tokens; no weight changes that stays. N:M
patterns compare M neighbouring inputs.

Deviation: a layer that no token reached (an expert that was never chosen) is pruned by magnitude
and the report says so; the released code scores all of its weights 0.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from whet.compress.magnitude import magnitude
from whet.compress.masks import Part, Pattern, keep_by
from whet.compress.result import LayerReport, PrunedLinear, check_weight, working_type
from whet.compress.statistics import InputStatistics


@torch.no_grad()
def wanda_scores(
    weight: Float[Tensor, "O I"], square_sum: Float64[Tensor, " I"]
) -> Float[Tensor, "O I"]:
    """|W_ij| · ‖X_j‖₂."""
    work = working_type(weight)
    return weight.to(work).abs() * square_sum.sqrt().to(work)


@torch.no_grad()
def wanda(
    weight: Float[Tensor, "O I"],
    statistics: InputStatistics,
    sparsity: float | Pattern = 0.5,
    *,
    per: Part = "row",
) -> PrunedLinear:
    """Zero the weights of lowest score; kept ones do not change.

    Errors: see `masks.keep_by`, `result.check_weight` and `InputStatistics.check`.
    """
    check_weight(weight)
    statistics.check(weight.shape[1])
    if not statistics.seen:
        found = magnitude(weight, sparsity, per=per)
        note = f"no input was seen in {statistics.count} tokens: pruned by magnitude"
        return replace(found, report=replace(found.report, dead=statistics.width, notes=(note,)))
    keep = keep_by(wanda_scores(weight, statistics.square_sum), sparsity, per)
    dead = int((statistics.square_sum == 0).sum())
    return PrunedLinear(torch.where(keep, weight, 0), keep, LayerReport("wanda", dead=dead))
