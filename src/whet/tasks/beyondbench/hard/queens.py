"""N queens: every board without an attack is right, whatever solution was drawn.

Source: BeyondBench, arXiv 2509.24210, task n_queens. Deviation: the official check knew only ten
solutions of each board.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from whet.tasks.answers import as_json_list, integers, last_block, last_integers, read
from whet.tasks.base import Instance, Mode, Verdict
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level

_FREE = -1
_ALONE = re.compile(r"\[\s*(\d{1,3})\s*\]", re.A)

_WIDE_SIZES = {"n4": (8, 9), "n5": (10, 11), "n6": (12, 13), "n8": (14,)}

# Problems in wide mode: 2 to N/2 queens shown of any solution. Counted over all solutions and, to
# N = 11, all choices of rows; over 40 random choices of rows for each number of queens above.
_WIDE_SPACE = {8: 4.05, 9: 4.75, 10: 5.51, 11: 6.23, 12: 7.32, 13: 8.13, 14: 9.22}


@dataclass(frozen=True, kw_only=True)
class NQueens(BeyondTask):
    """Give the column of the queen in each row. faithful: an empty board, one problem per size;
    wide: a larger board (8 or 9 rows for n4, 10 or 11 for n5, 12 or 13 for n6, 14 for n8) on which
    2 to N/2 queens of a random solution stand already.
    """

    id: ClassVar[str] = "n_queens"
    summary: ClassVar[str] = "n queens: the column in each row, every valid board counts"
    many_answers: ClassVar[bool] = True
    level: ClassVar[Level] = "hard"
    variations: ClassVar[tuple[str, ...]] = ("n4", "n5", "n6", "n8")

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return _WIDE_SIZES[variation] if mode == "wide" else (int(variation[1:]),)

    def generate(self, rng: np.random.Generator) -> Instance:
        n = self.size or 0
        if self.mode == "faithful":
            return self._empty(n)
        orders = [rng.permutation(n).tolist() for _ in range(n)]
        board = complete([_FREE] * n, orders)
        shown = set(rng.permutation(n)[: int(rng.integers(2, n // 2 + 1))].tolist())
        given = tuple(c if row in shown else _FREE for row, c in enumerate(board))
        return self.instance(_prompt(given), (given,), board)

    def _empty(self, n: int) -> Instance:
        given = (_FREE,) * n
        return self.instance(_prompt(given), (given,), complete(given))

    def check(self, instance: Instance, answer: Any) -> Verdict:
        (given,) = instance.data
        n = len(given)
        if not isinstance(answer, (list, tuple)) or any(type(c) is not int for c in answer):
            return Verdict(False, "the answer is not a list of whole numbers")
        if len(answer) != n:
            return Verdict(False, f"{len(answer)} columns for {n} rows")
        if not all(0 <= c < n for c in answer):
            return Verdict(False, f"a column is not between 0 and {n - 1}")
        for row, column in enumerate(given):
            if column != _FREE and answer[row] != column:
                return Verdict(False, f"the queen given in row {row} was moved")
        for line, of in (("column", 0), ("rising diagonal", 1), ("falling diagonal", -1)):
            if len({c + of * row for row, c in enumerate(answer)}) < n:
                return Verdict(False, f"two queens share a {line}")
        return Verdict(True)

    def solve(self, instance: Instance) -> list[int]:
        return complete(instance.data[0])

    def log10_space(self) -> float:
        return 0.0 if self.mode == "faithful" else _WIDE_SPACE[self.size or 0]

    def all_instances(self) -> Iterator[Instance] | None:
        return iter([self._empty(self.size or 0)]) if self.mode == "faithful" else None

    def render(self, answer: Sequence[int]) -> str:
        return f"<answer>{as_json_list(list(answer))}</answer>"

    def parse(self, text: str, mode: Mode = "lenient") -> list[int] | None:
        """The columns; [[1], [3], ...] is [1, 3, ...]."""
        return read(text, mode, marked=last_block, exact=_columns, last=_last_columns)


def complete(given: Sequence[int], orders: Sequence[Sequence[int]] = ()) -> list[int]:
    """A board that keeps the given columns (-1 = none), by search in the most constrained row.

    orders: the order in which each row tries its columns. Errors: ValueError without a solution.
    """
    n = len(given)
    board = list(given)

    def safe(row: int, column: int) -> bool:
        return all(
            c == _FREE or r == row or (c != column and abs(c - column) != abs(r - row))
            for r, c in enumerate(board)
        )

    def search() -> bool:
        open_rows = [r for r in range(n) if board[r] == _FREE]
        if not open_rows:
            return True
        choices = {
            r: [c for c in (orders[r] if orders else range(n)) if safe(r, c)] for r in open_rows
        }
        row = min(open_rows, key=lambda r: len(choices[r]))
        for column in choices[row]:
            board[row] = column
            if search():
                return True
        board[row] = _FREE
        return False

    if not all(c == _FREE or safe(r, c) for r, c in enumerate(given)) or not search():
        raise ValueError("these queens cannot be completed")
    return board


def _columns(text: str) -> list[int] | None:
    return integers(_ALONE.sub(r"\1", text))


def _last_columns(text: str) -> list[int] | None:
    return last_integers(_ALONE.sub(r"\1", text))


def _prompt(given: Sequence[int]) -> str:
    n = len(given)
    placed = [f"row {r}, column {c}" for r, c in enumerate(given) if c != _FREE]
    keep = f"These queens are already placed and stay: {'; '.join(placed)}.\n" if placed else ""
    return (
        f"Place {n} queens on a board of {n} rows and {n} columns, one in each row, so that no two "
        "share a column or a diagonal. Rows and columns are numbered from 0.\n"
        f"{keep}"
        f"Give a list of {n} columns: where the queen of row 0 stands, then that of row 1, and so "
        "on. Every valid placement counts. Write it in this form:\n"
        "<answer>[column in row 0, column in row 1, ...]</answer>"
    )
