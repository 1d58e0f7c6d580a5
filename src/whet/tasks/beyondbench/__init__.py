"""BeyondBench: problems made afresh and checked by computation, which nobody can have trained on.

arXiv 2509.24210. 29 easy tasks (an operation on a list), 5 medium ones with 49 families of
sequences, 10 hard ones with 68 variations (puzzles, formulas, optimisation). An instance is drawn
from a key and can be made again from it; its answer is checked as a property, so that every valid
answer counts. Hard instances are solvable, unique or optimal as their prompt says, by an exact
search when they are drawn; `certify` has a solver that did not draw them say so again.

`faithful` draws as the paper's code does; `wide` draws from much larger spaces, for most cells
more than 10^15 problems. log10 of the number of problems of a cell stands in every record, since
the argument of the paper needs it to be large and for many of its cells it is not: n queens has
one problem a size, several families of sequences fewer than ten. Such cells are for evaluation
only, and those which the paper's filter leaves without any problem are listed with that reason.

Deviations from the published code (0.2.1), where that is wrong: correct answers to algebraic,
geometric, prime and complex sequences score; Hanoi ends at the stated peg; every queens board and
every colouring with the true chromatic number counts; formulas are satisfied by their planted
assignment, Horn formulas are Horn, exactly-one constraints are printed and checked as such;
Sudoku variants are printed with their regions and cages and have one solution by an exact count;
logic grids have exactly one solution and no canned fallback; parsing never looks at the problem's
numbers or its solution; failed generations stay in the denominator; nothing touches the global
random state. Cryptarithms are made from numbers, whose digits get random letters, instead of from
lists of words.
"""

from whet.tasks.beyondbench import easy, hard, medium
from whet.tasks.beyondbench.base import BeyondTask

SUITES: dict[str, tuple[type[BeyondTask], ...]] = {
    "easy": easy.TASKS,
    "medium": medium.TASKS,
    "hard": hard.TASKS,
}

__all__ = ["SUITES", "BeyondTask"]
