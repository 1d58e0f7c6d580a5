"""Matrix chains: the least number of scalar multiplications over all orders of a product."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from whet.tasks.answers import integer, last_block, last_integer, only_integer, read
from whet.tasks.base import Instance, Mode, Verdict
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level

_SIZES = range(3, 21)

# Per mode and pattern: inclusive ranges. Two for a start and its steps, or for small and large.
_RANGES: dict[Drawing, dict[str, tuple[tuple[int, int], tuple[int, int]]]] = {
    "faithful": {
        "random": ((5, 100), (5, 100)),
        "increasing": ((5, 20), (5, 15)),
        "decreasing": ((50, 100), (3, 8)),
        "mixed": ((1, 10), (50, 100)),
        "sparse": ((1, 15), (80, 120)),
    },
    "wide": {
        "random": ((2, 9_999), (2, 9_999)),
        "increasing": ((2, 9_999), (1, 9_999)),
        "decreasing": ((250_000, 299_999), (1, 9_999)),
        "mixed": ((1, 999), (10_000, 99_999)),
        "sparse": ((1, 999), (10_000, 99_999)),
    },
}


def cheapest(dims: Sequence[int]) -> int:
    """Least number of scalar multiplications of a chain whose i-th matrix is dims[i] x dims[i+1].

    The usual O(n^3) dynamic program over sub-chains (Cormen et al., section 15.2), exact.
    """
    n = len(dims) - 1
    cost = [[0] * n for _ in range(n)]
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            cost[i][j] = min(
                cost[i][k] + cost[k + 1][j] + dims[i] * dims[k + 1] * dims[j + 1]
                for k in range(i, j)
            )
    return cost[0][n - 1]


@dataclass(frozen=True, kw_only=True)
class MatrixChain(BeyondTask):
    """The cheapest order of a matrix product. size: number of matrices.

    Variations say how the dimensions are drawn: any; rising or falling by random steps; half
    small and half large; two large among small ones. data: (dimensions,), one more than matrices.
    """

    id: ClassVar[str] = "matrix_chain"
    summary: ClassVar[str] = "least number of scalar multiplications of a chain of matrices"
    many_answers: ClassVar[bool] = False
    level: ClassVar[Level] = "hard"
    variations: ClassVar[tuple[str, ...]] = (
        "random",
        "increasing",
        "decreasing",
        "mixed",
        "sparse",
    )

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return _SIZES

    @classmethod
    def default_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return (3, 4, 5)

    def generate(self, rng: np.random.Generator) -> Instance:
        dims = self._draw(rng)
        lines = [
            f"M{i + 1} is {rows} x {columns}"
            for i, (rows, columns) in enumerate(itertools.pairwise(dims))
        ]
        prompt = (
            f"The product of {len(lines)} matrices, M1 to M{len(lines)} in this order, is to be "
            "computed two factors at a time. Multiplying a p x q matrix by a q x r matrix takes "
            "p*q*r scalar multiplications.\n\n"
            + "\n".join(lines)
            + "\n\nHow many scalar multiplications does the cheapest placement of the brackets "
            "take? Give the number in answer tags, for example <answer>1234</answer>"
        )
        return self.instance(prompt, (dims,), cheapest(dims))

    def _draw(self, rng: np.random.Generator) -> tuple[int, ...]:
        assert self.size is not None
        count = self.size + 1
        first, second = _RANGES[self.mode][self.variation]
        if self.variation in ("increasing", "decreasing"):
            dims = [int(rng.integers(first[0], first[1] + 1))]
            for step in rng.integers(second[0], second[1] + 1, size=self.size).tolist():
                rising = self.variation == "increasing"
                dims.append(dims[-1] + step if rising else max(1, dims[-1] - step))
            return tuple(dims)
        small = rng.integers(first[0], first[1] + 1, size=count).tolist()
        for place in rng.permutation(count)[: self._large()].tolist():
            small[place] = int(rng.integers(second[0], second[1] + 1))
        return tuple(small)

    def _large(self) -> int:
        """How many dimensions are drawn from the second range."""
        assert self.size is not None
        return {"mixed": (self.size + 2) // 2, "sparse": 2}.get(self.variation, 0)

    def check(self, instance: Instance, answer: Any) -> Verdict:
        if not isinstance(answer, int) or isinstance(answer, bool):
            return Verdict(False, "the answer is not a whole number")
        least = cheapest(instance.data[0])
        if answer == least:
            return Verdict(True)
        return Verdict(False, f"the cheapest order takes {least} multiplications")

    def solve(self, instance: Instance) -> int:
        return cheapest(instance.data[0])

    def certify(self, instance: Instance) -> str:
        """By recursion over the last product, where the solution goes up from short chains."""
        dims: tuple[int, ...] = tuple(instance.data[0])

        @functools.cache
        def least(i: int, j: int) -> int:
            if j - i < 2:
                return 0
            ends = dims[i] * dims[j]
            return min(least(i, k) + least(k, j) + ends * dims[k] for k in range(i + 1, j))

        found = least(0, len(dims) - 1)
        return "" if found == self.solve(instance) else f"{found} multiplications are the least"

    def render(self, answer: Any) -> str:
        return f"<answer>{answer}</answer>"

    def parse(self, text: str, mode: Mode = "lenient") -> int | None:
        return read(
            text, mode, marked=last_block, exact=integer, last=last_integer, within=only_integer
        )

    def log10_space(self) -> float:
        """Exact: the number of lists of dimensions that can be drawn."""
        assert self.size is not None
        first, second = _RANGES[self.mode][self.variation]
        low, high = (b - a + 1 for a, b in (first, second))
        count = self.size + 1
        if self.variation == "increasing":
            return math.log10(low) + self.size * math.log10(high)
        if self.variation == "decreasing":
            if first[0] - self.size * second[1] >= 1:
                return math.log10(low) + self.size * math.log10(high)
            return math.log10(_falling(first, second, self.size))
        large = self._large()
        places = math.log10(math.comb(count, large))
        return places + (count - large) * math.log10(low) + large * math.log10(high)


def _falling(start: tuple[int, int], steps: tuple[int, int], size: int) -> int:
    """Number of lists that fall `size` times by a step, never below 1."""
    tails = dict.fromkeys(range(1, start[1] + 1), 1)
    for _ in range(size):
        tails = {
            v: sum(tails[w] for w in {max(1, v - s) for s in range(steps[0], steps[1] + 1)})
            for v in tails
        }
    return sum(tails[v] for v in range(start[0], start[1] + 1))
