"""A Markov chain of order 2: texts whose likelihood and whose conditionals are known exactly.

The conditionals of any masked text come from messages passed along the chain (forward-backward):
what a masked LM could at best have learnt, as a source of logits for the canvas loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.dlm.forward import Forward
from whet.dlm.provider import MakeProvider
from whet.dlm.state import Rows
from whet.measure.stats import Floats
from whet.models.denoiser import Denoiser
from whet.rng import keyed

SYMBOLS, LENGTH = 32, 64


@dataclass(frozen=True)
class Chain:
    """A stationary Markov chain of order 2.

    transition: [S, S, S], of the next symbol after (last but one, last). pairs: [S, S], the
    stationary law of two symbols in a row.
    """

    transition: Floats
    pairs: Floats

    @classmethod
    def drawn(
        cls, seed: int, *, symbols: int = SYMBOLS, near: float = 2.0, far: float = 1.0
    ) -> Chain:
        """p(x | a, b) in proportion to exp(near A[b, x] + far B[a, x]), A and B normal."""
        rng = keyed(seed, "chain")
        last, before = near * rng.normal(size=(symbols,) * 2), far * rng.normal(size=(symbols,) * 2)
        weight = np.exp(before[:, None, :] + last[None])
        transition = weight / weight.sum(-1, keepdims=True)
        pairs = np.full((symbols, symbols), symbols**-2.0)
        for _ in range(2000):
            pairs = np.einsum("ab,abc->bc", pairs, transition)
        return cls(transition, pairs / pairs.sum())

    def sample(self, rng: np.random.Generator, count: int, length: int = LENGTH) -> Tensor:
        """Sequences [count, length]."""
        symbols = len(self.pairs)
        out = np.empty((count, length), dtype=np.int64)
        first = rng.choice(symbols**2, size=count, p=self.pairs.ravel())
        out[:, 0], out[:, 1] = first // symbols, first % symbols
        cumulated = self.transition.cumsum(-1)
        for i in range(2, length):
            u = rng.random((count, 1))
            below = (cumulated[out[:, i - 2], out[:, i - 1]] <= u).sum(-1)
            out[:, i] = np.minimum(below, symbols - 1)
        return torch.from_numpy(out)

    def nll(self, tokens: Int[Tensor, "N L"]) -> Floats:
        """Exact nats per symbol of each sequence, [N]."""
        start = -np.log(self.pairs[tokens[:, 0], tokens[:, 1]])
        length = tokens.shape[1]
        return np.asarray((start + (length - 2) * self.conditional_nll(tokens)) / length)

    def conditional_nll(self, tokens: Int[Tensor, "N L"]) -> Floats:
        """The same of the symbols that have two before them, given those."""
        x = tokens.numpy()
        return np.asarray(-np.log(self.transition[x[:, :-2], x[:, 1:-1], x[:, 2:]]).mean(1))

    def entropy(self, length: int = LENGTH) -> float:
        """Nats per symbol of sequences of this length: the expected `nll` of the source's own."""
        pair = -(self.pairs * np.log(self.pairs)).sum()
        each = -(self.transition * np.log(self.transition)).sum(-1)
        return float((pair + (length - 2) * (self.pairs * each).sum()) / length)

    def posterior(self, tokens: Int[Tensor, "N L"], mask_token_id: int) -> Float[Tensor, "N L S"]:
        """p(symbol at each position | the symbols that are not masked), exactly.

        Errors: ValueError for texts of fewer than three symbols.
        """
        count, length = tokens.shape
        symbols = len(self.pairs)
        if length < 3:
            raise ValueError(f"texts of {length} symbols have no transition of order 2")
        allowed = torch.ones(count, length, symbols, dtype=torch.float64)
        known = tokens != mask_token_id
        allowed[known] = torch.nn.functional.one_hot(tokens[known], symbols).double()
        # [b, a, c]: one matrix product per middle symbol.
        step = torch.from_numpy(self.transition).transpose(0, 1).contiguous()
        ahead = torch.from_numpy(self.pairs) * allowed[:, 0, :, None] * allowed[:, 1, None, :]
        forward = [ahead / ahead.sum((1, 2), keepdim=True)]  # of (x_i, x_{i+1}), [N, a, b]
        for i in range(2, length):
            ahead = torch.bmm(forward[-1].permute(2, 0, 1), step).permute(1, 0, 2)
            ahead = ahead * allowed[:, i, None, :]
            forward.append(ahead / ahead.sum((1, 2), keepdim=True))
        behind = torch.ones(count, symbols, symbols, dtype=torch.float64)
        found = torch.empty_like(allowed)
        found[:, length - 1] = forward[-1].sum(1)
        for i in range(length - 1, 1, -1):
            # behind: of (x_{i-1}, x_i), what is known to the right says about them.
            behind = behind * allowed[:, i, None, :]
            behind = torch.bmm(behind.permute(1, 0, 2), step.transpose(1, 2)).permute(1, 2, 0)
            behind = behind / behind.sum((1, 2), keepdim=True)
            both = forward[i - 2] * behind
            found[:, i - 1] = both.sum(1)
            if i == 2:
                found[:, 0] = both.sum(2)
        return found / found.sum(-1, keepdim=True)


@dataclass
class ExactProvider:
    """The chain's own conditionals in place of a model's."""

    chain: Chain
    denoiser: Denoiser
    forward: Forward
    copies: int = field(default=1, init=False)

    def __call__(self, rows: Rows, index: Tensor, position: Tensor) -> Tensor:
        self.forward.forwards += 1
        self.forward.rows += len(rows)
        self.forward.positions += rows.tokens.numel()
        found = self.chain.posterior(rows.tokens, self.denoiser.mask_token_id)[index, position]
        logits = found.new_full((len(index), self.denoiser.vocab_size), -torch.inf)
        logits[:, : found.shape[1]] = found.log()
        return logits.float()


def exact(chain: Chain) -> MakeProvider:
    """What makes a provider of the chain's conditionals."""
    return lambda denoiser, forward: ExactProvider(chain, denoiser, forward)
