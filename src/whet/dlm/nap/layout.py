"""Where paths lie: tags, slots, and the tokens of a response (NAP, arXiv 2602.23225, section 4).

    <think 1> path 1 </think 1> … <think m> path m </think m> <summary> summary </summary>

Tags are one token each. Packed, a path is as long as it is, as in the official training code. In
slots, every path is filled to one length with EOS before its closing tag, which is how the canvas
of the decoder lies (inferred: no decoding code was published); tags are then given to the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from whet.errors import CheckpointError, InputError, OptionError
from whet.models.denoiser import unwrap
from whet.tasks.answers import THINK

MOST_PATHS = 6


def path_tags(path: int) -> tuple[str, str]:
    """Opening and closing tag of a path, from 1."""
    return f"<think {path}>", f"</think {path}>"


SUMMARY_TAGS = ("<summary>", "</summary>")


def all_tags(paths: int) -> list[str]:
    """The tags of `paths` paths and of the summary, in the order of a text."""
    return [tag for k in range(paths) for tag in path_tags(k + 1)] + list(SUMMARY_TAGS)


@dataclass(frozen=True)
class Response:
    """A response and what each of its tokens is.

    block: 1 to m in the paths, m + 1 in the summary, tags included; 0 elsewhere. tag: at tags.
    """

    tokens: list[int]
    block: list[int]
    tag: list[bool]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Layout:
    """paths: m. path_length: tokens of a slot, None = packed. summary_length: likewise.

    Errors: OptionError for numbers out of range, or one length without the other.
    """

    paths: int = 3
    path_length: int | None = 330
    summary_length: int | None = 32

    def __post_init__(self) -> None:
        if not 1 <= self.paths <= MOST_PATHS:
            raise OptionError(f"paths={self.paths} must be between 1 and {MOST_PATHS}")
        for name in ("path_length", "summary_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name}={value} must be at least 1")
        if (self.path_length is None) != (self.summary_length is None):
            raise OptionError(
                f"path_length={self.path_length} and summary_length={self.summary_length}: give "
                "both (slots) or neither (packed)"
            )

    @property
    def lengths(self) -> list[int] | None:
        """Tokens of every slot, the summary's last; None where texts are packed."""
        if self.path_length is None or self.summary_length is None:
            return None
        return [self.path_length] * self.paths + [self.summary_length]

    @property
    def width(self) -> int:
        """Tokens of a response in slots, tags included. Errors: OptionError for a packed one."""
        return sum(self._slots()) + 2 * (self.paths + 1)

    def _slots(self) -> list[int]:
        lengths = self.lengths
        if lengths is None:
            raise OptionError("path_length is not given: a canvas needs the lengths of its slots")
        return lengths

    def fits(self, parts: Sequence[Sequence[int]]) -> bool:
        """Whether the tokens of m paths and a summary find room in their slots."""
        if self.lengths is None:
            return True
        return all(len(p) <= n for p, n in zip(parts, self.lengths, strict=True))

    def response(self, parts: Sequence[Sequence[int]], tags: Sequence[int], eos: int) -> Response:
        """The response that holds m paths and a summary (tokens of each).

        tags: ids of `all_tags(m)`. Errors: InputError for another number of parts, one that is
        longer than its slot, or one that holds a tag itself.
        """
        if len(parts) != self.paths + 1:
            raise InputError(
                f"{len(parts)} parts were given: {self.paths} paths and a summary are needed"
            )
        if not self.fits(parts):
            raise InputError(
                f"parts of {', '.join(str(len(p)) for p in parts)} tokens do not fit slots of "
                f"{', '.join(map(str, self._slots()))}"
            )
        if any(token in tags for part in parts for token in part):
            raise InputError("a path or summary holds a tag: it could not be told from the others")
        tokens: list[int] = []
        block: list[int] = []
        tag: list[bool] = []
        for k, part in enumerate(parts):
            fill = 0 if self.lengths is None else self.lengths[k] - len(part)
            tokens += [tags[2 * k], *part, *[eos] * fill, tags[2 * k + 1]]
            block += [k + 1] * (len(part) + fill + 2)
            tag += [True, *[False] * (len(part) + fill), True]
        return Response(tokens, block, tag)

    def canvas(self, tags: Sequence[int], mask: int) -> list[int]:
        """The response with its tags in place and masks in the slots.

        Errors: OptionError for a packed layout, which has no slots.
        """
        empty: list[list[int]] = [[] for _ in self._slots()]
        return self.response(empty, tags, mask).tokens

    def spans(self) -> list[tuple[int, int]]:
        """Columns of every slot in a canvas, from its first tag on."""
        found, start = [], 0
        for length in self._slots():
            found.append((start + 1, start + 1 + length))
            start += length + 2
        return found


def tag_ids(tokenizer: Any, paths: int) -> list[int]:
    """Ids of `all_tags(paths)`. Errors: CheckpointError where one is not a single token."""
    vocab = tokenizer.get_vocab()
    missing = [tag for tag in all_tags(paths) if tag not in vocab]
    if missing:
        raise CheckpointError(
            f"the tokenizer has no token {missing[0]!r}: it was not trained on {paths} paths"
        )
    return [int(vocab[tag]) for tag in all_tags(paths)]


def add_tags(model: Any, tokenizer: Any, paths: int) -> int:
    """Add missing tags and think marks to a tokenizer, and rows for them to its model; how many.

    The head only ever grows: a head that is padded already has rows to spare, and cutting it to
    the tokenizer's size would lose them. New rows begin as the mean of the known ones.
    """
    vocab = tokenizer.get_vocab()
    new = [tag for tag in (*THINK, *all_tags(paths)) if tag not in vocab]
    known = len(tokenizer)
    if new:
        tokenizer.add_tokens(new, special_tokens=True)
    grow_head(unwrap(model), len(tokenizer), known)
    return len(new)


@torch.no_grad()
def grow_head(model: Any, rows: int, known: int) -> None:
    """Make sure that embedding and output matrix have `rows` rows; set those from `known` on.

    Rows that were there but unused (padding) are set too: nothing has ever trained them.
    """
    matrices = [model.get_input_embeddings()]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not matrices[0].weight:
        matrices.append(head)
    have = matrices[0].weight.shape[0]
    if rows > have:
        grown = [_taller(m, rows) for m in matrices]
        model.set_input_embeddings(grown[0])
        if len(grown) == 2:
            model.set_output_embeddings(grown[1])
        elif head is not None:
            head.weight = grown[0].weight
        matrices = grown
        for name in ("vocab_size", "embedding_size"):
            if hasattr(model.config, name):
                setattr(model.config, name, rows)
    for matrix in matrices:
        matrix.weight[known:rows] = matrix.weight[:known].mean(0)


def _taller(matrix: Any, rows: int) -> Any:
    """The same embedding or linear map with more rows (a bias of 0)."""
    old = matrix.weight
    made: nn.Module
    if isinstance(matrix, nn.Embedding):
        made = nn.Embedding(rows, old.shape[1], device=old.device, dtype=old.dtype)
    else:
        bias = matrix.bias is not None
        made = nn.Linear(old.shape[1], rows, bias=bias, device=old.device, dtype=old.dtype)
        if bias:
            made.bias.zero_()
            made.bias[: len(matrix.bias)] = matrix.bias
    weight: Any = made.weight
    weight[: len(old)] = old
    weight.requires_grad_(old.requires_grad)
    return made
