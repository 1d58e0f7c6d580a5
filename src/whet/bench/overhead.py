"""What the engine costs on top of the model: a generation against a replay of its model calls.

The replay makes the very calls the generation made (same canvases, same columns, same logit rows)
and nothing else, in turns with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from whet.dlm.canvas import denoise
from whet.dlm.options import DecodeOptions
from whet.measure.clock import alternate, paired_ratio
from whet.models.denoiser import Denoiser
from whet.models.kv import CanvasCache


@dataclass(frozen=True, kw_only=True)
class RecordingDenoiser(Denoiser):
    """A denoiser that remembers the calls made through it, so that they can be made again."""

    calls: list[Callable[[], Tensor]] = field(default_factory=list)

    def hidden(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: CanvasCache | None = None,
        **given: Any,
    ) -> Tensor:
        """As `Denoiser.hidden`; a cache is remembered with what the call feeds it."""
        again = partial(super().hidden, tokens.clone(), attention_mask, **given)
        if cache is None:
            self.calls.append(again)
            return again()
        fed = cache.fed()
        rows, length = cache.rows, cache.length

        def cached() -> Tensor:
            cache.restore(rows, length)
            return again(cache=cache.feed(*fed))

        self.calls.append(cached)
        return again(cache=cache)

    def project(self, states: Tensor) -> Tensor:
        """As `Denoiser.project`."""
        again = partial(super().project, states)
        self.calls.append(again)
        return again()


@dataclass(frozen=True)
class Overhead:
    """ratio: generation / replay, median over rounds, with its interval; seconds of each round."""

    ratio: float
    low: float
    high: float
    forwards: int
    rows: int
    generation: list[float]
    replay: list[float]


def engine_overhead(
    denoiser: Denoiser,
    canvas: Tensor,
    options: DecodeOptions,
    *,
    start: int,
    repeats: int,
    warmup: int = 1,
) -> Overhead:
    """Time whole generations against replays of their model calls, in turns."""
    recorder = RecordingDenoiser(**vars(denoiser))
    _, trace = denoise(recorder, canvas, options=options, start=start)

    @torch.inference_mode()
    def replay() -> None:
        for call in recorder.calls:
            call()

    def generation() -> Any:
        return denoise(denoiser, canvas, options=options, start=start)

    seconds = alternate(
        {"generation": generation, "replay": replay}, repeats=repeats, warmup=warmup
    )
    ratio, low, high = paired_ratio(seconds["generation"], seconds["replay"])
    return Overhead(
        ratio, low, high, trace.forwards, trace.rows, seconds["generation"], seconds["replay"]
    )


def random_llada(
    *, layers: int, width: int, vocab: int, context: int, sharpness: float = 1.0, seed: int = 0
) -> Denoiser:
    """A LLaDA with random weights; `sharpness` scales its logits so that thresholds are met."""
    from whet.models.llada import LLaDAConfig, LLaDAModelLM

    torch.manual_seed(seed)
    config = LLaDAConfig(
        d_model=width,
        n_heads=max(1, width // 64),
        n_layers=layers,
        mlp_hidden_size=3 * width,
        vocab_size=vocab,
        max_sequence_length=context,
        mask_token_id=vocab - 1,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LLaDAModelLM(config).eval()
    model.model.transformer["ff_out"].weight.data.mul_(sharpness)
    return Denoiser.of(model)


def random_canvas(denoiser: Denoiser, batch: int, prompt: int, gen_length: int) -> Tensor:
    """[batch, prompt + gen_length]: random prompts, then masks."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, denoiser.mask_token_id, (batch, prompt), generator=generator)
    masks = torch.full((batch, gen_length), denoiser.mask_token_id)
    return torch.cat((ids, masks), 1)
