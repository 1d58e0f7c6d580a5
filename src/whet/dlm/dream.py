"""Dream's decoding: a schedule in time, four ways to choose positions.

Time runs from 1 to eps in `steps` equal steps. `origin` commits each masked position on its own
with probability 1 - s/t; `maskgit_plus`, `topk_margin` and `entropy` commit the step's number of
positions with the highest probability, margin of the two best, or negative entropy, taken of the
distribution that tokens are drawn from; with alg_temp > 0 positions are drawn without replacement
from softmax(confidence / alg_temp). Source: Dream, arXiv 2508.15487, and its `diffusion_generate`.

Deviations from the official code, which `official=True` repeats: there, a step commits
int(n (1 - s/t)) of the n masks that are left, so that with as many steps as positions the first
commits none and the last two; here the schedule is even, as it is in the limit. Counts are always
each row's own (the official ones are batch means, which leaves ragged batches half done).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from whet.dlm.options import DecodeOptions
from whet.dlm.schedule import Windows, quota
from whet.dlm.select import RowRule, position_noise, ranks
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows
from whet.errors import OptionError
from whet.layers.sampling import Confidence, ConfidenceOf
from whet.models.denoiser import Denoiser

Algorithm = Literal["origin", "maskgit_plus", "topk_margin", "entropy"]
_CONFIDENCE: dict[str, Confidence] = {
    "origin": "prob",
    "maskgit_plus": "prob",
    "topk_margin": "margin",
    "entropy": "neg_entropy",
}


@dataclass(frozen=True, kw_only=True)
class Dream(DecodeOptions):
    """steps: forwards over the whole canvas (None: as many as positions). eps: time at the end.
    alg: `origin`, `maskgit_plus`, `topk_margin` or `entropy`. alg_temp: 0 takes the best
    positions, above 0 draws them. official: repeat the official code's counts."""

    confidence_of: ConfidenceOf = "sampled"
    steps: int | None = None
    eps: float = 1e-3
    alg: Algorithm = "entropy"
    alg_temp: float = 0.0
    official: bool = False

    def __post_init__(self) -> None:
        if self.alg not in get_args(Algorithm):
            raise OptionError(f"alg={self.alg!r} is not one of {', '.join(get_args(Algorithm))}")
        implied = _CONFIDENCE[self.alg]
        if self.confidence not in ("prob", implied):
            raise OptionError(
                f"confidence={self.confidence!r} contradicts alg={self.alg}, which reads "
                f"{implied!r}: leave confidence out"
            )
        object.__setattr__(self, "confidence", implied)
        super().__post_init__()
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"steps={self.steps} must be at least 1")
        if not 0 < self.eps < 1:
            raise OptionError(f"eps={self.eps:g} must be above 0 and below 1")
        if not 0 <= self.alg_temp < float("inf"):
            raise OptionError(f"alg_temp={self.alg_temp:g} must be 0 or more")
        if self.alg_temp and self.alg == "origin":
            raise OptionError("alg_temp does nothing with alg=origin, which draws every position")

    def planned_steps(self, windows: Windows) -> int:
        return windows.steps_per_window(self.steps)

    def selector(self, denoiser: Denoiser) -> DreamSelector:
        return DreamSelector(self.alg, self.alg_temp, self.eps, self.official, self.seed)


def share(step: Tensor, planned: Tensor, eps: float) -> Tensor:
    """1 - s/t of step k of S: the part of the masks that is committed; all of them in the last."""
    t = 1 - (1 - eps) * step.double() / planned
    s = 1 - (1 - eps) * (step + 1).double() / planned
    return torch.where(step + 1 >= planned, 1.0, 1 - s / t)


@dataclass(frozen=True)
class DreamSelector(RowRule):
    """Commit a step's number of positions by confidence, or each with the step's probability."""

    alg: Algorithm
    alg_temp: float
    eps: float
    official: bool
    seed: int

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        part = share(rows.window_step, rows.planned, self.eps)
        if self.alg == "origin":
            return self._uniform(rows, proposal) < part[:, None]
        if self.official:
            wanted = (proposal.candidates.sum(-1) * part).long()
        else:
            wanted = quota(rows.window_masks, rows.window_step, rows.planned)
        key = proposal.priority
        if self.alg_temp > 0:
            # The n greatest of log-weights with Gumbel noise are a draw without replacement.
            gumbel = -(-self._uniform(rows, proposal).log()).log()
            key = key.double() / self.alg_temp + gumbel
        return ranks(key, proposal.candidates) < wanted[:, None]

    def _uniform(self, rows: Rows, proposal: Proposal) -> Tensor:
        return position_noise(rows, proposal.candidates, self.seed, "position")


dream = custom_generate(Dream, "dream")
