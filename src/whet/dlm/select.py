"""Selectors: what to commit next. The pieces that rules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet.dlm.state import Proposal, Rows, Successors
from whet.dlm.stop import Stopper, when_best_complete


@runtime_checkable
class Selector(Protocol):
    """A rule. `select` makes successors of the rows; `keep` chooses survivors among them.

    stopper says when a prompt is finished. Rows without masks are carried over by the loop and
    never reach `select`. `keep` gives indices of the survivors, in order, or None for all.
    """

    @property
    def stopper(self) -> Stopper:
        """When a prompt is finished."""

    def select(self, rows: Rows, proposal: Proposal) -> Successors:
        """Successors of rows that still have masks."""

    def keep(
        self, before: Rows, successors: Successors, after: Rows, masks: Tensor
    ) -> Tensor | None:
        """Survivors among `after`; masks: [S], masks left in each."""


def ranks(confidence: Float[Tensor, "R G"], candidates: Bool[Tensor, "R G"]) -> Int[Tensor, "R G"]:
    """Rank of each candidate by confidence, 0 = most confident; ties go to the lowest position.

    What is no candidate ranks behind every candidate.
    """
    key = confidence.masked_fill(~candidates, -torch.inf)
    order = key.argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )


class RowRule(ABC):
    """A rule without a beam: every row has one successor, and a prompt ends when its row is full.

    Subclasses say what to commit; positions that are no candidates are left out for them.
    """

    stopper: Stopper = staticmethod(when_best_complete)

    @abstractmethod
    def commit(self, rows: Rows, proposal: Proposal) -> Bool[Tensor, "R G"]:
        """Where each row commits its proposal in this step: at least one candidate."""

    def select(self, rows: Rows, proposal: Proposal) -> Successors:
        """One successor per row, in order."""
        commit = self.commit(rows, proposal) & proposal.candidates
        index = torch.arange(len(commit), device=commit.device)
        return Successors(index, commit, torch.zeros_like(index, dtype=torch.bool))

    def keep(
        self, before: Rows, successors: Successors, after: Rows, masks: Tensor
    ) -> Tensor | None:
        """All survive."""
        return None
