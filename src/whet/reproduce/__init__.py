"""One proof per method: `whet reproduce NAME` runs it and writes its record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from whet.measure.record import Record

OnProgress = Callable[[float], None]


class Proof(Protocol):
    """A proof. `run` gives the record; files beside it (items) go to `out`."""

    def run(self, *, quick: bool, out: Path, on_progress: OnProgress) -> Record:
        """quick: fewer problems, level `smoke`. on_progress(share): from 0 to 1."""
