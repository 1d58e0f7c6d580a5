"""What a layer's inputs looked like: sums over tokens, from which every solver works.

For inputs x of shape [tokens, in]: their number, and per channel the sums of x² and |x| and the
largest |x|; where asked for the Gram matrix Σ x xᵀ too ([in, in], 8 in² bytes). All in float64:
sums over 10^5 tokens in float32 or less would leave a Gram matrix that is not positive definite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from whet.errors import InputError, NonFiniteError


@dataclass(frozen=True)
class InputStatistics:
    """Sums over `count` tokens. They add up: statistics of two batches are those of both."""

    count: int
    square_sum: Float64[Tensor, " I"]
    abs_sum: Float64[Tensor, " I"]
    abs_max: Float64[Tensor, " I"]
    gram: Float64[Tensor, "I I"] | None = None

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        x: Float[Tensor, "*B I"],
        *,
        mask: Bool[Tensor, "*B"] | None = None,
        gram: bool = True,
    ) -> InputStatistics:
        """Those of one batch. mask: True at tokens that count (padding does not)."""
        rows = (x if mask is None else x[mask]).reshape(-1, x.shape[-1]).double()
        size = rows.abs()
        return cls(
            count=len(rows),
            square_sum=rows.square().sum(0),
            abs_sum=size.sum(0),
            abs_max=size.amax(0) if len(rows) else rows.new_zeros(x.shape[-1]),
            gram=rows.t() @ rows if gram else None,
        )

    def __add__(self, other: InputStatistics) -> InputStatistics:
        """Errors: InputError for another width, or a Gram matrix on one side only."""
        if self.width != other.width or (self.gram is None) != (other.gram is None):
            raise InputError(
                "statistics of different layers do not add up: widths "
                f"{self.width} and {other.width}, Gram matrices "
                f"{self.gram is not None} and {other.gram is not None}"
            )
        gram = None if self.gram is None or other.gram is None else self.gram + other.gram
        return InputStatistics(
            self.count + other.count,
            self.square_sum + other.square_sum,
            self.abs_sum + other.abs_sum,
            torch.maximum(self.abs_max, other.abs_max),
            gram,
        )

    @property
    def width(self) -> int:
        """Channels of the input."""
        return len(self.square_sum)

    @property
    def seen(self) -> bool:
        """Whether any channel was ever other than 0."""
        return self.count > 0 and bool((self.square_sum > 0).any())

    def divided(self, scale: Float[Tensor, " I"]) -> InputStatistics:
        """Statistics of x / scale, for scales above 0."""
        s = scale.double()
        return InputStatistics(
            self.count,
            self.square_sum / s.square(),
            self.abs_sum / s,
            self.abs_max / s,
            None if self.gram is None else self.gram / torch.outer(s, s),
        )

    def to(self, device: torch.device | str) -> InputStatistics:
        """On another device: a solver needs them where the weight is."""
        return InputStatistics(
            self.count,
            self.square_sum.to(device),
            self.abs_sum.to(device),
            self.abs_max.to(device),
            None if self.gram is None else self.gram.to(device),
        )

    def check(self, width: int, *, gram: bool = False) -> None:
        """Errors: InputError for another width, or where the Gram matrix is needed and missing;
        NonFiniteError for NaN or infinity."""
        if self.width != width:
            raise InputError(f"statistics are of {self.width} channels: the layer has {width}")
        if gram and self.gram is None:
            raise InputError("gram is missing from the statistics: collect them with gram=True")
        sums = [self.square_sum, self.abs_sum, self.abs_max]
        if gram and self.gram is not None:
            sums.append(self.gram)
        if not all(bool(s.isfinite().all()) for s in sums):
            raise NonFiniteError("statistics of a layer's inputs hold NaN or infinity")


@torch.no_grad()
def output_error(
    weight: Float[Tensor, "O I"], new: Float[Tensor, "O I"], statistics: InputStatistics
) -> float:
    """Mean over tokens of ‖(W - W') x‖², from the Gram matrix; 0 where there were no tokens."""
    statistics.check(weight.shape[1], gram=True)
    assert statistics.gram is not None
    difference = weight.double() - new.double()
    total = float(((difference @ statistics.gram) * difference).sum())
    # Below 0 by rounding only. In this order NaN stays NaN.
    return max(total, 0.0) / max(1, statistics.count)
