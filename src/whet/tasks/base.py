"""What a task is: problems made from a key, answers verified by computation.

A checker never compares with a stored string: where a problem has many valid answers all count.
Problems are split by a hash of their prompt, so that training, tuning and test problems are
disjoint whatever seeds made them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from whet import rng as rng_
from whet.errors import InputError, OptionError
from whet.spec import build

Split = Literal["train", "validation", "test"]
Mode = Literal["strict", "lenient"]

EVALUATION_ONLY = 3.0
"""log10 of the number of problems under which a task is never trained on."""


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is valid and, if not, why. extra: second measures of an answer."""

    ok: bool
    reason: str = ""
    extra: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One problem. `prompt` is what a model reads, `data` what the checker computes with.

    `example` is one valid answer text (of possibly many), drawn with the problem: a training
    target, never used by a checker. variation, size: the cell of a suite it belongs to.
    public: what makes it this problem, however it is worded (the prompt where nothing is given).
    """

    task: str
    prompt: str
    data: tuple[Any, ...]
    example: str
    variation: str = ""
    size: int | None = None
    public: str = ""

    @property
    def key(self) -> str:
        """What its split and its identity depend on."""
        return self.public or self.prompt


class Task(ABC):
    """A family of generated problems. Subclasses are frozen dataclasses: fields are settings.

    variations: names of the kinds of problem it has, where it has several. reasoning_allowance:
    tokens of working that a model is expected to need, as a multiple of those of the answer.
    separator: what stands between prompt and answer in solved examples.
    """

    id: ClassVar[str]
    summary: ClassVar[str]
    many_answers: ClassVar[bool]
    variations: ClassVar[tuple[str, ...]] = ()
    reasoning_allowance: ClassVar[float] = 0.0
    separator: ClassVar[str] = ""

    @abstractmethod
    def generate(self, rng: np.random.Generator) -> Instance:
        """Draw one problem, from `rng` alone."""

    @abstractmethod
    def check(self, instance: Instance, answer: Any) -> Verdict:
        """Whether a parsed answer solves the problem. An answer of a wrong type does not."""

    @abstractmethod
    def solve(self, instance: Instance) -> Any:
        """A valid answer, found by search from `data` alone (the oracle of the tests)."""

    @abstractmethod
    def log10_space(self) -> float:
        """log10 of the number of distinct problems (an estimate where counting is hard)."""

    @property
    def cell(self) -> tuple[str | int, ...]:
        """What beside the id names the streams of problems of these settings."""
        return ()

    @property
    def shares_problems(self) -> bool:
        """Whether settings that may be trained on hold some of these problems too."""
        return False

    def reserved(self, instance: Instance) -> bool:
        """Whether a problem also belongs to settings that are for evaluation only."""
        return False

    @property
    def answer_tokens(self) -> int | None:
        """Tokens an answer may take, where the task itself says so."""
        return None

    @classmethod
    def cells(cls, settings: Mapping[str, Any], sizes: Sequence[int] = ()) -> list[Task]:
        """The task at every variation and size that `settings` leave open.

        sizes: those asked for; impossible ones are left out. Tasks without such a choice give
        themselves.
        """
        return [build(cls, dict(settings), of=f"task {cls.id!r}")]

    def all_instances(self) -> Iterator[Instance] | None:
        """Every problem, where they are few enough to list; None elsewhere."""
        return None

    def render(self, answer: Any) -> str:
        """An answer as the text that a model should have written."""
        return str(answer)

    def parse(self, text: str, mode: Mode = "lenient") -> Any | None:
        """The answer in a model's text, blind to the truth; None where there is none.

        strict: only in the form the prompt asks for.
        """
        answer = text.strip().split("\n", 1)[0].strip()
        return answer or None

    def correct(self, instance: Instance, text: str) -> bool:
        """Whether a model's text holds a valid answer."""
        answer = self.parse(text)
        return answer is not None and self.check(instance, answer).ok


@runtime_checkable
class HasPaths(Protocol):
    """A task whose working can be written in several orders."""

    def paths(self, instance: Instance, rng: np.random.Generator, count: int) -> list[str]:
        """`count` independent workings; what `parse` finds in each is a valid answer."""


def check_setting(task: Task, name: str, low: float, high: float) -> None:
    """Errors: OptionError unless the task's setting `name` lies in [low, high]."""
    value = getattr(task, name)
    if not low <= value <= high:
        raise OptionError(f"task {task.id!r}: {name}={value} must be between {low:g} and {high:g}")


def split_of(key: str) -> Split:
    """The split a problem belongs to, by its key: 1/8 test, 1/16 validation, the rest train."""
    bucket = hashlib.blake2b(key.encode(), digest_size=2).digest()[0] % 16
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def evaluation_only(task: Task) -> bool:
    """Whether a task has too few problems to keep some away from training."""
    return task.log10_space() < EVALUATION_ONLY


def size_of_space(task: Task) -> int | None:
    """How many problems a task has, where they can be listed; None elsewhere."""
    if not evaluation_only(task):
        return None
    listed = task.all_instances()
    return None if listed is None else len(_evaluable(task, listed))


def _evaluable(task: Task, listed: Iterable[Instance]) -> list[Instance]:
    """Distinct problems; only those of the test split where others may be trained on."""
    unique = {instance.key: instance for instance in listed}
    if not task.shares_problems:
        return list(unique.values())
    return [instance for key, instance in unique.items() if split_of(key) == "test"]


def trainable(task: Task, instance: Instance) -> bool:
    """Whether a drawn problem may be trained on."""
    return split_of(instance.key) == "train" and not task.reserved(instance)


def problems(
    task: Task, *, seed: int, split: Split, count: int | None = None, distinct: bool = True
) -> Iterator[Instance]:
    """Problems of one split, the i-th from the key (seed, task, i); endless if `count` is None.

    A task with fewer than 1,000 problems is for evaluation only: all of them are test problems
    (unless other settings share them), in an order drawn from the seed where they can be listed.
    Errors: InputError where the task runs out of distinct problems, or another split than test
    is asked of a task that is for evaluation only.
    """
    small = evaluation_only(task)
    if small and split != "test":
        raise InputError(
            f"task {task.id!r} has {10 ** task.log10_space():.0f} problems in these settings, "
            "under 1,000: it is for evaluation only"
        )
    name = (task.id, *task.cell)
    listed = task.all_instances() if small and distinct else None
    if listed is not None:
        yield from _shuffled(_evaluable(task, listed), task, seed, count)
        return
    seen: set[str] = set()
    index = made = misses = 0
    while count is None or made < count:
        instance = task.generate(rng_.keyed(seed, "problem", *name, index))
        index += 1
        free = small and not task.shares_problems  # then every problem is a test problem
        wrong = not free and split_of(instance.key) != split
        wrong = wrong or (split == "train" and task.reserved(instance))
        if wrong or (distinct and instance.key in seen):
            misses += 1
            if misses > 2000:
                raise InputError(
                    f"task {task.id!r} ran out of distinct {split} problems after {made}: "
                    "ask for fewer or widen its settings"
                )
            continue
        misses = 0
        if distinct:
            seen.add(instance.key)
        made += 1
        yield instance


def _shuffled(
    instances: list[Instance], task: Task, seed: int, count: int | None
) -> Iterator[Instance]:
    if count is not None and count > len(instances):
        raise InputError(
            f"task {task.id!r} ran out of distinct test problems after {len(instances)}: "
            "ask for fewer or widen its settings"
        )
    order = rng_.keyed(seed, "order", task.id, *task.cell).permutation(len(instances))
    yield from (instances[i] for i in order[:count].tolist())
