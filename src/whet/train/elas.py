"""ELAS: pre-training of low-rank language models with 2:4 sparse activations (arXiv 2605.03667).

The feed-forward layers of a low-rank Llama use the squared rectifier, whose output is mostly zero,
and keep two of every four of its entries (`whet.layers.sparsify24`). What is kept for the way back
is packed (`whet.layers.relu2_linear`); the model is `whet.models.elas_llama`. The objective is
next-token cross-entropy on running text; the first `model.dense_steps` steps are dense. With
`fit.activation_checkpointing` the blocks keep nothing, so there is nothing left for it to save.

Deviations: the paper's pages beyond its abstract could not be read, so these are choices.
"magnitude" and the exact ("masked") gradient are the defaults, "mvue", "soft" and the
straight-through gradient are options. The products on the way back are dense (no sparsity along
the tokens). Bases are plain, CoLA's and SLTrain's factors under AdamW; LORO's steps on the manifold
are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from whet import rng as rng_
from whet._io import claim_folder
from whet.data.mixture import cuts
from whet.data.synthetic import zipf_markov_text
from whet.data.text import TextWindows
from whet.errors import OptionError
from whet.fit.losses import window_losses
from whet.models.elas_llama import ElasLlamaConfig
from whet.zoo.recipe import Recipe
from whet.zoo.tokenizer import byte_tokenizer
from whet.zoo.training import Training, build_model, model_config


class TextSettings(BaseModel):
    """Text, by byte: a UTF-8 file, or `synthetic` characters that are made up.

    length: tokens in a window, of which all but the first are learnt. held_out: share at the end
    of the text that training never sees.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Path | None = None
    synthetic: int | None = Field(default=None, gt=0)
    length: int = Field(default=256, ge=2)
    batch_size: int = Field(default=16, gt=0)
    held_out: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_source(self) -> TextSettings:
        if (self.text is None) == (self.synthetic is None):
            raise ValueError("needs either text: FILE or synthetic: CHARACTERS")
        return self


class ElasRecipe(Recipe):
    """A whole run: keys of `ElasLlamaConfig`, text, optimisation."""

    model: dict[str, Any]
    data: TextSettings

    def check(self) -> None:
        """Errors: OptionError for a `model` section that is wrong or of another family."""
        family = ElasLlamaConfig.model_type
        if self.model.get("model_type") != family:
            raise OptionError(f"model.model_type must be {family!r}, the family of this method")
        model_config(self.model)


@dataclass(frozen=True)
class Windows:
    """A batch: tokens [B, L], and whether its forwards are to be measured."""

    tokens: Int[Tensor, "B L"]
    observed: bool


class ElasTraining(Training):
    """One player, one turn: `model` minimises next-token cross-entropy."""

    method = "elas"
    recipe_type = ElasRecipe
    recipe: ElasRecipe

    def __init__(self, recipe: ElasRecipe, *, windows: TextWindows | None = None) -> None:
        """windows: text instead of the recipe's, tokenised by `byte_tokenizer`.

        Errors: OptionError, see `ElasRecipe.check`; InputError, see `TextWindows`.
        """
        self.check_method(recipe)
        recipe.check()
        data, seed = recipe.data, recipe.fit.seed
        tokenizer = byte_tokenizer()
        self.windows = windows or text_windows(data, tokenizer, seed=seed)
        torch.manual_seed(rng_.key_bits(seed, "init", bits=64) >> 1)
        super().__init__(recipe, build_model(recipe.model, tokenizer).train(), tokenizer)

    def prepare(self, out: Path) -> None:
        """Errors: CheckpointError for a folder that was begun with another text."""
        out.mkdir(parents=True, exist_ok=True)
        claim_folder(out / "text.json", {"sha256": self.windows.sha256})

    def batch(self, step: int) -> Windows:
        """The windows of one step; those of the steps that are logged are measured."""
        settings = self.recipe.fit
        logged = (step + 1) % settings.log_every == 0 or step + 1 == settings.steps
        return Windows(self.windows.batch(step), logged)

    def split(self, batch: Windows, turn: str, parts: int) -> Sequence[tuple[Windows, float]]:
        """Parts of the rows with their share of them, over which the loss is a mean."""
        count = len(batch.tokens)
        rows = [r for r in cuts(count, parts) if r.start < r.stop]
        return [
            (Windows(batch.tokens[r], batch.observed), (r.stop - r.start) / count) for r in rows
        ]

    def tokens(self, batch: Windows) -> int:
        """Tokens that are read."""
        return batch.tokens[:, 1:].numel()

    def loss(self, batch: Windows, turn: str) -> tuple[Tensor, dict[str, float]]:
        """Mean nats per token.

        In logged steps also, of every feed-forward layer and as `zeros` and `dropped` on average:
        the share of zeros among its activations and of their energy that 2:4 drops (or would
        drop, while steps are dense).
        """
        self.model.observe(batch.observed)
        loss = window_losses(self.model, batch.tokens).mean()
        found = {}
        if batch.observed:
            layers = [m.observed for m in self.model.feed_forwards()]
            for name, values in (
                ("zeros", [s.zeros for s in layers]),
                ("dropped", [s.dropped_energy for s in layers]),
            ):
                if values:
                    found[name] = sum(values) / len(values)
                    found |= {f"{name}.{i}": value for i, value in enumerate(values)}
        return loss, found

    def after_step(self, step: int) -> None:
        """Count the model's dense steps."""
        self.model.advance()

    def state(self) -> Mapping[str, Tensor]:
        """The model's counters."""
        return {"counters": self.model.counters()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the counters back."""
        self.model.set_counters(state["counters"])


def text_windows(data: TextSettings, tokenizer: Any, *, seed: int) -> TextWindows:
    """The recipe's text. Errors: InputError, see `TextWindows`."""
    return TextWindows(
        tokenizer,
        [zipf_markov_text(data.synthetic, seed=seed)] if data.synthetic else data.text or [],
        length=data.length,
        batch_size=data.batch_size,
        seed=seed,
        held_out=data.held_out,
    )
