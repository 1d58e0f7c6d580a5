"""Prompt-response batches from a weighted mixture of sources.

A source is any callable that draws one (prompt, response) pair of texts from a generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from whet import rng as rng_
from whet.errors import InputError

Source = Callable[[np.random.Generator], tuple[str, str]]


@dataclass(frozen=True)
class ResponseBatch:
    """Left-padded prompts followed by responses that fill `gen_length` tokens with EOS.

    tokens: [B, L]. attention_mask: True at real tokens. response: True where the response is
    (its EOS filling included). lengths: response tokens per row.
    """

    tokens: Int[Tensor, "B L"]
    attention_mask: Bool[Tensor, "B L"]
    response: Bool[Tensor, "B L"]

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        return self.response.sum(-1)

    def rows(self, part: slice) -> ResponseBatch:
        """Some of the rows, padded as they are."""
        return ResponseBatch(self.tokens[part], self.attention_mask[part], self.response[part])


def cuts(rows: int, parts: int) -> list[slice]:
    """`parts` runs of `rows` rows, as even as they can be; empty ones where there are too few."""
    ends = [rows * k // parts for k in range(parts + 1)]
    return [slice(low, high) for low, high in itertools.pairwise(ends)]


class ProblemMixture:
    """Batches by key: `batch(step)` depends on the seed, the step and nothing else.

    weights: share of each source. gen_lengths: share of each canvas length, of which a batch has
    one; None makes a sub-batch as long as its longest response and an EOS. groups: rows are
    sorted by length and cut into this many sub-batches, which saves padding.
    """

    def __init__(
        self,
        tokenizer: Any,
        sources: Mapping[str, Source],
        *,
        weights: Mapping[str, float],
        gen_lengths: Mapping[int, float] | None,
        batch_size: int,
        groups: int,
        seed: int,
        eos_token_id: int,
        pad_token_id: int,
    ) -> None:
        self.tokenizer, self.sources, self.seed = tokenizer, sources, seed
        self.names = list(weights)
        self.weights = np.array([weights[n] for n in self.names])
        self.weights = self.weights / self.weights.sum()
        self.gen_lengths = list(gen_lengths or ())
        shares = np.array([gen_lengths[g] for g in self.gen_lengths] if gen_lengths else [])
        self.gen_shares = shares / shares.sum()
        self.batch_size, self.groups = batch_size, groups
        self.eos, self.pad = eos_token_id, pad_token_id

    def batch(self, step: int) -> list[ResponseBatch]:
        """The sub-batches of one optimizer step."""
        rng = rng_.keyed(self.seed, "batch", step)
        gen_length = None
        if self.gen_lengths:
            gen_length = int(rng.choice(self.gen_lengths, p=self.gen_shares))
        picks = rng.choice(len(self.names), size=self.batch_size, p=self.weights)
        pairs = [self.sources[self.names[k]](rng) for k in picks.tolist()]
        prompts, responses = (
            self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
            for texts in zip(*pairs, strict=True)
        )
        free = gen_length is None  # then rows of like length lie together
        order = sorted(range(len(pairs)), key=lambda i: len(prompts[i]) + free * len(responses[i]))
        size = -(-len(order) // self.groups)
        return [
            self._collate([prompts[i] for i in part], [responses[i] for i in part], gen_length)
            for part in (order[k : k + size] for k in range(0, len(order), size))
        ]

    def _collate(
        self, prompts: Sequence[list[int]], responses: Sequence[list[int]], gen_length: int | None
    ) -> ResponseBatch:
        gen_length = gen_length or 1 + max(map(len, responses))
        longest = max(map(len, prompts))
        rows, masks = [], []
        for prompt, response in zip(prompts, responses, strict=True):
            if len(response) > gen_length:
                raise InputError(
                    f"a response of {len(response)} tokens does not fit gen_length={gen_length}"
                )
            fill = longest - len(prompt)
            tail = [self.eos] * (gen_length - len(response))
            rows.append([self.pad] * fill + prompt + response + tail)
            masks.append([False] * fill + [True] * (len(prompt) + gen_length))
        tokens, attention_mask = torch.tensor(rows), torch.tensor(masks)
        response_part = torch.zeros_like(attention_mask)
        response_part[:, longest:] = True
        return ResponseBatch(tokens, attention_mask, response_part)
