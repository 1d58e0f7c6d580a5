"""Board tasks: a 4x4 sudoku, n queens, and a 4x4 map in three colours; some cells are given."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whet import rng as rng_
from whet.tasks.base import Instance, check_setting
from whet.tasks.scratchpad.patterns import TextTask, hide, matches

_CELLS = 16
_UNITS: tuple[tuple[int, ...], ...] = (
    *(tuple(range(4 * r, 4 * r + 4)) for r in range(4)),
    *(tuple(range(c, _CELLS, 4)) for c in range(4)),
    *((b, b + 1, b + 4, b + 5) for b in (0, 2, 8, 10)),
)


@functools.cache
def sudoku_grids() -> np.ndarray:
    """All 288 complete 4x4 grids, [288, 16], digits 1 to 4."""
    peers = [{c for unit in _UNITS if i in unit for c in unit if c < i} for i in range(_CELLS)]
    grids: list[list[int]] = [[]]
    for cell in range(_CELLS):
        grids = [
            [*grid, digit]
            for grid in grids
            for digit in (1, 2, 3, 4)
            if all(grid[p] != digit for p in peers[cell])
        ]
    return np.array(grids)


@functools.cache
def queens_boards(n: int) -> np.ndarray:
    """All solutions of n queens, [S, n]: the column (from 1) of the queen in each row."""
    boards: list[list[int]] = [[]]
    for row in range(n):
        boards = [
            [*board, column]
            for board in boards
            for column in range(1, n + 1)
            if all(c != column and abs(c - column) != row - r for r, c in enumerate(board))
        ]
    return np.array(boards)


_NEIGHBOURS: tuple[tuple[int, int], ...] = tuple(
    pair
    for cell in range(_CELLS)
    for pair in (((cell, cell + 1),) if cell % 4 < 3 else ())
    + (((cell, cell + 4),) if cell < 12 else ())
)


@functools.cache
def map_colourings() -> np.ndarray:
    """All 7,812 ways to colour a 4x4 grid with three colours, [7812, 16], entries 0 to 2."""
    maps: list[list[int]] = [[]]
    for cell in range(_CELLS):
        before = [i for i, j in _NEIGHBOURS if j == cell]
        maps = [[*m, c] for m in maps for c in range(3) if all(m[i] != c for i in before)]
    return np.array(maps)


def _fits(solutions: np.ndarray, given: str) -> np.ndarray:
    keep = [i for i, c in enumerate(given) if c != "."]
    wanted = np.array([int(given[i]) for i in keep])
    found: np.ndarray = solutions[(solutions[:, keep] == wanted).all(1)]
    return found


def _partials(solutions: np.ndarray, shown: int, *, patterns: int = 128) -> float:
    """Number of distinct problems that show `shown` cells of one of `solutions`.

    Every pattern of shown cells is counted where there are at most `patterns`, a fixed sample of
    them otherwise.
    """
    size = solutions.shape[1]
    total = math.comb(size, shown)
    if total <= patterns:
        chosen = [list(c) for c in itertools.combinations(range(size), shown)]
    else:
        rng = rng_.keyed(0, "partials", size, shown)
        chosen = [rng.permutation(size)[:shown].tolist() for _ in range(patterns)]
    # One number per solution and pattern: entries are digits.
    codes = (solutions[:, cells] @ 10 ** np.arange(shown) for cells in chosen)
    return total * sum(len(np.unique(code)) for code in codes) / len(chosen)


@dataclass(frozen=True, kw_only=True)
class Sudoku(TextTask):
    """Fill a 4x4 grid, read row by row, so that rows, columns and 2x2 boxes hold 1 to 4."""

    id: ClassVar[str] = "sudoku"
    summary: ClassVar[str] = "4x4 sudoku with 8 to 12 blanks and usually several solutions"
    many_answers: ClassVar[bool] = True
    min_blanks: int = 8
    max_blanks: int = 12

    def __post_init__(self) -> None:
        check_setting(self, "min_blanks", 1, _CELLS)
        check_setting(self, "max_blanks", self.min_blanks, _CELLS)

    def generate(self, rng: np.random.Generator) -> Instance:
        grids = sudoku_grids()
        full = "".join(map(str, grids[rng.integers(len(grids))].tolist()))
        given = hide(rng, full, int(rng.integers(self.min_blanks, self.max_blanks + 1)))
        return Instance(task=self.id, prompt=f"sudoku {given}=", data=(given,), example=full)

    def valid(self, instance: Instance, answer: str) -> bool:
        (given,) = instance.data
        if not matches(answer, given):
            return False
        return all(sorted(answer[c] for c in unit) == list("1234") for unit in _UNITS)

    def solve(self, instance: Instance) -> str:
        return "".join(map(str, _fits(sudoku_grids(), instance.data[0])[0].tolist()))

    def log10_space(self) -> float:
        shown = range(_CELLS - self.max_blanks, _CELLS - self.min_blanks + 1)
        return math.log10(sum(_partials(sudoku_grids(), k) for k in shown))


@dataclass(frozen=True, kw_only=True)
class Queens(TextTask):
    """Give the column of the queen in each row so that none attacks another."""

    id: ClassVar[str] = "queens"
    summary: ClassVar[str] = "n queens (n = 5 to 9) with one to three already placed"
    many_answers: ClassVar[bool] = True
    min_size: int = 5
    max_size: int = 9
    max_placed: int = 3

    def __post_init__(self) -> None:
        check_setting(self, "min_size", 4, 9)
        check_setting(self, "max_size", self.min_size, 9)
        check_setting(self, "max_placed", 1, self.min_size)

    def generate(self, rng: np.random.Generator) -> Instance:
        # Small boards have few problems: draw the size in proportion to its square.
        sizes = np.arange(self.min_size, self.max_size + 1)
        n = int(rng.choice(sizes, p=sizes**2 / (sizes**2).sum()))
        boards = queens_boards(n)
        full = "".join(map(str, boards[rng.integers(len(boards))].tolist()))
        given = hide(rng, full, n - int(rng.integers(1, self.max_placed + 1)))
        return Instance(task=self.id, prompt=f"queens {given}=", data=(given,), example=full)

    def valid(self, instance: Instance, answer: str) -> bool:
        (given,) = instance.data
        # ASCII digits only: `str.isdigit` lets others through, some of which `int` refuses.
        if not matches(answer, given) or set(answer) - set("123456789"[: len(given)]):
            return False
        columns = [int(c) for c in answer]
        return all(
            a != b and abs(a - b) != j - i
            for (i, a), (j, b) in itertools.combinations(enumerate(columns), 2)
        )

    def solve(self, instance: Instance) -> str:
        given = instance.data[0]
        return "".join(map(str, _fits(queens_boards(len(given)), given)[0].tolist()))

    def log10_space(self) -> float:
        sizes = range(self.min_size, self.max_size + 1)
        placed = range(1, self.max_placed + 1)
        return math.log10(sum(_partials(queens_boards(n), k) for n in sizes for k in placed))


@dataclass(frozen=True, kw_only=True)
class Colouring(TextTask):
    """Colour a 4x4 map, read row by row, with r, g, b so that no neighbours share a colour."""

    id: ClassVar[str] = "colouring"
    summary: ClassVar[str] = "3-colour a 4x4 grid of countries, 3 to 6 of them given"
    many_answers: ClassVar[bool] = True
    min_given: int = 3
    max_given: int = 6

    def __post_init__(self) -> None:
        check_setting(self, "min_given", 0, _CELLS)
        check_setting(self, "max_given", self.min_given, _CELLS)

    def generate(self, rng: np.random.Generator) -> Instance:
        maps = map_colourings()
        full = "".join("rgb"[c] for c in maps[rng.integers(len(maps))].tolist())
        given = hide(rng, full, _CELLS - int(rng.integers(self.min_given, self.max_given + 1)))
        return Instance(task=self.id, prompt=f"colouring {given}=", data=(given,), example=full)

    def valid(self, instance: Instance, answer: str) -> bool:
        if not matches(answer, instance.data[0]) or set(answer) - set("rgb"):
            return False
        return all(answer[i] != answer[j] for i, j in _NEIGHBOURS)

    def solve(self, instance: Instance) -> str:
        (given,) = instance.data
        stack = [""]
        while stack:
            done = stack.pop()
            cell = len(done)
            if cell == _CELLS:
                return done
            taken = {done[i] for i, j in _NEIGHBOURS if j == cell}
            stack.extend(done + c for c in "rgb" if c not in taken and given[cell] in (".", c))
        raise ValueError("the map has no 3-colouring")

    def log10_space(self) -> float:
        shown = range(self.min_given, self.max_given + 1)
        return math.log10(sum(_partials(map_colourings(), k, patterns=32) for k in shown))
