"""Several processes, one training run: what they have to agree on.

Started by `torchrun`. Batches come from keys, so every process draws the same global batch; each
takes its part of it (`split`) and back-propagates with the part's share, and the gradients are
summed. That is the gradient of the whole batch, so the run is that of one process up to the order
of sums, whatever the sizes of the parts. Gradients are summed after the backward pass and not
during it: simple, and the same for every method, at the price of not hiding the transfer.

One model that does not fit a process is cut up by `shard` (FSDP2) instead of copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from whet.errors import OptionError


@dataclass(frozen=True)
class World:
    """This process (`rank`) among `size`. Alone, every agreement is free."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, in float64. NaN and infinity are passed on."""
        if self.size == 1 or not values:
            return list(values)
        return [float(v) for v in self._reduced(values, dist.ReduceOp.SUM)]

    def largest(self, value: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return value
        return int(self._reduced([value], dist.ReduceOp.MAX)[0])

    def share(self, text: str) -> str:
        """The main process's text, everywhere."""
        if self.size == 1:
            return text
        held = [text]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    @torch.no_grad()
    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the main one's values, in place (not of tensors that are cut up)."""
        if self.size > 1:
            for tensor in tensors:
                if not is_sharded(tensor):
                    dist.broadcast(tensor.detach(), src=0)

    @torch.no_grad()
    def sum_gradients(self, module: nn.Module) -> None:
        """Sum the gradients of parameters that every process holds whole.

        A parameter without a gradient here counts as 0; one without a gradient anywhere is left
        without.
        """
        if self.size == 1:
            return
        kept = [p for p in module.parameters() if p.requires_grad and not is_sharded(p)]
        counts = self.sum([float(p.grad is not None) for p in kept])
        used = [p for p, count in zip(kept, counts, strict=True) if count]
        for dtype in dict.fromkeys(p.dtype for p in used):
            group = [p for p in used if p.dtype == dtype]
            flat = torch.cat([_gradient(p).reshape(-1) for p in group])
            dist.all_reduce(flat)
            sizes = [p.numel() for p in group]
            for p, summed in zip(group, torch.split(flat, sizes), strict=True):
                p.grad = summed.view_as(p)

    def _reduced(self, values: Sequence[float], op: dist.ReduceOp.RedOpType) -> list[float]:
        # On the CPU, where a few numbers need no synchronisation with a device.
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=op)
        reduced: list[float] = tensor.tolist()
        return reduced


def current_world() -> World:
    """The processes of the default group; a world of one where there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def process_group(*, minutes: float = 30.0) -> Iterator[World]:
    """Join the processes that `torchrun` started, for the block; a world of one without it.

    CPU tensors go through gloo, CUDA tensors through NCCL; every process takes its own device.

    minutes: how long a process waits for the others before it gives up.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield current_world()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    try:
        yield current_world()
    finally:
        dist.destroy_process_group()


def shard(module: nn.Module, blocks: Iterable[nn.Module] = ()) -> None:
    """Cut a module's parameters up over the processes, in place (FSDP2's `fully_shard`).

    blocks: submodules that are gathered and freed on their own, usually the transformer's. Make
    the optimizer and the EMA afterwards: the parameters are new objects (DTensors).

    Errors: OptionError without a process group.
    """
    if not dist.is_initialized():
        raise OptionError("shard needs several processes: start them with torchrun, process_group")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh)
    # accelerate, on a CPU, leaves them whole without a word: here it would be an error.
    whole = [name for name, p in module.named_parameters() if not isinstance(p, DTensor)]
    assert not whole, f"parameters were not cut up: {whole}"


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one process's part of a DTensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor with its parts brought together. Every process must ask."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def refuse_several(what: str) -> None:
    """Errors: OptionError inside a group of several processes, for what one has to do alone."""
    if current_world().size > 1:
        raise OptionError(f"{what} works in one process: start it without torchrun")


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
