"""Choosing projects: the most profitable selection within budget, time, people and other rules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from whet.errors import OptionError
from whet.tasks.answers import as_json_list, integers, last_block, last_integers, read
from whet.tasks.base import Instance, Mode, Verdict
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level

Project = tuple[int, int, int, int, int, int]
"""cost, weeks, people, profit, quality, risk"""
_NEAR = 0.95

_FAITHFUL_LIMITS = ((800, 1500), (80, 150), (30, 70))
_FAITHFUL = ((150, 400), (15, 40), (5, 15), (200, 600), (6, 10), (1, 3))
_WIDE = ((100, 9_999), (1, 999), (1, 99), (100, 9_999), (1, 100), (1, 100))
_WIDE_LIMIT = (0.45, 0.8)  # limits as shares of what all projects need together


@dataclass(frozen=True)
class Rules:
    """What a selection must obey.

    limits: cost, weeks, people. min_quality, max_risk: bounds of the means, in tenths (None =
    free). min_count: projects at least. needs: (i, j) = whoever chooses i must choose j.
    """

    limits: tuple[int, int, int]
    projects: tuple[Project, ...]
    min_quality: int | None = None
    max_risk: int | None = None
    min_count: int = 1
    needs: tuple[tuple[int, int], ...] = ()

    def broken(self, chosen: Sequence[int]) -> str:
        """The first rule that distinct, known ids break; "" where they obey all."""
        picked = [self.projects[i] for i in chosen]
        if len(picked) < self.min_count:
            return f"fewer than {self.min_count} chosen"
        for column, name in enumerate(("cost", "weeks", "people")):
            total, limit = sum(p[column] for p in picked), self.limits[column]
            if total > limit:
                return f"{name}: {total} is over {limit}"
        if self.min_quality is not None and sum(10 * p[4] - self.min_quality for p in picked) < 0:
            return f"the mean quality is under {self.min_quality / 10:g}"
        if self.max_risk is not None and sum(10 * p[5] - self.max_risk for p in picked) > 0:
            return f"the mean risk is over {self.max_risk / 10:g}"
        for i, j in self.needs:
            if i in chosen and j not in chosen:
                return f"project {i} needs project {j}"
        return ""

    def profit(self, chosen: Sequence[int]) -> int:
        return sum(self.projects[i][3] for i in chosen)


def best(rules: Rules) -> list[int] | None:
    """A most profitable selection, ascending; None where none is allowed. By HiGHS, gap 0.

    Errors: OptionError where highspy is not installed.
    """
    try:
        import highspy
    except ImportError:
        raise OptionError(
            "task 'constraint_optimization' needs highspy, from the extra whet[solvers]"
        ) from None
    n = len(rules.projects)
    solver = highspy.Highs()
    for option, value in (("output_flag", False), ("parallel", "off"), ("mip_rel_gap", 0.0)):
        solver.setOptionValue(option, value)
    empty = np.array([], dtype=np.int32), np.array([], dtype=np.float64)
    ids = np.arange(n, dtype=np.int32)
    for i, project in enumerate(rules.projects):
        solver.addCol(float(project[3]), 0.0, 1.0, 0, *empty)
        solver.changeColIntegrality(i, highspy.HighsVarType.kInteger)
    solver.changeObjectiveSense(highspy.ObjSense.kMaximize)
    columns = np.array(rules.projects, dtype=np.float64).T

    def at_most(weights: np.ndarray, bound: float) -> None:
        solver.addRow(-highspy.kHighsInf, bound, n, ids, np.ascontiguousarray(weights))

    for column, limit in zip(columns[:3], rules.limits, strict=True):
        at_most(column, limit)
    at_most(-np.ones(n), -rules.min_count)
    if rules.min_quality is not None:
        at_most(rules.min_quality - 10 * columns[4], 0)
    if rules.max_risk is not None:
        at_most(10 * columns[5] - rules.max_risk, 0)
    for i, j in rules.needs:
        weights = np.zeros(n)
        weights[i], weights[j] = 1, -1
        at_most(weights, 0)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    chosen = [i for i, x in enumerate(solver.getSolution().col_value) if x > 0.5]
    # All numbers are whole, so that rounding makes the result exact; a solver's slip must show.
    assert not rules.broken(chosen), rules.broken(chosen)
    return chosen


@dataclass(frozen=True, kw_only=True)
class ConstraintOptimization(BeyondTask):
    """Choose projects for the largest profit. size: number of projects.

    Variations add a least mean quality, dependencies, a largest mean risk, or all of them with
    at least two projects. Every selection of the largest profit is right; `Verdict.extra` says
    whether an allowed one reaches 95 % of it (`near_optimal`). data: the fields of `Rules`.
    """

    id: ClassVar[str] = "constraint_optimization"
    summary: ClassVar[str] = "most profitable projects within limits, by their numbers"
    many_answers: ClassVar[bool] = True
    level: ClassVar[Level] = "hard"
    variations: ClassVar[tuple[str, ...]] = ("basic", "quality", "dependency", "risk", "mixed")

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return range(3, 21)

    @classmethod
    def default_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return (3, 4, 5)

    def generate(self, rng: np.random.Generator) -> Instance:
        while True:
            rules = self._faithful(rng) if self.mode == "faithful" else self._wide(rng)
            answer = best(rules)
            if answer is not None:
                data = (
                    rules.limits,
                    rules.projects,
                    rules.min_quality,
                    rules.max_risk,
                    rules.min_count,
                    rules.needs,
                )
                return self.instance(_prompt(rules), data, answer)

    def _faithful(self, rng: np.random.Generator) -> Rules:
        assert self.size is not None
        n = self.size
        limits = [int(rng.integers(a, b + 1)) for a, b in _FAITHFUL_LIMITS]
        drawn = [[int(rng.integers(a, b + 1)) for a, b in _FAITHFUL] for _ in range(n)]
        for i, project in enumerate(drawn):
            if self.variation == "risk" and i % 2 == 0:
                project[3], project[5] = project[3] * 14 // 10, int(rng.integers(3, 6))
            if self.variation == "mixed" and i % 3 == 0:
                project[3], project[5] = project[3] * 15 // 10, int(rng.integers(4, 6))
                project[4] = int(rng.integers(8, 11))
        needs = {(1, 0), (3, 2)} if self.variation in ("dependency", "mixed") else set()
        if self.variation == "dependency":
            needs |= {(n - 1, 0), (n - 1, 2)}
        return Rules(
            limits=(limits[0], limits[1], limits[2]),
            projects=_frozen(drawn),
            min_quality={"quality": 75, "mixed": 70}.get(self.variation),
            max_risk={"risk": 30, "mixed": 35}.get(self.variation),
            min_count=2 if self.variation == "mixed" else 1,
            needs=tuple(sorted((i, j) for i, j in needs if i < n and i != j)),
        )

    def _wide(self, rng: np.random.Generator) -> Rules:
        """Larger numbers, limits that bind, bounds and dependencies drawn at random."""
        assert self.size is not None
        n = self.size
        drawn = [[int(rng.integers(a, b + 1)) for a, b in _WIDE] for _ in range(n)]
        shares = rng.uniform(*_WIDE_LIMIT, size=3).tolist()
        limits = [
            max(min(p[c] for p in drawn), int(share * sum(p[c] for p in drawn)))
            for c, share in enumerate(shares)
        ]
        some = self.variation
        needs: set[tuple[int, int]] = set()
        if some in ("dependency", "mixed"):
            # A random order keeps them free of circles.
            order = rng.permutation(n).tolist()
            pairs = [(b, a) for a, b in itertools.combinations(order, 2)]
            count = int(rng.integers(1, max(2, n // 2) + 1))
            needs = {pairs[k] for k in rng.permutation(len(pairs))[:count].tolist()}
        return Rules(
            limits=(limits[0], limits[1], limits[2]),
            projects=_frozen(drawn),
            min_quality=int(rng.integers(350, 601)) if some in ("quality", "mixed") else None,
            max_risk=int(rng.integers(400, 651)) if some in ("risk", "mixed") else None,
            min_count=2 if some == "mixed" else 1,
            needs=tuple(sorted(needs)),
        )

    def check(self, instance: Instance, answer: Any) -> Verdict:
        rules = _rules(instance)
        if not isinstance(answer, (list, tuple)):
            return Verdict(False, "the answer is not a list of project numbers")
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in answer):
            return Verdict(False, "the list holds something other than project numbers")
        if not all(0 <= i < len(rules.projects) for i in answer):
            return Verdict(False, "the list names a project that does not exist")
        if len(set(answer)) < len(answer):
            return Verdict(False, "the list names a project twice")
        broken = rules.broken(answer)
        if broken:
            return Verdict(False, broken)
        optimum = best(rules)
        assert optimum is not None, "an allowed selection was given"
        profit, most = rules.profit(answer), rules.profit(optimum)
        extra = {"near_optimal": float(profit >= _NEAR * most)}
        if profit < most:
            return Verdict(False, f"the profit is {profit}, {most} is possible", extra)
        return Verdict(True, extra=extra)

    def solve(self, instance: Instance) -> list[int]:
        found = best(_rules(instance))
        if found is None:
            raise ValueError("no selection obeys the rules")
        return found

    def render(self, answer: Any) -> str:
        return f"<answer>{as_json_list(list(answer))}</answer>"

    def parse(self, text: str, mode: Mode = "lenient") -> list[int] | None:
        return read(text, mode, marked=last_block, exact=integers, last=last_integers)

    def log10_space(self) -> float:
        """An upper estimate: all draws, of which those without an allowed selection are redrawn.

        Exact for `basic` in faithful mode. Bonuses for risky projects, and the bounds and
        dependencies of wide mode, are not counted.
        """
        assert self.size is not None
        ranges = _FAITHFUL if self.mode == "faithful" else _WIDE
        draws = self.size * sum(math.log10(b - a + 1) for a, b in ranges)
        if self.mode == "faithful":
            draws += sum(math.log10(b - a + 1) for a, b in _FAITHFUL_LIMITS)
        return draws


def _frozen(drawn: list[list[int]]) -> tuple[Project, ...]:
    return tuple((p[0], p[1], p[2], p[3], p[4], p[5]) for p in drawn)


def _rules(instance: Instance) -> Rules:
    return Rules(*instance.data)


def _prompt(rules: Rules) -> str:
    n = len(rules.projects)
    lines = [
        f"Project {i}: cost {p[0]}, weeks {p[1]}, people {p[2]}, profit {p[3]}, "
        f"quality {p[4]}, risk {p[5]}"
        for i, p in enumerate(rules.projects)
    ]
    cost, weeks, people = rules.limits
    wanted = [
        f"the costs add up to at most {cost}",
        f"the weeks add up to at most {weeks}",
        f"the people add up to at most {people}",
        f"at least {'two projects are' if rules.min_count == 2 else 'one project is'} chosen",
    ]
    if rules.min_quality is not None:
        wanted.append(
            f"the mean quality of the chosen projects is at least {rules.min_quality / 10:g}"
        )
    if rules.max_risk is not None:
        wanted.append(f"the mean risk of the chosen projects is at most {rules.max_risk / 10:g}")
    wanted.extend(f"project {i} is chosen only if project {j} is too" for i, j in rules.needs)
    return (
        f"Choose some of these {n} projects so that their profits add up to as much as possible."
        "\n\n"
        + "\n".join(lines)
        + "\n\nThe choice must obey these rules:\n"
        + "\n".join(f"- {rule}" for rule in wanted)
        + "\n\nGive the numbers of the chosen projects as a list in answer tags. Were they 31 and "
        "40, you would write <answer>[31, 40]</answer>"
    )
