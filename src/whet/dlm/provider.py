"""Providers: where the canvas loop gets its logits from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet.dlm.state import Rows
from whet.models.denoiser import Denoiser


@runtime_checkable
class Provider(Protocol):
    """Logits [N, V] of the tokens at (row, canvas position); counts its forwards and rows."""

    forwards: int
    rows: int

    def __call__(
        self, rows: Rows, index: Int[Tensor, " N"], position: Int[Tensor, " N"]
    ) -> Float[Tensor, "N V"]: ...


@dataclass
class FullProvider:
    """One full forward of every row per step.

    attention_mask: [P, L] or None, by prompt.
    """

    denoiser: Denoiser
    attention_mask: Bool[Tensor, "P L"] | None
    forwards: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)

    def __call__(self, rows: Rows, index: Tensor, position: Tensor) -> Tensor:
        self.forwards += 1
        self.rows += len(rows)
        mask = None if self.attention_mask is None else self.attention_mask[rows.owner]
        return self.denoiser.logits(rows.tokens, mask, index, position)


@dataclass
class GuidedProvider:
    """Classifier-free guidance: l_u + (scale + 1)(l_c - l_u), both halves in one forward.

    The unconditional half sees the mask token wherever a token was given. Source: LLaDA,
    arXiv 2502.09992, section 2 (unsupervised guidance).
    given: [P, L], True at the tokens of the prompt.
    """

    denoiser: Denoiser
    attention_mask: Bool[Tensor, "P L"] | None
    given: Bool[Tensor, "P L"]
    scale: float
    forwards: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)

    def __call__(self, rows: Rows, index: Tensor, position: Tensor) -> Tensor:
        self.forwards += 1
        self.rows += 2 * len(rows)
        blind = rows.tokens.masked_fill(self.given[rows.owner], self.denoiser.mask_token_id)
        mask = None
        if self.attention_mask is not None:
            mask = self.attention_mask[rows.owner].repeat(2, 1)
        hidden = self.denoiser.hidden(torch.cat((rows.tokens, blind)), mask)
        conditional = self.denoiser.head(hidden[: len(rows)], index, position)
        unconditional = self.denoiser.head(hidden[len(rows) :], index, position)
        guided = torch.lerp(unconditional, conditional, self.scale + 1.0)
        return self.denoiser.suppress(guided)


MakeProvider = Callable[[Denoiser, Tensor | None, Tensor], Provider]
