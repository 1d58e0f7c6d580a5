"""Seven small tasks that fit a 16-token canvas; six have many valid answers.

Where an answer is unique, its tokens are nearly independent given the prompt and decoders cannot
be told apart. Many valid answers make tokens depend on each other: committing two at once can
mix two answers into none.
"""

from whet.tasks.scratchpad.grids import Colouring, Queens, Sudoku
from whet.tasks.scratchpad.sequences import Brackets, Ladder, Permutation, Sorting

__all__ = ["Brackets", "Colouring", "Ladder", "Permutation", "Queens", "Sorting", "Sudoku"]
