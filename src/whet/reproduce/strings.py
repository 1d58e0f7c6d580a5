"""Strings of known probability: two sources, a masked LM that learns them, enumerated joints.

In `copy` every letter repeats the one 8 before it, in `shift` it is that one's successor in the
alphabet (`a` follows `h`); with probability 0.05 it is another letter. The first 8 are free. The
prompt, one token, names the source.
"""

from __future__ import annotations

from math import log
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from whet.dlm.adjust.decoding import Light
from whet.dlm.adjust.sampler import full_states
from whet.errors import InputError
from whet.measure.stats import Floats, quantile_interval
from whet.models.denoiser import Denoiser
from whet.noise.masked import draw_mask, mask_levels, masked_bound
from whet.rng import key_bits, keyed
from whet.zoo.recipe import Recipe
from whet.zoo.tokenizer import character_tokenizer
from whet.zoo.training import Training, build_model

ALPHABET = "abcdefgh"
PERIOD, LENGTH, FAITHFUL = 8, 32, 0.95
PROMPTS = {"copy": "=", "shift": "+"}
_ADDED = {"copy": 0, "shift": 1}
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Strings = np.ndarray[Any, np.dtype[np.int64]]  # [N, LENGTH] numbers of letters; -1 is no letter


def draw_strings(rng: np.random.Generator, source: str, count: int) -> Strings:
    """Strings [N, 32] of a source, as numbers of letters."""
    size = len(ALPHABET)
    out = rng.integers(0, size, (count, LENGTH))
    slip = rng.integers(1, size, (count, LENGTH)) * (rng.random((count, LENGTH)) >= FAITHFUL)
    for i in range(PERIOD, LENGTH):
        out[:, i] = (out[:, i - PERIOD] + _ADDED[source] + slip[:, i]) % size
    return out


def follows(strings: Strings, source: str) -> Bools:
    """Which letters from the 9th on are the ones that the source repeats, [N, 24]."""
    before, after = strings[:, :-PERIOD], strings[:, PERIOD:]
    right = after == (before + _ADDED[source]) % len(ALPHABET)
    return np.asarray(right & (before >= 0) & (after >= 0))


def log_likelihood(strings: Strings, source: str) -> Floats:
    """Exact log-probability in nats of each string; a token that is no letter counts as one of the
    7 letters that break the pattern."""
    size = len(ALPHABET)
    right, odd = log(FAITHFUL), log((1 - FAITHFUL) / (size - 1))
    pattern = follows(strings, source).sum(1)
    return np.asarray(-PERIOD * log(size) + pattern * right + (LENGTH - PERIOD - pattern) * odd)


def hidden_window(rng: np.random.Generator, count: int) -> Tensor:
    """`count` positions that depend on each other: every 8th, from a random one on."""
    return torch.arange(count) * PERIOD + int(rng.integers(PERIOD))


class BaseRecipe(Recipe):
    """The base: a model in its published configuration keys."""

    model: dict[str, Any]
    batch_size: int


class BaseTraining(Training):
    """A masked LM of the sources, each half of every batch; the prompt is never masked."""

    method = "masked"
    recipe_type: ClassVar[type[Recipe]] = BaseRecipe
    recipe: BaseRecipe

    def __init__(self, recipe: BaseRecipe) -> None:
        tokenizer = character_tokenizer()
        torch.manual_seed(key_bits(recipe.fit.seed, "init", bits=64) >> 1)
        super().__init__(recipe, build_model(recipe.model, tokenizer), tokenizer)
        self.denoiser = Denoiser.of(self.model, tokenizer)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, 33], mask levels [B] and masks [B, 33]."""
        rng = keyed(self.recipe.fit.seed, "batch", step)
        half = self.recipe.batch_size // 2
        tokens = torch.cat([encode(self.tokenizer, s, draw_strings(rng, s, half)) for s in PROMPTS])
        levels = mask_levels(rng, len(tokens))
        response = torch.arange(tokens.shape[1])[None] > 0
        return tokens, levels, draw_mask(rng, response.expand_as(tokens), levels)

    def tokens(self, batch: tuple[Tensor, Tensor, Tensor]) -> int:
        """All of them: nothing is padded."""
        return batch[0].numel()

    def loss(
        self, batch: tuple[Tensor, Tensor, Tensor], turn: str
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean bound in nats per letter."""
        tokens, levels, mask = batch
        rows, positions = mask.nonzero(as_tuple=True)
        noisy = tokens.masked_fill(mask, self.denoiser.mask_token_id)
        logits = self.denoiser.logits(noisy, None, rows, positions)
        lengths = torch.full((len(tokens),), LENGTH)
        return masked_bound(logits, tokens[mask], rows, levels, lengths).mean(), {}


def letter_ids(tokenizer: Any) -> Tensor:
    """Token ids of the alphabet."""
    return torch.tensor([tokenizer.convert_tokens_to_ids(c) for c in ALPHABET])


def encode(tokenizer: Any, source: str, strings: Strings) -> Tensor:
    """Tokens [N, 33]: the prompt and the letters."""
    prompt = tokenizer.convert_tokens_to_ids(PROMPTS[source])
    letters = letter_ids(tokenizer)[torch.from_numpy(strings)]
    return torch.cat((letters.new_full((len(letters), 1), prompt), letters), 1)


def decode(tokenizer: Any, tokens: Tensor) -> Strings:
    """The letters of canvases [N, 33] by number, -1 where a token is none."""
    match = tokens[:, 1:, None] == letter_ids(tokenizer)
    return np.asarray(torch.where(match.any(-1), match.long().argmax(-1), -1).numpy())


@torch.no_grad()
def enumerated_joint(denoiser: Denoiser, canvas: Tensor, letters: Tensor, light: Light) -> Floats:
    """Probability of every filling [8^K + 1] of a canvas [L] with K masks after one full forward.

    Fillings count from the leftmost mask, which is the most significant; the last entry is what
    holds a token that is no letter. As the decoder does it: lowest entropy first, a light pass
    before each further token.
    """
    tokens, weight, other = canvas[None], torch.ones(1, dtype=torch.float64), 0.0
    masks = (canvas == denoiser.mask_token_id).nonzero()[:, 0]
    hidden, size = full_states(denoiser, tokens), len(letters)
    code = torch.zeros(1, dtype=torch.long)
    for step in range(len(masks)):
        if step:
            hidden = light(tokens, hidden, None)
        rows, positions = (tokens == denoiser.mask_token_id).nonzero(as_tuple=True)
        logits = denoiser.suppress(denoiser.project(hidden[rows, positions])).double()
        p = logits.softmax(-1).view(len(tokens), -1, logits.shape[-1])
        entropy = torch.special.entr(p).sum(-1)
        at = torch.arange(len(tokens))
        best = entropy.argmin(-1)
        p = p[at, best][:, letters]
        chosen = positions.view(len(tokens), -1)[at, best].repeat_interleave(size)
        other += float((weight * (1 - p.sum(-1))).sum())
        weight = (weight[:, None] * p).flatten()
        place = len(masks) - 1 - torch.searchsorted(masks, chosen)
        digit = torch.arange(size).repeat(len(tokens))
        code = code.repeat_interleave(size) + digit * size**place
        tokens, hidden = tokens.repeat_interleave(size, 0), hidden.repeat_interleave(size, 0)
        tokens[torch.arange(len(tokens)), chosen] = letters[digit]
    out = torch.zeros(size ** len(masks) + 1, dtype=torch.float64)
    out[code] = weight
    out[-1] = max(other, 0.0)
    return np.asarray(out.numpy())


def divergence(p: Floats, q: Floats) -> float:
    """KL(p || q) in nats."""
    some = p > 0
    return float((p[some] * (np.log(p[some]) - np.log(q[some]))).sum())


def gap_closed(
    adjust: Floats, marginal: Floats, exact: Floats, *, seed: int = 0, resamples: int = 4000
) -> tuple[float, float, float]:
    """(adjust - marginal) / (exact - marginal) of means, with a 95 % bootstrap interval.

    The arms are independent samples and are resampled apart. Where they leave no gap to speak of
    the value is 0 and the interval open, 0 to 1.
    """
    rng = keyed(seed, "gap")
    a, m, e = (
        x[rng.integers(0, len(x), (resamples, len(x)))].mean(1) for x in (adjust, marginal, exact)
    )
    gap = float(exact.mean() - marginal.mean())
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = quantile_interval((a - m) / (e - m), 0.95)
    except InputError:
        return 0.0, 0.0, 1.0
    value = float(adjust.mean() - marginal.mean()) / gap
    return value, min(low, value), max(high, value)
