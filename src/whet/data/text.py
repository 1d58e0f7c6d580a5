"""Windows of running text, as language models are pre-trained on.

The text is tokenised once. Its last part is held out, by position: first the validation windows,
then the test windows. Training draws windows of the rest, each step from its own key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from whet import rng as rng_
from whet.errors import InputError, OptionError

# Characters tokenised at a time: a tokenizer keeps some hundred bytes per token while it works.
_PIECE = 2**16


class TextWindows:
    """Windows of `length` tokens: `batch(step)` depends on the seed, the step and nothing else.

    text: a UTF-8 file, or documents, which an EOS token ends where the tokenizer has one.
    held_out: share of the tokens at the end that training never sees; a half of it is for
    validation, a half for testing (a document may lie on both sides of a border).

    Errors: InputError for a file that cannot be read, or for too little text: training needs
    batch_size · length tokens, validation and test one window each. OptionError for sizes below
    1 (length: 2) or a held_out outside [0, 1).
    """

    def __init__(
        self,
        tokenizer: Any,
        text: Path | Sequence[str],
        *,
        length: int,
        batch_size: int,
        seed: int,
        held_out: float = 0.1,
    ) -> None:
        if length < 2:
            raise OptionError(f"length={length} must be at least 2: a token and the one after it")
        if batch_size < 1:
            raise OptionError(f"batch_size={batch_size} must be at least 1")
        if not 0 <= held_out < 1:
            raise OptionError(f"held_out={held_out:g} must be at least 0 and below 1")
        if isinstance(text, str):
            raise InputError("text is a str: give a file as a Path, or a list of documents")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.tokens: Int[Tensor, " N"] = tokenise(tokenizer, text)
        total = len(self.tokens)
        apart = int(held_out * total)
        self.borders = (total - apart, total - apart + apart // 2, total)
        name = str(text) if isinstance(text, Path) else "the text"
        needs = {"training": (self.borders[0], batch_size * length)}
        if held_out:
            needs["validation"] = (apart // 2, length)
        for part, (found, needed) in needs.items():
            if found < needed:
                raise InputError(
                    f"{name} has {total:,} tokens, of which {found:,} for {part}, "
                    f"which needs at least {needed:,}"
                )

    @property
    def sha256(self) -> str:
        """Of the token ids, as 64-bit integers."""
        return hashlib.sha256(self.tokens.numpy().astype("<i8").tobytes()).hexdigest()

    def batch(self, step: int) -> Int[Tensor, "B L"]:
        """The training windows of one step: starts drawn uniformly from the training part."""
        rng = rng_.keyed(self.seed, "text", step)
        starts = rng.integers(0, self.borders[0] - self.length + 1, self.batch_size)
        return self._cut(torch.from_numpy(starts))

    def windows(
        self, split: Literal["validation", "test"], count: int | None = None
    ) -> Int[Tensor, "N L"]:
        """Windows of a held-out part that do not overlap: all of them, or `count` spread evenly.

        Errors: InputError where the part has fewer than `count`, or nothing is held out.
        """
        low, high = self.borders[:2] if split == "validation" else self.borders[1:]
        found = (high - low) // self.length
        if not found or (count or 0) > found:
            raise InputError(f"the {split} part has {found} windows, {count or 'some'} are needed")
        which = np.linspace(0, found - 1, count or found).round().astype(np.int64)
        return self._cut(torch.from_numpy(low + self.length * which))

    def _cut(self, starts: Int[Tensor, " N"]) -> Int[Tensor, "N L"]:
        return self.tokens[starts[:, None] + torch.arange(self.length)].long()


def tokenise(tokenizer: Any, text: Path | str | Sequence[str]) -> Tensor:
    """Token ids [N] of a text (a UTF-8 file as a Path), or of documents, which an EOS token ends
    where there is one. Nothing is put before a text. Errors: InputError as `read_text`.
    """
    parts: list[np.ndarray[Any, np.dtype[np.int32]]] = []

    def add(ids: Sequence[int]) -> None:
        parts.append(np.asarray(ids, dtype=np.int32))

    whole = read_text(text) if isinstance(text, Path) else text
    for document in [whole] if isinstance(whole, str) else whole:
        for piece in _pieces(document):
            add(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])
        if not isinstance(whole, str) and tokenizer.eos_token_id is not None:
            add([tokenizer.eos_token_id])
    return torch.from_numpy(np.concatenate(parts or [np.empty(0, np.int32)]))


def read_text(path: Path) -> str:
    """A UTF-8 file. Errors: InputError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"text {path} is not UTF-8: {error.reason} at {error.start}") from error


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end with a line where there is one, so that no word is cut."""
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            end = 1 + text.rfind("\n", start, end) or end
        yield text[start:end]
        start = end
