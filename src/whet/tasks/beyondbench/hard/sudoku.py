"""Sudoku of eight kinds, each with exactly one solution, proven by exact search.

Source: BeyondBench, arXiv 2509.24210, task sudoku_solving. Deviations: diagonals, irregular regions
and cages are part of the solution, the prompt and the check; a cell is restored wherever a second
solution exists.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from whet.errors import OptionError
from whet.tasks.answers import last_block, read, rows
from whet.tasks.base import Instance, Mode, Verdict
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level
from whet.tasks.beyondbench.hard.sudoku_boards import (
    BOXES,
    Board,
    box_map,
    count_by_sat,
    draw_cages,
    fill,
    irregular_maps,
    solved_by_sat,
)

_KINDS = {  # grid size, kind, log10 of the number of complete grids (irregular: with their maps)
    "4x4": (4, "standard", math.log10(288)),
    "4x4_diagonal": (4, "diagonal", math.log10(48)),
    "4x4_irregular": (4, "irregular", math.log10(12_432)),
    "4x4_killer": (4, "killer", math.log10(288)),
    "6x6": (6, "standard", math.log10(28_200_960)),
    "6x6_diagonal": (6, "diagonal", math.log10(8_640)),
    "9x9_easy": (9, "standard", math.log10(6_670_903_752_021_072_936_960)),
    "9x9_medium": (9, "standard", math.log10(6_670_903_752_021_072_936_960)),
}
_SHARE = {  # of blank cells, before a factor from 0.8 to 1.2
    4: {"basic": 1 / 3, "advanced": 1 / 2, "expert": 2 / 3},
    6: {"basic": 1 / 3, "advanced": 1 / 2, "expert": 3 / 5},
}
_SHARE_9 = {"9x9_easy": 1 / 3, "9x9_medium": 1 / 2}
_NUMBERS = 99  # wide mode fills the grid with numbers from 1 to 99


@dataclass(frozen=True, kw_only=True)
class SudokuSolving(BeyondTask):
    """Complete a grid. wide: the grid holds distinct numbers drawn from 1 to 99 in place of 1 to 9.

    technique: how many cells are blank, times a factor drawn from 0.8 to 1.2. basic: a third;
    advanced, the default: half; expert: three fifths, in 4x4 grids two thirds. Blanks that leave
    two solutions are filled again. The 9x9 variations say how many themselves: easy a third, medium
    half.
    """

    id: ClassVar[str] = "sudoku_solving"
    summary: ClassVar[str] = "sudoku of eight kinds and three sizes with one solution each"
    many_answers: ClassVar[bool] = False
    level: ClassVar[Level] = "hard"
    variations: ClassVar[tuple[str, ...]] = tuple(_KINDS)
    technique: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.technique not in ("", "basic", "advanced", "expert"):
            raise OptionError(
                f"task {self.label!r}: technique={self.technique!r} is none of basic, advanced "
                "and expert"
            )
        if self.technique and self.variation in _SHARE_9:
            raise OptionError(
                f"task {self.label!r}: technique={self.technique!r} must be left out, the "
                "variation says how many cells are blank"
            )

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return (_KINDS[variation][0],)

    @property
    def _share(self) -> float:
        if self.variation in _SHARE_9:
            return _SHARE_9[self.variation]
        return _SHARE[self.size or 0][self.technique or "advanced"]

    def _blanks(self, factor: float) -> int:
        n = self.size or 0
        return min(round(self._share * factor * n * n), n * n - n)

    def generate(self, rng: np.random.Generator) -> Instance:
        n, kind, _ = _KINDS[self.variation]
        symbols = tuple(range(1, n + 1))
        if self.mode == "wide":
            symbols = tuple(sorted((rng.permutation(_NUMBERS)[:n] + 1).tolist()))
        regions = box_map(n)
        if kind == "irregular":
            maps = irregular_maps()
            regions = maps[int(rng.integers(len(maps)))]
        board = Board(symbols, regions, kind == "diagonal", ())
        orders = [rng.permutation(n).tolist() for _ in range(n * n)]
        full = fill(board, (0,) * (n * n), limit=1, orders=orders)[0]
        if kind == "killer":
            board = Board(symbols, regions, False, draw_cages(rng, full))
        given = self._dig(rng, board, full)
        data = (board.symbols, board.regions, board.diagonal, board.cages, given)
        answer = [list(full[r : r + n]) for r in range(0, n * n, n)]
        return self.instance(_prompt(board, given), data, answer)

    def _dig(self, rng: np.random.Generator, board: Board, full: Sequence[int]) -> tuple[int, ...]:
        """The grid with blanks (0), as many as wanted or as leave one solution."""
        blanks = self._blanks(rng.uniform(0.8, 1.2))
        given = list(full)
        for cell in rng.permutation(len(full))[:blanks].tolist():
            given[cell] = 0
        while True:
            found = [grid for grid in fill(board, given, limit=2) if list(grid) != list(full)]
            if not found:
                return tuple(given)
            differ = [i for i, (a, b) in enumerate(zip(found[0], full, strict=True)) if a != b]
            cell = differ[int(rng.integers(len(differ)))]
            given[cell] = full[cell]

    def check(self, instance: Instance, answer: Any) -> Verdict:
        board, given = _board(instance)
        n = len(board.symbols)
        if not isinstance(answer, (list, tuple)) or len(answer) != n:
            return Verdict(False, f"the answer is not a list of {n} rows")
        if not all(isinstance(row, (list, tuple)) and len(row) == n for row in answer):
            return Verdict(False, f"a row does not have {n} cells")
        cells = [cell for row in answer for cell in row]
        if any(type(cell) is not int or cell not in board.symbols for cell in cells):
            return Verdict(False, "a cell does not hold one of the numbers of this grid")
        if any(g and g != cell for g, cell in zip(given, cells, strict=True)):
            return Verdict(False, "a given cell was changed")
        for name, unit in board.units():
            if len({cells[i] for i in unit}) < n:
                return Verdict(False, f"a number comes twice in {name}")
        for letter, (total, cage) in zip("ABCDEFGHIJKLMNOP", board.cages, strict=False):
            if sum(cells[i] for i in cage) != total:
                return Verdict(False, f"cage {letter} does not add up to {total}")
        return Verdict(True)

    def solve(self, instance: Instance) -> list[list[int]]:
        """By python-sat, which the generator does not use. Errors: OptionError where missing."""
        board, given = _board(instance)
        n = len(board.symbols)
        full = solved_by_sat(board, given)
        return [full[r : r + n] for r in range(0, n * n, n)]

    def certify(self, instance: Instance) -> str:
        """By python-sat: exactly one solution."""
        found = count_by_sat(*_board(instance), limit=2)
        return super().certify(instance) if found == 1 else f"{found} solutions or more"

    def log10_space(self) -> float:
        """About: complete grids times the choices of the fewest blanks (and numbers in wide mode).

        Choices that leave two solutions are counted, larger numbers of blanks and cages are not.
        Irregular grids are counted with their maps.
        """
        n, _, grids = _KINDS[self.variation]
        names = math.comb(_NUMBERS, n) if self.mode == "wide" else 1
        return grids + math.log10(names * math.comb(n * n, self._blanks(0.8)))

    def render(self, answer: Sequence[Sequence[int]]) -> str:
        lines = (f"[{', '.join(map(str, row))}]" for row in answer)
        return "<answer>\n" + "\n".join(lines) + "\n</answer>"

    def parse(self, text: str, mode: Mode = "lenient") -> list[list[int]] | None:
        """Bracketed rows. Lenient reading takes the last run of as many rows as the grid has."""
        return read(text, mode, marked=last_block, exact=_only_rows, last=self._last_rows)

    def _last_rows(self, text: str) -> list[list[int]] | None:
        n = self.size or 0
        found = [row for row in map(_numbers, rows(text) or []) if row and len(row) == n]
        if len(found) < n:  # no brackets: lines of numbers
            lines = ([c for c in re.split(r"[,|\s]+", s[:1000]) if c] for s in text.splitlines())
            found = [row for row in map(_numbers, lines) if row and len(row) == n]
        return found[-n:] if len(found) >= n else None


def _board(instance: Instance) -> tuple[Board, Sequence[int]]:
    symbols, regions, diagonal, cages, given = instance.data
    return Board(
        tuple(symbols), tuple(regions), diagonal, tuple((t, tuple(c)) for t, c in cages)
    ), given


def _numbers(cells: Sequence[str]) -> list[int] | None:
    if not all(re.fullmatch(r"[0-9]{1,4}", cell) for cell in cells):
        return None
    return [int(cell) for cell in cells]


def _only_rows(text: str) -> list[list[int]] | None:
    """Bracketed rows of whole numbers and nothing else, perhaps in a list of their own."""
    if re.sub(r"\[[^\[\]]*\]", "", text).strip("[], \t\r\n"):
        return None
    found = [_numbers(row) for row in rows(text) or []]
    kept = [row for row in found if row]
    return kept if kept and len(kept) == len(found) else None


def _prompt(board: Board, given: Sequence[int]) -> str:
    n = len(board.symbols)
    first, last = board.symbols[0], board.symbols[-1]
    ordered = board.symbols == tuple(range(1, n + 1))
    numbers = f"{first} to {last}" if ordered else ", ".join(map(str, board.symbols))
    boxed = board.regions == box_map(n)
    units = "every row, every column"
    if boxed:
        height, width = BOXES[n]
        units += f" and every box (the grid is cut into boxes of {height} rows and {width} columns)"
    else:
        units += " and every region"
    if board.diagonal:
        units += ", and also both main diagonals,"
    parts = [
        f"Complete this {n}x{n} number grid; _ marks an empty cell. In the end {units} must hold "
        f"each of the numbers {numbers} exactly once.",
        "\n".join(
            "[" + ", ".join(str(v) if v else "_" for v in given[r : r + n]) + "]"
            for r in range(0, n * n, n)
        ),
    ]
    if not boxed:
        parts.append("Cells with the same letter form a region:\n" + _letters(board.regions, n))
    if board.cages:
        cage_of = [0] * (n * n)
        for index, (_, cells) in enumerate(board.cages):
            for cell in cells:
                cage_of[cell] = index
        sums = ", ".join(f"{chr(65 + i)} = {total}" for i, (total, _) in enumerate(board.cages))
        parts.append(
            "Cells with the same letter form a cage:\n"
            + _letters(cage_of, n)
            + f"\nThe numbers in a cage add up to its sum: {sums}."
        )
    parts.append(
        f"Give all {n} rows, one a line, without empty cells, in this form:\n"
        f"<answer>\n[{', '.join(['n'] * n)}]\n...\n</answer>"
    )
    return "\n\n".join(parts)


def _letters(index: Sequence[int], n: int) -> str:
    return "\n".join(" ".join(chr(65 + i) for i in index[r : r + n]) for r in range(0, n * n, n))
