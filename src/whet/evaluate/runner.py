"""Draw problems, judge answers, summarise. How answers are made is the caller's business."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from whet.errors import OptionError
from whet.measure.record import Metric
from whet.measure.stats import wilson
from whet.tasks import Instance, Split, Task, problems


@dataclass(frozen=True)
class Problem:
    """A problem with the task that can judge it. id: unique in its set."""

    id: str
    task: Task
    instance: Instance


@dataclass(frozen=True)
class Outcome:
    """An answer and whether it is valid."""

    problem: Problem
    text: str
    correct: bool


def draw_problems(
    tasks: Sequence[Task], count: int, *, seed: int, split: Split = "test"
) -> list[Problem]:
    """`count` distinct problems, spread evenly over the tasks and interleaved.

    Errors: OptionError for a count below the number of tasks; InputError where a task runs out.
    """
    if count < len(tasks):
        raise OptionError(f"n={count} is too few: {len(tasks)} tasks need at least one each")
    share, rest = divmod(count, len(tasks))
    columns = []
    for place, task in enumerate(tasks):
        wanted = share + (place < rest)
        drawn = problems(task, seed=seed, split=split, count=wanted)
        columns.append([Problem(_name(task, p), task, p) for p in drawn])
    return [c[i] for i in range(share + 1) for c in columns if i < len(c)]


def _name(task: Task, instance: Instance) -> str:
    """Of the prompt, so that records with other seeds pair only the problems they share."""
    return f"{task.id}-{hashlib.blake2b(instance.prompt.encode(), digest_size=6).hexdigest()}"


def judge_texts(asked: Sequence[Problem], texts: Iterable[str]) -> list[Outcome]:
    """One outcome per problem."""
    return [
        Outcome(problem, text, problem.task.correct(problem.instance, text))
        for problem, text in zip(asked, texts, strict=True)
    ]


def accuracy_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row per task and a pooled one: n, correct, accuracy and its Wilson interval."""
    by_task: dict[str, list[bool]] = {}
    for outcome in outcomes:
        by_task.setdefault(outcome.problem.task.id, []).append(outcome.correct)
    groups = [*by_task.items()]
    if len(groups) > 1:
        groups.append(("pooled", [o.correct for o in outcomes]))
    rows = []
    for name, correct in groups:
        n, right = len(correct), sum(correct)
        low, high = wilson(right, n)
        rows.append(
            {
                "task": name,
                "n": n,
                "correct": right,
                "accuracy": right / n,
                "low": low,
                "high": high,
            }
        )
    return rows


def accuracy_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, Metric]:
    """The rows as metrics of a record: "accuracy" (pooled) and "accuracy/TASK"."""
    metrics = {
        "accuracy" if row["task"] == "pooled" else f"accuracy/{row['task']}": Metric(
            value=row["accuracy"], ci=(row["low"], row["high"]), n=row["n"], unit="fraction"
        )
        for row in rows
    }
    metrics.setdefault("accuracy", next(iter(metrics.values())))
    return metrics
