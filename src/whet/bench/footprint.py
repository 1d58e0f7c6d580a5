"""Peak memory of a generation, and of one bare forward that computes the same logit rows.

Each is measured in a process of its own (`measure.memory.run_isolated` calls these functions).
"""

from __future__ import annotations

import torch

from whet.bench.overhead import random_canvas, random_llada
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.measure.memory import peak_memory


def generation_peak(
    *, decoder: str, vocab: int, prompt: int, gen_length: int, block_length: int, threads: int
) -> int:
    """Peak resident bytes while a canvas is filled."""
    torch.set_num_threads(threads)
    denoiser = random_llada(layers=2, width=64, vocab=vocab, context=prompt + gen_length)
    canvas = random_canvas(denoiser, 1, prompt, gen_length)
    options = decoder_options(decoder, {"block_length": block_length})
    _, peak = peak_memory(lambda: denoise(denoiser, canvas, options=options, start=prompt))
    return peak.peak_bytes


def forward_peak(
    *, rows: int, vocab: int, prompt: int, gen_length: int, block_length: int, threads: int
) -> int:
    """Peak resident bytes of one forward of `rows` canvases with the logits of a window."""
    torch.set_num_threads(threads)
    denoiser = random_llada(layers=2, width=64, vocab=vocab, context=prompt + gen_length)
    canvas = random_canvas(denoiser, 1, prompt, gen_length).expand(rows, -1)
    index = torch.arange(rows).repeat_interleave(block_length)
    position = prompt + torch.arange(block_length).repeat(rows)

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return denoiser.head(denoiser.hidden(canvas, None), index, position)

    _, peak = peak_memory(forward)
    return peak.peak_bytes
