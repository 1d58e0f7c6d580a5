"""Stoppers: when a prompt is finished."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from whet.dlm.state import Rows


@runtime_checkable
class Stopper(Protocol):
    """Which rows belong to finished prompts; left: [R], what each row has left to fill."""

    def __call__(self, rows: Rows, left: Int[Tensor, " R"]) -> Bool[Tensor, " R"]: ...


def when_best_complete(rows: Rows, left: Int[Tensor, " R"]) -> Bool[Tensor, " R"]:
    """Finished as soon as the best hypothesis (the first row of a prompt) is full."""
    first = first_rows(rows.owner)
    # Rows of a prompt lie together, so the running count of first rows names the prompt.
    return (left[first] == 0)[first.cumsum(0) - 1]


def when_full(rows: Rows, left: Int[Tensor, " R"]) -> Bool[Tensor, " R"]:
    """Finished as soon as the row is full: for rules that keep one row per prompt."""
    return left == 0


def when_all_complete(rows: Rows, left: Int[Tensor, " R"]) -> Bool[Tensor, " R"]:
    """Finished when no hypothesis of the prompt has anything left to fill."""
    prompts = int(rows.owner.max()) + 1
    total = torch.zeros(prompts, dtype=torch.long, device=left.device)
    total.index_add_(0, rows.owner, left)
    return total[rows.owner] == 0


def first_rows(owner: Int[Tensor, " R"]) -> Bool[Tensor, " R"]:
    """True at the first row of each prompt (rows of a prompt lie together)."""
    first = torch.ones_like(owner, dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    return first
