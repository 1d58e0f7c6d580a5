"""The factor rule: how sure all must be depends on how many are committed together.

With confidences sorted downwards, commit the largest n of which every rank r from 2 to n has
c_r >= 1 - factor / (r + 1). Theory behind it: n tokens committed together are those of sequential
greedy decoding where (n + 1)(1 - c_n) <= 1. Source: Fast-dLLM, arXiv 2505.22618, section 3.3 and
the later revision of its code.

Deviation from the official code: it commits one token too many where only the last rank of a
window fails; `official=True` repeats that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whet.dlm.options import DecodeOptions
from whet.dlm.select import RowRule, by_rank, leading
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows
from whet.errors import OptionError
from whet.models.denoiser import Denoiser


@dataclass(frozen=True, kw_only=True)
class Factor(DecodeOptions):
    """factor: 0 = one token per step (unless confidences are exactly 1); more commits more.
    official: repeat the official code's off-by-one."""

    factor: float = 1.0
    official: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.factor < float("inf"):
            raise OptionError(f"factor={self.factor:g} must be 0 or more")
        if self.confidence == "neg_entropy":
            raise OptionError(
                "confidence='neg_entropy': the factor rule compares with 1, use prob or margin"
            )

    def selector(self, denoiser: Denoiser) -> FactorSelector:
        return FactorSelector(self.factor, self.official)


@dataclass(frozen=True)
class FactorSelector(RowRule):
    """Commit as many of the most confident as their confidences allow together."""

    factor: float
    official: bool

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        ordered, rank = by_rank(proposal.priority, proposal.candidates)
        width = ordered.shape[1]
        place = torch.arange(1, width + 1, device=ordered.device, dtype=ordered.dtype)
        passes = ordered >= 1 - self.factor / (place + 1)
        passes[:, 0] = True
        count = leading(proposal.candidates, passes)
        if self.official:
            total = proposal.candidates.sum(-1)
            count = torch.where(count == total - 1, total, count)
        return rank < count[:, None]


factor = custom_generate(Factor, "factor")
