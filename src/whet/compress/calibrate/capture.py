"""What a model hands to its blocks: block 0's input, and every block's own further arguments.

The model runs with its blocks replaced by stand-ins that note their arguments and pass the stream
on; a private exception ends the run at the last one. So each block's masks and positions (which
differ between kinds of layers) are those that the model itself makes, no block is computed, and
neither final norm nor head is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from whet.compress.calibrate.store import Store
from whet.errors import InputError, OptionError
from whet.models.roles import Block

_HIDDEN = "hidden_states"


class _Done(Exception):  # noqa: N818 - no error
    """Raised by the last stand-in."""


class _OtherForm(Exception):  # noqa: N818 - no error
    """The blocks' output is not taken as the stand-ins give it."""


@dataclass(frozen=True)
class _Ref:
    """Stands for a stored tensor."""

    name: str


@dataclass(frozen=True)
class BlockArguments:
    """How a block is called: everything but the stream, tensors by reference into a store."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    named: bool  # whether the stream goes in as `hidden_states`

    def fill(
        self, hidden: Tensor, store: Store, device: torch.device
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments, on the device."""
        args, kwargs = _map((self.args, dict(self.kwargs)), lambda ref: store.get(ref.name, device))
        return (args, {_HIDDEN: hidden, **kwargs}) if self.named else ((hidden, *args), kwargs)


@dataclass(frozen=True)
class Captured:
    """One batch, as it reaches the blocks. tensors: what `arguments` refer to."""

    hidden: Tensor
    arguments: tuple[BlockArguments, ...]
    tensors: Mapping[str, Tensor]


def capture(model: nn.Module, blocks: Sequence[Block], batch: Mapping[str, Any]) -> Captured:
    """Run one batch up to the last block's arguments, without the blocks.

    Errors: OptionError for a model that does more between its blocks than hand the stream on.
    """
    modules = [model.get_submodule(block.name) for block in blocks]
    with contextlib.suppress(_OtherForm):
        return _capture(model, modules, batch, lambda x: x)
    try:
        return _capture(model, modules, batch, lambda x: (x,))
    # What computes on a tuple as if it were the stream fails in its own way.
    except (_OtherForm, TypeError, AttributeError, RuntimeError) as error:
        raise OptionError(
            f"this {type(model).__name__} does not hand each block's output to the next block as "
            "it is: it cannot be calibrated block by block"
        ) from error


def _capture(
    model: nn.Module,
    modules: Sequence[nn.Module],
    batch: Mapping[str, Any],
    wrap: Callable[[Tensor], Any],
) -> Captured:
    streams: list[Tensor] = []
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        hidden = kwargs[_HIDDEN] if _HIDDEN in kwargs else args[0]
        if streams and hidden is not streams[0]:
            raise _OtherForm
        streams.append(hidden)
        calls.append((args, kwargs))
        if len(calls) == len(modules):
            raise _Done
        return wrap(hidden)

    given = dict(batch)
    if "use_cache" in inspect.signature(model.forward).parameters:
        given["use_cache"] = False
    with replaced(modules, stand_in), torch.no_grad(), contextlib.suppress(_Done):
        model(**given)
    if len(calls) != len(modules):
        raise _OtherForm
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}  # one tensor goes to many blocks: it is hashed once

    def note(tensor: Tensor) -> _Ref:
        name = names.get(id(tensor))
        if name is None:
            name = names[id(tensor)] = f"arguments/{digest(tensor)}"
            tensors[name] = tensor
        return _Ref(name)

    arguments = tuple(_arguments(args, kwargs, note) for args, kwargs in calls)
    return Captured(streams[0], arguments, tensors)


def _arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], note: Callable[[Tensor], _Ref]
) -> BlockArguments:
    named = _HIDDEN in kwargs
    rest = {name: value for name, value in kwargs.items() if name != _HIDDEN}
    for value in (*args, *rest.values()):
        if hasattr(value, "update") and not isinstance(value, dict):
            raise OptionError(
                f"a block is given a {type(value).__name__}: calibrate without a cache"
            )
    return BlockArguments(
        _map(args if named else args[1:], note, Tensor), _map(rest, note, Tensor), named
    )


def _map(value: Any, change: Callable[[Any], Any], kind: type = _Ref) -> Any:
    """The same nest of tuples, lists and dictionaries, with everything of a kind changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(_map(item, change, kind) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, change, kind) for key, item in value.items()}
    return value


@contextlib.contextmanager
def replaced(modules: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Give the modules another forward pass, and theirs back afterwards."""
    own = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = forward
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            if before is None:
                vars(module).pop("forward", None)
            else:
                module.forward = before


def counted_tokens(batch: Mapping[str, Any], number: int) -> Bool[Tensor, "B T"] | None:
    """Where a batch has tokens that are not padding, None where all are.

    Errors: InputError for an attention mask that is not [B, T], or lets nothing through.
    """
    mask = batch.get("attention_mask")
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(
            f"attention_mask of batch {number} is {shape}: [batch, tokens] is needed, 0 at padding"
        )
    found = mask.bool()
    if not bool(found.any()):
        raise InputError(f"batch {number} is nothing but padding")
    return None if bool(found.all()) else found


def digest(*tensors: Tensor) -> str:
    """sha256 of dtypes, shapes and contents."""
    found = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(flat.numpy().data)
    return found.hexdigest()
