"""Per-item outcomes, stored beside a record in columns, so that any two records can be paired."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from whet._io import write_text
from whet.errors import InputError
from whet.measure.schema import Items, Record

_FORMAT = "whet-items-1"

ItemId = str | int
Cell = int | float | str | None


class ItemData(TypedDict):
    """ids: one per item. arms: arm -> column ("correct", "steps", "rows", ...) -> one cell each."""

    ids: list[ItemId]
    arms: dict[str, dict[str, list[Cell]]]


def save_items(
    path: str | os.PathLike[str],
    data: Mapping[str, Any],
    *,
    folder: str | os.PathLike[str] | None = None,
) -> Items:
    """Write the outcomes as compact JSON; return what the record stores about them.

    data: as `ItemData`; columns may be lists, numpy arrays or tensors, booleans become 0 and 1.
    folder: where the record will lie, the folder of `path` by default.
    Errors: InputError where a column's length is not the number of ids, ids repeat, a cell is no
    finite number, text or None, or the file does not lie in or below `folder`.
    """
    target = Path(path)
    base = Path(folder) if folder is not None else target.parent
    try:
        relative = target.resolve().relative_to(base.resolve())
    except ValueError:
        raise InputError(
            f"items {target} must lie in or below the record's folder {base}"
        ) from None
    clean = _clean(data, target)
    text = json.dumps({"format": _FORMAT, **clean}, separators=(",", ":"), ensure_ascii=False)
    write_text(target, text + "\n")
    return Items(path=relative.as_posix(), sha256=_digest((text + "\n").encode()))


def load_items(record_path: str | os.PathLike[str], record: Record) -> ItemData:
    """The outcomes of `record`, which was loaded from `record_path`.

    Errors: InputError if the record has none, or the file is missing, damaged or not the one
    (by its SHA-256) the record was made from.
    """
    if record.items is None:
        raise InputError(f"{record_path} has no per-item outcomes")
    path = Path(record_path).parent / PurePosixPath(record.items.path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if _digest(raw) != record.items.sha256:
        raise InputError(f"{path} is not the file that {record_path} was made from: measure again")
    value = json.loads(raw)
    if value.pop("format", None) != _FORMAT:
        raise InputError(f"{path} is not an items file of format {_FORMAT!r}")
    return _clean(value, path)


def align(
    a: ItemData, arm_a: str, b: ItemData, arm_b: str, column: str
) -> tuple[list[Cell], list[Cell]]:
    """One column of two arms over the items both have, in a's order: ready for a paired test.

    a, b: the same data for two arms of one record, or those of two records.
    Errors: InputError where an arm or the column is missing, or no id is shared.
    """
    values_a, values_b = _column(a, arm_a, column), _column(b, arm_b, column)
    where = {item: position for position, item in enumerate(b["ids"])}
    pairs = [
        (value, values_b[where[item]])
        for item, value in zip(a["ids"], values_a, strict=True)
        if item in where
    ]
    if not pairs:
        raise InputError(f"arms {arm_a!r} and {arm_b!r} share no item, so they cannot be paired")
    return [x for x, _ in pairs], [y for _, y in pairs]


def _column(data: ItemData, arm: str, column: str) -> list[Cell]:
    columns = data["arms"].get(arm)
    if columns is None:
        raise InputError(f"no arm {arm!r} in these items: they have {sorted(data['arms'])}")
    if column not in columns:
        raise InputError(f"arm {arm!r} has no column {column!r}: it has {sorted(columns)}")
    return columns[column]


def _clean(data: Mapping[str, Any], path: Path) -> ItemData:
    if set(data) != {"ids", "arms"}:
        raise InputError(f"items {path} have the fields {sorted(data)}; needed are ids and arms")
    ids = _plain(data["ids"])
    if len(set(ids)) < len(ids):
        raise InputError(f"items {path}: ids repeat")
    arms: dict[str, dict[str, list[Cell]]] = {}
    for arm, columns in data["arms"].items():
        arms[arm] = {}
        for name, values in columns.items():
            cells = _plain(values)
            if len(cells) != len(ids):
                raise InputError(
                    f"items {path}: {arm}.{name} has {len(cells)} cells for {len(ids)} ids"
                )
            arms[arm][name] = [_cell(cell, f"items {path}: {arm}.{name}") for cell in cells]
    return {"ids": ids, "arms": arms}


def _plain(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)


def _cell(value: Any, where: str) -> Cell:
    if hasattr(value, "item"):  # a numpy or torch scalar inside a list
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise InputError(f"{where} holds {value!r}; a cell is a finite number, text or None")


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
