"""Number-theoretic tables and exact roundings that the rules of sequences read from."""

from __future__ import annotations

import functools
import itertools
import math
from decimal import Decimal, localcontext

_SIEVED = 120_000  # holds 1,200 twin primes, and 600 of Sophie Germain with their partners
_CONVOLVED = 96


@functools.cache
def smallest_factors(limit: int = _SIEVED) -> tuple[int, ...]:
    """The smallest prime factor of every number below `limit` (itself for primes, 0 and 1)."""
    found = list(range(limit))
    for p in range(2, math.isqrt(limit) + 1):
        if found[p] == p:
            for multiple in range(p * p, limit, p):
                if found[multiple] == multiple:
                    found[multiple] = p
    return tuple(found)


@functools.cache
def primes() -> tuple[int, ...]:
    """All primes below 120,000."""
    return tuple(n for n, p in enumerate(smallest_factors()) if n > 1 and n == p)


@functools.cache
def twin_primes() -> tuple[int, ...]:
    """Primes p whose p + 2 is one."""
    every = primes()
    return tuple(p for p, q in itertools.pairwise(every) if q == p + 2)


@functools.cache
def sophie_germain_primes() -> tuple[int, ...]:
    """Primes p whose 2p + 1 is one."""
    known = frozenset(primes())
    return tuple(p for p in primes() if 2 * p + 1 < _SIEVED and 2 * p + 1 in known)


@functools.cache
def semiprimes() -> tuple[int, ...]:
    """Products of two primes, ascending, below 20,000."""
    return tuple(n for n in range(4, 20_000) if sum(factorised(n).values()) == 2)


def factorised(n: int) -> dict[int, int]:
    """Prime factors of n < 120,000 with their exponents."""
    found: dict[int, int] = {}
    while n > 1:
        p = smallest_factors()[n]
        found[p] = found.get(p, 0) + 1
        n //= p
    return found


def totient(n: int) -> int:
    """How many of 1..n share no factor with n."""
    return math.prod((p - 1) * p ** (k - 1) for p, k in factorised(n).items())


def sum_of_divisors(n: int) -> int:
    """Sum of all divisors of n, n among them."""
    return math.prod((p ** (k + 1) - 1) // (p - 1) for p, k in factorised(n).items())


@functools.cache
def fibonacci(n: int) -> int:
    """1, 1, 2, 3, 5, ... from n = 1."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


@functools.cache
def pell(n: int) -> int:
    """2, 5, 12, 29, ... from n = 1: each is twice the last one and the one before that."""
    a, b = 1, 2
    for _ in range(n - 1):
        a, b = b, 2 * b + a
    return b


@functools.cache
def pell_solution(n: int) -> int:
    """The least x > 1 with x^2 - n y^2 = 1, from the continued fraction of the root of n.

    A square n has no such x: then n^2 + 1, as the paper's code defines it.
    """
    root = math.isqrt(n)
    if root * root == n:
        return n * n + 1
    m, d, a = 0, 1, root
    before, x = 1, root
    y_before, y = 0, 1
    while x * x - n * y * y != 1:
        m = d * a - m
        d = (n - m * m) // d
        a = (root + m) // d
        before, x = x, a * x + before
        y_before, y = y, a * y + y_before
    return x


@functools.cache
def self_convolution(modulus: int) -> tuple[int, ...]:
    """a(0) = 1, a(n) = sum of a(i) a(n-1-i) over i < n, plus n; above `modulus` its remainder.

    The first 96 terms. Remainders may be taken as the terms are made: they are those of the
    whole terms.
    """
    terms = [1]
    for n in range(1, _CONVOLVED):
        total = sum(x * y for x, y in zip(terms, reversed(terms), strict=True)) + n
        terms.append(total % modulus if total > modulus else total)
    return tuple(terms)


@functools.cache
def halved_double_factorial(n: int) -> int:
    """(2n - 1)!! / 2^(n-1), rounded down."""
    return math.prod(range(1, 2 * n, 2)) >> (n - 1)


@functools.cache
def exponential_floor(n: int, k: int) -> int:
    """n e^(k/n) rounded down."""
    with localcontext() as context:
        context.prec = 60  # the value is irrational: no integer is near to so many digits
        return int(n * (Decimal(k) / n).exp())


@functools.cache
def logarithm_floor(n: int) -> int:
    """n / ln(n + e) rounded down."""
    with localcontext() as context:
        context.prec = 60
        return int(n / (n + Decimal(1).exp()).ln())
