"""Boards of Sudoku: their units, maps and cages, exact search, and the same as a formula.

A grid is a flat sequence of numbers, row by row, 0 where a cell is blank.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from whet.tasks.beyondbench.hard.solvers_sat import count_models, exactly_one, model

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box, by size of the grid."""

_MAX_CAGE = 4

Cage = tuple[int, tuple[int, ...]]
"""What its cells add up to, and the cells."""


@dataclass(frozen=True)
class Board:
    """The rules of one grid. symbols: the n numbers that fill it, ascending. regions: the region of
    each cell. diagonal: whether both main diagonals count too.
    """

    symbols: tuple[int, ...]
    regions: tuple[int, ...]
    diagonal: bool
    cages: tuple[Cage, ...]

    def units(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and cells of every set of n cells that must hold each number once."""
        n = len(self.symbols)
        for i in range(n):
            yield f"row {i + 1}", tuple(range(i * n, i * n + n))
            yield f"column {i + 1}", tuple(range(i, n * n, n))
        for region in range(n):
            yield "a region", tuple(i for i, r in enumerate(self.regions) if r == region)
        if self.diagonal:
            yield "a diagonal", tuple(range(0, n * n, n + 1))
            yield "a diagonal", tuple(range(n - 1, n * n - 1, n - 1))


@functools.cache
def box_map(n: int) -> tuple[int, ...]:
    """Regions that are boxes: 2x2, 2x3 (two rows, three columns) or 3x3."""
    height, width = BOXES[n]
    across = n // width
    return tuple(i // n // height * across + i % n // width for i in range(n * n))


@functools.cache
def irregular_maps() -> tuple[tuple[int, ...], ...]:
    """All cuts of a 4x4 grid into four connected regions of four cells that can be completed,
    other than the boxes, the rows and the columns.
    """
    shapes = [s for s in itertools.combinations(range(16), 4) if _connected(s)]
    cuts: list[list[tuple[int, ...]]] = [[]]
    for _ in range(4):
        longer = []
        for cut in cuts:
            covered = {i for shape in cut for i in shape}
            first = min(set(range(16)) - covered)
            longer += [
                [*cut, shape] for shape in shapes if shape[0] == first and not covered & {*shape}
            ]
        cuts = longer
    maps = [tuple(next(k for k, s in enumerate(cut) if i in s) for i in range(16)) for cut in cuts]
    plain = {box_map(4), tuple(i // 4 for i in range(16)), tuple(i % 4 for i in range(16))}
    return tuple(
        m
        for m in maps
        if m not in plain and fill(Board((1, 2, 3, 4), m, False, ()), (0,) * 16, limit=1)
    )


def _near(cell: int, n: int) -> list[int]:
    row, column = divmod(cell, n)
    places = ((row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column))
    return [r * n + c for r, c in places if 0 <= r < n and 0 <= c < n]


def _connected(cells: Sequence[int]) -> bool:
    seen, queue = {cells[0]}, [cells[0]]
    while queue:
        for other in _near(queue.pop(), 4):
            if other in cells and other not in seen:
                seen.add(other)
                queue.append(other)
    return len(seen) == len(cells)


def draw_cages(rng: np.random.Generator, full: Sequence[int]) -> tuple[Cage, ...]:
    """Cut a complete 4x4 grid into connected cages of up to four cells, by first cell.

    No number comes twice in a cage, so that a reader who takes this for a rule is not misled.
    """
    free = set(range(16))
    cages: list[list[int]] = []
    for start in rng.permutation(16).tolist():
        if start not in free:
            continue
        cage = [start]
        free.discard(start)
        for _ in range(int(rng.integers(1, _MAX_CAGE))):
            used = {full[i] for i in cage}
            around = sorted({j for i in cage for j in _near(i, 4) if j in free})
            around = [j for j in around if full[j] not in used]
            if not around:
                break
            cage.append(around[int(rng.integers(len(around)))])
            free.discard(cage[-1])
        cages.append(sorted(cage))
    return tuple((sum(full[i] for i in cage), tuple(cage)) for cage in sorted(cages))


def fill(
    board: Board, given: Sequence[int], *, limit: int, orders: Sequence[Sequence[int]] = ()
) -> list[tuple[int, ...]]:
    """Up to `limit` complete grids that keep the given numbers, by search in the tightest cell.

    orders: for each cell, the order in which it tries the n symbols (indices); ascending without.
    """
    symbols, n = board.symbols, len(board.symbols)
    units = [cells for _, cells in board.units()]
    at = [[u for u, cells in enumerate(units) if i in cells] for i in range(n * n)]
    cage_of = {i: k for k, (_, cells) in enumerate(board.cages) for i in cells}
    rest = [total for total, _ in board.cages]
    open_in = [len(cells) for _, cells in board.cages]
    used = [0] * len(units)
    grid = [0] * (n * n)
    found: list[tuple[int, ...]] = []

    def put(cell: int, symbol: int, sign: int) -> None:
        for u in at[cell]:
            used[u] ^= 1 << symbol
        grid[cell] = symbols[symbol] if sign > 0 else 0
        if cell in cage_of:
            rest[cage_of[cell]] -= sign * symbols[symbol]
            open_in[cage_of[cell]] -= sign

    def fits(cell: int, symbol: int) -> bool:
        if any(used[u] >> symbol & 1 for u in at[cell]):
            return False
        if cell not in cage_of:
            return True
        left = rest[cage_of[cell]] - symbols[symbol]
        return left > 0 if open_in[cage_of[cell]] > 1 else left == 0

    def search() -> None:
        best, choices, fewest = -1, 0, n + 1
        for cell in blanks:
            if grid[cell]:
                continue
            mask = 0
            for u in at[cell]:
                mask |= used[u]
            free = n - mask.bit_count()
            if free < fewest:
                best, choices, fewest = cell, mask, free
                if free <= 1:
                    break
        if best < 0:
            found.append(tuple(grid))
            return
        for symbol in orders[best] if orders else range(n):
            if not choices >> symbol & 1 and fits(best, symbol):
                put(best, symbol, 1)
                search()
                put(best, symbol, -1)
                if len(found) >= limit:
                    return

    blanks = [i for i, value in enumerate(given) if not value]
    for cell, value in enumerate(given):
        if value:
            symbol = symbols.index(value)
            if not fits(cell, symbol):
                return []
            put(cell, symbol, 1)
    search()
    return found


def solved_by_sat(board: Board, given: Sequence[int]) -> list[int]:
    """A complete grid by python-sat. Errors: ValueError where there is none."""
    n = len(board.symbols)
    true = model(_formula(board), _assumptions(board, given))
    if true is None:
        raise ValueError("the grid has no solution")
    return [
        next(v for k, v in enumerate(board.symbols) if i * n + k + 1 in true) for i in range(n * n)
    ]


def count_by_sat(board: Board, given: Sequence[int], *, limit: int) -> int:
    """Number of complete grids by python-sat, at most `limit`."""
    n = len(board.symbols)
    variables = range(1, n**3 + 1)
    return count_models(
        _formula(board), variables, limit=limit, assumptions=_assumptions(board, given)
    )


def _assumptions(board: Board, given: Sequence[int]) -> list[int]:
    n = len(board.symbols)
    return [i * n + board.symbols.index(v) + 1 for i, v in enumerate(given) if v]


def _formula(board: Board) -> list[list[int]]:
    """Variable i n + k + 1 says that cell i holds the k-th symbol."""
    n = len(board.symbols)
    clauses = list(_unit_clauses(board.regions, board.diagonal))
    for total, cells in board.cages:
        for symbols in itertools.product(range(n), repeat=len(cells)):
            if sum(board.symbols[k] for k in symbols) != total:
                clauses.append([-(i * n + k + 1) for i, k in zip(cells, symbols, strict=True)])
    return clauses


@functools.lru_cache(maxsize=16)
def _unit_clauses(regions: tuple[int, ...], diagonal: bool) -> tuple[list[int], ...]:
    n = len(set(regions))
    clauses: list[list[int]] = []
    for cell in range(n * n):
        clauses += exactly_one([cell * n + k + 1 for k in range(n)])
    for _, cells in Board(tuple(range(n)), regions, diagonal, ()).units():
        for k in range(n):
            clauses += exactly_one([i * n + k + 1 for i in cells])
    return tuple(clauses)
