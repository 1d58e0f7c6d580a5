"""SOAR: search over unmasking positions when unsure, unmask many at once when sure.

Source: "Search or Accelerate: Confidence-Switched Position Beam Search for Diffusion Language
Models", arXiv 2602.10953. A beam of K hypotheses; in each step a hypothesis with enough positions
above the threshold commits up to `max_parallel` of them at once (one successor), any other tries
each of its K most confident positions alone (K successors; positions branch, tokens never do).
Hypotheses are ranked by the confidences of what they committed; the beam narrows to one when the
winner comes from a parallel step. Position beam search (PBS) is the search branch alone.

`variant="paper"` (default) follows the paper: mean score, collapse when the best successor came
from a parallel step, a prompt ends when its best hypothesis is complete. `variant="llada"` and
`variant="dream"` repeat the two official files: sum score, collapse whenever any hypothesis went
parallel and the best advanced by n_min, end when all hypotheses are complete; and mean score,
collapse when the best advanced by 2, end at the best. `score` overrides the variant's.

Deviations from the official code: any number of prompts at once; softmax in float32 with ties to
the lowest position; complete hypotheses are not sent through the model again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from whet.dlm.beam import Score, rank_within, scores, survivors
from whet.dlm.options import DecodeOptions
from whet.dlm.select import ranks
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows, Successors
from whet.dlm.stop import Stopper, first_rows, when_all_complete, when_best_complete
from whet.errors import OptionError
from whet.layers.sampling import check_threshold
from whet.models.denoiser import Denoiser

Variant = Literal["paper", "llada", "dream"]


@dataclass(frozen=True, kw_only=True)
class PositionBeamSearch(DecodeOptions):
    """beam_width: hypotheses kept (K). score: `mean` or `sum` of committed confidences."""

    branches: ClassVar[bool] = True

    beam_width: int = 2
    score: Score = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam_width < 1:
            raise OptionError(f"beam_width={self.beam_width} must be at least 1")
        if self.score not in get_args(Score):
            raise OptionError(f"score={self.score!r} is not one of {', '.join(get_args(Score))}")

    def selector(self, denoiser: Denoiser) -> BeamSelector:
        return BeamSelector(beam_width=self.beam_width, score=self.score)


@dataclass(frozen=True, kw_only=True)
class Soar(DecodeOptions):
    """Defaults are the paper's.

    beam_width: K. threshold: confidence above which (strictly) a position counts as sure; 1 never
    accelerates, which is PBS. max_parallel: most tokens per parallel step (M). min_parallel: sure
    positions needed to go parallel (n_min). score: None = the variant's.
    """

    branches: ClassVar[bool] = True

    beam_width: int = 2
    threshold: float = 0.95
    max_parallel: int = 5
    min_parallel: int = 1
    score: Score | None = None
    variant: Variant = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold, self.confidence)
        for name in ("beam_width", "max_parallel", "min_parallel"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)} must be at least 1")
        for name, value, allowed in (
            ("variant", self.variant, get_args(Variant)),
            ("score", self.score, (None, *get_args(Score))),
        ):
            if value not in allowed:
                shown = ", ".join(str(a) for a in allowed)
                raise OptionError(f"{name}={value!r} is not one of {shown}")
        if self.min_parallel > self.max_parallel:
            raise OptionError(
                f"min_parallel={self.min_parallel} must not exceed max_parallel={self.max_parallel}"
            )

    def selector(self, denoiser: Denoiser) -> BeamSelector:
        advance = {"paper": None, "llada": self.min_parallel, "dream": 2}[self.variant]
        return BeamSelector(
            beam_width=self.beam_width,
            threshold=self.threshold,
            max_parallel=self.max_parallel,
            min_parallel=self.min_parallel,
            score=self.score or ("sum" if self.variant == "llada" else "mean"),
            collapse_advance=advance,
            stopper=when_all_complete if self.variant == "llada" else when_best_complete,
        )


def expand(
    proposal: Proposal,
    *,
    beam_width: int,
    threshold: float | None,
    max_parallel: int,
    min_parallel: int,
) -> Successors:
    """Successors of every row: one parallel commit, or up to K single ones.

    threshold None never goes parallel.
    """
    candidates = proposal.candidates
    rank = ranks(proposal.priority, candidates)
    if threshold is None:
        sure = torch.zeros_like(candidates)
    else:
        sure = candidates & (proposal.priority > threshold)
    parallel = sure.sum(-1) >= min_parallel
    branches = candidates.sum(-1).clamp_max(beam_width).masked_fill(parallel, 1)
    rows = torch.arange(len(candidates), device=candidates.device)
    parent = rows.repeat_interleave(branches)
    first = branches.cumsum(0) - branches
    branch = torch.arange(len(parent), device=candidates.device) - first[parent]
    together = sure & (rank < max_parallel)
    alone = candidates[parent] & (rank[parent] == branch[:, None])
    commit = torch.where(parallel[parent][:, None], together[parent], alone)
    return Successors(parent, commit, parallel[parent])


@dataclass(frozen=True, kw_only=True)
class BeamSelector:
    """Expand, rank, drop duplicates, resize.

    collapse_advance: None narrows the beam to one when the best successor is parallel; a number
    narrows it when any hypothesis of the prompt went parallel and the best has that many masks
    fewer than the best before.
    """

    beam_width: int
    score: Score
    threshold: float | None = None
    max_parallel: int = 1
    min_parallel: int = 1
    collapse_advance: int | None = None
    stopper: Stopper = when_best_complete

    def select(self, rows: Rows, proposal: Proposal) -> Successors:
        return expand(
            proposal,
            beam_width=self.beam_width,
            threshold=self.threshold,
            max_parallel=self.max_parallel,
            min_parallel=self.min_parallel,
        )

    def keep(self, before: Rows, successors: Successors, after: Rows, left: Tensor) -> Tensor:
        score = scores(after, self.score)
        prompts = int(after.owner.max()) + 1
        width = torch.full((prompts,), self.beam_width, device=score.device)
        if self.threshold is not None:
            width[self._collapsed(before, successors, after, score, prompts)] = 1
        return survivors(after, score, width)

    def _collapsed(
        self,
        before: Rows,
        successors: Successors,
        after: Rows,
        score: Tensor,
        prompts: int,
    ) -> Tensor:
        """Prompts whose beam narrows to one, [P] boolean."""
        assert successors.parallel is not None
        order = rank_within(after.owner, score)
        best = order[first_rows(after.owner[order])]
        owner = after.owner[best]
        collapsed = torch.zeros(prompts, dtype=torch.bool, device=score.device)
        if self.collapse_advance is None:
            collapsed[owner] = successors.parallel[best]
            return collapsed
        went = torch.zeros(prompts, dtype=torch.long, device=score.device)
        went.index_add_(0, after.owner, successors.parallel.long())
        old_best = first_rows(before.owner)
        committed_before = torch.zeros(prompts, dtype=torch.long, device=score.device)
        committed_before[before.owner[old_best]] = before.committed[old_best]
        # Masks fall exactly by what is committed (early stop at EOS aside), so the difference of
        # commitments is the difference of masks.
        advance = after.committed[best] - committed_before[owner]
        collapsed[owner] = (went[owner] > 0) & (advance >= self.collapse_advance)
        return collapsed


position_beam_search = custom_generate(PositionBeamSearch, "position_beam_search")
soar = custom_generate(Soar, "soar")
