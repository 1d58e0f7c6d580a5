"""Complementary masks and the certainty-forcing loss of dParallel.

Deviations from the official code: windows are drawn for every row, where it is right for one row
only; the loss is a mean over rows, which is what it has with one row per device; a window is never
empty unless `official` asks for its draw, in which one of the windows of a response of whole blocks
is; the entropy has no 1e-12 inside its logarithm, which an exact log-softmax does without.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet.fit.losses import cross_entropy, entropy


@dataclass(frozen=True)
class Masks:
    """The two halves of a window, and what lies right of it, for every row. [B, L] each."""

    first: Bool[Tensor, "B L"]
    second: Bool[Tensor, "B L"]
    future: Bool[Tensor, "B L"]


def complementary_masks(
    rng: np.random.Generator,
    response: Bool[Tensor, "B L"],
    *,
    mask_ratio: float | None = 0.5,
    block_length: int | None = 32,
    smallest: float = 1e-3,
    official: bool = False,
) -> Masks:
    """A window of every row's response, cut into two sets at random.

    A position is in the first set with probability (1 - smallest) · mask_ratio + smallest; None
    draws the ratio anew for every row, between 0 and 1. Blocks are counted from the start of the
    response, the last one may be shorter. official: the block behind a response of whole blocks is
    drawn too; it is empty.
    """
    place = response.long().cumsum(-1) - 1
    length = response.sum(-1)
    if block_length is None:
        window, future = response.clone(), torch.zeros_like(response)
    else:
        blocks = (length // block_length + 1) if official else -(-length // block_length)
        # One number per row whatever the lengths, so that a row does not depend on the others.
        drawn = torch.from_numpy(rng.random(len(response))) * blocks
        block = drawn.long()[:, None]
        window = response & (place // block_length == block)
        future = response & (place // block_length > block)
    ratio = rng.random((len(response), 1)) if mask_ratio is None else mask_ratio
    share = (1 - smallest) * ratio + smallest
    first = window & torch.from_numpy(rng.random(tuple(response.shape)) < share)
    return Masks(first, window & ~first, future)


def certainty_forcing(
    logits: Float[Tensor, "N V"],
    targets: Int[Tensor, " N"],
    rows: Int[Tensor, " N"],
    count: int,
    *,
    beta: float,
    temperature: float = 0.5,
) -> tuple[Float[Tensor, " B"], dict[str, float]]:
    """Cross-entropy and beta · entropy of each of `count` sets, in nats, and numbers to log.

    The N entries are the masked positions; rows: the set that each is in. The entropy counts
    where the likeliest token is the target; a set without such a position has none, an empty set
    is 0. Gradients go through the entropy and not through that choice.
    """
    right = logits.detach().argmax(-1) == targets
    nats = cross_entropy(logits, targets)
    loss = _mean_by_row(nats, rows, count)
    unsure = entropy(logits, temperature=temperature, mask=right)
    if beta:
        loss = loss + beta * _mean_by_row(unsure[right], rows[right], count)
    seen, known = max(1, len(rows)), int(right.sum())
    return loss, {
        "cross_entropy": float(nats.detach().sum()) / seen,
        "entropy": float(unsure.detach().sum()) / max(1, known),
        "right": known / seen,
    }


def _mean_by_row(
    values: Float[Tensor, " N"], rows: Int[Tensor, " N"], count: int
) -> Float[Tensor, " B"]:
    """Mean of each row's values; 0 where it has none."""
    number = torch.zeros(count, dtype=values.dtype, device=values.device)
    number = number.index_add(0, rows, torch.ones_like(values))
    total = torch.zeros_like(number).index_add(0, rows, values)
    return total / number.clamp_min(1)
