"""SparseGPT: pruning in which the weights that stay make up for those that go.

Frantar and Alistarh, arXiv 2301.00774. Columns are taken in turn, in blocks of 128; with
H = Σ x xᵀ / n + damping and U the upper Cholesky factor of H⁻¹, the score of w in column j is
|w / U_jj|. At the start of a block the lowest scores of all its rows and columns go, up to the
sparsity; with an N:M pattern the lowest of each group, at the group's first column. A column's
error is then spread over those after it (`_linalg.sweep`).

Deviations: ties and shares as in `masks` (the released code drops one more per block); columns
whose input was never other than 0 are zeroed, as in the released code, but take the mean of the
diagonal and not 1 as their own, which keeps the damping free of the scale of the data.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from whet.compress._linalg import ColumnRule, check_sweep, factored_gram, sweep
from whet.compress.masks import Pattern, check_sparsity, keep_highest, share
from whet.compress.result import LayerReport, PrunedLinear, check_weight, working_type
from whet.compress.statistics import InputStatistics
from whet.compress.wanda import wanda
from whet.errors import OptionError


@torch.no_grad()
def sparsegpt(
    weight: Float[Tensor, "O I"],
    statistics: InputStatistics,
    sparsity: float | Pattern = 0.5,
    *,
    damp: float = 0.01,
    block_size: int = 128,
) -> PrunedLinear:
    """Zero weights and change the others, so that the layer's outputs change little.

    damp: share of the mean of H's diagonal that is added to it; raised where H is singular.
    Where that fails, no input was seen, or the result would not be finite, Wanda's mask is used
    without compensation and the report says so.
    Errors: OptionError for options out of range; those of `result.check_weight` and
    `InputStatistics.check`.
    """
    check_weight(weight)
    statistics.check(weight.shape[1], gram=True)
    check_sweep(damp, block_size)
    if isinstance(sparsity, Pattern):
        sparsity.check(weight.shape[1])
        if block_size % sparsity.of:
            raise OptionError(f"block_size={block_size} must be a multiple of {sparsity.of}")
    else:
        check_sparsity(sparsity)
    found = factored_gram(statistics, damp, working_type(weight))
    factor, used, dead = found.factor, found.damp, found.dead
    if factor is None:
        why = "H has no Cholesky factor" if statistics.seen else "no input was seen"
        return _without(weight, statistics, sparsity, why)
    columns = weight.t().to(factor.dtype).masked_fill(dead[:, None], 0)
    rule = _Prune(sparsity, factor.diagonal(), columns.shape[1])
    new, loss = sweep(columns, factor, rule, block_size)
    keep = torch.cat(rule.kept).t().contiguous()
    # Rounding to a narrow type may make a kept weight 0, never a dropped one anything else.
    result = torch.where(keep, new.t(), 0).to(weight.dtype)
    if not bool(result.isfinite().all()):
        return _without(weight, statistics, sparsity, f"weights outside {weight.dtype} came out")
    notes = () if used == damp else (f"damp was raised from {damp:g} to {used:g}",)
    report = LayerReport("sparsegpt", loss=loss, damp=used, dead=int(dead.sum()), notes=notes)
    return PrunedLinear(result, keep, report)


class _Prune(ColumnRule):
    """The rule of `sweep`: which weights go, and zeros for them. kept: masks [n, O], in order."""

    def __init__(self, sparsity: float | Pattern, factor: Float[Tensor, " I"], rows: int) -> None:
        self.sparsity = sparsity
        self.factor = factor
        self.rows = rows
        self.kept: list[Bool[Tensor, "n O"]] = []
        self.next = 0  # where the last of the masks begins

    def start_block(self, current: Float[Tensor, "b O"], factor: Float[Tensor, " b"]) -> None:
        if not isinstance(self.sparsity, Pattern):
            # In the order of the weight, row by row, so that ties go as they do elsewhere.
            scores = (current * factor[:, None]).abs().t().reshape(1, -1)
            keep = keep_highest(scores, share(self.sparsity, scores.shape[1]))
            self._add(keep.view(self.rows, -1).t())

    def column(self, j: int, current: Float[Tensor, "rest O"]) -> Float[Tensor, " O"]:
        if isinstance(self.sparsity, Pattern) and j % self.sparsity.of == 0:
            group = slice(j, j + self.sparsity.of)
            scores = (current[: self.sparsity.of] * self.factor[group, None]).abs()
            keep = keep_highest(scores.t(), self.sparsity.of - self.sparsity.kept)
            self._add(keep.t())
        return torch.where(self.kept[-1][j - self.next], current[0], 0)

    def _add(self, keep: Bool[Tensor, "n O"]) -> None:
        if self.kept:
            self.next += len(self.kept[-1])
        self.kept.append(keep)


def _without(
    weight: Tensor, statistics: InputStatistics, sparsity: float | Pattern, why: str
) -> PrunedLinear:
    found = wanda(weight, statistics, sparsity)
    note = f"{why}: weights that stay were not changed"
    return replace(found, report=replace(found.report, notes=(note, *found.report.notes)))
