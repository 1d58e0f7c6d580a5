"""Outcomes as metrics: strict and lenient accuracy, buckets, efficiency, by task and its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from whet.evaluate.runner import BUCKETS, Outcome, cell_name
from whet.measure.record import Comparison, Metric
from whet.measure.stats import mcnemar, paired_bootstrap, wilson


def counted(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that stand in a denominator."""
    return [o for o in outcomes if o.bucket != "skipped_budget"]


def accuracy_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row per task and a pooled one: n, correct, accuracy and its Wilson interval."""
    by_task = _grouped(outcomes, lambda o: o.problem.task.id)
    groups = [*by_task.items()]
    if len(groups) > 1:
        groups.append(("pooled", list(outcomes)))
    return [_row(name, group) for name, group in groups if counted(group)]


def cell_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row per task, variation and size, with the number of problems its space holds."""
    rows = []
    for group in _grouped(outcomes, lambda o: cell_name(o.problem.task)).values():
        task, instance = group[0].problem.task, group[0].problem.instance
        name = instance.task
        row: dict[str, Any] = {"cell": cell_name(task), "task": name}
        row |= {"variation": instance.variation, "size": instance.size or 0}
        row["log10_space"] = task.log10_space()
        row |= {b: sum(o.bucket == b for o in group) for b in BUCKETS}
        if counted(group):
            row |= {k: v for k, v in _row(name, group).items() if k not in ("task", "correct")}
            row["strict"] = sum(o.strict for o in group) / len(counted(group))
        rows.append(row)
    return rows


def _row(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    n, right = len(counted(outcomes)), sum(o.correct for o in outcomes)
    low, high = wilson(right, n)
    return {
        "task": name,
        "n": n,
        "correct": right,
        "accuracy": right / n,
        "low": low,
        "high": high,
    }


def accuracy_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, Metric]:
    """The rows as metrics of a record: "accuracy" (pooled) and "accuracy/TASK"."""
    metrics = {
        "accuracy" if row["task"] == "pooled" else f"accuracy/{row['task']}": _share(row)
        for row in rows
    }
    if metrics:
        metrics.setdefault("accuracy", next(iter(metrics.values())))
    return metrics


def outcome_metrics(outcomes: Sequence[Outcome]) -> dict[str, Metric]:
    """Everything a record says of one arm. Empty outcomes score 0 and never give NaN.

    accuracy: lenient, pooled; strict_accuracy: answers in the form asked for; both with Wilson
    intervals at 95 %. efficiency: accuracy in percent times 10 over mean tokens (BeyondBench).
    accuracy by task, size, variation and cell, with the number of problems of each cell; second
    measures (optimal Hanoi, near-optimal selections) over the answers that have them; the suites'
    means over tasks, and the mean of the suites, as BeyondBench reports them.
    """
    kept = counted(outcomes)
    skipped = Metric(value=len(outcomes) - len(kept), n=len(outcomes))
    if not kept:
        return {"skipped_budget": skipped}  # nothing was asked: no accuracy, not one of 0
    metrics = accuracy_metrics(accuracy_rows(outcomes))
    metrics["strict_accuracy"] = _rate([o.strict for o in kept])
    for bucket in ("wrong", "unparsed", "truncated", "failed"):
        found = sum(o.bucket == bucket for o in kept)
        if found:
            metrics[bucket] = Metric(value=found, n=len(kept))
    if len(kept) < len(outcomes):
        metrics["skipped_budget"] = skipped
    # Empty texts count as 0 tokens; where all do, nothing was counted.
    spent = [o.tokens for o in kept if o.tokens is not None]
    if any(spent) and len(spent) == len(kept):
        tokens = sum(spent) / len(spent)
        metrics["tokens"] = Metric(value=tokens, n=len(spent))
        metrics["efficiency"] = Metric(
            value=efficiency(100 * metrics["accuracy"].value, tokens), n=len(spent)
        )
    forwards = [o.forwards for o in kept if o.forwards is not None]
    if len(forwards) == len(kept):
        metrics["forwards"] = Metric(value=sum(forwards) / len(kept), n=len(kept))
    for name, key in (("size", _size), ("variation", _variation)):
        for part, group in sorted(_grouped(kept, key).items()):
            if part:
                metrics[f"accuracy by {name}/{part}"] = _share(_row(str(part), group))
    for row in cell_rows(outcomes):
        if row["size"] and "accuracy" in row:
            name = f"{row['cell']} (10^{row['log10_space']:.1f} problems)"
            metrics[f"accuracy by cell/{name}"] = _share(row)
    for name in dict.fromkeys(n for o in kept for n in o.extra):
        values = [o.extra[name] for o in kept if name in o.extra]
        metrics[name] = Metric(value=sum(values) / len(values), n=len(values), unit="fraction")
    metrics |= _suite_means(kept)
    return metrics


def efficiency(accuracy_percent: float, tokens: float) -> float:
    """Ten times accuracy in percent over mean output tokens (BeyondBench's leaderboard)."""
    return 10 * accuracy_percent / tokens if tokens else 0.0


def _suite_means(outcomes: Sequence[Outcome]) -> dict[str, Metric]:
    """Unweighted means: over a task's sizes, over a suite's tasks, over the suites."""
    suites: dict[str, list[float]] = {}
    for group in _grouped(outcomes, lambda o: o.problem.task.id).values():
        level = getattr(group[0].problem.task, "level", "")
        if level:
            by_size = _grouped(group, lambda o: o.problem.instance.size or 0).values()
            means = [sum(o.correct for o in part) / len(part) for part in by_size]
            suites.setdefault(level, []).append(float(np.mean(means)))
    metrics = {
        f"suite accuracy/{name}": Metric(value=float(np.mean(tasks)), n=len(tasks), unit="fraction")
        for name, tasks in suites.items()
    }
    if len(suites) == 3:
        mean = float(np.mean([np.mean(tasks) for tasks in suites.values()]))
        metrics["mean of suites"] = Metric(value=mean, n=3, unit="fraction")
    return metrics


def paired_comparisons(
    a: str, b: str, first: Sequence[float], second: Sequence[float]
) -> list[Comparison]:
    """Accuracy of `a` less that of `b` on the same problems: bootstrap interval, McNemar's p."""
    x, y = np.array(first, dtype=float), np.array(second, dtype=float)
    value, low, high = paired_bootstrap(x, y, "difference")
    agreed = float((x == y).mean())
    test = f"paired bootstrap and exact McNemar, {len(x)} problems, {100 * agreed:.1f} % agree"
    return [
        Comparison(
            a=a,
            b=b,
            metric="accuracy",
            value=value,
            ci=(low, high),
            test=test,
            p=mcnemar(x.astype(bool), y.astype(bool)),
        )
    ]


def _share(row: dict[str, Any]) -> Metric:
    return Metric(value=row["accuracy"], ci=(row["low"], row["high"]), n=row["n"], unit="fraction")


def _rate(flags: Sequence[bool]) -> Metric:
    return Metric(
        value=sum(flags) / len(flags), ci=wilson(sum(flags), len(flags)), n=len(flags),
        unit="fraction",
    )  # fmt: skip


def _size(outcome: Outcome) -> str:
    """Sizes of different tasks are different things: named with their task."""
    instance = outcome.problem.instance
    return f"{instance.task} {instance.size:02d}" if instance.size else ""


def _variation(outcome: Outcome) -> str:
    instance = outcome.problem.instance
    return f"{instance.task}: {instance.variation}" if instance.variation else ""


def _grouped(
    outcomes: Iterable[Outcome], key: Callable[[Outcome], Any]
) -> dict[Any, list[Outcome]]:
    groups: dict[Any, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return groups
