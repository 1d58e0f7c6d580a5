"""Systems of congruences: the smallest number with given remainders, under further conditions."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from whet import rng as rng_
from whet.tasks.answers import integer, last_block, last_integer, only_integer, read
from whet.tasks.base import Instance, Mode, Verdict
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level

_PROVEN_BELOW = 3_317_044_064_679_887_385_961_981
"""Under it, Miller-Rabin with the first 13 primes as bases is a proof (Sorenson and Webster,
"Strong pseudoprimes to twelve prime bases", 2017)."""
_BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
_LOG10_PRODUCT = 20.0  # of the moduli in wide mode, so that every prime searched stays proven
_TURNS = 50  # in wide mode a range begins below this many products of the moduli
_WIDE_DIVISORS = (2, 9_999)

Condition = tuple[Any, ...]
"""("prime",) or ("multiple", d) or ("between", low, high), both ends excluded."""


def is_prime(n: int) -> bool:
    """Whether n is a prime; proven for n < 3.3e24."""
    if n < 2:
        return False
    for p in _BASES:
        if n % p == 0:
            return n == p
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in _BASES:
        x = pow(base, odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


@functools.cache
def primes_below(limit: int) -> tuple[int, ...]:
    """All primes under `limit`, ascending."""
    sieve = np.ones(limit, dtype=bool)
    sieve[:2] = False
    for p in range(2, math.isqrt(limit) + 1):
        if sieve[p]:
            sieve[p * p :: p] = False
    return tuple(np.flatnonzero(sieve).tolist())


def congruent(moduli: Sequence[int], remainders: Sequence[int]) -> tuple[int, int] | None:
    """(x, step): the solutions are x + k*step with 0 <= x < step; None where there is none.

    The Chinese remainder theorem, moduli not necessarily coprime.
    """
    x, step = 0, 1
    for m, r in zip(moduli, remainders, strict=True):
        common = math.gcd(step, m)
        if (r - x) % common:
            return None
        x += step * ((r - x) // common * pow(step // common, -1, m // common) % (m // common))
        step *= m // common
    return x % step, step


def smallest(
    moduli: Sequence[int], remainders: Sequence[int], conditions: Sequence[Condition]
) -> int | None:
    """The smallest positive solution under all conditions; None where there is none."""
    low, high = 0, math.inf
    divisors = [c[1] for c in conditions if c[0] == "multiple"]
    for condition in conditions:
        if condition[0] == "between":
            low, high = max(low, condition[1]), min(high, condition[2])
    found = congruent([*moduli, *divisors], [*remainders, *(0 for _ in divisors)])
    if found is None:
        return None
    residue, step = found
    x = low + 1 + (residue - low - 1) % step
    if any(c[0] == "prime" for c in conditions):
        # All candidates share this factor: only the first can be a prime. Otherwise Dirichlet's
        # theorem promises one.
        if math.gcd(residue, step) > 1:
            return x if x < high and is_prime(x) else None
        while x < high and not is_prime(x):
            x += step
    return x if x < high else None


def _holds(condition: Condition, x: int) -> bool:
    from sympy import isprime

    name, *values = condition
    if name == "multiple":
        return bool(x % values[0] == 0)
    if name == "between":
        return bool(values[0] < x < values[1])
    return bool(isprime(x))


@dataclass(frozen=True, kw_only=True)
class ModularSystems(BeyondTask):
    """The smallest positive x with given remainders. size: number of equations.

    Variations add conditions: x is a prime, lies in an open range, is a multiple of a number, or
    (mixed) lies in a range and is a prime or a multiple. Moduli are distinct primes: under 50 in
    faithful mode; in wide mode under 10^5, and so that their product stays under 10^20.
    data: (moduli ascending, remainders, conditions).
    """

    id: ClassVar[str] = "modular_systems"
    summary: ClassVar[str] = "smallest solution of congruences under further conditions"
    many_answers: ClassVar[bool] = False
    level: ClassVar[Level] = "hard"
    variations: ClassVar[tuple[str, ...]] = ("basic", "prime", "range", "divisible", "mixed")

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return range(2, 13 if mode == "wide" else 6)

    @classmethod
    def default_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return (2, 3)

    def generate(self, rng: np.random.Generator) -> Instance:
        while True:
            data = self._draw(rng)
            x = smallest(*data)
            if x is not None and x < _PROVEN_BELOW:
                return self.instance(_prompt(*data), data, x)

    def _primes(self) -> tuple[int, ...]:
        assert self.size is not None
        if self.mode == "faithful":
            return primes_below(50)
        return primes_below(min(100_000, int(10 ** (_LOG10_PRODUCT / self.size))))

    def _draw(self, rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...], Any]:
        """Moduli, remainders and conditions, which may be impossible."""
        primes = self._primes()
        chosen = rng.choice(len(primes), size=self.size, replace=False)
        moduli = tuple(sorted(primes[i] for i in chosen.tolist()))
        remainders = tuple(_below(rng, m) for m in moduli)
        conditions: list[Condition] = []
        if self.variation == "prime" or (self.variation == "mixed" and rng.random() < 0.5):
            conditions.append(("prime",))
        elif self.variation in ("divisible", "mixed"):
            conditions.append(("multiple", self._divisor(rng)))
        if self.variation in ("range", "mixed"):
            conditions.append(self._range(rng, moduli, remainders, conditions))
        return moduli, remainders, tuple(conditions)

    def _divisor(self, rng: np.random.Generator) -> int:
        if self.mode == "wide":
            return int(rng.integers(_WIDE_DIVISORS[0], _WIDE_DIVISORS[1] + 1))
        few = (6, 10, 15, 21, 35) if self.variation == "divisible" else (3, 5, 7)
        return few[int(rng.integers(len(few)))]

    def _range(
        self,
        rng: np.random.Generator,
        moduli: Sequence[int],
        remainders: Sequence[int],
        others: list[Condition],
    ) -> Condition:
        """Faithful: around the smallest solution without conditions. Wide: anywhere above 0."""
        product = math.prod(moduli)
        if self.mode == "wide":
            low = _below(rng, _TURNS * product)
            inside = smallest(moduli, remainders, [*others, ("between", low, math.inf)])
            return "between", low, (inside or low) + 1 + _below(rng, 2 * product)
        found = congruent(moduli, remainders)
        assert found is not None, "distinct primes always have a common solution"
        least, below, above = (50, 500, 1000) if self.variation == "range" else (100, 300, 800)
        return "between", max(least, found[0] - below), found[0] + above

    def check(self, instance: Instance, answer: Any) -> Verdict:
        moduli, remainders, conditions = instance.data
        if not isinstance(answer, int) or isinstance(answer, bool):
            return Verdict(False, "the answer is not a whole number")
        if answer < 1:
            return Verdict(False, "the answer is not positive")
        for m, r in zip(moduli, remainders, strict=True):
            if answer % m != r:
                return Verdict(False, f"the remainder modulo {m} is {answer % m}, not {r}")
        for name, *values in conditions:
            if name == "multiple" and answer % values[0]:
                return Verdict(False, f"the answer is no multiple of {values[0]}")
            if name == "between" and not values[0] < answer < values[1]:
                return Verdict(False, f"the answer is not between {values[0]} and {values[1]}")
            if name == "prime" and answer < _PROVEN_BELOW and not is_prime(answer):
                return Verdict(False, "the answer is not a prime")
        least = smallest(moduli, remainders, conditions)
        if answer != least:
            return Verdict(False, f"the answer is not the smallest, which is {least}")
        return Verdict(True)

    def solve(self, instance: Instance) -> int:
        found = smallest(*instance.data)
        if found is None:
            raise ValueError("the system has no solution")
        return found

    def certify(self, instance: Instance) -> str:
        """By going up through all numbers that leave the remainders, with sympy's primes."""
        moduli, remainders, conditions = instance.data
        x, step = 0, 1
        for m, r in zip(moduli, remainders, strict=True):
            while x % m != r:
                x += step
            step = math.lcm(step, m)
        x = x or step
        while not all(_holds(condition, x) for condition in conditions):
            x += step
        return "" if x == self.solve(instance) else f"{x} is smaller"

    def render(self, answer: Any) -> str:
        return f"<answer>{answer}</answer>"

    def parse(self, text: str, mode: Mode = "lenient") -> int | None:
        return read(
            text, mode, marked=last_block, exact=integer, last=last_integer, within=only_integer
        )

    def log10_space(self) -> float:
        """Exact for `basic`. Elsewhere an estimate: all draws, times the solvable share of 200."""
        return _log10_space(self)


@functools.cache
def _log10_space(task: ModularSystems) -> float:
    assert task.size is not None
    primes = task._primes()
    wide = task.mode == "wide"
    ranges = wide and task.variation in ("range", "mixed")
    # A set of moduli has as many systems as its product; a wide range, `_TURNS` products by two.
    draws = _over_sets([p**3 for p in primes] if ranges else list(primes), task.size)
    draws *= 2 * _TURNS if ranges else 1
    divisors = _WIDE_DIVISORS[1] - _WIDE_DIVISORS[0] + 1 if wide else None
    draws *= {"divisible": divisors or 5, "mixed": 1 + (divisors or 3)}.get(task.variation, 1)
    if task.variation == "basic":
        return math.log10(draws)
    tries = 200
    rngs = (rng_.keyed(0, "modular space", i) for i in range(tries))
    solvable = sum(smallest(*task._draw(rng)) is not None for rng in rngs)
    return math.log10(draws) + math.log10(max(solvable, 1) / tries)


def _over_sets(values: Sequence[int], count: int) -> int:
    """The sum, over all sets of `count` of the values, of their products."""
    sums = [1] + [0] * count
    for v in values:
        for k in range(count, 0, -1):
            sums[k] += v * sums[k - 1]
    return sums[count]


def _below(rng: np.random.Generator, bound: int) -> int:
    """A whole number of [0, bound), also beyond 64 bits; uniform up to 2^-64."""
    return int.from_bytes(rng.bytes(bound.bit_length() // 8 + 9), "little") % bound


def _prompt(
    moduli: Sequence[int], remainders: Sequence[int], conditions: Sequence[Condition]
) -> str:
    lines = [
        f"- x leaves the remainder {r} when divided by {m}"
        for m, r in zip(moduli, remainders, strict=True)
    ]
    for name, *values in conditions:
        if name == "prime":
            lines.append("- x is a prime number")
        elif name == "multiple":
            lines.append(f"- x is a multiple of {values[0]}")
        else:
            lines.append(f"- x is greater than {values[0]} and less than {values[1]}")
    return (
        "Find the smallest positive whole number x for which all of this holds:\n\n"
        + "\n".join(lines)
        + "\n\nGive the number in answer tags, for example <answer>1234</answer>"
    )
