"""A folder of records as one page with an index."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from whet.errors import InputError
from whet.measure.record import Arm, Metric, Record, find
from whet.report import words
from whet.report.page import Plot, render_page
from whet.report.plots import Point, frontier


def from_folder(folder: str | os.PathLike[str], *, title: str = "whet: measured results") -> str:
    """The HTML of one page with every record at or below `folder`, each with its frontier.

    Records are named by their path below the folder. Without matplotlib the page has no plots
    and says so. Errors: InputError where there is no folder or no record in it, or one is damaged.
    """
    root = Path(folder)
    found = find(root)
    if not found:
        raise InputError(f"no records in {root}: `whet reproduce` and `whet benchmark` write them")
    records = [(_name(path, root), record) for path, record in found]
    plotting = _can_plot()
    plots = {name: _plots(record) for name, record in records} if plotting else {}
    notes = [] if plotting else ["Plots are left out: they need the extra whet[plots]."]
    return render_page(records, title=title, record_plots=plots, notes=notes)


def frontier_of(record: Record) -> str | None:
    """The frontier of a record's arms as an SVG: its main quality against forwards.

    The quality is the metric "accuracy", else the first given as a fraction; the cost is the
    metric "forwards", else the cost of that name, per item where the number of items is known.
    None where fewer than two arms have both. Errors: OptionError where matplotlib is missing.
    """
    metric = _quality(record)
    if metric is None:
        return None
    arms = [arm for arm in record.arms if metric in arm.metrics and _total(arm) is not None]
    if len(arms) < 2:
        return None
    per_item = all("forwards" in arm.metrics or arm.metrics[metric].n for arm in arms)
    points = [_point(arm, arm.metrics[metric], per_item) for arm in arms]
    return frontier(
        points,
        xlabel="forwards per item" if per_item else "forwards",
        ylabel=words.heading(metric),
        title=f"{words.heading(metric).capitalize()} against forwards",
        percent=True,
    )


def _can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _plots(record: Record) -> list[Plot]:
    svg = frontier_of(record)
    caption = (
        "Up and left is better. Bars are the intervals of the table; the dashed line is the best "
        "quality each cost can buy."
    )
    return [] if svg is None else [(caption, svg)]


def _name(path: Path, root: Path) -> str:
    return path.stem if path == root else path.relative_to(root).with_suffix("").as_posix()


def _quality(record: Record) -> str | None:
    fractions = [
        name
        for name in words.metric_names(record.arms)
        if any(name in arm.metrics and arm.metrics[name].unit == "fraction" for arm in record.arms)
    ]
    return "accuracy" if "accuracy" in fractions else next(iter(fractions), None)


def _total(arm: Arm) -> float | None:
    """Forwards of an arm: a metric (a mean per item), else a cost (a total)."""
    if "forwards" in arm.metrics:
        return arm.metrics["forwards"].value
    return arm.cost.get("forwards")


def _point(arm: Arm, quality: Metric, per_item: bool) -> Point:
    total = _total(arm) or 0.0
    divide = per_item and "forwards" not in arm.metrics and quality.n
    low, high = quality.ci if quality.ci is not None else (None, None)
    return Point(
        label=arm.name,
        x=total / quality.n if divide and quality.n else total,
        y=quality.value,
        ylo=low,
        yhi=high,
        group=arm.chain.partition(":")[0],
    )
