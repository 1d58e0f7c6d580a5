"""Static benchmarks from local files (GSM8K, HumanEval, …) under the contract of tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from whet.errors import InputError, OptionError
from whet.evaluate.runner import Problem
from whet.tasks.base import Instance, Mode, Task, Verdict
from whet.tasks.static import STATIC, get_static
from whet.tasks.static.base import StaticProblem, StaticTask

_STRICT, _FLEXIBLE = "strict", "flexible"


@dataclass(frozen=True)
class Reading:
    """A text and how it is to be read; nothing is executed before it is checked."""

    mode: Mode
    text: str


class FileTask(Task):
    """A benchmark whose problems are fixed: they are loaded, never drawn.

    execute: runs a program and says whether it succeeded; needed by code tasks.
    """

    summary: ClassVar[str] = "problems from a file"
    many_answers: ClassVar[bool] = True

    def __init__(self, static: StaticTask, execute: Callable[[str], bool] | None = None) -> None:
        self.static, self.execute = static, execute
        self.known: dict[str, StaticProblem] = {}
        self._scores: dict[tuple[str, str], dict[str, float]] = {}

    def generate(self, rng: np.random.Generator) -> Instance:
        """Errors: InputError, always."""
        raise InputError(f"the problems of {self.static.id!r} come from a file, none can be drawn")

    def instance(self, problem: StaticProblem, shots: Sequence[StaticProblem]) -> Instance:
        """A loaded problem, its solved examples before it."""
        self.known[problem.id] = problem
        return Instance(
            task=self.static.id,
            prompt=self.static.prompt(problem, shots),
            data=(problem.id,),
            example=self.static.solution(problem),
            public=f"{self.static.id}:{problem.id}",
        )

    def parse(self, text: str, mode: Mode = "lenient") -> Reading | None:
        """The text before the first stop string; None where it is empty."""
        cut = self.static.cut(text)
        return Reading(mode, cut) if cut.strip() else None

    def check(self, instance: Instance, answer: Any) -> Verdict:
        """By the benchmark's own metrics; GSM8K has a strict and a flexible one."""
        if not isinstance(answer, Reading):
            return Verdict(False, "not a text")
        scores = self._score(instance.data[0], answer.text)
        name = self.static.metrics[0]
        if answer.mode == "lenient" and _FLEXIBLE in scores:
            name = _FLEXIBLE
        return Verdict(scores[name] == 1.0, "" if scores[name] else f"{name} is 0", scores)

    def _score(self, name: str, text: str) -> dict[str, float]:
        """Programs are run once, however often they are asked about."""
        key = (name, text)
        if key not in self._scores:
            self._scores[key] = self.static.score(self.known[name], text, self.execute)
        return self._scores[key]

    def solve(self, instance: Instance) -> Reading:
        """The reference."""
        return Reading("strict", self.static.solution(self.known[instance.data[0]]))

    def render(self, answer: Any) -> str:
        """The text of a reading."""
        return str(answer.text)

    def log10_space(self) -> float:
        """Of the problems loaded."""
        return math.log10(max(1, len(self.known)))

    @property
    def answer_tokens(self) -> int | None:
        """See `Task`."""
        return self.static.max_new_tokens


def file_task(name: str, *, allow_unsandboxed: bool = False) -> FileTask:
    """A static benchmark by name; its programs run in the sandbox.

    Errors: OptionError for an unknown name (nearest match).
    """
    static = get_static(name)

    def execute(program: str) -> bool:
        from whet.evaluate.sandbox import run_code

        return bool(run_code(program, allow_unsandboxed=allow_unsandboxed))

    made: FileTask = type("FileTask", (FileTask,), {"id": static.id})(static, execute)
    return made


def load_problems(
    names: Sequence[str],
    data: Path | None,
    *,
    limit: int | None = None,
    shots: int | None = None,
    allow_unsandboxed: bool = False,
) -> list[Problem]:
    """The first `limit` problems of every benchmark, with `shots` solved examples each.

    shots: None takes the benchmark's usual number.
    Errors: OptionError for an unknown name or a missing folder; InputError for missing or damaged
    files.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit} must be at least 1")
    found = []
    for name in names:
        task = file_task(name, allow_unsandboxed=allow_unsandboxed)
        examples = task.static.fewshot(data, task.static.num_fewshot if shots is None else shots)
        for problem in task.static.load(data)[:limit]:
            instance = task.instance(problem, examples)
            found.append(Problem(f"{name}-{problem.id}", task, instance))
    return found


def is_static(name: str) -> bool:
    """Whether a task name is a benchmark from files."""
    return name.partition(":")[0] in STATIC
