"""Wall-clock time that can be compared: devices waited for, warm-up dropped, turns taken."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from whet.errors import InputError, OptionError
from whet.measure.stats import quantile_interval
from whet.rng import keyed

if TYPE_CHECKING:
    import torch


def synchronize(device: str | torch.device | None = None) -> None:
    """Wait until all work queued on `device` is done; nothing to do for the CPU.

    None waits for every accelerator that this process has started. torch is not imported for it.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    kind = None if device is None else torch.device(device).type
    if kind in (None, "cuda") and torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in _cuda_indices(torch, device):
            torch.cuda.synchronize(index)
    if kind in (None, "mps") and torch.backends.mps.is_available():
        torch.mps.synchronize()


def _cuda_indices(torch: Any, device: Any) -> Sequence[Any]:
    return range(torch.cuda.device_count()) if device is None else [torch.device(device)]


class Clock:
    """`with Clock() as clock: ...` measures `clock.seconds`, waiting for the device on both ends.

    device: as in `synchronize`. `seconds` is 0 until the block has ended.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.device = device
        self.seconds = 0.0
        self._start = 0.0

    def __enter__(self) -> Self:
        synchronize(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        synchronize(self.device)
        self.seconds = time.perf_counter() - self._start


def timed(
    fn: Callable[[], object],
    *,
    repeats: int = 5,
    warmup: int = 1,
    device: str | torch.device | None = None,
) -> list[float]:
    """Seconds of each of `repeats` calls of `fn`, after `warmup` calls that do not count.

    Errors: OptionError for fewer than one repeat or a negative warm-up.
    """
    return alternate({"": fn}, repeats=repeats, warmup=warmup, device=device)[""]


def alternate(
    variants: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 5,
    warmup: int = 1,
    device: str | torch.device | None = None,
) -> dict[str, list[float]]:
    """Seconds of every variant, `repeats` each, run in turns; the first one rotates each round.

    Entry i of every list was measured in round i, so that slow drifts of the machine (heat,
    neighbours) hit all variants alike and the lists can be compared in pairs.
    Errors: OptionError for fewer than one repeat, a negative warm-up, or no variants.
    """
    if repeats < 1 or warmup < 0 or not variants:
        raise OptionError(
            f"timing needs repeats >= 1, warmup >= 0 and a variant to run; got repeats={repeats}, "
            f"warmup={warmup}, {len(variants)} variants"
        )
    for _ in range(warmup):
        for fn in variants.values():
            fn()
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            with Clock(device) as clock:
                variants[name]()
            seconds[name].append(clock.seconds)
    return seconds


def ratio_of_medians(a: Sequence[float], b: Sequence[float]) -> float:
    """median(a) / median(b). Errors: InputError where either is empty or median(b) is not > 0."""
    if not a or not b or statistics.median(b) <= 0:
        raise InputError("a ratio of medians needs times in both lists, those of b above 0")
    return statistics.median(a) / statistics.median(b)


def ratio_interval(
    a: Sequence[float],
    b: Sequence[float],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(ratio of medians, low, high) for times paired by round, as `alternate` gives them.

    A percentile bootstrap over rounds; with r rounds it can only see r different values, so take
    ten rounds or more where the interval is to carry a claim.
    Errors: InputError for unpaired lists, fewer than two rounds, or a time of b that is not > 0.
    """
    if len(a) != len(b) or len(a) < 2 or min(b) <= 0:
        raise InputError(
            "a paired ratio needs two or more rounds in both lists, times of b above 0"
        )
    rows = keyed(seed, "ratio_of_medians").integers(0, len(a), (resamples, len(a)))
    ratios = np.median(np.asarray(a)[rows], axis=1) / np.median(np.asarray(b)[rows], axis=1)
    low, high = quantile_interval(ratios, level)
    return ratio_of_medians(a, b), low, high


def paired_ratio(
    a: Sequence[float],
    b: Sequence[float],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(median of a_i / b_i, low, high) for times paired by round, as `alternate` gives them.

    Where the machine itself drifts, what a round's two times share cancels before the median is
    taken, which `ratio_interval` cannot do. A percentile bootstrap over rounds.
    Errors: InputError for unpaired lists, fewer than two rounds, or a time of b that is not > 0.
    """
    if len(a) != len(b) or len(a) < 2 or min(b) <= 0:
        raise InputError(
            "a paired ratio needs two or more rounds in both lists, times of b above 0"
        )
    ratios = np.asarray(a) / np.asarray(b)
    rows = keyed(seed, "paired_ratio").integers(0, len(a), (resamples, len(a)))
    low, high = quantile_interval(np.median(ratios[rows], axis=1), level)
    return float(np.median(ratios)), low, high
