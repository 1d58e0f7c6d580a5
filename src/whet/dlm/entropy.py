"""Rules on the entropy of each position's prediction.

Entropy threshold: the least uncertain position always, plus all with entropy <= threshold. Source:
dParallel, arXiv 2509.26488, section 4. Entropy bound (EB sampler): positions in the order of their
entropies, as long as the entropies of those before sum to at most the bound, which bounds the
mutual information that a parallel step ignores. Source: arXiv 2505.24857.

Deviations: none in the rules; entropies are in nats, of the model's plain softmax unless
`confidence_of=sampled`.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from whet.dlm.options import DecodeOptions
from whet.dlm.select import RowRule, best, by_rank, leading
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows
from whet.errors import OptionError
from whet.layers.sampling import Confidence
from whet.models.denoiser import Denoiser


@dataclass(frozen=True, kw_only=True)
class _EntropyRule(DecodeOptions, ABC):
    """Rules that read entropies: no other confidence will do."""

    confidence: Confidence = "neg_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.confidence != "neg_entropy":
            raise OptionError(
                f"confidence={self.confidence!r}: this rule reads entropies, leave confidence out"
            )


@dataclass(frozen=True, kw_only=True)
class EntropyThreshold(_EntropyRule):
    """entropy_threshold: nats below which (or at which) a position counts as sure."""

    entropy_threshold: float = 0.45

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.entropy_threshold >= 0:
            raise OptionError(f"entropy_threshold={self.entropy_threshold:g} must be 0 or more")

    def selector(self, denoiser: Denoiser) -> EntropySelector:
        return EntropySelector(self.entropy_threshold)


@dataclass(frozen=True, kw_only=True)
class EntropyBound(_EntropyRule):
    """entropy_bound: nats; 0 = one token per step (unless entropies are exactly 0)."""

    entropy_bound: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.entropy_bound >= 0:
            raise OptionError(f"entropy_bound={self.entropy_bound:g} must be 0 or more")

    def selector(self, denoiser: Denoiser) -> BoundSelector:
        return BoundSelector(self.entropy_bound)


@dataclass(frozen=True)
class EntropySelector(RowRule):
    """Commit every position with at most this entropy, and the least uncertain in any case."""

    threshold: float

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        sure = -proposal.priority <= self.threshold
        return sure | best(proposal.priority, proposal.candidates)


def within_bound(entropy: Tensor, candidates: Tensor, bound: float) -> Tensor:
    """[R, G]: candidates of which those of lower entropy sum to at most `bound`."""
    ordered, rank = by_rank(-entropy, candidates)
    # Summed without their own, not by taking it off again: a deferred token's would swallow theirs.
    before = F.pad(-ordered[:, :-1], (1, 0)).cumsum(-1)
    return candidates & (rank < leading(candidates, before <= bound)[:, None])


@dataclass(frozen=True)
class BoundSelector(RowRule):
    """Commit positions by entropy while those before sum to at most the bound."""

    bound: float

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        return within_bound(-proposal.priority, proposal.candidates, self.bound)


entropy_threshold = custom_generate(EntropyThreshold, "entropy_threshold")
entropy_bound = custom_generate(EntropyBound, "entropy_bound")
