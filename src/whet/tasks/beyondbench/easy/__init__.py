"""The easy suite of BeyondBench: 29 tasks, one operation on a list of whole numbers each."""

from whet.tasks.beyondbench.base import BeyondTask
from whet.tasks.beyondbench.easy.rows import ROWS
from whet.tasks.beyondbench.easy.task import EasyTask, task_class

TASKS: tuple[type[BeyondTask], ...] = tuple(task_class(row, __name__) for row in ROWS)
"""Classes such as `Sorting` and `SumOfDigits`: names of this module, like any class."""
globals().update({cls.__name__: cls for cls in TASKS})

__all__ = ["TASKS", "EasyTask"]
