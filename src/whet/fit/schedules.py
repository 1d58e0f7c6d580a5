"""Learning-rate schedules: a factor in [0, 1] per step."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def warmup_cosine(steps: int, warmup: int, floor: float = 0.0) -> Schedule:
    """Linear to 1 over `warmup` steps, then a half cosine down to `floor` at `steps`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def warmup_constant(warmup: int) -> Schedule:
    """Linear to 1 over `warmup` steps, then 1."""
    return lambda step: min(1.0, (step + 1) / warmup) if warmup else 1.0
