"""Checkpoints of a training run: tensors in safetensors, the rest in JSON, swapped in whole.

Nothing is pickled. A kill in the middle of a save leaves the last good checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from whet._io import atomic_path, check_same, finish_swap, write_text
from whet.errors import CheckpointError, InputError
from whet.fit.distributed import World, is_sharded
from whet.fit.sharded import like, load_parts, save_parts

if TYPE_CHECKING:
    from whet.fit.method import Player, Stateful

_NAME = "checkpoint"
_WHOLE, _PARTS = "tensors.safetensors", "parts"
_ALONE = World()
_METHOD = "/"  # no player's tensors begin like that


def save_checkpoint(
    run: Path,
    players: Mapping[str, Player],
    *,
    step: int,
    identity: dict[str, Any],
    method: Stateful | None = None,
    world: World = _ALONE,
) -> Path:
    """Write `run/checkpoint`; `identity` (the recipe) must match on resume.

    Of several processes the main one writes; where parameters are cut up, each writes its own.

    Errors: InputError where it cannot be written; the last good checkpoint stays.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for key, player in players.items():
        for name, tensor in player.module.state_dict().items():
            tensors[f"{key}/model/{name}"] = tensor.contiguous()
        if player.ema is not None:
            for name, tensor in player.ema.average.items():
                tensors[f"{key}/ema/{name}"] = tensor
        for index, slots in player.optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                tensors[f"{key}/optimizer/{index}/{slot}"] = torch.as_tensor(value)
        scalars[key] = {"ema_updates": player.ema.updates if player.ema else 0}
        if player.scaler is not None:
            scalars[key]["scaler"] = player.scaler.state_dict()
    if method is not None:
        tensors |= {f"{_METHOD}{name}": tensor for name, tensor in method.state().items()}
    state = {"step": step, "identity": identity, "players": scalars}
    target, failed = run / _NAME, None
    try:
        if any(map(is_sharded, tensors.values())):
            _save_sharded(target, tensors, state, world)
        elif world.main:
            _save_whole(target, tensors, state)
    except InputError as error:
        failed = error
    # Nobody goes on while another is still writing, or has failed to.
    if world.largest(int(failed is not None)):
        raise failed or InputError(f"cannot write {target}: another process failed")
    return target


def _save_whole(target: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    _unshare(tensors)
    with atomic_path(target) as folder:
        folder.mkdir()
        path = folder / _WHOLE
        save_file(tensors, path)
        with path.open("rb") as file:  # on the disk before the older checkpoint goes
            os.fsync(file.fileno())
        write_text(folder / "state.json", json.dumps(state))


def _save_sharded(
    target: Path, tensors: dict[str, Tensor], state: dict[str, Any], world: World
) -> None:
    """Every process writes its parts into one folder, which the main one then swaps in."""
    with ExitStack() as swap:
        name, failed = "", None
        if world.main:
            try:
                folder = swap.enter_context(atomic_path(target))
                folder.mkdir()
                name = str(folder)
            except (InputError, OSError) as error:
                failed = error
        name = world.share(name)
        if not name:  # the others must not wait for a folder that never comes
            raise InputError(f"cannot write {target}: {failed or 'the first process failed'}")
        save_parts(Path(name) / _PARTS, tensors)
        if world.main:
            state["parts"] = sorted(path.name for path in (Path(name) / _PARTS).iterdir())
            write_text(Path(name) / "state.json", json.dumps(state))


def load_checkpoint(
    run: Path,
    players: Mapping[str, Player],
    *,
    identity: dict[str, Any],
    method: Stateful | None = None,
    world: World = _ALONE,
) -> int:
    """Restore players in place; give the number of steps done, 0 where there is no checkpoint.

    A checkpoint of any number of processes, cut up or not, continues on any other number.

    What a kill in the middle of a save left half-written is removed.

    Errors: CheckpointError for a damaged checkpoint or one of another recipe.
    """
    folder = run / _NAME
    if world.main:
        for left_over in run.glob(f".{_NAME}.*.tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
        finish_swap(folder)
    world.wait()
    if not folder.is_dir():
        return 0
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        step, stored = int(state["step"]), state["identity"]
        if "parts" in state:
            # A part that is missing would be read as zeros.
            for name in state["parts"]:
                (folder / _PARTS / name).stat()
            tensors = load_parts(folder / _PARTS, _held(players))
        else:
            tensors = load_file(folder / _WHOLE)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: damaged checkpoint ({error!r})") from error
    check_same(folder, stored, identity)
    try:
        _restore(players, tensors, state["players"])
        if method is not None:
            method.load_state(_under(tensors, _METHOD))
    except (KeyError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: does not fit the model ({why})") from error
    return step


def _restore(
    players: Mapping[str, Player], tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    for key, player in players.items():
        held = player.module.state_dict()
        stored = _under(tensors, f"{key}/model/")
        player.module.load_state_dict(
            {n: like(t, held[n]) if n in held else t for n, t in stored.items()}
        )
        if player.ema is not None:
            averages = _under(tensors, f"{key}/ema/")
            for name, average in player.ema.average.items():
                average.copy_(like(averages[name], average))
            player.ema.updates = scalars[key]["ema_updates"]
        if player.scaler is not None:
            player.scaler.load_state_dict(scalars[key]["scaler"])
        saved = player.optimizer.state_dict()
        parameters = [p for group in player.optimizer.param_groups for p in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, f"{key}/optimizer/").items():
            index, slot = name.split("/")
            if tensor.dim() and tensor.shape != parameters[int(index)].shape:
                raise ValueError(f"optimizer state {name} has shape {tuple(tensor.shape)}")
            if tensor.dim():
                tensor = like(tensor, parameters[int(index)])
            slots.setdefault(int(index), {})[slot] = tensor
        if len({frozenset(held) for held in slots.values()}) > 1:
            raise ValueError("optimizer state is missing for some parameters")
        player.optimizer.load_state_dict(saved | {"state": slots})


def _held(players: Mapping[str, Player]) -> dict[str, Tensor]:
    """A tensor cut up as the stored one of the same name should be, by the name's beginning."""
    out: dict[str, Tensor] = {}
    for key, player in players.items():
        for name, tensor in player.module.state_dict().items():
            out[f"{key}/model/{name}"] = out[f"{key}/ema/{name}"] = tensor
        parameters = [p for group in player.optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            out[f"{key}/optimizer/{index}"] = parameter
    return out


def _unshare(tensors: dict[str, Tensor]) -> None:
    """Copy tensors that share memory with an earlier one (tied heads): safetensors refuses them."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen and tensor.numel():
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
