"""Intervals and tests for per-item outcomes. numpy only; the same seed gives the same interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from whet.errors import InputError, OptionError
from whet.rng import keyed

Floats = NDArray[np.float64]
Statistic = Literal["difference", "ratio"]

_CHUNK = 1 << 21  # numbers drawn at once: 16 MiB of indices, as fast as any larger size


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval for k successes among n items (Wilson, JASA 22, 1927).

    Stays inside [0, 1] and keeps a width at k = 0 and k = n, where a bootstrap has none.
    n = 0 gives (0, 1). Errors: OptionError unless 0 <= k <= n and 0 < level < 1.
    """
    _check_level(level)
    if not 0 <= k <= n:
        raise OptionError(f"k successes among n items need 0 <= k <= n, got k={k}, n={n}")
    if n == 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    p = k / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # The ends are exact there; rounding would leave them 1e-17 off and outside [0, 1].
    low = 0.0 if k == 0 else centre - half
    high = 1.0 if k == n else centre + half
    return low, high


def newcombe(k: int, n: int, j: int, m: int, level: float = 0.95) -> tuple[float, float, float]:
    """k/n - j/m of two independent samples with its interval (value, low, high).

    Newcombe, "Interval estimation for the difference between independent proportions", 1998,
    method 10: the two Wilson intervals combined. Errors: OptionError as in `wilson`, and where a
    sample has no item.
    """
    if n < 1 or m < 1:
        raise OptionError(f"a difference of shares needs items in both samples, got n={n}, m={m}")
    p, q = k / n, j / m
    (p_low, p_high), (q_low, q_high) = wilson(k, n, level), wilson(j, m, level)
    low = p - q - math.hypot(p - p_low, q_high - q)
    return p - q, low, p - q + math.hypot(p_high - p, q - q_low)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided p-value that paired outcomes a and b (booleans, [n]) differ only by chance.

    A binomial test with p = 1/2 on the pairs that disagree (McNemar, Psychometrika 12, 1947);
    1.0 where none does. Errors: InputError where shapes differ or a value is not 0 or 1.
    """
    x, y = _paired(a, b, at_least=0)
    if not np.isin(np.concatenate([x, y]), (0.0, 1.0)).all():
        raise InputError("McNemar's test takes outcomes that are 0 or 1")
    only_a = int(np.count_nonzero(x > y))
    only_b = int(np.count_nonzero(x < y))
    n = only_a + only_b
    term, tail = 1, 1  # C(n, 0), and the running sum of C(n, i)
    for i in range(min(only_a, only_b)):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def bootstrap_mean(
    values: ArrayLike, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high): a percentile bootstrap over items; values [n].

    For shares of successes prefer `wilson`: where all items agree, this interval has no width.
    Errors: InputError for fewer than two items or a value that is not finite; OptionError for a
    bad level or number of resamples.
    """
    x, _ = _paired(values, values, at_least=2)
    means = np.concatenate([x[rows].mean(axis=1) for rows in _resampled(len(x), resamples, seed)])
    low, high = quantile_interval(means, level)
    return float(x.mean()), low, high


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Statistic = "difference",
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(value, low, high) of mean(a) - mean(b) or mean(a) / mean(b) over paired items, [n] each.

    Items are resampled in pairs (Efron, Ann. Stat. 7, 1979; percentile interval). The same n and
    seed draw the same items whatever the statistic.
    Errors: InputError where shapes differ, there are fewer than two items, a value is not finite,
    or a ratio divides by a mean of zero (also where enough resamples do to leave the interval
    without an end); OptionError for an unknown statistic, a bad level or number of resamples.
    """
    if statistic not in ("difference", "ratio"):
        raise OptionError(f"statistic is {statistic!r}; allowed are 'difference' and 'ratio'")
    x, y = _paired(a, b, at_least=2)
    if statistic == "ratio" and y.mean() == 0:
        raise InputError("a ratio of means needs a second mean that is not 0: use the difference")
    draws = [
        _compare(x[rows].mean(axis=1), y[rows].mean(axis=1), statistic)
        for rows in _resampled(len(x), resamples, seed)
    ]
    low, high = quantile_interval(np.concatenate(draws), level)
    value = float(_compare(x.mean(keepdims=True), y.mean(keepdims=True), statistic)[0])
    return value, low, high


def two_level(
    a: Floats,
    b: Floats | None,
    statistic: Statistic,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(value, low, high) of mean(a) - mean(b) or mean(a) / mean(b) at 95 %; a, b [runs, items].

    Runs and items are resampled, each with replacement and independently (a percentile bootstrap),
    the same ones in a and b. b: None for the mean of a alone.
    Errors: InputError where a ratio's interval has no finite end.
    """
    runs, items = a.shape
    rng = keyed(seed, "two-level", runs, items)
    by_run = rng.multinomial(runs, np.full(runs, 1 / runs), resamples) / runs
    by_item = rng.multinomial(items, np.full(items, 1 / items), resamples) / items

    def means(x: Floats) -> Floats:
        return np.asarray(((by_run @ x) * by_item).sum(1))

    if b is None:
        value, draws = float(a.mean()), means(a)
    elif statistic == "difference":
        value, draws = float(a.mean() - b.mean()), means(a) - means(b)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            value, draws = float(a.mean() / b.mean()), means(a) / means(b)
    low, high = quantile_interval(draws, 0.95)
    # Where every draw is one number, rounding leaves the mean beside it.
    return value, min(low, value), max(high, value)


def quantile_interval(draws: Floats, level: float) -> tuple[float, float]:
    """The central `level` share of `draws`, ends rounded outwards to draws that occurred.

    A draw without a value (NaN, 0/0) counts as the worst on either side.
    Errors: OptionError for a bad level; InputError where an end is not finite.
    """
    _check_level(level)
    missing = np.isnan(draws)
    tail = (1 - level) / 2
    low = float(np.quantile(np.where(missing, -np.inf, draws), tail, method="lower"))
    high = float(np.quantile(np.where(missing, np.inf, draws), 1 - tail, method="higher"))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("too many resamples divide by zero for an interval: use the difference")
    return low, high


def _compare(x: Floats, y: Floats, statistic: Statistic) -> Floats:
    if statistic == "difference":
        return x - y
    with np.errstate(divide="ignore", invalid="ignore"):
        return x / y


def _resampled(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Chunks [r, n] of item indices, `resamples` rows in all."""
    if resamples < 1:
        raise OptionError(f"resamples is {resamples}; needed is at least 1")
    rng = keyed(seed, "bootstrap", n)
    rows = max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        yield rng.integers(0, n, (min(rows, resamples - start), n))


def _paired(a: ArrayLike, b: ArrayLike, at_least: int) -> tuple[Floats, Floats]:
    x, y = _vector(a), _vector(b)
    if len(x) != len(y):
        raise InputError(f"paired items need equal lengths, got {len(x)} and {len(y)}")
    if len(x) < at_least:
        raise InputError(f"an interval needs at least {at_least} items, got {len(x)}")
    return x, y


def _vector(values: ArrayLike | Sequence[float]) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise InputError(f"items are a flat list of finite numbers, got shape {x.shape}")
    return x


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise OptionError(f"level is {level}; allowed is a share above 0 and below 1, as 0.95")
