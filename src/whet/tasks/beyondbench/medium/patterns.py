"""Patterns of several rules; i counts from 0."""

from __future__ import annotations

import math

from whet.tasks.beyondbench.medium.family import SIGNS, UNCHANGED, Family
from whet.tasks.beyondbench.medium.fibonacci import recurrence

_NONE = (0,)
_SMALL = (1, 2, 3)
_WIDE = range(1, 1000)
_SHIFT = range(-10_000, 10_001)
_STEPS = tuple(d for d in range(-99, 100) if d)
_LEADS = tuple(a for a in range(-97, 98) if a)


def _quadratic(count: int, a: int, b: int, c: int) -> list[int]:
    return [a * i * i + b * i + c for i in range(count)]


def _from_one(count: int, *coefs: int) -> list[int]:
    """A polynomial at 1, 2, ...; coefs: highest power first."""
    terms = [0] * count
    for c in coefs:
        terms = [n * x + c for n, x in enumerate(terms, start=1)]
    return terms


def _interleaved(count: int, start: int, step: int, first: int, ratio: int) -> list[int]:
    return [first * ratio ** (i // 2) if i % 2 else start + step * (i // 2) for i in range(count)]


def _conditional(count: int, base: int, step: int) -> list[int]:
    terms = [base, base + step, base + 2 * step]
    for i in range(3, count):
        terms.append(2 * terms[-1] - terms[-2] if i % 2 else 2 * terms[-1])
    return terms[:count]


def _transformed(count: int, start: int, step: int, factor: int, add: int) -> list[int]:
    """count - 1 terms are shown: an arithmetic progression in the first half of count + 1 terms,
    then its terms again, times factor, plus add."""
    half = (count + 1) // 2
    first = [start + step * i for i in range(half)]
    return [*first, *(factor * x + add for x in first)][:count]


def _operations(count: int, start: int) -> list[int]:
    terms = [start]
    for i in range(1, count):
        x = terms[-1]
        terms.append((x + i, 2 * x, x + i * i)[i % 3])
    return terms


def _by_place(place: int) -> int:
    return (place + 10, 2 * place, place * place)[place % 3]


def _spiral(i: int) -> int:
    ring = math.isqrt(i)
    return 4 * ring + (i - ring * ring) + 1


FAMILIES = (
    Family(
        "nested_arithmetic_geometric",
        lambda count, s, d, m: [(s + i * d) * m ** (i % 3) for i in range(count)],
        faithful=(range(1, 6), _SMALL, (2, 3)),
        wide=(range(1, 31), range(1, 31), range(2, 10)),
    ),
    Family(
        "polynomial_quadratic",
        _from_one,
        faithful=(_SMALL, range(-2, 4), range(6)),
        wide=(_LEADS, range(-99, 100), _SHIFT),
        scales=UNCHANGED,
        shifts=_NONE,
        indexed=False,
    ),
    Family(
        "polynomial_cubic",
        _from_one,
        faithful=((-1, 1), range(-1, 3), range(-2, 4), range(6)),
        wide=(_LEADS, range(-99, 100), range(-99, 100), _SHIFT),
        scales=UNCHANGED,
        shifts=_NONE,
        indexed=False,
    ),
    Family(
        "interleaved_sequences",
        _interleaved,
        faithful=(_SMALL, (1, 2), (2, 3, 4), (2, 3)),
        wide=(_SHIFT, range(1, 100), range(1, 100), range(2, 10)),
        scales=UNCHANGED,  # two terms fix a geometric progression only where nothing is added
        shifts=_NONE,
        indexed=False,
    ),
    Family(
        "conditional_pattern",
        _conditional,
        faithful=(range(2, 6), (1,)),
        wide=(range(-999, 1000), _STEPS),
        scales=UNCHANGED,
        indexed=False,
    ),
    Family(
        "multi_recursive",
        lambda count, coefs, starts: recurrence(count, starts, coefs),
        faithful=(
            tuple((a, b, c) for a in SIGNS for b in SIGNS for c in (0, 1)),
            tuple((a, b, c) for a in _SMALL for b in _SMALL for c in _SMALL),
        ),
        wide=(
            tuple(
                (a, b, c)
                for a in range(-3, 4)
                for b in range(-3, 4)
                for c in range(-3, 4)
                if a * b * c and a + b + c != 1
            ),
            tuple((a, b, c) for a in range(1, 30) for b in range(1, 30) for c in range(1, 30)),
        ),
        scales=UNCHANGED,
        indexed=False,
        least=7,  # three states and the shift: see `family`
    ),
    Family(
        "pattern_transformation",
        _transformed,
        faithful=(_SMALL, (1, 2), (2,), _SMALL),
        wide=(_WIDE, _STEPS, range(2, 98), _SHIFT),
        scales=UNCHANGED,
        shifts=_NONE,
        indexed=False,
    ),
    Family(
        "modular_arithmetic",
        lambda count, base, m: [(base ** (i + 1) + (i + 1) ** 2) % m + 1 for i in range(count)],
        faithful=((2, 3, 4), (5, 7, 11)),
        wide=(range(2, 12), range(50, 550)),
    ),
    Family(
        "alternating_operations",
        _operations,
        faithful=(range(2, 6),),
        wide=(_WIDE,),
        indexed=False,
    ),
    Family(
        "layered_differences",
        _quadratic,
        faithful=(_SMALL, range(1, 5), range(6)),
        wide=(_LEADS, range(-99, 100), _SHIFT),
        scales=UNCHANGED,
        shifts=_NONE,
        indexed=False,
    ),
    Family(
        "position_dependent",
        lambda count, start: [_by_place(place) for place in range(start, start + count)],
        faithful=((1,),),
        wide=(range(1, 1001),),
    ),
    Family(
        "spiral_pattern",
        lambda count, start, step: [_spiral(start + step * i) for i in range(count)],
        faithful=(_NONE, (1,)),
        wide=(range(50), range(1, 98)),
    ),
)
