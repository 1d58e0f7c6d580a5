"""A solver that did not draw them agrees with what hard problems promise."""

import dataclasses

import pytest

from whet import rng
from whet.tasks.beyondbench import hard

MODES = ("faithful", "wide")
HARD = [(cls, name, mode) for cls in hard.TASKS for name in cls.variations for mode in MODES]


@pytest.mark.parametrize(("cls", "name", "mode"), HARD)
def test_every_instance_is_certified_by_a_solver(cls, name, mode):
    task = cls(variation=name, mode=mode)
    for index in range(3):
        assert task.certify(task.generate(rng.keyed(9, "certify", name, index))) == ""


def test_certificates_notice_what_is_wrong():
    graph = hard.GraphColoring(variation="wheel", size=8)
    made = graph.generate(rng.keyed(0, "wheel"))
    vertices, edges, k = made.data
    assert "colours are enough" in graph.certify(
        dataclasses.replace(made, data=(vertices, edges, k + 1))
    )
    board = hard.SudokuSolving()
    made = board.generate(rng.keyed(0, "board"))
    *rest, given = made.data
    assert "solutions" in board.certify(dataclasses.replace(made, data=(*rest, [0] * len(given))))
    grid = hard.LogicGrid(variation="size3_easy")
    made = grid.generate(rng.keyed(0, "grid"))
    people, categories, clues = made.data
    assert "solutions" in grid.certify(
        dataclasses.replace(made, data=(people, categories, clues[:1]))
    )
