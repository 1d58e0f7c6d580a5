"""Providers: where the canvas loop gets its logits from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet.dlm.forward import Feed, Forward
from whet.dlm.state import Rows
from whet.models.denoiser import Denoiser


@runtime_checkable
class Provider(Protocol):
    """Logits [N, V] of the tokens at (row, canvas column), which the caller may overwrite.

    forward: what runs the model and counts its cost. copies: canvases sent per row.
    """

    @property
    def forward(self) -> Forward: ...

    @property
    def copies(self) -> int: ...

    def __call__(
        self, rows: Rows, index: Int[Tensor, " N"], position: Int[Tensor, " N"]
    ) -> Float[Tensor, "N V"]: ...


MakeProvider = Callable[[Denoiser, Forward], Provider]


@runtime_checkable
class SomeLight(Protocol):
    """A provider that sends some rows through a small layer in place of the model.

    full, light: [R] of its last call, the rows that went through the model and through the layer
    (or through both).
    """

    full: Bool[Tensor, " R"]
    light: Bool[Tensor, " R"]


def follow(state: Tensor, slot: Int[Tensor, " R"], region: int) -> Tensor:
    """State [M, G, ...] of the last call's rows, in the order of this call's rows and with regions
    of `region` positions; what it holds of rows with slot -1 means nothing."""
    moved = state[slot.clamp_min(0)]
    return F.pad(moved, (0, 0) * (moved.dim() - 2) + (region - moved.shape[1], 0))


@dataclass
class PlainProvider:
    """The model's own logits."""

    denoiser: Denoiser
    forward: Forward
    copies: int = field(default=1, init=False)

    def __call__(self, rows: Rows, index: Tensor, position: Tensor) -> Tensor:
        states = self.forward(Feed.of(rows), index, position)
        return self.denoiser.suppress(self.denoiser.project(states))


@dataclass
class GuidedProvider:
    """Classifier-free guidance: l_u + (scale + 1)(l_c - l_u), both halves in one forward.

    The unconditional half sees the mask token wherever a token was given. Source: LLaDA,
    arXiv 2502.09992, section 2 (unsupervised guidance).
    """

    denoiser: Denoiser
    forward: Forward
    scale: float
    copies: int = field(default=2, init=False)
    _sent: int = field(default=0, init=False)

    def __call__(self, rows: Rows, index: Tensor, position: Tensor) -> Tensor:
        seen = Feed.of(rows)
        blind = rows.tokens.clone()
        blind[:, : rows.start] = self.denoiser.mask_token_id
        blind[:, rows.start :].masked_fill_(rows.given, self.denoiser.mask_token_id)
        # In the forward's last call the blind halves lay behind the seeing ones.
        blind_slot = torch.where(rows.slot < 0, -1, rows.slot + self._sent)
        self._sent = len(rows)
        both = Feed(
            tokens=torch.cat((seen.tokens, blind)),
            first=seen.first.repeat(2),
            low=seen.low.repeat(2),
            high=seen.high.repeat(2),
            window_step=seen.window_step.repeat(2),
            slot=torch.cat((seen.slot, blind_slot)),
        )
        states = self.forward(both, torch.cat((index, index + len(rows))), position.repeat(2))
        conditional = self.denoiser.project(states[: len(index)])
        unconditional = self.denoiser.project(states[len(index) :])
        guided = torch.lerp(unconditional, conditional, self.scale + 1.0)
        return self.denoiser.suppress(guided)


SMOOTH_START, SMOOTH_GROWTH = 0.15, 0.02


@dataclass
class SmoothProvider:
    """IterSmooth: a mask's embedding leans towards what the model made of it in the last step.

    embedding = E[mask] + w softmax(l) @ E with w = min(0.15 + 0.02 k, weight) in step k of a
    window; nothing in its first step. Source: dInfer, arXiv 2510.08666.
    """

    denoiser: Denoiser
    forward: Forward
    weight: float
    copies: int = field(default=1, init=False)
    _soft: Tensor | None = field(default=None, init=False)

    def __call__(self, rows: Rows, index: Tensor, position: Tensor) -> Tensor:
        embedding = self.denoiser.embedding()
        embeds = F.embedding(rows.tokens, embedding)
        if self._soft is not None:
            soft = follow(self._soft, rows.slot, rows.pending.shape[1])
            weight = (SMOOTH_START + SMOOTH_GROWTH * rows.window_step).clamp_max(self.weight)
            weight = weight.masked_fill((rows.slot < 0) | (rows.window_step == 0), 0.0)
            weight = (weight[:, None] * rows.pending).to(soft.dtype)
            embeds[:, rows.start :] += weight[..., None] * soft
        states = self.forward(Feed.of(rows, embeds), index, position)
        logits = self.denoiser.suppress(self.denoiser.project(states))
        self._soft = embeds.new_zeros(*rows.pending.shape, embeds.shape[-1])
        self._soft[index, position - rows.start] = logits.softmax(-1) @ embedding[: logits.shape[1]]
        return logits
