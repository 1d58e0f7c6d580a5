"""The medium suite of BeyondBench: 5 tasks."""

from whet.tasks.beyondbench.base import BeyondTask

TASKS: tuple[type[BeyondTask], ...] = ()
