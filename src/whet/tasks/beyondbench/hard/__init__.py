"""The hard suite of BeyondBench: 10 tasks."""

from whet.tasks.beyondbench.base import BeyondTask

TASKS: tuple[type[BeyondTask], ...] = ()
