"""Calibration data: what a model reads while a method watches it.

Text files give windows at random places, as SparseGPT and GPTQ take them (arXiv 2301.00774,
2210.17323); lists of texts give a row each; whet's own tasks give solved problems of their training
split, in the form that the zoo's models were trained on.

Deviation from their loaders: a window's place follows from the seed and its number alone, so the
first n windows are the same whatever `count` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from whet.data.text import read_text, tokenise
from whet.errors import InputError, OptionError
from whet.rng import keyed
from whet.tasks import Split, Task, evaluation_only, expand, problems
from whet.tasks.answers import THINK
from whet.tasks.scratchpad.patterns import TextTask
from whet.zoo.training import think

COUNT, LENGTH = 128, 2048
TASKS = "tasks:"

Source = str | Path | Sequence[str]


def calibration_batches(
    tokenizer: Any,
    source: Source,
    *,
    count: int = COUNT,
    length: int = LENGTH,
    batch_size: int = 8,
    seed: int = 0,
    held_out: float = 0.0,
) -> list[dict[str, Tensor]]:
    """Batches of `input_ids` and `attention_mask` [B, T] (int64, 0 at padding), `count` rows.

    source: a text file (Path): tokenised once, windows of `length` tokens that begin anywhere in
    it; a list of texts, each cut to `length` and padded on the right, `count` of them drawn where
    there are more (all where there are fewer), or "tasks:NAME" (a task or suite): problems with
    their answers, cut and padded alike. length: the caller sees to it that the model takes it.
    held_out: share of a text file, at its end, that no window touches (see `split_text`).

    Errors: OptionError for sizes below 1 (length: 2) or a task that cannot be trained on;
    InputError for text of less than one window, texts without tokens, or an unreadable file.
    """
    for name, value, least in (("count", count, 1), ("length", length, 2)):
        if value < least:
            raise OptionError(f"{name}={value} must be at least {least}")
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size} must be at least 1")
    if isinstance(source, Path):
        rows = _windows(tokenizer, source, count, length, seed, held_out)
    elif isinstance(source, str):
        solved = solved_problems(tokenizer, source, count, seed=seed, split="train")
        rows = [[*problem, *answer][:length] for problem, answer in solved]
    else:
        rows = _texts(tokenizer, source, count, length, seed)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    parts = [rows[low : low + batch_size] for low in range(0, len(rows), batch_size)]
    return [padded(part, pad) for part in parts]


def parse_source(text: str) -> str | Path:
    """`tasks:NAME` or a text file, as written on a command line.

    Errors: InputError for a file that is not there; OptionError for an unknown task.
    """
    if text.startswith(TASKS):
        _tasks(text)
        return text
    path = Path(text)
    if not path.is_file():
        raise InputError(f"no text file {text}: give a file, or {TASKS}NAME for whet's own tasks")
    return path


def padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Int[Tensor, "B T"]]:
    """Rows of token ids as one batch, padded on the right, where positions stay what they are."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(tokens)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def split_text(path: Path, held_out: float) -> tuple[str, str]:
    """A file's text, and what of it is held out: the last share of its characters, whole lines.

    Errors: OptionError for a share outside [0, 1); InputError for a file that cannot be read.
    """
    if not 0 <= held_out < 1:
        raise OptionError(f"held_out={held_out:g} must be at least 0 and below 1")
    text = read_text(path)
    if not held_out:
        return text, ""
    cut = len(text) - int(held_out * len(text))
    cut = 1 + text.rfind("\n", 0, cut) or cut
    return text[:cut], text[cut:]


def _windows(
    tokenizer: Any, path: Path, count: int, length: int, seed: int, held_out: float
) -> list[list[int]]:
    tokens = tokenise(tokenizer, split_text(path, held_out)[0])
    if len(tokens) < length:
        raise InputError(
            f"{path} has {len(tokens):,} tokens, a calibration window has length={length:,}: give "
            "a longer text or a smaller length"
        )
    starts = [
        int(keyed(seed, "calibration", number).integers(0, len(tokens) - length + 1))
        for number in range(count)
    ]
    return [tokens[start : start + length].tolist() for start in starts]


def _texts(
    tokenizer: Any, texts: Sequence[str], count: int, length: int, seed: int
) -> list[list[int]]:
    if not len(texts):
        raise InputError("no calibration texts were given")
    chosen = list(texts)
    if len(chosen) > count:
        places = keyed(seed, "calibration").choice(len(chosen), size=count, replace=False)
        chosen = [chosen[place] for place in sorted(places.tolist())]
    found = tokenizer(chosen, truncation=True, max_length=length, padding=False, verbose=False)
    rows: list[list[int]] = found["input_ids"]
    if not all(rows):
        raise InputError(
            f"calibration text {next(i for i, r in enumerate(rows) if not r)} is empty"
        )
    return rows


def _tasks(source: str) -> list[Task]:
    """Errors: OptionError for what is not "tasks:NAME", or has nothing to train on."""
    if not source.startswith(TASKS):
        raise OptionError(f"source={source!r}: give a Path, a list of texts, or '{TASKS}NAME'")
    chosen = expand([source.removeprefix(TASKS)])
    found = [task for task in chosen if not evaluation_only(task)]
    if not found:
        raise OptionError(f"{source} has under 1,000 problems: it is for evaluation only")
    return found


def solved_problems(
    tokenizer: Any, source: str, count: int, *, seed: int, split: Split
) -> list[tuple[list[int], list[int]]]:
    """Token ids of `count` different problems and of their answers with the end of text.

    source: "tasks:NAME"; of a suite each task gives its share. Where the tokenizer has words for
    it, answers are worked out first, as the zoo's autoregressive models do.
    Errors: OptionError as `calibration_batches`; InputError where a task runs out of problems.
    """
    works = set(THINK) <= set(tokenizer.get_vocab())
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tasks = _tasks(source)
    streams = [problems(task, seed=seed, split=split) for task in tasks]
    found: list[tuple[list[int], list[int]]] = []
    for number in range(count):
        place = number % len(tasks)
        instance, answer = next(streams[place]), None
        if works and isinstance(tasks[place], TextTask):
            answer = think(keyed(seed, "calibration", instance.key), instance)
        texts = [instance.prompt, answer or instance.example]
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        found.append((ids[0], [*ids[1], *end]))
    return found
