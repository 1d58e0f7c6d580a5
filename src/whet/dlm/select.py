"""Selectors: what to commit next. The pieces that rules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet import rng as rng_
from whet.dlm.state import Proposal, Rows, Successors
from whet.dlm.stop import Stopper, when_full


@runtime_checkable
class Selector(Protocol):
    """A rule. `select` makes successors of the rows; `keep` chooses survivors among them.

    stopper says when a prompt is finished. Rows with nothing left to do are carried over by the
    loop and never reach `select`. `keep` gives indices of the survivors, in order, or None for
    all; `left` is what each successor has left to fill.
    """

    @property
    def stopper(self) -> Stopper:
        """When a prompt is finished."""

    def select(self, rows: Rows, proposal: Proposal) -> Successors:
        """Successors of rows that are not full."""

    def keep(
        self, before: Rows, successors: Successors, after: Rows, left: Tensor
    ) -> Tensor | None:
        """Survivors among `after`."""


def ranks(confidence: Float[Tensor, "R G"], candidates: Bool[Tensor, "R G"]) -> Int[Tensor, "R G"]:
    """Rank of each candidate by confidence, 0 = most confident; ties go to the lowest position.

    What is no candidate ranks behind every candidate.
    """
    key = confidence.masked_fill(~candidates, -torch.inf)
    return _places(key.argsort(dim=-1, descending=True, stable=True))


def _places(order: Int[Tensor, "R G"]) -> Int[Tensor, "R G"]:
    """The inverse permutation of each row."""
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )


def best(confidence: Float[Tensor, "R G"], candidates: Bool[Tensor, "R G"]) -> Bool[Tensor, "R G"]:
    """Each row's most confident candidate; ties go to the lowest position."""
    # argmax gives the first of equal values, and is cheaper than ranking everything.
    first = confidence.masked_fill(~candidates, -torch.inf).argmax(-1, keepdim=True)
    return torch.zeros_like(candidates).scatter_(-1, first, True) & candidates


def leading(candidates: Bool[Tensor, "R G"], passes: Bool[Tensor, "R G"]) -> Int[Tensor, " R"]:
    """How many candidates, from rank 0 on, pass before the first that does not.

    passes: [R, G] by rank: column r says whether the candidate of rank r passes.
    """
    total = candidates.sum(-1, keepdim=True)
    ranked = torch.arange(passes.shape[1], device=passes.device) < total
    return (passes & ranked).long().cumprod(-1).sum(-1)


def by_rank(
    values: Float[Tensor, "R G"], candidates: Bool[Tensor, "R G"]
) -> tuple[Float[Tensor, "R G"], Int[Tensor, "R G"]]:
    """Values of candidates from the greatest down (what is no candidate: -inf, at the end), and
    the rank of each position; ties go to the lowest position."""
    key = values.masked_fill(~candidates, -torch.inf)
    order = key.argsort(dim=-1, descending=True, stable=True)
    return key.gather(-1, order), _places(order)


def position_noise(
    rows: Rows, candidates: Bool[Tensor, "R G"], seed: int, name: str
) -> Float[Tensor, "R G"]:
    """Uniform noise in (0, 1), float64, at each row's first candidate and all after it.

    Keyed by what the row is and by the place from the region's end, so that neither the batch nor
    the width of its widest region matters.
    """
    length = candidates.shape[1]
    noise = torch.ones(candidates.shape, dtype=torch.float64)
    first = candidates.int().argmax(-1).tolist()
    for row, (request, age) in enumerate(torch.stack((rows.request, rows.age), -1).tolist()):
        generator = rng_.keyed_torch(seed, name, request, age)
        drawn = torch.rand(length - first[row], generator=generator, dtype=torch.float64)
        noise[row, first[row] :] = drawn
    return noise.to(candidates.device)


class RowRule(ABC):
    """A rule without a beam: every row has one successor, and a prompt ends when its row is full.

    Subclasses say what to commit; positions that are no candidates are left out for them.
    """

    stopper: Stopper = staticmethod(when_full)

    @abstractmethod
    def commit(self, rows: Rows, proposal: Proposal) -> Bool[Tensor, "R G"]:
        """Where each row commits its proposal in this step.

        A rule must fill a row in finitely many steps; in a single step it may commit nothing.
        """

    def select(self, rows: Rows, proposal: Proposal) -> Successors:
        """One successor per row, in order."""
        return Successors(None, self.commit(rows, proposal) & proposal.candidates)

    def keep(
        self, before: Rows, successors: Successors, after: Rows, left: Tensor
    ) -> Tensor | None:
        """All survive."""
        return None
