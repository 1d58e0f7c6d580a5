"""Sequences of rounded and reduced formulas. The paper's have no parameter: n counts from 1.

`wide` moves the start, takes every so many-th term, or changes a constant of the formula.
"""

from __future__ import annotations

import math

from whet.tasks.beyondbench.medium import tables
from whet.tasks.beyondbench.medium.family import Family

_FIRST = (1,)
_ROOTS = tuple(k for k in range(2, 98) if math.isqrt(k) ** 2 != k)


def _radical_recurrence(count: int, first: int, k: int) -> list[int]:
    """x(n) = floor(sqrt(k x(n-1) + n^2))."""
    terms = [first]
    for n in range(2, count + 1):
        terms.append(math.isqrt(k * terms[-1] + n * n))
    return terms


def _nested_radical(n: int) -> int:
    # The floor of a root does not change where what stands under it is rounded down first.
    return math.isqrt(n + math.isqrt(n + math.isqrt(n)))


def _quotient(n: int, k: int, m: int) -> int:
    # floor((n + sqrt k) / (m + 1/n)); rounding n sqrt k down first changes nothing.
    return (n * n + math.isqrt(n * n * k)) // (m * n + 1)


def _reduced(value: int, modulus: int) -> int:
    return value % modulus if value > modulus else value


FAMILIES = (
    Family(
        "radical_recurrence",
        _radical_recurrence,
        faithful=((2,), (1,)),
        wide=(range(1, 50), range(2, 98)),
    ),
    Family(
        "transcendental_floor",
        lambda count, start, k: [tables.exponential_floor(start + i, k) for i in range(count)],
        faithful=(_FIRST, (1,)),
        wide=(range(1, 60), range(1, 25)),
    ),
    Family(
        "nested_radical",
        lambda count, start, step: [_nested_radical(start + step * i) for i in range(count)],
        faithful=(_FIRST, (1,)),
        wide=(range(1, 50), range(1, 98)),
    ),
    Family(
        "algebraic_irrationals",
        lambda count, start, k, m: [_quotient(start + i, k, m) for i in range(count)],
        faithful=(_FIRST, (5,), (2,)),
        wide=(range(1, 6), _ROOTS, range(2, 14)),
    ),
    Family(
        "continued_fraction",
        lambda count, start, c: [tables.pell(n) % (n + c) for n in range(start, start + count)],
        faithful=(_FIRST, (10,)),
        wide=(range(1, 50), range(10, 110)),
    ),
    Family(
        "diophantine_solutions",
        lambda count, start, modulus: [
            tables.pell_solution(n) % modulus for n in range(start, start + count)
        ],
        faithful=(_FIRST, (100,)),
        wide=(range(1, 50), range(100, 200)),
    ),
    Family(
        "modular_arithmetic",
        lambda count, start, c: [
            (n**3 + tables.fibonacci(n)) % (n + c) for n in range(start, start + count)
        ],
        faithful=(_FIRST, (7,)),
        wide=(range(1, 50), range(7, 107)),
    ),
    Family(
        "catalan_like",
        lambda count, start, modulus: tables.self_convolution(modulus)[start : start + count],
        faithful=((0,), (1000,)),
        wide=(range(50), range(900, 1000)),
    ),
    Family(
        "lambert_w",
        lambda count, start, step: [tables.logarithm_floor(start + step * i) for i in range(count)],
        faithful=(_FIRST, (1,)),
        wide=(range(1, 50), range(1, 98)),
    ),
    Family(
        "hypergeometric_like",
        lambda count, start, modulus: [
            _reduced(tables.halved_double_factorial(n), modulus)
            for n in range(start, start + count)
        ],
        faithful=(_FIRST, (1000,)),
        wide=(range(1, 50), range(900, 1000)),
    ),
)
