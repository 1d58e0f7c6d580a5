"""Propositional formulas solved with python-sat: one model, or the number of models up to a limit.

A clause is a sequence of non-zero integers, negative where the variable is negated. Every call
builds its own solver: what it answers depends on its arguments only, never on earlier calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from whet.errors import OptionError

Clause = Sequence[int]


def _solver(clauses: Iterable[Clause]) -> Any:
    try:
        from pysat.solvers import Minisat22
    except ImportError:
        raise OptionError("solving this task needs the extra whet[solvers] (python-sat)") from None
    return Minisat22(bootstrap_with=clauses)


def model(clauses: Iterable[Clause], assumptions: Sequence[int] = ()) -> set[int] | None:
    """The literals true in one model in which the assumptions hold; None where there is none."""
    with _solver(clauses) as solver:
        if not solver.solve(assumptions=list(assumptions)):
            return None
        return set(solver.get_model())


def count_models(
    clauses: Iterable[Clause],
    variables: Sequence[int],
    *,
    limit: int,
    assumptions: Sequence[int] = (),
) -> int:
    """Number of models that differ in `variables` (all that count must be named), at most `limit`.

    assumptions: literals that must hold. A limit of 2 tells whether a solution is the only one.
    """
    found = 0
    with _solver(clauses) as solver:
        while found < limit and solver.solve(assumptions=list(assumptions)):
            found += 1
            true = set(solver.get_model())
            solver.add_clause([-v if v in true else v for v in variables])
    return found


def at_most_one(literals: Sequence[int]) -> list[list[int]]:
    """Clauses that hold exactly where at most one of the literals is true (pairwise)."""
    return [[-a, -b] for a, b in itertools.combinations(literals, 2)]


def exactly_one(literals: Sequence[int]) -> list[list[int]]:
    """Clauses that hold exactly where one of the literals is true and no other."""
    return [list(literals), *at_most_one(literals)]
