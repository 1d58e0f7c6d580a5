"""Forwards: hidden states of the positions a decoder asks for, fed whole or from a cache.

Cost per step in tokens fed, for a canvas of L columns and a window [lo, hi) of B: none L, prefix
L - lo, dual and block B. In models with full attention the prefix and dual caches of Fast-dLLM
(arXiv 2505.22618) are approximations: what lies outside of the fed columns keeps the keys and
values of the last refresh. The first step of every window is a refresh, hence exact. In
block-causal models every cache is exact: what comes before a window no longer changes, and what
comes after it is not seen.

Deviation from the official code: rows of a batch are cached apart (each has its own window, its
own padding and its own refreshes), so that a batch equals its parts; in shifted models the column
before the window is fed too, in place of committing the window's first token unseen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet.dlm.state import Rows
from whet.models.denoiser import Denoiser
from whet.models.kv import CanvasCache, Columns

Cache = Literal["none", "prefix", "dual", "block"]


@dataclass(frozen=True)
class Feed:
    """Canvases to send forward. Rows of the loop, or more (guidance sends each twice).

    tokens: [M, L]. first: [M] padding before each. low, high: [M] columns of its window.
    window_step: [M]. slot: [M] its place in the feed before, -1 = none. embeds: [M, L, D], in
    place of the tokens' own embeddings.
    """

    tokens: Int[Tensor, "M L"]
    first: Int[Tensor, " M"]
    low: Int[Tensor, " M"]
    high: Int[Tensor, " M"]
    window_step: Int[Tensor, " M"]
    slot: Int[Tensor, " M"]
    embeds: Float[Tensor, "M L D"] | None = None

    @classmethod
    def of(cls, rows: Rows, embeds: Tensor | None = None) -> Feed:
        low, high = rows.bounds()
        return cls(rows.tokens, rows.first, low, high, rows.window_step, rows.slot, embeds)

    def mask(self) -> Bool[Tensor, "M L"] | None:
        """True at real tokens; None where all are."""
        if not bool(self.first.any()):
            return None
        columns = torch.arange(self.tokens.shape[1], device=self.first.device)
        return columns >= self.first[:, None]

    def take(self, index: Tensor) -> Feed:
        """Some of the canvases."""
        return Feed(
            self.tokens[index],
            self.first[index],
            self.low[index],
            self.high[index],
            self.window_step[index],
            self.slot[index],
            None if self.embeds is None else self.embeds[index],
        )


@runtime_checkable
class Forward(Protocol):
    """States [N, D] that predict the tokens at (canvas, column); counts what it cost.

    forwards: model calls. rows: canvases sent. positions: tokens fed.
    """

    forwards: int
    rows: int
    positions: int

    def __call__(
        self, feed: Feed, index: Int[Tensor, " N"], column: Int[Tensor, " N"]
    ) -> Float[Tensor, "N D"]: ...


@dataclass
class FullForward:
    """Every canvas whole, in every step (in block-causal models: up to the last window's end)."""

    denoiser: Denoiser
    forwards: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)
    positions: int = field(default=0, init=False)

    def __call__(self, feed: Feed, index: Tensor, column: Tensor) -> Tensor:
        tokens, mask, embeds = feed.tokens, feed.mask(), feed.embeds
        if self.denoiser.block_length is not None:
            end = int(feed.high.max())
            tokens = tokens[:, :end]
            mask = None if mask is None else mask[:, :end]
            embeds = None if embeds is None else embeds[:, :end]
        self.forwards += 1
        self.rows += len(tokens)
        self.positions += tokens.numel()
        states = self.denoiser.hidden(tokens, mask, embeds=embeds)
        return states[index, self.denoiser.source(column)]


@dataclass
class CachedForward:
    """Only the columns around each canvas's window, the others' keys and values from a cache.

    kind: `prefix` feeds the window and all after it; `dual` the window; `block` everything since
    the last window, whose last tokens were not forwarded yet. refresh: steps between refreshes
    within a window (None: at its first step only). vicinity: columns fed on each side of the
    window beside it (`dual`).
    """

    denoiser: Denoiser
    kind: Cache
    refresh: int | None = None
    vicinity: int = 0
    forwards: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)
    positions: int = field(default=0, init=False)
    cache: CanvasCache = field(default_factory=CanvasCache, init=False)
    _final: Tensor | None = field(default=None, init=False)

    def __call__(self, feed: Feed, index: Tensor, column: Tensor) -> Tensor:
        self.cache.follow(feed.slot, feed.tokens.shape[1])
        # How many tokens of each canvas have keys and values that no longer change.
        self._final = None if self._final is None else self._final[feed.slot.clamp_min(0)]
        fresh = self._fresh(feed)
        states: Tensor | None = None
        for which, part in ((fresh, self._whole), (~fresh, self._partly)):
            if not bool(which.any()):
                continue
            rows = None if bool(which.all()) else which.nonzero()[:, 0]
            asked = torch.ones_like(index, dtype=torch.bool) if rows is None else which[index]
            place = torch.arange(len(which), device=index.device)
            if rows is not None:
                place = which.cumsum(0) - 1
            found = part(
                feed if rows is None else feed.take(rows),
                rows,
                place[index[asked]],
                self.denoiser.source(column[asked]),
            )
            if states is None:
                states = found.new_empty(len(index), found.shape[-1])
            states[asked] = found
        assert states is not None
        self._final = feed.low - feed.first
        return states

    def _fresh(self, feed: Feed) -> Bool[Tensor, " M"]:
        """Canvases to be fed whole."""
        if self.kind == "block":
            return feed.slot < 0
        fresh = (feed.window_step == 0) | (feed.slot < 0)
        if self.refresh is not None:
            fresh = fresh | (feed.window_step % self.refresh == 0)
        return fresh

    def _whole(self, feed: Feed, rows: Tensor | None, index: Tensor, column: Tensor) -> Tensor:
        """A refresh. In block-causal models what comes after the window is left out: unseen."""
        tokens, mask, embeds = feed.tokens, feed.mask(), feed.embeds
        if self.denoiser.block_length is None:
            self._count(tokens)
            cache = self.cache.feed(rows, None)
            return self.denoiser.hidden(tokens, mask, embeds=embeds, cache=cache)[index, column]
        end = int(feed.high.max())
        columns = torch.arange(end, device=tokens.device).expand(len(tokens), -1)
        write = None if mask is None else mask[:, :end]
        begin = 0 if write is None else None
        return self._feed(feed, rows, Columns(columns, write, begin), end)[index, column]

    def _partly(self, feed: Feed, rows: Tensor | None, index: Tensor, column: Tensor) -> Tensor:
        columns, end = self._columns(feed, rows)
        states = self._feed(feed, rows, columns, end)
        return states[index, column - columns.index[index, 0]]

    def _columns(self, feed: Feed, rows: Tensor | None) -> tuple[Columns, int]:
        """Columns to feed, an unbroken run per canvas, and the end of the keys to attend to."""
        length = feed.tokens.shape[1]
        low, high = feed.low, feed.high
        if self.kind == "prefix":
            high = torch.full_like(high, length)
        elif self.kind == "dual":
            low, high = low - self.vicinity, (high + self.vicinity).clamp_max(length)
        elif self._final is not None:
            final = self._final if rows is None else self._final[rows]
            low = torch.minimum(low, final + feed.first)
        low = torch.maximum(low - int(self.denoiser.traits.shift), feed.first)
        end = length
        if self.denoiser.block_length is not None:  # what comes after a window is not seen
            high, end = feed.high, int(feed.high.max())
        # One shape for all: runs end where they must, and begin earlier where others are longer.
        width = int((high - low).max())
        begin = high - width
        index = begin[:, None] + torch.arange(width, device=low.device)
        write = (index >= low[:, None]) & (index < high[:, None])
        all_written = bool(write.all())
        same = all_written and bool((begin == begin[0]).all())
        return (
            Columns(
                index,
                None if all_written else write,
                int(begin[0]) if same else None,
            ),
            end,
        )

    def _feed(self, feed: Feed, rows: Tensor | None, columns: Columns, end: int) -> Tensor:
        index = columns.index.clamp_min(0)
        tokens = feed.tokens.gather(1, index)
        embeds = feed.embeds
        if embeds is not None:
            embeds = embeds.gather(1, index[..., None].expand(-1, -1, embeds.shape[-1]))
        mask = feed.mask()
        self._count(tokens)
        return self.denoiser.hidden(
            tokens,
            None if mask is None else mask[:, :end],
            embeds=embeds,
            columns=columns.index,
            cache=self.cache.feed(rows, columns, end),
            length=end,
        )

    def _count(self, tokens: Tensor) -> None:
        self.forwards += 1
        self.rows += len(tokens)
        self.positions += tokens.numel()
