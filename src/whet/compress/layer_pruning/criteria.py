"""Which blocks go: pure functions of what was measured. Equal scores: the deeper block goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor, nn

from whet import rng as rng_
from whet.compress.layer_pruning.observe import Turning
from whet.errors import InputError, OptionError
from whet.models.roles import Block

Rate = Callable[[tuple[int, ...], Sequence[int]], Mapping[int, float]]
"""From the blocks that are gone and the ones that may go next to how good the model is without
each of the latter."""


def cosines(turning: Turning, mean: Literal["prompt", "token"] = "prompt") -> list[float]:
    """c_l = mean cosine of a block's input and output; block influence is 1 - c_l.

    mean: over each prompt's tokens and then over prompts, or over all tokens alike.
    Errors: InputError where no token counts.
    """
    counts = turning.counts
    if not int(counts.sum()):
        raise InputError("no token counts: prompts of one token have none after the first")
    if mean == "token":
        return [float(x) for x in turning.sums.sum(1) / counts.sum()]
    some = counts > 0
    return [float(x) for x in (turning.sums[:, some] / counts[some]).mean(1)]


def most_redundant(scores: Sequence[float], n: int, protect: Collection[int] = ()) -> list[int]:
    """The n blocks with the largest scores, in ascending order."""
    free = [index for index in range(len(scores)) if index not in protect]
    return sorted(sorted(free, key=lambda index: (-scores[index], -index))[:n])


def angular_distances(last: Float64[Tensor, "L1 P D"], n: int) -> list[float]:
    """d(l, n) = mean over prompts of arccos cos(h_l, h_{l+n}) / pi, for l = 0 to L - n."""
    cosine = F.cosine_similarity(last[: len(last) - n], last[n:], dim=-1).clamp(-1, 1)
    return [float(x) for x in cosine.arccos().mean(1) / math.pi]


def angular_window(distances: Sequence[float], n: int, protect: Collection[int] = ()) -> list[int]:
    """The n consecutive blocks with the smallest distance, none of them protected.

    Errors: OptionError where there is no such run.
    """
    starts = [
        start for start in range(len(distances)) if not set(range(start, start + n)) & set(protect)
    ]
    if not starts:
        raise OptionError(f"n={n}: no {n} consecutive blocks are free of protected ones")
    first = min(starts, key=lambda start: (distances[start], -start))
    return list(range(first, first + n))


def reverse(count: int, n: int, protect: Collection[int] = ()) -> list[int]:
    """The last n of `count` blocks, the very last included."""
    return [index for index in range(count) if index not in protect][-n:] if n else []


def simple(count: int, n: int, protect: Collection[int] = ()) -> list[int]:
    """The deepest n but for the last block. Errors: OptionError where that is too many."""
    found = reverse(count, n, {*protect, count - 1})
    if len(found) < n:
        raise OptionError(f"n={n}: the last block stays, so that {len(found)} others are left")
    return found


def at_random(count: int, n: int, protect: Collection[int] = (), *, seed: int) -> list[int]:
    """n blocks by lot; those for n are among those for n + 1."""
    free = [index for index in range(count) if index not in protect]
    order = rng_.keyed(seed, "layer-pruning").permutation(len(free))
    return sorted(free[place] for place in order[:n])


def greedy(
    count: int, n: int, protect: Collection[int], rate: Rate
) -> tuple[list[int], list[Mapping[int, float]]]:
    """n times, the block without which the model is rated best. In the order of their going, with
    every round's rates."""
    gone: list[int] = []
    rounds: list[Mapping[int, float]] = []
    for _ in range(n):
        free = [index for index in range(count) if index not in gone and index not in protect]
        rates = rate(tuple(gone), free)
        rounds.append(rates)
        gone.append(max(free, key=lambda index: (rates[index], index)))
    return gone, rounds


@torch.no_grad()
def weight_sizes(model: nn.Module, blocks: Sequence[Block]) -> list[float]:
    """Root mean square of the entries of each block's matrices."""
    found = []
    for block in blocks:
        matrices = [p for p in model.get_submodule(block.name).parameters() if p.dim() > 1]
        total = sum(float(p.double().square().sum()) for p in matrices)
        found.append(math.sqrt(total / sum(p.numel() for p in matrices)))
    return found
