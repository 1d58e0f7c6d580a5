"""Answers of five hard tasks read out of a model's text, friendly and hostile."""

import pytest

from tests.tasks.beyondbench.puzzle_rules import TASKS
from whet import rng
from whet.tasks.beyondbench.hard.colouring import GraphColoring
from whet.tasks.beyondbench.hard.hanoi import TowerHanoi
from whet.tasks.beyondbench.hard.queens import NQueens
from whet.tasks.beyondbench.hard.sat import BooleanSat
from whet.tasks.beyondbench.hard.sudoku import SudokuSolving

TWO = [(1, "A", "C"), (2, "A", "B")]


@pytest.mark.parametrize(
    "inside",
    [
        "Move disk 1 from peg A to peg C\nMove disk 2 from peg A to peg B",
        "1. Move disk 1 from peg A to peg C.\n2. Move disk 2 from peg A to peg B.",
        "Step 1: Move disk 1 from A to C\n\nStep 2: Transfer disk 2 from peg A to B",
        "1: A -> C\n2: A -> B",
        "- **Disk 1**: A → C\n- **Disk 2**: A → B",
        "  move DISC 1 from peg a to peg c\n\tmove the disk 2   from peg a to peg b ",
        "disk 1: A \\to C\ndisk 2: $A \\to B$",
        "Move disk 1 from rod A to rod C\nMove disk 2 from pole A to tower B",
        "Move disk 1 from Rod A to C.\n2: rod A -> rod B",
    ],
)
def test_ways_to_write_a_move(inside):
    assert TowerHanoi().parse(f"<answer>\n{inside}\n</answer>", "strict") == TWO
    assert TowerHanoi().parse(f"So:\n{inside}\n", "lenient") == TWO
    assert TowerHanoi().parse(inside, "strict") is None


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "none",
        "Move disk 1 from peg A to peg D",
        "Move disk from peg A to peg C",
        "Move disk k from peg X to peg Y\n...",
        "Move disk 1 from peg A to peg C and then disk 2 from peg A to peg B",
        "Move disk 1 from peg A to peg C\nthen think",
        "disk 1: A -> C, disk 2: A -> B",
        "Move disk 1111 from peg A to peg C",
    ],
)
def test_strict_reading_takes_moves_and_nothing_else(inside):
    assert TowerHanoi().parse(f"<answer>\n{inside}\n</answer>", "strict") is None


def test_lenient_reading_takes_the_last_run_of_moves():
    text = "Move disk 1 from peg A to peg B\nNo, wrong.\n" + (
        "First move disk 1 from peg A to peg C\n\nand disk 2 from peg A to peg B.\n\nDone."
    )
    assert TowerHanoi().parse(text) == TWO
    assert TowerHanoi().parse("disk 1: A -> C, disk 2: A -> B; done") == TWO
    assert TowerHanoi().parse("<answer>Thus disk 1: A -> C, disk 2: A -> B</answer> ok") == TWO
    assert TowerHanoi().parse("I cannot solve this.") is None


def test_the_last_marker_counts():
    for task, first, last, value in (
        (NQueens(), "[0, 1, 2, 3]", "[1, 3, 0, 2]", [1, 3, 0, 2]),
        (GraphColoring(), "{0: red}", "{0: 2, 1: Blue}", {0: "2", 1: "Blue"}),
        (BooleanSat(), "{x1: True}", "{x1: False}", {1: False}),
    ):
        text = f"<answer>{first}</answer> no: <answer>{last}</answer> that is it {first}"
        for mode in ("strict", "lenient"):
            assert task.parse(text, mode) == value
        assert task.parse(f"the result is {last}", "strict") is None
        assert task.parse(f"the result is {last}", "lenient") == value
        assert task.parse("", "lenient") is task.parse("<answer></answer>", "strict") is None


def test_ways_to_write_a_colouring():
    want = {0: "red", 1: "blue", 12: "3"}
    for inside in (
        "{0: red, 1: blue, 12: 3}",
        '{"0": "red", "1": "blue", "12": 3}',
        "vertex 0: red\nVertex 1: blue\nnode 12: 3",
        "v0 = red, v1 = blue, v12 = 3",
    ):
        assert GraphColoring().parse(f"<answer>{inside}</answer>", "strict") == want
    for inside in (
        "{0: red, 0: blue}",
        "{0: red, v0: blue}",
        "{hub: red}",
        "{0: " + "r" * 99 + "}",
    ):
        assert GraphColoring().parse(f"<answer>{inside}</answer>", "strict") is None


def test_ways_to_write_an_assignment():
    want = {1: True, 2: False, 13: True}
    for inside in (
        "{x_{1}: True, x_{2}: False, x_{13}: True}",
        "{x_1: True, x_2: False, x_13: True}",
        "$x_1$ = T\n$x_2$ = F\n$x_{13}$ = T",
        "x₁: 1, x₂: 0, x₁₃: 1",
    ):
        assert BooleanSat().parse(f"<answer>{inside}</answer>", "strict") == want
    for text in (r"$\{x_{1}: True, x_{2}: False, x_{13}: True\}$", "{x₁: T, x_2: F, x13: T}"):
        assert BooleanSat().parse(f"So it is {text}.") == want
    assert BooleanSat().parse("<answer>{x_{1}: True, x_1: False}</answer>") is None
    assert GraphColoring().parse("<answer>{v_{0}: red, v_1: blue}</answer>", "strict") == {
        0: "red",
        1: "blue",
    }


def test_ways_to_write_a_board():
    want = [1, 3, 0, 2]
    for inside in (
        "[1, 3, 0, 2]",
        "[[1], [3], [0], [2]]",
        "[[1],[3],[0],[2]]",
        "[1]\n[3]\n[0]\n[2]",
    ):
        assert NQueens().parse(f"<answer>{inside}</answer>", "strict") == want
    assert NQueens().parse("It is [[1], [3], [0], [2]].") == want
    for nested in ("[[0, 1], [1, 3], [2, 0], [3, 2]]", "[[0,1,0,0],[0,0,0,1],[1,0,0,0],[0,0,1,0]]"):
        assert NQueens().parse(f"<answer>{nested}</answer>") is None
        assert NQueens().parse(f"It is {nested}.") is None


@pytest.mark.parametrize("cls", TASKS)
def test_a_repeated_prompt_answers_nothing(cls):
    instance = cls().generate(rng.keyed(0, "draw", 0))
    for mode in ("strict", "lenient"):
        assert cls().parse(instance.prompt, mode) is None
        assert cls().parse(f"Fine.\n{instance.prompt}\nDone.", mode) is None
    assert cls().correct(instance, f"{instance.prompt}\n{instance.example}")


GRID = [[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]
LINES = [", ".join(map(str, row)) for row in GRID]


def test_ways_to_write_a_grid():
    bracketed = "\n".join(f"[{line}]" for line in LINES)
    nested = "[" + ",".join(f"[{line}]" for line in LINES) + "]"
    for inside in (bracketed, nested, str(GRID), bracketed.replace(", ", " ")):
        assert SudokuSolving().parse(f"<answer>\n{inside}\n</answer>", "strict") == GRID
        assert SudokuSolving().parse(f"[4, 3, 2, 1]\nIt is\n{inside}\nI hope.") == GRID
    for loose in ("\n".join(LINES), "\n".join(LINES).replace(",", ""), "| ".join(["", *LINES])):
        assert SudokuSolving().parse(f"<answer>{loose}</answer>", "strict") is None
    assert SudokuSolving().parse("The rows:\n" + "\n".join(LINES)) == GRID
    assert SudokuSolving().parse("\n".join(f"| {x.replace(',', ' |')} |" for x in LINES)) == GRID
    for bad in (
        bracketed.replace("1", "_"),
        bracketed + " end",
        bracketed.replace("1", "-1"),
        "[]",
    ):
        assert SudokuSolving().parse(f"<answer>{bad}</answer>", "strict") is None


MIB = 1 << 20
HOSTILE = {
    "braces": "{" * MIB,
    "nested": "{" * (MIB // 2) + "}" * (MIB // 2),
    "nested in a marker": "<answer>" + "[{" * (MIB // 4) + "}]" * (MIB // 4) + "</answer>",
    "brackets": "[1, " * (MIB // 4),
    "markers": "<answer>" * (MIB // 8),
    "pairs": "<answer>" + "1: a, " * (MIB // 6) + "</answer>",
    "spaces": "<answer>" + (" " * 130 + "a" + " " * 130 + ",") * (MIB // 262) + "</answer>",
    "disks": "disk 1 from " * (MIB // 12),
    "one long line": "Move disk 1 from peg A to peg B " * (MIB // 32),
    "digits": "9" * MIB,
    "unicode digits": "<answer>[" + "٣, " * (MIB // 8) + "x²]</answer>",
    "nul": "\0" * MIB,
    "surrogates": "<answer>{\ud800: \udfff}</answer>" * (MIB // 32),
    "lines": "1: A ->\n" * (MIB // 8),
    "says": "answer: {1: a\n" * (MIB // 14),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_read_without_error(name):
    for cls in TASKS:
        for mode in ("strict", "lenient"):
            cls().parse(HOSTILE[name], mode)
