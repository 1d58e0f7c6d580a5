"""Families of sequences: a rule, the values of its parameters, and which settings make a problem.

`faithful` lists the paper's values, drops what the paper's filter rejects, and drops settings that
show the same terms as another setting but continue differently (the paper keeps these).

`wide` draws from large ranges and shows a * x + b. Its problems have one answer inside the family,
even if a and b may be any rationals. Two ways ensure that:

Recurrences. Let y(n) be a fixed linear function f of the k states before it and the constant 1.
The states v(n) = (y(n-1), ..., y(n-k), 1) then follow a linear map of k + 1 dimensions, so that by
Cayley and Hamilton the state after k + 1 successive ones is a combination of them. Any function
that gives the k + 1 terms after the first k agrees with f on those states, hence on the next one:
2k + 1 terms are enough, whatever the coefficients. Where the coefficients are known (they may then
depend on n) and only a, b and the starts are not, fewer are. Polynomials of degree d follow from
d + 1 terms; the parameters of interleaved and of transformed progressions can be read off five.

Other rules. All settings are listed and their windows reduced to a shape, which a and b do not
change: differences to the first term, divided by their greatest common divisor, with the first
difference that is not 0 positive. Shapes that continue in two ways are dropped, and so is the
constant one, and one setting is kept for each shape.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Term = int | Fraction
Core = tuple[Any, ...]
"""Values of the parameters of a rule, in its order."""

SCALES = tuple(a for a in range(-97, 98) if a)
SIGNS = (-1, 1)
UNCHANGED = (1,)
SHIFTS = range(-10_000, 10_001)


@dataclass(frozen=True, eq=False)
class Family:
    """One variation.

    rule(count, *parameters): the first `count` terms; fewer where the next would be too large to
    compute. faithful, wide: the values of each parameter. scales, shifts: those of a and b in
    `wide`. indexed: the answer is unique by shape, as the module says (else as a recurrence).
    bound: the paper's largest term, where it is the variation's own. least: the smallest size in
    `wide`. whole: whether all terms of `faithful` are whole numbers.
    """

    name: str
    rule: Callable[..., Sequence[Term]]
    faithful: tuple[Sequence[Any], ...]
    wide: tuple[Sequence[Any], ...]
    scales: Sequence[int] = SCALES
    shifts: Sequence[int] = SHIFTS
    indexed: bool = True
    bound: int | None = None
    least: int = 5
    whole: bool = True


@dataclass(frozen=True)
class Filter:
    """What the paper rejects: terms above `bound`, and sequences of these `forms`."""

    bound: int | None = None
    forms: tuple[str, ...] = ()

    def rejects(self, terms: Sequence[Term], count: int) -> str:
        """Why `count` terms are rejected; "" where they are not. terms: fewer where too large."""
        bound = self.bound
        if len(terms) < count:
            return "terms too large to compute" if bound is None else f"terms above {bound}"
        if bound is not None and not all(-bound <= x <= bound for x in terms):
            return f"terms above {bound}"
        return next((form for form in self.forms if _FORMS[form](terms)), "")


def _differences(terms: Sequence[Term], order: int) -> Sequence[Term]:
    for _ in range(order):
        terms = [b - a for a, b in itertools.pairwise(terms)]
    return terms


def _is_geometric(terms: Sequence[Term]) -> bool:
    return all(terms) and all(
        b * b == a * c for a, b, c in zip(terms, terms[1:], terms[2:], strict=False)
    )


_FORMS: dict[str, Callable[[Sequence[Term]], bool]] = {
    "an arithmetic progression": lambda terms: not any(_differences(terms, 2)),
    "a geometric progression": _is_geometric,
    "a polynomial of degree 4 or less": lambda terms: not any(_differences(terms, 5)),
    "only two distinct values": lambda terms: len(set(terms)) <= 2,
}


def settings_of(values: Iterable[Sequence[Any]]) -> Iterable[Core]:
    """Every combination of the values of the parameters."""
    return itertools.product(*values)


@dataclass(frozen=True)
class Admitted:
    """Settings that make problems, each of other shown terms; why others were dropped."""

    cores: tuple[Core, ...]
    reasons: tuple[str, ...] = ()


@functools.lru_cache(maxsize=256)
def faithful_settings(family: Family, paper: Filter, size: int) -> Admitted:
    """Settings of the paper that show `size` terms. The filter sees these terms and the answer."""
    limits = Filter(family.bound or paper.bound, paper.forms)
    found: dict[tuple[Term, ...], Core] = {}
    nexts: dict[tuple[Term, ...], set[Term]] = {}
    reasons: set[str] = set()
    for core in settings_of(family.faithful):
        terms = family.rule(size + 1, *core)
        why = limits.rejects(terms, size + 1)
        if why:
            reasons.add(why)
            continue
        shown = tuple(terms[:size])
        found.setdefault(shown, core)
        nexts.setdefault(shown, set()).add(terms[size])
    unique = tuple(core for shown, core in found.items() if len(nexts[shown]) == 1)
    if len(unique) < len(found):
        reasons.add("shown terms that continue in two ways")
    return Admitted(unique, tuple(sorted(reasons)))


@functools.lru_cache(maxsize=256)
def wide_settings(family: Family, size: int) -> tuple[Core, ...]:
    """One setting for each shape of `size` shown terms that has one continuation."""
    found: dict[tuple[int, ...], Core] = {}
    nexts: dict[tuple[int, ...], set[Fraction]] = {}
    for core in settings_of(family.wide):
        shape, following = shape_of(family.rule(size + 1, *core))
        found.setdefault(shape, core)
        nexts.setdefault(shape, set()).add(following)
    return tuple(core for shape, core in found.items() if any(shape) and len(nexts[shape]) == 1)


def shape_of(terms: Sequence[Term]) -> tuple[tuple[int, ...], Fraction]:
    """The shape of all whole terms but the last, and the last one in the same measure."""
    steps = [int(x) - int(terms[0]) for x in terms]
    unit = math.gcd(*steps[:-1]) or 1
    if next((s for s in steps[:-1] if s), 1) < 0:
        unit = -unit
    return tuple(s // unit for s in steps[:-1]), Fraction(steps[-1], unit)
