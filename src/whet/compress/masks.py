"""Which weights stay: the lowest scores go, in parts of a matrix; of equals, those that come first.

A share that does not come out even is rounded down, so that never more goes than was asked for.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from whet.errors import InputError, OptionError, nearest

Part = Literal["row", "layer"]
_AT_A_TIME = 2**20


@dataclass(frozen=True)
class Pattern:
    """N:M sparsity: `kept` of every `of` neighbouring inputs stay."""

    kept: int
    of: int

    def __post_init__(self) -> None:
        if not 0 < self.kept < self.of:
            raise OptionError(f"pattern {self}: the first number must be between 0 and the second")

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """From "2:4". Errors: OptionError for anything else than two numbers."""
        found = re.fullmatch(r"(\d+):(\d+)", text.strip())
        if found is None:
            raise OptionError(f"pattern={text!r} must look like '2:4'")
        return cls(int(found[1]), int(found[2]))

    def check(self, columns: int) -> None:
        """Errors: InputError for columns that the pattern does not divide."""
        if columns % self.of:
            raise InputError(
                f"pattern {self} needs a number of inputs that {self.of} divides, got {columns}"
            )


def check_sparsity(sparsity: float) -> None:
    """Errors: OptionError outside [0, 1)."""
    if not 0 <= sparsity < 1:
        raise OptionError(f"sparsity={sparsity:g} must be at least 0 and below 1")


def share(sparsity: float, count: int) -> int:
    """floor(sparsity · count), meant as written: 0.29 of 100 is 29, though 0.29 · 100 < 29."""
    return math.floor(sparsity * count + 1e-9)


def keep_highest(scores: Float[Tensor, "R C"], dropped: int) -> Bool[Tensor, "R C"]:
    """False at the `dropped` lowest scores of every row."""
    if not dropped:
        return torch.ones_like(scores, dtype=torch.bool)
    # A few rows at a time: the work takes six times the room of its scores.
    rows = max(1, _AT_A_TIME // scores.shape[1])
    return torch.cat([_keep_highest(part, dropped) for part in torch.split(scores, rows)])


def _keep_highest(scores: Tensor, dropped: int) -> Tensor:
    # Two to six times as fast as a stable sort.
    edge = scores.kthvalue(dropped, dim=-1, keepdim=True).values
    below, tied = scores < edge, scores == edge
    missing = dropped - below.sum(-1, keepdim=True)
    return ~(below | (tied & (tied.cumsum(-1) <= missing)))


def keep_by(
    scores: Float[Tensor, "R C"], sparsity: float | Pattern, per: Part = "row"
) -> Bool[Tensor, "R C"]:
    """The mask of one layer's scores.

    A sparsity drops floor(C · sparsity) of every row, or, per "layer", floor(R · C · sparsity) of
    all; a pattern has parts of its own. Errors: OptionError for a sparsity outside [0, 1) or an
    unknown `per`; InputError for a width that the pattern does not divide.
    """
    if per not in get_args(Part):
        raise OptionError(f"per={per!r} is unknown: {nearest(per, get_args(Part))}")
    if isinstance(sparsity, Pattern):
        return _keep_by_pattern(scores, sparsity)
    check_sparsity(sparsity)
    parts = scores if per == "row" else scores.reshape(1, -1)
    return keep_highest(parts, share(sparsity, parts.shape[1])).view_as(scores)


def _keep_by_pattern(scores: Float[Tensor, "R C"], pattern: Pattern) -> Bool[Tensor, "R C"]:
    pattern.check(scores.shape[1])
    parts = scores.reshape(-1, pattern.of)
    return keep_highest(parts, pattern.of - pattern.kept).view_as(scores)
