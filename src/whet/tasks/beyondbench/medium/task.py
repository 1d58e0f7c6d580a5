"""The five medium tasks: name the next term of a sequence.

BeyondBench, arXiv 2509.24210, medium suite: 49 families of sequences. Deviations: the filter of
the paper sees the shown terms and the answer (five terms alone are always a polynomial of degree
four); answers are exact, and relative to 1e-6 where a term is no whole number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar, cast

import numpy as np

from whet.errors import InputError
from whet.tasks import answers
from whet.tasks.base import Instance, Mode, Verdict
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level
from whet.tasks.beyondbench.medium import algebraic, fibonacci, geometric, patterns, prime
from whet.tasks.beyondbench.medium.family import (
    Admitted,
    Core,
    Family,
    Filter,
    Term,
    faithful_settings,
    wide_settings,
)

MAX_SIZE = 32
_SIZES = (5, 8, 12)
_TOLERANCE = Fraction(1, 10**6)
_DISGUISE = (
    " The rule need not start at its first term, it may take only every so many-th term, its"
    " constants may be large, and every term may have been multiplied by one constant and"
    " increased by another."
)


@dataclass(frozen=True, kw_only=True)
class MediumTask(BeyondTask):
    """Continue a sequence of `size` shown terms.

    hints: what kinds of rule are possible. worked: a sequence and its next term, in the prompt.
    data of an instance: (variation, parameters, a, b, size): the terms are a * x + b.
    """

    level: ClassVar[Level] = "medium"
    many_answers: ClassVar[bool] = False
    families: ClassVar[Mapping[str, Family]]
    paper: ClassVar[Filter] = Filter()
    hints: ClassVar[str]
    worked: ClassVar[tuple[str, int]]

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        """See `BeyondTask`: the number of shown terms."""
        return range(cls.families[variation].least if mode == "wide" else 5, MAX_SIZE + 1)

    @classmethod
    def default_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        """See `BeyondTask`."""
        allowed = cls.allowed_sizes(variation, mode)
        return tuple(size for size in _SIZES if size in allowed)

    @property
    def _family(self) -> Family:
        return self.families[self.variation]

    @property
    def _size(self) -> int:
        return cast(int, self.size)

    @property
    def _example(self) -> str:
        sequence, result = self.worked
        return f"For example, {sequence}, ? continues with \\boxed{{{result}}}."

    def _admitted(self) -> Admitted:
        return faithful_settings(self._family, self.paper, self._size)

    def empty_because(self) -> str:
        """See `BeyondTask`."""
        if self.mode == "wide":
            kept = not self._family.indexed or wide_settings(self._family, self._size)
            return "" if kept else "no setting has one answer"
        found = self._admitted()
        if found.cores:
            return ""
        return f"the paper's filter rejects all its sequences: {', '.join(found.reasons)}"

    def generate(self, rng: np.random.Generator) -> Instance:
        """See `Task`. Errors: InputError where the filter leaves nothing."""
        empty = self.empty_because()
        if empty:
            raise InputError(f"task {self.label!r} has no problem of size {self.size}: {empty}")
        family = self._family
        if self.mode == "faithful":
            return self._instance(_one(rng, self._admitted().cores), 1, 0)
        if family.indexed:
            core: Core = _one(rng, wide_settings(family, self._size))
        else:
            core = tuple(_one(rng, values) for values in family.wide)
        return self._instance(core, _one(rng, family.scales), _one(rng, family.shifts))

    def _instance(self, core: Core, a: int, b: int) -> Instance:
        *shown, answer = _terms(self._family, core, a, b, self._size)
        written = ", ".join(map(answers.write_number, shown))
        prompt = (
            f"Find the number that continues this sequence: {written}, ?\n"
            f"{self.hints}{_DISGUISE if self.mode == 'wide' else ''}\n"
            f"{self._example}\n"
            "End with the next term alone, in digits, as \\boxed{term}."
        )
        data = (self.variation, core, a, b, self._size)
        # Settings that show the same terms are one problem.
        public = f"{self.label}:{self.size}:{written}"
        return replace(self.instance(prompt, data, answer), public=public)

    def all_instances(self) -> Iterator[Instance] | None:
        """See `Task`: every problem of `faithful`."""
        if self.mode == "wide":
            return None
        return (self._instance(core, 1, 0) for core in self._admitted().cores)

    def log10_space(self) -> float:
        """See `Task`: exact where `faithful` or by shape; other settings are taken as distinct."""
        family = self._family
        if self.mode == "faithful":
            count = len(self._admitted().cores)
        else:
            cores = (
                len(wide_settings(family, self._size))
                if family.indexed
                else math.prod(map(len, family.wide))
            )
            count = cores * len(family.scales) * len(family.shifts)
        return math.log10(count) if count else -math.inf

    def solve(self, instance: Instance) -> Term:
        """See `Task`: the rule applied once more."""
        variation, core, a, b, size = instance.data
        return _terms(self.families[variation], core, a, b, size)[-1]

    def check(self, instance: Instance, answer: Any) -> Verdict:
        """See `Task`. Whole terms are exact, others relative to 1e-6."""
        value = answers.as_fraction(answer)
        if value is None:
            return Verdict(False, "the answer is no number")
        truth = Fraction(self.solve(instance))
        allowed = 0 if truth.denominator == 1 else _TOLERANCE * abs(truth)
        ok = abs(value - truth) <= allowed
        return Verdict(ok, "" if ok else "another term follows")

    def render(self, answer: Any) -> str:
        """See `Task`."""
        return rf"\boxed{{{answers.write_number(answer)}}}"

    def parse(self, text: str, mode: Mode = "lenient") -> int | Fraction | None:
        """See `Task`: the number in the last box, a whole one where all terms are.

        The worked example is left out where the text repeats it: its result can be the answer.
        """
        text = text.replace(self._example, "\n")
        if self.mode == "wide" or self._family.whole:
            return answers.boxed_integer(text, mode)
        return answers.boxed_number(text, mode)


def _one(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def _terms(family: Family, core: Core, a: int, b: int, size: int) -> list[Term]:
    return [a * x + b for x in family.rule(size + 1, *core)]


def _named(families: Sequence[Family]) -> dict[str, Family]:
    return {family.name: family for family in families}


class FibonacciSequence(MediumTask):
    """Sequences like Fibonacci's."""

    id: ClassVar[str] = "fibonacci_sequence"
    summary: ClassVar[str] = "continue sequences like Fibonacci's (6 kinds)"
    families = _named(fibonacci.FAMILIES)
    variations = tuple(families)
    hints: ClassVar[str] = (
        "Each term follows from the two or three terms before it: their sum, a weighted sum,"
        " or a sum whose sign alternates."
    )
    worked: ClassVar[tuple[str, int]] = ("4, 7, 11, 18, 29", 47)


class AlgebraicSequence(MediumTask):
    """Rounded and reduced formulas."""

    id: ClassVar[str] = "algebraic_sequence"
    summary: ClassVar[str] = "continue sequences of rounded or reduced formulas (10 kinds)"
    families = _named(algebraic.FAMILIES)
    variations = tuple(families)
    paper: ClassVar[Filter] = Filter(
        10_000,
        (
            "an arithmetic progression",
            "a geometric progression",
            "a polynomial of degree 4 or less",
            "only two distinct values",
        ),
    )
    hints: ClassVar[str] = (
        "Possible rules: roots, exponentials, logarithms or quotients rounded down, remainders of"
        " growing numbers, convolutions, and solutions of Pell's equation."
    )
    worked: ClassVar[tuple[str, int]] = ("1, 1, 1, 2, 2, 2, 2, 2, 3", 3)


class GeometricSequence(MediumTask):
    """Powers and products."""

    id: ClassVar[str] = "geometric_sequence"
    summary: ClassVar[str] = "continue geometric sequences, powers and factorials (10 kinds)"
    families = _named(geometric.FAMILIES)
    variations = tuple(families)
    paper: ClassVar[Filter] = Filter(10**6, ("an arithmetic progression",))
    hints: ClassVar[str] = (
        "Possible rules: a constant ratio (it may be negative or no whole number), powers,"
        " exponentials, towers of exponents, factorials, and triangular or pentagonal numbers."
    )
    worked: ClassVar[tuple[str, int]] = ("6, 42, 294, 2058", 14406)


class PrimeSequence(MediumTask):
    """Number theory."""

    id: ClassVar[str] = "prime_sequence"
    summary: ClassVar[str] = "continue sequences of number theory (11 kinds)"
    families = _named(prime.FAMILIES)
    variations = tuple(families)
    paper: ClassVar[Filter] = Filter(10_000)
    hints: ClassVar[str] = (
        "Possible rules: primes of some kind, gaps between them, their powers and products,"
        " divisors, totients, Catalan numbers, and Fibonacci numbers modulo a prime."
    )
    worked: ClassVar[tuple[str, int]] = ("11, 13, 17, 19, 23", 29)


class ComplexPattern(MediumTask):
    """Several rules at once."""

    id: ClassVar[str] = "complex_pattern"
    summary: ClassVar[str] = "continue patterns made of several rules (12 kinds)"
    families = _named(patterns.FAMILIES)
    variations = tuple(families)
    hints: ClassVar[str] = (
        "Possible rules: polynomials, two interleaved sequences, operations that change with the"
        " position, recurrences over several terms, and remainders."
    )
    worked: ClassVar[tuple[str, int]] = ("1, 10, 3, 20, 5, 30", 7)


TASKS: tuple[type[MediumTask], ...] = (
    FibonacciSequence,
    AlgebraicSequence,
    GeometricSequence,
    PrimeSequence,
    ComplexPattern,
)
