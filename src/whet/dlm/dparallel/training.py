"""Certainty-forcing distillation as a training: recipe, run, rounds.

dParallel, arXiv 2509.26488. The student starts from the teacher's weights, all of which are
trained, or a LoRA update of them, and is exported as a plain checkpoint.

Deviations: learning rates are warmed up and fall as a half cosine, as the paper's do for Dream
only. The paper has one round. In several, the student of a round answers the next one's problems,
and the teacher those that it answers wrong: a small model's choice among answers that are equally
good is arbitrary, and can be made in few steps only where it becomes the student's own.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import ConcatDataset

from whet import rng as rng_
from whet._io import atomic_path
from whet.data.mixture import ResponseBatch, cuts
from whet.data.trajectories import Trajectory
from whet.dlm.dparallel.answers import (
    Answerer,
    OwnAnswers,
    check_tokens,
    collate,
    read_answers,
    record_answers,
)
from whet.dlm.dparallel.certainty import Masks, certainty_forcing, complementary_masks
from whet.errors import InputError, OptionError
from whet.fit.lora import LoraSettings, add_lora, merge_lora
from whet.fit.rounds import run_rounds
from whet.models.denoiser import Denoiser
from whet.zoo import load
from whet.zoo.recipe import Recipe
from whet.zoo.training import Training, save_half, start_model


class DParallelRecipe(Recipe):
    """A run of dParallel.

    init: checkpoint that the student starts from. teacher: the one that answers (None: `init`).
    data: a folder of trajectories, or the tasks to answer. lora: None trains every weight.
    batch_size: answers per step. beta: weight of the entropy at temperature `temperature`.
    mask_ratio: share of a window in the first set; None draws one for every answer. block_length:
    of the windows; None = the whole response (Dream's form). official: the official code's draw of
    windows. rounds: each but the first starts from the student of the one before, which answers
    new problems for it.
    """

    init: str
    teacher: str | None = None
    data: str | OwnAnswers
    lora: LoraSettings | None = None
    batch_size: int = Field(default=64, gt=0)
    beta: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    temperature: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    mask_ratio: float | None = Field(default=0.5, gt=0, lt=1)
    block_length: int | None = Field(default=32, gt=0)
    official: bool = False
    rounds: int = Field(default=1, gt=0)

    def check(self) -> None:
        """Errors: OptionError for further rounds on answers that are there already."""
        if self.rounds > 1 and isinstance(self.data, str):
            raise OptionError(
                f"rounds={self.rounds} needs data to name tasks: every round asks new problems"
            )


@dataclass(frozen=True)
class MaskedAnswers:
    """A batch of answers with their two sets."""

    answers: ResponseBatch
    masks: Masks


class DParallelTraining(Training):
    """One player, one turn: the student minimises the loss on the teacher's right answers."""

    method = "dparallel"
    recipe_type = DParallelRecipe
    recipe: DParallelRecipe

    def __init__(self, recipe: DParallelRecipe) -> None:
        self.check_method(recipe)
        model, tokenizer = start_model(recipe.init)
        self.denoiser = Denoiser.of(model, tokenizer)
        _check_masked(self.denoiser, recipe.init)
        if recipe.lora is not None:
            torch.manual_seed(rng_.key_bits(recipe.fit.seed, "lora", bits=64) >> 1)
            model = add_lora(model, recipe.lora)
        super().__init__(recipe, model, tokenizer)
        self.answers: ConcatDataset[Trajectory] | None = None

    def prepare(self, out: Path) -> None:
        """Find the answers, or let the teacher write them into the run's folder.

        Errors: InputError where there is no right answer or the folder's tokens are not the
        tokenizer's; OptionError for a teacher of another family or vocabulary.
        """
        data = self.recipe.data
        folder = Path(data) if isinstance(data, str) else out / "trajectories"
        if not isinstance(data, str):
            teacher = self.teacher(self.recipe.teacher or self.recipe.init)
            record_answers(data, teacher, folder=folder)
        answers = read_answers(folder)
        for part in answers.datasets:
            check_tokens(part, self.denoiser, self.tokenizer)
        self.answers = answers

    def teacher(self, name: str, known_as: str | None = None) -> Answerer:
        """A checkpoint that can teach this student. Errors: OptionError where it cannot."""
        teacher, tokenizer = load(name, dtype=torch.float32)
        _check_same(self.denoiser, self.tokenizer, teacher, tokenizer, name)
        return Answerer(teacher, tokenizer, known_as or name)

    def run(self, out: Path) -> None:
        """One round as any training; several through `run_rounds`, then `out/model`."""
        data = self.recipe.data
        if self.recipe.rounds == 1 or isinstance(data, str):
            super().run(out)
            return
        torch.set_default_dtype(torch.float32)
        last = run_rounds(
            _Rounds(self.recipe, data),
            self.recipe.fit,
            rounds=self.recipe.rounds,
            run=out,
            identity=self.recipe.model_dump(mode="json", exclude={"rounds"}),
            label=self.method,
        )
        with atomic_path(out / "model") as temporary:
            shutil.copytree(last, temporary)

    def batch(self, step: int) -> MaskedAnswers:
        """The answers of a step: epochs in orders of their own, with fresh sets every time."""
        if self.answers is None:
            raise InputError("there are no answers yet: `prepare` finds or makes them")
        seed, size = self.recipe.fit.seed, len(self.answers)
        first = step * self.recipe.batch_size
        orders: dict[int, np.ndarray] = {}
        picked = []
        for number in range(first, first + self.recipe.batch_size):
            epoch, place = divmod(number, size)
            if epoch not in orders:
                orders[epoch] = rng_.keyed(seed, "epoch", epoch).permutation(size)
            picked.append(self.answers[int(orders[epoch][place])])
        answers = collate(picked, eos=self.denoiser.end_ids[0], pad=self.denoiser.pad_token_id)
        masks = complementary_masks(
            rng_.keyed(seed, "mask", step),
            answers.response,
            mask_ratio=self.recipe.mask_ratio,
            block_length=self.recipe.block_length,
            official=self.recipe.official,
        )
        return MaskedAnswers(answers, masks)

    def split(
        self, batch: MaskedAnswers, turn: str, parts: int
    ) -> list[tuple[MaskedAnswers, float]]:
        """Parts by rows with their share of them, over which the loss is a mean."""
        found = []
        for rows in cuts(len(batch.answers.tokens), parts):
            if rows.start < rows.stop:
                masks = Masks(
                    batch.masks.first[rows], batch.masks.second[rows], batch.masks.future[rows]
                )
                share = (rows.stop - rows.start) / len(batch.answers.tokens)
                found.append((MaskedAnswers(batch.answers.rows(rows), masks), share))
        return found

    def tokens(self, batch: MaskedAnswers) -> int:
        """Real tokens of both passes (padding not counted)."""
        return 2 * int(batch.answers.attention_mask.sum())

    def loss(self, batch: MaskedAnswers, turn: str) -> tuple[Tensor, dict[str, float]]:
        """Mean over rows of the sum of both sets' losses."""
        answers, masks = batch.answers, batch.masks
        asked = torch.cat((masks.first, masks.second))
        hidden = asked | masks.future.repeat(2, 1)
        labels = answers.tokens.repeat(2, 1)
        rows, positions = asked.nonzero(as_tuple=True)
        logits = self.denoiser.logits(
            labels.masked_fill(hidden, self.denoiser.mask_token_id),
            answers.attention_mask.repeat(2, 1),
            rows,
            positions,
        )
        losses, metrics = certainty_forcing(
            logits,
            labels[asked],
            rows,
            len(labels),
            beta=self.recipe.beta,
            temperature=self.recipe.temperature,
        )
        return 2 * losses.mean(), metrics

    def save(self, directory: Path) -> None:
        """The student in the published layout, LoRA merged."""
        model = self.model
        if self.recipe.lora is not None:
            model = merge_lora(copy.deepcopy(model))
        save_half(model, self.tokenizer, directory)


class _Rounds:
    """What `run_rounds` asks of the method: a student answers before the teacher does."""

    def __init__(self, recipe: DParallelRecipe, answers: OwnAnswers) -> None:
        self.recipe, self.answers = recipe, answers

    def collect(self, number: int, promoted: Path | None, data: Path) -> None:
        """Record answers to the round's own problems."""
        of = DParallelTraining(self._of(number, promoted, data))
        student = None
        if promoted is not None:
            student = of.teacher(str(promoted), f"student of round {number - 1}")
        teacher = of.teacher(self.recipe.teacher or self.recipe.init)
        record_answers(self.answers, teacher, student, folder=data, round_=number)

    def training(self, number: int, promoted: Path | None, data: Path) -> DParallelTraining:
        """The round's training on what was recorded."""
        made = DParallelTraining(self._of(number, promoted, data))
        made.prepare(data)
        return made

    def promote(self, number: int, method: Any, promoted: Path) -> None:
        """Write the averaged student in the published layout."""
        assert isinstance(method, DParallelTraining)
        method.export(promoted)

    def _of(self, number: int, promoted: Path | None, data: Path) -> DParallelRecipe:
        fit = self.recipe.fit.model_copy(update={"seed": self.recipe.fit.seed + number})
        changes = {"rounds": 1, "data": str(data), "fit": fit}
        if promoted is not None:
            changes["init"] = str(promoted)
        return self.recipe.model_copy(update=changes)


def _check_masked(denoiser: Denoiser, name: str) -> None:
    traits, kind = denoiser.traits, denoiser.model.config.model_type
    if traits.noise != "mask" or traits.attention != "full":
        raise OptionError(
            f"init={name!r} is a {kind!r}: dparallel trains masked LMs that attend to the whole "
            "canvas (LLaDA, Dream)"
        )


def _check_same(
    student: Denoiser, tokenizer: Any, teacher: Any, teachers_tokenizer: Any, name: str
) -> None:
    """The teacher's tokens must be the student's."""
    mine, other = student.model.config.model_type, teacher.config.model_type
    if mine != other:
        raise OptionError(
            f"teacher={name!r} is a {other!r} and the student a {mine!r}: both must be of one "
            "family"
        )
    if tokenizer.get_vocab() != teachers_tokenizer.get_vocab():
        raise OptionError(
            f"teacher={name!r} has another vocabulary than the student: its answers would be other "
            "tokens"
        )
