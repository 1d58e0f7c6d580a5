"""A folder of records as one page with an index."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from whet.errors import InputError
from whet.measure.record import Arm, Metric, Record, find
from whet.report import words
from whet.report.page import Plot, render_page
from whet.report.pairs import pair_records
from whet.report.parts import parts_plot, sizes_plot
from whet.report.plots import Point, frontier, pareto

_PICTURED = ("accuracy", "accuracy by size", "accuracy by variation")
"""Metrics by part that get a picture; cells are sizes and variations at once."""


def from_folder(*folders: str | os.PathLike[str], title: str = "whet: measured results") -> str:
    """The HTML of one page with every record at or below the folders, each with its pictures.

    Records are named by their path below their folder; arms of different records that answered
    the same items are compared. Without matplotlib the page has no plots and says so.
    Errors: InputError where there is no folder or no record in it, or one is damaged.
    """
    found = find_all(folders)
    records = [(name, record) for name, _, record in found]
    plotting = _can_plot()
    plots = {name: _plots(record) for name, record in records} if plotting else {}
    notes = [] if plotting else ["Plots are left out: they need the extra whet[plots]."]
    pairs = pair_records([(path, record) for _, path, record in found])
    return render_page(records, title=title, record_plots=plots, notes=notes, pairs=pairs)


def find_all(folders: Sequence[str | os.PathLike[str]]) -> list[tuple[str, Path, Record]]:
    """(name, path, record) of every record at or below the folders, once; names are distinct.

    Errors: InputError as in `from_folder`.
    """
    roots = [Path(folder) for folder in folders]
    once: dict[Path, tuple[Path, Path, Record]] = {}
    for root in roots:
        for path, record in find(root):
            once.setdefault(path.resolve(), (root, path, record))
    found = list(once.values())
    if not found:
        shown = ", ".join(map(str, roots))
        raise InputError(f"no records in {shown}: `whet reproduce` and `whet benchmark` write them")
    named = [_name(path, root) for root, path, _ in found]
    return [
        (name if named.count(name) == 1 else path.with_suffix("").as_posix(), path, record)
        for name, (_, path, record) in zip(named, found, strict=True)
    ]


def frontier_of(record: Record, cost: str = "forwards") -> str | None:
    """The frontier of a record's arms as an SVG: its main quality against a cost.

    The quality is the metric "accuracy", else the first given as a fraction; `cost` names a
    metric, else a cost, per item where the number of items is known. None where fewer than two
    arms have both. Errors: OptionError where matplotlib is missing.
    """
    metric = _quality(record)
    points, per_item = _points(record, metric, cost)
    if metric is None or len(points) < 2:
        return None
    name = words.heading(cost)
    return frontier(
        points,
        xlabel=f"{name} per item{' (s)' if words.unit_of_cost(cost) == 's' else ''}"
        if per_item
        else name,
        ylabel=words.heading(metric),
        title=f"{words.heading(metric).capitalize()} against {name}",
        percent=True,
    )


def pareto_sets(record: Record, costs: Sequence[str]) -> dict[str, list[str]]:
    """For each cost, the arms that no other beats: less cost at as much quality, or more quality.

    Read off the values; whether two arms differ is for their intervals to say.
    """
    metric = _quality(record)
    return {cost: [p.label for p in pareto(_points(record, metric, cost)[0])] for cost in costs}


def _points(record: Record, metric: str | None, cost: str) -> tuple[list[Point], bool]:
    """Arms that have both, and whether their costs are per item."""
    if metric is None:
        return [], False
    arms = [a for a in record.arms if metric in a.metrics and _total(a, cost) is not None]
    per_item = all(cost in arm.metrics or arm.metrics[metric].n for arm in arms)
    return [_point(arm, arm.metrics[metric], per_item, cost) for arm in arms], per_item


def _can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _plots(record: Record) -> list[Plot]:
    svg = frontier_of(record)
    caption = (
        "Up and left is better. Bars are the intervals of the table; the dashed line is the best "
        "quality each cost can buy."
    )
    plots = [] if svg is None else [(caption, svg)]
    known = words.breakdowns(record.arms)
    for metric in _PICTURED:
        names = known.get(metric, [])
        sizes = sizes_plot(record.arms, metric) if metric == "accuracy by size" and names else None
        if sizes is not None:
            plots.append(("One panel per task; bars are the intervals of the table.", sizes))
        elif len(names) > 1:
            picture = parts_plot(record.arms, metric)
            plots.append(("Marks are the values, lines the intervals of the table.", picture))
    return plots


def _name(path: Path, root: Path) -> str:
    return path.stem if path == root else path.relative_to(root).with_suffix("").as_posix()


def _quality(record: Record) -> str | None:
    fractions = [
        name
        for name in words.metric_names(record.arms)
        if any(name in arm.metrics and arm.metrics[name].unit == "fraction" for arm in record.arms)
    ]
    return "accuracy" if "accuracy" in fractions else next(iter(fractions), None)


def _total(arm: Arm, cost: str) -> float | None:
    """A cost of an arm: a metric (a mean per item), else a total."""
    return arm.metrics[cost].value if cost in arm.metrics else arm.cost.get(cost)


def _point(arm: Arm, quality: Metric, per_item: bool, cost: str) -> Point:
    total = _total(arm, cost) or 0.0
    divide = per_item and cost not in arm.metrics and quality.n
    low, high = quality.ci if quality.ci is not None else (None, None)
    return Point(
        label=arm.name,
        x=total / quality.n if divide and quality.n else total,
        y=quality.value,
        ylo=low,
        yhi=high,
        group=arm.chain.partition(":")[0],
    )
