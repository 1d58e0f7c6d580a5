"""ADJUST's decoder (arXiv 2509.22738): one full forward, then light passes, a token after each.

K tokens per full forward: the base's states h are taken at the first of them; before each further
one the sampler layer g reads the canvas with what was just committed and moves h on, so that the
token is conditioned on all before it, at a fraction of a forward. Always the position of lowest
entropy, by the newest prediction. K = 1 is exact joint sampling, one forward per token. Without a
sampler states stay as they are: K tokens from one forward's marginals (the paper's baseline).

Deviations from the official code: what may not be predicted is suppressed after light passes as
well (there only after full ones, so that the mask token could be drawn); every row counts its own
tokens; exactly K tokens per full forward and a rest at the end of a window (there Dream's time
grid); `entropy_stop`, which there is disabled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from whet.dlm.adjust.sampler import (
    AdjustSampler,
    asked_columns,
    base_dtype,
    check_fits,
    full_states,
    load_sampler,
)
from whet.dlm.forward import Feed, Forward
from whet.dlm.options import DecodeOptions
from whet.dlm.provider import follow
from whet.dlm.select import RowRule, best
from whet.dlm.shim import custom_generate
from whet.dlm.state import Proposal, Rows
from whet.errors import OptionError
from whet.layers.sampling import Confidence, ConfidenceOf, propose
from whet.models.denoiser import Denoiser

# From canvases [R, L], their states [R, L, D] and the mask of real tokens to the next states.
Light = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, kw_only=True)
class Adjust(DecodeOptions):
    """One token per pass, of lowest entropy first.

    sampler: folder of the sampler layer, or the layer; None samples from the marginals.
    tokens_per_forward: tokens committed per full forward (K). entropy_stop: nats; a light pass
    after which a row's lowest entropy lies above it is followed by a full forward instead of a
    commitment. The paper samples at temperature 1.
    """

    sampler: str | AdjustSampler | None = None
    tokens_per_forward: int = 4
    entropy_stop: float | None = None
    confidence: Confidence = "neg_entropy"
    confidence_of: ConfidenceOf = "sampled"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens_per_forward < 1:
            raise OptionError(f"tokens_per_forward={self.tokens_per_forward} must be at least 1")
        if self.entropy_stop is not None and not self.entropy_stop >= 0:
            raise OptionError(f"entropy_stop={self.entropy_stop:g} must be 0 or more")
        if self.cfg_scale:
            raise OptionError(
                f"cfg_scale={self.cfg_scale:g} with light passes: the sampler layer was not "
                "trained on guided states, leave cfg_scale out"
            )
        if self.smooth:
            raise OptionError(
                f"smooth={self.smooth:g} with light passes: the sampler layer reads the tokens' "
                "own embeddings, leave smooth out"
            )
        if self.cache != "none":
            raise OptionError(
                f"cache={self.cache} with light passes: they need the states of the whole canvas, "
                "use cache=none"
            )

    def check_model(self, denoiser: Denoiser) -> None:
        super().check_model(denoiser)
        if denoiser.block_length is not None:
            raise OptionError(
                "light passes need a model that attends to the whole canvas: this one is "
                f"block-causal with blocks of {denoiser.block_length}"
            )

    def provider(self, denoiser: Denoiser, forward: Forward) -> AdjustProvider:
        return AdjustProvider(
            denoiser, forward, self._light(denoiser), self.tokens_per_forward, self.entropy_stop
        )

    def selector(self, denoiser: Denoiser) -> OneSelector:
        return OneSelector()

    def _light(self, denoiser: Denoiser) -> Light:
        if self.sampler is None:
            return marginals
        if isinstance(self.sampler, AdjustSampler):
            check_fits(self.sampler, denoiser)
            return light_pass(self.sampler, denoiser)
        sampler = _loaded(self.sampler, _stamp(self.sampler), base_dtype(denoiser), denoiser.device)
        check_fits(sampler, denoiser, name=self.sampler)
        return light_pass(sampler, denoiser)


@functools.lru_cache(maxsize=1)
def _loaded(folder: str, stamp: int, dtype: torch.dtype, device: torch.device) -> AdjustSampler:
    """The sampler used last, so that not every batch reads it again. stamp: see `_stamp`."""
    return load_sampler(folder, dtype=dtype, device=device)


def _stamp(folder: str) -> int:
    """Another number when the weights were written anew."""
    weights = Path(folder) / "model.safetensors"
    return weights.stat().st_mtime_ns if weights.is_file() else 0


def marginals(tokens: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """No light pass: the states of the last full forward (the baseline)."""
    return hidden


def light_pass(sampler: AdjustSampler, denoiser: Denoiser) -> Light:
    """The sampler layer's pass."""

    def light(tokens: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = sampler(F.embedding(tokens, denoiser.embedding()), hidden, mask)
        return out

    return light


def oracle(denoiser: Denoiser) -> Light:
    """The pass that g imitates, at full cost: the base on the canvas as it is now."""

    def light(tokens: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return full_states(denoiser, tokens, mask)

    return light


@dataclass(frozen=True)
class OneSelector(RowRule):
    """Commit the best position; ties go to the lowest."""

    def commit(self, rows: Rows, proposal: Proposal) -> Tensor:
        return best(proposal.priority, proposal.candidates)


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.bool)


@dataclass
class AdjustProvider:
    """Logits of full forwards and of light passes between them.

    A row goes through the base at the first step of a window and when `tokens_per_forward` of its
    tokens came from the last time. pass_: what a light pass is. light_calls, light_rows: light
    passes, and canvases in them. full, light: [R] of the last call, which rows went through the
    base, and which took a light pass.
    """

    denoiser: Denoiser
    forward: Forward
    pass_: Light
    tokens_per_forward: int
    entropy_stop: float | None = None
    copies: int = field(default=1, init=False)
    light_calls: int = field(default=0, init=False)
    light_rows: int = field(default=0, init=False)
    full: Bool[Tensor, " R"] = field(default_factory=_nothing, init=False)
    light: Bool[Tensor, " R"] = field(default_factory=_nothing, init=False)
    _hidden: Tensor | None = field(default=None, init=False)
    _given: Tensor | None = field(default=None, init=False)

    def __call__(self, rows: Rows, index: Tensor, position: Tensor) -> Tensor:
        feed, length = Feed.of(rows), rows.tokens.shape[1]
        # How many tokens each row has had from its last full forward.
        given = torch.full_like(rows.slot, self.tokens_per_forward)
        if self._hidden is not None and self._given is not None:
            known = (rows.slot >= 0) & (rows.window_step > 0)
            given = torch.where(known, self._given[rows.slot.clamp_min(0)], given)
            hidden = follow(self._hidden, rows.slot, length)
        else:
            width = self.denoiser.embedding().shape[1]
            hidden = self.denoiser.embedding().new_zeros(len(rows), length, width)
        full = given >= self.tokens_per_forward
        light = ~full
        if bool(light.any()):
            hidden = self._advance(feed, hidden, light)
            if self.entropy_stop is not None:
                full = full | (light & self._unsure(hidden, index, position))
        if bool(full.any()):
            hidden = self._refresh(feed, hidden, full)
        self._hidden, self._given = hidden, torch.where(full, 0, given) + 1
        self.full, self.light = full, light
        return self._logits(hidden, index, position)

    def _logits(self, hidden: Tensor, index: Tensor, position: Tensor) -> Tensor:
        return self.denoiser.suppress(self.denoiser.project(hidden[index, position]))

    def _advance(self, feed: Feed, hidden: Tensor, which: Tensor) -> Tensor:
        """A light pass of the rows `which`."""
        self.light_calls += 1
        self.light_rows += int(which.sum())
        if bool(which.all()):
            return self.pass_(feed.tokens, hidden, feed.mask())
        part = feed.take(which)
        return hidden.index_put((which,), self.pass_(part.tokens, hidden[which], part.mask()))

    def _refresh(self, feed: Feed, hidden: Tensor, which: Tensor) -> Tensor:
        """A full forward of the rows `which`."""
        every = bool(which.all())
        part = feed if every else feed.take(which)
        columns = asked_columns(self.denoiser, part.first, part.tokens.shape[1])
        row = torch.arange(len(columns), device=columns.device)[:, None].expand_as(columns)
        found = self.forward(part, row.flatten(), columns.flatten()).view(*columns.shape, -1)
        return found if every else hidden.index_put((which,), found)

    def _unsure(self, hidden: Tensor, index: Tensor, position: Tensor) -> Bool[Tensor, " R"]:
        """Rows without a position whose entropy is at most `entropy_stop`."""
        assert self.entropy_stop is not None
        _, sure = propose(self._logits(hidden, index, position), confidence="neg_entropy")
        settled = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        settled[index[-sure <= self.entropy_stop]] = True
        return ~settled


adjust = custom_generate(Adjust, "adjust")
