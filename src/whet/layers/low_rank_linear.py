"""A linear layer as two: what a factorized weight becomes."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """y = up (down x) + bias, with `down` [r, in] and `up` [out, r] layers of their own.

    Adapters (PEFT) aim at the two, since they refuse what holds two.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)

    @classmethod
    def of(
        cls, up: Float[Tensor, "O r"], down: Float[Tensor, "r I"], bias: Tensor | None
    ) -> LowRankLinear:
        """A layer of these factors, on their device, in their type."""
        layer = cls(down.shape[1], up.shape[0], down.shape[0], bias is not None)
        layer.to(device=up.device, dtype=up.dtype)
        layer.down.weight.data.copy_(down)
        layer.up.weight.data.copy_(up)
        if bias is not None:
            layer.up.bias.data.copy_(bias)
        return layer

    @property
    def in_features(self) -> int:
        """Width of what it reads."""
        return self.down.in_features

    @property
    def out_features(self) -> int:
        """Width of what it writes."""
        return self.up.out_features

    @property
    def rank(self) -> int:
        """Width in between."""
        return self.down.out_features

    def forward(self, x: Float[Tensor, "*B in"]) -> Float[Tensor, "*B out"]:
        return self.up(self.down(x))  # type: ignore[no-any-return]
