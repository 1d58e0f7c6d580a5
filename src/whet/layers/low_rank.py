"""Linear layers of few parameters, for pre-training from scratch.

- "plain": W = B A with rank r, as in LORO.
- "cola": B silu(A x), a bottleneck rather than a factored matrix; CoLA, arXiv 2502.10940.
- "sltrain": W = (alpha / r) B A + S, where S has values at a few fixed random places; SLTrain,
  arXiv 2406.02214.
- "full": W itself.

Each splits in two: `first_weight()` is the matrix that meets the input, `finish` the rest. What
comes before the first product (a sparse activation) can then be fused with it.

Deviation: SLTrain's own layer builds W again on the way back; here autograd keeps it.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Factors = Literal["plain", "cola", "sltrain", "full"]


class FactoredLinear(nn.Module):
    """outer · f(inner · x): inner [r, in], outer [out, r]; f is SiLU where `activation`."""

    def __init__(self, in_features: int, out_features: int, rank: int, activation: bool) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.empty(rank, in_features))
        self.outer = nn.Parameter(torch.empty(out_features, rank))
        self.activation = activation

    @property
    def init_std(self) -> float:
        """CoLA's: rank^(-1/4) (in + out)^(-1/4), so that W has deviation (in + out)^(-1/2)."""
        rank, size = self.inner.shape[0], self.inner.shape[1] + self.outer.shape[0]
        return float((rank * size) ** -0.25)

    def first_weight(self) -> Float[Tensor, "r in"]:
        """The matrix that meets the input."""
        return self.inner

    def finish(self, h: Float[Tensor, "*B r"]) -> Float[Tensor, "*B out"]:
        """The output, from the product with `first_weight`."""
        return F.linear(F.silu(h) if self.activation else h, self.outer)

    def forward(self, x: Float[Tensor, "*B in"]) -> Float[Tensor, "*B out"]:
        return self.finish(F.linear(x, self.inner))

    def extra_repr(self) -> str:
        rank, width = self.inner.shape
        return f"{width}, {self.outer.shape[0]}, rank={rank}, activation={self.activation}"


class SparseLowRankLinear(nn.Module):
    """(scale · outer · inner + S) x, with S of `values` [n] at the flat places `support` [n]."""

    support: Int[Tensor, " n"]

    def __init__(
        self, in_features: int, out_features: int, rank: int, *, scale: float, share: float
    ) -> None:
        super().__init__()
        count = max(1, round(share * in_features * out_features))
        self.inner = nn.Parameter(torch.empty(rank, in_features))
        self.outer = nn.Parameter(torch.empty(out_features, rank))
        self.values = nn.Parameter(torch.empty(count))
        self.register_buffer("support", torch.zeros(count, dtype=torch.int64))
        self.scale = scale

    @property
    def init_bound(self) -> float:
        """SLTrain's: inner and values are uniform up to in^(-1/2), outer is 0."""
        return 1 / math.sqrt(self.inner.shape[1])

    def draw_support(self) -> Int[Tensor, " n"]:
        """Places drawn without replacement, in order, by torch's generator."""
        size = self.inner.shape[1] * self.outer.shape[0]
        return torch.randperm(size)[: len(self.values)].sort().values

    def first_weight(self) -> Float[Tensor, "out in"]:
        """The matrix that meets the input: here the whole one."""
        product = self.scale * (self.outer @ self.inner)
        return product.flatten().index_add(0, self.support, self.values).view_as(product)

    def finish(self, h: Float[Tensor, "*B out"]) -> Float[Tensor, "*B out"]:
        """The output, from the product with `first_weight`."""
        return h

    def forward(self, x: Float[Tensor, "*B in"]) -> Float[Tensor, "*B out"]:
        return F.linear(x, self.first_weight())

    def extra_repr(self) -> str:
        rank, width = self.inner.shape
        return f"{width}, {self.outer.shape[0]}, rank={rank}, sparse={len(self.values)}"


class FullLinear(nn.Linear):
    """An ordinary linear layer without bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def first_weight(self) -> Float[Tensor, "out in"]:
        """The matrix that meets the input: the whole one."""
        return self.weight

    def finish(self, h: Float[Tensor, "*B out"]) -> Float[Tensor, "*B out"]:
        """The output, from the product with `first_weight`."""
        return h


FewParameterLinear = FactoredLinear | SparseLowRankLinear | FullLinear


def make_linear(
    factors: Factors,
    in_features: int,
    out_features: int,
    *,
    rank: int,
    alpha: float = 32.0,
    sparse_share: float = 0.03,
) -> FewParameterLinear:
    """A layer of the kind `factors`; weights are left to the model's initialisation.

    alpha, sparse_share: of "sltrain".
    """
    if factors == "full":
        return FullLinear(in_features, out_features)
    if factors == "sltrain":
        return SparseLowRankLinear(
            in_features, out_features, rank, scale=alpha / rank, share=sparse_share
        )
    return FactoredLinear(in_features, out_features, rank, activation=factors == "cola")
