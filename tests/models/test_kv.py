"""The store of keys and values of canvases, against a plain one in Python."""

import random

import pytest
import torch

from whet.models.kv import CanvasCache, Columns, canvas_mask

LAYERS, HEADS, WIDTH = 2, 2, 3


class Plain:
    """A canvas is {(layer, distance from the end): (key, value)} of what it was ever fed."""

    def __init__(self):
        self.canvases, self.length = [], 0

    def follow(self, slot, length):
        old = self.canvases
        self.canvases = [dict(old[s]) if s >= 0 else {} for s in slot]
        for canvas in self.canvases:
            for place in [p for p in canvas if p[1] > length]:
                del canvas[place]
        self.length = length

    def put(self, row, layer, column, key, value):
        self.canvases[row][layer, self.length - column] = (key, value)

    def known(self, row, layer):
        """Columns that this canvas was fed, with what they hold."""
        found = self.canvases[row].items()
        return {self.length - place: kv for (at, place), kv in found if at == layer}


def some(rows, columns):
    return torch.randn(rows, HEADS, columns, WIDTH), torch.randn(rows, HEADS, columns, WIDTH)


def draw_columns(dice, rows, length):
    """One of the four ways to say what is fed: (Columns or None, index, write, end)."""
    width = dice.randint(1, length)
    kind = dice.choice(["whole", "first", "run", "scattered", "all written"])
    end = None
    if kind in ("whole", "first"):
        width = length if kind == "whole" else width
        index = [list(range(width))] * rows
        columns, write = None, [[True] * width] * rows
    else:
        begin = [dice.randint(0, length - width) for _ in range(rows)]
        if kind == "run":
            begin = begin[:1] * rows
        index = [list(range(b, b + width)) for b in begin]
        write = [[True] * width] * rows
        if kind == "scattered":
            write = [[dice.random() < 0.6 for _ in range(width)] for _ in range(rows)]
        columns = Columns(
            torch.tensor(index),
            torch.tensor(write) if kind == "scattered" else None,
            begin[0] if kind == "run" else None,
        )
        end = dice.choice([None, max(map(max, index)) + 1])
    return columns, index, write, end


@pytest.mark.parametrize("seed", range(40))
def test_the_store_is_a_plain_store(seed):
    dice = random.Random(seed)
    torch.manual_seed(seed)
    cache, plain = CanvasCache(), Plain()
    for _ in range(8):
        before = len(plain.canvases)
        rows, length = dice.randint(1, 4), dice.randint(2, 7)
        slot = [-1] * rows
        if before:
            slot = [dice.randint(dice.choice([-1, 0]), before - 1) for _ in range(rows)]
        if dice.random() < 0.3 and before:
            slot, length = list(range(before)), plain.length  # nothing moved
            rows = before
        cache.follow(torch.tensor(slot), length)
        plain.follow(slot, length)
        assert (cache.rows, cache.length) == (rows, length)
        for _ in range(2):
            which = (
                None
                if dice.random() < 0.5
                else sorted(dice.sample(range(rows), dice.randint(1, rows)))
            )
            chosen = list(range(rows)) if which is None else which
            columns, index, write, end = draw_columns(dice, len(chosen), length)
            at = None if which is None else torch.tensor(which)
            assert cache.feed(at, columns, end) is cache
            assert cache.fed() == (at, columns, end)
            for layer in range(LAYERS):
                keys, values = some(len(chosen), len(index[0]))
                for m, row in enumerate(chosen):
                    for q, column in enumerate(index[m]):
                        if write[m][q]:
                            plain.put(
                                row, layer, column, keys[m, :, q].clone(), values[m, :, q].clone()
                            )
                seen = cache.update(keys.clone(), values.clone(), layer)
                for m, row in enumerate(chosen):
                    for column, held in plain.known(row, layer).items():
                        if end is None or column < end:
                            for got, expected in zip(seen, held, strict=True):
                                assert torch.equal(got[m, :, column], expected)
                width = length if end is None else end
                assert all(t.shape == (len(chosen), HEADS, width, WIDTH) for t in seen)


def test_a_canvas_that_was_fed_nothing_takes_nothing_along():
    """Slot -1 starts a canvas; what its columns held is overwritten, not added to."""
    cache = CanvasCache()
    cache.follow(torch.tensor([-1, -1]), 4)
    keys, values = some(2, 4)
    cache.feed(None, None).update(keys.clone(), values.clone(), 0)
    cache.follow(torch.tensor([1, -1, 0]), 4)
    new_keys, new_values = some(1, 4)
    seen = cache.feed(torch.tensor([1]), None).update(new_keys, new_values, 0)
    assert torch.equal(seen[0], new_keys)
    assert torch.equal(cache.keys[0], torch.stack((keys[1], new_keys[0], keys[0])))


def test_restore_makes_room_of_a_shape_and_keeps_what_fits():
    cache = CanvasCache()
    cache.follow(torch.tensor([-1, -1]), 4)
    keys, values = some(2, 4)
    cache.feed(None, None).update(keys, values, 0)
    cache.restore(2, 4)
    assert torch.equal(cache.keys[0], keys)
    cache.restore(2, 5)
    assert (cache.rows, cache.length, cache.keys, cache.values) == (2, 5, [], [])
    cache.feed(None, None).update(*some(2, 5), 0)
    cache.restore(3, 5)
    assert (cache.rows, cache.length, cache.keys, cache.values) == (3, 5, [], [])
    fed = some(3, 2)
    seen, _ = cache.feed(None, Columns(torch.tensor([[2, 3]] * 3), None, 2)).update(*fed, 0)
    assert seen.shape == (3, HEADS, 5, WIDTH)
    assert torch.equal(seen[:, :, 2:4], fed[0])
    assert cache.get_mask_sizes() == (5, 0)
    assert cache.get_seq_length() == cache.get_query_offset() == 0


@pytest.mark.parametrize("block_length", [None, 1, 3, 4])
def test_which_columns_attend_to_which(block_length):
    first, length = [0, 2, 5], 9
    columns = torch.tensor([[0, 3, 8], [2, 4, 7], [5, 6, 8]])
    mask = canvas_mask(torch.tensor(first), columns, length, block_length)
    mask = mask.expand(3, 1, 3, length)[:, 0]
    for row, pad in enumerate(first):
        for query, column in enumerate(columns[row].tolist()):
            for key in range(length):
                allowed = key >= pad
                if block_length is not None:
                    allowed &= (key - pad) // block_length <= (column - pad) // block_length
                assert bool(mask[row, query, key]) == allowed


def test_padding_that_is_fed_attends_to_something():
    """Columns before the text (or before the canvas) only make shapes even; NaN must not arise."""
    columns = torch.tensor([[-1, 0, 1, 2]])
    for block_length in (None, 4):
        mask = canvas_mask(torch.tensor([2]), columns, 8, block_length).expand(1, 1, 4, 8)
        assert mask.any(-1).all()
        assert not mask[..., :2].any()
