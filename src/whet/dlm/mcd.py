"""Masked consistency distillation (MCD): a masked LM learns to take the steps of many at once.

Source: "Latent Shadows", arXiv 2602.00792. Masks at times s < t lie on one trajectory
(`whet.noise.duality`); the teacher, a frozen copy of the student, reads the fuller canvas z_s, and
the student on z_t is to say the same:

    loss = mean over i masked in z_t of KL(p_teacher(i | z_s) || p_student(i | z_t)).

Canvases are read as in MDLM (SUBS, arXiv 2406.07524): the mask token has no probability, and
where z_s shows a token the teacher is certain of it, so that the KL is -log p_student there.
t = min(u + dt, 1) with u spread evenly over the batch, s = t - dt, and dt = 2^n / T in round n,
after which the teacher becomes a copy of the student.

The paper's code could not be read; rounds, times and defaults are those of the method it builds
on, discrete consistency distillation (Duo, arXiv 2506.10892). Inferred: the keep probability
alpha_t = 1 - t, the divergence, its mean over masked tokens. Duo's reverse KL is infinite where
the teacher is certain; `divergence="reverse"` takes it only where both canvases are masked, and
-log p_student, times `data_weight`, where z_s shows the token.

`targets` has two baselines beside: `sdtt`, arXiv 2410.21035, whose teacher takes two ancestral
steps of dt with tokens of its own: its predictions as each token is revealed (those of the second
step for the rest) are the targets; and `plain`, masked training that goes on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from whet import rng as rng_
from whet.data.mixture import ResponseBatch, cuts
from whet.data.text import TextWindows
from whet.errors import OptionError
from whet.fit.losses import cross_entropy, kl_divergence, masked_mean, reverse_kl_divergence
from whet.layers.sampling import draw
from whet.models.denoiser import Denoiser
from whet.noise.duality import coupled_masks
from whet.noise.masked import draw_mask, mask_levels, masked_bound
from whet.zoo.recipe import Recipe
from whet.zoo.training import DataSettings, Training, start_model, task_mixture

Divergence = Literal["forward", "reverse"]
Targets = Literal["mcd", "sdtt", "plain"]


class McdSettings(BaseModel):
    """The objective. Defaults are Duo's, but for the divergence.

    targets: see the module. resolution: T; a round's jump is dt = 2^n / T. round_steps: steps of a
    round. data_weight: of -log p where the fuller canvas shows the token (`mcd` only).
    teacher_average: the teacher becomes the student's averaged weights, not its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    targets: Targets = "mcd"
    divergence: Divergence = "forward"
    data_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    resolution: int = Field(default=512, gt=1)
    round_steps: int = Field(default=10_000, gt=0)
    teacher_average: bool = False


class TextSettings(BaseModel):
    """Windows of a text file, all of which may be masked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    length: int = Field(gt=1)
    batch_size: int = Field(default=128, gt=0)


class McdRecipe(Recipe):
    """init: the checkpoint that is teacher and start. data: tasks, whose prompts are never masked;
    text: a file instead of tasks."""

    init: str
    data: DataSettings | None = None
    text: TextSettings | None = None
    mcd: McdSettings = McdSettings()

    def check(self) -> None:
        """Errors: OptionError for both or none of data and text, or rounds that outgrow the time
        there is."""
        if (self.data is None) == (self.text is None):
            raise OptionError("method 'mcd' needs data (tasks) or text (a file), and not both")
        if self.data is not None and self.data.gen_lengths is None:
            raise OptionError("method 'mcd' needs data.gen_lengths: the canvas is filled up")
        if self.mcd.targets != "plain":
            RoundSchedule.of(self.mcd).check(self.fit.steps)


@dataclass(frozen=True)
class RoundSchedule:
    """How far apart the two canvases are: dt = 2^n / resolution in round n = step // round_steps.

    Never more than 1, the whole time there is.
    """

    round_steps: int
    resolution: int

    @classmethod
    def of(cls, settings: McdSettings) -> RoundSchedule:
        return cls(settings.round_steps, settings.resolution)

    def check(self, steps: int) -> None:
        """Errors: OptionError for steps in which dt would pass 1."""
        rounds = -(-steps // self.round_steps)
        if 2 ** (rounds - 1) > self.resolution:
            raise OptionError(
                f"fit.steps={steps} makes {rounds} rounds of mcd.round_steps={self.round_steps}: "
                f"the last would jump further than the whole time (mcd.resolution="
                f"{self.resolution} doubles up to 1 in {self.resolution.bit_length()})"
            )

    def dt(self, step: int) -> float:
        """The jump of a step's round."""
        return float(min(1.0, 2 ** (step // self.round_steps) / self.resolution))

    def ends(self, step: int) -> bool:
        """Whether a round is over after this step."""
        return (step + 1) % self.round_steps == 0


def jump_times(
    rng: np.random.Generator, rows: int, dt: float
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Times (s, t) of each row, float64: t = min(u + dt, 1), s = t - dt.

    u has one draw in each of `rows` equal slices of [0, 1), in random order. The rows that the
    minimum puts at t = 1, where all is masked, train the first step of sampling.
    """
    u = (rng.permutation(rows) + rng.random(rows)) / rows
    t = torch.from_numpy(np.minimum(u + dt, 1.0))
    return (t - dt).clamp_min(0.0), t


def consistency_loss(
    student: Float[Tensor, "N V"],
    teacher: Float[Tensor, "N V"],
    targets: Int[Tensor, " N"],
    shown: Bool[Tensor, " N"],
    *,
    divergence: Divergence = "forward",
    data_weight: float = 1.0,
) -> Float[Tensor, " N"]:
    """Loss in nats of every position that is masked in z_t; the rows are its positions.

    student, teacher: logits on z_t and z_s. targets: the data's tokens. shown: positions that z_s
    shows; the teacher's rows are not looked at there.
    """
    rule = kl_divergence if divergence == "forward" else reverse_kl_divergence
    loss = rule(teacher, student, mask=~shown)
    if data_weight:
        loss = loss + data_weight * cross_entropy(student, targets, mask=shown)
    return loss


@dataclass(frozen=True)
class Jump:
    """A sub-batch with its two canvases.

    at_s, at_t: [B, L], what is masked; levels: [B], the mask level t; noise: [B, L], by which an
    SDTT teacher draws its tokens.
    """

    part: ResponseBatch
    levels: Float[Tensor, " B"]
    at_s: Bool[Tensor, "B L"]
    at_t: Bool[Tensor, "B L"]
    noise: Float[Tensor, "B L"]

    def rows(self, which: slice) -> Jump:
        return Jump(
            self.part.rows(which),
            self.levels[which],
            self.at_s[which],
            self.at_t[which],
            self.noise[which],
        )


class McdTraining(Training):
    """One player: `model`. The teacher is no player; it travels in the checkpoint.

    start: model and tokenizer instead of the recipe's `init`; draw_batch: the batch of a step
    instead of the recipe's data (a source of one's own). Errors: OptionError for a recipe that
    `check` refuses or a block-causal model.
    """

    method = "mcd"
    recipe_type = McdRecipe
    recipe: McdRecipe

    def __init__(
        self,
        recipe: McdRecipe,
        *,
        start: tuple[Any, Any] | None = None,
        draw_batch: Callable[[int], Sequence[ResponseBatch]] | None = None,
    ) -> None:
        self.check_method(recipe)
        recipe.check()
        super().__init__(recipe, *(start or start_model(recipe.init)))
        self.denoiser = Denoiser.of(self.model, self.tokenizer)
        if self.denoiser.block_length is not None:
            raise OptionError(
                "method 'mcd' masks the whole canvas and needs a model that attends to all of it; "
                f"this one is block-causal (blocks of {self.denoiser.block_length})"
            )
        self.teacher: nn.Module | None = None
        if recipe.mcd.targets != "plain":
            self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
            self._reader = Denoiser.of(self.teacher, self.tokenizer)
        self.schedule = RoundSchedule.of(recipe.mcd)
        self.draw_batch = draw_batch or self._data()

    def _data(self) -> Callable[[int], Sequence[ResponseBatch]]:
        data, text, seed = self.recipe.data, self.recipe.text, self.recipe.fit.seed
        if data is not None:
            return task_mixture(data, self.tokenizer, seed=seed).batch
        assert text is not None  # the recipe's check
        windows = TextWindows(
            self.tokenizer, text.path, length=text.length, batch_size=text.batch_size, seed=seed
        )
        # Nothing predicts the first token of a shifted model.
        given = int(self.denoiser.traits.shift)
        return lambda step: [whole(windows.batch(step), given=given)]

    def batch(self, step: int) -> list[Jump]:
        """Sub-batches with the canvases of their jump."""
        parts = self.draw_batch(step)
        rng = rng_.keyed(self.recipe.fit.seed, "jump", step)
        count = sum(len(part.tokens) for part in parts)
        plain = self.recipe.mcd.targets == "plain"
        if plain:
            late = mask_levels(rng, count)
            early = late
        else:
            early, late = jump_times(rng, count, self.schedule.dt(step))
        out, first = [], 0
        for part in parts:
            rows = slice(first, first + len(part.tokens))
            first = rows.stop
            if plain:
                at_t = draw_mask(rng, part.response, late[rows])
                at_s = at_t
            else:
                at_s, at_t = coupled_masks(
                    rng, part.tokens, part.response, 1 - early[rows], 1 - late[rows]
                )
            noise = torch.from_numpy(rng.random(tuple(part.tokens.shape)))
            out.append(Jump(part, late[rows].float(), at_s, at_t, noise))
        return out

    def split(self, batch: list[Jump], turn: str, parts: int) -> list[tuple[list[Jump], float]]:
        """Parts of every sub-batch with their share of what the loss is a mean over."""

        def weight(jumps: Sequence[Jump]) -> int:
            if self.recipe.mcd.targets == "plain":
                return sum(len(jump.at_t) for jump in jumps)
            return sum(int(jump.at_t.sum()) for jump in jumps)

        pieces = [
            [jump.rows(cuts(len(jump.at_t), parts)[k]) for jump in batch] for k in range(parts)
        ]
        kept = [[jump for jump in piece if len(jump.at_t)] for piece in pieces]
        total = max(1, weight(batch))
        return [(piece, weight(piece) / total) for piece in kept if piece]

    def tokens(self, batch: list[Jump]) -> int:
        """Real tokens (padding not counted)."""
        return sum(int(jump.part.attention_mask.sum()) for jump in batch)

    def loss(self, batch: list[Jump], turn: str) -> tuple[Tensor, dict[str, float]]:
        """Mean loss in nats per masked token; of `plain`, the bound per response token."""
        if self.recipe.mcd.targets == "plain":
            return torch.cat([self._bound(jump) for jump in batch]).mean(), {}
        losses = torch.cat([self._distance(jump) for jump in batch])
        if not len(losses):  # nothing was masked; a sum of nothing still has a gradient
            return losses.sum(), {}
        return masked_mean(losses), {}

    def _bound(self, jump: Jump) -> Float[Tensor, " B"]:
        logits, rows, _ = self._student(jump)
        targets = jump.part.tokens[jump.at_t]
        return masked_bound(logits, targets, rows, jump.levels, jump.part.lengths)

    def _student(self, jump: Jump) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, V] at what z_t masks, its rows and its positions."""
        rows, positions = jump.at_t.nonzero(as_tuple=True)
        canvas = jump.part.tokens.masked_fill(jump.at_t, self.denoiser.mask_token_id)
        real = jump.part.attention_mask
        return self.denoiser.logits(canvas, real, rows, positions), rows, positions

    def _distance(self, jump: Jump) -> Float[Tensor, " N"]:
        settings = self.recipe.mcd
        student, _, _ = self._student(jump)
        targets = jump.part.tokens[jump.at_t]
        shown = ~jump.at_s[jump.at_t]
        if settings.targets == "sdtt":
            rule = kl_divergence if settings.divergence == "forward" else reverse_kl_divergence
            return rule(self._two_steps(jump, shown), student)
        teacher = torch.zeros_like(student)
        teacher[~shown] = self._read(jump.part.tokens, jump, jump.at_s)
        return consistency_loss(
            student,
            teacher,
            targets,
            shown,
            divergence=settings.divergence,
            data_weight=settings.data_weight,
        )

    def _two_steps(self, jump: Jump, shown: Bool[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """Targets of SDTT: the teacher on z_t where its first step reveals, else on what it made.

        The trajectory decides what is revealed, the teacher by which token. What its second step
        reveals is seen with the same eyes as what it leaves, so that step need not be drawn.
        """
        logits = self._read(jump.part.tokens, jump, jump.at_t)
        drawn = draw(logits, jump.noise[jump.at_t])
        tokens = jump.part.tokens.masked_scatter(jump.at_t, drawn)
        logits[~shown] = self._read(tokens, jump, jump.at_s)
        return logits

    @torch.no_grad()
    def _read(
        self, tokens: Int[Tensor, "B L"], jump: Jump, masked: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "N V"]:
        """The teacher's logits where `masked`, on a canvas that hides these tokens."""
        rows, positions = masked.nonzero(as_tuple=True)
        canvas = tokens.masked_fill(masked, self.denoiser.mask_token_id)
        return self._reader.logits(canvas, jump.part.attention_mask, rows, positions)

    def after_step(self, step: int) -> None:
        """At the end of a round the teacher becomes a copy of the student."""
        if self.teacher is None or not self.schedule.ends(step):
            return
        average = self.players["model"].ema
        if not self.recipe.mcd.teacher_average or average is None:
            self.teacher.load_state_dict(self.model.state_dict())
            return
        with average.swapped_in(self.model):
            self.teacher.load_state_dict(self.model.state_dict())

    def state(self) -> Mapping[str, Tensor]:
        """The teacher's weights."""
        return {} if self.teacher is None else self.teacher.state_dict()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if self.teacher is not None:
            self.teacher.load_state_dict(dict(state))


def whole(tokens: Int[Tensor, "B L"], *, given: int = 0) -> ResponseBatch:
    """Windows without padding, of which all may be masked but the first `given` tokens."""
    every = torch.ones_like(tokens, dtype=torch.bool)
    response = every.clone()
    response[:, :given] = False
    return ResponseBatch(tokens, every, response)
