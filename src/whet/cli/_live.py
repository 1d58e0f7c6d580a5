"""Watch a canvas fill in: cells coloured by confidence, refreshed after every step."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from whet.dlm.state import Rows

# From unsure to sure: a colour-blind-safe ramp, readable on dark and light backgrounds.
_RAMP = ((0.5, "color(166)"), (0.8, "color(178)"), (0.95, "color(37)"), (1.01, "color(32)"))
_MASK = "·"


def cells(tokens: list[str], steps: list[int], confidence: list[float]) -> Text:
    """One canvas region as coloured text; step -1 with no token is still masked."""
    out = Text()
    for token, step, sure in zip(tokens, steps, confidence, strict=True):
        if step < 0:
            out.append(token or _MASK, style="dim")
            continue
        style = next(colour for bound, colour in _RAMP if sure < bound)
        out.append(token, style=style)
    return out


class CanvasLive:
    """`with CanvasLive(console, tokenizer) as live:`, then `on_commit=live.watch(labels, prompts)`.

    delay: seconds to pause after each step, so that a fast model can be watched.
    """

    def __init__(self, console: Console, tokenizer: Any, *, gen_length: int, delay: float) -> None:
        self.tokenizer, self.gen_length, self.delay = tokenizer, gen_length, delay
        both = sys.stdout.isatty()  # a redirected stdout stays what it is
        self.live = Live(console=console, auto_refresh=False, redirect_stdout=both)
        self.lines: list[Text] = []

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def close(self, verdict: str) -> None:
        """Print the lines of the last batch for good, with a word on how it ended."""
        for line in self.lines:
            self.live.console.print(Text.assemble(line, (f", {verdict}", "bold")))
        self.lines = []
        self.live.update(Group(), refresh=True)

    def watch(self, labels: Sequence[str], prompts: Sequence[str]) -> Callable[[int, Rows], None]:
        """A callback for one batch; what earlier batches drew is printed above, for good."""
        for line in self.lines:
            self.live.console.print(line)
        lines = self.lines = [
            Text(f"{label:<16} {prompt}") for label, prompt in zip(labels, prompts, strict=True)
        ]

        def on_commit(step: int, rows: Rows) -> None:
            region = rows.tokens[:, -self.gen_length :].tolist()
            for row, owner in enumerate(rows.owner.tolist()):
                order = rows.commit_step[row].tolist()
                texts = [
                    visible(self.tokenizer, t) if s >= 0 else ""
                    for t, s in zip(region[row], order, strict=True)
                ]
                lines[owner] = Text.assemble(
                    (f"{labels[owner]:<16} ", "bold"),
                    (prompts[owner], "dim"),
                    cells(texts, order, rows.confidence[row].tolist()),
                    (f"  {step + 1} steps", "dim"),
                )
            room = max(4, self.live.console.height - 2)
            self.live.update(Group(*lines[:room]), refresh=True)
            if self.delay:
                time.sleep(self.delay)

        return on_commit


def visible(tokenizer: Any, token: int) -> str:
    """A token as something to look at; the end-of-text token as a small square."""
    if token in tokenizer.all_special_ids:
        return "▪"
    text: str = tokenizer.decode([token])
    return text.replace("\n", "↵")
