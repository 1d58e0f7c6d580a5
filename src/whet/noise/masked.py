"""Masked (absorbing) noise: mask laws and the 1/t-weighted bound they give.

Source: LLaDA, arXiv 2502.09992, equations 3 and 5; the bound goes back to arXiv 2406.03736.
With t ~ U(0, 1) and every response token masked independently with probability t,

    -log p(response | prompt) <= E_t E_mask [ 1/t * sum over masked i of -log p(x_i | masked x) ].
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def mask_levels(
    rng: np.random.Generator, rows: int, *, stratified: bool = True, smallest: float = 1e-3
) -> Float[Tensor, " B"]:
    """Mask levels t in [smallest, 1], one per row.

    stratified: one draw from each of `rows` equal slices of the range, in random order; the same
    marginal law with less variance between batches.
    """
    u = rng.random(rows)
    if stratified:
        u = (rng.permutation(rows) + u) / rows
    return torch.from_numpy(smallest + (1 - smallest) * u).float()


def draw_mask(
    rng: np.random.Generator, eligible: Bool[Tensor, "B L"], levels: Float[Tensor, " B"]
) -> Bool[Tensor, "B L"]:
    """Mask every eligible token independently with its row's level."""
    u = torch.from_numpy(rng.random(tuple(eligible.shape), dtype=np.float32))
    return eligible & (u < levels[:, None])


def masked_bound(
    logits: Float[Tensor, "N V"],
    targets: Int[Tensor, " N"],
    rows: Int[Tensor, " N"],
    levels: Float[Tensor, " B"],
    lengths: Int[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """Each row's estimate of the bound, in nats per response token.

    The N entries are the masked positions (row index `rows`); lengths: response tokens per row.
    Rows in which nothing was masked contribute 0, which the expectation needs.
    """
    nats = F.cross_entropy(logits, targets, reduction="none")
    per_row = torch.zeros_like(levels, dtype=nats.dtype).index_add(0, rows, nats)
    return per_row / levels.to(nats.dtype) / lengths.clamp_min(1).to(nats.dtype)
