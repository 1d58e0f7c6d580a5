"""The easy suite of BeyondBench: 29 tasks."""

from whet.tasks.beyondbench.base import BeyondTask

TASKS: tuple[type[BeyondTask], ...] = ()
