"""Low-confidence and random remasking: a fixed number of tokens per step.

Source: LLaDA, arXiv 2502.09992, algorithms 4 and 5. "Remasking" the least confident proposals is
the same as committing the most confident ones. With as many steps as positions this is the greedy
decoder that other rules are compared with.

Deviations from the official code: a step whose quota is 0 is skipped instead of run idle;
confidences are float32 unless float64 is asked for. `official=True` repeats what that code makes of
`eos=defer`: EOS and end-of-turn tokens have no probability when confidences are taken, which also
renormalises the others, and with sampling only the end of turn does, EOS is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from whet.dlm.options import DecodeOptions
from whet.dlm.schedule import Windows, quota
from whet.dlm.select import RowRule, position_noise, ranks
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows
from whet.errors import OptionError
from whet.models.denoiser import Denoiser


@dataclass(frozen=True, kw_only=True)
class LowConfidence(DecodeOptions):
    """steps: forwards over the whole canvas; None = one token per step (greedy). official: repeat
    LLaDA's own handling of `eos=defer`."""

    steps: int | None = None
    official: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"steps={self.steps} must be at least 1")
        if self.official and self.eos != "defer":
            raise OptionError(f"official=true changes eos=defer only: here eos={self.eos}")
        if self.official and self.confidence != "prob":
            raise OptionError(
                f"official=true works on the probabilities of tokens, not on {self.confidence}"
            )

    @property
    def official_eos(self) -> bool:
        return self.official

    def ignored_ids(self, denoiser: Denoiser) -> tuple[int, ...]:
        if not self.official:
            return ()
        return denoiser.end_of_turn_ids if self.temperature else denoiser.end_ids

    def planned_steps(self, windows: Windows) -> int:
        return windows.steps_per_window(self.steps)

    def selector(self, denoiser: Denoiser) -> QuotaSelector:
        return QuotaSelector()


@dataclass(frozen=True, kw_only=True)
class RandomOrder(LowConfidence):
    """As low-confidence, but positions are drawn at random (tokens are not)."""

    def selector(self, denoiser: Denoiser) -> QuotaSelector:
        return QuotaSelector(random_seed=self.seed)


@dataclass(frozen=True)
class QuotaSelector(RowRule):
    """Commit each step's quota of the most confident, or of random, positions."""

    random_seed: int | None = None

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        key = proposal.priority
        if self.random_seed is not None:
            key = position_noise(rows, proposal.candidates, self.random_seed, "order")
        wanted = quota(rows.window_masks, rows.window_step, rows.planned)
        return ranks(key, proposal.candidates) < wanted[:, None]


low_confidence = custom_generate(LowConfidence, "low_confidence")
random_order = custom_generate(RandomOrder, "random_order")
