"""The passes of all batches through one block: as it was, with collectors, and as it was edited."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from whet.compress.calibrate.capture import BlockArguments, Captured
from whet.compress.calibrate.collect import Call, Collector, hidden_of
from whet.compress.calibrate.store import Store
from whet.errors import NonFiniteError, OptionError
from whet.models.roles import Block

Phase = Literal["capture", "observe", "edit", "propagate", "save"]
Tell = Callable[[int, Phase, int], None]
Mask = Bool[Tensor, "B T"]


@dataclass
class Feed:
    """All batches as they reach the blocks, block by block.

    streams: inputs of block n are "stream-n/batch". extras: tensors among the other arguments.
    masks: where tokens count, on the host. device: where blocks run.
    """

    streams: Store
    extras: Store
    masks: Sequence[Tensor | None]  # bool [B, T], each batch its own sizes
    device: torch.device
    tokens: int = 0
    arguments: list[tuple[BlockArguments, ...]] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def add(self, captured: Captured, *, stream: bool) -> None:
        """Take the next batch. stream: its input of block 0 too (a run that goes on has later
        ones). Errors: NonFiniteError."""
        number = len(self.arguments)
        mask = self.masks[number]
        hidden = captured.hidden
        self.tokens += hidden.shape[:-1].numel() if mask is None else int(mask.sum())
        if not finite(hidden, None if mask is None else mask.to(hidden.device)):
            raise NonFiniteError(f"the embedding gives NaN or infinity in batch {number}")
        for name, tensor in captured.tensors.items():
            if name not in self._known:
                self.extras.put(name, tensor)
                self._known.add(name)
        self.arguments.append(captured.arguments)
        if stream:
            self.streams.put(f"stream-0/{number}", hidden)

    def mask(self, number: int) -> Mask | None:
        """Where a batch has tokens that count, on the device; None where all do."""
        mask = self.masks[number]
        return None if mask is None else mask.to(self.device)

    def call(self, index: int, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What block `index` is called with in a batch: (positional, named), copies."""
        hidden = self.streams.get(f"stream-{index}/{number}", self.device)
        return self.arguments[number][index].fill(hidden, self.extras, self.device)

    def forward(self, index: int, number: int, module: nn.Module) -> Tensor:
        """What the block gives in a batch."""
        args, kwargs = self.call(index, number)
        return hidden_of(module(*args, **kwargs))


@dataclass(frozen=True)
class BlockRun:
    """One block with what it saw: what an edit is given, and changes in place.

    statistics: results of the collectors, by the name of the module that they hung on. module:
    the block itself, on its device, with gradients allowed.
    """

    model: nn.Module
    block: Block
    module: nn.Module
    statistics: Mapping[str, Any]
    feed: Feed

    @property
    def batches(self) -> int:
        """How many there are to run."""
        return len(self.feed.masks)

    def arguments(self, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the block is called with in this batch: (positional, named), copies."""
        return self.feed.call(self.block.index, batch)

    def mask(self, batch: int) -> Mask | None:
        """True at tokens that count; None where all do."""
        return self.feed.mask(batch)

    def run(self, batch: int) -> Float[Tensor, "B T D"]:
        """The block's output in this batch, as the block is now."""
        return self.feed.forward(self.block.index, batch, self.module)


@torch.no_grad()
def observe(
    model: nn.Module,
    block: Block,
    feed: Feed,
    collectors: Mapping[str, Collector],
    *,
    keep_output: bool,
    tell: Tell,
) -> None:
    """Run the block as it is, with collectors attached.

    keep_output: whether its outputs are the next block's inputs. Errors: OptionError for
    collectors on what is no module of the block; NonFiniteError.
    """
    module, index = model.get_submodule(block.name), block.index
    first: dict[int, str] = {}
    for name, collector in collectors.items():
        first.setdefault(id(collector), name)
    seen: list[Tensor] = []
    number = 0
    with contextlib.ExitStack() as hooks:
        for name in first.values():
            collector = collectors[name]

            def see(
                part: nn.Module,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                output: Any,
                name: str = name,
                collector: Collector = collector,
            ) -> None:
                call = Call(name, part, (*args, *kwargs.values()), output, feed.mask(number))
                seen.append(collector.see(call))

            part = _watched(model, block, name)
            hooks.callback(part.register_forward_hook(see, with_kwargs=True).remove)
        for number in range(len(feed.masks)):
            output = feed.forward(index, number, module)
            seen.append(torch.tensor(finite(output, feed.mask(number))))
            # One look at the device per batch, not one per layer.
            if not bool(torch.stack([flag.to(output.device) for flag in seen]).all()):
                raise _not_finite(block, module, feed, number, "")
            seen.clear()
            if keep_output:
                feed.streams.put(f"stream-{index + 1}/{number}", output)
            tell(index, "observe", number + 1)


@torch.no_grad()
def run_edited(model: nn.Module, block: Block, feed: Feed, *, tell: Tell) -> None:
    """Run the edited block for the next one's inputs. Errors: NonFiniteError."""
    module, index = model.get_submodule(block.name), block.index
    for number in range(len(feed.masks)):
        output = feed.forward(index, number, module)
        if not finite(output, feed.mask(number)):
            raise _not_finite(block, module, feed, number, " after its edit")
        feed.streams.put(f"stream-{index + 1}/{number}", output)
        feed.streams.forget(f"stream-{index}/{number}")
        tell(index, "propagate", number + 1)


def _watched(model: nn.Module, block: Block, name: str) -> nn.Module:
    inside = name == block.name or name.startswith(f"{block.name}.")
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not inside or name not in modules:
        raise OptionError(f"watch names {name!r}, which is no module of {block.name}")
    return modules[name]


def _not_finite(
    block: Block, module: nn.Module, feed: Feed, number: int, when: str
) -> NonFiniteError:
    """The error, after running the batch again to see where it begins."""
    where: list[str] = []
    mask = feed.mask(number)
    with contextlib.ExitStack() as hooks:
        for name, part in module.named_modules(prefix=block.name):

            def see(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                outputs = output if isinstance(output, (tuple, list)) else (output,)
                floats = [x for x in outputs if isinstance(x, Tensor) and x.is_floating_point()]
                if not all(finite(x, mask) for x in floats):
                    where.append(name)

            hooks.callback(part.register_forward_hook(see).remove)
        feed.forward(block.index, number, module)
    first = f"what {where[0]} gives" if where else "what a layer inside it is given"
    return NonFiniteError(
        f"block {block.index}{when} has NaN or infinity in batch {number}, first in {first}"
    )


def finite(x: Tensor, mask: Tensor | None) -> bool:
    """Whether x is, at tokens that count where it has one row per token."""
    if mask is not None and x.dim() and x.shape[:-1].numel() == mask.numel():
        x = x.reshape(-1, x.shape[-1])[mask.reshape(-1)]
    return bool(x.isfinite().all())
