"""Tensors that are cut up over processes, on disk: torch.distributed.checkpoint in safetensors.

Every process writes its own part; the parts can be read by any number of processes, or by one
without a process group. (torch's usual format keeps a pickle beside them; this one does not.)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from whet.errors import InputError
from whet.fit.distributed import is_sharded


def save_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's parts of the tensors; all processes must call.

    Errors: InputError where any process cannot write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        why = "; ".join(str(failure[0]) for failure in error.failures.values())
        raise InputError(f"cannot write {folder}: {' '.join(why.split())}") from error


def load_parts(folder: Path, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read what `save_parts` wrote; all processes must call.

    held: a tensor is cut up as the one held under its name, or under the name without its last
    part; it is read whole where that is whole, missing or of another shape.

    Errors: OSError, ValueError for parts that are missing or damaged.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    out: dict[str, Tensor] = {}
    for name, stored in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        pattern = held.get(name, held.get(name.rpartition("/")[0]))
        dtype = stored.properties.dtype
        if pattern is not None and pattern.shape == stored.size:
            out[name] = torch.zeros_like(pattern, dtype=dtype, requires_grad=False)
        else:
            out[name] = torch.zeros(stored.size, dtype=dtype)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(
                cast(dict[str, object], out),
                storage_reader=HuggingFaceStorageReader(str(folder)),
                no_dist=not dist.is_initialized(),
            )
    except CheckpointException as error:
        why = "; ".join(str(failure[0]) for failure in error.failures.values())
        raise ValueError(" ".join(why.split())) from error
    return out


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A tensor that every process holds whole, cut up as the pattern is (if it is).

    Errors: ValueError for another shape.
    """
    if not is_sharded(pattern) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if tensor.shape != pattern.shape:
        raise ValueError(f"shape {tuple(tensor.shape)} instead of {tuple(pattern.shape)}")
    cut = cast(DTensor, pattern)
    return distribute_tensor(tensor, cut.device_mesh, cut.placements)
