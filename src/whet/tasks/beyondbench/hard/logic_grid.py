"""Logic grids: clues from which every person's pet, age, city, ... follow uniquely."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from whet.tasks.answers import last_boxed, read
from whet.tasks.base import Instance, Mode, Verdict
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level
from whet.tasks.beyondbench.hard.logic_clues import (
    AGE,
    CATEGORIES,
    Clue,
    Encoding,
    Grid,
    Puzzle,
    holds,
    in_words,
    sat_solver,
    solutions,
    true_clues,
)

_NAMES = (
    "Alice",
    "Boris",
    "Chloe",
    "David",
    "Elena",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
)
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_WIDE_AGES = (18, 97)

# Per level: clues beyond the number of people, clues at least, weights of is, not, older, if.
_LEVELS: dict[str, tuple[int, int, tuple[float, float, float, float]]] = {
    "easy": (0, 4, (0.5, 0.3, 0.1, 0.1)),
    "medium": (1, 5, (0.3, 0.3, 0.2, 0.2)),
    "hard": (2, 6, (0.2, 0.3, 0.25, 0.25)),
    "extreme": (3, 7, (0.15, 0.25, 0.3, 0.3)),
}
_KINDS = ("is", "not", "older", "if")


@dataclass(frozen=True, kw_only=True)
class LogicGrid(BeyondTask):
    """Find everybody's values. size: number of people, and of categories with the names, both
    fixed by the variation.

    Clues are drawn until exactly one grid obeys them; those that can be missed are then dropped
    in random order down to the level's usual number. Names are from a list of ten in faithful
    mode, invented in wide mode. data: the fields of `Puzzle`.
    """

    id: ClassVar[str] = "logic_grid"
    summary: ClassVar[str] = "everybody's values from clues with exactly one solution"
    many_answers: ClassVar[bool] = False
    level: ClassVar[Level] = "hard"
    variations: ClassVar[tuple[str, ...]] = (
        "size3_easy",
        "size3_medium",
        "size4_easy",
        "size4_medium",
        "size4_hard",
        "size5_medium",
        "size5_hard",
        "size5_extreme",
    )

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return (int(variation[4]),)

    @property
    def difficulty(self) -> str:
        return self.variation.partition("_")[2]

    def generate(self, rng: np.random.Generator) -> Instance:
        assert self.size is not None
        n = self.size
        people = tuple(sorted(self._names(rng)))
        names = list(CATEGORIES)
        if self.difficulty == "extreme":  # clues about whoever is between two ages need ages
            chosen = [AGE, *_some(rng, names[1:], n - 2)]
        else:
            chosen = _some(rng, names, n - 1)
        categories = tuple(
            (name, tuple(sorted(self._values(rng, name)))) for name in sorted(chosen)
        )
        truth: Grid = {person: {} for person in people}
        for name, values in categories:
            for person, value in zip(people, _some(rng, values, n), strict=True):
                truth[person][name] = value
        puzzle = Puzzle(people, categories, self._clues(rng, people, categories, truth))
        data = (puzzle.people, puzzle.categories, puzzle.clues)
        return self.instance(_prompt(puzzle), data, truth)

    def _names(self, rng: np.random.Generator) -> set[str]:
        assert self.size is not None
        if self.mode == "faithful":
            return set(_some(rng, _NAMES, self.size))
        names: set[str] = set()
        taken = {v.lower() for c in CATEGORIES.values() for v in c.values}
        while len(names) < self.size:
            name = "".join(_some(rng, part, 1)[0] for part in (_CONSONANTS, _VOWELS) * 3)
            if name not in taken:
                names.add(name.capitalize())
        return names

    def _values(self, rng: np.random.Generator, category: str) -> list[str]:
        assert self.size is not None
        pool: Sequence[str] = CATEGORIES[category].values
        if category == AGE and self.mode == "wide":
            pool = [str(age) for age in range(_WIDE_AGES[0], _WIDE_AGES[1] + 1)]
        return _some(rng, pool, self.size)

    def _clues(
        self,
        rng: np.random.Generator,
        people: Sequence[str],
        categories: Sequence[tuple[str, Sequence[str]]],
        truth: Grid,
    ) -> tuple[Clue, ...]:
        """Clues under which `truth` is the only grid."""
        beyond, least, weights = _LEVELS[self.difficulty]
        wanted = max(len(people) + beyond, least)
        pools = {kind: _some(rng, c, len(c)) for kind, c in true_clues(truth, categories).items()}
        encoding = Encoding(people, categories)
        # Each clue counts only where its switch is assumed; any other grid than the truth is
        # looked for.
        with sat_solver([*encoding.bijections(), encoding.unlike(truth)]) as solver:
            switches: dict[Clue, int] = {}

            def unique(clues: Sequence[Clue]) -> bool:
                return not solver.solve(assumptions=[switches[clue] for clue in clues])

            clues: list[Clue] = []
            while len(clues) < wanted or not unique(clues):
                open_ = [k for k in _KINDS if pools[k]]
                odds = np.array([weights[_KINDS.index(k)] for k in open_])
                kind = open_[int(rng.choice(len(open_), p=odds / odds.sum()))] if clues else "is"
                # Half of the extreme level's conditions are about whoever is between two ages.
                if self.difficulty == "extreme" and kind == "if" and pools["between"]:
                    kind = ("if", "between")[int(rng.integers(2))]
                clue = pools[kind].pop()
                switches[clue] = len(encoding.variables) + len(switches) + 1
                for clause in encoding.clauses(clue):
                    solver.add_clause([*clause, -switches[clue]])
                clues.append(clue)
            for clue in _some(rng, clues, len(clues)):
                rest = [c for c in clues if c != clue]
                direct = any(c[0] == "is" for c in rest)
                if len(rest) >= wanted and direct and unique(rest):
                    clues = rest
        return tuple(_some(rng, clues, len(clues)))

    def check(self, instance: Instance, answer: Any) -> Verdict:
        """Every person and category must be there with its value; capitals do not matter."""
        puzzle = Puzzle(*instance.data)
        if not isinstance(answer, Mapping):
            return Verdict(False, "the answer does not give each person's values")
        rows = _folded(answer)
        if rows is None or set(rows) != {p.casefold() for p in puzzle.people}:
            return Verdict(False, f"the answer must name {', '.join(puzzle.people)} only")
        grid: Grid = {person: {} for person in puzzle.people}
        for person in puzzle.people:
            row = rows[person.casefold()]
            cells = _folded(row) if isinstance(row, Mapping) else None
            if cells is None or set(cells) != {c.casefold() for c, _ in puzzle.categories}:
                return Verdict(False, f"not every category is given once for {person}")
            for category, values in puzzle.categories:
                given = cells[category.casefold()]
                known = {v.casefold(): v for v in values}
                if not isinstance(given, str) or given.casefold() not in known:
                    return Verdict(False, f"the {category} of {person} is not one of the list")
                grid[person][category] = known[given.casefold()]
        for category, values in puzzle.categories:
            if {row[category] for row in grid.values()} != set(values):
                return Verdict(False, f"two people have the same {category}")
        for clue in puzzle.clues:
            if not holds(clue, grid):
                return Verdict(False, f"a clue is broken: {in_words(clue)}")
        return Verdict(True)

    def solve(self, instance: Instance) -> Grid:
        found = solutions(Puzzle(*instance.data), limit=1)
        if not found:
            raise ValueError("the clues contradict each other")
        return found[0]

    def certify(self, instance: Instance) -> str:
        """By python-sat: exactly one grid fits the clues."""
        found = len(solutions(Puzzle(*instance.data), limit=2))
        return super().certify(instance) if found == 1 else f"{found} solutions or more"

    def render(self, answer: Any) -> str:
        lines = (
            f"{person}: [{', '.join(f'{c}: {v}' for c, v in row.items())}]"
            for person, row in answer.items()
        )
        return "\\boxed{\n" + "\n".join(lines) + "\n}"

    def parse(self, text: str, mode: Mode = "lenient") -> Grid | None:
        return read(text, mode, marked=last_boxed, exact=_grid, last=_last_grid)

    def log10_space(self) -> float:
        """A lower bound: names, values and their assignments, whatever the clues about them."""
        assert self.size is not None
        n = self.size
        pools = len(CATEGORIES)
        names = math.log10(math.comb(len(_NAMES), n))
        if self.mode == "wide":
            names = math.log10(math.comb((len(_CONSONANTS) * len(_VOWELS)) ** 3, n))
        extreme = self.difficulty == "extreme"
        kinds = math.comb(pools - 1, n - 2) if extreme else math.comb(pools, n - 1)
        per_category = math.log10(math.comb(10, n)) + math.log10(math.factorial(n))
        return names + math.log10(kinds) + (n - 1) * per_category


def _prompt(puzzle: Puzzle) -> str:
    people = ", ".join(puzzle.people[:-1]) + f" and {puzzle.people[-1]}"
    values = "\n".join(f"- {name}: {', '.join(values)}" for name, values in puzzle.categories)
    clues = "\n".join(f"{i}. {in_words(clue)}" for i, clue in enumerate(puzzle.clues, 1))
    return (
        f"{people} each have one value from every line below, and no two of them share a value.\n\n"
        f"{values}\n\nThe clues are:\n{clues}\n\n"
        "Work out the values of all people. Give them in a box, one line per person, in the form "
        "of this answer to another puzzle:\n"
        "\\boxed{\nXavier: [hat: beret, tea: mint]\nYolanda: [hat: bonnet, tea: oolong]\n}"
    )


def _some(rng: np.random.Generator, items: Sequence[Any], count: int) -> list[Any]:
    """`count` different items in random order."""
    return [items[i] for i in rng.permutation(len(items))[:count].tolist()]


def _folded(found: Mapping[Any, Any]) -> dict[str, Any] | None:
    """With keys in small letters; None where they are no text or become equal."""
    if not all(isinstance(key, str) for key in found):
        return None
    out = {key.strip().casefold(): value for key, value in found.items()}
    return out if len(out) == len(found) else None


# --- the grid in a model's text: bracketed rows after the names, else a table of people ----------

_MAX_LABEL = 80
_DRESSING = " \t\r*_`'\",;.-•&|\\"


def _grid(text: str) -> Grid | None:
    """Bracketed rows or a table and nothing else."""
    found, left_over = _from_lines(text)
    if found is None:
        found, left_over = _from_table(text)
    return found if found is not None and not left_over.strip(_DRESSING + "\n{}") else None


def _last_grid(text: str) -> Grid | None:
    """The last run of bracketed rows, else the last table."""
    return _from_lines(text)[0] or _from_table(text)[0]


def _from_lines(text: str) -> tuple[Grid | None, str]:
    """The last run of rows in brackets, and all text that belongs to none.

    A run ends where a name comes again, so that a repeated answer replaces the earlier one.
    """
    runs: list[Grid] = []
    rest: list[str] = []
    end = 0
    for m in re.finditer(r"\[([^\[\]]*)\]", text):
        before, end = text[end : m.start()], m.end()
        line_start = before.rfind("\n", 0, len(before.rstrip())) + 1
        # Several people may stand in one line: a label goes back to the last row at most. Names
        # are single words, and what comes before one is talk.
        label = before[max(line_start, len(before) - _MAX_LABEL) :].strip(_DRESSING)
        words = label.removesuffix(":").strip(_DRESSING).split() if label.endswith(":") else []
        if words and re.fullmatch(r"\d+[.)]", words[0]):  # of a numbered list
            words = words[1:]
        name = words[-1].strip(_DRESSING) if words else ""
        row = _row(m.group(1))
        if not name or ":" in name or row is None:
            rest.append(before + m.group())
            continue
        rest.append(before[:line_start] + " ".join(words[:-1]))
        if not runs or name in runs[-1]:
            runs.append({})
        runs[-1][name] = row
    rest.append(text[end:])
    if len(runs) > 1:
        rest.append("an earlier run")
    return (runs[-1] if runs else None), "".join(rest)


def _row(text: str) -> dict[str, str] | None:
    """The cells of one person by category; None where a part is no pair."""
    found: dict[str, str] = {}
    for part in text.split(","):
        category, colon, value = part.partition(":")
        category, value = category.strip(_DRESSING + "\n"), value.strip(_DRESSING + "\n")
        if not colon or not category or not value or found.setdefault(category, value) != value:
            return None
    return found or None


def _from_table(text: str) -> tuple[Grid | None, str]:
    """The last table with a heading (its first column names people), and all text around it."""
    tables: list[list[list[str]]] = [[]]
    rest: list[str] = []
    for line in text.splitlines():
        if not ("|" in line or "&" in line):
            rest.append(line)
            if line.strip() and tables[-1]:
                tables.append([])
            continue
        inner = line.strip().strip("|").rstrip("\\")
        cells = [c.strip(" \t*_`\\") for c in re.split(r"[|&]", inner)]
        if not all(set(c) <= set("-: ") for c in cells):  # the rule under a heading
            tables[-1].append(cells)
    for heading, *rows in (table for table in reversed(tables) if len(table) > 1):
        names = [row[0] for row in rows]
        if len(set(names)) < len(names) or any(len(row) != len(heading) for row in rows):
            continue
        if len(set(heading)) < len(heading):
            continue
        return (
            {row[0]: dict(zip(heading[1:], row[1:], strict=True)) for row in rows},
            "\n".join(rest),
        )
    return None, text
