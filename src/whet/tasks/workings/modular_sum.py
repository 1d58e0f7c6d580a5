"""Sum lettered numbers modulo a number: additions commute, so their order is free.

A working repeats the numbers it adds, each behind its letter, and then the sum so far: of
`a3b7c5%10`, `a3=3c5=8b7=5` adds a, then c, then b, and `a3c5=8b7=5` adds a and c in one go. A
pairwise working sums pairs alone and writes the running total behind: `a3b7=0c5d1=6=6`.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whet.errors import OptionError, nearest
from whet.tasks.base import Instance, Mode, check_setting
from whet.tasks.scratchpad.patterns import TextTask

ORDERS = ("left", "right", "random", "pairwise")

_LAST = re.compile(r"[0-9]+(?=[^0-9]*$)")


@dataclass(frozen=True, kw_only=True)
class ModularSum(TextTask):
    """Sum `count` numbers below `modulus`.

    leaps: probability that a working adds two numbers in one go where it could add one. orders:
    those a working may take, joined by "+".
    """

    id: ClassVar[str] = "modsum"
    summary: ClassVar[str] = "sum 6 numbers modulo 97, in any order"
    many_answers: ClassVar[bool] = False
    reasoning_allowance: ClassVar[float] = 8.0
    count: int = 6
    modulus: int = 97
    leaps: float = 0.0
    orders: str = "+".join(ORDERS)

    def __post_init__(self) -> None:
        check_setting(self, "count", 2, 26)
        check_setting(self, "modulus", 2, 1_000_000)
        check_setting(self, "leaps", 0, 1)
        self._orders()

    def _orders(self) -> list[str]:
        found = self.orders.split("+")
        for order in found:
            if order not in ORDERS:
                raise OptionError(
                    f"task {self.id!r}: orders={self.orders!r} holds {order!r}: "
                    f"{nearest(order, ORDERS)}"
                )
        return found

    def generate(self, rng: np.random.Generator) -> Instance:
        numbers = tuple(rng.integers(self.modulus, size=self.count).tolist())
        named = "".join(f"{c}{x}" for c, x in zip(string.ascii_lowercase, numbers, strict=False))
        total = sum(numbers) % self.modulus
        return Instance(
            task=self.id,
            prompt=f"modsum {named}%{self.modulus}=",
            data=(numbers, self.modulus),
            example=str(total),
        )

    def valid(self, instance: Instance, answer: str) -> bool:
        numbers, modulus = instance.data
        return answer == str(sum(numbers) % modulus)

    def solve(self, instance: Instance) -> str:
        numbers, modulus = instance.data
        return str(sum(numbers) % modulus)

    def log10_space(self) -> float:
        return self.count * math.log10(self.modulus)

    def parse(self, text: str, mode: Mode = "lenient") -> str | None:
        """The last number of the first line; strict: the line is nothing else."""
        line = super().parse(text, mode)
        if line is None:
            return None
        found = _LAST.search(line)
        if found is None or (mode == "strict" and found[0] != line):
            return None
        return found[0]

    def paths(self, instance: Instance, rng: np.random.Generator, count: int) -> list[str]:
        """`count` workings that end in the answer, their orders drawn independently."""
        allowed = self._orders()
        return [
            self.working(instance, rng, allowed[int(rng.integers(len(allowed)))])
            for _ in range(count)
        ]

    def working(self, instance: Instance, rng: np.random.Generator, order: str) -> str:
        """One working in an order of `ORDERS`."""
        numbers, modulus = instance.data
        places = list(range(len(numbers)))
        if order == "right":
            places.reverse()
        elif order == "random":
            places = rng.permutation(len(numbers)).tolist()
        pairwise = order == "pairwise"
        parts: list[str] = []
        total = 0
        for group in self._groups(places, rng, pairwise):
            own = sum(numbers[i] for i in group)
            total = (total + own) % modulus
            named = "".join(f"{string.ascii_lowercase[i]}{numbers[i]}" for i in group)
            if pairwise:
                later = f"={total}" if parts else ""
                parts.append(f"{named}={own % modulus}{later}")
            else:
                parts.append(f"{named}={total}")
        return "".join(parts)

    def _groups(
        self, places: Sequence[int], rng: np.random.Generator, pairwise: bool
    ) -> list[list[int]]:
        """Runs of one or two numbers that are added in one go."""
        groups: list[list[int]] = []
        left = list(places)
        while left:
            size = 2 if pairwise or rng.random() < self.leaps else 1
            groups.append(left[:size])
            left = left[size:]
        return groups
