"""The medium suite of BeyondBench: 5 tasks with 49 families of sequences."""

from whet.tasks.beyondbench.base import BeyondTask
from whet.tasks.beyondbench.medium import task

TASKS: tuple[type[BeyondTask], ...] = task.TASKS

__all__ = ["TASKS"]
