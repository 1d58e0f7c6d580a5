"""The hard suite of BeyondBench: 10 tasks with 68 variations; solvers certify them on request."""

from whet.tasks.beyondbench.base import BeyondTask
from whet.tasks.beyondbench.hard.colouring import GraphColoring
from whet.tasks.beyondbench.hard.cryptarithmetic import Cryptarithmetic
from whet.tasks.beyondbench.hard.hanoi import TowerHanoi
from whet.tasks.beyondbench.hard.logic_grid import LogicGrid
from whet.tasks.beyondbench.hard.matrix_chain import MatrixChain
from whet.tasks.beyondbench.hard.modular import ModularSystems
from whet.tasks.beyondbench.hard.optimization import ConstraintOptimization
from whet.tasks.beyondbench.hard.queens import NQueens
from whet.tasks.beyondbench.hard.sat import BooleanSat
from whet.tasks.beyondbench.hard.sudoku import SudokuSolving

TASKS: tuple[type[BeyondTask], ...] = (
    TowerHanoi,
    NQueens,
    GraphColoring,
    BooleanSat,
    SudokuSolving,
    Cryptarithmetic,
    MatrixChain,
    ModularSystems,
    ConstraintOptimization,
    LogicGrid,
)

__all__ = [
    "TASKS",
    "BooleanSat",
    "ConstraintOptimization",
    "Cryptarithmetic",
    "GraphColoring",
    "LogicGrid",
    "MatrixChain",
    "ModularSystems",
    "NQueens",
    "SudokuSolving",
    "TowerHanoi",
]
