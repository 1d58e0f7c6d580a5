"""Patterns with gaps, written as dots, and the task whose answer is one short text."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from whet.tasks.base import Instance, Task, Verdict


class TextTask(Task):
    """A task whose answer is the first line of the text itself."""

    @abstractmethod
    def valid(self, instance: Instance, answer: str) -> bool:
        """Whether a text solves the problem."""

    def check(self, instance: Instance, answer: Any) -> Verdict:
        """See `Task.check`."""
        return Verdict(isinstance(answer, str) and self.valid(instance, answer))


def matches(answer: str, given: str) -> bool:
    """Whether the answer has the pattern's length and agrees with it outside the gaps."""
    return len(answer) == len(given) and all(
        g in (".", a) for a, g in zip(answer, given, strict=True)
    )


def hide(rng: np.random.Generator, full: str, hidden: int) -> str:
    """Put gaps at `hidden` random places."""
    gone = set(rng.permutation(len(full))[:hidden].tolist())
    return "".join("." if i in gone else c for i, c in enumerate(full))


def reveal(rng: np.random.Generator, full: str, share: float) -> str:
    """Show each place with probability `share`, a gap elsewhere."""
    shown = rng.random(len(full)) < share
    return "".join(c if s else "." for c, s in zip(full, shown.tolist(), strict=True))
