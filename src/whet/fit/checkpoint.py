"""Checkpoints of a training run: tensors in safetensors, the rest in JSON, swapped in whole.

Nothing is pickled. A kill in the middle of a save leaves the last good checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from whet._io import atomic_path, finish_swap, write_text
from whet.errors import CheckpointError

if TYPE_CHECKING:
    from whet.fit.loop import Player

_NAME = "checkpoint"


def save_checkpoint(
    run: Path, players: Mapping[str, Player], *, step: int, identity: dict[str, Any]
) -> Path:
    """Write `run/checkpoint`; `identity` (the recipe) must match on resume."""
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
    _unshare(tensors)
    target = run / _NAME
    with atomic_path(target) as folder:
        folder.mkdir()
        save_file(tensors, folder / "tensors.safetensors")
        state = {"step": step, "identity": identity, "players": scalars}
        write_text(folder / "state.json", json.dumps(state))
    return target


def load_checkpoint(
    run: Path, players: Mapping[str, Player], *, identity: dict[str, Any]
) -> int | None:
    """Restore players in place; give the number of steps done, None where there is no checkpoint.

    Errors: CheckpointError for a damaged checkpoint or one of another recipe.
    """
    folder = run / _NAME
    finish_swap(folder)
    if not folder.is_dir():
        return None
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        step, stored = int(state["step"]), state["identity"]
        tensors = load_file(folder / "tensors.safetensors")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: damaged checkpoint ({error!r})") from error
    if stored != identity:
        raise CheckpointError(
            f"{folder} belongs to another recipe (different: "
            f"{', '.join(_differences(stored, identity))}): "
            "choose another output folder or the same recipe"
        )
    try:
        _restore(players, tensors, state["players"])
    except (KeyError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: does not fit the model ({why})") from error
    return step


def _restore(
    players: Mapping[str, Player], tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    for key, player in players.items():
        player.module.load_state_dict(_under(tensors, f"{key}/model/"))
        if player.ema is not None:
            averages = _under(tensors, f"{key}/ema/")
            for name, average in player.ema.average.items():
                average.copy_(averages[name])
            player.ema.updates = scalars[key]["ema_updates"]
        saved = player.optimizer.state_dict()
        parameters = [p for group in player.optimizer.param_groups for p in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, f"{key}/optimizer/").items():
            index, slot = name.split("/")
            if tensor.dim() and tensor.shape != parameters[int(index)].shape:
                raise ValueError(f"optimizer state {name} has shape {tuple(tensor.shape)}")
            slots.setdefault(int(index), {})[slot] = tensor
        if len({frozenset(held) for held in slots.values()}) > 1:
            raise ValueError("optimizer state is missing for some parameters")
        player.optimizer.load_state_dict(saved | {"state": slots})


def _differences(one: Any, two: Any, path: str = "") -> list[str]:
    """Dotted names of the entries in which two nested dictionaries differ."""
    if not (isinstance(one, dict) and isinstance(two, dict)):
        return [] if one == two else [path or "recipe"]
    missing = object()
    return [
        name
        for key in sorted({*one, *two})
        for name in _differences(
            one.get(key, missing), two.get(key, missing), f"{path}.{key}".lstrip(".")
        )
    ]


def _unshare(tensors: dict[str, Tensor]) -> None:
    """Copy tensors that share memory with an earlier one (tied heads): safetensors refuses them."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen and tensor.numel():
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
