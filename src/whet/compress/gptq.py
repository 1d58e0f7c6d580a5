"""GPTQ: rounding in which the weights not yet rounded make up for the errors of those that are.

Frantar et al., arXiv 2210.17323. Columns are taken in turn, in blocks of 128; with
H = Σ x xᵀ / n + damping, a column's rounding error is spread over those after it
(`_linalg.sweep`). Options of the released code:

- act_order: columns in descending order of H_jj;
- static_groups: scales of groups from the weights as they were, before the first column. Else
  those of a group are found when its first column comes up, from its weights as they then are;
  with act_order a group is then `group_size` columns that come up together, and the layer needs
  an index of each column's group;
- search: smaller ranges are tried (`quantizer.Search`).

Weights that are 0 stay 0 where `keep_zeros` (llm-compressor does so for layers that are pruned):
what is made up for would fill them.

Deviation: scales are rounded to the weight's type before they are used, so that what is made up
for is the error of the weights that will be loaded.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.compress._linalg import ColumnRule, check_sweep, factored_gram, sweep
from whet.compress.result import LayerReport, QuantizedLinear, check_weight, working_type
from whet.compress.rtn import check_weight_grid, rtn
from whet.compress.statistics import InputStatistics
from whet.errors import NonFiniteError
from whet.layers.quantizer import (
    Grid,
    Quantized,
    Scales,
    Search,
    find_scales,
    nearest_integers,
    numbers_of,
)


@torch.no_grad()
def gptq(
    weight: Float[Tensor, "O I"],
    statistics: InputStatistics,
    grid: Grid,
    *,
    damp: float = 0.01,
    block_size: int = 128,
    act_order: bool = False,
    static_groups: bool | None = None,
    search: Search | None = None,
    zero_dead: bool = True,
    keep_zeros: bool = False,
) -> QuantizedLinear:
    """Round a weight so that the layer's outputs change little.

    damp: share of the mean of H's diagonal that is added to it; raised where H is singular.
    static_groups: None is the value of act_order, so that no index of groups is needed (which
    compressed-tensors no longer reads). zero_dead: weights of channels whose input was never
    other than 0 become 0, as in the released code, else they are rounded. keep_zeros: of a pruned
    weight, those that are 0 stay so.
    Where there is no Cholesky factor, no input was seen, or the result would not be finite, the
    weight is rounded to nearest and the report says so.
    Errors: OptionError for options out of range; those of `result.check_weight`, of
    `InputStatistics.check` and, for groups that do not divide the inputs, InputError.
    """
    check_weight(weight)
    check_weight_grid(grid)
    statistics.check(weight.shape[1], gram=True)
    check_sweep(damp, block_size)
    grid.groups(weight.shape[1])
    if not statistics.seen:
        return _nearest(weight, grid, search, "no input was seen")
    found = factored_gram(statistics, damp, working_type(weight), act_order=act_order)
    factor, used, dead, order = found.factor, found.damp, found.dead, found.order
    if factor is None:
        return _nearest(weight, grid, search, "H has no Cholesky factor")
    target = weight.masked_fill(dead, 0) if zero_dead else weight
    static = act_order if static_groups is None else static_groups
    try:
        rule = _Round(target, grid, order, static, search, keep_zeros)
        columns = target.t().to(factor.dtype)
        columns = columns.contiguous() if order is None else columns[order]
        # A group must be up to date as a whole where its first column comes up.
        step = grid.group_size or 1
        new, loss = sweep(columns, factor, rule, max(1, block_size // step) * step)
        quantized = rule.quantized()
    except NonFiniteError:
        return _nearest(weight, grid, search, "weights that are not finite came out")
    if not bool(new.isfinite().all()):
        return _nearest(weight, grid, search, "weights that are not finite came out")
    notes = () if used == damp else (f"damp was raised from {damp:g} to {used:g}",)
    report = LayerReport("gptq", loss=loss, damp=used, dead=int(dead.sum()), notes=notes)
    return QuantizedLinear(quantized, report)


class _Round(ColumnRule):
    """The rule of `sweep`: columns rounded, with scales found before or on the way."""

    def __init__(
        self,
        weight: Float[Tensor, "O I"],
        grid: Grid,
        order: Int[Tensor, " I"] | None,
        static: bool,
        search: Search | None,
        keep_zeros: bool,
    ) -> None:
        rows, columns = weight.shape
        gone = (weight == 0).t() if keep_zeros else None
        self.gone = gone if gone is None or order is None else gone[order]
        self.grid, self.order, self.search = grid, order, search
        self.dtype = weight.dtype
        self.on_the_way = grid.group_size is not None and not static
        self.values = torch.empty((columns, rows), dtype=grid.storage, device=weight.device)
        self.found: list[Scales] = []
        if not self.on_the_way:
            self.found.append(find_scales(weight, grid, search=search))
        step = grid.group_size or columns
        places = torch.arange(columns) // step
        # Group of the column that comes up at each place.
        self.group = (places if self.on_the_way or order is None else places[order.cpu()]).tolist()
        self.scale: list[Tensor] = []
        self.zero: list[Tensor | None] = []
        for scales in self.found:
            self._take(scales, rows)

    def start_block(self, current: Float[Tensor, "b O"], factor: Float[Tensor, " b"]) -> None:
        """Nothing: a block means nothing to a grid."""

    def column(self, j: int, current: Float[Tensor, "rest O"]) -> Float[Tensor, " O"]:
        step = self.grid.group_size
        if self.on_the_way and step is not None and j % step == 0:
            alone = replace(self.grid, granularity="channel", group_size=None)
            scales = find_scales(current[:step].t(), alone, dtype=self.dtype, search=self.search)
            self.found.append(scales)
            self._take(scales, current.shape[1])
        scale, zero = self.scale[self.group[j]], self.zero[self.group[j]]
        wanted = current[0] if self.gone is None else current[0].masked_fill(self.gone[j], 0)
        if zero is not None or scale.dtype != wanted.dtype:
            q = nearest_integers(wanted, scale, zero, self.grid)
            self.values[j] = q
            return numbers_of(q, scale, zero)
        # The same in fewer steps: there is a column for every few microseconds of them.
        number: Tensor = wanted / scale
        number.clamp_(self.grid.lowest, self.grid.highest).round_()
        self.values[j] = number
        return number.mul_(scale)

    def quantized(self) -> Quantized:
        """All of it, in the weight's own order of columns."""
        zeros = [s.zero_point for s in self.found if s.zero_point is not None]
        scales = Scales(
            torch.cat([s.scale for s in self.found], 1), torch.cat(zeros, 1) if zeros else None
        )
        values, index = self.values, None
        if self.order is not None:
            values = torch.empty_like(values)
            values[self.order] = self.values
            if self.on_the_way:
                index = torch.empty_like(self.order)
                index[self.order] = torch.tensor(self.group, device=self.order.device)
        return Quantized(values.t().contiguous(), scales, self.grid, index)

    def _take(self, scales: Scales, rows: int) -> None:
        """Columns of scales, contiguous, by group."""
        self.scale.extend(scales.scale.expand(rows, -1).t().contiguous())
        zero = scales.zero_point
        groups = scales.scale.shape[1]
        self.zero.extend(
            [None] * groups if zero is None else zero.expand(rows, -1).t().contiguous()
        )


def _nearest(weight: Tensor, grid: Grid, search: Search | None, why: str) -> QuantizedLinear:
    found = rtn(weight, grid, search=search)
    note = f"{why}: rounded to nearest"
    return replace(found, report=replace(found.report, notes=(note,)))
