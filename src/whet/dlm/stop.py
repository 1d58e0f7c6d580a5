"""Stoppers: when a prompt is finished."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from whet.dlm.state import Rows


@runtime_checkable
class Stopper(Protocol):
    """Which rows belong to finished prompts; masks: [R], masks left in each row."""

    def __call__(self, rows: Rows, masks: Int[Tensor, " R"]) -> Bool[Tensor, " R"]: ...


def when_best_complete(rows: Rows, masks: Int[Tensor, " R"]) -> Bool[Tensor, " R"]:
    """Finished as soon as the best hypothesis (the first row of a prompt) has no mask."""
    prompts = int(rows.owner.max()) + 1
    done = torch.zeros(prompts, dtype=torch.bool, device=masks.device)
    first = first_rows(rows.owner)
    done[rows.owner[first]] = masks[first] == 0
    return done[rows.owner]


def when_all_complete(rows: Rows, masks: Int[Tensor, " R"]) -> Bool[Tensor, " R"]:
    """Finished when no hypothesis of the prompt has a mask."""
    prompts = int(rows.owner.max()) + 1
    left = torch.zeros(prompts, dtype=torch.long, device=masks.device)
    left.index_add_(0, rows.owner, masks)
    return left[rows.owner] == 0


def first_rows(owner: Int[Tensor, " R"]) -> Bool[Tensor, " R"]:
    """True at the first row of each prompt (rows of a prompt lie together)."""
    first = torch.ones_like(owner, dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    return first
