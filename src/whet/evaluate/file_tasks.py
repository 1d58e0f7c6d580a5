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
from whet.tasks.static import STATIC, get_static, latex
from whet.tasks.static.base import StaticProblem, StaticTask
from whet.tasks.static.code import CodeTask, HumanEval
from whet.tasks.static.maths import Gsm8k, MinervaMath

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

    def stop(self, *, chat: bool) -> tuple[str, ...]:
        """Strings that end an answer while it is written.

        Chat models write whole functions in a fenced block, which HumanEval's strings would cut.
        """
        return () if chat and isinstance(self.static, HumanEval) else self.static.stop

    def parse(self, text: str, mode: Mode = "lenient") -> Reading | None:
        """The whole text: scoring cuts it. None where it is empty or states no answer.

        GSM8K's form is asked for by strict reading only.
        """
        static, cut = self.static, self.static.cut(text)
        if isinstance(static, Gsm8k):
            found = mode == "lenient" or static.stated(cut) is not None
        elif isinstance(static, MinervaMath):
            found = (latex.boxed(cut) or latex.said(cut)) is not None
        else:
            found = True
        return Reading(mode, text) if found and text.strip() else None

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
    Errors: OptionError for an unknown name, a missing folder, or programs that could not be
    enclosed; InputError for missing or damaged files.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit} must be at least 1")
    found = []
    for name in dict.fromkeys(names):
        task = file_task(name, allow_unsandboxed=allow_unsandboxed)
        if isinstance(task.static, CodeTask) and task.execute is not None:
            task.execute("")  # what keeps programs from running shows before a model answers
        examples = task.static.fewshot(data, task.static.num_fewshot if shots is None else shots)
        for problem in task.static.load(data)[:limit]:
            instance = task.instance(problem, examples)
            found.append(Problem(f"{name}-{problem.id}", task, instance))
    return found


def is_static(name: str) -> bool:
    """Whether a task name is a benchmark from files."""
    return name.partition(":")[0] in STATIC
