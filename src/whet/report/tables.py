"""Records and rows as tables for the terminal, at most 100 columns wide."""

from __future__ import annotations

import json as json_module
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from whet.measure.record import Arm, Metric, Record
from whet.report import words
from whet.report.pairs import Pair

WIDTH = 100
_MOST_ACROSS = 9  # parts of a metric side by side

_STYLES: dict[bool | None, str] = {True: "green", False: "red", None: "yellow"}


def arms_table(record: Record) -> Table:
    """Every arm with its metrics (and intervals) and costs.

    One column each where that fits, if need be with the interval of the first metric alone; else
    one line each inside two columns.
    """
    title = record.title or record.method
    for intervals in (None, 1):
        wide = _wide(record, title, intervals)
        if _natural_width(wide) <= WIDTH:
            return wide
    return _stacked(record, title)


def sweep_table(record: Record, sets: Mapping[str, Sequence[str]]) -> Table:
    """One line per arm: its first metric and the costs in `sets` (cost -> names of arms that no
    other beats by it), with a star where it is in the set."""
    table = new_table(f"{record.title or record.method} (★ nothing else is as accurate for less)")
    quality = [n for n in words.metric_names(record.arms) if n not in sets][:1]
    for name in ("arm", *map(words.heading, quality), *map(words.heading, sets)):
        table.add_column(name, overflow="fold", justify="left" if name == "arm" else "right")
    for arm in record.arms:
        best = any(arm.name in names for names in sets.values())
        cells = [_text(words.metric(arm.metrics[n])) for n in quality]
        for cost, names in sets.items():
            value = words.value(arm.metrics[cost]) if cost in arm.metrics else "–"
            cells.append(_text(value + (" ★" if arm.name in names else "  ")))
        table.add_row(_text(arm.name), *cells, style="bold" if best else "")
    return table


def breakdown_tables(record: Record, *, without: Sequence[str] = ()) -> list[Table]:
    """A table for each metric that is given by part (per task), but for those named.

    Arms by parts with values only, or parts by arms where the parts would not fit across the
    screen, then with intervals if those fit.
    """
    tables = []
    for metric, names in words.breakdowns(record.arms).items():
        if metric in without:
            continue
        table = _arms_by_parts(record, metric, names)
        if len(names) > _MOST_ACROSS or _natural_width(table) > WIDTH:
            table = _parts_by_arms(record, metric, names, words.metric)
            if _natural_width(table) > WIDTH:
                table = _parts_by_arms(record, metric, names, words.value)
        tables.append(table)
    return tables


def _arms_by_parts(record: Record, metric: str, names: Sequence[str]) -> Table:
    table = new_table(words.parts_heading(metric))
    table.add_column("arm", overflow="fold")
    for name in names:
        table.add_column(name.partition("/")[2], justify="right", overflow="fold")
    for arm in record.arms:
        cells = _cells(names, arm.metrics, lambda n, arm=arm: words.value(arm.metrics[n]))  # type: ignore[misc]
        table.add_row(_text(arm.name), *cells)
    return table


def _parts_by_arms(
    record: Record, metric: str, names: Sequence[str], word: Callable[[Metric], str]
) -> Table:
    table = new_table(words.parts_heading(metric))
    table.add_column("part", overflow="fold")
    for arm in record.arms:
        table.add_column(arm.name, justify="right", overflow="fold")
    for name in names:
        cells = [word(arm.metrics[name]) if name in arm.metrics else "–" for arm in record.arms]
        table.add_row(_text(name.partition("/")[2]), *map(_text, cells))
    return table


def comparisons_table(record: Record) -> Table:
    """Every paired comparison of a record; an interval with no difference in it is said so."""
    table = new_table("Paired comparisons")
    for name in ("compared", "difference", "test", "so"):
        table.add_column(name, overflow="fold")
    for made in record.comparisons:
        kind = words.comparison_kind(made)
        neutral = 1.0 if kind == "ratio" else 0.0
        same = made.ci is not None and made.ci[0] <= neutral <= made.ci[1]
        table.add_row(
            _text(words.subject(kind, made.a, made.b, made.metric)),
            _text(words.comparison(made, words.unit_of(record, made.metric))),
            _text(made.test),
            _text("no measurable difference" if same else ""),
        )
    return table


def pairs_table(pairs: Sequence[Pair]) -> Table:
    """Arms of different records on the items they share."""
    table = new_table("Records compared on shared items")
    for name in ("a", "b", "items", "b − a", "p", "agree", "so"):
        table.add_column(name, overflow="fold")
    for pair in pairs:
        low, high = pair.ci
        table.add_row(
            _text(pair.a),
            _text(pair.b),
            f"{pair.n:,}",
            _text(words.effect("difference", pair.difference, (low, high), "fraction")),
            f"{pair.p:.2g}",
            f"{100 * pair.agreed:.1f}%",
            _text(pair.words),
        )
    return table


def claims_table(record: Record) -> Table:
    """Every claim: what was measured, against which target, and whether it holds, in words."""
    heading = words.VERDICTS[record.verdict] if record.verdict else "no verdict"
    table = new_table(f"Claims: {heading}")
    for name in ("claim", "measured", "value", "target", "result"):
        table.add_column(name, overflow="fold", no_wrap=name == "result")
    for claim in record.claims:
        unit = words.unit_of(record, claim.metric)
        table.add_row(
            _text(claim.text or claim.name),
            _text(words.subject(claim.kind, claim.a, claim.b, claim.metric)),
            _text(words.effect(claim.kind, claim.value, claim.ci, unit)),
            _text(words.target(claim, unit)),
            Text(words.MARKS[claim.ok], style=_STYLES[claim.ok]),
        )
    return table


def show(
    title: str,
    columns: Sequence[str] | Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    *,
    json: bool = False,
) -> None:
    """Print rows to stdout: a table of `columns` (keys, or key -> heading), or the rows as JSON.

    JSON holds the whole rows, whatever the columns, and nothing else goes to stdout.
    Errors: TypeError for a value JSON does not have, ValueError for NaN and infinity.
    """
    if json:
        text = json_module.dumps(list(rows), indent=1, ensure_ascii=False, allow_nan=False)
        sys.stdout.write(text + "\n")
        return
    headings = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
    table = new_table(title)
    for key, heading in headings.items():
        numeric = all(isinstance(row.get(key), (int, float, type(None))) for row in rows)
        table.add_column(heading, overflow="fold", justify="right" if rows and numeric else "left")
    for row in rows:
        table.add_row(*(_text(_cell(row.get(key))) for key in headings))
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table to stdout, no wider than the terminal or 100 columns."""
    columns = shutil.get_terminal_size((WIDTH, 24)).columns
    Console(file=sys.stdout, width=min(WIDTH, columns)).print(table)


def new_table(title: str) -> Table:
    """An empty table as all of ours look."""
    return Table(
        title=_text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _text(value: str) -> Text:
    """Text as it is: brackets in names and intervals are not markup."""
    return Text(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return words.plain(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(_cell(inner) for inner in value)
    return str(value)


def _wide(record: Record, title: str, intervals: int | None) -> Table:
    """intervals: how many metrics show theirs, None = all."""
    table = new_table(title)
    table.add_column("arm", overflow="fold")
    metrics = words.metric_names(record.arms)
    # A total of what stands there per item already is left to the page.
    costs = [name for name in words.cost_names(record.arms) if name not in metrics]
    headings = [words.heading(name) for name in metrics]
    headings += [words.cost_heading(name, record.arms) for name in costs]
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    for arm in record.arms:
        full = len(metrics) if intervals is None else intervals
        cells = _metric_cells(arm, metrics[:full])
        cells += _cells(metrics[full:], arm.metrics, lambda n, arm=arm: words.value(arm.metrics[n]))  # type: ignore[misc]
        table.add_row(_text(arm.name), *cells, *_cost_cells(arm, costs))
    return table


def _stacked(record: Record, title: str) -> Table:
    table = new_table(title)
    table.show_lines = True
    for name in ("arm", "metrics", "cost"):
        table.add_column(name, overflow="fold")
    for arm in record.arms:
        metrics = [
            f"{words.heading(k)} {words.metric(arm.metrics[k])}" for k in words.metric_names([arm])
        ]
        costs = [
            f"{words.heading(k)} {words.cost(k, arm.cost[k])}" for k in words.cost_names([arm])
        ]
        table.add_row(_text(arm.name), _text("\n".join(metrics)), _text("\n".join(costs)))
    return table


def _metric_cells(arm: Arm, names: Sequence[str]) -> list[Text]:
    return _cells(names, arm.metrics, lambda name: words.metric(arm.metrics[name]))


def _cost_cells(arm: Arm, names: Sequence[str]) -> list[Text]:
    return _cells(names, arm.cost, lambda name: words.cost(name, arm.cost[name]))


def _cells(
    names: Sequence[str], present: Mapping[str, object], word: Callable[[str], str]
) -> list[Text]:
    return [_text(word(name) if name in present else "–") for name in names]


def _natural_width(table: Table) -> int:
    console = Console(width=10_000)
    return console.measure(table).maximum
