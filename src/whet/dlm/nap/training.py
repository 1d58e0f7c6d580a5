"""NAP's fine-tuning (arXiv 2602.23225, section 4): one sequence holds all paths of a problem.

A batch is drawn from a folder of path sets and laid out in slots, packed, or as one long chain
(the paper's baseline, on the same paths). The objective is `whet.dlm.nap.objective`'s; the prompt
is never masked, EOS filling is trained like any other token.

Deviations: levels t are stratified over the batch, which changes no expectation; sets that do not
fit their slots are left out and counted, where the official code cuts them at a length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from whet import rng as rng_
from whet.data.mixture import cuts
from whet.dlm.nap.data import PathSet, PathSets
from whet.dlm.nap.layout import Layout, Response, add_tags, all_tags, tag_ids
from whet.dlm.nap.objective import (
    Focal,
    StructuredMasks,
    TimeWeight,
    draw,
    mask_probability,
    shuffle_blocks,
    time_weights,
    weighted_loss,
)
from whet.errors import InputError, OptionError
from whet.fit.losses import cross_entropy
from whet.models.denoiser import Denoiser
from whet.noise.masked import mask_levels
from whet.tasks.answers import THINK
from whet.zoo.recipe import Recipe
from whet.zoo.tokenizer import character_tokenizer
from whet.zoo.training import Training, build_model, model_config, start_model


class NapData(BaseModel):
    """Which path sets, and how they are laid out.

    form: `paths` (tags and blocks) or `chain` (one text: the paths between think marks, `separator`
    between them, then the summary). paths: how many of a set's paths are used. path_length,
    summary_length: slots; null for both packs them. chain_length: tokens a chain is filled up to
    (null: packed). random_length: packed texts of a batch are all cut or filled to the length of
    one of them, drawn at random (as the official code does), instead of to the longest. words: of
    a fresh model, further texts that are one token each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path
    form: Literal["paths", "chain"] = "paths"
    paths: int = 3
    path_length: int | None = 330
    summary_length: int | None = 32
    separator: str = "\n"
    chain_length: int | None = Field(default=None, gt=0)
    random_length: bool = True
    words: list[str] = []
    least_right: int = Field(default=1, ge=0)
    batch_size: int = Field(default=64, gt=0)

    def layout(self) -> Layout:
        """Errors: OptionError for lengths that make no layout."""
        return Layout(self.paths, self.path_length, self.summary_length)


class NapRecipe(Recipe):
    """init: checkpoint to fine-tune, or model: configuration of a fresh one.

    time_weight: see the objective; the official launch script takes `cart` with cart_p 0.1.
    structured, focal, shuffle_think: in the official code, not in the paper; off.
    """

    init: str | None = None
    model: dict[str, Any] | None = None
    data: NapData
    time_weight: TimeWeight = "cart"
    cart_p: float = Field(default=0.1, gt=0, le=1)
    structured: StructuredMasks | None = None
    focal: Focal | None = None
    shuffle_think: bool = False

    def check(self) -> None:
        """Errors: OptionError where not exactly one of init and model is given, or data cannot be
        laid out."""
        if (self.init is None) == (self.model is None):
            raise OptionError("give either init (a checkpoint) or model (a fresh one)")
        if self.model is not None:
            model_config(self.model, mask_token_id=0, eos_token_id=0, pad_token_id=0)
        self.data.layout()
        if self.data.form == "chain" and (self.structured or self.shuffle_think):
            raise OptionError("structured and shuffle_think need data.form=paths: a chain has none")


@dataclass(frozen=True)
class PathBatch:
    """Left-padded prompts with their responses, and what is to be predicted of them.

    real: True at tokens that are not padding. mask: what is to be predicted. weights: what each
    masked position counts.
    """

    tokens: Int[Tensor, "B L"]
    real: Bool[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    weights: Float[Tensor, "B L"]

    def rows(self, part: slice) -> PathBatch:
        """Some of the rows, padded as they are."""
        return PathBatch(self.tokens[part], self.real[part], self.mask[part], self.weights[part])


class NapTraining(Training):
    """One player, one turn: `model` minimises the weighted cross-entropy of masked tokens.

    left_out: path sets of the folder that do not fit their slots.
    """

    method = "nap"
    recipe_type = NapRecipe
    recipe: NapRecipe

    def __init__(self, recipe: NapRecipe) -> None:
        self.check_method(recipe)
        recipe.check()
        data = recipe.data
        sets = PathSets(data.folder, least_right=data.least_right)
        if sets.paths < data.paths:
            raise InputError(
                f"{data.folder} has {sets.paths} paths a problem, data.paths={data.paths} are asked"
            )
        if recipe.init is not None:
            model, tokenizer = start_model(recipe.init)
            add_tags(model, tokenizer, data.paths)
        else:
            assert recipe.model is not None
            names = sorted(set(sets.rows.column("source")))
            tokenizer = path_tokenizer([*names, *data.words], data.paths)
            torch.manual_seed(rng_.key_bits(recipe.fit.seed, "init", bits=64) >> 1)
            model = build_model(recipe.model, tokenizer)
        super().__init__(recipe, model, tokenizer)
        self.denoiser = Denoiser.of(model, tokenizer)
        self.texts = Texts(data, tokenizer, self.denoiser)
        self.sets, self.fitting = sets, self.texts.fitting(sets)
        self.left_out = len(sets) - len(self.fitting)
        self._epoch: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> PathBatch:
        """The path sets of a step, laid out and masked."""
        size = self.recipe.data.batch_size
        chosen = [self._at(step * size + k) for k in range(size)]
        rng = rng_.keyed(self.recipe.fit.seed, "nap", step)
        tokens, real, response, block, tag = self.texts.batch(chosen, rng)
        levels = mask_levels(rng, len(tokens))
        recipe = self.recipe
        if recipe.shuffle_think:
            order = [rng.permutation(recipe.data.paths) + 1 for _ in tokens]
            column = torch.stack(
                [
                    shuffle_blocks(t, b, o.tolist())
                    for t, b, o in zip(tokens, block, order, strict=True)
                ]
            )
            tokens, block, tag = (x.gather(1, column) for x in (tokens, block, tag))
        mask = draw(
            rng,
            mask_probability(
                response, block, tag, levels, paths=recipe.data.paths, structured=recipe.structured
            ),
        )
        weights = time_weights(recipe.time_weight, levels, mask, real, cart_p=recipe.cart_p)
        return PathBatch(tokens, real, mask, weights)

    def _at(self, place: int) -> PathSet:
        """The set at a place in the endless row of epochs, each in an order of its own."""
        epoch, index = divmod(place, len(self.fitting))
        if self._epoch is None or self._epoch[0] != epoch:
            rng = rng_.keyed(self.recipe.fit.seed, "epoch", epoch)
            self._epoch = (epoch, rng.permutation(self.fitting))
        found: PathSet = self.sets[int(self._epoch[1][index])]
        return found

    def split(self, batch: PathBatch, turn: str, parts: int) -> list[tuple[PathBatch, float]]:
        """Parts with their share of the masked tokens, over which the loss is a mean."""
        total = max(1, int(batch.mask.sum()))
        pieces = [batch.rows(rows) for rows in cuts(len(batch.tokens), parts)]
        return [(piece, int(piece.mask.sum()) / total) for piece in pieces]

    def tokens(self, batch: PathBatch) -> int:
        """Real tokens (padding not counted)."""
        return int(batch.real.sum())

    def loss(self, batch: PathBatch, turn: str) -> tuple[Tensor, dict[str, float]]:
        """Weighted nats per masked token, and the plain mean."""
        rows, positions = batch.mask.nonzero(as_tuple=True)
        noisy = batch.tokens.masked_fill(batch.mask, self.denoiser.mask_token_id)
        logits = self.denoiser.logits(noisy, batch.real, rows, positions)
        nats = cross_entropy(logits, batch.tokens[batch.mask])
        loss = weighted_loss(nats, batch.weights[batch.mask], self.recipe.focal)
        mean = float(nats.detach().mean()) if len(nats) else 0.0
        return loss, {"nats": mean}


def path_tokenizer(words: Sequence[str], paths: int) -> Any:
    """The zoo's tokenizer with words, think marks and the tags of `paths` paths."""
    return character_tokenizer(words=[*words, *THINK, *all_tags(paths)])


class Texts:
    """Path sets as tokens, in the form and with the lengths that a recipe asks for."""

    def __init__(self, data: NapData, tokenizer: Any, denoiser: Denoiser) -> None:
        self.data, self.tokenizer = data, tokenizer
        self.eos, self.pad = denoiser.eos_token_ids[0], denoiser.pad_token_id
        self.room = denoiser.context_length
        self.layout = data.layout()
        self.tags = tag_ids(tokenizer, data.paths)

    def fitting(self, sets: PathSets) -> list[int]:
        """Places of the sets whose tokens fit their slots and the model's context.

        Errors: InputError where none does.
        """
        kept = [i for i, one in enumerate(sets) if self._fits(one)]
        if not kept:
            raise InputError(
                f"none of the {len(sets)} path sets fits: raise path_length, summary_length or "
                f"chain_length (the model's context is {self.room})"
            )
        return kept

    def chain(self, one: PathSet) -> str:
        """The paths one after the other as thinking, then the summary."""
        thinking = self.data.separator.join(one.paths[: self.data.paths])
        return f"{THINK[0]}{thinking}{THINK[1]}{one.summary}"

    def encode(self, one: PathSet) -> tuple[list[int], Response]:
        """Tokens of a set's prompt and response. Errors: InputError where a slot is too short."""
        texts = [one.prompt, *self._response_texts(one)]
        prompt, *parts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        if self.data.form == "paths":
            return prompt, self.layout.response(parts, self.tags, self.eos)
        [tokens] = parts
        tokens = tokens + [self.eos] * ((self.data.chain_length or 0) - len(tokens))
        return prompt, Response(tokens, [0] * len(tokens), [False] * len(tokens))

    def _response_texts(self, one: PathSet) -> list[str]:
        if self.data.form == "chain":
            return [self.chain(one)]
        return [*one.paths[: self.data.paths], one.summary]

    def _fits(self, one: PathSet) -> bool:
        try:
            prompt, response = self.encode(one)
        except InputError:
            return False
        most = self.data.chain_length if self.data.form == "chain" else None
        return len(response) <= (most or self.room) and len(prompt) + len(response) <= self.room

    def batch(
        self, sets: Sequence[PathSet], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Left-padded rows [B, L]: tokens, real, response, block, tag."""
        rows = [self.encode(one) for one in sets]
        sizes = [len(response) for _, response in rows]
        length = max(sizes)
        if self.data.random_length:
            length = sizes[int(rng.integers(len(sizes)))]
        longest = max(len(prompt) for prompt, _ in rows)
        shape = (len(rows), longest + length)
        tokens = torch.full(shape, self.eos)
        real = torch.ones(shape, dtype=torch.bool)
        block, tag = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
        for row, (prompt, response) in enumerate(rows):
            gap, size = longest - len(prompt), min(length, len(response))
            tokens[row, :gap] = self.pad
            real[row, :gap] = False
            tokens[row, gap:longest] = torch.tensor(prompt)
            part = slice(longest, longest + size)
            tokens[row, part] = torch.tensor(response.tokens[:size])
            block[row, part] = torch.tensor(response.block[:size])
            tag[row, part] = torch.tensor(response.tag[:size])
        answers = torch.zeros(shape, dtype=torch.bool)
        answers[:, longest:] = True
        return tokens, real, answers, block, tag
