"""Files that are either whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from whet.errors import CheckpointError, InputError


def _explain(path: Path, error: OSError | SafetensorError) -> InputError:
    return InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` when the block succeeds.

    If the block fails, the temporary file or folder goes and an older `path` stays as it was.
    Errors: InputError where the place cannot be written or the disk is full.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise _explain(target, error) from error
    os.close(handle)
    temporary = Path(name)
    temporary.unlink()
    try:
        yield temporary
        _let_read(temporary)
        if temporary.is_dir() and target.is_dir():
            _swap_folders(temporary, target)
        else:
            os.replace(temporary, target)
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in its own error
        raise _explain(target, error) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _let_read(path: Path) -> None:
    """Files in a folder can be read by whoever may list it: safetensors writes for the owner."""
    if path.is_dir():
        others = path.stat().st_mode & 0o044
        for file in filter(Path.is_file, path.rglob("*")):
            file.chmod(file.stat().st_mode | others)


def _swap_folders(new: Path, old: Path) -> None:
    """A folder cannot be renamed onto a full one: move the old aside, then drop it."""
    aside = _aside(old)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(old, aside)
    try:
        os.replace(new, old)
    except OSError:
        os.replace(aside, old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def finish_swap(folder: Path) -> None:
    """Put back a folder that a kill between the two renames of a swap left aside."""
    aside = _aside(folder)
    if aside.is_dir() and not folder.exists():
        os.replace(aside, folder)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make `folder` and try to write in it, before long work begins.

    Errors: InputError where that cannot be done.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _explain(Path(folder), error) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8) atomically and durably."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 1) -> None:
    """Write JSON atomically. Errors: ValueError on NaN or infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def claim_folder(path: Path, what: Mapping[str, Any]) -> None:
    """Write down in `path` what its folder is for, or see that it is for the same.

    Errors: CheckpointError for a folder that holds something else, or a damaged file.
    """
    if not path.is_file():
        write_text(path, json.dumps(what))
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error!r})") from error
    check_same(path.parent, stored, what)


def check_same(folder: Path, stored: Any, what: Mapping[str, Any]) -> None:
    """Errors: CheckpointError naming the entries in which a stored identity is another."""
    # Through JSON, as the stored one went: tuples become lists and numbers as keys become text.
    asked = json.loads(json.dumps(what))
    if stored != asked:
        raise CheckpointError(
            f"{folder} belongs to another recipe (different: "
            f"{', '.join(_differences(stored, asked))}): "
            "choose another output folder or the same recipe"
        )


def _differences(one: Any, two: Any, path: str = "") -> list[str]:
    """Dotted names of the entries in which two nested dictionaries differ."""
    if not (isinstance(one, dict) and isinstance(two, dict)):
        return [] if one == two else [path or "recipe"]
    missing = object()
    return [
        name
        for key in sorted({*one, *two})
        for name in _differences(
            one.get(key, missing), two.get(key, missing), f"{path}.{key}".lstrip(".")
        )
    ]
