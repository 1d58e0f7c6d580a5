"""The state of the canvas loop: rows. A batch, a beam and their mixture are the same thing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """What the model proposes in each row's current window.

    tokens, confidence: [R, G]; they mean something only at `candidates` (positions still to fill)
    and, for rules that edit, at `editable` (filled positions of the window, the prompt's
    excepted). priority: the confidence by which positions are chosen; deferred end-of-text tokens
    stand below everything. likeliest: the most likely tokens, where `tokens` were sampled and the
    rule asks for both.
    """

    tokens: Int[Tensor, "R G"]
    confidence: Float[Tensor, "R G"]
    priority: Float[Tensor, "R G"]
    candidates: Bool[Tensor, "R G"]
    editable: Bool[Tensor, "R G"] | None = None
    likeliest: Int[Tensor, "R G"] | None = None


@dataclass(frozen=True)
class Successors:
    """What a selector makes of the rows: each successor names its parent and what it commits.

    parent: [S], ascending; None: one successor per row, in order. commit: [S, G], positions that
    are filled now (or, for rules that edit, overwritten). parallel: [S], True where the
    accelerating branch was taken (beams collapse on it). tokens: [S, G], what to write in place of
    the proposal's tokens. noise: [S, G], positions overwritten by `tokens` that stay to be
    filled. held: [S], rows that stay in their window though it is full.
    """

    parent: Int[Tensor, " S"] | None
    commit: Bool[Tensor, "S G"]
    parallel: Bool[Tensor, " S"] | None = None
    tokens: Int[Tensor, "S G"] | None = None
    noise: Bool[Tensor, "S G"] | None = None
    held: Bool[Tensor, " S"] | None = None

    def parents(self) -> Int[Tensor, " S"]:
        """Parents, spelled out."""
        if self.parent is not None:
            return self.parent
        return torch.arange(len(self.commit), device=self.commit.device)


@dataclass(frozen=True)
class Rows:
    """One hypothesis per row; rows of a prompt lie together, best first.

    tokens: [R, L] canvases, aligned on the right. The region that decoders work on is the last G
    columns; a row with fewer positions to fill has the end of its prompt there too.
    pending: [R, G], positions still to fill. held: [R], full rows that are not finished yet.
    owner: [R] place of the prompt in the batch. request: [R] name of the prompt in noise keys.
    first: [R] columns of padding before the canvas. block_length, offset: [R]; region column g
    lies in window (g + offset) // block_length. planned: [R] steps planned for each window.
    window: [R]. window_step: [R] steps spent in the window. window_masks: [R] positions to fill
    when it was entered. full_steps: [R] steps since the window became full. age: [R] steps of the
    row. score: [R] float64 sum of committed confidences. committed: [R]. commit_step: [R, G] (in
    steps of the row), -1 = given or pending. confidence: [R, G] of committed tokens. slot: [R],
    the row's place in the provider's last call, -1 = it was in none.
    """

    tokens: Int[Tensor, "R L"]
    pending: Bool[Tensor, "R G"]
    held: Bool[Tensor, " R"]
    owner: Int[Tensor, " R"]
    request: Int[Tensor, " R"]
    first: Int[Tensor, " R"]
    block_length: Int[Tensor, " R"]
    offset: Int[Tensor, " R"]
    planned: Int[Tensor, " R"]
    window: Int[Tensor, " R"]
    window_step: Int[Tensor, " R"]
    window_masks: Int[Tensor, " R"]
    full_steps: Int[Tensor, " R"]
    age: Int[Tensor, " R"]
    score: Float[Tensor, " R"]
    committed: Int[Tensor, " R"]
    commit_step: Int[Tensor, "R G"]
    confidence: Float[Tensor, "R G"]
    slot: Int[Tensor, " R"]

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def start(self) -> int:
        """First column of the region."""
        return self.tokens.shape[1] - self.pending.shape[1]

    @property
    def given(self) -> Bool[Tensor, "R G"]:
        """Positions of the region that nobody fills."""
        return ~self.pending & (self.commit_step < 0)

    def windows(self) -> Int[Tensor, "R G"]:
        """Window index of each position of the region; negative before a row's own region."""
        columns = torch.arange(self.pending.shape[1], device=self.pending.device)
        return (columns + self.offset[:, None]).div(
            self.block_length[:, None], rounding_mode="floor"
        )

    def bounds(self) -> tuple[Int[Tensor, " R"], Int[Tensor, " R"]]:
        """Canvas columns [low, high) of each row's window."""
        low = self.start + self.window * self.block_length - self.offset
        high = (low + self.block_length).clamp_max(self.tokens.shape[1])
        return torch.maximum(low, self.first), high

    def left(self) -> Int[Tensor, " R"]:
        """What keeps each row from being finished: positions to fill, and being held."""
        return self.pending.sum(-1) + self.held

    def take(self, index: Tensor) -> Rows:
        """Rows by index or boolean mask."""
        return Rows(*(getattr(self, f.name)[index] for f in _FIELDS))

    def spawn(self, successors: Successors, proposal: Proposal) -> Rows:
        """Make the successors: copy their parents, write what they write."""
        parent, commit = successors.parent, successors.commit
        child, proposed, gained = self, proposal.tokens, proposal.confidence
        if parent is not None:
            child, proposed, gained = self.take(parent), proposed[parent], gained[parent]
        written = commit if successors.noise is None else commit | successors.noise
        new = proposed if successors.tokens is None else successors.tokens
        tokens = child.tokens.clone()
        region = tokens[:, child.start :]
        region.copy_(torch.where(written, new, region))
        filled = commit & child.pending
        held = torch.zeros_like(child.held) if successors.held is None else successors.held
        pending = child.pending & ~commit
        return dataclasses.replace(
            child,
            tokens=tokens,
            pending=pending,
            held=held,
            window_step=child.window_step + 1,
            full_steps=torch.where(child.held, child.full_steps + 1, 0),
            age=child.age + 1,
            score=child.score + gained.masked_fill(~filled, 0.0).double().sum(-1),
            committed=child.committed + filled.sum(-1),
            commit_step=torch.where(commit, child.age[:, None], child.commit_step),
            confidence=torch.where(commit, gained.to(child.confidence.dtype), child.confidence),
        )

    def resized(self, length: int, region: int) -> Rows:
        """The same rows with canvases of `length` columns and a region of `region`."""
        wider, further = length - self.tokens.shape[1], region - self.pending.shape[1]
        if not wider and not further:
            return self
        return dataclasses.replace(
            self,
            # Columns that come in on the left are padding or, in the region, given.
            tokens=F.pad(self.tokens, (wider, 0)),
            pending=F.pad(self.pending, (further, 0)),
            commit_step=F.pad(self.commit_step, (further, 0), value=-1),
            confidence=F.pad(self.confidence, (further, 0)),
            first=self.first + wider,
            offset=self.offset - further,
        )


_FIELDS = dataclasses.fields(Rows)


def stack(parts: list[Rows]) -> Rows:
    """Rows of several prompts as one, by place; canvases and regions of the widest."""
    length = max(p.tokens.shape[1] for p in parts)
    region = max(p.pending.shape[1] for p in parts)
    even = [p.resized(length, region) for p in parts]
    joined = Rows(*(torch.cat([getattr(p, f.name) for p in even]) for f in _FIELDS))
    return joined.take(joined.owner.argsort(stable=True))
