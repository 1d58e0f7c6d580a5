"""Rules that came with block-causal models: SDAR's dynamic rule, LLaDA2's, LLaDA2.1's with edits.

Dynamic: if at least the step's quota of positions lies above the threshold, commit those, else the
quota of the most confident. Source: SDAR, arXiv 2510.06303. LLaDA2.0 (arXiv 2512.15745) uses the
same rule with blocks of 32 and threshold 0.95. LLaDA2.1 (arXiv 2602.08676) adds edits: a filled
token of the block is overwritten where the model now prefers another with probability above
edit_threshold; a full block is read again until a reading changes nothing, at most
`max_post_steps` times. Published settings: threshold 0.95 with edit_threshold 0.9, or 0.7 with 0.5
(speed).

Deviations from the official code: each row of a batch keeps its own block and its own count of
steps; with edit_threshold=None a full block is not read once more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whet.dlm.options import DecodeOptions
from whet.dlm.schedule import Windows, quota
from whet.dlm.select import RowRule, ranks
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows, Successors
from whet.errors import OptionError
from whet.layers.sampling import check_threshold
from whet.models.denoiser import Denoiser


@dataclass(frozen=True, kw_only=True)
class Dynamic(DecodeOptions):
    """threshold: confidence above which (strictly) positions are committed together. steps:
    forwards over the whole canvas that set the least number per step; None = one token."""

    threshold: float = 0.85
    steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold, self.confidence)
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"steps={self.steps} must be at least 1")

    def planned_steps(self, windows: Windows) -> int:
        return windows.steps_per_window(self.steps)

    def selector(self, denoiser: Denoiser) -> DynamicSelector:
        return DynamicSelector(self.threshold)


@dataclass(frozen=True, kw_only=True)
class LLaDA2(Dynamic):
    """edit_threshold: probability above which (strictly) a filled token is replaced; None = no
    edits (LLaDA2.0). max_post_steps: readings of a full block at most."""

    threshold: float = 0.95
    edit_threshold: float | None = None
    max_post_steps: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edit_threshold is not None:
            check_threshold(self.edit_threshold, self.confidence, "edit_threshold")
        if self.max_post_steps < 0:
            raise OptionError(f"max_post_steps={self.max_post_steps} must be 0 or more")

    @property
    def edits(self) -> bool:
        return self.edit_threshold is not None

    def selector(self, denoiser: Denoiser) -> DynamicSelector:
        if self.edit_threshold is None:
            return DynamicSelector(self.threshold)
        return EditSelector(self.threshold, self.edit_threshold, self.max_post_steps)


@dataclass(frozen=True, kw_only=True)
class LLaDA21(LLaDA2):
    """LLaDA2 with edits: edit_threshold 0.9 unless told otherwise."""

    edit_threshold: float | None = 0.9


@dataclass(frozen=True)
class DynamicSelector(RowRule):
    """All above the threshold if they are enough, else the quota of the best."""

    threshold: float

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        sure = proposal.candidates & (proposal.priority > self.threshold)
        # A window may outlast its plan (never with edits alone): one token then.
        wanted = quota(rows.window_masks, rows.window_step, rows.planned).clamp_min(1)
        some = ranks(proposal.priority, proposal.candidates) < wanted[:, None]
        enough = sure.sum(-1) >= wanted
        return torch.where(enough[:, None], sure, some)


@dataclass(frozen=True)
class EditSelector(DynamicSelector):
    """The dynamic rule, overwriting filled tokens the model no longer believes in."""

    edit_threshold: float
    max_post_steps: int

    def select(self, rows: Rows, proposal: Proposal) -> Successors:
        """One successor per row; full blocks are held until a reading changes nothing."""
        assert proposal.editable is not None
        fill = self.commit(rows, proposal) & proposal.candidates
        other = proposal.tokens != rows.tokens[:, rows.start :]
        edit = proposal.editable & other & (proposal.confidence > self.edit_threshold)
        was_full = ~proposal.candidates.any(-1)
        full = ~(proposal.candidates & ~fill).any(-1)
        again = torch.where(
            was_full,
            edit.any(-1) & (rows.full_steps + 1 < self.max_post_steps),
            torch.full_like(full, self.max_post_steps > 0),
        )
        return Successors(None, fill | edit, held=full & again)


sdar = custom_generate(Dynamic, "sdar")
llada2 = custom_generate(LLaDA2, "llada2")
llada21 = custom_generate(LLaDA21, "llada21")
