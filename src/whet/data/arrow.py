"""Rows in Arrow shards: made a shard at a time, resumable, read back from memory maps.

A folder holds `rows.json` (what it was made for) and `part-00000.arrow`, `part-00001.arrow`, …,
each written whole or not at all. `datasets.load_dataset("arrow", data_files=…)` reads them too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar, overload

from whet._io import atomic_path, claim_folder
from whet.errors import CheckpointError, InputError, OptionError

_CLAIM = "rows.json"

Row = Mapping[str, Any]
RowT = TypeVar("RowT")


def build_rows(
    folder: Path,
    *,
    schema: Callable[[], Any],
    identity: Mapping[str, Any],
    total: int,
    make: Callable[[range], Sequence[Row]],
    shard_size: int = 1024,
    part: tuple[int, int] = (0, 1),
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Make what is missing of `total` rows; `make(numbers)` gives the rows of one shard.

    schema: gives the pyarrow schema. identity: what the rows depend on; a folder made for
    something else is refused. part: (k, n) makes every n-th shard from the k-th, so that n
    processes or machines share the work. on_progress(rows done) counts those of this part.

    Errors: OptionError for numbers out of range or a missing extra; CheckpointError for a folder
    of another identity; InputError where `make` gives another number of rows or the disk is full.
    """
    arrow = _pyarrow()
    for name, value in (("total", total), ("shard_size", shard_size)):
        if value < 1:
            raise OptionError(f"{name}={value} must be at least 1")
    place, parts = part
    if not 0 <= place < parts:
        raise OptionError(f"part={place}/{parts} must be one of 0/{parts} to {parts - 1}/{parts}")
    what = {"identity": dict(identity), "total": total, "shard_size": shard_size}
    folder.mkdir(parents=True, exist_ok=True)
    claim_folder(folder / _CLAIM, what)
    done = 0
    for shard in range(place, -(-total // shard_size), parts):
        numbers = range(shard * shard_size, min(total, (shard + 1) * shard_size))
        target = folder / _name(shard)
        if not target.is_file():
            rows = make(numbers)
            if len(rows) != len(numbers):
                raise InputError(f"{len(rows)} rows were made where {len(numbers)} were asked for")
            table = arrow.Table.from_pylist([dict(r) for r in rows], schema=schema())
            with (
                atomic_path(target) as temporary,
                arrow.OSFile(str(temporary), "wb") as sink,
                arrow.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table)
        done += len(numbers)
        on_progress(done)


class ArrowRows(Sequence[dict[str, Any]]):
    """The rows of a finished folder, memory-mapped.

    Errors: InputError for a folder that holds no rows or not yet all of them; CheckpointError for
    a damaged shard or one that lacks one of `columns`.
    """

    def __init__(self, folder: str | Path, *, columns: Sequence[str] = ()) -> None:
        arrow = _pyarrow()
        self.folder = Path(folder)
        self.what = _read_claim(self.folder)
        count = -(-self.what["total"] // self.what["shard_size"])
        paths = [self.folder / _name(shard) for shard in range(count)]
        missing = [p for p in paths if not p.is_file()]
        if missing:
            raise InputError(
                f"{self.folder} is not finished: {len(missing)} of {count} shards are missing; "
                "the command that made it goes on where it stopped"
            )
        self._tables: list[Any] = []
        for path in paths:
            try:
                # Nothing is read here: the map's pages come in when rows are looked at.
                table = arrow.ipc.open_file(arrow.memory_map(str(path))).read_all()
            except (arrow.ArrowException, OSError) as error:
                raise CheckpointError(f"{path}: damaged ({' '.join(str(error).split())})") from None
            absent = [c for c in columns if c not in table.column_names]
            if absent:
                raise CheckpointError(f"{path}: has no column {absent[0]!r}, it holds other data")
            self._tables.append(table)
        self._ends: list[int] = list(accumulate(t.num_rows for t in self._tables))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(index)
        shard = bisect_right(self._ends, number)
        first = self._ends[shard - 1] if shard else 0
        [row] = self._tables[shard].slice(number - first, 1).to_pylist()
        return dict(row)

    def column(self, name: str) -> list[Any]:
        """One column of all rows. Errors: KeyError."""
        return [value for table in self._tables for value in table.column(name).to_pylist()]


class KeptRows(Sequence[RowT]):
    """Some of a folder's rows, each made a `kind` (a dataclass of its columns) when looked at.

    keep: from the rows to the places that are kept; None keeps all. Errors: those of `ArrowRows`.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: type[RowT],
        keep: Callable[[ArrowRows], Sequence[int]] | None = None,
    ) -> None:
        self.kind = kind
        self.rows = ArrowRows(folder, columns=[f.name for f in fields(kind)])  # type: ignore[arg-type]
        self.kept = range(len(self.rows)) if keep is None else keep(self.rows)

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> RowT: ...
    @overload
    def __getitem__(self, index: slice) -> list[RowT]: ...
    def __getitem__(self, index: int | slice) -> RowT | list[RowT]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.kind(**self.rows[self.kept[index]])


def _name(shard: int) -> str:
    return f"part-{shard:05}.arrow"


def _read_claim(folder: Path) -> dict[str, Any]:
    import json

    path = folder / _CLAIM
    if not path.is_file():
        raise InputError(f"{folder} holds no rows: there is no {_CLAIM} in it")
    try:
        what: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        int(what["total"]), int(what["shard_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error!r})") from error
    return what


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise OptionError("data sets on disk need the extra whet[data]") from None
    return pyarrow
