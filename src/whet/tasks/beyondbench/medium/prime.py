"""Sequences of number theory, each from its first term on (`wide`: from any)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from whet.tasks.beyondbench.medium import tables
from whet.tasks.beyondbench.medium.family import Family

_FIRST = (1,)
_STARTS = range(1, 1001)
_SMALL_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31)
_MODULI = tuple(p for p in range(13, 400) if all(p % q for q in range(2, 20)) or p in (13, 17, 19))


def _listed(table: Callable[[], Sequence[int]]) -> Callable[[int, int], Sequence[int]]:
    """A window of a table whose first entry has place 1."""
    return lambda count, start: table()[start - 1 : start - 1 + count]


def _gaps(count: int, start: int) -> list[int]:
    window = tables.primes()[start - 1 : start + count]
    return [q - p for p, q in itertools.pairwise(window)]


FAMILIES = (
    Family("primes", _listed(tables.primes), faithful=(_FIRST,), wide=(_STARTS,)),
    Family("twin_primes", _listed(tables.twin_primes), faithful=(_FIRST,), wide=(_STARTS,)),
    Family("prime_gaps", _gaps, faithful=(_FIRST,), wide=(_STARTS,)),
    Family(
        "mersenne_numbers",
        lambda count, start: [2**p - 1 for p in tables.primes()[start - 1 : start - 1 + count]],
        faithful=(_FIRST,),
        wide=(range(1, 13),),
    ),
    Family(
        "euler_totient",
        lambda count, start: [tables.totient(n) for n in range(start, start + count)],
        faithful=(_FIRST,),
        wide=(_STARTS,),
    ),
    Family(
        "sum_of_divisors",
        lambda count, start: [tables.sum_of_divisors(n) for n in range(start, start + count)],
        faithful=(_FIRST,),
        wide=(_STARTS,),
    ),
    Family(
        "catalan_numbers",
        lambda count, start: [math.comb(2 * n, n) // (n + 1) for n in range(start, start + count)],
        faithful=((0,),),
        wide=(range(21),),
    ),
    Family(
        "fibonacci_mod_prime",
        lambda count, start, p: [tables.fibonacci(n) % p for n in range(start, start + count)],
        faithful=(_FIRST, (3, 5, 7, 11)),
        wide=(range(1, 50), _MODULI),
    ),
    Family(
        "prime_powers",
        lambda count, p: [p**n for n in range(1, count + 1)],
        faithful=((2, 3, 5),),
        wide=(_SMALL_PRIMES,),
        bound=1000,
    ),
    Family("semiprime_factors", _listed(tables.semiprimes), faithful=(_FIRST,), wide=(_STARTS,)),
    Family(
        "sophie_germain_primes",
        _listed(tables.sophie_germain_primes),
        faithful=(_FIRST,),
        wide=(range(1, 501),),
    ),
)
