"""Plain masked-diffusion training, the baseline every distillation starts from.

LLaDA, arXiv 2502.09992: equation 5 on the response tokens only (the prompt is never masked), with
the response filled up to the canvas with EOS tokens that count as response. Shifted models
(Dream) are trained through the same adapter that decodes them.

Deviation: mask levels are stratified over the batch, which changes no expectation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from whet import rng as rng_
from whet.data.mixture import ResponseBatch, Source, cuts
from whet.errors import OptionError
from whet.models.denoiser import Denoiser
from whet.noise.masked import draw_mask, mask_levels, masked_bound
from whet.zoo.training import TaskRecipe, TaskTraining


class MaskedTraining(TaskTraining):
    """One player, one turn: `model` minimises the bound on the response."""

    method = "masked"

    def __init__(self, recipe: TaskRecipe, *, sources: Mapping[str, Source] | None = None) -> None:
        super().__init__(recipe, sources=sources)
        if recipe.data.gen_lengths is None:
            raise OptionError("method 'masked' needs data.gen_lengths: the canvas is filled up")
        self.denoiser = Denoiser.of(self.model, self.tokenizer)

    def batch(self, step: int) -> list[tuple[ResponseBatch, Tensor, Tensor]]:
        """Sub-batches with their mask levels [B] and masks [B, L]."""
        parts = self.mixture.batch(step)
        rng = rng_.keyed(self.recipe.fit.seed, "mask", step)
        levels = mask_levels(rng, sum(len(p.tokens) for p in parts))
        out, start = [], 0
        for part in parts:
            t = levels[start : start + len(part.tokens)]
            start += len(part.tokens)
            out.append((part, t, draw_mask(rng, part.response, t)))
        return out

    def split(
        self, batch: list[tuple[ResponseBatch, Tensor, Tensor]], turn: str, parts: int
    ) -> list[tuple[list[tuple[ResponseBatch, Tensor, Tensor]], float]]:
        """Parts of every sub-batch with their share of the rows, over which the loss is a mean."""
        total = sum(len(part.tokens) for part, _, _ in batch)
        found = []
        for k in range(parts):
            piece = []
            for part, levels, mask in batch:
                rows = cuts(len(part.tokens), parts)[k]
                if rows.start < rows.stop:
                    piece.append((part.rows(rows), levels[rows], mask[rows]))
            if piece:
                found.append((piece, sum(len(p.tokens) for p, _, _ in piece) / total))
        return found

    def tokens(self, batch: list[tuple[ResponseBatch, Tensor, Tensor]]) -> int:
        """Real tokens (padding not counted)."""
        return sum(int(part.attention_mask.sum()) for part, _, _ in batch)

    def loss(
        self, batch: list[tuple[ResponseBatch, Tensor, Tensor]], turn: str
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean bound in nats per response token."""
        bounds = []
        for part, levels, mask in batch:
            rows, positions = mask.nonzero(as_tuple=True)
            noisy = part.tokens.masked_fill(mask, self.denoiser.mask_token_id)
            logits = self.denoiser.logits(noisy, part.attention_mask, rows, positions)
            bounds.append(masked_bound(logits, part.tokens[mask], rows, levels, part.lengths))
        return torch.cat(bounds).mean(), {}
