"""A compression's record as one table: a line per measure, both models and what changed."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from whet.measure.record import Arm, Comparison, Record
from whet.report import words
from whet.report.tables import new_table

_NAMES = {
    "disk": "on disk",
    "flops_per_token": "FLOPs per token",
    "prefill_tokens_per_second": "prefill, tokens/s",
    "decode_tokens_per_second": "decode, tokens/s",
    "added_bytes": "memory to load and read",
    "zeros": "zeros among the weights",
}


def compression_table(record: Record) -> Table:
    """Metrics of a record with two arms, the baseline first. Errors: ValueError for others."""
    before, after = record.arms
    table = new_table(record.title)
    for name in ("", before.name, after.name, "change"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    compared = {made.metric: made for made in record.comparisons if made.a == after.name}
    for name in words.metric_names([before, after]):
        if name not in before.metrics or name not in after.metrics:
            continue
        table.add_row(
            Text(_NAMES.get(name, words.heading(name))),
            Text(words.value(before.metrics[name])),
            Text(words.value(after.metrics[name])),
            Text(_change(before, after, name, compared.get(name), record)),
        )
    return table


def _change(before: Arm, after: Arm, name: str, made: Comparison | None, record: Record) -> str:
    """The comparison where there is one, else the ratio of the two values."""
    if made is not None:
        return words.comparison(made, words.unit_of(record, name))
    old, new = before.metrics[name], after.metrics[name]
    if old.unit == "fraction" or not old.value:
        return ""
    return words.effect("ratio", new.value / old.value, None, "")
