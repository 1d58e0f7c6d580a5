"""ADJUST's training (arXiv 2509.22738): the sampler layer imitates the base after one more token.

From trajectories of the base's own exact sampling (one token per step, lowest entropy first) a
window of canvases c_0, c_1, …, c_n is cut. The base reads c_0; the layer is then applied n times,
each time with the canvas that has one token more:

    h_0 = base(c_0),   h_j = g(E[c_j], h_(j-1)),
    loss = mean over the masks of c_n of KL( softmax(head base(c_n)) || softmax(head h_n) ),

with n in 1..K-1 drawn with probability proportional to decay^(n-1), and gradients through all n
passes. Base, embeddings and head are frozen. Only the last pass has a loss, and the head is
computed at masks only.

`focus` above 0 (not in the paper) draws more windows that begin with a token the base was unsure
of: where most tokens were certain, the others have next to no loss. `gate` above 0 starts away
from the identity: at 0 the layer's own weights have no gradient until norm_o has some weight, and
a small layer may stay there for hundreds of steps.

Deviations from the official code: each row draws its own n, which halves no cost and lowers the
variance; windows may lie anywhere, the end included; masks behind the end of an answer count, as
decoders fill them too; the learning rate falls by a cosine; padding is masked. Its optional terms
on the states themselves, which were off, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from whet import rng as rng_
from whet.data.mixture import cuts
from whet.data.trajectories import Trajectories, Trajectory
from whet.dlm.adjust.decoding import Adjust
from whet.dlm.adjust.sampler import AdjustConfig, AdjustSampler, full_states
from whet.dlm.record import record_trajectories
from whet.errors import InputError, OptionError
from whet.fit.distributed import current_world
from whet.fit.losses import kl_divergence, masked_mean
from whet.measure.stats import Floats
from whet.models.denoiser import Denoiser
from whet.tasks import expand
from whet.zoo.recipe import Recipe
from whet.zoo.training import Training, start_model


class AdjustData(BaseModel):
    """Where trajectories come from: a folder, or tasks on whose training problems they are made.

    count, gen_length, temperature, top_p: of those that are made; decode as they were made.
    batch_size: windows per step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trajectories: Path | None = None
    tasks: list[str] = []
    count: int = Field(default=2000, gt=0)
    gen_length: int = Field(default=16, gt=0)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    batch_size: int = Field(default=32, gt=0)


class AdjustRecipe(Recipe):
    """init: the base (zoo name, folder or hub name). tokens_per_forward: K, passes to learn plus
    one. decay: each depth of the unrolling is drawn that much less often than the one before.
    focus: share of the windows whose first token is drawn in proportion to its entropy. gate:
    weight at which norm_o starts; 0 makes the layer the identity, 1 is the official code's."""

    init: str
    tokens_per_forward: int = Field(default=4, ge=2)
    decay: float = Field(default=0.5, gt=0, le=1)
    focus: float = Field(default=0.0, ge=0, le=1)
    gate: float = Field(default=0.0, ge=0, le=1)
    data: AdjustData

    def check(self) -> None:
        """Errors: OptionError unless data comes from one place."""
        if (self.data.trajectories is None) == (not self.data.tasks):
            raise OptionError("data: give either trajectories (a folder) or tasks to record")


@dataclass(frozen=True)
class WindowBatch:
    """canvases: [n + 1, B, L]; canvas j has j tokens more than canvas 0, up to the row's depth.

    depth: [B], passes of each row. mask: [B, L], True at real tokens.
    """

    canvases: Int[Tensor, "n B L"]
    depth: Int[Tensor, " B"]
    mask: Bool[Tensor, "B L"]

    def last(self) -> Int[Tensor, "B L"]:
        """Each row's canvas at its depth."""
        return self.canvases[self.depth, torch.arange(len(self.depth))]

    def rows(self, which: slice) -> WindowBatch:
        """Some of the rows."""
        return WindowBatch(self.canvases[:, which], self.depth[which], self.mask[which])


def depth_law(passes: int, decay: float) -> Float[Tensor, " n"]:
    """Probabilities of depths 1, …, passes, each proportional to decay^(depth - 1)."""
    weight = decay ** torch.arange(passes, dtype=torch.float64)
    return weight / weight.sum()


def start_law(trajectory: Trajectory, count: int, focus: float) -> Floats:
    """Probabilities of the first `count` steps as a window's start.

    A step whose token was certain teaches nothing: `focus` of the mass goes to steps in
    proportion to the entropy of the token they committed.
    """
    law = np.full(count, 1 / count)
    if not focus:
        return law
    entropy = np.zeros(trajectory.steps)
    for step, confidence in zip(trajectory.commit_step, trajectory.confidence, strict=True):
        if confidence > 0:
            raise InputError(
                f"trajectory {trajectory.request} has the confidence {confidence:g}: focus needs "
                "entropies, record with the decoder adjust:tokens_per_forward=1"
            )
        if step >= 0:
            entropy[step] = -confidence
    total = entropy[:count].sum()
    return law if total == 0 else (1 - focus) * law + focus * entropy[:count] / total


def draw_windows(
    rng: np.random.Generator,
    found: Sequence[Trajectory],
    *,
    passes: int,
    decay: float,
    mask_token_id: int,
    pad_token_id: int,
    focus: float = 0.0,
) -> WindowBatch:
    """One window of each trajectory, after which at least one mask is left.

    Errors: InputError for a trajectory that committed several tokens in a step, has one step or,
    with `focus`, no entropies for confidences.
    """
    depths, starts = [], []
    for trajectory in found:
        steps = trajectory.steps
        if steps != sum(step >= 0 for step in trajectory.commit_step):
            raise InputError(
                f"trajectory {trajectory.request} commits several tokens in a step: record with "
                "the decoder adjust:tokens_per_forward=1"
            )
        if steps < 2:
            raise InputError(f"trajectory {trajectory.request} has {steps} step: 2 are needed")
        law = depth_law(min(passes, steps - 1), decay).numpy()
        depth = 1 + int(rng.choice(len(law), p=law))
        depths.append(depth)
        law = start_law(trajectory, steps - depth, focus)
        starts.append(int(rng.choice(len(law), p=law)))
    length = max(len(t.prompt_ids) + len(t.tokens) for t in found)
    canvases = torch.full((max(depths) + 1, len(found), length), pad_token_id)
    mask = torch.zeros(len(found), length, dtype=torch.bool)
    for row, (trajectory, depth, start) in enumerate(zip(found, depths, starts, strict=True)):
        first = length - len(trajectory.prompt_ids) - len(trajectory.tokens)
        mask[row, first:] = True
        for j in range(len(canvases)):
            region = trajectory.canvas(start + min(j, depth), mask_token_id)
            canvases[j, row, first:] = torch.tensor(trajectory.prompt_ids + region)
    return WindowBatch(canvases, torch.tensor(depths), mask)


def unroll(
    denoiser: Denoiser, sampler: AdjustSampler, windows: WindowBatch, start: Float[Tensor, "B L D"]
) -> Float[Tensor, "B L D"]:
    """h_n of each row, from h_0 = `start`."""
    hidden = start
    for j in range(1, int(windows.depth.max()) + 1):
        going = (windows.depth >= j).nonzero()[:, 0]
        embeds = F.embedding(windows.canvases[j, going], denoiser.embedding())
        moved = sampler(embeds, hidden[going], windows.mask[going])
        hidden = hidden.index_copy(0, going, moved)
    return hidden


def divergences(
    denoiser: Denoiser, sampler: AdjustSampler, windows: WindowBatch
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " N"]]:
    """KL from the base's conditional at the N masks of the last canvases, and the masks' rows.

    First of the unrolled sampler (with gradients), then of the marginals: the base's own
    predictions before the window's tokens were known.
    """
    last = windows.last()
    rows, positions = ((last == denoiser.mask_token_id) & windows.mask).nonzero(as_tuple=True)
    with torch.no_grad():
        start = full_states(denoiser, windows.canvases[0], windows.mask)
        target = full_states(denoiser, last, windows.mask)[rows, positions]
        teacher = denoiser.suppress(denoiser.project(target))
        stale = denoiser.suppress(denoiser.project(start[rows, positions]))
        marginal = kl_divergence(teacher, stale)
    hidden = unroll(denoiser, sampler, windows, start)
    student = denoiser.suppress(denoiser.project(hidden[rows, positions]))
    return kl_divergence(teacher, student), marginal, rows


class AdjustTraining(Training):
    """One player, the sampler layer; the base is frozen and no part of it."""

    method = "adjust"
    recipe_type = AdjustRecipe
    recipe: AdjustRecipe

    def __init__(self, recipe: AdjustRecipe) -> None:
        self.check_method(recipe)
        base, tokenizer = start_model(recipe.init)
        self.base = base.eval().requires_grad_(False)
        self.denoiser = Denoiser.of(self.base, tokenizer)
        config = AdjustConfig.of(self.denoiser, tokens_per_forward=recipe.tokens_per_forward)
        torch.manual_seed(rng_.key_bits(recipe.fit.seed, "sampler", bits=64) >> 1)
        sampler = AdjustSampler(config).train()
        torch.nn.init.constant_(sampler.out_norm.weight, recipe.gate)
        super().__init__(recipe, sampler, tokenizer)
        self.found: Sequence[Trajectory] = ()

    def prepare(self, out: Path) -> None:
        """Open the trajectories, or record them in the run's folder (resuming)."""
        data = self.recipe.data
        if data.trajectories is not None:
            self.found = Trajectories(data.trajectories)
            return
        world, folder = current_world(), out / "trajectories"
        if world.main:
            record_trajectories(
                self.base,
                self.tokenizer,
                expand(data.tasks),
                name=self.recipe.init,
                count=data.count,
                options=Adjust(
                    tokens_per_forward=1,
                    temperature=data.temperature,
                    top_p=data.top_p,
                    seed=self.recipe.fit.seed,
                ),
                gen_length=data.gen_length,
                folder=folder,
                seed=self.recipe.fit.seed,
            )
        world.wait()
        self.found = Trajectories(folder)

    def batch(self, step: int) -> WindowBatch:
        """Windows of trajectories drawn at random."""
        rng = rng_.keyed(self.recipe.fit.seed, "windows", step)
        chosen = rng.integers(len(self.found), size=self.recipe.data.batch_size)
        return draw_windows(
            rng,
            [self.found[int(i)] for i in chosen],
            passes=self.recipe.tokens_per_forward - 1,
            decay=self.recipe.decay,
            mask_token_id=self.denoiser.mask_token_id,
            pad_token_id=self.denoiser.pad_token_id,
            focus=self.recipe.focus,
        )

    def split(self, batch: WindowBatch, turn: str, parts: int) -> list[tuple[WindowBatch, float]]:
        """Parts of the rows with their share of the masks, over which the loss is a mean."""
        masks = ((batch.last() == self.denoiser.mask_token_id) & batch.mask).sum(-1)
        total = masks.sum()
        return [
            (batch.rows(rows), float(masks[rows].sum() / total))
            for rows in cuts(len(masks), parts)
            if rows.start < rows.stop
        ]

    def tokens(self, batch: WindowBatch) -> int:
        """Real tokens of the windows' first canvases."""
        return int(batch.mask.sum())

    def loss(self, batch: WindowBatch, turn: str) -> tuple[Tensor, dict[str, float]]:
        """Mean KL in nats per mask; for comparison that of the marginals."""
        sampler = cast(AdjustSampler, self.model)
        ours, marginal, _ = divergences(self.denoiser, sampler, batch)
        return masked_mean(ours), {"marginal": float(masked_mean(marginal))}

    def save(self, directory: Path) -> None:
        """Write the layer, in the precision it was trained in."""
        self.model.save_pretrained(directory)
