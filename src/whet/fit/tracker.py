"""Where a run writes its numbers: a JSON line per logged step, and a progress line to look at."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from whet._io import write_text

_QUIET_SECONDS = 30.0


class Tracker:
    """Appends to `run/metrics.jsonl`; shows a bar on a terminal, a line every 30 s elsewhere.

    On resume, lines of steps that will be done again are dropped. quiet: writes and shows
    nothing, for all processes of a run but one.
    """

    def __init__(
        self, run: Path, *, total: int, done: int, label: str, quiet: bool = False
    ) -> None:
        self.path = run / "metrics.jsonl"
        self.total, self.label, self.quiet = total, label, quiet
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.last = time.monotonic()
        if quiet:
            return
        self._keep(done)
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task(label, total=total, completed=done, note="")
            self.bar.start()

    def _keep(self, done: int) -> None:
        if not self.path.is_file():
            return
        # A kill may have cut the last line short.
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("}\n")]
        write_text(self.path, "".join(li for li in whole if json.loads(li)["step"] <= done))

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one line and refresh what is shown. `step` counts from 1."""
        if self.quiet:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        note = f"loss {values['loss']:.4f}  {values['tokens_per_second']:,.0f} tok/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, note=note)
        elif time.monotonic() - self.last > _QUIET_SECONDS or step == self.total:
            self.last = time.monotonic()
            left = values["seconds_left"]
            self.console.print(f"{self.label} {step}/{self.total}  {note}  {left:.0f} s left")

    def say(self, sentence: str) -> None:
        """Print a sentence on standard error, in one line."""
        if not self.quiet:
            self.console.print(sentence, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Stop the progress bar."""
        if self.bar is not None:
            self.bar.stop()
