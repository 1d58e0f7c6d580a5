"""Generated problems with verified answers."""

from whet.tasks.base import (
    Instance,
    Mode,
    Split,
    Task,
    Verdict,
    evaluation_only,
    problems,
    split_of,
    trainable,
)
from whet.tasks.registry import SUITES, TASKS, expand, get_task

__all__ = [
    "SUITES",
    "TASKS",
    "Instance",
    "Mode",
    "Split",
    "Task",
    "Verdict",
    "evaluation_only",
    "expand",
    "get_task",
    "problems",
    "split_of",
    "trainable",
]
