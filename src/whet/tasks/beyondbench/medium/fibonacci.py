"""Fibonacci-like sequences: each term follows linearly from the two or three before it."""

from __future__ import annotations

import math

from whet.tasks.beyondbench.medium.family import SIGNS, UNCHANGED, Family

_STARTS = (1, 2, 3)
_WIDE_STARTS = range(1, 1000)
_COPRIME = tuple((a, b) for a in range(1, 100) for b in range(1, 100) if math.gcd(a, b) == 1)


def recurrence(count: int, starts: tuple[int, ...], coefs: tuple[int, ...]) -> list[int]:
    """x(n) = coefs[0] x(n-1) + coefs[1] x(n-2) + ..."""
    terms = list(starts)
    while len(terms) < count:
        terms.append(sum(c * x for c, x in zip(coefs, reversed(terms), strict=False)))
    return terms[:count]


def _alternating(count: int, first: int, second: int) -> list[int]:
    terms = [first, second]
    for n in range(2, count):
        total = terms[-1] + terms[-2]
        terms.append(-total if n % 2 == 0 else total)
    return terms[:count]


FAMILIES = (
    Family(
        "fibonacci",
        lambda count, a, b: recurrence(count, (a, b), (1, 1)),
        faithful=(_STARTS, _STARTS),
        wide=(_WIDE_STARTS, _WIDE_STARTS),
        scales=SIGNS,
        indexed=False,
    ),
    Family(
        "lucas",
        lambda count, s: recurrence(count, (2 * s, s), (1, 1)),
        faithful=(_STARTS,),
        wide=(_WIDE_STARTS,),
        scales=SIGNS,
        indexed=False,
    ),
    Family(
        "tribonacci",
        lambda count, a, b, c: recurrence(count, (a, b, c), (1, 1, 1)),
        faithful=(_STARTS, _STARTS, _STARTS),
        wide=(_WIDE_STARTS, _WIDE_STARTS, _WIDE_STARTS),
        scales=SIGNS,
        indexed=False,
    ),
    Family(
        "modified_recursive",
        lambda count, coefs, a, b: recurrence(count, (a, b), coefs),
        faithful=(((1, 2), (2, 1), (1, -1), (2, -1)), _STARTS, _STARTS),
        # Where the coefficients add up to 1, a shift of the terms is no other sequence.
        wide=(
            tuple((p, q) for p in range(-5, 6) for q in range(-5, 6) if p * q and p + q != 1),
            _WIDE_STARTS,
            _WIDE_STARTS,
        ),
        scales=UNCHANGED,
        indexed=False,
    ),
    Family(
        "alternating_fibonacci",
        _alternating,
        faithful=(_STARTS, _STARTS),
        wide=(_WIDE_STARTS, _WIDE_STARTS),
        scales=SIGNS,
        indexed=False,
    ),
    Family(
        "scaled_fibonacci",
        lambda count, scale, starts: [scale * x for x in recurrence(count, starts, (1, 1))],
        faithful=((2, 3, 5, 7), tuple((a, b) for a in _STARTS for b in _STARTS)),
        wide=(range(2, 98), _COPRIME),  # coprime: the scale can be told from the starts
        scales=SIGNS,
        indexed=False,
    ),
)
