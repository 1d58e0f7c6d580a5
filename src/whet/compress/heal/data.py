"""What is learnt: responses of the original model, or text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whet import rng as rng_
from whet.data.arrow import ArrowRows, build_rows
from whet.errors import InputError, OptionError

_SHARD = 64


@dataclass(frozen=True)
class Row:
    """Token ids. prompt: not learnt; response: learnt, with its end where it has one."""

    prompt: Sequence[int]
    response: Sequence[int]


def text_rows(batches: Sequence[Mapping[str, Tensor]]) -> list[Row]:
    """The rows of calibration batches without padding: all but the first token are learnt.

    Errors: InputError where no row has two tokens.
    """
    rows = [Row(ids[:1], ids[1:]) for ids in token_rows(batches) if len(ids) > 1]
    if not rows:
        raise InputError("the batches hold no row of two tokens: give longer ones")
    return rows


def token_rows(batches: Sequence[Mapping[str, Tensor]]) -> list[list[int]]:
    """Token ids of every row of the batches, padding left out."""
    found = []
    for batch in batches:
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        found += [row[own].tolist() for row, own in zip(ids, real, strict=True)]
    return found


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a response. Errors: OptionError where the model has none."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = own if own is not None else getattr(tokenizer, "eos_token_id", None)
    if found is None:
        raise OptionError("the model has no end-of-text token: use data='text'")
    return list(found) if isinstance(found, (list, tuple)) else [int(found)]


def record_responses(
    original: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    folder: Path,
    identity: Mapping[str, Any],
    temperature: float = 0.9,
    top_p: float = 0.95,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Let a model answer prompts, into Arrow shards; a run that was stopped goes on.

    temperature: 0 takes the likeliest token. max_new_tokens: or what the context has room for.
    identity: what else the responses depend on.
    Errors: OptionError for a model without an end of text, or a missing extra; InputError for a
    prompt that fills the context.
    """
    ends = end_ids(original, tokenizer)
    pad = next(i for i in (getattr(tokenizer, "pad_token_id", None), *ends) if i is not None)
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    sampling["max_new_tokens"] = max_new_tokens

    def make(numbers: range) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for low in range(numbers.start, numbers.stop, batch_size):
            some = [list(prompts[n]) for n in range(low, min(low + batch_size, numbers.stop))]
            key = rng_.key_bits(seed, "response", low, bits=64) >> 1
            answers = _generate(original, some, ends=ends, pad=pad, seed=key, **sampling)
            rows += [
                {"prompt": prompt, "response": answer, "ended": bool(answer) and answer[-1] in ends}
                for prompt, answer in zip(some, answers, strict=True)
            ]
        return rows

    build_rows(
        folder,
        schema=_schema,
        identity={**identity, **sampling, "seed": seed, "batch_size": batch_size},
        total=len(prompts),
        make=make,
        shard_size=_SHARD,
        on_progress=on_progress,
    )


def read_responses(folder: Path, *, keep_truncated: bool = False) -> tuple[list[Row], int]:
    """What was recorded, and how many responses that had no end were dropped.

    Errors: InputError where none is left; those of `ArrowRows`.
    """
    rows = ArrowRows(folder, columns=("prompt", "response", "ended"))
    kept = [Row(r["prompt"], r["response"]) for r in rows if r["ended"] or keep_truncated]
    kept = [row for row in kept if row.response]
    if not kept:
        raise InputError(
            f"all {len(rows)} responses were cut off before their end: raise max_new_tokens, or "
            "set keep_truncated for a model that never ends"
        )
    return kept, len(rows) - len(kept)


@torch.no_grad()
def _generate(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    ends: list[int],
    pad: int,
    seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> list[list[int]]:
    """Responses up to their first end, which they include."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    how: dict[str, Any] = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    device = model.device
    context = getattr(model.config, "max_position_embeddings", None)
    room = max_new_tokens if context is None else min(max_new_tokens, context - width)
    if room < 1:
        raise InputError(f"a prompt of {width} tokens fills the context of {context}: shorten it")
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        found = model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=room,
            eos_token_id=ends,
            pad_token_id=pad,
            **how,
        )
    return [_up_to_end(row, ends) for row in found[:, width:].tolist()]


def _up_to_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens


def _schema() -> Any:
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    return pa.schema({"prompt": ids, "response": ids, "ended": pa.bool_()})
