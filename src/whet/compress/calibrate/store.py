"""Where activations lie between blocks: in memory, in files, or both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whet._io import atomic_path
from whet.errors import CheckpointError

_KEY = "x"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file whole or not at all, and durably. Errors: InputError."""
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in host.items():  # tied tensors are written twice, not refused
        if tensor.data_ptr() in seen and tensor.numel():
            host[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    with atomic_path(path) as temporary:
        save_file(host, temporary, metadata={"format": "pt"})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, memory-mapped: pages come in when they are looked at.

    Errors: CheckpointError for a file that is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: missing or damaged ({error})") from error


class Store:
    """Tensors by name ("generation/batch"). On the host, whatever device they come from.

    folder: None for memory only. keep: with a folder, whether memory holds them too, so that the
    files only serve a run that goes on after a kill.
    """

    def __init__(self, folder: Path | None, *, keep: bool = True) -> None:
        self._folder = folder
        self._held: dict[str, Tensor] | None = {} if keep or folder is None else None

    def put(self, name: str, tensor: Tensor) -> None:
        """Store a tensor. Errors: InputError where the disk is full."""
        if self._folder is not None:
            write_tensors(self._folder / f"{name}.safetensors", {_KEY: tensor})
        if self._held is not None:
            self._held[name] = tensor.detach().to("cpu", copy=True)

    def get(self, name: str, device: torch.device) -> Tensor:
        """The tensor, the caller's to change. Errors: CheckpointError for a damaged file."""
        if self._held is not None and name in self._held:
            return self._held[name].to(device, copy=True)
        assert self._folder is not None  # nothing else could have taken it
        # Copied out of the map: matrix products depend in their last bit on where a tensor begins.
        return read_tensors(self._folder / f"{name}.safetensors")[_KEY].to(device, copy=True)

    def forget(self, name: str) -> None:
        """Give the memory of one tensor back; its file stays."""
        if self._held is not None:
            self._held.pop(name, None)

    def remove(self, group: str) -> None:
        """Drop every tensor whose name begins with "group/", files too."""
        if self._held is not None:
            for name in [name for name in self._held if name.startswith(f"{group}/")]:
                del self._held[name]
        if self._folder is not None:
            shutil.rmtree(self._folder / group, ignore_errors=True)
