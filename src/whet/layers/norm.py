"""RMS normalisation that keeps float64 models in float64, and that may stand on a sliced stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import OptionError


class RMSNorm(nn.Module):
    """y = weight * x / rms(x) over the last dimension, computed in at least float32.

    transformers' own norms compute in float32 even inside a float64 model, which would hide
    what exactness tests look for. Source: Zhang and Sennrich, arXiv 1910.07467.

    full_dim: what the sum of squares is divided by, where x is what was kept of a wider stream:
    the result is then that of the norm over the whole stream with zeros for what went (SliceGPT,
    arXiv 2401.15024). None: `dim`. affine: whether there is a weight. Errors: OptionError.
    """

    def __init__(
        self, dim: int, eps: float, full_dim: int | None = None, affine: bool = True
    ) -> None:
        super().__init__()
        if full_dim is not None and full_dim < dim:
            raise OptionError(f"full_dim={full_dim} must be at least dim={dim}")
        self.weight: nn.Parameter
        self.register_parameter("weight", nn.Parameter(torch.ones(dim)) if affine else None)
        self.eps = eps
        self.full_dim = full_dim
        self.affine = affine
        self._dim = dim

    @property
    def dim(self) -> int:
        """Entries that it normalises."""
        return self.weight.shape[0] if self.affine else self._dim

    def settings(self) -> dict[str, Any]:
        """Arguments that make a norm of this shape."""
        found: dict[str, Any] = {"dim": self.dim, "eps": self.eps}
        if self.full_dim is not None:
            found["full_dim"] = self.full_dim
        return found if self.affine else {**found, "affine": False}

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = wide.square()
        if self.full_dim is None:
            mean = squares.mean(-1, keepdim=True)
        else:
            mean = squares.sum(-1, keepdim=True) / self.full_dim
        y = (wide * torch.rsqrt(mean + self.eps)).to(x.dtype)
        return self.weight * y if self.affine else y

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings().items())
