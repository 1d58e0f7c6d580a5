"""Where to write the names of points so that they cover neither each other nor the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""left, bottom, right, top; any unit, the same everywhere."""

Floats = NDArray[np.float64]

_RADII = (5.0, 9.0, 15.0, 23.0, 33.0, 46.0, 62.0, 82.0, 106.0)
_ANGLES = 16
_SWEEPS = 6
# Weights of the cost, per unit of covered area: a covered name is worse than a covered mark, a
# name outside the plot worse than both; distance only decides between places that are free.
_OTHER, _MARK, _OUTSIDE, _AWAY = 40.0, 15.0, 80.0, 1.5


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    bounds: Box,
) -> list[Box]:
    """A box for each label, near its anchor.

    anchors: the points, [n]. sizes: width and height of each label, [n]. obstacles: boxes to keep
    clear (markers, error bars, lines). bounds: the box to stay in. Greedy, then swept a few times;
    the same input gives the same places.
    """
    count = len(anchors)
    if count == 0:
        return []
    options = [_candidates(a, s) for a, s in zip(anchors, sizes, strict=True)]
    fixed = [
        _static_cost(boxes, anchor, obstacles, bounds)
        for boxes, anchor in zip(options, anchors, strict=True)
    ]
    chosen: list[int | None] = [None] * count
    for _ in range(_SWEEPS):
        before = list(chosen)
        for i in range(count):
            placed = [options[j][at] for j, at in enumerate(chosen) if at is not None and j != i]
            cost = fixed[i]
            if placed:
                cost = cost + _OTHER * _overlap(options[i], np.stack(placed), pad=1.5).sum(axis=1)
            chosen[i] = int(np.argmin(cost))
        if chosen == before:
            break
    return [_as_box(options[i][at]) for i, at in enumerate(chosen) if at is not None]


def _as_box(row: Floats) -> Box:
    left, bottom, right, top = (float(x) for x in row)
    return left, bottom, right, top


def _candidates(anchor: tuple[float, float], size: tuple[float, float]) -> Floats:
    """Boxes [c, 4] around `anchor`: on rings of growing radius, right and left sides first."""
    (x, y), (w, h) = anchor, size
    boxes = []
    for radius in _RADII:
        for angle in np.arange(_ANGLES) * (2 * np.pi / _ANGLES):
            cos, sin = float(np.cos(angle)), float(np.sin(angle))
            # The box's side that faces the point lies on the ring.
            cx = x + cos * radius + (w / 2) * _side(cos)
            cy = y + sin * radius + (h / 2) * _side(sin)
            boxes.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    return np.asarray(boxes)


def _side(direction: float) -> float:
    return float(np.clip(direction * 1.5, -1, 1))


def _static_cost(
    boxes: Floats, anchor: tuple[float, float], obstacles: Sequence[Box], bounds: Box
) -> Floats:
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    gap = np.maximum(np.abs(middle - np.asarray(anchor)) - half, 0)
    cost: Floats = _AWAY * np.hypot(gap[:, 0], gap[:, 1])
    if obstacles:
        cost = cost + _MARK * _overlap(boxes, np.asarray(obstacles), pad=1.0).sum(axis=1)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    inside = _overlap(boxes, np.asarray([bounds]), pad=0.0)[:, 0]
    return cost + _OUTSIDE * (area - inside)


def _overlap(a: Floats, b: Floats, pad: float) -> Floats:
    """Covered area [len(a), len(b)] of boxes a, grown by `pad` on each side, with boxes b."""
    low = np.maximum(a[:, None, :2] - pad, b[None, :, :2])
    high = np.minimum(a[:, None, 2:] + pad, b[None, :, 2:])
    side = np.maximum(high - low, 0)
    covered: Floats = side[..., 0] * side[..., 1]
    return covered
