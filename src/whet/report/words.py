"""Numbers and judgements as people read them; the same words in the terminal and on the page."""

from __future__ import annotations

from whet.measure.record import Arm, Claim, Comparison, Kind, Metric, Record, Verdict

MARKS: dict[bool | None, str] = {True: "✓ holds", False: "✗ fails", None: "? open"}

VERDICTS: dict[Verdict, str] = {
    "reproduced": "✓ reproduced",
    "partly": "± partly reproduced",
    "not_reproduced": "✗ not reproduced",
    "undecided": "? undecided",
}

_METRIC_ORDER = (
    "accuracy",
    "forwards",
    "rows",
    "tokens_per_forward",
    "seconds",
    "tokens_per_second",
)
_COST_ORDER = ("forwards", "rows", "tokens", "steps", "seconds", "peak_bytes")
_HEADINGS = {
    "added_bytes": "memory",
    "arness": "ARness",
    "peak_bytes": "peak memory",
    "seconds": "time",
    "strict_accuracy": "strict",
    "tokens_per_forward": "tok/fwd",
    "tokens_per_second": "tok/s",
}
_SIGNS = {">=": "≥", "<=": "≤", "==": "="}


def plain(value: float) -> str:
    """A bare number: whole numbers in full (1,234), others as `decimal`."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return decimal(value)


def decimal(value: float) -> str:
    """A measured number with three or four digits: 1,234 or 123.4 or 12.34 or 0.123 or 0.00123."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.1 or size == 0 else f"{value:.3g}"


def quantity(value: float, unit: str) -> str:
    """A number with its unit; "fraction" becomes a percentage, bytes and seconds are scaled."""
    if unit == "fraction":
        return f"{100 * value:.1f}%"
    if unit == "bytes":
        return _bytes(value)
    if unit == "s":
        return _seconds(value)
    return f"{plain(value)}{_suffix(unit)}"


def metric(measured: Metric) -> str:
    """A value and its interval, as "71.5% [68.1, 74.6]"."""
    if measured.ci is None:
        return quantity(measured.value, measured.unit)
    value, (low, high), unit = measured.value, measured.ci, measured.unit
    if unit == "fraction":
        return f"{quantity(value, unit)} [{100 * low:.1f}, {100 * high:.1f}]"
    if unit in ("bytes", "s"):
        return f"{quantity(value, unit)} [{quantity(low, unit)}, {quantity(high, unit)}]"
    return f"{decimal(value)}{_suffix(unit)} [{_end(low)}, {_end(high)}]"


def value(measured: Metric) -> str:
    """A value without its interval."""
    return quantity(measured.value, measured.unit)


def cost(name: str, value: float) -> str:
    """A cost, its unit read off its name (…bytes, …seconds)."""
    return quantity(value, unit_of_cost(name))


def unit_of_cost(name: str) -> str:
    """The unit of the cost called `name`: "bytes", "s" or none."""
    return "bytes" if name.endswith("bytes") else "s" if name.endswith("seconds") else ""


def heading(name: str) -> str:
    """A column's title for a metric or cost."""
    return _HEADINGS.get(name, name.replace("_", " "))


def cost_heading(name: str, arms: list[Arm]) -> str:
    """A cost's title; "total" sets it apart from a metric (a mean per item) of the same name."""
    return f"{heading(name)}, total" if name in metric_names(arms) else heading(name)


def metric_names(arms: list[Arm]) -> list[str]:
    """The metrics of all arms: the usual ones first, then in the order they first appear.

    A metric of a part, named "accuracy/sudoku", is left to `breakdowns`.
    """
    present = list(dict.fromkeys(n for arm in arms for n in arm.metrics if "/" not in n))
    usual = [name for name in _METRIC_ORDER if name in present]
    return usual + [name for name in present if name not in usual]


def breakdowns(arms: list[Arm]) -> dict[str, list[str]]:
    """Metrics that are given by part: "accuracy" -> ["accuracy/queens", "accuracy/sudoku", …]."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(n for arm in arms for n in arm.metrics if "/" in n):
        found.setdefault(name.partition("/")[0], []).append(name)
    return found


def parts_heading(metric: str) -> str:
    """The title of a metric that is given by part; its name may say by what."""
    text = heading(metric).capitalize()
    return text if " by " in text else f"{text} by part"


def cost_names(arms: list[Arm]) -> list[str]:
    """The costs of all arms: the usual ones first, then the others by name."""
    present = {name for arm in arms for name in arm.cost}
    usual = [name for name in _COST_ORDER if name in present]
    return usual + sorted(present.difference(usual))


def effect(kind: Kind, value: float, ci: tuple[float, float] | None, unit: str) -> str:
    """A ratio ("0.420×") or difference ("+2.1 points") with its interval."""
    points = kind == "difference" and unit == "fraction"
    text = _effect(kind, value, unit) + (" points" if points else "×" if kind == "ratio" else "")
    if ci is None:
        return text
    return f"{text} [{_effect(kind, ci[0], unit)}, {_effect(kind, ci[1], unit)}]"


def target(claim: Claim, unit: str) -> str:
    """What a claim is held against, as "≤ 0.5×"."""
    sign = _SIGNS.get(claim.op, claim.op)
    if claim.kind == "ratio":
        return f"{sign} {claim.target:g}×"
    if claim.kind == "difference" and unit == "fraction":
        return f"{sign} {_signed(f'{100 * claim.target:g}')} points"
    if claim.kind == "difference":
        return f"{sign} {_signed(quantity(claim.target, unit))}"
    return f"{sign} {claim.target:g}"


def subject(kind: Kind, a: str, b: str, name: str) -> str:
    """What is compared, as "forwards: soar / greedy"."""
    sign = {"ratio": "/", "difference": "−", "order": "against", "equality": "="}[kind]
    return f"{heading(name)}: {a} {sign} {b}"


def comparison(made: Comparison, unit: str) -> str:
    """A comparison's value, interval and p-value; "ratio" in its test's name makes it a ratio."""
    text = effect(comparison_kind(made), made.value, made.ci, unit)
    return text if made.p is None else f"{text}, p = {_p(made.p)}"


def comparison_kind(made: Comparison) -> Kind:
    """Whether a comparison's value is a ratio or a difference, read off the name of its test."""
    return "ratio" if "ratio" in made.test.lower() else "difference"


def unit_of(record: Record, name: str) -> str:
    """The unit of a metric, or of a cost, that some arm of `record` has."""
    for arm in record.arms:
        if name in arm.metrics:
            return arm.metrics[name].unit
    return unit_of_cost(name)


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def _effect(kind: Kind, value: float, unit: str) -> str:
    """The number alone; its sign shows where it is a difference."""
    if kind != "difference":
        return decimal(value)
    if unit == "fraction":
        return _signed(f"{100 * value:.1f}")
    return _signed(quantity(value, unit) if unit else decimal(value))


def _signed(text: str) -> str:
    """A plus before positive numbers, a true minus before negative ones, nothing before zero."""
    digits = text.lstrip("-")
    if not any(mark in digits for mark in "123456789"):
        return digits
    return f"−{digits}" if text.startswith("-") else f"+{text}"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= size:
            return f"{value / size:.1f} {unit}"
    return f"{plain(value)} B"


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= size:
            return f"{_three(value / size)} {unit}"
    return f"{plain(value)} s"


def _three(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _end(value: float) -> str:
    """An end of an interval: a digit less than the value it stands beside."""
    return decimal(value) if abs(value) < 1 else _three(value)


def _suffix(unit: str) -> str:
    return unit if unit in ("", "%", "×") else f" {unit}"
