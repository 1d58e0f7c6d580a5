"""NAP: several reasoning paths on one canvas, all of which advance in every step.

The canvas holds a slot for each path and one for the summary, with given headers between them.
Each step's quota of ceil(slots / steps) tokens is split over the unfinished paths as evenly as
possible (macro-parallel); within a path the most confident positions are committed, in any order.
The summary starts when `summary_start` of the path tokens are there. Source: "Why Diffusion
Language Models Struggle with Truly Parallel Decoding", arXiv 2602.23225. Forced on a model that
was not trained on several paths, this lowers accuracy (its ablation).

Inferred, since no decoding code was published: the remainder of a split goes to the paths with the
fewest tokens, the first of them first (for equal paths that is a rotation); paths before summary.
With `eos=early_stop` what follows an EOS within its slot becomes EOS too, and the quota goes to
the other paths. `threshold` commits everything above it in the slots that are open (off in the
paper).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from whet.dlm.eos import is_eos
from whet.dlm.options import DecodeOptions
from whet.dlm.schedule import Windows
from whet.dlm.select import RowRule, ranks
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows, Successors
from whet.errors import OptionError
from whet.layers.sampling import check_threshold
from whet.models.denoiser import Denoiser

# What a product such as 0.6 * 25 may be off by.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Nap(DecodeOptions):
    """steps: forwards over all slots (None: one token per step). regions: lengths as
    `330+330+330+32` into which the columns from the first mask on are cut; None = the unbroken runs
    of masks. summary: whether the last slot is one.
    summary_start: part of the path tokens that must be there before it starts. threshold: None =
    the quota alone."""

    steps: int | None = None
    regions: str | None = None
    summary: bool = True
    summary_start: float = 1.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_length is not None:
            raise OptionError(
                f"block_length={self.block_length}: windows filled left to right defeat paths that "
                "advance together, leave block_length out"
            )
        if self.cache in ("prefix", "block"):
            raise OptionError(
                f"cache={self.cache} freezes what lies on the left, but every path changes in "
                "every step: use cache=none or cache=dual"
            )
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"steps={self.steps} must be at least 1")
        if not 0 <= self.summary_start <= 1:
            raise OptionError(f"summary_start={self.summary_start:g} must be between 0 and 1")
        if self.threshold is not None:
            check_threshold(self.threshold, self.confidence)
        self.lengths()

    def lengths(self) -> list[int] | None:
        """Lengths of the slots. Errors: OptionError where `regions` does not say them."""
        if self.regions is None:
            return None
        parts = self.regions.split("+")
        if not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
            raise OptionError(
                f"regions={self.regions!r} must be lengths above 0 joined by +, as 8+8+4"
            )
        return [int(p) for p in parts]

    def planned_steps(self, windows: Windows) -> int:
        lengths = self.lengths()
        if lengths is not None and sum(lengths) != windows.length:
            raise OptionError(
                f"regions={self.regions} sum to {sum(lengths)}, there are {windows.length} "
                "columns from the first mask on"
            )
        return self.steps or windows.length

    def check_model(self, denoiser: Denoiser) -> None:
        super().check_model(denoiser)
        if denoiser.block_length is not None:
            raise OptionError(
                "paths that advance together need a model that attends to the whole canvas; this "
                f"one is block-causal (blocks of {denoiser.block_length})"
            )

    def selector(self, denoiser: Denoiser) -> RegionSelector:
        ends = denoiser.end_ids if self.eos == "early_stop" else ()
        lengths = self.lengths()
        return RegionSelector(
            tuple(lengths) if lengths else None,
            self.summary,
            self.summary_start,
            self.threshold,
            ends,
        )


def runs(slots: Tensor) -> Tensor:
    """[R, G] -> region of each position: 1, 2, ... by unbroken run of slots, 0 outside."""
    starts = slots & ~F.pad(slots, (1, -1))
    return starts.long().cumsum(-1) * slots


def per_region(values: Tensor, region: Tensor, reduce: str) -> Tensor:
    """[R, G + 1]: values reduced over each region (0 where there is none)."""
    out = values.new_zeros(values.shape[0], values.shape[1] + 1)
    return out.scatter_reduce_(1, region, values, reduce, include_self=False)


@dataclass(frozen=True)
class RegionSelector(RowRule):
    """Commit the quota, evenly over the open regions.

    lengths: of the regions from the region's end backwards, None = runs of slots. ends: tokens
    after which a region holds nothing else.
    """

    lengths: tuple[int, ...] | None
    summary: bool
    summary_start: float
    threshold: float | None
    ends: tuple[int, ...]

    def select(self, rows: Rows, proposal: Proposal) -> Successors:
        """One successor per row; what follows an end within its region is ended with it."""
        commit = self.commit(rows, proposal) & proposal.candidates
        if not self.ends:
            return Successors(None, commit)
        region = self._regions(rows)
        tokens = torch.where(commit, proposal.tokens, rows.tokens[:, rows.start :])
        settled = ~rows.given & (~rows.pending | commit)
        ended = (is_eos(tokens, self.ends) & settled).long()
        seen = ended.cumsum(-1)
        before = per_region(seen - ended, region, "amin").gather(1, region)
        behind = rows.pending & ~commit & (region > 0) & (seen > before)
        tokens = proposal.tokens.masked_fill(behind, self.ends[0])
        return Successors(None, commit | behind, tokens=tokens)

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        region = self._regions(rows)
        last = region.amax(-1, keepdim=True)
        summary = (region == last) & (last > 1) if self.summary else torch.zeros_like(rows.pending)
        path = (region > 0) & ~summary
        there = (path & ~rows.pending).sum(-1)
        needed = self.summary_start * path.sum(-1).double()
        started = there >= needed - _ROUNDING
        eligible = proposal.candidates & (path | (summary & started[:, None]))
        # In turns: one position of every open region, its best first, until the quota is used up.
        # The last turn goes to the regions that have the least; a summary counts from its start.
        turn = self._rank_within(proposal, eligible, region)
        late = ((needed + _ROUNDING) / (last[:, 0] - 1).clamp_min(1)).long()
        tokens = self._committed(rows, region) + late[:, None] * summary
        quota = -(-rows.window_masks // rows.planned)
        base = region.shape[1] + 1
        key = -((turn * base + tokens) * base + region).double()
        commit = ranks(key, eligible) < quota[:, None]
        if self.threshold is not None:
            commit = commit | (eligible & (proposal.priority >= self.threshold))
        return commit

    def _regions(self, rows: Rows) -> Tensor:
        slots = ~rows.given
        if self.lengths is None:
            return runs(slots)
        ids = torch.repeat_interleave(
            torch.arange(1, len(self.lengths) + 1, device=slots.device),
            torch.tensor(self.lengths, device=slots.device),
        )
        return F.pad(ids, (slots.shape[1] - len(ids), 0)) * slots

    @staticmethod
    def _committed(rows: Rows, region: Tensor) -> Tensor:
        done = (~rows.pending).long()
        return per_region(done, region, "sum").gather(1, region)

    @staticmethod
    def _rank_within(proposal: Proposal, eligible: Tensor, region: Tensor) -> Tensor:
        """Rank of each eligible position among those of its region."""
        width = region.shape[1]
        rank = ranks(proposal.priority, eligible)
        place = (region * width + rank).masked_fill(~eligible, width * (width + 2)).argsort(-1)
        place = torch.empty_like(place).scatter_(
            1, place, torch.arange(width, device=place.device).expand_as(place)
        )
        first = place.masked_fill(~eligible, width)
        return place - per_region(first, region, "amin").gather(1, region)


nap = custom_generate(Nap, "nap")
