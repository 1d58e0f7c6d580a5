"""Beams over rows: rank hypotheses of each prompt, drop duplicates, keep the best."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet.dlm.state import Rows
from whet.dlm.stop import first_rows

Score = Literal["mean", "sum"]


def scores(rows: Rows, kind: Score) -> Float[Tensor, " R"]:
    """Sum, or mean per committed token, of committed confidences (float64)."""
    if kind == "sum":
        return rows.score
    return rows.score / rows.committed.clamp_min(1)


def rank_within(owner: Int[Tensor, " R"], score: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """Order of rows: prompts ascending, within a prompt best score first, ties as they lie."""
    by_score = score.argsort(descending=True, stable=True)
    return by_score[owner[by_score].argsort(stable=True)]


def duplicates(owner: Int[Tensor, " R"], tokens: Int[Tensor, "R L"]) -> Bool[Tensor, " R"]:
    """True at rows that repeat an earlier row of the same prompt (rows of a prompt together)."""
    repeated = torch.zeros_like(owner, dtype=torch.bool)
    if len(owner) == 0:
        return repeated
    largest = int(torch.bincount(owner).max())
    for gap in range(1, largest):
        same = (owner[gap:] == owner[:-gap]) & (tokens[gap:] == tokens[:-gap]).all(-1)
        repeated[gap:] |= same
    return repeated


def place_in_group(owner: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
    """0, 1, 2, ... within each run of equal owners."""
    index = torch.arange(len(owner), device=owner.device)
    start = torch.where(first_rows(owner), index, 0).cummax(0).values
    return index - start


def survivors(
    rows: Rows, score: Float[Tensor, " R"], width: Int[Tensor, " P"]
) -> Int[Tensor, " S"]:
    """Indices of the best `width[owner]` distinct rows of each prompt, best first."""
    order = rank_within(rows.owner, score)
    order = order[~duplicates(rows.owner[order], rows.tokens[order])]
    owner = rows.owner[order]
    kept: Tensor = order[place_in_group(owner) < width[owner]]
    return kept
