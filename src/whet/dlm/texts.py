"""Texts in, texts out: prompts become canvases, canvases are decoded in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from whet.dlm.canvas import denoise
from whet.dlm.eos import is_eos
from whet.dlm.options import DecodeOptions
from whet.dlm.order import global_arness
from whet.dlm.state import Rows
from whet.dlm.stream import DenoiseStream, Job
from whet.dlm.trace import Trace
from whet.errors import InputError, OptionError
from whet.models.chat import chat_prompt
from whet.models.denoiser import BLANK, Denoiser


@dataclass(frozen=True)
class Completion:
    """One decoded prompt.

    text: what follows the prompt, up to the end-of-text token. tokens: the whole region filled.
    steps, rows: what the prompt took part in. forwards, light: in how many of the steps it went
    through the model, and took a light pass (see `adjust`). answer_steps, answer_rows: forwards
    and rows without steps that committed nothing but filling behind the end of the text.
    answer_tokens: tokens up to and with the end-of-text token. trace, index: the batch's trace and
    the prompt's place in it.
    """

    prompt: str
    text: str
    tokens: list[int]
    steps: int
    rows: int
    forwards: int
    light: int
    answer_steps: int
    answer_rows: int
    answer_tokens: int
    trace: Trace | None
    index: int

    def arness(self, k: int = 1) -> float:
        """Global-ARness@k of the answer: how close to left-to-right it was committed.

        Errors: ValueError where the trace was dropped.
        """
        if self.trace is None:
            raise ValueError("the trace of this completion was dropped")
        mine = (slice(self.index, self.index + 1), slice(None, self.answer_tokens))
        return float(global_arness(self.trace.commit_step[mine], self.trace.confidence[mine], k=k))


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    options: DecodeOptions,
    gen_length: int,
    batch_size: int = 32,
    chat: bool = False,
    requests: Sequence[int] | None = None,
    on_commit: Callable[[int, Rows], None] | None = None,
) -> Iterator[Completion]:
    """Decode prompts in batches, yielding completions in order as batches finish.

    Errors: OptionError for gen_length or batch_size below 1; InputError for a prompt that is
    empty, too long, or holds mask tokens or unknown ids.
    """
    if gen_length < 1:
        raise OptionError(f"gen_length={gen_length} must be at least 1")
    denoiser = Denoiser.of(model, tokenizer)
    encoded = [encode_prompt(denoiser, tokenizer, p, gen_length, chat=chat) for p in prompts]
    region = torch.full((gen_length,), denoiser.mask_token_id)
    for part, tokens, trace in fill_regions(
        denoiser,
        encoded,
        region,
        options=options,
        batch_size=batch_size,
        requests=requests,
        on_commit=on_commit,
    ):
        yield from completions(prompts[part], tokens, trace, tokenizer, denoiser)


def fill_regions(
    denoiser: Denoiser,
    prompts: Sequence[Int[Tensor, " _"]],
    region: Int[Tensor, " G"],
    *,
    options: DecodeOptions,
    batch_size: int,
    requests: Sequence[int] | None = None,
    on_commit: Callable[[int, Rows], None] | None = None,
) -> Iterator[tuple[slice, Int[Tensor, "P G"], Trace]]:
    """Fill `region` behind each prompt, in batches: which prompts, their regions, the trace.

    requests: names of the prompts in the noise keys (None: their places). Errors: OptionError for
    batch_size below 1 or names that are not one for each prompt.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size} must be at least 1")
    names = list(requests) if requests is not None else list(range(len(prompts)))
    if len(names) != len(prompts):
        raise OptionError(f"{len(names)} requests name {len(prompts)} prompts: give one each")
    width = len(region)
    for low in range(0, len(prompts), batch_size):
        part = slice(low, low + batch_size)
        canvas, mask = left_pad(prompts[part], denoiser, width)
        canvas[:, -width:] = region
        tokens, trace = denoise(
            denoiser,
            canvas,
            mask,
            options=options,
            start=canvas.shape[1] - width,
            on_commit=on_commit,
            requests=names[part],
        )
        yield part, tokens[:, -width:].cpu(), trace


@dataclass(frozen=True)
class TextRequest:
    """A text to decode in a stream. gap_text: the prompt holds mask tokens that are to be filled.

    gen_length: positions to fill behind the prompt. request: names it in the noise keys.
    """

    prompt: str
    gen_length: int
    request: int
    gap_text: bool = False


def stream_texts(
    model: Any,
    tokenizer: Any,
    requests: Iterable[TextRequest],
    *,
    options: DecodeOptions,
    batch_size: int = 32,
    chat: bool = False,
    on_commit: Callable[[int, Rows], None] | None = None,
) -> Iterator[tuple[int, Completion]]:
    """Decode texts first done, first out: (index, completion) as they finish.

    Ragged prompts and lengths keep the batch full. Errors: those of `generate_texts` and
    `encode_gaps`, when a text is taken in.
    """
    denoiser = Denoiser.of(model, tokenizer)
    asked: dict[int, tuple[TextRequest, int]] = {}

    def jobs() -> Iterator[Job]:
        for index, request in enumerate(requests):
            if request.gap_text:
                ids = encode_gaps(denoiser, tokenizer, request.prompt)
                start = int((ids == denoiser.mask_token_id).nonzero()[0])
            else:
                if request.gen_length < 1:
                    raise OptionError(f"gen_length={request.gen_length} must be at least 1")
                length = request.gen_length
                prompt = encode_prompt(denoiser, tokenizer, request.prompt, length, chat=chat)
                start = len(prompt)
                ids = torch.cat((prompt, prompt.new_full((length,), denoiser.mask_token_id)))
            asked[index] = (request, start)
            yield Job(ids, start, request.request)

    stream = DenoiseStream(
        denoiser, jobs(), options=options, batch_size=batch_size, on_commit=on_commit
    )
    for done in stream:
        request, start = asked.pop(done.index)
        region = done.tokens[None, start:].cpu()
        [found] = completions([request.prompt], region, done.trace, tokenizer, denoiser)
        if request.gap_text:
            found = dataclasses.replace(found, text=tokenizer.decode(done.tokens.tolist()))
        yield done.index, found


def encode_prompt(
    denoiser: Denoiser, tokenizer: Any, prompt: str, gen_length: int, *, chat: bool = False
) -> Int[Tensor, " T"]:
    """Token ids of a prompt, checked. `chat` wraps it in the tokenizer's chat template."""
    if chat:
        prompt = chat_prompt(tokenizer, prompt)
    ids = torch.tensor(tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=torch.long)
    denoiser.check_prompt(ids)
    _check_known(tokenizer, prompt, ids)
    if len(ids) + gen_length > denoiser.context_length:
        raise InputError(
            f"prompt of {len(ids)} tokens and gen_length={gen_length} exceed the model's context "
            f"of {denoiser.context_length}"
        )
    return ids


def left_pad(
    prompts: Sequence[Tensor], denoiser: Denoiser, gen_length: int
) -> tuple[Int[Tensor, "P L"], Bool[Tensor, "P L"]]:
    """Canvases with ragged prompts padded on the left, and their attention mask."""
    longest = max(map(len, prompts))
    canvas = torch.full((len(prompts), longest + gen_length), denoiser.mask_token_id)
    mask = torch.ones(canvas.shape, dtype=torch.bool)
    for row, ids in enumerate(prompts):
        gap = longest - len(ids)
        canvas[row, :gap] = denoiser.pad_token_id
        mask[row, :gap] = False
        canvas[row, gap:longest] = ids
    return canvas, mask


def completions(
    prompts: Sequence[str],
    region: Int[Tensor, "P G"],
    trace: Trace,
    tokenizer: Any,
    denoiser: Denoiser,
) -> Iterator[Completion]:
    """Cut texts at the end-of-text token and count what they cost."""
    ended = is_eos(region, denoiser.end_ids).cumsum(-1)
    # The first EOS belongs to the answer: without it the text would not end there.
    useful = ended - is_eos(region, denoiser.end_ids).long() == 0
    answer_steps, answer_rows = trace.spent_on(useful)
    for i, prompt in enumerate(prompts):
        ids = region[i].tolist()
        yield Completion(
            prompt=prompt,
            text=tokenizer.decode(region[i][ended[i] == 0].tolist(), skip_special_tokens=False),
            tokens=ids,
            steps=int(trace.steps[i]),
            rows=int(trace.prompt_rows[i]),
            forwards=int((trace.rows_per_step[:, i] > 0).sum()),
            light=0 if trace.light_per_step is None else int(trace.light_per_step[:, i].sum()),
            answer_steps=int(answer_steps[i]),
            answer_rows=int(answer_rows[i]),
            answer_tokens=int(useful[i].sum()),
            trace=trace,
            index=i,
        )


def encode_gaps(denoiser: Denoiser, tokenizer: Any, text: str) -> Int[Tensor, " T"]:
    """Token ids of a text with gaps (`tokenizer.mask_token`), checked.

    Errors: InputError where the text has no gap, starts with one in a shifted model, is too long,
    or holds characters the tokenizer does not know.
    """
    if denoiser.mask_token_id == BLANK:
        raise InputError(
            "this model writes blocks behind a prompt: it has no mask token to mark gaps with"
        )
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
    gaps = ids == denoiser.mask_token_id
    if not bool(gaps.any()):
        raise InputError(
            f"the text has no gap: mark each missing token with {tokenizer.mask_token}"
        )
    if denoiser.traits.shift and bool(gaps[0]):
        raise InputError("the first token of a shifted model (Dream) must be given")
    _check_known(tokenizer, text, ids)
    if len(ids) > denoiser.context_length:
        raise InputError(
            f"text of {len(ids)} tokens exceeds the model's context of {denoiser.context_length}"
        )
    return ids


def infill(
    model: Any, tokenizer: Any, text: str, *, options: DecodeOptions, request: int = 0
) -> Completion:
    """Fill every gap in a text, keeping all else; the completion's text is the whole text.

    request: names the text in the noise keys. Errors: those of `encode_gaps`.
    """
    denoiser = Denoiser.of(model, tokenizer)
    ids = encode_gaps(denoiser, tokenizer, text)[None]
    start = int((ids[0] == denoiser.mask_token_id).nonzero()[0])
    tokens, trace = denoise(denoiser, ids, options=options, start=start, requests=[request])
    [done] = completions([text], tokens[:, start:].cpu(), trace, tokenizer, denoiser)
    return dataclasses.replace(done, text=tokenizer.decode(tokens[0].tolist()))


def _check_known(tokenizer: Any, text: str, ids: Tensor) -> None:
    unknown = tokenizer.unk_token_id
    if unknown is not None and bool((ids == unknown).any()):
        odd = next((c for c in text if tokenizer(c)["input_ids"] == [unknown]), "?")
        raise InputError(f"prompt holds {odd!r}, which the model's tokenizer does not know")
