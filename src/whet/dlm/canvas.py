"""Canvases in, filled canvases out: the plain function behind every diffusion decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from whet.dlm.loop import CanvasLoop, Finished, OnCommit
from whet.dlm.options import DecodeOptions
from whet.dlm.provider import MakeProvider
from whet.dlm.trace import Trace
from whet.errors import InputError, OptionError
from whet.models.denoiser import Denoiser


@torch.inference_mode()
def denoise(
    model: Any,
    canvas: Int[Tensor, "P L"],
    attention_mask: Tensor | None = None,
    *,
    options: DecodeOptions,
    start: int | None = None,
    on_commit: OnCommit | None = None,
    requests: Sequence[int] | None = None,
    make_provider: MakeProvider | None = None,
) -> tuple[Int[Tensor, "P L"], Trace]:
    """Fill the mask tokens of a batch of canvases.

    model: a whet model or its `Denoiser` (which knows the tokenizer's size). canvas: prompts
    followed, or interrupted, by mask tokens. attention_mask: 1 at real tokens; padding on the
    left. start: first column to fill (default: the first with a mask); windows are cut from here.
    on_commit(step, rows): called after every step with the best hypothesis of each live prompt.
    requests: names of the prompts in the noise keys (default 0, 1, ...). make_provider: in place
    of the options' own source of logits.

    Errors: InputError for a canvas without masks or longer than the context; OptionError where
    options do not fit the canvas or the model.
    """
    denoiser = Denoiser.of(model)
    canvas = canvas.to(denoiser.device)
    first = padding(canvas, attention_mask)
    if canvas.shape[1] > denoiser.context_length:
        raise InputError(
            f"the canvas has {canvas.shape[1]} positions, the model's context "
            f"{denoiser.context_length}: shorten the prompt or gen_length"
        )
    masked = canvas == denoiser.mask_token_id
    if not bool(masked.any(-1).all()):
        raise InputError("a canvas has no mask token to fill")
    column = int(masked.any(0).nonzero()[0])
    start = column if start is None else start
    if start < 0:
        raise InputError(f"start={start} must be 0 or more")
    if column < start:
        raise InputError(f"column {column} holds a mask, before start={start}")
    loop = CanvasLoop(denoiser, options, on_commit=on_commit, make_provider=make_provider)
    names = list(requests) if requests is not None else list(range(len(canvas)))
    if len(names) != len(canvas):
        raise OptionError(f"{len(names)} requests name {len(canvas)} canvases: give one each")
    loop.admit(canvas, first, start=start, requests=names, places=range(len(canvas)))
    done: list[Finished] = []
    while loop.live:
        done.extend(loop.step())
    done.sort(key=lambda f: f.place)
    result = canvas.clone()
    for f in done:
        result[f.place, canvas.shape[1] - len(f.tokens) :] = f.tokens
    return result, Trace.of(done, loop.forward)


def padding(canvas: Int[Tensor, "P L"], attention_mask: Tensor | None) -> Int[Tensor, " P"]:
    """Columns of padding before each canvas. Errors: InputError where it is not on the left."""
    if attention_mask is None:
        return torch.zeros(len(canvas), dtype=torch.long, device=canvas.device)
    real = attention_mask.to(canvas.device).bool()
    if bool((real[:, :-1] & ~real[:, 1:]).any()):
        raise InputError("padding must be on the left: set tokenizer.padding_side = 'left'")
    return (~real).sum(-1)
