"""Published benchmarks from local files: GSM8K, MATH, HumanEval, MBPP.

Their problems are public, so any model may have trained on them; prefer generated tasks where a
claim depends on it.
"""

from whet.errors import OptionError, nearest
from whet.tasks.static.base import Execute, ExecuteMany, StaticProblem, StaticTask
from whet.tasks.static.code import CodeTask, HumanEval, Mbpp
from whet.tasks.static.maths import Gsm8k, Gsm8kCot, MinervaMath
from whet.tasks.static.presets import PRESETS, Preset, get_preset

STATIC: dict[str, StaticTask] = {
    task.id: task for task in (Gsm8k(), Gsm8kCot(), MinervaMath(), HumanEval(), Mbpp())
}


def get_static(name: str) -> StaticTask:
    """A benchmark by name. Errors: OptionError with the nearest name."""
    if name not in STATIC:
        raise OptionError(f"unknown benchmark {name!r}: {nearest(name, STATIC)}")
    return STATIC[name]


__all__ = [
    "PRESETS",
    "STATIC",
    "CodeTask",
    "Execute",
    "ExecuteMany",
    "Preset",
    "StaticProblem",
    "StaticTask",
    "get_preset",
    "get_static",
]
