"""One ruler for everything: records, statistics, time, memory and counts. No torch at import."""

from __future__ import annotations

from whet.measure.clock import (
    Clock,
    alternate,
    ratio_interval,
    ratio_of_medians,
    synchronize,
    timed,
)
from whet.measure.count import ForwardCount, count_forwards
from whet.measure.items import ItemData, align, load_items, save_items
from whet.measure.machine import Machine, commit, versions
from whet.measure.memory import Peak, peak_memory, run_isolated
from whet.measure.record import (
    Arm,
    Claim,
    Comparison,
    Items,
    Metric,
    Record,
    claim,
    find,
    judge,
    load,
    new_record,
    save,
    verdict,
)
from whet.measure.stats import bootstrap_mean, mcnemar, paired_bootstrap, wilson

__all__ = [
    "Arm",
    "Claim",
    "Clock",
    "Comparison",
    "ForwardCount",
    "ItemData",
    "Items",
    "Machine",
    "Metric",
    "Peak",
    "Record",
    "align",
    "alternate",
    "bootstrap_mean",
    "claim",
    "commit",
    "count_forwards",
    "find",
    "judge",
    "load",
    "load_items",
    "mcnemar",
    "new_record",
    "paired_bootstrap",
    "peak_memory",
    "ratio_interval",
    "ratio_of_medians",
    "run_isolated",
    "save",
    "save_items",
    "synchronize",
    "timed",
    "verdict",
    "versions",
    "wilson",
]
