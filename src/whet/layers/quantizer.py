"""Integer grids: where their scales lie, and rounding onto them.

A grid of b bits has the integers q of [-2^(b-1), 2^(b-1) - 1]; one scale s and zero point z per
tensor, row, group of columns or token stand for the numbers s (q - z). From the smallest and the
largest number of that part, taken so that 0 lies between them:

    symmetric:   s = 2 max|x| / (2^b - 1),     z = 0
    asymmetric:  s = (max - min) / (2^b - 1),  z = round(q_min - min / s)

as the compressed-tensors package (0.20) makes them, so that what is stored loads elsewhere with
the same numbers. `narrow` is the other custom: q of [-(2^(b-1) - 1), 2^(b-1) - 1] and
s = max|x| / (2^(b-1) - 1), which puts max|x| on the grid.

Scales are rounded to the type they will be stored in before anything is rounded with them.

The search for smaller ranges is GPTQ's (arXiv 2210.17323, released code): of the factors
1, 1 - 1/steps, ... the one with the least sum of |error|^2.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.errors import InputError, NonFiniteError, OptionError, nearest

Granularity = Literal["tensor", "channel", "group", "token"]


@dataclass(frozen=True)
class Grid:
    """Which integers, and which numbers share a scale.

    bits: 2 to 16 (beyond 8 the integers are kept as int16). symmetric, narrow: see the module.
    granularity: "tensor", "channel" (a row of a weight), "group" (`group_size` neighbours within
    a row) or "token" (a row of activations, with its scale found when it is seen).
    """

    bits: int = 4
    symmetric: bool = True
    granularity: Granularity = "channel"
    group_size: int | None = None
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise OptionError(f"bits={self.bits} must be between 2 and 16")
        if self.granularity not in get_args(Granularity):
            raise OptionError(
                f"granularity={self.granularity!r} is unknown: "
                f"{nearest(self.granularity, get_args(Granularity))}"
            )
        if (self.granularity == "group") != (self.group_size is not None):
            raise OptionError(
                f"group_size={self.group_size} does not fit granularity={self.granularity!r}: "
                "a number is needed for 'group', and only there"
            )
        if self.group_size is not None and self.group_size < 1:
            raise OptionError(f"group_size={self.group_size} must be at least 1")
        if self.narrow and not self.symmetric:
            raise OptionError("narrow=True needs symmetric=True")

    @property
    def lowest(self) -> int:
        """Smallest integer."""
        return -(1 << (self.bits - 1)) + self.narrow

    @property
    def highest(self) -> int:
        """Largest integer."""
        return (1 << (self.bits - 1)) - 1

    @property
    def storage(self) -> torch.dtype:
        """Type that holds the integers."""
        return torch.int8 if self.bits <= 8 else torch.int16

    def groups(self, columns: int) -> int:
        """Scales of a row of so many columns. Errors: InputError where groups do not divide it."""
        if self.group_size is None:
            return 1
        if columns % self.group_size:
            raise InputError(f"group_size={self.group_size} does not divide {columns} columns")
        return columns // self.group_size


@dataclass(frozen=True)
class Search:
    """Ranges to try: factors 1 - i / steps above `smallest`; errors are compared at `power`."""

    power: float = 2.4
    steps: int = 100
    smallest: float = 0.2

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise OptionError(f"power={self.power:g} must be above 0")
        if self.steps < 1:
            raise OptionError(f"steps={self.steps} must be at least 1")
        if not 0 <= self.smallest < 1:
            raise OptionError(f"smallest={self.smallest:g} must be at least 0 and below 1")

    def factors(self) -> list[float]:
        """Descending, 1 first."""
        every = (1 - i / self.steps for i in range(self.steps))
        return [f for f in every if f > self.smallest + 1e-9]


@dataclass(frozen=True)
class Scales:
    """scale [rows, groups] (1 row for one per tensor) in the type it is stored in; zero_point of
    the same shape, None where the grid is symmetric."""

    scale: Float[Tensor, "R G"]
    zero_point: Int[Tensor, "R G"] | None

    def columns(self, count: int, group_index: Int[Tensor, " C"] | None = None) -> Scales:
        """Spread out to `count` columns (or left to broadcast where there is one group).

        group_index: group of each column; None: neighbours share one.
        """
        groups = self.scale.shape[1]
        if groups == 1:
            return self

        def spread(values: Tensor) -> Tensor:
            if group_index is not None:
                return values.index_select(1, group_index)
            return values.repeat_interleave(count // groups, 1)

        zero = self.zero_point
        return Scales(spread(self.scale), None if zero is None else spread(zero))


@dataclass(frozen=True)
class Quantized:
    """A matrix as integers [rows, columns] with their scales.

    group_index: group of each column; None: neighbours share one.
    """

    values: Int[Tensor, "R C"]
    scales: Scales
    grid: Grid
    group_index: Int[Tensor, " C"] | None = None

    def dequantized(self) -> Float[Tensor, "R C"]:
        """The numbers, in the type of the scales."""
        return dequantize(self.values, self.scales, self.group_index)


def range_scales(
    low: Float[Tensor, "R G"],
    high: Float[Tensor, "R G"],
    grid: Grid,
    dtype: torch.dtype | None = None,
) -> Scales:
    """Scales of parts whose numbers lie between `low` and `high`.

    dtype: of the scales; None is that of `high`. A part of zeros, or one so small that its scale
    would round to 0, gets the type's epsilon.
    """
    dtype = dtype or high.dtype
    wide = torch.promote_types(high.dtype, torch.float32)
    low, high = low.to(wide).clamp(max=0), high.to(wide).clamp(min=0)
    span = grid.highest - grid.lowest
    raw = torch.maximum(-low, high) / (span / 2) if grid.symmetric else (high - low) / span
    scale = raw.to(dtype)
    scale = torch.where(scale == 0, torch.finfo(dtype).eps, scale)
    if grid.symmetric:
        return Scales(scale, None)
    zero = (grid.lowest - low / scale.to(wide)).clamp(grid.lowest, grid.highest).round()
    return Scales(scale, zero.to(grid.storage))


def find_scales(
    x: Float[Tensor, "R C"],
    grid: Grid,
    *,
    dtype: torch.dtype | None = None,
    search: Search | None = None,
) -> Scales:
    """Scales of a matrix, from its smallest and largest numbers or by search.

    dtype: of the scales; None is that of x. Errors: NonFiniteError for NaN or infinity in x;
    InputError for groups that do not divide its columns.
    """
    parts = _parts(x, grid)
    if not bool(x.isfinite().all()):
        raise NonFiniteError("a matrix to be quantized holds NaN or infinity")
    low, high = parts.amin(-1), parts.amax(-1)
    best = range_scales(low, high, grid, dtype or x.dtype)
    if search is None:
        return best
    wide = parts.to(torch.promote_types(x.dtype, torch.float32))
    least = torch.full_like(low, torch.inf, dtype=wide.dtype)
    for factor in search.factors():
        tried = range_scales(
            low.to(wide.dtype) * factor, high.to(wide.dtype) * factor, grid, dtype or x.dtype
        )
        scale, offset = tried.scale[..., None], tried.zero_point
        offset = None if offset is None else offset[..., None]
        rounded = numbers_of(nearest_integers(wide, scale, offset, grid), scale, offset)
        error = rounded.sub_(wide).abs_().pow_(search.power).sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        zero = best.zero_point
        if zero is not None and tried.zero_point is not None:
            zero = torch.where(better, tried.zero_point, zero)
        best = Scales(torch.where(better, tried.scale, best.scale), zero)
    return best


def quantize(
    x: Float[Tensor, "R C"],
    scales: Scales,
    grid: Grid,
    group_index: Int[Tensor, " C"] | None = None,
) -> Int[Tensor, "R C"]:
    """Integers of the nearest numbers on the grid, halves to even, ends clamped."""
    spread = scales.columns(x.shape[1], group_index)
    return nearest_integers(x, spread.scale, spread.zero_point, grid).to(grid.storage)


def nearest_integers(x: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid) -> Tensor:
    """The integers as floats (of at least 32 bits); scale and zero_point broadcast against x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    q = x.to(wide) / scale.to(wide)
    if zero_point is not None:
        q += zero_point
    return q.clamp_(grid.lowest, grid.highest).round_()


def numbers_of(q: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """s (q - z) of integers that are floats, as `dequantize` gives them, in the type of q."""
    if zero_point is not None:
        q = q - zero_point
    # Rounded once, as the product in the scales' own type is: it is exact in a wider one.
    return (q * scale.to(q.dtype)).to(scale.dtype).to(q.dtype)


def dequantize(
    values: Int[Tensor, "R C"], scales: Scales, group_index: Int[Tensor, " C"] | None = None
) -> Float[Tensor, "R C"]:
    """s (q - z), worked out in the type of the scales, as loaders do."""
    spread = scales.columns(values.shape[1], group_index)
    numbers = values.to(scales.scale.dtype)
    if spread.zero_point is not None:
        numbers = numbers - spread.zero_point.to(numbers.dtype)
    return numbers * spread.scale


def quantize_nearest(
    x: Float[Tensor, "R C"], grid: Grid, *, search: Search | None = None
) -> Quantized:
    """x rounded to the nearest numbers of its grid; scales in the type of x."""
    scales = find_scales(x, grid, search=search)
    return Quantized(quantize(x, scales, grid), scales, grid)


def fake_quantize(
    x: Float[Tensor, "*B C"], grid: Grid, *, search: Search | None = None
) -> Float[Tensor, "*B C"]:
    """x with every number on its grid. A row is the last dimension (a token, for activations)."""
    rows = x.reshape(-1, x.shape[-1])
    return quantize_nearest(rows, grid, search=search).dequantized().view(x.shape)


def _parts(x: Tensor, grid: Grid) -> Tensor:
    """x as [rows, groups, numbers that share a scale]."""
    if x.dim() != 2 or not x.numel():
        raise InputError(f"a matrix with numbers in it is needed, got shape {list(x.shape)}")
    if grid.granularity == "tensor":
        return x.reshape(1, 1, -1)
    return x.reshape(len(x), grid.groups(x.shape[1]), -1)
