"""The clues of logic grids: their wording, what they mean, and all grids that obey them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from whet.errors import OptionError

Grid = dict[str, dict[str, str]]
"""person -> category -> value"""
Clue = tuple[str, ...]
"""One of
("is", person, category, value), ("not", person, category, value),
("older", person, person): the first is older than the second,
("if", category, value, category, value): who has the first has the second,
("between", age, age, category, value): exactly one person is older than the first age and younger
than the second, and has the value.
"""


@dataclass(frozen=True)
class Category:
    """What a person with a value does, what one without it does, and ten values.

    No value belongs to two categories.
    """

    does: str
    lacks: str
    values: tuple[str, ...]


def _category(does: str, lacks: str, values: str) -> Category:
    return Category(does, lacks, tuple(values.split()))


AGE = "age"
CATEGORIES: dict[str, Category] = {
    AGE: _category("is {} years old", "is not {} years old", "21 26 31 36 41 46 51 56 61 66"),
    "pet": _category(
        "keeps a {}",
        "does not keep a {}",
        "cat dog parrot rabbit hamster tortoise goldfish ferret gecko pony",
    ),
    "colour": _category(
        "likes {} best",
        "does not like {} best",
        "red blue green yellow purple black white pink grey brown",
    ),
    "job": _category(
        "works as a {}",
        "does not work as a {}",
        "baker nurse pilot lawyer teacher plumber dentist gardener tailor judge",
    ),
    "city": _category(
        "lives in {}",
        "does not live in {}",
        "Lisbon Oslo Cairo Lima Delhi Toronto Nairobi Seoul Prague Dublin",
    ),
    "sport": _category(
        "plays {}",
        "does not play {}",
        "tennis rugby hockey golf squash cricket volleyball polo handball darts",
    ),
    "food": _category(
        "ordered {}",
        "did not order {}",
        "soup pizza curry salad noodles dumplings lasagne tacos sushi risotto",
    ),
    "instrument": _category(
        "owns a {}",
        "does not own a {}",
        "piano violin cello flute trumpet guitar harp clarinet banjo drum",
    ),
    "subject": _category(
        "studies {}",
        "does not study {}",
        "physics history chemistry geography Latin biology economics philosophy algebra law",
    ),
}


@dataclass(frozen=True)
class Puzzle:
    """people; categories with their values, one per person; clues."""

    people: tuple[str, ...]
    categories: tuple[tuple[str, tuple[str, ...]], ...]
    clues: tuple[Clue, ...]


def holds(clue: Sequence[str], grid: Grid) -> bool:
    """Whether a complete grid obeys a clue."""
    kind, *rest = clue
    if kind in ("is", "not"):
        person, category, value = rest
        return (grid[person][category] == value) is (kind == "is")
    if kind == "older":
        return int(grid[rest[0]][AGE]) > int(grid[rest[1]][AGE])
    if kind == "if":
        first, value, second, wanted = rest
        return all(row[second] == wanted for row in grid.values() if row[first] == value)
    low, high, category, value = rest
    inside = [row for row in grid.values() if int(low) < int(row[AGE]) < int(high)]
    return len(inside) == 1 and inside[0][category] == value


class Encoding:
    """A puzzle as clauses: one variable per person, category and value."""

    def __init__(
        self, people: Sequence[str], categories: Sequence[tuple[str, Sequence[str]]]
    ) -> None:
        self.people = people
        self.values = {name: tuple(values) for name, values in categories}
        triples = ((p, c, v) for p in people for c, values in categories for v in values)
        self.variables = {triple: i for i, triple in enumerate(triples, 1)}

    def bijections(self) -> Iterator[list[int]]:
        """Every person has one value of each category, every value one person."""
        for category, values in self.values.items():
            rows = [[self.variables[p, category, v] for v in values] for p in self.people]
            for line in (*rows, *zip(*rows, strict=True)):
                yield list(line)
                yield from ([-a, -b] for a, b in itertools.combinations(line, 2))

    def clauses(self, clue: Sequence[str]) -> Iterator[list[int]]:
        """A clue, as `holds` reads it."""
        at = self.variables
        kind, *rest = clue
        if kind in ("is", "not"):
            variable = at[rest[0], rest[1], rest[2]]
            yield [variable if kind == "is" else -variable]
        elif kind == "older":
            ages = self.values[AGE]
            for a, b in itertools.product(ages, ages):
                if int(a) <= int(b):
                    yield [-at[rest[0], AGE, a], -at[rest[1], AGE, b]]
        elif kind == "if":
            first, value, second, wanted = rest
            yield from ([-at[p, first, value], at[p, second, wanted]] for p in self.people)
        else:
            low, high, category, value = rest
            inside = [a for a in self.values[AGE] if int(low) < int(a) < int(high)]
            if len(inside) != 1:
                yield []
            yield from (
                [-at[p, AGE, a], at[p, category, value]] for p in self.people for a in inside
            )

    def grid(self, model: Sequence[int]) -> Grid:
        true = set(model)
        return {
            p: {
                c: next(v for v in vs if self.variables[p, c, v] in true)
                for c, vs in self.values.items()
            }
            for p in self.people
        }

    def unlike(self, grid: Grid) -> list[int]:
        """The clause that rules a grid out."""
        return [-self.variables[p, c, v] for p, row in grid.items() for c, v in row.items()]


def solutions(puzzle: Puzzle, limit: int = 2) -> list[Grid]:
    """Up to `limit` grids that obey all clues, by a SAT solver (see `sat_solver` for errors)."""
    encoding = Encoding(puzzle.people, puzzle.categories)
    clauses = [c for clue in puzzle.clues for c in encoding.clauses(clue)]
    if [] in clauses:
        return []
    found: list[Grid] = []
    with sat_solver([*encoding.bijections(), *clauses]) as solver:
        while len(found) < limit and solver.solve():
            found.append(encoding.grid(solver.get_model()))
            solver.add_clause(encoding.unlike(found[-1]))
    return found


def sat_solver(clauses: list[list[int]]) -> Any:
    """A SAT solver that knows some clauses (see `pysat.solvers.Solver`); close it after use.

    Errors: OptionError where python-sat is not installed.
    """
    try:
        from pysat.solvers import Solver
    except ImportError:
        raise OptionError(
            "task 'logic_grid' needs python-sat, from the extra whet[solvers]"
        ) from None
    return Solver(name="minisat22", bootstrap_with=clauses)


def true_clues(
    truth: Grid, categories: Sequence[tuple[str, Sequence[str]]]
) -> dict[str, list[Clue]]:
    """Every clue that a grid obeys, by kind.

    A condition is between two categories, in their order: turned round it would say the same.
    """
    names = [name for name, _ in categories]
    found: dict[str, list[Clue]] = {kind: [] for kind in ("is", "not", "older", "if", "between")}
    for person, row in truth.items():
        for name, values in categories:
            found["is"].append(("is", person, name, row[name]))
            found["not"].extend(("not", person, name, v) for v in values if v != row[name])
        for first, second in itertools.combinations(names, 2):
            found["if"].append(("if", first, row[first], second, row[second]))
    if AGE in names:
        by_age = sorted(truth, key=lambda person: int(truth[person][AGE]), reverse=True)
        found["older"] = [("older", p, q) for p, q in itertools.combinations(by_age, 2)]
        for older, person, younger in zip(by_age, by_age[1:], by_age[2:], strict=False):
            low, high = truth[younger][AGE], truth[older][AGE]
            found["between"].extend(
                ("between", low, high, name, truth[person][name]) for name in names if name != AGE
            )
    return found


def in_words(clue: Sequence[str]) -> str:
    """A clue as the prompt words it."""
    kind, *rest = clue
    if kind in ("is", "not"):
        person, category, value = rest
        wording = CATEGORIES[category]
        return f"{person} {(wording.does if kind == 'is' else wording.lacks).format(value)}."
    if kind == "older":
        return f"{rest[0]} is older than {rest[1]}."
    if kind == "if":
        first, value, second, wanted = rest
        condition = CATEGORIES[first].does.format(value)
        return f"The person who {condition} also {CATEGORIES[second].does.format(wanted)}."
    low, high, category, value = rest
    return (
        f"Exactly one person is older than {low} and younger than {high}, and that person "
        f"{CATEGORIES[category].does.format(value)}."
    )
