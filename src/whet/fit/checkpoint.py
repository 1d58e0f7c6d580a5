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

from whet._io import atomic_path, write_text
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
    if not folder.is_dir():
        return None
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: damaged checkpoint ({error})") from error
    if state["identity"] != identity:
        changed = sorted(
            k
            for k in {*state["identity"], *identity}
            if state["identity"].get(k) != identity.get(k)
        )
        raise CheckpointError(
            f"{folder} belongs to another recipe (different: {', '.join(changed)}): "
            "choose another output folder or the same recipe"
        )
    for key, player in players.items():
        player.module.load_state_dict(_under(tensors, f"{key}/model/"))
        if player.ema is not None:
            for name, tensor in _under(tensors, f"{key}/ema/").items():
                player.ema.average[name].copy_(tensor)
            player.ema.updates = state["players"][key]["ema_updates"]
        saved = player.optimizer.state_dict()
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, f"{key}/optimizer/").items():
            index, slot = name.split("/")
            slots.setdefault(int(index), {})[slot] = tensor
        player.optimizer.load_state_dict(saved | {"state": slots})
    return int(state["step"])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
