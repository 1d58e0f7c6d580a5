"""dInfer's rules: a threshold that knows ties, credit for steady predictions, one token per gap.

Threshold: all with c >= min(max c - 1e-5, threshold), so that what ties with the best goes with
it. `threshold_decay` lowers the threshold from 1 by that much per step of a window, down to
`threshold` (the schedule that goes with IterSmooth). Credit: a token that stays the favourite of
its position gains credit M <- decay M + p^exponent, and logits become l + weight log(1 + M);
credit is kept per window. Hierarchy: of every unbroken run of masks the best position if
c > low_threshold, all with c > threshold, and the best of all. Source: dInfer, arXiv 2510.08666.

Deviations from the official code: proposals are never the mask token (it is suppressed), so that
the threshold rule cannot hang; credits are stored for the tokens that have any, and belong to a
row, so that they cannot leak into the next request.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from whet.dlm.eos import DEFERRED
from whet.dlm.forward import Forward
from whet.dlm.options import DecodeOptions
from whet.dlm.provider import Provider, follow
from whet.dlm.select import RowRule, best, ranks
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows
from whet.errors import OptionError
from whet.layers.sampling import check_threshold
from whet.models.denoiser import Denoiser

_TIE = 1e-5


@dataclass(frozen=True, kw_only=True)
class DInferThreshold(DecodeOptions):
    """threshold: in the range of `confidence`. threshold_decay: 0 = the same in every step."""

    threshold: float = 0.9
    threshold_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold, self.confidence)
        if not 0 <= self.threshold_decay <= 1:
            raise OptionError(f"threshold_decay={self.threshold_decay:g} must be between 0 and 1")
        if self.threshold_decay and self.confidence == "neg_entropy":
            raise OptionError("threshold_decay starts from 1: use confidence=prob or margin")

    def selector(self, denoiser: Denoiser) -> TieSelector:
        return TieSelector(self.threshold, self.threshold_decay)


@dataclass(frozen=True, kw_only=True)
class Credit(DInferThreshold):
    """credit_weight: 0 = none. credit_exponent: of the favourite's probability. credit_decay: what
    is left of credit after each step."""

    credit_weight: float = 0.7
    credit_exponent: float = 0.2
    credit_decay: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("credit_weight", "credit_exponent"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(f"{name}={getattr(self, name):g} must be 0 or more")
        if not 0 <= self.credit_decay <= 1:
            raise OptionError(f"credit_decay={self.credit_decay:g} must be between 0 and 1")

    def provider(self, denoiser: Denoiser, forward: Forward) -> Provider:
        inner = super().provider(denoiser, forward)
        return CreditProvider(inner, self.credit_weight, self.credit_exponent, self.credit_decay)


@dataclass(frozen=True, kw_only=True)
class Hierarchy(DecodeOptions):
    """threshold: above it every position is committed. low_threshold: above it the best position
    of its run is."""

    threshold: float = 0.9
    low_threshold: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold, self.confidence)
        check_threshold(self.low_threshold, self.confidence, "low_threshold")
        if self.low_threshold > self.threshold:
            raise OptionError(
                f"low_threshold={self.low_threshold:g} must not exceed threshold={self.threshold:g}"
            )

    def selector(self, denoiser: Denoiser) -> HierarchySelector:
        return HierarchySelector(self.threshold, self.low_threshold)


@dataclass(frozen=True)
class TieSelector(RowRule):
    """Commit what reaches the threshold, or else what ties with the best."""

    threshold: float
    decay: float

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        most = proposal.priority.masked_fill(~proposal.candidates, -torch.inf).amax(-1)
        bar = torch.full_like(most, self.threshold)
        if self.decay:
            bar = (1 - self.decay * rows.window_step.to(most.dtype)).clamp_min(self.threshold)
        tied = proposal.priority >= torch.minimum(most - _TIE, bar)[:, None]
        # Deferred tokens all rank alike, far below zero: they do not go together.
        deferred = proposal.priority <= DEFERRED
        return (tied & ~deferred) | best(proposal.priority, proposal.candidates)


@dataclass(frozen=True)
class HierarchySelector(RowRule):
    """Commit the sure ones, the best of each run of masks, and the best of all."""

    threshold: float
    low_threshold: float

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        candidates = proposal.candidates
        rank = ranks(proposal.priority, candidates)
        leads = run_leaders(rank, candidates) & (proposal.priority > self.low_threshold)
        return (proposal.priority > self.threshold) | leads | (rank == 0)


def run_leaders(rank: Tensor, candidates: Tensor) -> Tensor:
    """[R, G]: the best-ranked candidate of every unbroken run of candidates."""
    starts = candidates & ~F.pad(candidates, (1, -1))
    run = starts.long().cumsum(-1)  # 0 before the first run
    lowest = torch.full_like(rank, rank.shape[1])
    lowest = F.pad(lowest, (0, 1), value=rank.shape[1])
    ranked = rank.masked_fill(~candidates, rank.shape[1])
    lowest.scatter_reduce_(-1, run, ranked, "amin")
    return candidates & (ranked == lowest.gather(-1, run))


@dataclass
class CreditProvider:
    """Adds weight log(1 + credit) to the logits of tokens that were a position's favourite."""

    inner: Provider
    weight: float
    exponent: float
    decay: float
    _tokens: Tensor | None = field(default=None, init=False)
    _credit: Tensor | None = field(default=None, init=False)

    @property
    def forward(self) -> Forward:
        return self.inner.forward

    @property
    def copies(self) -> int:
        return self.inner.copies

    def __call__(self, rows: Rows, index: Tensor, position: Tensor) -> Tensor:
        logits = self.inner(rows, index, position)
        region = rows.pending.shape[1]
        here = position - rows.start
        favourite = logits.argmax(-1)
        top = logits.gather(-1, favourite[:, None])[:, 0] - logits.logsumexp(-1)
        gain = (top * self.exponent).exp()
        if self._tokens is None or self._credit is None:
            tokens = favourite.new_zeros(len(rows), region, 0)
            credit = gain.new_zeros(len(rows), region, 0)
        else:
            tokens = follow(self._tokens, rows.slot, region)
            kept = (rows.slot >= 0) & (rows.window_step > 0)
            credit = follow(self._credit, rows.slot, region) * self.decay * kept[:, None, None]
        # A favourite that has credit gains; another is entered at the end of its position's list.
        known = (tokens[index, here] == favourite[:, None]) & (credit[index, here] > 0)
        credit[index, here] += known * gain[:, None]
        tokens, credit = F.pad(tokens, (0, 1)), F.pad(credit, (0, 1))
        tokens[index, here, -1] = favourite
        credit[index, here, -1] = gain * ~known.any(-1)
        used = (credit > 0).any(0).any(0)
        self._tokens, self._credit = tokens[..., used], credit[..., used]
        bonus = self.weight * self._credit[index, here].log1p()
        return logits.scatter_add_(-1, self._tokens[index, here], bonus.to(logits.dtype))


dinfer_threshold = custom_generate(DInferThreshold, "dinfer_threshold")
credit = custom_generate(Credit, "credit")
hierarchy = custom_generate(Hierarchy, "hierarchy")
