"""The Record: one JSON file per measurement, read by the reports and by later comparisons."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from whet._io import write_text
from whet.errors import InputError
from whet.measure.machine import commit, machine, versions
from whet.measure.schema import (
    SCHEMA_VERSION,
    Arm,
    Claim,
    Comparison,
    Items,
    Kind,
    Level,
    Metric,
    Op,
    Record,
    Verdict,
    claim,
    judge,
    verdict,
)

__all__ = [
    "SCHEMA_VERSION",
    "Arm",
    "Claim",
    "Comparison",
    "Items",
    "Kind",
    "Level",
    "Metric",
    "Op",
    "Record",
    "Verdict",
    "claim",
    "find",
    "judge",
    "load",
    "new_record",
    "save",
    "verdict",
]

_KEY = "schema_version"


def new_record(
    method: str,
    *,
    level: Level,
    seeds: dict[str, int],
    arms: list[Arm],
    title: str = "",
    settings: dict[str, JsonValue] | None = None,
    items: Items | None = None,
    comparisons: list[Comparison] | None = None,
    claims: list[Claim] | None = None,
    notes: list[str] | None = None,
) -> Record:
    """A record of now and here: time, commit, machine and versions are filled in.

    The verdict follows from the claims; without claims there is none.
    """
    return Record(
        method=method,
        title=title,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        commit=commit(),
        level=level,
        seeds=seeds,
        machine=machine(),
        versions=versions(),
        settings=settings or {},
        arms=arms,
        items=items,
        comparisons=comparisons or [],
        claims=claims or [],
        verdict=verdict(claims) if claims else None,
        notes=notes or [],
    )


def save(record: Record, path: str | os.PathLike[str]) -> None:
    """Write `record` as JSON with sorted keys, atomically. Errors: InputError if it cannot."""
    value = record.model_dump(mode="json")
    write_text(
        path,
        json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
    )


def load(path: str | os.PathLike[str]) -> Record:
    """Read the record at `path`.

    Errors: InputError, in one sentence that names the file, where it is missing, is not JSON, has
    another schema version, or a field is unknown, missing or wrong.
    """
    value = _read(Path(path))
    if not isinstance(value, dict) or _KEY not in value:
        raise InputError(f"{path} is not a record: it has no {_KEY!r}")
    version = value[_KEY]
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version!r}, this whet reads {SCHEMA_VERSION}: "
            "use the whet that wrote it, or measure again"
        )
    try:
        return Record.model_validate_json(json.dumps(value))
    except ValidationError as error:
        raise InputError(f"{path} is not a valid record: {_first(error)}") from error


def find(folder: str | os.PathLike[str]) -> list[tuple[Path, Record]]:
    """All records at or below `folder`, by path; hidden folders are left out.

    A JSON file is a record if it has the key "schema_version"; others are passed over.
    Errors: InputError where `folder` does not exist, or for a damaged record.
    """
    root = Path(folder)
    if root.is_file():
        return [(root, load(root))]
    if not root.is_dir():
        raise InputError(f"no folder {root}")
    paths = sorted(p for p in root.rglob("*.json") if p.is_file() and not _hidden(p, root))
    return [(path, load(path)) for path in paths if _claims_to_be_record(path)]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # both bad JSON and bad UTF-8
        raise InputError(f"{path} is not JSON: {error}") from error


def _first(error: ValidationError) -> str:
    """The first complaint of pydantic as 'field: message', and how many there are besides."""
    problems = error.errors(include_url=False, include_context=False)
    where = ".".join(str(part) for part in problems[0]["loc"])
    what = problems[0]["msg"].removeprefix("Value error, ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {what}{more}" if where else f"{what}{more}"


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _claims_to_be_record(path: Path) -> bool:
    """Broken JSON that mentions the key is a damaged record, and is not passed over in silence."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if f'"{_KEY}"' not in text:
        return False
    try:
        value = json.loads(text)
    except ValueError:
        return True
    return isinstance(value, dict) and _KEY in value
