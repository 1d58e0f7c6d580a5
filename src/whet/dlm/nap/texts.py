"""Prompts in, paths and summaries out (NAP, arXiv 2602.23225): decode on a canvas of tagged slots.

Any decoder of masked LMs can fill the canvas; `Nap` makes all paths advance in every step. The
answer is read from the summary alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from whet.dlm.eos import is_eos
from whet.dlm.nap.layout import Layout, tag_ids
from whet.dlm.options import DecodeOptions
from whet.dlm.order import global_arness
from whet.dlm.texts import encode_prompt, fill_regions
from whet.models.denoiser import Denoiser


@dataclass(frozen=True)
class Worked:
    """One decoded prompt. paths, text: what stands in the slots, up to each one's EOS; text is
    the summary's.

    steps: forwards the prompt took part in. answer_steps: without those that committed nothing
    but filling. answer_tokens: tokens in the slots, each one's first EOS included. arness: how
    close to left-to-right these tokens were committed (Global-ARness@1).
    """

    prompt: str
    paths: tuple[str, ...]
    text: str
    steps: int
    answer_steps: int
    answer_tokens: int
    arness: float


def think_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    layout: Layout,
    options: DecodeOptions,
    batch_size: int = 32,
    chat: bool = False,
    requests: Sequence[int] | None = None,
) -> Iterator[Worked]:
    """Decode prompts in batches, each on a canvas of `layout`'s slots, in order.

    Errors: CheckpointError for a tokenizer without the tags; OptionError for a packed layout;
    those of `encode_prompt` and the decoder.
    """
    denoiser = Denoiser.of(model, tokenizer)
    tags = tag_ids(tokenizer, layout.paths)
    region = torch.tensor(layout.canvas(tags, denoiser.mask_token_id))
    encoded = [encode_prompt(denoiser, tokenizer, p, len(region), chat=chat) for p in prompts]
    for part, written, trace in fill_regions(
        denoiser, encoded, region, options=options, batch_size=batch_size, requests=requests
    ):
        useful = used(written, layout, denoiser.end_ids)
        steps, _ = trace.spent_on(useful)
        ordered = trace.commit_step.masked_fill(~useful, -1)
        arness = global_arness(ordered, trace.confidence)
        for i, prompt in enumerate(prompts[part]):
            parts = [
                tokenizer.decode(_before_end(written[i, a:b], denoiser), skip_special_tokens=False)
                for a, b in layout.spans()
            ]
            yield Worked(
                prompt=prompt,
                paths=tuple(parts[:-1]),
                text=parts[-1],
                steps=int(trace.steps[i]),
                answer_steps=int(steps[i]),
                answer_tokens=int(useful[i].sum()),
                arness=float(arness[i]),
            )


def used(tokens: Int[Tensor, "P W"], layout: Layout, end_ids: Sequence[int]) -> Bool[Tensor, "P W"]:
    """Where a slot holds text, its first end of text included; not at tags and filling."""
    found = torch.zeros_like(tokens, dtype=torch.bool)
    for a, b in layout.spans():
        end = is_eos(tokens[:, a:b], end_ids).long()
        found[:, a:b] = end.cumsum(-1) - end == 0
    return found


def _before_end(tokens: Int[Tensor, " N"], denoiser: Denoiser) -> list[int]:
    ended = is_eos(tokens, denoiser.end_ids).long().cumsum(-1)
    kept: list[int] = tokens[ended == 0].tolist()
    return kept
