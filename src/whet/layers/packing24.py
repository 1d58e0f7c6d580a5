"""A 2:4 sparse tensor in little more than half its bytes, and the GPU products that use it.

Storage: the two kept values of every four in their order, and four bits with their places, two
groups to a byte. Of m features of b bytes, (b / 2 + 1 / 8) m bytes are kept: 0.5625 of the dense
tensor in 16-bit types, 0.531 in float32. It works on every device, in any floating type.

NVIDIA's tensor cores (compute capability 8 and above) multiply a 2:4 first operand up to twice as
fast. The operand has to be packed first, which reads and writes memory: with a bytes per feature
read and 9/16 a written, and r columns in the other operand, the time saved exceeds the time spent
when r > 25/16 a · (floating point operations per second) / (bytes per second), both at their peak.
With the makers' published peaks for bfloat16 that is about 480 columns on an A100 (312 TFLOP/s,
2.04 TB/s), 920 on an H100 (989, 3.35) and 640 on an H200 (989, 4.8), computed and not measured: the
ranks of small low-rank models lie below. `faster_here` measures before anything is switched on.

Deviation from ELAS (arXiv 2605.03667): its kernels' own layouts are used only inside a product;
what is kept for the way back is this one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from whet.errors import InputError
from whet.layers.sparsify24 import groups, keep24, magnitude24


@dataclass(frozen=True)
class Packed24:
    """values [..., m / 2]; places [..., ceil(m / 8)]: of every group the first kept index in two
    bits and the second in the two above, even groups in the low half of a byte."""

    values: Float[Tensor, "*B half"]
    places: UInt8[Tensor, "*B bytes"]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.values.nbytes + self.places.nbytes


def pack24(x: Float[Tensor, "*B m"], keep: Bool[Tensor, "*B m"] | None = None) -> Packed24:
    """The kept entries of x and their places. keep: two of every four; None is `keep24(x)`.

    What is not kept is dropped, without being looked at. Errors: InputError for a mask that does
    not keep exactly two of every four, or where 4 does not divide m.
    """
    if keep is None:
        keep = keep24(x)
    elif not bool((groups(keep).sum(-1, dtype=torch.uint8) == 2).all()):
        raise InputError("keep must be True at exactly two of every four entries")
    return pack_kept24(x, keep)


def pack_kept24(x: Float[Tensor, "*B m"], keep: Bool[Tensor, "*B m"]) -> Packed24:
    """`pack24` of a mask that is known to keep two of every four: a GPU is not waited for."""
    nibbles = _nibbles(keep)
    values = x.gather(-1, _indices(nibbles))
    if nibbles.shape[-1] % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1))
    return Packed24(values, nibbles[..., ::2] | (nibbles[..., 1::2] << 4))


def unpack24(packed: Packed24) -> Float[Tensor, "*B m"]:
    """The dense tensor, zeros where nothing was kept."""
    values, bytes_ = packed.values, packed.places.unsqueeze(-1)
    nibbles = torch.cat((bytes_ & 15, bytes_ >> 4), -1).flatten(-2)
    indices = _indices(nibbles[..., : values.shape[-1] // 2])
    dense = values.new_zeros((*values.shape[:-1], 2 * values.shape[-1]))
    return dense.scatter_(-1, indices, values)


def _nibbles(keep: Bool[Tensor, "*B m"]) -> UInt8[Tensor, "*B groups"]:
    """Of every group the first and the second kept index, in two bits each."""
    k0, k1, k2, k3 = groups(keep).unbind(-1)
    # The first is 0, 1 or 2 and the second 1, 2 or 3: their bits as logic.
    nibble = (~k0 & k1).to(torch.uint8)
    for shift, bit in ((1, ~(k0 | k1)), (2, k3 | (~k2 & k1)), (3, k3 | k2)):
        nibble |= bit.to(torch.uint8) << shift
    return nibble


def _indices(nibbles: UInt8[Tensor, "*B groups"]) -> Int[Tensor, "*B half"]:
    """Positions in the dense row of the kept entries, in order."""
    inside = torch.stack((nibbles & 3, nibbles >> 2), -1).to(torch.int64)
    start = torch.arange(0, 4 * nibbles.shape[-1], 4, device=nibbles.device)
    return (inside + start[:, None]).flatten(-2)


@dataclass(frozen=True)
class Probe:
    """Seconds of the dense product and of packing and the sparse one; None where there is none.

    why: one sentence for a reader.
    """

    dense: float | None
    sparse: float | None
    why: str

    @property
    def faster(self) -> bool:
        """Whether the sparse product, packing included, takes less time."""
        return self.dense is not None and self.sparse is not None and self.sparse < self.dense


def break_even_columns(
    flops_per_second: float, bytes_per_second: float, element_size: int = 2
) -> float:
    """Columns of the other operand above which packing pays, at the peaks given.

    Per feature of the sparse operand and column one multiplication and one addition are saved of
    two; packing reads `element_size` bytes and writes 9/16 of them.
    """
    return 25 / 16 * element_size * flops_per_second / bytes_per_second


def sparse_product(y: Float[Tensor, "T m"], weight: Float[Tensor, "r m"]) -> Float[Tensor, "T r"]:
    """y @ weight.T by the 2:4 kernels; y must be 2:4 already. CUDA only: ask `faster_here`."""
    from torch.sparse import to_sparse_semi_structured

    # In its own type: squares that bfloat16 holds may overflow in float16.
    product: Tensor = torch.mm(to_sparse_semi_structured(y), weight.t())
    return product


@functools.cache
def faster_here(rows: int, width: int, columns: int, dtype: torch.dtype, device: str) -> Probe:
    """Whether `sparse_product` beats the dense one for [rows, width] @ [width, columns] here.

    Measured once per process, packing included. No on a CPU, on GPUs without the kernels, for
    other types than float16 and bfloat16, and for shapes that the kernels do not take (rows a
    multiple of 32, width of 64, columns of 8).
    """
    if torch.device(device).type != "cuda":
        return Probe(None, None, f"there are no 2:4 kernels for a {torch.device(device).type}")
    if torch.cuda.get_device_capability(device) < (8, 0):
        return Probe(None, None, "2:4 kernels need compute capability 8.0")
    if dtype not in (torch.float16, torch.bfloat16):
        return Probe(None, None, f"2:4 kernels are asked for 16-bit types only, not {dtype}")
    if rows % 32 or width % 64 or columns % 8:
        return Probe(None, None, f"2:4 kernels do not take {rows} x {width} x {columns}")
    y = magnitude24(torch.randn(rows, width, dtype=dtype, device=device))
    weight = torch.randn(columns, width, dtype=dtype, device=device)
    dense = _seconds(lambda: torch.mm(y, weight.t()))
    sparse = _seconds(lambda: sparse_product(y, weight))
    return Probe(dense, sparse, "measured here, packing included")


def _seconds(work: Callable[[], Tensor], repeats: int = 20) -> float:
    """Median seconds of a CUDA call after three that are not counted."""
    times: list[float] = []
    for turn in range(repeats + 3):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(float(start.elapsed_time(end)) / 1000)
    return sorted(times)[len(times) // 2]
