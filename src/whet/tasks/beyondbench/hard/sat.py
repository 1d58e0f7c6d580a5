"""Satisfiability: every assignment that makes all the printed conditions true is right.

Source: BeyondBench, arXiv 2509.24210, task boolean_sat. A hidden assignment is drawn first and
every clause is made to hold in it, so that each problem has a model. Deviations: Horn formulas have
at most one positive literal in every clause; xor conditions are printed, drawn and checked as
"exactly one of these is true".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from whet.tasks.answers import last_block, last_mapping, mapping, read
from whet.tasks.base import Instance, Mode, Verdict, check_setting
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level
from whet.tasks.beyondbench.hard.solvers_sat import exactly_one, model

Clause = tuple[int, ...]

_NAMES = 99  # variables of wide mode are x1 to x99
_VARIABLE = re.compile(r"(?:variable )?x?_?(\d{1,4})", re.I)
_TRUTH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class BooleanSat(BeyondTask):
    """Find a satisfying assignment. size: variables. ratio: conditions per variable.

    wide: up to 20 variables, with numbers drawn from 1 to 99.
    """

    id: ClassVar[str] = "boolean_sat"
    summary: ClassVar[str] = "satisfy a formula of five kinds, every model counts"
    many_answers: ClassVar[bool] = True
    level: ClassVar[Level] = "hard"
    variations: ClassVar[tuple[str, ...]] = ("random_k", "mixed", "horn", "xor", "graph_based")
    ratio: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self, "ratio", 2.5, 4.0)

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return range(4, 21) if mode == "wide" else range(4, 11)

    @classmethod
    def default_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return (4, 6, 8)

    @property
    def clauses(self) -> int:
        """Number of conditions."""
        return int((self.size or 0) * self.ratio)

    def generate(self, rng: np.random.Generator) -> Instance:
        n = self.size or 0
        names = tuple(range(1, n + 1))
        if self.mode == "wide":
            names = tuple(sorted((rng.permutation(_NAMES)[:n] + 1).tolist()))
        truth = rng.integers(2, size=n).astype(bool)
        while truth.all() or not truth.any():  # Horn and graph clauses need one of each
            truth = rng.integers(2, size=n).astype(bool)
        hidden = dict(zip(names, truth.tolist(), strict=True))
        clauses = tuple(_DRAW[self.variation](rng, hidden) for _ in range(self.clauses))
        prompt = _prompt(self.variation, names, clauses)
        return self.instance(prompt, (self.variation, names, clauses), hidden)

    def check(self, instance: Instance, answer: Any) -> Verdict:
        kind, names, clauses = instance.data
        if not isinstance(answer, Mapping):
            return Verdict(False, "the answer does not map variables to truth values")
        if any(type(v) is not int for v in answer):
            return Verdict(False, "a variable is not given by its number")
        if any(type(value) is not bool for value in answer.values()):
            return Verdict(False, "a value is neither true nor false")
        missing = [v for v in names if v not in answer]
        if missing:
            return Verdict(False, f"x{missing[0]} has no value")
        if len(answer) != len(names):
            return Verdict(False, "a variable is not part of the problem")
        for number, clause in enumerate(clauses, 1):
            true = sum(answer[abs(literal)] == (literal > 0) for literal in clause)
            if true == 0 or (kind == "xor" and true > 1):
                return Verdict(False, f"condition {number} has {true} true literals")
        return Verdict(True)

    def solve(self, instance: Instance) -> dict[int, bool]:
        """A model by python-sat. Errors: OptionError where it is not installed."""
        kind, names, clauses = instance.data
        formula = [c for clause in clauses for c in exactly_one(clause)]
        found = model(formula if kind == "xor" else clauses)
        if found is None:
            raise ValueError("the formula has no model")
        return {v: v in found for v in names}

    def log10_space(self) -> float:
        """A lower bound: the lists of conditions that hold where half of the variables are true."""
        n = self.size or 0
        names = math.comb(_NAMES, n) if self.mode == "wide" else 1
        each = _COUNT[self.variation](n, n // 2)
        return math.log10(names) + self.clauses * math.log10(each)

    def render(self, answer: Mapping[int, bool]) -> str:
        return "<answer>{" + ", ".join(f"x{v}: {t}" for v, t in answer.items()) + "}</answer>"

    def parse(self, text: str, mode: Mode = "lenient") -> dict[int, bool] | None:
        """Variable to truth value, x_1 and x_{1} being x1; None where a value is not readable."""
        return read(text, mode, marked=last_block, exact=_assignment, last=_last_assignment)


def _pick(rng: np.random.Generator, variables: Sequence[int], size: int) -> list[int]:
    return [variables[i] for i in sorted(rng.permutation(len(variables))[:size].tolist())]


def _signed(rng: np.random.Generator, variables: Sequence[int]) -> list[int]:
    signs = rng.integers(2, size=len(variables)).tolist()
    return [v if s else -v for v, s in zip(variables, signs, strict=True)]


def _holds(literal: int, hidden: Mapping[int, bool]) -> bool:
    return hidden[abs(literal)] == (literal > 0)


def _tidy(clause: Sequence[int]) -> Clause:
    return tuple(sorted(clause, key=abs))


def _any_of(rng: np.random.Generator, hidden: Mapping[int, bool], size: int) -> Clause:
    """Random signs; where the hidden assignment violates them, one literal is turned round."""
    clause = _signed(rng, _pick(rng, list(hidden), size))
    if not any(_holds(literal, hidden) for literal in clause):
        turned = int(rng.integers(size))
        clause[turned] = -clause[turned]
    return _tidy(clause)


def _random_k(rng: np.random.Generator, hidden: Mapping[int, bool]) -> Clause:
    return _any_of(rng, hidden, 3)


def _mixed(rng: np.random.Generator, hidden: Mapping[int, bool]) -> Clause:
    longest = min(6, len(hidden))
    size = int(rng.choice(4, p=(0.2, 0.4, 0.3, 0.1))) + 1
    return _any_of(rng, hidden, size if size < 4 else int(rng.integers(4, longest + 1)))


def _horn(rng: np.random.Generator, hidden: Mapping[int, bool]) -> Clause:
    """At most one positive literal, with probability 0.4; repaired with a negative one."""
    chosen = _pick(rng, list(hidden), int(rng.choice(3, p=(0.3, 0.5, 0.2))) + 1)
    clause = [-v for v in chosen]
    if rng.random() < 0.4:
        positive = int(rng.integers(len(clause)))
        clause[positive] = -clause[positive]
    if not any(_holds(literal, hidden) for literal in clause):
        # Every variable that stands here negated is true, so a false one is new to the clause,
        # unless it stands here as the positive literal, which is then the one to replace.
        random_place = int(rng.integers(len(clause)))
        broken = next((i for i, literal in enumerate(clause) if literal > 0), random_place)
        false = [v for v, true in hidden.items() if not true]
        clause[broken] = -false[int(rng.integers(len(false)))]
    return _tidy(clause)


def _xor(rng: np.random.Generator, hidden: Mapping[int, bool]) -> Clause:
    """Random signs under which exactly one literal holds."""
    chosen = _pick(rng, list(hidden), int(rng.choice(3, p=(0.4, 0.4, 0.2))) + 2)
    one = int(rng.integers(len(chosen)))
    return _tidy([v if hidden[v] == (i == one) else -v for i, v in enumerate(chosen)])


def _graph_based(rng: np.random.Generator, hidden: Mapping[int, bool]) -> Clause:
    """Drawn anew until the hidden assignment satisfies it: 60 % "not both", 40 % "one of these"."""
    together = rng.random() >= 0.6
    while True:
        chosen = _pick(rng, list(hidden), int(rng.integers(2, 4)) if together else 2)
        clause = chosen if together else [-v for v in chosen]
        if any(_holds(literal, hidden) for literal in clause):
            return _tidy(clause)


_DRAW = {
    "random_k": _random_k,
    "mixed": _mixed,
    "horn": _horn,
    "xor": _xor,
    "graph_based": _graph_based,
}


def _sizes(n: int, low: int, high: int) -> list[tuple[int, int]]:
    return [(s, math.comb(n, s)) for s in range(low, min(n, high) + 1)]


# Clauses of each kind that hold where t of n variables are true.
_COUNT: dict[str, Callable[[int, int], int]] = {
    "random_k": lambda n, t: 7 * math.comb(n, 3),
    "mixed": lambda n, t: sum(ways * (2**s - 1) for s, ways in _sizes(n, 1, 6)),
    "horn": lambda n, t: sum(
        ways * (1 + s) - math.comb(t, s) - (n - t) * math.comb(t, s - 1)
        for s, ways in _sizes(n, 1, 3)
    ),
    "xor": lambda n, t: sum(ways * s for s, ways in _sizes(n, 2, 4)),
    "graph_based": lambda n, t: (
        math.comb(n, 2)
        - math.comb(t, 2)
        + sum(ways - math.comb(n - t, s) for s, ways in _sizes(n, 2, 3))
    ),
}


def _assignment(text: str) -> dict[int, bool] | None:
    found = mapping(text)
    return None if found is None else _truths(found)


def _last_assignment(text: str) -> dict[int, bool] | None:
    found = last_mapping(text)
    return None if found is None else _truths(found)


def _truths(found: Mapping[str, str]) -> dict[int, bool] | None:
    out: dict[int, bool] = {}
    for name, value in found.items():
        match, truth = _VARIABLE.fullmatch(name.strip()), _TRUTH.get(value.strip().lower())
        if match is None or truth is None:
            return None
        if out.setdefault(int(match.group(1)), truth) != truth:
            return None
    return out


def _prompt(kind: str, names: Sequence[int], clauses: Sequence[Clause]) -> str:
    lines = []
    for number, clause in enumerate(clauses, 1):
        literals = [f"x{v}" if v > 0 else f"NOT x{-v}" for v in clause]
        of = ", ".join(literals)
        lines.append(f"{number}. {of if kind == 'xor' else ' OR '.join(literals)}")
    rule = (
        "In each line, exactly one of the listed literals must be true and all others false"
        if kind == "xor"
        else "In each line, at least one of the literals joined by OR must be true"
    )
    form = ", ".join(f"x{v}: True or False" for v in names[:2])
    return (
        f"Find truth values for the variables {', '.join(f'x{v}' for v in names)} that satisfy all "
        f"{len(clauses)} lines below at once. {rule}; NOT x is true where x is false.\n\n"
        + "\n".join(lines)
        + "\n\nEvery assignment that satisfies all lines counts. Give each variable a value, in "
        f"this form:\n<answer>{{{form}, ...}}</answer>"
    )
