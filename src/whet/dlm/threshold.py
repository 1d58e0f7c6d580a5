"""Threshold-parallel decoding: commit everything the model is sure of, at least one per step.

Source: Fast-dLLM, arXiv 2505.22618, section 3.3: the most confident position always, plus all with
confidence >= threshold. A threshold above every confidence is greedy decoding; a threshold at the
bottom of the range fills a window in one forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from whet.dlm.options import DecodeOptions
from whet.dlm.select import RowRule, best
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows
from whet.layers.sampling import check_threshold
from whet.models.denoiser import Denoiser


@dataclass(frozen=True, kw_only=True)
class Threshold(DecodeOptions):
    """threshold: in the range of `confidence` (0 to 1 for `prob`)."""

    threshold: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold, self.confidence)

    def selector(self, denoiser: Denoiser) -> ThresholdSelector:
        return ThresholdSelector(self.threshold)


@dataclass(frozen=True)
class ThresholdSelector(RowRule):
    """Commit what reaches the threshold, and the most confident position in any case."""

    threshold: float

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        return (proposal.priority >= self.threshold) | best(proposal.priority, proposal.candidates)


threshold = custom_generate(Threshold, "threshold")
