"""Low-confidence and random remasking: a fixed number of tokens per step.

Source: LLaDA, arXiv 2502.09992, algorithms 4 and 5. "Remasking" the least confident proposals is
the same as committing the most confident ones. With as many steps as positions this is the greedy
decoder that other rules are compared with.

Deviations from the official code: a step whose quota is 0 is skipped instead of run idle;
confidences are float32 unless float64 is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whet import rng as rng_
from whet.dlm.options import DecodeOptions
from whet.dlm.schedule import Windows, quota
from whet.dlm.select import RowRule, ranks
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows
from whet.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class LowConfidence(DecodeOptions):
    """steps: forwards over the whole canvas; None = one token per step (greedy)."""

    steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"steps={self.steps} must be at least 1")

    def planned_steps(self, windows: Windows) -> int:
        return windows.steps_per_window(self.steps)

    def selector(self) -> QuotaSelector:
        return QuotaSelector()


@dataclass(frozen=True, kw_only=True)
class RandomOrder(LowConfidence):
    """As low-confidence, but positions are drawn at random (tokens are not)."""

    def selector(self) -> QuotaSelector:
        return QuotaSelector(random_seed=self.seed)


@dataclass(frozen=True)
class QuotaSelector(RowRule):
    """Commit each step's quota of the most confident, or of random, positions."""

    random_seed: int | None = None

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        key = proposal.priority
        if self.random_seed is not None:
            key = self._random_keys(rows, proposal)
        wanted = quota(rows.window_masks, rows.window_step, rows.planned)
        return ranks(key, proposal.candidates) < wanted[:, None]

    def _random_keys(self, rows: Rows, proposal: Proposal) -> Tensor:
        """Keyed by what the row is, not by where it lies in the batch."""
        assert self.random_seed is not None
        length = proposal.confidence.shape[1]
        keys = [
            torch.rand(
                length, generator=rng_.keyed_torch(self.random_seed, "order", request, committed)
            )
            for request, committed in zip(
                rows.request.tolist(), rows.committed.tolist(), strict=True
            )
        ]
        return torch.stack(keys).to(proposal.confidence)


low_confidence = custom_generate(LowConfidence, "low_confidence")
random_order = custom_generate(RandomOrder, "random_order")
