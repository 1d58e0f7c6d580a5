"""Ancestral sampling of masked diffusion in few steps, as a deterministic map of its noise.

Source: MDLM, arXiv 2406.07524: from time t to s each masked token is revealed with probability
(alpha_s - alpha_t) / (1 - alpha_t) and drawn from the model there. The deterministic form is that
of "Latent Shadows", arXiv 2602.00792: position i has one uniform number u_i and is revealed in the
first step whose keep probability exceeds it, and one number by which its token is drawn. Both are
keyed by request and position, so a request's text is a function of the seed; fewer steps move
along the same trajectory. The law is that of the random form: a position is revealed once, and
its noise is not used before.

The model has no time input, so steps that would reveal nothing are left out: `steps` is the most
forwards that are made. The last step reveals all.

Deviations: the number of a position draws by the inverse of the cumulated probabilities, not by
Gumbel noise for every token of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet import rng as rng_
from whet.dlm.options import DecodeOptions
from whet.dlm.schedule import Windows
from whet.dlm.select import RowRule
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows
from whet.errors import OptionError
from whet.models.denoiser import Denoiser
from whet.noise.duality import KeepSchedule, keep_schedule

_NEVER = 2**62


@dataclass(frozen=True, kw_only=True)
class Ancestral(DecodeOptions):
    """steps: of the whole canvas (None: one per position). schedule: keep probabilities over the
    steps, `linear` or `gaussian` (`whet.noise.duality.keep_schedule`). temperature: 1 draws from
    the model, 0 takes its most likely tokens."""

    steps: int | None = None
    schedule: KeepSchedule = "linear"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"steps={self.steps} must be at least 1")
        if self.schedule not in get_args(KeepSchedule):
            allowed = ", ".join(get_args(KeepSchedule))
            raise OptionError(f"schedule={self.schedule!r} is not one of {allowed}")

    def planned_steps(self, windows: Windows) -> int:
        return windows.steps_per_window(self.steps)

    def token_noise(self, rows: Rows, asked: Bool[Tensor, "R G"]) -> Float[Tensor, " N"]:
        noise = fixed_noise(rows, self.seed, "ancestral token")
        return noise[asked]

    def selector(self, denoiser: Denoiser) -> AncestralSelector:
        return AncestralSelector(self.seed, self.schedule, denoiser.vocab_size)


@dataclass(frozen=True)
class AncestralSelector(RowRule):
    """Commit the positions whose step is the next that reveals any."""

    seed: int
    schedule: KeepSchedule
    vocab_size: int

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        uniform = fixed_noise(rows, self.seed, "ancestral reveal")
        when = torch.empty_like(rows.commit_step)
        for steps in set(rows.planned.tolist()):
            mine = rows.planned == steps
            alpha = keep_schedule(steps, kind=self.schedule, vocab_size=self.vocab_size)
            when[mine] = reveal_steps(uniform[mine], alpha.to(uniform.device))
        when = when.masked_fill(~proposal.candidates, _NEVER)
        return when == when.amin(-1, keepdim=True)


def reveal_steps(uniform: Float[Tensor, "R G"], alpha: Float[Tensor, " S"]) -> Int[Tensor, "R G"]:
    """The step, from 0, in which each position is revealed: the first with alpha > u.

    alpha: keep probabilities after each step, ascending, the last one 1.
    """
    return torch.searchsorted(alpha, uniform.contiguous(), right=True)


def fixed_noise(rows: Rows, seed: int, name: str) -> Float[Tensor, "R G"]:
    """Uniform numbers in [0, 1), float64, the same in every step of a request.

    Keyed by the request and the place from the region's end, so that neither the batch nor the
    width of its widest region matters.
    """
    length = rows.pending.shape[1]
    drawn = [
        rng_.keyed(seed, name, request).random(length)[::-1] for request in rows.request.tolist()
    ]
    return torch.from_numpy(np.stack(drawn)).to(rows.pending.device)


ancestral = custom_generate(Ancestral, "ancestral")
