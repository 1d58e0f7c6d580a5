"""What held-out text says: losses of the model without each block, and |gradient x weight|.

The stream in front of every block is kept for one batch at a time, so that leaving a block out
costs the blocks behind it alone: half of running the model once per block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whet.compress.calibrate import Batch
from whet.compress.calibrate.capture import replaced
from whet.errors import InputError, OptionError
from whet.fit.losses import cross_entropy
from whet.models.roles import Block, blocks


def next_token_loss(model: Any, batch: Batch) -> tuple[Tensor, int]:
    """Σ -log p of every token that follows a real one, in nats, and how many these are."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    counted = (real[:, 1:] & real[:, :-1]).flatten()
    logits = model(**batch, use_cache=False).logits[:, :-1].flatten(0, 1)
    values = cross_entropy(logits, ids[:, 1:].flatten(), mask=counted)
    return values.sum(), int(counted.sum())


@torch.no_grad()
def losses_without(
    model: Any, batches: Sequence[Batch], gone: Sequence[int], candidates: Sequence[int]
) -> dict[int, float]:
    """Mean loss per token of the model without the blocks `gone` and each of `candidates`.

    Errors: InputError where no token can be predicted; OptionError for blocks of another form.
    """
    parts = blocks(model)
    modules = [model.get_submodule(block.name) for block in parts]
    totals, tokens = dict.fromkeys(candidates, 0.0), 0
    for batch in batches:
        given = {key: value.to(model.device) for key, value in batch.items()}
        with replaced([modules[index] for index in gone], _hand_on):
            streams = _streams(model, modules, given)
            count = 0
            for index in candidates:
                output = streams[index]
                with replaced(modules[: index + 1], lambda *a, output=output, **k: output):
                    total, count = next_token_loss(model, given)
                totals[index] += float(total)
            tokens += count
    if candidates and not tokens:
        raise InputError("the batches hold no token that follows another: give longer ones")
    return {index: total / tokens for index, total in totals.items()}


def _hand_on(*args: Any, **kwargs: Any) -> Any:
    """A block that does nothing."""
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def _streams(model: Any, modules: Sequence[nn.Module], batch: Batch) -> list[Tensor]:
    """What reaches each block."""
    found: list[Tensor] = []

    def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise OptionError(
                f"blocks of this {type(model).__name__} give {type(output).__name__}: those that "
                "give one tensor can be left out for a trial"
            )
        found.append(_hand_on(*args, **kwargs))

    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(see, with_kwargs=True).remove)
        model(**batch, use_cache=False)
    return found


def taylor_sizes(
    model: Any,
    batches: Sequence[Batch],
    parts: Sequence[Block],
    *,
    on_batch: Callable[[int], None] = lambda number: None,
) -> list[float]:
    """Σ |w dL/dw| over each block's weights, L the mean loss per token over all batches."""
    own = [list(model.get_submodule(block.name).parameters()) for block in parts]
    weights = [p for block in own for p in block if p.is_floating_point()]
    with _gradients_of(model, weights):
        tokens = 0
        for number, batch in enumerate(batches):
            given = {key: value.to(model.device) for key, value in batch.items()}
            total, count = next_token_loss(model, given)
            total.backward()  # type: ignore[no-untyped-call]
            tokens += count
            on_batch(number + 1)
        if not tokens:
            raise InputError("the batches hold no token that follows another: give longer ones")
        return [
            sum(
                float((p.detach() * p.grad).double().abs().sum())
                for p in block
                if p.grad is not None
            )
            / tokens
            for block in own
        ]


@contextlib.contextmanager
def _gradients_of(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Only these weights collect gradients; everything is as before afterwards."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    chosen = {id(p) for p in weights}
    for parameter, _, _ in before:
        parameter.grad = None
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, needed, gradient in before:
            parameter.requires_grad_(needed)
            parameter.grad = gradient
