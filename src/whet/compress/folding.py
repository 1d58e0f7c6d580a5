"""Moving per-channel scales from a layer's input into its weight and into what comes before.

x -> x / s before a linear layer and W -> W s in it leave its output as it was. Where x is made by
a normalisation or a linear layer, the division goes into its weight (and bias), and nothing is
left to do when the model runs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from whet.errors import InputError, NonFiniteError


@torch.no_grad()
def multiply_inputs(
    weight: Float[Tensor, "O I"], scale: Float[Tensor, " n"]
) -> Float[Tensor, "O I"]:
    """W s, column by column: the weight for an input that was divided by s."""
    _check(scale, weight.shape[1], "inputs")
    return _exactly(weight, weight.double() * scale.double())


@torch.no_grad()
def divide_outputs(
    weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, scale: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "O I"], Float[Tensor, " O"] | None]:
    """Weight and bias of a linear layer whose output is to be divided by s."""
    _check(scale, weight.shape[0], "outputs")
    s = scale.double()
    divided = None if bias is None else _exactly(bias, bias.double() / s)
    return _exactly(weight, weight.double() / s[:, None]), divided


@torch.no_grad()
def divide_norm(
    weight: Float[Tensor, " I"],
    bias: Float[Tensor, " I"] | None,
    scale: Float[Tensor, " n"],
    *,
    offset: float = 0.0,
) -> tuple[Float[Tensor, " I"], Float[Tensor, " I"] | None]:
    """Weight and bias of a normalisation whose output is to be divided by s.

    offset: what the layer adds to its weight before it multiplies (1 for Gemma's).
    """
    _check(scale, len(weight), "channels")
    s = scale.double()
    divided = None if bias is None else _exactly(bias, bias.double() / s)
    return _exactly(weight, (weight.double() + offset) / s - offset), divided


def _check(scale: Tensor, width: int, what: str) -> None:
    if tuple(scale.shape) != (width,):
        raise InputError(f"scale has shape {list(scale.shape)}: the layer has {width} {what}")
    if not bool((scale > 0).all()) or not bool(scale.isfinite().all()):
        raise InputError("scale must be finite and above 0 everywhere")


def _exactly(old: Tensor, new: Tensor) -> Tensor:
    """Back in the old type. Errors: NonFiniteError where that cannot hold it."""
    result = new.to(old.dtype)
    if not bool(torch.isfinite(result).all()):
        raise NonFiniteError(f"a scaled weight does not fit {old.dtype}")
    return result
