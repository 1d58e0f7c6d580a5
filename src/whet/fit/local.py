"""Local training: every block of a model by itself, on stored inputs and targets.

A teacher is run once over some batches and what goes into and comes out of its blocks is written
down, one file per block and batch. Then each block of the student learns to turn the input into
the target, in a training run of its own: memory is that of one block, and a stopped run goes on
with the block (and the step) it was in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from whet import rng as rng_
from whet._io import atomic_path, claim_folder
from whet.errors import CheckpointError, InputError, OptionError
from whet.fit.distributed import refuse_several
from whet.fit.loop import fit
from whet.fit.method import Player
from whet.fit.settings import FitSettings

# (positional arguments, keyword arguments, output) of a block's call -> named tensors, of which
# the first dimension is rows.
Capture = Callable[[tuple[Any, ...], dict[str, Any], Any], Mapping[str, Tensor]]
# (block, stored tensors of some rows) -> loss, a mean over rows.
BlockLoss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


def first_tensors(
    arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any
) -> dict[str, Tensor]:
    """`input`: the first positional argument. `target`: the output, or the first of several."""
    return {"input": arguments[0], "target": output[0] if isinstance(output, tuple) else output}


def squared_error(block: nn.Module, stored: Mapping[str, Tensor]) -> Tensor:
    """Mean squared error of block(input) against the target."""
    said = block(stored["input"])
    said = said[0] if isinstance(said, tuple) else said
    return nn.functional.mse_loss(said, stored["target"])


def record_blocks(
    blocks: Mapping[str, nn.Module],
    run_batch: Callable[[int], object],
    *,
    batches: int,
    out: Path,
    identity: dict[str, Any],
    capture: Capture = first_tensors,
) -> None:
    """Write `out/NAME/00000.safetensors` … for every block and batch.

    blocks: modules of the teacher, by the name of the student's block that will learn from them.
    run_batch: runs the teacher on the batch of that number, from its key; each block must be
    called exactly once. Batches that are already whole are not run again.

    Errors: OptionError for batches < 1, no blocks or several processes; InputError where a block
    was not called once or the disk is full; CheckpointError where `out` holds a recording of
    something else.
    """
    if batches < 1:
        raise OptionError(f"batches={batches} must be at least 1")
    if not blocks:
        raise OptionError("blocks is empty: at least one must be recorded")
    refuse_several("record_blocks")
    what = {"identity": identity, "blocks": list(blocks), "batches": batches}
    claim_folder(out / "recording.json", what)
    for number in range(batches):
        paths = {name: out / name / f"{number:05}.safetensors" for name in blocks}
        if all(path.is_file() for path in paths.values()):
            continue
        for name, stored in _record(blocks, run_batch, number, capture).items():
            with atomic_path(paths[name]) as temporary:
                save_file(stored, temporary)


def fit_blocks(
    players: Mapping[str, Player],
    settings: FitSettings,
    *,
    recorded: Path,
    run: Path,
    identity: dict[str, Any],
    loss: BlockLoss = squared_error,
) -> None:
    """Train every block on its recording, one after the other, in `run/NAME`.

    players: a block with its optimizer under each recorded name. Blocks that are done are only
    loaded.

    Errors: those of `fit` and of `BlockTraining`; InputError where the recording is not whole.
    """
    for name in players:
        _check_whole(recorded, name)
    for name, player in players.items():
        method = BlockTraining(player, recorded / name, loss=loss, seed=settings.seed)
        fit(method, settings, run=run / name, identity={**identity, "block": name}, label=name)


class BlockTraining:
    """One player, one turn: a block learns its recording, a stored batch per step.

    An epoch takes every stored batch once, in an order of its own.

    Errors: InputError for a folder without a recording; CheckpointError for a damaged file.
    """

    def __init__(
        self, player: Player, recorded: Path, *, loss: BlockLoss = squared_error, seed: int = 0
    ) -> None:
        self.players: Mapping[str, Player] = {"block": player}
        self.paths = sorted(recorded.glob("*.safetensors"))
        if not self.paths:
            raise InputError(f"{recorded} holds no recorded batches: record the block first")
        self.block_loss, self.seed = loss, seed
        self.device = next(player.module.parameters()).device

    def turns(self, step: int) -> Sequence[str]:
        """The block, every step."""
        return ("block",)

    def batch(self, step: int) -> dict[str, Tensor]:
        """The stored tensors of the step's batch."""
        epoch, place = divmod(step, len(self.paths))
        order = rng_.keyed(self.seed, "stored batches", epoch).permutation(len(self.paths))
        path = self.paths[int(order[place])]
        try:
            stored: dict[str, Tensor] = load_file(path, device=str(self.device))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: damaged recording ({error!r})") from error
        return stored

    def loss(self, batch: Mapping[str, Tensor], turn: str) -> tuple[Tensor, dict[str, float]]:
        """The block's loss on stored tensors."""
        return self.block_loss(self.players[turn].module, batch), {}

    def split(
        self, batch: Mapping[str, Tensor], turn: str, parts: int
    ) -> Sequence[tuple[dict[str, Tensor], float]]:
        """By rows; fewer than `parts` where there are fewer rows."""
        rows = len(next(iter(batch.values())))
        edges = [rows * k // parts for k in range(parts + 1)]
        return [
            ({name: t[low:high] for name, t in batch.items()}, (high - low) / rows)
            for low, high in pairwise(edges)
            if high > low
        ]

    def tokens(self, batch: Mapping[str, Tensor]) -> int:
        """Vectors in the input: rows times positions."""
        first = next(iter(batch.values()))
        return first.numel() // first.shape[-1]


def _check_whole(recorded: Path, name: str) -> None:
    path = recorded / "recording.json"
    try:
        wanted = int(json.loads(path.read_text(encoding="utf-8"))["batches"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error!r}): record the blocks first") from error
    held = len(list((recorded / name).glob("*.safetensors")))
    if held != wanted:
        raise InputError(
            f"{recorded / name} holds {held} of {wanted} batches: let the recording finish"
        )


def _record(
    blocks: Mapping[str, nn.Module],
    run_batch: Callable[[int], object],
    number: int,
    capture: Capture,
) -> dict[str, dict[str, Tensor]]:
    seen: dict[str, list[dict[str, Tensor]]] = {name: [] for name in blocks}
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    with ExitStack() as hooks, torch.no_grad():
        for name, block in blocks.items():

            def before(module: nn.Module, args: Any, keywords: Any, name: str = name) -> None:
                # Cloned now: a block may change its input in place.
                given[name] = (
                    tuple(map(_clone, args)),
                    {key: _clone(value) for key, value in keywords.items()},
                )

            def after(
                module: nn.Module, args: Any, keywords: Any, output: Any, name: str = name
            ) -> None:
                # Cloned too: what comes next may change the output, or it may be the input.
                tensors = capture(*given.pop(name), output)
                seen[name].append({key: t.detach().clone() for key, t in tensors.items()})

            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(after, with_kwargs=True).remove)
        run_batch(number)
    for name, calls in seen.items():
        if len(calls) != 1:
            raise InputError(
                f"block {name!r} was called {len(calls)} times in batch {number}: "
                "it must be called exactly once"
            )
    return {name: calls[0] for name, calls in seen.items()}


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
