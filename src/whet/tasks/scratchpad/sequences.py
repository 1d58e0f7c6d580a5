"""Sequence tasks: bracket completion, increasing letters, permutations, sorting."""

from __future__ import annotations

import functools
import itertools
import math
import string
from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whet.errors import OptionError
from whet.tasks.base import Instance, check_setting
from whet.tasks.scratchpad.patterns import TextTask, matches, reveal

_PAIRS = {"(": ")", "[": "]"}


@dataclass(frozen=True, kw_only=True)
class Brackets(TextTask):
    """Complete a pattern to a balanced string of round and square brackets."""

    id: ClassVar[str] = "brackets"
    summary: ClassVar[str] = "complete 14 round and square brackets to a balanced string"
    many_answers: ClassVar[bool] = True
    length: int = 14
    shown: float = 0.35

    def __post_init__(self) -> None:
        check_setting(self, "length", 2, 64)
        check_setting(self, "shown", 0, 1)
        if self.length % 2:
            raise OptionError(f"task {self.id!r}: length={self.length} must be even")

    def generate(self, rng: np.random.Generator) -> Instance:
        full = _random_balanced(rng, self.length)
        given = reveal(rng, full, self.shown)
        return Instance(task=self.id, prompt=f"brackets {given}=", data=(given,), example=full)

    def valid(self, instance: Instance, answer: str) -> bool:
        if not matches(answer, instance.data[0]):
            return False
        stack: list[str] = []
        for c in answer:
            if c in _PAIRS:
                stack.append(_PAIRS[c])
            elif not stack or stack.pop() != c:
                return False
        return not stack

    def solve(self, instance: Instance) -> str:
        given = instance.data[0]
        frontier = {"": ""}  # open brackets still to close -> one prefix that leads there
        for i, g in enumerate(given):
            step: dict[str, str] = {}
            for owed, prefix in frontier.items():
                for c in "([":
                    if g in (".", c) and len(owed) < len(given) - i:
                        step.setdefault(_PAIRS[c] + owed, prefix + c)
                if owed and g in (".", owed[0]):
                    step.setdefault(owed[1:], prefix + owed[0])
            frontier = step
        return frontier[""]

    def log10_space(self) -> float:
        # Counted up to 12 brackets; each further pair multiplies the count by 18 (counted: 17.7
        # from 10 to 12, 18.1 from 12 to 14, 18.3 from 14 to 16).
        counted = min(self.length, 12)
        return math.log10(_patterns(counted)) + (self.length - counted) / 2 * math.log10(18)


@functools.cache
def _patterns(length: int) -> int:
    """Distinct patterns of brackets and gaps that can be completed to a balanced string."""
    # set of brackets that may still be owed -> patterns that lead there
    states = {frozenset([""]): 1}
    for left in range(length - 1, -1, -1):
        step: dict[frozenset[str], int] = defaultdict(int)
        for owing, count in states.items():
            for g in ".()[]":
                opened = {
                    closing + owed
                    for owed in owing
                    for bracket, closing in _PAIRS.items()
                    if g in (".", bracket) and len(owed) < left
                }
                closed = {owed[1:] for owed in owing if owed and g in (".", owed[0])}
                if opened or closed:
                    step[frozenset(opened | closed)] += count
        states = step
    return sum(states.values())


def _random_balanced(rng: np.random.Generator, length: int) -> str:
    """A balanced string, uniform over shapes (cycle lemma) and over bracket types."""
    half = length // 2
    steps = rng.permutation([1] * half + [-1] * (half + 1))
    # Exactly one rotation stays non-negative until its last step: start after the first minimum.
    steps = np.roll(steps, -(int(np.cumsum(steps).argmin()) + 1))[:-1]
    out: list[str] = []
    owed: list[str] = []
    for step in steps.tolist():
        if step > 0:
            kind = "(["[int(rng.integers(2))]
            out.append(kind)
            owed.append(_PAIRS[kind])
        else:
            out.append(owed.pop())
    return "".join(out)


@dataclass(frozen=True, kw_only=True)
class Ladder(TextTask):
    """Fill the gaps so that the letters strictly increase."""

    id: ClassVar[str] = "ladder"
    summary: ClassVar[str] = "fill gaps in 12 strictly increasing letters"
    many_answers: ClassVar[bool] = True
    length: int = 12
    shown: float = 0.3

    def __post_init__(self) -> None:
        check_setting(self, "length", 1, 26)
        check_setting(self, "shown", 0, 1)

    def generate(self, rng: np.random.Generator) -> Instance:
        picks = np.sort(rng.permutation(26)[: self.length])
        full = "".join(string.ascii_lowercase[k] for k in picks.tolist())
        given = reveal(rng, full, self.shown)
        return Instance(task=self.id, prompt=f"ladder {given}=", data=(given,), example=full)

    def valid(self, instance: Instance, answer: str) -> bool:
        if not matches(answer, instance.data[0]) or set(answer) - set(string.ascii_lowercase):
            return False
        return all(a < b for a, b in itertools.pairwise(answer))

    def solve(self, instance: Instance) -> str:
        letters = string.ascii_lowercase
        out: list[int] = []
        for given in instance.data[0]:
            lowest = out[-1] + 1 if out else 0
            out.append(letters.index(given) if given != "." else lowest)
        return "".join(letters[k] for k in out)

    def log10_space(self) -> float:
        # k shown positions, and the letters left out (26 - length) spread over the k + 1 gaps.
        n = self.length
        return math.log10(sum(math.comb(n, k) * math.comb(26 - n + k, k) for k in range(n + 1)))


@dataclass(frozen=True, kw_only=True)
class Sorting(TextTask):
    """Sort digits; the answer is unique, so this is a control for the tasks above."""

    id: ClassVar[str] = "sort"
    summary: ClassVar[str] = "sort 10 digits (one answer)"
    many_answers: ClassVar[bool] = False
    length: int = 10

    def __post_init__(self) -> None:
        check_setting(self, "length", 1, 64)

    def generate(self, rng: np.random.Generator) -> Instance:
        digits = "".join(map(str, rng.integers(10, size=self.length).tolist()))
        return Instance(
            task=self.id, prompt=f"sort {digits}=", data=(digits,), example=_sorted(digits)
        )

    def valid(self, instance: Instance, answer: str) -> bool:
        return answer == _sorted(instance.data[0])

    def solve(self, instance: Instance) -> str:
        return _sorted(instance.data[0])

    def log10_space(self) -> float:
        return float(self.length)


def _sorted(digits: str) -> str:
    return "".join(sorted(digits))


@dataclass(frozen=True, kw_only=True)
class Permutation(TextTask):
    """Fill the gaps so that every digit from 1 to n stands exactly once."""

    id: ClassVar[str] = "permutation"
    summary: ClassVar[str] = "complete a permutation of the digits 1 to 9"
    many_answers: ClassVar[bool] = True
    size: int = 9
    shown: float = 0.4

    def __post_init__(self) -> None:
        check_setting(self, "size", 1, 9)
        check_setting(self, "shown", 0, 1)

    def generate(self, rng: np.random.Generator) -> Instance:
        full = "".join(str(k + 1) for k in rng.permutation(self.size).tolist())
        given = reveal(rng, full, self.shown)
        return Instance(task=self.id, prompt=f"permutation {given}=", data=(given,), example=full)

    def valid(self, instance: Instance, answer: str) -> bool:
        (given,) = instance.data
        every = "".join(str(k + 1) for k in range(len(given)))
        return matches(answer, given) and _sorted(answer) == every

    def solve(self, instance: Instance) -> str:
        (given,) = instance.data
        left = iter(str(k + 1) for k in range(len(given)) if str(k + 1) not in given)
        return "".join(c if c != "." else next(left) for c in given)

    def log10_space(self) -> float:
        # k of n digits at k of n places.
        n = self.size
        return math.log10(sum(math.comb(n, k) * math.perm(n, k) for k in range(n + 1)))
