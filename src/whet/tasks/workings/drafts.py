"""Complete a permutation by way of drafts: independent completions, with changes of mind.

A draft writes a completion digit by digit; now and then a wrong digit comes first and is taken
back with `<`, so that its length varies: of `.6.2.`, `4<36125<4` says 36124.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whet.tasks.base import Instance, Mode, check_setting
from whet.tasks.scratchpad.sequences import Permutation

BACK = "<"


def take_back(text: str) -> str:
    """The text with every `<` carried out."""
    kept: list[str] = []
    for c in text:
        if c != BACK:
            kept.append(c)
        elif kept:
            kept.pop()
    return "".join(kept)


@dataclass(frozen=True, kw_only=True)
class Drafts(Permutation):
    """Fill the gaps so that every digit stands exactly once; an answer may hold changes of mind.

    slips: most changes of mind in a draft.
    """

    id: ClassVar[str] = "drafts"
    summary: ClassVar[str] = "complete a permutation of the digits 1 to 9, by way of drafts"
    reasoning_allowance: ClassVar[float] = 4.0
    slips: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self, "slips", 0, 9)

    def generate(self, rng: np.random.Generator) -> Instance:
        made = super().generate(rng)
        return Instance(
            task=self.id,
            prompt=f"{self.id} {made.data[0]}=",
            data=made.data,
            example=made.example,
        )

    def parse(self, text: str, mode: Mode = "lenient") -> str | None:
        """The first line with its changes of mind carried out; strict: it must have none."""
        line = super().parse(text, mode)
        if line is None or (mode == "strict" and BACK in line):
            return None
        return take_back(line)

    def paths(self, instance: Instance, rng: np.random.Generator, count: int) -> list[str]:
        """`count` drafts, the first of the example answer, the others of random completions."""
        (given,) = instance.data
        missing = [str(k + 1) for k in range(len(given)) if str(k + 1) not in given]
        found = [self.draft(rng, instance.example)]
        while len(found) < count:
            left = iter(rng.permutation(missing).tolist())
            found.append(self.draft(rng, "".join(c if c != "." else next(left) for c in given)))
        return found[:count]

    def draft(self, rng: np.random.Generator, answer: str) -> str:
        """An answer with up to `slips` changes of mind at random places."""
        count = int(rng.integers(self.slips + 1))
        places = set(rng.permutation(len(answer))[:count].tolist())
        parts = []
        for place, c in enumerate(answer):
            others = [d for d in answer if d != c]
            if place in places and others:
                parts.append(others[int(rng.integers(len(others)))] + BACK)
            parts.append(c)
        return "".join(parts)
