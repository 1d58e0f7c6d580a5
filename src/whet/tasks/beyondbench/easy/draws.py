"""How the numbers of an easy problem are drawn, and how many lists of them there are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_FIXED_HIGH = 393  # the paper's largest palindrome
_MULTIPLE = 3
_LEAD = 10  # the planted maximum is at least so far above the low end


def _needs_nothing(size: int, low: int, high: int) -> str:
    return ""


@dataclass(frozen=True)
class Draw:
    """Drawing `size` numbers from low..high (both included).

    numbers: the list, drawn from a generator alone. log10_count: log10 of the number of lists
    that can come out. lacks: what the range must have and has not ("" where it can be drawn).
    """

    numbers: Callable[[np.random.Generator, int, int, int], list[int]]
    log10_count: Callable[[int, int, int], float]
    lacks: Callable[[int, int, int], str] = _needs_nothing


def _uniform(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    found: list[int] = rng.integers(low, high + 1, size=size).tolist()
    return found


def _mixed(rng: np.random.Generator, *parts: Sequence[int]) -> list[int]:
    """The parts in one list, in random order."""
    every = [x for part in parts for x in part]
    return [every[i] for i in rng.permutation(len(every)).tolist()]


def _kept(
    rng: np.random.Generator, size: int, low: int, high: int, keep: Callable[[int], bool]
) -> list[int]:
    """`size` numbers of the range that `keep` admits, uniform. At least one must be admitted."""
    found: list[int] = []
    while len(found) < size:
        found += filter(keep, _uniform(rng, size, low, high))
    return found[:size]


def _width(low: int, high: int) -> int:
    return high - low + 1


def _log10_split(size: int, counts: Sequence[int], marked: int, others: int) -> float:
    """log10 of the lists in which k in `counts` places hold one of `marked` numbers."""
    return math.log10(
        sum(math.comb(size, k) * marked**k * others ** (size - k) for k in counts)
    )  # exact integers inside: log10 takes them whatever their length


# --- independent numbers ------------------------------------------------------------------------


def _sample(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    n = _width(low, high)
    return [low + x for x in rng.choice(n, size=size, replace=size > n).tolist()]


def _log10_samples(size: int, low: int, high: int) -> float:
    n = _width(low, high)
    return math.log10(math.perm(n, size)) if size <= n else size * math.log10(n)


def _log10_lists(size: int, low: int, high: int) -> float:
    return size * math.log10(_width(low, high))


def _lacks_negative(size: int, low: int, high: int) -> str:
    return "" if low < 0 else "a negative number"


SAMPLE = Draw(_sample, _log10_samples)
"""Distinct numbers while the range has enough of them, else with repetition."""
REPEATED = Draw(_uniform, _log10_lists)
"""Numbers with repetition."""
SIGNED = Draw(_uniform, _log10_lists, _lacks_negative)
"""Numbers with repetition, of which some may be negative."""


def _two_values(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    while True:
        found = _sample(rng, size, low, high)
        if len(set(found)) > 1:
            return found


def _log10_two_values(size: int, low: int, high: int) -> float:
    n = _width(low, high)
    return math.log10(math.perm(n, size) if size <= n else n**size - n)


TWO_VALUES = Draw(
    _two_values,
    _log10_two_values,
    lambda size, low, high: "" if high > low else "two distinct numbers",
)
"""As SAMPLE, with at least two distinct values."""


# --- pairs --------------------------------------------------------------------------------------


def _relation(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    kind = int(rng.integers(3))
    if kind == 2:
        return _uniform(rng, 1, low, high) * 2
    less, more = sorted(_sample(rng, 2, low, high))
    return [less, more] if kind == 0 else [more, less]


RELATION = Draw(
    _relation,
    _log10_lists,
    lambda size, low, high: "" if high > low else "two distinct numbers",
)
"""Two numbers; each draw is less, greater or equal with probability one third.

A list of distinct problems keeps these shares only while equal pairs last: there is one for every
number of the range. -100..100 has 201 of them, about 25 in the test split, so that long lists of
`faithful` hold hardly any; a billion either way has enough for every list.
"""


def _dividend(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    return _uniform(rng, 1, low, high) + _kept(rng, 1, low, high, bool)


def _divisors(low: int, high: int) -> int:
    return _width(low, high) - (low <= 0 <= high)


DIVISION = Draw(
    _dividend,
    lambda size, low, high: math.log10(_width(low, high) * _divisors(low, high)),
    lambda size, low, high: "" if _divisors(low, high) else "a number other than 0",
)
"""Two numbers, the second not 0."""


# --- numbers of two sorts -----------------------------------------------------------------------


def _halves(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    negative = size // 2
    return _mixed(
        rng,
        _uniform(rng, negative, low, min(-1, high)),
        _uniform(rng, size - negative, max(1, low), high),
    )


def _log10_halves(size: int, low: int, high: int) -> float:
    below, above = min(-1, high) - low + 1, high - max(1, low) + 1
    return _log10_split(size, [size // 2], below, above)


HALVES = Draw(
    _halves,
    _log10_halves,
    lambda size, low, high: "" if low < 0 < high else "negative and positive numbers",
)
"""Half negative, half positive numbers."""


def _some(size: int) -> range:
    """How many places hold numbers of the counted sort: from 1 to half of them."""
    return range(1, max(1, size // 2) + 1)


def _pick(rng: np.random.Generator, counts: range) -> int:
    return counts[int(rng.integers(len(counts)))]


@functools.lru_cache(maxsize=32)
def palindromes(low: int, high: int) -> tuple[int, ...]:
    """Positive numbers of low..high that read the same backwards."""
    found: list[int] = []
    for digits in range(1, len(str(max(high, 0))) + 1):
        half = (digits + 1) // 2
        for first in range(10 ** (half - 1), 10**half):
            text = str(first)
            found.append(int(text + text[::-1][digits % 2 :]))
    return tuple(x for x in found if max(low, 1) <= x <= high)


def _palindromic(rng: np.random.Generator, size: int, low: int, high: int, top: int) -> list[int]:
    pool = palindromes(1, top)
    k = _pick(rng, _some(size))
    return _mixed(
        rng,
        [pool[i] for i in rng.integers(len(pool), size=k).tolist()],
        _kept(rng, size - k, max(low, 10), high, lambda x: str(x) != str(x)[::-1]),
    )


def _others(low: int, high: int) -> int:
    """How many numbers of at least two digits are no palindromes."""
    low = max(low, 10)
    return max(0, high - low + 1 - len(palindromes(low, high)))


def _lacks_others(size: int, low: int, high: int) -> str:
    return "" if _others(low, high) else "a number above 9 that is no palindrome"


PALINDROMES = Draw(
    lambda rng, size, low, high: _palindromic(rng, size, low, high, _FIXED_HIGH),
    lambda size, low, high: _log10_split(
        size, _some(size), len(palindromes(1, _FIXED_HIGH)), _others(low, high)
    ),
    _lacks_others,
)
"""Palindromes of 1..393 (whatever the range), and other numbers of two digits or more."""
WIDE_PALINDROMES = Draw(
    lambda rng, size, low, high: _palindromic(rng, size, low, high, high),
    lambda size, low, high: _log10_split(
        size, _some(size), len(palindromes(1, high)), _others(low, high)
    ),
    _lacks_others,
)
"""Palindromes up to the high end, and other numbers of two digits or more."""


def _roots(low: int, high: int) -> range:
    """Roots of the squares among the positive numbers of the range."""
    return range(math.isqrt(max(low, 1) - 1) + 1, math.isqrt(max(high, 0)) + 1)


def is_square(x: int) -> bool:
    """Whether x is the square of a whole number."""
    return x >= 0 and math.isqrt(x) ** 2 == x


def _squares(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    roots = _roots(low, high)
    k = _pick(rng, _some(size))
    return _mixed(
        rng,
        [roots[i] ** 2 for i in rng.integers(len(roots), size=k).tolist()],
        _kept(rng, size - k, max(low, 1), high, lambda x: not is_square(x)),
    )


def _counts_of_squares(low: int, high: int) -> tuple[int, int]:
    roots = len(_roots(low, high))
    return roots, max(0, high - max(low, 1) + 1 - roots)


SQUARES = Draw(
    _squares,
    lambda size, low, high: _log10_split(size, _some(size), *_counts_of_squares(low, high)),
    lambda size, low, high: (
        "" if all(_counts_of_squares(low, high)) else "positive squares and other positive numbers"
    ),
)
"""Squares and other numbers, all positive."""


def _third(size: int) -> range:
    return range(max(1, size // 3), max(1, 2 * size // 3) + 1)


def _multiples(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    k = _pick(rng, _third(size))
    return _mixed(
        rng,
        [_MULTIPLE * x for x in _uniform(rng, k, -(-low // _MULTIPLE), high // _MULTIPLE)],
        _kept(rng, size - k, low, high, lambda x: x % _MULTIPLE != 0),
    )


def _counts_of_multiples(low: int, high: int) -> tuple[int, int]:
    multiples = max(0, high // _MULTIPLE + (-low // _MULTIPLE) + 1)
    return multiples, _width(low, high) - multiples


MULTIPLES = Draw(
    _multiples,
    lambda size, low, high: _log10_split(size, _third(size), *_counts_of_multiples(low, high)),
    lambda size, low, high: (
        "" if all(_counts_of_multiples(low, high)) else "multiples of 3 and other numbers"
    ),
)
"""Multiples of 3 and other numbers."""


# --- repeated values ----------------------------------------------------------------------------


def _with_mode(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    return _mixed(rng, _uniform(rng, size - 2, low, high), _uniform(rng, 1, low, high) * 2)


def _log10_with_mode(size: int, low: int, high: int) -> float:
    n = _width(low, high)
    return math.log10(n**size - math.perm(n, size))  # perm is 0 where size > n


WITH_MODE = Draw(_with_mode, _log10_with_mode)
"""Numbers with repetition, one value added twice."""


def _few_values(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    n = _width(low, high)
    values = _sample(rng, int(rng.integers(min(n, size // 2), min(n, size) + 1)), low, high)
    return [values[i] for i in rng.integers(len(values), size=size).tolist()]


FEW_VALUES = Draw(_few_values, _log10_lists)
"""Draws with repetition from a set of size/2 to size values."""


def _max_copies(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    largest = int(rng.integers(low + _LEAD, high + 1))
    copies = int(rng.integers(1, min(3, size) + 1))
    return _mixed(rng, [largest] * copies, _uniform(rng, size - copies, low, largest - 1))


def _log10_max_copies(size: int, low: int, high: int) -> float:
    # Sum over c copies of the maximum m: C(size, c) (m - low)^(size - c), m - low from _LEAD up.
    logs = [
        math.log10(math.comb(size, c)) + _log10_power_sum(size - c, _LEAD, high - low)
        for c in range(1, min(3, size) + 1)
    ]
    return max(logs) + math.log10(sum(10 ** (x - max(logs)) for x in logs))


def _log10_power_sum(p: int, first: int, last: int) -> float:
    """log10 of the sum of j^p for j in first..last."""
    if last <= 1_000_000:
        total = float(((np.arange(first, last + 1) / last) ** p).sum())
    elif p == 0:
        total = last - first + 1
    else:  # Euler and Maclaurin, exact to 1e-12 for so many terms
        total = last / (p + 1) + 0.5 + p / (12 * last)
        total -= sum((j / last) ** p for j in range(1, first))
    return math.log10(total) + p * math.log10(last)


MAX_COPIES = Draw(
    _max_copies,
    _log10_max_copies,
    lambda size, low, high: "" if high - low >= _LEAD else f"{_LEAD + 1} numbers between its ends",
)
"""A maximum at least 10 above the low end, in one to three copies, and smaller numbers."""


def _two_digits(rng: np.random.Generator, size: int, low: int, high: int) -> list[int]:
    return _uniform(rng, size, max(low, 10), high)


TWO_DIGITS = Draw(
    _two_digits,
    lambda size, low, high: _log10_lists(size, max(low, 10), high),
    lambda size, low, high: "" if high >= 10 else "a number of two digits",
)
"""Positive numbers of at least two digits, with repetition."""
