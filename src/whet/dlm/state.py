"""The state of the canvas loop: rows. A batch, a beam and their mixture are the same thing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """What the model proposes at the masked positions of each row's current window.

    tokens, confidence: [R, G]; they mean something only where `candidates` is True. priority: the
    confidence by which positions are chosen; deferred end-of-text tokens stand below everything.
    """

    tokens: Int[Tensor, "R G"]
    confidence: Float[Tensor, "R G"]
    priority: Float[Tensor, "R G"]
    candidates: Bool[Tensor, "R G"]


@dataclass(frozen=True)
class Successors:
    """What a selector makes of the rows: each successor names its parent and what it commits.

    parent: [S], ascending. commit: [S, G]. parallel: [S], True where the accelerating branch was
    taken (beams collapse on it).
    """

    parent: Int[Tensor, " S"]
    commit: Bool[Tensor, "S G"]
    parallel: Bool[Tensor, " S"]


@dataclass(frozen=True)
class Rows:
    """One hypothesis per row; rows of a prompt lie together, best first.

    tokens: [R, L] whole canvases. owner: [R] prompt index in the batch.
    request: [R] name of the prompt in noise keys. window: [R]. window_step: [R] steps
    spent in the window. window_masks: [R] masks when the window was entered. score: [R] float64
    sum of committed confidences. committed: [R]. commit_step: [R, G], -1 = given or still masked.
    confidence: [R, G] of committed tokens.
    """

    tokens: Int[Tensor, "R L"]
    owner: Int[Tensor, " R"]
    request: Int[Tensor, " R"]
    window: Int[Tensor, " R"]
    window_step: Int[Tensor, " R"]
    window_masks: Int[Tensor, " R"]
    score: Float[Tensor, " R"]
    committed: Int[Tensor, " R"]
    commit_step: Int[Tensor, "R G"]
    confidence: Float[Tensor, "R G"]

    def __len__(self) -> int:
        return len(self.owner)

    def take(self, index: Tensor) -> Rows:
        """Rows by index or boolean mask."""
        return Rows(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))

    def spawn(self, successors: Successors, proposal: Proposal, start: int, step: int) -> Rows:
        """Make the successors: copy their parents, commit what they commit."""
        child = self.take(successors.parent)
        commit = successors.commit
        tokens = child.tokens  # take() copied it
        region = tokens[:, start:]
        region[commit] = proposal.tokens[successors.parent][commit]
        gained = proposal.confidence[successors.parent].masked_fill(~commit, 0.0)
        return dataclasses.replace(
            child,
            tokens=tokens,
            window_step=child.window_step + 1,
            score=child.score + gained.double().sum(-1),
            committed=child.committed + commit.sum(-1),
            commit_step=torch.where(commit, step, child.commit_step),
            confidence=torch.where(commit, gained.to(child.confidence.dtype), child.confidence),
        )
