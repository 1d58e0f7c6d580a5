"""Generated problems with verified answers."""

from whet.tasks.base import Instance, Split, Task, problems, split_of
from whet.tasks.registry import SUITES, TASKS, expand, get_task

__all__ = [
    "SUITES",
    "TASKS",
    "Instance",
    "Split",
    "Task",
    "expand",
    "get_task",
    "problems",
    "split_of",
]
