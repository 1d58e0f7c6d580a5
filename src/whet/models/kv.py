"""Keys and values of canvases: the only code that speaks transformers' cache protocol.

An autoregressive cache grows at its end. A canvas has a fixed length and is rewritten in the
middle, so this cache holds whole canvases and overwrites the columns that are fed again. Keys are
stored after the rotary embedding; positions are absolute, so that is the same as before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Columns:
    """Which columns of M canvases are fed.

    index: [M, Q] canvas columns. write: [M, Q], False where a fed token is only there to make the
    shape even and must leave no trace; None = all are written. begin: the first column, where
    every canvas is fed the same unbroken run and all of it is written.
    """

    index: Int[Tensor, "M Q"]
    write: Bool[Tensor, "M Q"] | None = None
    begin: int | None = None


class CanvasCache:
    """Per layer: keys and values [R, heads, L, head_dim], a row for each canvas.

    Usage: `cache.follow(slot, length)` when canvases were reordered, then for each forward
    `cache.feed(which, columns, end)` and the model's forward with `past_key_values=cache`.
    """

    # What transformers' model code may ask of a cache.
    is_compileable = False
    is_sliding = (False,)

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.rows = 0
        self.length = 0
        self._which: Tensor | None = None
        self._columns: Columns | None = None
        self._end: int | None = None

    def follow(self, slot: Int[Tensor, " R"], length: int) -> None:
        """Make row r what row slot[r] was (-1: nothing yet), and canvases `length` columns long.

        Canvases are aligned on the right: columns are added or cut off on the left.
        """
        rows = len(slot)
        moved = rows != self.rows or not torch.equal(slot, torch.arange(rows, device=slot.device))
        gap = length - self.length
        if self.keys and (moved or gap):
            index = slot.clamp_min(0)
            for store in (self.keys, self.values):
                for layer, tensor in enumerate(store):
                    if gap:
                        tensor = F.pad(tensor, (0, 0, gap, 0))  # a negative gap crops
                    store[layer] = tensor[index] if moved else tensor
        self.rows, self.length = rows, length

    def feed(
        self, which: Int[Tensor, " M"] | None, columns: Columns | None, end: int | None = None
    ) -> CanvasCache:
        """What the next forward holds: canvases `which` (None: all), `columns` (None: all of them).

        end: keys from this column on are not handed to the attention.
        """
        self._which, self._columns, self._end = which, columns, end
        return self

    def fed(self) -> tuple[Tensor | None, Columns | None, int | None]:
        """The arguments of the last `feed`."""
        return self._which, self._columns, self._end

    def restore(self, rows: int, length: int) -> None:
        """Have this shape, whatever the content (to run recorded calls again)."""
        if (rows, length) != (self.rows, self.length):
            self.keys, self.values, self.rows, self.length = [], [], rows, length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store what was fed and give the keys and values to attend to."""
        if layer_idx == len(self.keys):
            shape = (self.rows, key_states.shape[1], self.length)
            self.keys.append(key_states.new_zeros(*shape, key_states.shape[-1]))
            self.values.append(value_states.new_zeros(*shape, value_states.shape[-1]))
        keys = self._put(self.keys, layer_idx, key_states)
        return keys, self._put(self.values, layer_idx, value_states)

    def _put(self, store: list[Tensor], layer: int, fed: Tensor) -> Tensor:
        which, columns = self._which, self._columns
        if columns is None and fed.shape[2] == self.length:
            if which is None:
                store[layer] = fed
            else:
                store[layer][which] = fed
            return fed
        held = store[layer] if which is None else store[layer][which]
        if columns is None:  # the first columns of the canvases
            held[:, :, : fed.shape[2]] = fed
        elif columns.begin is not None:
            held[:, :, columns.begin : columns.begin + fed.shape[2]] = fed
        else:
            write = columns.write
            if write is None:
                write = torch.ones_like(columns.index, dtype=torch.bool)
            row, place = write.nonzero(as_tuple=True)
            held[row, :, columns.index[row, place]] = fed[row, :, place]
        if which is not None:
            store[layer][which] = held
        return held if self._end is None else held[:, :, : self._end]

    # What transformers' mask builders ask, with names and arguments that differ between versions.
    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Where new tokens begin; canvases always give positions themselves."""
        return 0

    def get_query_offset(self, *args: Any, **kwargs: Any) -> int:
        """The first fed position, as far as a mask of whole canvases is concerned."""
        return 0

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Number of keys and their offset."""
        return self.length, 0


def canvas_mask(
    first: Int[Tensor, " R"],
    columns: Int[Tensor, "R Q"],
    length: int,
    block_length: int | None,
) -> Bool[Tensor, "R 1 q K"]:
    """Which of `length` key columns each fed column attends to.

    first: each canvas's first real column; what lies before it is padding. block_length: None =
    every query sees every key; a number = only keys of its own block and of those before it.
    """
    keys = torch.arange(length, device=columns.device)
    real = keys >= first[:, None]
    if block_length is None:
        return real[:, None, None]
    key_block = (keys - first[:, None]).div(block_length, rounding_mode="floor")
    query_block = (columns - first[:, None]).clamp_min(0) // block_length
    return (real[:, None] & (key_block[:, None] <= query_block[..., None]))[:, None]


@dataclass
class JoinedLayer:
    """Keys and values of several prompts, [R, heads, T, head_dim]."""

    keys: Tensor
    values: Tensor


class JoinedCache:
    """Read-only view of several one-prompt caches of equal length, for a decoder that reads them.

    Speaks as much of transformers' protocol as DiffusionGemma's decoder needs.
    """

    is_compileable = False

    def __init__(self, caches: Sequence[Any]) -> None:
        self.layers: list[Any]
        if len(caches) == 1:
            self.layers = list(caches[0].layers)  # nothing to join, nothing to copy
        else:
            self.layers = self._joined(caches)
        self._length = int(caches[0].get_seq_length())

    @staticmethod
    def _joined(caches: Sequence[Any]) -> list[Any]:
        return [
            JoinedLayer(
                torch.cat([layer.keys for layer in layers]),
                torch.cat([layer.values for layer in layers]),
            )
            for layers in zip(*(c.layers for c in caches), strict=True)
        ]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read."""
        return self._length


def prompt_cache(config: Any) -> Any:
    """An empty growing cache for a model's configuration."""
    from transformers import DynamicCache

    return DynamicCache(config=config)
