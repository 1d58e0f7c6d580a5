"""Likelihoods of masked diffusion models: a bound over random orders, exact or by Monte Carlo.

A masked model defines no left-to-right likelihood. What is estimated is the mean over all orders
in which L target tokens y can be filled in after a context c,

    B(y | c) = E_{l ~ U{1..L}} E_{|M| = l} [ (L / l) sum_{i in M} log p(y_i | c, y without M) ],

a lower bound of the log-likelihood of the model that draws its order at random (LLaDA, arXiv
2502.09992; the bound over orders goes back to arXiv 2110.02037). For L = 1 it is the likelihood
itself. Where all 2^L - 1 masks are at most as many as the samples asked
for, they are enumerated: then the bound has no error, and is still a bound.

Block-causal models fill blocks from left to right: the chain over blocks is exact, and inside of
each block, given the clean blocks before it, the bound stands in. In blocks of one token nothing is
a bound and the model is an autoregressive one.

Deviations from the official scripts: the number of masked tokens is uniform (LLaDA's rounding
prefers even numbers where L / b is not whole); the strata do not depend on the batch size, and are
drawn often enough to give a standard error; the mask token and padded rows of the head have no
probability, as in decoding; no EOS is put behind the target and every target token may be masked
(Dream's script does the one and not the other). The sequence ends with the target: nothing masked
follows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from whet.errors import OptionError
from whet.evaluate.encoding import TokenPair, batches
from whet.evaluate.model import Likelihood
from whet.models.denoiser import Denoiser
from whet.rng import Key, keyed

Estimator = Literal["stratified", "antithetic", "bernoulli"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)

# The error comes from independent groups of draws; 16 of them know it to about a sixth.
_GROUPS = 16
# Dream's smallest probability of a mask: without one the weights 1/p have no variance.
_SMALLEST = 1e-3
# 2**24 values of a float32 are 64 MiB of logits at a time.
_CHUNK_VALUES = 2**24


@dataclass(frozen=True)
class Masks:
    """Draws of masks over L targets; -mean(weight * nats of the hidden targets) is the estimate.

    hidden: [n, L]. weight: [n]. group: draws that depend on each other lie together, so many at a
    time; 0 where these are all the masks there are.
    """

    hidden: NDArray[np.bool_]
    weight: NDArray[np.float64]
    group: int

    def estimate(self, nats: NDArray[np.float64]) -> tuple[float, float]:
        """(log-likelihood, standard error) from each draw's nats, [n].

        The error is NaN where there is one group only, which says nothing about it.
        """
        draws = self.weight * nats
        value = -float(draws.mean())
        if self.group == 0:
            return value, 0.0
        means = draws.reshape(-1, self.group).mean(axis=1)
        if len(means) == 1:
            return value, math.nan
        return value, float(means.std(ddof=1)) / math.sqrt(len(means))


def every_mask(length: int) -> Masks:
    """All masks that hide something, weighted so that the mean over them is the bound."""
    numbers = np.arange(1, 2**length)
    hidden = (numbers[:, None] >> np.arange(length)) & 1 == 1
    share = np.array([1 / (k * math.comb(length, k)) for k in range(1, length + 1)])
    return Masks(hidden, len(numbers) * share[hidden.sum(axis=1) - 1], 0)


def draw_masks(length: int, samples: int, estimator: Estimator, seed: int, *key: Key) -> Masks:
    """`samples` masks over `length` targets, or all of them where they are not more.

    stratified: hide floor(u L) + 1 targets, u on a grid of equal steps with a random start (LLaDA).
    antithetic: half of the draws so, the other half with 1 - u and the ranks reversed. bernoulli:
    hide each target with probability p = (1 - e) u + e, e = 0.001, and weigh by 1/p (Dream).
    Leaving out the p below e biases the bound by a share of about e, and the weights have a heavy
    tail: on a random model and eight targets its error was six times that of `stratified`.

    Common random numbers: the same seed and key give the same u for every draw and the same rank
    (uniform in [0, 1)) for the i-th target, whatever the length. Of L targets those of lowest rank
    are hidden. Choices of one length are therefore masked alike; of two lengths, at alike levels
    and as alike as their lengths allow.
    """
    check_estimator(estimator, samples)
    if length < 32 and 2**length - 1 <= samples:
        return every_mask(length)
    rng = keyed(seed, "likelihood", *key)
    mirrored = estimator == "antithetic"
    group = _group(samples, 2 if mirrored else 1)
    strata = group // 2 if mirrored else group
    start = rng.random(samples // group)
    level = (start[:, None] + np.arange(strata) / strata) % 1.0
    # Drawn target by target, so that longer choices have the ranks of shorter ones and more.
    rank = rng.random((length, samples // group, strata)).transpose(1, 2, 0)
    if mirrored:
        level = np.concatenate((level, 1 - level), axis=1)
        rank = np.concatenate((rank, 1 - rank), axis=1)
    level, rank = level.reshape(samples), rank.reshape(samples, length)
    if estimator == "bernoulli":
        p = (1 - _SMALLEST) * level + _SMALLEST
        return Masks(rank < p[:, None], 1 / p, group)
    count = np.minimum(np.floor(level * length).astype(np.int64) + 1, length)
    hidden = rank.argsort(axis=1).argsort(axis=1) < count[:, None]
    return Masks(hidden, length / count, group)


def check_estimator(estimator: str, samples: int) -> None:
    """Errors: OptionError for an unknown estimator or a number of samples it cannot draw."""
    if estimator not in ESTIMATORS:
        raise OptionError(f"estimator={estimator!r} is not one of {', '.join(ESTIMATORS)}")
    if samples < 1:
        raise OptionError(f"samples={samples} must be at least 1")
    if estimator == "antithetic" and samples % 2:
        raise OptionError(f"samples={samples} must be even: antithetic draws come in pairs")


def _group(samples: int, unit: int) -> int:
    """Draws per group, a multiple of `unit`: as many as leave 16 groups, if that is possible."""
    sizes = range(unit, samples // _GROUPS + 1, unit)
    return max((size for size in sizes if samples % size == 0), default=unit)


@dataclass(frozen=True)
class Segment:
    """Targets that are masked together: tokens[start:], of which tokens[:prompt] is the context.

    In block-causal models tokens[prompt:start] are targets of earlier blocks.
    """

    tokens: Int[Tensor, " n"]
    prompt: int
    start: int
    key: tuple[Key, ...]


def segments(pair: TokenPair, block_length: int | None) -> list[Segment]:
    """The targets as a whole, or cut where blocks of positions end."""
    tokens = torch.tensor(pair.context + pair.target)
    prompt, total = len(pair.context), len(tokens)
    if block_length is None:
        return [Segment(tokens, prompt, prompt, pair.key)]
    first = (prompt // block_length + 1) * block_length
    edges = [prompt, *range(first, total, block_length), total]
    return [
        Segment(tokens[:high], prompt, low, (*pair.key, "block", i))
        for i, (low, high) in enumerate(pairwise(edges))
    ]


def masked_likelihoods(
    denoiser: Denoiser,
    pairs: Sequence[TokenPair],
    *,
    samples: int = 128,
    estimator: Estimator = "stratified",
    batch_size: int = 32,
    seed: int = 0,
    cfg_scale: float = 0.0,
) -> list[Likelihood]:
    """The bound for each pair, in nats, with its standard error.

    samples: forwards per pair, or per block of a pair in block-causal models, at most. cfg_scale:
    classifier-free guidance, l_u + (s + 1)(l_c - l_u), where l_u sees masks in place of the
    context; 0 = off, else forwards are twice as wide. What a pair gets does not depend on the
    others.
    """
    parts = [(i, s) for i, p in enumerate(pairs) for s in segments(p, denoiser.block_length)]
    parts.sort(key=lambda part: -len(part[1].tokens))  # alike lengths need little padding
    values, variances = [0.0] * len(pairs), [0.0] * len(pairs)
    open_parts: dict[int, tuple[Masks, list[float]]] = {}

    def rows() -> Iterator[tuple[int, Segment, NDArray[np.bool_]]]:
        for place, (_, part) in enumerate(parts):
            length = len(part.tokens) - part.start
            masks = draw_masks(length, samples, estimator, seed, *part.key)
            open_parts[place] = (masks, [])
            yield from ((place, part, hidden) for hidden in masks.hidden)

    for batch in batches(rows(), batch_size):
        found = masked_nats(denoiser, [(s, h) for _, s, h in batch], cfg_scale)
        for (place, _, _), nats in zip(batch, found, strict=True):
            masks, done = open_parts[place]
            done.append(nats)
            if len(done) == len(masks.weight):
                value, error = masks.estimate(np.array(done))
                values[parts[place][0]] += value
                variances[parts[place][0]] += error**2
                del open_parts[place]
    return [
        Likelihood(value=v, error=math.sqrt(e), tokens=len(p.target))
        for v, e, p in zip(values, variances, pairs, strict=True)
    ]


@torch.inference_mode()
def masked_nats(
    denoiser: Denoiser, rows: Sequence[tuple[Segment, NDArray[np.bool_]]], cfg_scale: float = 0.0
) -> list[float]:
    """-log p of the hidden targets given all else, summed per row. One forward."""
    width = max(len(s.tokens) for s, _ in rows)
    tokens = torch.full((len(rows), width), denoiser.pad_token_id)
    real = torch.zeros(tokens.shape, dtype=torch.bool)
    context, hidden = real.clone(), real.clone()
    for row, (part, drawn) in enumerate(rows):
        gap = width - len(part.tokens)
        tokens[row, gap:] = part.tokens
        real[row, gap:] = True
        context[row, gap : gap + part.prompt] = True
        # Kept apart from the tokens: a text may hold the mask token's id.
        hidden[row, gap + part.start :] = torch.from_numpy(drawn)
    index, column = hidden.nonzero(as_tuple=True)
    if len(index) == 0:
        return [0.0] * len(rows)
    targets = tokens[index, column]
    seen = tokens.masked_fill(hidden, denoiser.mask_token_id)
    blind = seen.masked_fill(context, denoiser.mask_token_id)
    fed = torch.cat((seen, blind)) if cfg_scale else seen
    mask = real.repeat(2, 1) if cfg_scale else real
    states = denoiser.hidden(
        fed.to(denoiser.device), None if bool(real.all()) else mask.to(denoiser.device)
    )
    sums = np.zeros(len(rows))
    step = max(1, _CHUNK_VALUES // denoiser.vocab_size)
    for low in range(0, len(index), step):
        at, where = index[low : low + step], column[low : low + step].to(denoiser.device)
        logits = _wide(denoiser.head(states, at.to(denoiser.device), where))
        if cfg_scale:
            other = _wide(denoiser.head(states, (at + len(rows)).to(denoiser.device), where))
            logits = torch.lerp(other, logits, cfg_scale + 1.0)
        found = log_probabilities(denoiser.suppress(logits), targets[low : low + step])
        np.add.at(sums, at.numpy(), -found.cpu().double().numpy())
    return [float(s) for s in sums]


def sum_windows(owners: Sequence[int], found: Sequence[Likelihood], texts: int) -> list[Likelihood]:
    """Add up the windows of each text; their errors are independent."""
    values, variances, tokens = [0.0] * texts, [0.0] * texts, [0] * texts
    for owner, window in zip(owners, found, strict=True):
        values[owner] += window.value
        variances[owner] += window.error**2
        tokens[owner] += window.tokens
    return [
        Likelihood(value=v, error=math.sqrt(e), tokens=n)
        for v, e, n in zip(values, variances, tokens, strict=True)
    ]


def log_probabilities(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Tensor:
    """log softmax(logits) at the targets, [N], in float32 (float64 for float64 logits)."""
    wide = _wide(logits)
    chosen = wide.gather(-1, targets.to(wide.device)[:, None])[:, 0]
    return chosen - wide.logsumexp(-1)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
