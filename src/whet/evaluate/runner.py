"""Draw problems, judge answers. How answers are made is the caller's business."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from whet.errors import InputError, OptionError
from whet.evaluate.model import Generation
from whet.tasks import Instance, Split, Task, problems
from whet.tasks.answers import THINK, answer_part
from whet.tasks.base import size_of_space

Bucket = Literal["correct", "wrong", "unparsed", "truncated", "failed", "skipped_budget"]
BUCKETS: tuple[Bucket, ...] = (
    "correct",
    "wrong",
    "unparsed",
    "truncated",
    "failed",
    "skipped_budget",
)


@dataclass(frozen=True)
class Problem:
    """A problem with the task that can judge it. id: unique in its set."""

    id: str
    task: Task
    instance: Instance


@dataclass(frozen=True)
class Outcome:
    """An answer and what became of it.

    bucket: what it counts as; everything but "correct" scores 0, and "skipped_budget" is left out
    of every denominator. strict: valid, and in the form that the prompt asks for. tokens,
    forwards: what the model spent, where known.
    """

    problem: Problem
    text: str
    correct: bool
    bucket: Bucket = "wrong"
    strict: bool = False
    reason: str = ""
    tokens: int | None = None
    forwards: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """Problems, and sentences on cells that have fewer than asked for."""

    problems: list[Problem]
    notes: list[str]


def draw_problems(
    tasks: Sequence[Task], count: int, *, seed: int, split: Split = "test"
) -> list[Problem]:
    """`count` distinct problems, spread evenly over the tasks and interleaved.

    What a task with few problems cannot give, the others give.
    Errors: OptionError for a count below the number of tasks; InputError where all run out.
    """
    if count < len(tasks):
        raise OptionError(f"n={count} is too few: {len(tasks)} tasks need at least one each")
    wanted = _shares(tasks, count)
    return interleave([_draw(t, n, seed, split) for t, n in zip(tasks, wanted, strict=True)])


def _shares(tasks: Sequence[Task], count: int) -> list[int]:
    """How many problems each task gives. What none can give is asked of all."""
    spaces = [size_of_space(task) for task in tasks]
    wanted, left = [0] * len(tasks), count
    while left:
        able = [i for i, space in enumerate(spaces) if space is None or wanted[i] < space] or range(
            len(tasks)
        )
        for i in able[:left]:
            wanted[i] += 1
        left -= min(left, len(able))
    return wanted


def draw_limited(tasks: Sequence[Task], limit: int, *, seed: int) -> Drawn:
    """`limit` distinct test problems for every task id, spread evenly over its cells.

    A cell with fewer problems gives all it has; that is noted.
    Errors: OptionError for a limit below 1.
    """
    if limit < 1:
        raise OptionError(f"limit={limit} must be at least 1")
    cells: dict[str, list[Task]] = {}
    for task in tasks:
        cells.setdefault(task.id, []).append(task)
    columns, notes = [], []
    for name, group in cells.items():
        share, rest = divmod(limit, len(group))
        if not share:
            notes.append(f"{name}: {limit} problems reach {rest} of its {len(group)} cells")
        for place, task in enumerate(group):
            wanted = share + (place < rest)
            space = size_of_space(task)
            if space is not None and space < wanted:
                notes.append(
                    f"{cell_name(task)}: {wanted} problems were asked, it has {space} in all"
                )
                wanted = space
            columns.append(_draw(task, wanted, seed, "test", missing=notes))
    return Drawn(interleave(columns), notes)


def cell_name(task: Task) -> str:
    """A task with its variation and size, as shown."""
    size = getattr(task, "size", None) if task.cell else None
    label = getattr(task, "label", task.id)
    return f"{label}, size {size}" if size else str(label)


def _draw(
    task: Task, count: int, seed: int, split: Split, *, missing: list[str] | None = None
) -> list[Problem]:
    """missing: takes a sentence where the task runs out, in place of the error."""
    drawn: list[Problem] = []
    try:
        for instance in problems(task, seed=seed, split=split, count=count):
            drawn.append(Problem(_name(task, instance), task, instance))
    except InputError:
        if missing is None or not drawn:
            raise
        missing.append(f"{cell_name(task)} gave {len(drawn)} problems, {count} were asked")
    return drawn


def by_task(asked: Iterable[Problem]) -> Iterable[list[Problem]]:
    """Problems apart by their task's id, in their order."""
    groups: dict[str, list[Problem]] = {}
    for problem in asked:
        groups.setdefault(problem.task.id, []).append(problem)
    return groups.values()


def interleave(columns: Sequence[Sequence[Problem]]) -> list[Problem]:
    """The first of every column, then the second, and so on."""
    longest = max(map(len, columns), default=0)
    return [c[i] for i in range(longest) for c in columns if i < len(c)]


def _name(task: Task, instance: Instance) -> str:
    """Of the problem itself, so that records with other seeds pair only those they share."""
    return f"{task.id}-{hashlib.blake2b(instance.key.encode(), digest_size=6).hexdigest()}"


def judge(problem: Problem, made: Generation, *, prompt: str = "") -> Outcome:
    """What an answer counts as. Nothing that a text says about itself matters.

    prompt: what the model read, where a template may have begun the thinking. Thinking is cut off
    first, and the problem itself where the text repeats it. A text that was cut short counts only
    by an answer in the form that was asked for: its last number may be an intermediate one.
    """

    extra: dict[str, float] = {}

    def outcome(bucket: Bucket, strict: bool = False, reason: str = "") -> Outcome:
        right = bucket == "correct"
        used = (made.tokens, made.forwards)
        return Outcome(problem, made.text, right, bucket, strict, reason, *used, extra)

    task, instance = problem.task, problem.instance
    if made.finish == "failed":
        return outcome("failed", reason=made.error)
    opened = prompt.rstrip().endswith(THINK[0])
    text = answer_part(THINK[0] + made.text if opened else made.text)
    if text is None:
        return outcome("truncated", reason="the thinking does not end")
    if task.separator:
        text = text.replace(instance.prompt, "\n")
    strict = task.parse(text, "strict")
    if strict is None and made.finish == "length":
        return outcome("truncated", reason="the text was cut off before an answer")
    answer = strict if strict is not None else task.parse(text, "lenient")
    if answer is None:
        return outcome("unparsed", reason="no answer found")
    verdict = task.check(instance, answer)
    extra.update(verdict.extra)
    if verdict.ok:
        return outcome("correct", strict is not None)
    if strict is not None and made.finish != "length":
        # A wrong marker may stand beside a right statement.
        loose = task.parse(text, "lenient")
        if loose is not None and loose != strict and task.check(instance, loose).ok:
            return outcome("correct", False)
    return outcome("wrong", reason=verdict.reason)


def judge_texts(asked: Sequence[Problem], texts: Iterable[str]) -> list[Outcome]:
    """One outcome per problem, for texts of which nothing else is known."""
    return [
        judge(problem, Generation(text=text, tokens=0))
        for problem, text in zip(asked, texts, strict=True)
    ]
