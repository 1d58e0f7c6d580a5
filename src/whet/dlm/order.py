"""In what order a text came to be: how close to left-to-right, and how sequential its parts are.

Source: arXiv 2602.23225 (NAP), section 3: Global-ARness@k and SeqDep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.errors import OptionError

LogProb = Callable[[Sequence[int], Sequence[int]], float]


def global_arness(
    commit_step: Int[Tensor, "P G"],
    confidence: Float[Tensor, "P G"],
    *,
    k: int = 1,
    within_step: Literal["confidence", "position"] = "confidence",
) -> Float[Tensor, " P"]:
    """Part of the tokens that were among the k leftmost open positions when committed.

    1 for strict left-to-right, 1/G for strict right-to-left, H_G/G expected for a random order.
    commit_step, confidence: a trace's. Tokens committed in one step are taken by descending
    confidence (the paper gives no order; ties by position), or by position. A prompt without
    committed tokens gives NaN.
    """
    if k < 1:
        raise OptionError(f"k={k} must be at least 1")
    if within_step not in ("confidence", "position"):
        raise OptionError(f"within_step={within_step!r} is not one of confidence, position")
    out = torch.full((len(commit_step),), torch.nan, dtype=torch.float64)
    for row, (steps, sure) in enumerate(zip(commit_step, confidence, strict=True)):
        position = (steps >= 0).nonzero()[:, 0]
        if len(position) == 0:
            continue
        steps, sure = steps[position], sure[position]
        order = torch.arange(len(steps))
        if within_step == "confidence":
            order = sure.argsort(descending=True, stable=True)
        order = order[steps[order].argsort(stable=True)]
        time = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        # How many open positions lay to the left of each when its turn came.
        later = time[None, :] > time[:, None]
        left = later.tril(-1).sum(-1)
        out[row] = (left < k).double().mean()
    return out


def sequential_dependence(
    log_prob: LogProb, prompt: Sequence[int], segments: Sequence[Sequence[int]]
) -> float:
    """SeqDep: how much an autoregressive scorer gains on each segment by having read those before.

    (1 / (N - 1)) sum over n >= 2 of log p(s_n | x, s_1..s_(n-1)) - log p(s_n | x), in nats; about 0
    where segments are independent given the prompt. log_prob(context, continuation): the scorer.
    Errors: OptionError for fewer than two segments.
    """
    if len(segments) < 2:
        raise OptionError(f"{len(segments)} segment(s): sequential dependence needs at least 2")
    read = list(prompt) + list(segments[0])
    gains = []
    for segment in segments[1:]:
        gains.append(log_prob(read, segment) - log_prob(prompt, segment))
        read = read + list(segment)
    return sum(gains) / len(gains)
