"""What a task is: problems made from a key, answers verified by computation.

A checker never compares with a stored string: where a problem has many valid answers all count.
Problems are split by a hash of their prompt, so that training, tuning and test problems are
disjoint whatever seeds made them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from whet import rng as rng_
from whet.errors import InputError, OptionError

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One problem. `prompt` is what a model reads, `data` what the checker computes with.

    `example` is one valid answer text (of possibly many), drawn with the problem: a training
    target, never used by a checker.
    """

    task: str
    prompt: str
    data: tuple[Any, ...]
    example: str


class Task(ABC):
    """A family of generated problems. Subclasses are frozen dataclasses: fields are settings."""

    id: ClassVar[str]
    summary: ClassVar[str]
    many_answers: ClassVar[bool]

    @abstractmethod
    def generate(self, rng: np.random.Generator) -> Instance:
        """Draw one problem."""

    @abstractmethod
    def check(self, instance: Instance, answer: str) -> bool:
        """Whether a parsed answer solves the problem."""

    @abstractmethod
    def solve(self, instance: Instance) -> str:
        """A valid answer text, found by search from `data` alone (the oracle of the tests)."""

    @abstractmethod
    def log10_space(self) -> float:
        """log10 of the number of distinct problems (an estimate where counting is hard)."""

    def parse(self, text: str) -> str | None:
        """The answer in a model's text, blind to the truth; None where there is none."""
        answer = text.strip().split("\n", 1)[0].strip()
        return answer or None

    def correct(self, instance: Instance, text: str) -> bool:
        """Whether a model's text holds a valid answer."""
        answer = self.parse(text)
        return answer is not None and self.check(instance, answer)


def check_setting(task: Task, name: str, low: float, high: float) -> None:
    """Errors: OptionError unless the task's setting `name` lies in [low, high]."""
    value = getattr(task, name)
    if not low <= value <= high:
        raise OptionError(f"task {task.id!r}: {name}={value} must be between {low:g} and {high:g}")


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to: 1/8 test, 1/16 validation, the rest train."""
    bucket = hashlib.blake2b(prompt.encode(), digest_size=2).digest()[0] % 16
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def problems(
    task: Task, *, seed: int, split: Split, count: int | None = None, distinct: bool = True
) -> Iterator[Instance]:
    """Problems of one split, the i-th from the key (seed, task, i); endless if `count` is None.

    Errors: InputError where the task runs out of distinct problems.
    """
    seen: set[str] = set()
    index = made = misses = 0
    while count is None or made < count:
        instance = task.generate(rng_.keyed(seed, "problem", task.id, index))
        index += 1
        if split_of(instance.prompt) != split or (distinct and instance.prompt in seen):
            misses += 1
            if misses > 2000:
                raise InputError(
                    f"task {task.id!r} ran out of distinct {split} problems after {made}: "
                    "ask for fewer or widen its settings"
                )
            continue
        misses = 0
        if distinct:
            seen.add(instance.prompt)
        made += 1
        yield instance
