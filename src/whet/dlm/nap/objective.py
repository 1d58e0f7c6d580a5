"""What NAP's fine-tuning minimises (arXiv 2602.23225, section 4, and its training code).

With a level t per text and masks on the response,

    loss = sum over masked i of w_i · CE_i / number of masked tokens in the batch.

w is 1/t (`original`), 1 - t (`linear`), 1 (`none`) or CART's, Dream's reweighting by how near the
unmasked tokens are (arXiv 2508.15487): w_i = sum over unmasked j of p (1 - p)^(|i - j| - 1) / 2.

Structured masks, the focal factor and shuffled paths are in the official code and not in the
paper; all are off by default.

Deviation: CART counts real tokens only; padding never makes a position weigh more.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from whet.errors import OptionError

TimeWeight = Literal["original", "linear", "cart", "none"]


class StructuredMasks(BaseModel):
    """Masks that know of blocks: with g = 1 - t and r = r_max · t,

    a token of a path is masked with probability r (1 + kappa_think · z), z from 0 to 1 within the
    path; a token of the summary always while g < alpha, then with r (1 + kappa_summary · z); a tag
    never; another token of the response with r.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    r_max: float = Field(default=0.9, gt=0, le=1)
    kappa_think: float = Field(default=0.0, ge=0)
    kappa_summary: float = Field(default=1.0, ge=0)
    alpha: float = Field(default=0.8, ge=0, le=1)


class Focal(BaseModel):
    """The factor alpha · (1 - e^-CE)^gamma."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(default=0.25, gt=0)
    gamma: float = Field(default=2.0, ge=0)


def mask_probability(
    response: Bool[Tensor, "B L"],
    block: Int[Tensor, "B L"],
    tag: Bool[Tensor, "B L"],
    levels: Float[Tensor, " B"],
    *,
    paths: int,
    structured: StructuredMasks | None = None,
) -> Float[Tensor, "B L"]:
    """Probability that each token is masked: its row's level, or what structured masks say.

    block: 1..paths in paths, paths + 1 in the summary, 0 elsewhere. 0 outside the response.
    """
    t = levels[:, None]
    if structured is None:
        return t.expand(response.shape) * response
    r = structured.r_max * t
    inside = (block > 0) & ~tag
    z = place_in_block(block, inside)
    think = inside & (block <= paths)
    summary = inside & (block > paths)
    probability = r.expand(response.shape)
    probability = torch.where(think, r * (1 + structured.kappa_think * z), probability)
    late = torch.where(
        1 - t < structured.alpha,
        torch.ones_like(z),
        r * (1 + structured.kappa_summary * z),
    )
    probability = torch.where(summary, late, probability)
    return probability.clamp(0, 1) * (response & ~tag)


def place_in_block(block: Int[Tensor, "B L"], inside: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """From 0 at a block's first token to 1 at its last; 0 in a block of one and outside."""
    width = block.shape[1]
    count = torch.zeros(len(block), int(block.max()) + 1 if block.numel() else 1).long()
    count = count.to(block.device).scatter_add_(1, block, inside.long())
    column = torch.arange(width, device=block.device).expand(block.shape)
    first = torch.full_like(count, width).scatter_reduce_(
        1, block, column.masked_fill(~inside, width), "amin"
    )
    place = (column - first.gather(1, block)).float()
    return (place / (count.gather(1, block) - 1).clamp_min(1)) * inside


def draw(rng: np.random.Generator, probability: Float[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """Masks, each position for itself."""
    u = torch.from_numpy(rng.random(tuple(probability.shape), dtype=np.float32))
    return u < probability


def cart_weights(
    mask: Bool[Tensor, "B L"], real: Bool[Tensor, "B L"], p: float
) -> Float[Tensor, "B L"]:
    """CART's weights: at masked positions the sum over unmasked real j of p (1-p)^(|i-j|-1) / 2.

    Errors: OptionError unless 0 < p <= 1.
    """
    if not 0 < p <= 1:
        raise OptionError(f"cart_p={p:g} must be above 0 and at most 1")
    width = mask.shape[1]
    column = torch.arange(width, device=mask.device)
    distance = (column[:, None] - column[None, :]).abs()
    kernel = 0.5 * p * (1 - p) ** (distance - 1).clamp_min(0).double()
    kernel.fill_diagonal_(0)
    seen = (~mask & real).double()
    return ((seen @ kernel) * mask).float()


def time_weights(
    kind: TimeWeight,
    levels: Float[Tensor, " B"],
    mask: Bool[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    *,
    cart_p: float = 0.1,
) -> Float[Tensor, "B L"]:
    """What each masked position counts; 0 elsewhere. Errors: those of `cart_weights`."""
    if kind == "cart":
        return cart_weights(mask, real, cart_p)
    t = levels[:, None]
    if kind == "original":
        weight = 1 / t
    elif kind == "linear":
        weight = 1 - t
    else:
        weight = torch.ones_like(t)
    return weight.expand(mask.shape) * mask


def focal_factor(nats: Float[Tensor, " N"], focal: Focal) -> Float[Tensor, " N"]:
    """alpha · (1 - e^-CE)^gamma, near 0 for tokens that are predicted already."""
    return focal.alpha * (-torch.expm1(-nats)) ** focal.gamma


def weighted_loss(
    nats: Float[Tensor, " N"], weights: Float[Tensor, " N"], focal: Focal | None = None
) -> Float[Tensor, ""]:
    """Σ w · CE / N over the masked positions of a batch; 0 where nothing is masked."""
    values = nats * weights
    if focal is not None:
        values = values * focal_factor(nats, focal)
    return values.sum() / max(1, len(nats))


def shuffle_blocks(
    tokens: Int[Tensor, " L"], block: Int[Tensor, " L"], order: list[int]
) -> Int[Tensor, " L"]:
    """Columns in which the paths of a text stand in another order, their tags with them.

    order: the path (from 1) that comes first, second, ... What lies between two paths stays
    behind the one it followed; what comes before the first and after the last path stays.
    Errors: OptionError where `order` is no permutation of the text's paths.
    """
    paths = sorted(order)
    starts = [int((block == k).nonzero()[0]) if bool((block == k).any()) else -1 for k in paths]
    if paths != list(range(1, len(paths) + 1)) or -1 in starts:
        raise OptionError(f"order={order} is no order of the paths 1 to {len(order)}")
    end = int((block == paths[-1]).nonzero()[-1]) + 1
    edges = [*starts, end]
    columns = torch.arange(len(tokens))
    pieces = [columns[edges[k - 1] : edges[k]] for k in order]
    return torch.cat((columns[: starts[0]], *pieces, columns[end:]))
