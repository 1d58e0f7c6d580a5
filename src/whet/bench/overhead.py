"""What the engine costs on top of the model: a generation against a replay of its model calls.

The replay makes the very calls the generation made (same canvases, same columns, same logit rows)
and nothing else, in turns with it.
"""

from __future__ import annotations

import copy
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

    def read(self, tokens: Tensor, cache: Any) -> None:
        """As `Denoiser.read`; a replay reads on from a copy of the cache as it was."""
        before = copy.deepcopy(cache)

        def again() -> Tensor:
            Denoiser.read(self, tokens, copy.deepcopy(before))
            return tokens

        self.calls.append(again)
        super().read(tokens, cache)

    def refine(self, tokens: Tensor, cache: Any, condition: Tensor | None) -> Tensor:
        """As `Denoiser.refine`."""
        again = partial(super().refine, tokens, cache, condition)
        self.calls.append(again)
        return again()

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


def random_sdar(
    *, layers: int, width: int, vocab: int, context: int, block_length: int, sharpness: float = 1.0
) -> Denoiser:
    """A block-causal SDAR with random weights."""
    from whet.models.sdar import SDARConfig, SDARForCausalLM

    torch.manual_seed(0)
    heads = max(1, width // 64)
    config = SDARConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        num_hidden_layers=layers,
        intermediate_size=3 * width,
        vocab_size=vocab,
        max_position_embeddings=context,
        block_size=block_length,
        mask_token_id=vocab - 1,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = SDARForCausalLM(config).eval()
    model.lm_head.weight.data.mul_(sharpness)
    return Denoiser.of(model)


def random_gemma(
    *, layers: int, width: int, vocab: int, context: int, canvas_length: int
) -> Denoiser:
    """A text-only DiffusionGemma of transformers with random weights and four experts."""
    from transformers import (
        DiffusionGemmaConfig,
        DiffusionGemmaForBlockDiffusion,
        DiffusionGemmaTextConfig,
    )
    from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

    torch.manual_seed(0)
    heads = max(1, width // 64)
    text = DiffusionGemmaTextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        global_head_dim=width // heads,
        num_global_key_value_heads=heads,
        max_position_embeddings=context,
        layer_types=["sliding_attention"] * (layers - 1) + ["full_attention"],
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=width,
        pad_token_id=0,
        eos_token_id=1,
    )
    vision = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    config = DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        canvas_length=canvas_length,
        boi_token_id=vocab - 3,
        eoi_token_id=vocab - 2,
        image_token_id=vocab - 1,
    )
    return Denoiser.of(DiffusionGemmaForBlockDiffusion(config).eval())


def random_canvas(denoiser: Denoiser, batch: int, prompt: int, gen_length: int) -> Tensor:
    """[batch, prompt + gen_length]: random prompts, then masks."""
    generator = torch.Generator().manual_seed(1)
    highest = denoiser.mask_token_id if denoiser.mask_token_id > 0 else denoiser.vocab_size
    ids = torch.randint(1, highest, (batch, prompt), generator=generator)
    masks = torch.full((batch, gen_length), denoiser.mask_token_id)
    return torch.cat((ids, masks), 1)
