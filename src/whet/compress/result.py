"""What a solver gives back for one layer: its new weight, and what happened on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from whet.errors import InputError, NonFiniteError
from whet.layers.quantizer import Quantized


@dataclass(frozen=True)
class LayerReport:
    """What was done, for a reader and for the record.

    method: the one whose result this is (another than asked for after a fallback).
    loss: mean over tokens of the squared output error, damping included, where the method knows.
    damp: share of the mean of the Gram matrix' diagonal that was added to it.
    dead: input channels that were 0 in every token.
    notes: a sentence for everything that did not go the usual way.
    """

    method: str
    loss: float | None = None
    damp: float | None = None
    dead: int = 0
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class PrunedLinear:
    """weight: zero wherever `keep` is False."""

    weight: Float[Tensor, "O I"]
    keep: Bool[Tensor, "O I"]
    report: LayerReport

    @property
    def sparsity(self) -> float:
        """Share of the weights that went."""
        return 1 - int(self.keep.sum()) / self.keep.numel()


@dataclass(frozen=True)
class QuantizedLinear:
    """quantized: integers and scales; the latter in the type of the weight that went in."""

    quantized: Quantized
    report: LayerReport

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """The numbers that a loader of the packed layer will see."""
        return self.quantized.dequantized()


@dataclass(frozen=True)
class FactoredLinear:
    """weight = up @ down; y = up (down x)."""

    up: Float[Tensor, "O r"]
    down: Float[Tensor, "r I"]
    report: LayerReport

    @property
    def rank(self) -> int:
        """Width between the two factors."""
        return self.down.shape[0]

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """The product."""
        return self.up @ self.down


def check_weight(weight: Tensor) -> None:
    """Errors: InputError for what is no matrix of floats; NonFiniteError for NaN or infinity."""
    if weight.dim() != 2 or not weight.numel() or not weight.is_floating_point():
        raise InputError(
            f"weight is {weight.dtype} of shape {list(weight.shape)}: floats [out, in] are needed"
        )
    if not bool(weight.isfinite().all()):
        raise NonFiniteError("a weight to be compressed holds NaN or infinity")


def working_type(weight: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.promote_types(weight.dtype, torch.float32)
