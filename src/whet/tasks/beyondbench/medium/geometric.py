"""Geometric sequences, powers, factorials and figurate numbers; n counts from 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from whet.tasks.beyondbench.medium.family import SIGNS, Family, Term

_FIRST = (1,)
_STARTS = range(1, 1001)
_LARGEST_EXPONENT = 64


def _geometric(count: int, first: int, halves: int) -> list[Term]:
    """Ratio halves / 2."""
    terms = [first * Fraction(halves, 2) ** i for i in range(count)]
    return [int(x) if x.denominator == 1 else x for x in terms]


def _of_n(formula: Callable[[int], int]) -> Callable[[int, int], list[int]]:
    return lambda count, start: [formula(n) for n in range(start, start + count)]


def _tower(count: int, base: int, modulus: int) -> list[int]:
    """x(1) = base, x(n) = base^x(n-1); modulus 0: none, the terms end before one of 20 digits."""
    terms = [base]
    while len(terms) < count:
        if modulus:
            terms.append(pow(base, terms[-1], modulus))
        elif terms[-1] <= _LARGEST_EXPONENT:
            terms.append(base ** terms[-1])
        else:
            break
    return terms


FAMILIES = (
    Family(
        "geometric",
        _geometric,
        faithful=(range(1, 11), (4, 6, 8, 10, 1, 3, 5, 7)),
        wide=(range(1, 1000), range(4, 40, 2)),
        scales=SIGNS,
        indexed=False,
        whole=False,
    ),
    Family("power_squares", _of_n(lambda n: n**2), faithful=(_FIRST,), wide=(_STARTS,)),
    Family("power_cubes", _of_n(lambda n: n**3), faithful=(_FIRST,), wide=(_STARTS,)),
    Family(
        "exponential",
        lambda count, base: [base**n for n in range(1, count + 1)],
        faithful=(range(2, 6),),
        wide=(range(2, 51),),
    ),
    Family("factorial", _of_n(math.factorial), faithful=(_FIRST,), wide=(range(1, 13),)),
    Family(
        "double_exponential",
        _tower,
        faithful=((2,), (0,)),
        wide=(range(2, 12), range(500, 1000)),
    ),
    Family(
        "alternating_geometric",
        lambda count, first, ratio: [first * (-ratio) ** i for i in range(count)],
        faithful=(range(1, 6), (2, 3)),
        wide=(range(1, 1000), range(2, 20)),
        scales=SIGNS,
        indexed=False,
    ),
    Family(
        "compound_growth",
        lambda count, start, base: [n * base**n for n in range(start, start + count)],
        faithful=(_FIRST, (2,)),
        wide=(range(1, 21), range(2, 6)),
    ),
    Family(
        "triangular_numbers", _of_n(lambda n: n * (n + 1) // 2), faithful=(_FIRST,), wide=(_STARTS,)
    ),
    Family(
        "pentagonal_numbers",
        _of_n(lambda n: n * (3 * n - 1) // 2),
        faithful=(_FIRST,),
        wide=(_STARTS,),
    ),
)
