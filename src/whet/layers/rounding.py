"""Round-to-nearest weights: what a number format costs, before any method repairs it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from whet.layers.quantizer import Grid, quantize_nearest


def round_to_nearest(weight: Float[Tensor, "O I"], bits: int) -> Float[Tensor, "O I"]:
    """`weight` on the grid of `bits`-bit signed integers, one symmetric scale per row.

    The grid is -(2^(bits-1) - 1) .. 2^(bits-1) - 1 times max|row| / (2^(bits-1) - 1); rows of
    zeros stay. Errors: OptionError for bits outside 2..16.
    """
    return quantize_nearest(weight, Grid(bits, narrow=True)).dequantized()


@torch.no_grad()
def round_linears(model: nn.Module, bits: int) -> int:
    """Round the weights of every nn.Linear in place; embeddings and a tied head stay.

    Gives the number of layers rounded.
    """
    kept = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    count = 0
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in kept:
            module.weight.copy_(round_to_nearest(module.weight, bits))
            count += 1
    return count
