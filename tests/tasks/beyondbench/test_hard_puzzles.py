"""Five hard tasks under the contract, against rules written from the prompts (`puzzle_rules`)."""

import dataclasses
import hashlib
import itertools
import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.tasks.beyondbench.puzzle_rules import CELLS, IDS, MODES, TASKS, VALID, cell, draw
from whet import rng
from whet.errors import OptionError
from whet.tasks.beyondbench.hard.colouring import GraphColoring
from whet.tasks.beyondbench.hard.hanoi import TowerHanoi
from whet.tasks.beyondbench.hard.queens import NQueens
from whet.tasks.beyondbench.hard.sat import BooleanSat
from whet.tasks.beyondbench.hard.sudoku import SudokuSolving
from whet.tasks.registry import Task

each_cell = pytest.mark.parametrize(("cls", "variation", "mode"), CELLS, ids=IDS)


def test_the_thirty_three_variations():
    assert [len(cls.variations) for cls in TASKS] == [6, 4, 10, 5, 8]
    assert all(cls.level == "hard" and issubclass(cls, Task) for cls in TASKS)
    assert len({cls.id for cls in TASKS}) == 5


def bare(instance):
    """What a checker and a solver may use: the data, after a trip through JSON."""
    data = json.loads(json.dumps(instance.data))
    return dataclasses.replace(instance, data=data, example="", prompt="", public="")


@each_cell
def test_solutions_and_examples_are_valid_by_the_rules_of_the_prompt(cls, variation, mode):
    valid = VALID[cls.id]
    for size in cls.default_sizes(variation, mode):
        task = cell(cls, variation, mode, size=size)
        for instance in draw(task, 50):
            solution = task.solve(bare(instance))
            assert task.check(bare(instance), solution)
            assert valid(instance.prompt, solution)
            for text in (task.render(solution), instance.example):
                for reading in ("strict", "lenient"):
                    again = task.parse(f"I think <answer>?</answer> or so.\n{text}\n", reading)
                    assert again == task.parse(text, reading)
                    assert task.check(instance, again)
                    assert valid(instance.prompt, again)
            assert task.parse(task.render(solution), "strict") == solution
            assert task.correct(instance, instance.example)
            assert instance.key == instance.public
            assert (instance.task, instance.variation, instance.size) == (cls.id, variation, size)


# --- mutation -----------------------------------------------------------------------------------


def mutants(task, instance, answer, r):
    """Answers near a valid one: entries swapped, changed, dropped, added, or left as they are."""
    if isinstance(task, TowerHanoi):
        i, j = (int(x) for x in r.integers(len(answer), size=2))
        n = len(instance.data[0])
        move = (int(r.integers(n + 2)), "ABC"[r.integers(3)], "ABCD"[r.integers(4)])
        disk, a, b = answer[i]
        there_and_back = [(disk, b, a), (disk, a, b)]
        yield answer[:i] + answer[i + 1 :]
        yield [*answer[:i], move, *answer[i + 1 :]]
        yield [*answer[:i], move, *answer[i:]]
        yield [*answer[: i + 1], *there_and_back, *answer[i + 1 :]]
        yield [answer[k] for k in swap(len(answer), i, j)]
        yield answer[:-1]
        yield [*answer, answer[-1]]
        yield []
    elif isinstance(task, NQueens):
        n = len(answer)
        i, j = (int(x) for x in r.integers(n, size=2))
        yield [answer[k] for k in swap(n, i, j)]
        yield [*answer[:i], answer[i] + int(r.choice([-1, 1, n])), *answer[i + 1 :]]
        yield answer[:-1]
        yield [*answer, 0]
        yield answer[::-1]
        yield [n - 1 - c for c in answer]
        yield [c + 1 for c in answer]
    elif isinstance(task, GraphColoring):
        u, v = r.choice(list(answer), size=2).tolist()
        yield {**answer, u: answer[v]}
        yield {**answer, u: answer[v], v: answer[u]}
        yield {**answer, u: "another"}
        yield {**answer, 1000: answer[u]}
        yield {k: c for k, c in answer.items() if k != u}
        yield dict.fromkeys(answer, "one")
        yield {k: str(i) for i, k in enumerate(answer)}
        yield {k: hashlib.md5(c.encode()).hexdigest()[:4] for k, c in answer.items()}
    elif isinstance(task, BooleanSat):
        u, v = r.choice(list(answer), size=2).tolist()
        yield {**answer, u: not answer[u]}
        yield {**answer, u: not answer[u], v: not answer[v]}
        yield {k: not t for k, t in answer.items()}
        yield {k: t for k, t in answer.items() if k != u}
        yield {**answer, 1000: True}
        yield dict.fromkeys(answer, bool(r.integers(2)))
    else:
        n = len(answer)
        i, j = (int(x) for x in r.integers(n, size=2))
        swapped = swap(n, i, j)
        a, b = answer[0][0], answer[0][1]
        yield [answer[k] for k in swapped]
        yield [[row[k] for k in swapped] for row in answer]
        yield [list(row) for row in zip(*answer, strict=True)]
        yield [[{a: b, b: a}.get(x, x) for x in row] for row in answer]
        yield [[x + (k == i and c == j) for c, x in enumerate(row)] for k, row in enumerate(answer)]
        yield answer[:-1]
        yield [row[:-1] for row in answer]
        yield [[0] * n] * n


def swap(n, i, j):
    order = list(range(n))
    order[i], order[j] = order[j], order[i]
    return order


@each_cell
def test_near_answers_are_judged_as_the_rules_of_the_prompt_judge_them(cls, variation, mode):
    task, valid = cell(cls, variation, mode), VALID[cls.id]
    refused = 0
    for i, instance in enumerate(draw(task, 20, seed=1)):
        solution = task.solve(instance)
        for mutant in mutants(task, instance, solution, rng.keyed(2, i)):
            verdict = task.check(instance, mutant)
            assert verdict.ok == valid(instance.prompt, mutant), (instance.prompt, mutant)
            assert bool(verdict.reason) != verdict.ok
            refused += not verdict.ok
    assert refused >= 40


JUNK = [
    None,
    True,
    0,
    1.5,
    float("nan"),
    "",
    "[1, 3, 0, 2]",
    b"x",
    [],
    {},
    (),
    set(),
    [None],
    [[]],
    [[None]],
    [{}],
    {"a": 1},
    {None: None},
    {0: None},
    {0: []},
    {True: True},
    {1: 1, 2: 0},
    [1.0, 3.0, 0.0, 2.0],
    [True, 3, 0, 2],
    ["1", "3", "0", "2"],
    [(1, "A", "C", "B")],
    [(True, "A", "C")],
    [("1", "A", "C")],
    [(1, 0, 2)],
    [(1, "AB", "C")],
    [(1, "", "C")],
    [[1.0] * 4] * 4,
    ["1234"] * 4,
    [[True] * 4] * 4,
    object(),
    np.arange(4),
]


@each_cell
def test_answers_of_a_wrong_type_never_pass_and_never_raise(cls, variation, mode):
    task = cell(cls, variation, mode)
    (instance,) = draw(task, 1)
    for junk in JUNK:
        assert not task.check(instance, junk)


def test_values_of_a_wrong_type_spoil_a_right_answer():
    (instance,) = draw(TowerHanoi(), 1)
    moves = TowerHanoi().solve(instance)
    assert TowerHanoi().check(instance, [list(m) for m in moves])
    assert not TowerHanoi().check(instance, [(str(d), a, b) for d, a, b in moves])
    (instance,) = draw(NQueens(), 1)
    assert NQueens().check(instance, (1, 3, 0, 2))
    assert not NQueens().check(instance, [1.0, 3, 0, 2])
    assert not NQueens().check(instance, [True, 3, 0, 2])
    task = GraphColoring(variation="cycle")
    (instance,) = draw(task, 1)
    colours = {0: 0, 1: 1, 2: 0, 3: 1, 4: "other"}
    assert task.check(instance, colours)
    assert task.check(instance, {v: f" {c} ".upper() for v, c in colours.items()})
    assert not task.check(instance, {str(v): c for v, c in colours.items()})
    assert not task.check(instance, {**colours, 4: 1.5})
    assert not task.check(instance, {**colours, 4: " "})
    (instance,) = draw(BooleanSat(), 1)
    truth = BooleanSat().solve(instance)
    assert not BooleanSat().check(instance, {v: int(t) for v, t in truth.items()})
    assert not BooleanSat().check(instance, {v: str(t) for v, t in truth.items()})
    (instance,) = draw(SudokuSolving(), 1)
    rows = SudokuSolving().solve(instance)
    assert SudokuSolving().check(instance, tuple(map(tuple, rows)))
    assert not SudokuSolving().check(instance, [[float(x) for x in row] for row in rows])
    assert not SudokuSolving().check(instance, [x for row in rows for x in row])


# --- randomness ---------------------------------------------------------------------------------

DIGEST = """
import hashlib
from tests.tasks.beyondbench.puzzle_rules import CELLS, cell
from whet import rng
digest = hashlib.sha256()
for cls, variation, mode in CELLS:
    instance = cell(cls, variation, mode).generate(rng.keyed(0, "draw", 7))
    digest.update((instance.prompt + instance.public + instance.example).encode())
print(digest.hexdigest())
"""


def test_the_same_key_gives_the_same_problem_alone_in_a_batch_and_in_a_fresh_process():
    digest = hashlib.sha256()
    for cls, variation, mode in CELLS:
        task = cell(cls, variation, mode)
        instance = draw(task, 8)[7]
        again = task.generate(rng.keyed(0, "draw", 7))
        assert again == instance
        digest.update((again.prompt + again.public + again.example).encode())
    out = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, timeout=300, check=True
    )
    assert out.stdout.strip() == digest.hexdigest()


def test_nothing_touches_the_global_random_state():
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    for cls, variation, mode in CELLS:
        task = cell(cls, variation, mode)
        (instance,) = draw(task, 1)
        task.check(instance, task.parse(task.render(task.solve(instance))))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


# --- settings -----------------------------------------------------------------------------------


def test_sizes_that_are_possible():
    assert [TowerHanoi(variation=v).size for v in TowerHanoi.variations] == [3, 4, 5, 6, 7, 8]
    assert [NQueens(variation=v).size for v in NQueens.variations] == [4, 5, 6, 8]
    wide = [NQueens.allowed_sizes(v, "wide") for v in NQueens.variations]
    assert list(itertools.chain(*wide)) == list(range(8, 15))
    assert list(GraphColoring.allowed_sizes("cycle", "wide")) == list(range(5, 29))
    assert tuple(GraphColoring.default_sizes("cycle", "faithful")) == (5, 8, 10)
    assert list(BooleanSat.allowed_sizes("xor", "faithful")) == list(range(4, 11))
    assert list(BooleanSat.allowed_sizes("xor", "wide")) == list(range(4, 21))
    assert tuple(BooleanSat.default_sizes("xor", "faithful")) == (4, 6, 8)
    sizes = [SudokuSolving(variation=v).size for v in SudokuSolving.variations]
    assert sizes == [4, 4, 4, 4, 6, 6, 9, 9]
    with pytest.raises(OptionError, match="size=9 is impossible, it must be 8"):
        NQueens(variation="n8", size=9)


@pytest.mark.parametrize("ratio", [2.4, 4.1, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(OptionError, match="ratio"):
        BooleanSat(ratio=ratio)


def test_the_ratio_sets_the_number_of_conditions():
    for ratio, count in ((2.5, 15), (3.0, 18), (3.4, 20), (4.0, 24)):
        (instance,) = draw(BooleanSat(size=6, ratio=ratio), 1)
        assert len(re.findall(r"^\d+\. ", instance.prompt, re.M)) == count


def test_an_unknown_technique_and_one_for_a_9x9_grid_are_refused():
    with pytest.raises(OptionError, match="technique='hard' is none of basic"):
        SudokuSolving(technique="hard")
    with pytest.raises(OptionError, match="technique='basic' must be left out"):
        SudokuSolving(variation="9x9_easy", technique="basic")


@pytest.mark.parametrize("mode", MODES)
def test_no_prompt_contains_an_answer(mode):
    # A model that repeats the prompt has given no answer.
    for cls in TASKS:
        for variation in cls.variations:
            task = cell(cls, variation, mode)
            for instance in draw(task, 3):
                for reading in ("strict", "lenient"):
                    found = task.parse(instance.prompt, reading)
                    assert found is None or not task.check(instance, found)
