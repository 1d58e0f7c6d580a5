"""What a step tells of every layer: JSON that says what did not go the usual way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from whet.compress.baselines.matrices import Matrix
from whet.compress.result import LayerReport


@dataclass(frozen=True)
class Told:
    """One matrix: what happened to it, how many numbers it has, and how many of them are left."""

    matrix: Matrix
    report: LayerReport
    size: int
    kept: int


def with_note(report: LayerReport, note: str) -> LayerReport:
    """The same with one sentence more, first."""
    return replace(report, notes=(note, *report.notes))


def layers_json(told: Iterable[Told]) -> dict[str, Any]:
    """Entries by layer; the experts of one tensor in one entry."""
    groups: dict[str, list[Told]] = {}
    for one in told:
        groups.setdefault(one.matrix.group, []).append(one)
    return {name: _entry(members) for name, members in groups.items()}


def _entry(members: list[Told]) -> dict[str, Any]:
    size, kept = sum(m.size for m in members), sum(m.kept for m in members)
    methods = sorted({m.report.method for m in members})
    found: dict[str, Any] = {"method": ", ".join(methods), "weights": size}
    if kept < size:
        found["sparsity"] = 1 - kept / size
    losses = [m.report.loss for m in members if m.report.loss is not None]
    if losses:
        found["loss"] = sum(losses) / len(losses)
    damps = [m.report.damp for m in members if m.report.damp is not None]
    if damps:
        found["damp"] = max(damps)
    dead = sum(m.report.dead for m in members)
    if dead:
        found["dead"] = dead
    notes: dict[str, list[int | None]] = {}
    for m in members:
        for note in m.report.notes:
            notes.setdefault(note, []).append(m.matrix.expert)
    if notes:
        found["notes"] = [_say(note, experts) for note, experts in notes.items()]
    return found


def _say(note: str, experts: list[int | None]) -> str:
    numbers = [str(e) for e in experts if e is not None]
    if not numbers:
        return note
    which = ", ".join(numbers[:8]) + (", ..." if len(numbers) > 8 else "")
    return f"{note} (experts {which})" if len(numbers) > 1 else f"{note} (expert {which})"


def say_all(notes: Mapping[str, Iterable[str]]) -> list[str]:
    """Notes of layers in sentences, each once, with the layers that it is of."""
    by_note: dict[str, list[str]] = {}
    for name, own in notes.items():
        for note in own:
            by_note.setdefault(note, []).append(name)
    return [
        f"{note}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for note, names in by_note.items()
    ]


def summary(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The blocks' reports, and over all: weights, the share that is 0, what fell back, which
    channels were dead and which experts saw too few tokens."""
    blocks = [dict(report) for report in reports]
    layers = {name: e for block in blocks for name, e in block.get("layers", {}).items()}
    weights = sum(entry["weights"] for entry in layers.values())
    gone = sum(entry["weights"] * entry.get("sparsity", 0.0) for entry in layers.values())
    cold = {
        name: seen["below"]
        for block in blocks
        for name, seen in block.get("observed", {}).items()
        if seen.get("below")
    }
    found: dict[str, Any] = {"weights": weights, "sparsity": gone / weights if weights else 0.0}
    notes = say_all({name: e.get("notes", ()) for name, e in layers.items()})
    for key, value in (
        ("notes", notes),
        ("dead", {name: e["dead"] for name, e in layers.items() if e.get("dead")}),
        ("cold_experts", cold),
    ):
        if value:
            found[key] = value
    return {**found, "blocks": blocks}
