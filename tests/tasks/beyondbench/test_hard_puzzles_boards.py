"""Hanoi, queens and Sudoku: every valid answer counts and no other; what is promised is proven."""

import collections
import dataclasses
import itertools
import math

import pytest

from tests.tasks.beyondbench.puzzle_rules import MODES, draw, hanoi_pegs, sudoku_in, valid_sudoku
from whet import rng
from whet.tasks.beyondbench.hard.hanoi import TowerHanoi, shortest
from whet.tasks.beyondbench.hard.queens import NQueens, complete
from whet.tasks.beyondbench.hard.sudoku import SudokuSolving
from whet.tasks.beyondbench.hard.sudoku_boards import (
    Board,
    box_map,
    count_by_sat,
    fill,
    irregular_maps,
    solved_by_sat,
)

# --- Hanoi --------------------------------------------------------------------------------------


def distances(start):
    """Number of moves from an arrangement to every other, by breadth-first search."""
    n = len(start)
    found, queue = {start: 0}, collections.deque([start])
    while queue:
        at = queue.popleft()
        tops = {p: next((d for d in range(n) if at[d] == p), n) for p in range(3)}
        for a, b in itertools.permutations(range(3), 2):
            if tops[a] < tops[b]:
                new = (*at[: tops[a]], b, *at[tops[a] + 1 :])
                if new not in found:
                    found[new] = found[at] + 1
                    queue.append(new)
    return found


def test_every_start_and_goal_peg_takes_the_optimum_and_a_detour():
    seen = set()
    task = TowerHanoi()
    for instance in task.all_instances():
        start, goal = hanoi_pegs(instance.prompt)
        source, target = (pegs.index([3, 2, 1]) for pegs in (start, goal))
        seen.add((source, target))
        spare = 3 - source - target
        s, t, x = ("ABC"[p] for p in (source, target, spare))
        optimum = [(1, s, t), (2, s, x), (1, t, x), (3, s, t), (1, x, s), (2, x, t), (1, s, t)]
        detour = [(1, s, x), (1, x, t), *optimum[1:]]
        assert task.check(instance, optimum).extra == {"optimal": 1.0}
        verdict = task.check(instance, detour)
        assert verdict
        assert verdict.extra == {"optimal": 0.0}
        other = {s: s, t: x, x: t}
        to_the_spare_peg = [(d, other[a], other[b]) for d, a, b in optimum]
        assert "goal" in task.check(instance, to_the_spare_peg).reason
        assert "move 2" in task.check(instance, [(1, s, t), (2, s, t)]).reason
    assert seen == set(itertools.permutations(range(3), 2))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_the_shortest_sequence_is_as_short_as_a_search_finds(n):
    every = list(itertools.product(range(3), repeat=n))
    starts = every if n < 4 else [every[i] for i in rng.keyed(0, "n", n).permutation(3**n)[:3]]
    for start in starts:
        found = distances(start)
        assert len(found) == 3**n
        for goal in every if n < 8 else every[::37]:
            assert len(shortest(start, goal)) == found[goal]


def test_a_tower_of_n_disks_takes_two_to_the_n_less_one_moves():
    for variation in TowerHanoi.variations:
        (instance,) = draw(TowerHanoi(variation=variation), 1)
        assert len(TowerHanoi(variation=variation).solve(instance)) == 2 ** int(variation[1:]) - 1


def test_hanoi_problems_are_counted_exactly():
    for mode, count in (("faithful", 6), ("wide", 27 * 26)):
        task = TowerHanoi(mode=mode)
        every = list(task.all_instances())
        assert len({i.prompt for i in every}) == len({i.key for i in every}) == len(every) == count
        assert task.log10_space() == pytest.approx(math.log10(count))
        assert {i.key for i in draw(task, 60)} <= {i.key for i in every}
        for instance in every:
            assert task.check(instance, task.solve(instance)).extra == {"optimal": 1.0}
    assert TowerHanoi(variation="n4", mode="wide").all_instances() is None


def test_renaming_pegs_maps_the_accepted_moves_onto_each_other():
    task = TowerHanoi(mode="wide")
    moves = [(d, a, b) for d in (1, 2, 3) for a, b in itertools.permutations("ABC", 2)]
    (instance,) = draw(task, 1, seed=3)
    start = instance.data[0]
    goal = next(g for g, d in distances(start).items() if d == 3)
    instance = dataclasses.replace(instance, data=(start, goal))
    names = (2, 0, 1)
    renamed = dataclasses.replace(
        instance, data=tuple(tuple(names[p] for p in at) for at in instance.data)
    )
    rename = {"ABC"[p]: "ABC"[q] for p, q in enumerate(names)}
    accepted = 0
    for count in (3, 4):
        for answer in itertools.product(moves, repeat=count):
            other = [(d, rename[a], rename[b]) for d, a, b in answer]
            ok = task.check(instance, answer).ok
            assert ok == task.check(renamed, other).ok
            accepted += ok
    assert accepted >= 2


# --- queens -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "boards"), [(4, 2), (5, 10), (6, 4), (8, 92)])
def test_every_solution_of_a_board_is_accepted(n, boards):
    task = NQueens(variation=f"n{n}")
    (instance,) = task.all_instances()
    assert {i.key for i in draw(task, 5)} == {instance.key}
    assert task.log10_space() == 0
    tried = itertools.product(range(n), repeat=n) if n < 8 else itertools.permutations(range(n))
    assert sum(task.check(instance, answer).ok for answer in tried) == boards


def test_placed_queens_are_kept_and_mirrored_boards_mirror_the_accepted_answers():
    task = NQueens(mode="wide")
    (empty,) = NQueens(variation="n8").all_instances()
    boards = [b for b in itertools.permutations(range(8)) if task.check(empty, b)]
    counts = []
    for instance in draw(task, 60):
        (given,) = instance.data
        mirrored = (tuple(-1 if c < 0 else 7 - c for c in given),)
        mirror = dataclasses.replace(instance, data=mirrored)
        kept = [b for b in boards if all(g in (-1, c) for g, c in zip(given, b, strict=True))]
        assert kept == [b for b in boards if task.check(instance, b)]
        assert kept == [b for b in boards if task.check(mirror, [7 - c for c in b])]
        counts.append(len(kept))
        assert 2 <= 8 - given.count(-1) <= 4
    assert min(counts) == 1 < max(counts)


def test_wide_boards_of_eight_are_counted():
    (empty,) = NQueens(variation="n8").all_instances()
    boards = [b for b in itertools.permutations(range(8)) if NQueens().check(empty, b)]
    shown = {
        tuple(board[r] if r in rows else -1 for r in range(8))
        for board in boards
        for k in (2, 3, 4)
        for rows in itertools.combinations(range(8), k)
    }
    task = NQueens(mode="wide")
    assert math.log10(len(shown)) == pytest.approx(task.log10_space(), abs=0.01)
    drawn = {i.data[0] for i in draw(task, 400)}
    assert drawn <= shown
    assert len(drawn) > 300


# --- Sudoku -------------------------------------------------------------------------------------

SETTINGS = [
    (variation, mode, technique)
    for variation in SudokuSolving.variations
    for mode in MODES
    for technique in (("",) if variation[0] == "9" else ("basic", "advanced", "expert"))
]


@pytest.mark.parametrize(("variation", "mode", "technique"), SETTINGS)
def test_each_grid_has_exactly_one_solution(variation, mode, technique):
    task = SudokuSolving(variation=variation, mode=mode, technique=technique)
    n = task.size
    share = {"4": 2 / 3, "6": 3 / 5}.get(variation[0]) if technique == "expert" else None
    share = share or (1 / 3 if technique == "basic" or variation == "9x9_easy" else 1 / 2)
    for instance in draw(task, 8):
        symbols, regions, diagonal, cages, given = instance.data
        assert count_by_sat(Board(symbols, regions, diagonal, cages), given, limit=2) == 1
        blanks = given.count(0)
        assert 1 <= blanks <= min(n * n - n, share * 1.2 * n * n + 1)
        rows, shown, units, printed = sudoku_in(instance.prompt)
        assert shown == list(symbols)
        assert sum(row.count("_") for row in rows) == blanks
        assert bool(printed) == bool(cages) == (variation == "4x4_killer")
        assert len(units) == 3 * n + (2 if variation.endswith("diagonal") else 0)
        if printed:  # the cages cut up the grid
            assert sorted(c for _, cells in printed for c in cells) == sorted(
                itertools.product(range(4), repeat=2)
            )
            assert all(1 <= len(cells) <= 4 for _, cells in printed)


def latin_squares(symbols):
    rows = list(itertools.permutations(symbols))
    for square in itertools.product(rows, repeat=4):
        if all(len(set(column)) == 4 for column in zip(*square, strict=True)):
            yield [list(row) for row in square]


@pytest.mark.parametrize("variation", [v for v in SudokuSolving.variations if v[0] == "4"])
@pytest.mark.parametrize("mode", MODES)
def test_one_latin_square_of_576_is_accepted_and_renamed_numbers_rename_it(variation, mode):
    task = SudokuSolving(variation=variation, mode=mode, technique="expert")
    for instance in draw(task, 2):
        symbols, regions, diagonal, cages, given = instance.data
        squares = SQUARES
        names = dict(enumerate(symbols))
        accepted = []
        for square in squares:
            answer = [[names[i] for i in row] for row in square]
            ok = task.check(instance, answer).ok
            assert ok == valid_sudoku(instance.prompt, answer)
            accepted += [answer] if ok else []
        assert accepted == [task.solve(instance)]
        if cages:  # sums would change
            continue
        new = dict(zip(symbols, (7, 3, 9, 5), strict=True)) | {0: 0}
        renamed = dataclasses.replace(
            instance,
            data=((3, 5, 7, 9), regions, diagonal, cages, tuple(new[g] for g in given)),
        )
        for square in squares:
            answer = [[new[names[i]] for i in row] for row in square]
            same = answer == [[new[x] for x in row] for row in accepted[0]]
            assert task.check(renamed, answer).ok == same


SQUARES = list(latin_squares(range(4)))


def test_the_variant_is_part_of_the_check():
    # The published checker looked at rows, columns and boxes only.
    for variation, fault in (("4x4_diagonal", "diagonal"), ("4x4_irregular", "region")):
        task = SudokuSolving(variation=variation)
        (instance,) = draw(task, 1)
        blank = dataclasses.replace(instance, data=(*instance.data[:4], (0,) * 16))
        reasons = {
            task.check(blank, [[x + 1 for x in row] for row in square]).reason for square in SQUARES
        }
        assert any(fault in reason for reason in reasons)
        assert "" in reasons
    task = SudokuSolving(variation="4x4_killer")
    (instance,) = draw(task, 1)
    blank = dataclasses.replace(instance, data=(*instance.data[:4], (0,) * 16))
    plain = [
        s
        for s in SQUARES
        if "add up" in task.check(blank, [[x + 1 for x in row] for row in s]).reason
    ]
    assert plain


def test_complete_grids_are_counted():
    def grids(regions, diagonal):
        board = Board((1, 2, 3, 4), regions, diagonal, ())
        return count_by_sat(board, (0,) * 16, limit=1000)

    assert grids(box_map(4), False) == 288
    assert grids(box_map(4), True) == 48
    maps = irregular_maps()
    assert len(set(maps)) == len(maps) == 106
    assert box_map(4) not in maps
    assert sum(grids(m, False) for m in maps) == 12_432


def test_a_9x9_board_has_the_boxes_everyone_knows():
    assert box_map(9)[:9] == (0, 0, 0, 1, 1, 1, 2, 2, 2)
    assert [box_map(9)[r * 9] for r in range(9)] == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    assert [box_map(6)[r * 6 + 5] for r in range(6)] == [1, 1, 3, 3, 5, 5]


def test_a_board_without_a_solution_is_told():
    with pytest.raises(ValueError, match="cannot be completed"):
        complete([0, 1, -1, -1])
    with pytest.raises(ValueError, match="cannot be completed"):
        complete([-1, -1, -1])
    board = Board((1, 2, 3, 4), box_map(4), False, ())
    twice = (1, 1, *(0,) * 14)
    assert fill(board, twice, limit=2) == []
    with pytest.raises(ValueError, match="no solution"):
        solved_by_sat(board, twice)


def test_search_and_formula_count_the_same_grids():
    r = rng.keyed(5)
    for variation in SudokuSolving.variations[:6]:
        (instance,) = draw(SudokuSolving(variation=variation, mode="wide"), 1)
        symbols, regions, diagonal, cages, given = instance.data
        board = Board(symbols, regions, diagonal, cages)
        for kept in (2, 4, 6):
            shown = set(r.permutation(len(given))[: kept * len(given) // 16].tolist())
            some = tuple(g if i in shown else 0 for i, g in enumerate(given))
            found = fill(board, some, limit=50)
            assert len(set(found)) == len(found) == count_by_sat(board, some, limit=50)


def test_cages_bind_the_search_and_repeat_no_number():
    cage = (7, (0, 1, 2))  # of cells in one row: 1, 2 and 4 in any order
    board = Board((1, 2, 3, 4), box_map(4), False, (cage,))
    found = fill(board, (0,) * 16, limit=1000)
    assert len(found) == 288 // 4 == count_by_sat(board, (0,) * 16, limit=1000)
    assert {grid[3] for grid in found} == {3}
    for mode in MODES:
        task = SudokuSolving(variation="4x4_killer", mode=mode)
        for instance in draw(task, 20):
            full = [x for row in task.parse(instance.example) for x in row]
            for total, cells in instance.data[3]:
                assert sum(full[i] for i in cells) == total
                assert len({full[i] for i in cells}) == len(cells)
