"""DiffusionGemma's decoding: random tokens accepted, renoised, and read until they are stable.

A block starts as random tokens. In each step every position is sampled at a temperature that falls
from t_max to t_min; positions are accepted in the order of their entropies while those before sum
to at most `entropy_bound` (arXiv 2505.24857), all others become random again. A block is finished
when its most likely tokens stayed the same for `stability` steps and their mean entropy lies below
`confidence_threshold`, or after `max_steps`; the most likely tokens are its text. The logits of a
step condition the next. Source: transformers' `diffusion_gemma` (DiffusionGemma, google).

Deviations from transformers' generate(): each row of a batch keeps its own block (no row waits for
another); noise is keyed; a last block may be shorter than the model's canvas; a checkpoint's
`generation_config.json` is not read for settings; and text goes on after EOS unless
`eos=early_stop` is given.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from whet import rng as rng_
from whet.dlm.entropy import within_bound
from whet.dlm.forward import Feed, Forward
from whet.dlm.options import DecodeOptions
from whet.dlm.provider import Provider
from whet.dlm.schedule import Windows
from whet.dlm.select import RowRule
from whet.dlm.state import Proposal, Rows, Successors
from whet.errors import OptionError
from whet.layers.sampling import Confidence, ConfidenceOf
from whet.models.denoiser import Denoiser
from whet.models.kv import JoinedCache, prompt_cache


@dataclass(frozen=True, kw_only=True)
class DiffusionGemma(DecodeOptions):
    """max_steps: per block. entropy_bound: nats. t_max, t_min: temperature at the first step and
    after the last. stability: steps without a change that end a block. confidence_threshold: mean
    entropy in nats below which it may end. block_length: None = the model's canvas."""

    uniform: ClassVar[bool] = True

    confidence: Confidence = "neg_entropy"
    confidence_of: ConfidenceOf = "sampled"
    max_steps: int = 48
    entropy_bound: float = 0.1
    t_max: float = 0.8
    t_min: float = 0.4
    stability: int = 1
    confidence_threshold: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        fixed = {"confidence": "neg_entropy", "confidence_of": "sampled", "temperature": 0.0}
        fixed |= {"cfg_scale": 0.0, "smooth": 0.0, "cache": "none"}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise OptionError(
                    f"{name}={getattr(self, name)}: DiffusionGemma's rule has its own temperatures "
                    "(t_max, t_min), entropies and exact cache; leave it out"
                )
        if self.eos == "defer":
            raise OptionError("eos=defer orders commitments; this rule reads whole blocks")
        if self.max_steps < 1:
            raise OptionError(f"max_steps={self.max_steps} must be at least 1")
        if not self.entropy_bound >= 0:
            raise OptionError(f"entropy_bound={self.entropy_bound:g} must be 0 or more")
        if not 0 < self.t_min < self.t_max:
            raise OptionError(
                f"t_min={self.t_min:g} must be above 0 and below t_max={self.t_max:g}"
            )
        if self.stability < 0:
            raise OptionError(f"stability={self.stability} must be 0 or more")
        if not self.confidence_threshold > 0:
            raise OptionError(f"confidence_threshold={self.confidence_threshold:g} must be above 0")

    def temperatures(self, rows: Rows) -> Tensor:
        """[R]: t_min + (t_max - t_min) times the part of the steps that remain."""
        remaining = (self.max_steps - rows.window_step).float() / self.max_steps
        return self.t_min + (self.t_max - self.t_min) * remaining

    def windows(self, denoiser: Denoiser, length: int, before: int) -> Windows:
        """Blocks of the model's canvas from the end of the prompt on; the last may be shorter."""
        block = self.block_length or denoiser.model.config.canvas_length
        return Windows(length, min(block, length))

    def forward(self, denoiser: Denoiser) -> Forward:
        return EncodedForward(denoiser)

    def provider(self, denoiser: Denoiser, forward: Forward) -> Provider:
        return SelfConditionedProvider(denoiser, cast(EncodedForward, forward), self)

    def selector(self, denoiser: Denoiser) -> RenoiseSelector:
        return RenoiseSelector(self, denoiser.vocab_size)


@dataclass
class EncodedForward:
    """The encoder reads what comes before a row's block, once; the decoder the block, each step.

    `positions` counts both, `forwards` and `rows` the decoder's calls. Rows with prefixes of one
    length go through the decoder together.
    """

    denoiser: Denoiser
    forwards: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)
    positions: int = field(default=0, init=False)
    condition: Tensor | None = field(default=None, init=False)
    _caches: list[Any] = field(default_factory=list, init=False)

    def __call__(self, feed: Feed, index: Tensor, column: Tensor) -> Tensor:
        slots = feed.slot.tolist()
        self._caches = [
            self._caches[s]
            if s >= 0
            else prompt_cache(self.denoiser.model.config.get_text_config())
            for s in slots
        ]
        first, low, high = feed.first.tolist(), feed.low.tolist(), feed.high.tolist()
        groups: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
        for row, slot in enumerate(slots):
            self._read(row, feed.tokens[row, first[row] : low[row]])
            conditioned = slot >= 0 and int(feed.window_step[row]) > 0
            groups[low[row] - first[row], high[row] - low[row], conditioned].append(row)
        out: Tensor | None = None
        for (_, width, conditioned), members in groups.items():
            states = self._decode(feed, members, width, conditioned)
            if out is None:
                out = states.new_zeros(len(index), states.shape[-1])
            place = {row: k for k, row in enumerate(members)}
            mine = torch.isin(index, torch.tensor(members, device=index.device))
            within = torch.tensor([place[r] for r in index[mine].tolist()], device=index.device)
            out[mine] = states[within, column[mine] - feed.low[index[mine]]]
        assert out is not None
        return out

    def _read(self, row: int, prefix: Tensor) -> None:
        """Encode what the row's cache does not hold yet."""
        new = prefix[int(self._caches[row].get_seq_length()) :][None]
        if new.shape[1]:
            self.denoiser.read(new, self._caches[row])
            self.positions += new.shape[1]

    def _decode(self, feed: Feed, members: list[int], width: int, conditioned: bool) -> Tensor:
        columns = torch.arange(width, device=feed.tokens.device)
        rows = torch.tensor(members, device=feed.tokens.device)
        tokens = feed.tokens[rows[:, None], feed.low[rows][:, None] + columns]
        condition = None
        if conditioned:
            assert self.condition is not None
            condition = self.condition[feed.slot[rows], :width]
        self.forwards += 1
        self.rows += len(members)
        self.positions += tokens.numel()
        cache = JoinedCache([self._caches[r] for r in members])
        return self.denoiser.refine(tokens, cache, condition)


@dataclass
class SelfConditionedProvider:
    """Logits of whole blocks; those of each step, at its temperature, condition the next."""

    denoiser: Denoiser
    forward: EncodedForward
    options: DiffusionGemma
    copies: int = field(default=1, init=False)

    def __call__(self, rows: Rows, index: Tensor, position: Tensor) -> Tensor:
        states = self.forward(Feed.of(rows), index, position)
        logits = self.denoiser.suppress(self.denoiser.project(states))
        tempered = logits / self.options.temperatures(rows)[index, None]
        place = position - rows.bounds()[0][index]
        width = int(place.max()) + 1
        condition = states.new_zeros(len(rows), width, logits.shape[-1])
        condition[index, place] = tempered.to(states.dtype)
        self.forward.condition = condition
        return logits


@dataclass
class RenoiseSelector(RowRule):
    """Accept by entropy, renoise the rest; commit a whole block when it is stable and sure."""

    options: DiffusionGemma
    vocab_size: int
    _history: Tensor | None = field(default=None, init=False)

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        """Blocks that are finished."""
        assert proposal.likeliest is not None
        inside = proposal.candidates
        unchanged = self._unchanged(rows, proposal.likeliest, inside)
        entropy = (-proposal.confidence).masked_fill(~inside, 0.0).sum(-1) / inside.sum(-1)
        stable = unchanged & (entropy < self.options.confidence_threshold)
        last = rows.window_step + 1 >= self.options.max_steps
        return inside & (stable | last)[:, None]

    def select(self, rows: Rows, proposal: Proposal) -> Successors:
        """One successor per row: its block finished, or partly renoised."""
        assert proposal.likeliest is not None
        commit = self.commit(rows, proposal)
        noise = proposal.candidates & ~commit
        accepted = within_bound(
            -proposal.confidence, proposal.candidates, self.options.entropy_bound
        )
        drafted = torch.where(accepted, proposal.tokens, self._random(rows, noise))
        tokens = torch.where(commit, proposal.likeliest, drafted)
        return Successors(None, commit, tokens=tokens, noise=noise)

    def _unchanged(self, rows: Rows, likeliest: Tensor, inside: Tensor) -> Tensor:
        """[R]: whether the most likely tokens are those of the last `stability` steps."""
        depth = self.options.stability
        now = likeliest.masked_fill(~inside, -1)
        # Aligned on the right, as regions are.
        region, known = now.shape[1], torch.full((len(now), depth, now.shape[1]), -2)
        history = known.to(now.device)
        if self._history is not None and depth:
            old = self._history[rows.slot.clamp_min(0)]
            kept = min(region, old.shape[2])
            history[:, :, region - kept :] = old[:, :, old.shape[2] - kept :]
            history[(rows.slot < 0) | (rows.window_step == 0)] = -2
        same: Tensor = ((history == now[:, None]) | ~inside[:, None]).all(-1).all(-1)
        self._history = torch.cat((history, now[:, None]), 1)[:, 1:]
        return same

    def _random(self, rows: Rows, where: Tensor) -> Tensor:
        """Random tokens, keyed by request and age."""
        out = torch.zeros_like(rows.commit_step)
        for row, (request, age) in enumerate(torch.stack((rows.request, rows.age), -1).tolist()):
            generator = rng_.keyed_torch(self.options.seed, "renoise", request, age)
            count = int(where[row].sum())
            fresh = torch.randint(self.vocab_size, (count,), generator=generator)
            out[row][where[row]] = fresh.to(out.device)
        return out
