"""Records as one HTML page that needs nothing else: no network, no server, no script to read it."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from whet._io import write_text
from whet.errors import InputError
from whet.measure.record import Arm, Record
from whet.report import words
from whet.report.canvas import LEGEND, Canvas, canvas_view
from whet.report.pairs import Pair

Plot = tuple[str, str]
"""A caption and an SVG."""

_UNSAFE = re.compile(
    r"<script|<foreignObject|<[^>]*\son\w+\s*=|<[^>]*href\s*=\s*[\"'](?!#)|url\([\"']?(?!#)", re.I
)


def render_page(
    records: Sequence[tuple[str, Record]],
    *,
    title: str,
    plots: Sequence[Plot] = (),
    canvases: Sequence[Canvas] = (),
    record_plots: Mapping[str, Sequence[Plot]] | None = None,
    notes: Sequence[str] = (),
    pairs: Sequence[Pair] = (),
) -> str:
    """One self-contained HTML page for `records` (name, record), in their order.

    plots: (caption, SVG) for the page as a whole. record_plots: those of one record, by its name.
    canvases: decoding to look at, step by step. pairs: arms of different records on the items they
    share. notes: sentences shown under the title.
    All text is escaped. Errors: InputError for an SVG with scripts or links, for a canvas that
    contradicts itself, or for two records of one name.
    """
    names = [name for name, _ in records]
    if len(set(names)) < len(names):
        raise InputError(f"records on a page need distinct names, got {names}")
    own = record_plots or {}
    template = _environment().get_template("page.html.jinja")
    return template.render(
        title=title,
        notes=notes,
        records=[
            _record_view(index, name, record, own.get(name, ()))
            for index, (name, record) in enumerate(records)
        ],
        plots=[_plot_view(plot) for plot in plots],
        canvases=[canvas_view(canvas) for canvas in canvases],
        legend=LEGEND,
        pairs=[_pair_view(pair) for pair in pairs],
    )


def write_page(path: str | os.PathLike[str], html: str) -> None:
    """Write a rendered page atomically. Errors: InputError where it cannot be written."""
    write_text(path, html)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("whet.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _plot_view(plot: Plot) -> dict[str, Any]:
    caption, svg = plot
    if not svg.lstrip().startswith("<svg") or _UNSAFE.search(svg):
        raise InputError(f"plot {caption!r} is not a plain <svg> without scripts and links")
    return {"caption": caption, "svg": Markup(svg)}


def _record_view(index: int, name: str, record: Record, plots: Sequence[Plot]) -> dict[str, Any]:
    return {
        "anchor": f"record-{index}",
        "name": name,
        "record": record,
        "title": record.title or record.method,
        "date": record.created[:10],
        "verdict": words.VERDICTS[record.verdict] if record.verdict else "",
        "columns": _columns(record),
        "breakdowns": [
            {
                "title": words.parts_heading(metric),
                "columns": [_metric_column(name, record.arms) for name in names],
            }
            for metric, names in words.breakdowns(record.arms).items()
        ],
        "arms": record.arms,
        "claims": [_claim_view(record, i) for i in range(len(record.claims))],
        "comparisons": [_comparison_view(record, i) for i in range(len(record.comparisons))],
        "plots": [_plot_view(plot) for plot in plots],
        "provenance": _provenance(record),
    }


def _columns(record: Record) -> list[dict[str, Any]]:
    """A heading and one cell per arm, for every metric and cost."""
    arms = record.arms
    metrics = [_metric_column(name, arms) for name in words.metric_names(arms)]
    return metrics + [_cost_column(name, arms) for name in words.cost_names(arms)]


def _metric_column(name: str, arms: Sequence[Arm]) -> dict[str, Any]:
    spread = _spread(name, arms)
    cells: list[dict[str, Any] | None] = []
    for arm in arms:
        measured = arm.metrics.get(name)
        if measured is None:
            cells.append(None)
            continue
        value, _, interval = words.metric(measured).partition(" [")
        bar = None
        if spread is not None and measured.ci is not None:
            bar = {
                "left": spread(measured.ci[0]),
                "right": 100 - spread(measured.ci[1]),
                "dot": spread(measured.value),
            }
        title = "" if measured.n is None else f"n = {measured.n:,}"
        cells.append(
            {"value": value, "interval": f"[{interval}" if interval else "", "bar": bar}
            | {"title": title}
        )
    heading = words.heading(name.partition("/")[2] or name)
    return {"heading": heading, "cost": False, "cells": cells}


def _spread(name: str, arms: Sequence[Arm]) -> Callable[[float], float] | None:
    """The position in percent, on a scale all arms share; None where no two values differ."""
    found = [arm.metrics[name] for arm in arms if name in arm.metrics]
    ends = [x for m in found for x in (m.value, *(m.ci or ()))]
    low, high = min(ends), max(ends)
    if high <= low:
        return None
    return lambda value: round(100 * (value - low) / (high - low), 2)


def _cost_column(name: str, arms: list[Arm]) -> dict[str, Any]:
    cells = [
        {"value": words.cost(name, arm.cost[name]), "interval": "", "bar": None, "title": ""}
        if name in arm.cost
        else None
        for arm in arms
    ]
    return {"heading": words.cost_heading(name, arms), "cost": True, "cells": cells}


def _claim_view(record: Record, index: int) -> dict[str, Any]:
    claim = record.claims[index]
    unit = words.unit_of(record, claim.metric)
    return {
        "text": claim.text or claim.name,
        "subject": words.subject(claim.kind, claim.a, claim.b, claim.metric),
        "effect": words.effect(claim.kind, claim.value, claim.ci, unit),
        "target": words.target(claim, unit),
        "mark": words.MARKS[claim.ok],
        "state": {True: "good", False: "bad", None: "open"}[claim.ok],
    }


def _comparison_view(record: Record, index: int) -> dict[str, Any]:
    made = record.comparisons[index]
    kind = words.comparison_kind(made)
    return {
        "subject": words.subject(kind, made.a, made.b, made.metric),
        "effect": words.comparison(made, words.unit_of(record, made.metric)),
        "test": made.test,
    }


def _pair_view(pair: Pair) -> dict[str, Any]:
    return {
        "a": pair.a,
        "b": pair.b,
        "n": f"{pair.n:,}",
        "effect": words.effect("difference", pair.difference, pair.ci, "fraction"),
        "p": f"{pair.p:.2g}",
        "agreed": f"{100 * pair.agreed:.1f}%",
        "words": pair.words,
    }


def _provenance(record: Record) -> list[tuple[str, str]]:
    machine = record.machine
    parts = [machine.cpu, f"{machine.cores} cores"]
    if machine.threads is not None:
        parts.append(f"{machine.threads} threads")
    if machine.memory_gib is not None:
        parts.append(f"{machine.memory_gib:g} GiB memory")
    parts += [machine.gpu or "no GPU used", machine.os]
    rows = [
        ("measured", f"{record.created}, level {record.level}"),
        ("commit", record.commit or "not from a checkout"),
        ("machine", ", ".join(parts)),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(record.versions.items()))),
        ("seeds", ", ".join(f"{k} {v}" for k, v in sorted(record.seeds.items())) or "none"),
    ]
    if record.settings:
        pairs = sorted(record.settings.items())
        rows.append(("settings", ", ".join(f"{k} = {v}" for k, v in pairs)))
    if record.items is not None:
        rows.append(("per-item outcomes", f"{record.items.path} (sha256 {record.items.sha256})"))
    return rows
