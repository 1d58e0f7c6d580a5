"""What a model was asked to do: forwards, rows and tokens, counted at its door."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass
class ForwardCount:
    """calls: forwards. rows: sequences in them, summed. tokens: rows × length, summed."""

    calls: int = 0
    rows: int = 0
    tokens: int = 0


@contextlib.contextmanager
def count_forwards(model: torch.nn.Module) -> Iterator[ForwardCount]:
    """Count every forward of `model` inside the block; the model is as before when it ends.

    Rows and length are the first two dimensions of the first positional tensor, else of
    `input_ids`, else of `inputs_embeds`; a tensor of one dimension has length 1. Calls are counted
    when they begin, so one that fails counts too.
    Errors: InputError, from the forward, where it gets none of these.
    """
    count = ForwardCount()

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shape = _input(args, kwargs).shape
        rows = int(shape[0]) if len(shape) > 0 else 1
        count.calls += 1
        count.rows += rows
        count.tokens += rows * (int(shape[1]) if len(shape) > 1 else 1)

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    import torch

    for value in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")):
        if isinstance(value, torch.Tensor):
            return value
    raise InputError(
        "cannot count rows: the forward got no positional tensor, input_ids or inputs_embeds"
    )
