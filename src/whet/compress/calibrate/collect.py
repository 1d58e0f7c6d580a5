"""Collectors: what is kept of a module's calls, summed over batches in float64.

A collector sees every call of the module it hangs on and adds to its sums, so that neither the
order nor the size of batches matters. Padding is left out: tokens count, not rows of a tensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from whet.compress.statistics import InputStatistics
from whet.errors import InputError, OptionError
from whet.models.roles import Block

_FLOAT64 = 8
_STRIP = 256


@dataclass(frozen=True)
class Call:
    """One call of a module. mask: True at tokens that count, [B, T]; None where all do."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    output: Any
    mask: Bool[Tensor, "B T"] | None

    def counted(self, rows: int) -> Bool[Tensor, " N"] | None:
        """The mask over so many rows, None where all count.

        Errors: InputError for a module that works on something else than the batch's tokens.
        """
        if self.mask is None or self.mask.numel() == rows:
            return None if self.mask is None else self.mask.reshape(-1)
        if bool(self.mask.all()):
            return None
        raise InputError(
            f"{self.name} works on {rows} rows where the batch has {self.mask.numel()} tokens: "
            "padding cannot be told apart in it, so calibrate it with batches without padding"
        )

    def rows(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "N I"]:
        """The rows of x that belong to tokens that count. Errors: as `counted`."""
        flat = x.detach().reshape(-1, x.shape[-1])
        counted = self.counted(len(flat))
        return flat if counted is None else flat[counted]


class Collector(ABC):
    """Sums over the calls of one module, on the device where these happen.

    Collectors of all blocks are made once before work begins, to add up what they will take: one
    takes its memory at the first call.
    """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the sums take."""

    @abstractmethod
    def see(self, call: Call) -> Tensor:
        """Add one call. Gives a boolean scalar: whether everything in it was finite."""

    @abstractmethod
    def result(self) -> Any:
        """The statistics so far."""

    def summary(self) -> dict[str, Any]:
        """What of it belongs in the block's report, as JSON."""
        return {}


class _Sums:
    """The numbers of `InputStatistics`, added to in place: a Gram matrix is never held twice."""

    def __init__(self, width: int, gram: bool) -> None:
        self.width, self.gram = width, gram
        self.count = 0
        self.values: list[Tensor] | None = None

    @property
    def nbytes(self) -> int:
        return _FLOAT64 * self.width * (3 + self.width * self.gram)

    def add(self, rows: Float[Tensor, "N I"]) -> Tensor:
        if self.values is None:
            shapes = [(self.width,)] * 3 + [(self.width, self.width)] * self.gram
            self.values = [torch.zeros(s, dtype=torch.float64, device=rows.device) for s in shapes]
        self.count += len(rows)
        if not len(rows):
            return torch.ones((), dtype=torch.bool, device=rows.device)
        if self.gram:
            wide = rows.double()
            # The upper half, in strips, which `result` mirrors: two thirds of the work or less.
            total, columns = self.values[3], wide.t()
            for low in range(0, self.width, _STRIP):
                strip = total[low : low + _STRIP, low:]
                strip.addmm_(columns[low : low + _STRIP], wide[:, low:])
        else:  # else they are on its diagonal
            self.values[0] += rows.double().square().sum(0)
        size = rows.abs()
        self.values[1] += size.sum(0, dtype=torch.float64)
        largest = size.amax(0).double()  # NaN where any is
        torch.maximum(self.values[2], largest, out=self.values[2])
        return largest.isfinite().all()

    def result(self) -> InputStatistics:
        if self.values is None:
            self.add(torch.zeros(0, self.width))
        assert self.values is not None
        square_sum, abs_sum, abs_max, *gram = self.values
        for total in gram:
            square_sum.copy_(total.diagonal())
            for low in range(_STRIP, self.width, _STRIP):
                total[low : low + _STRIP, :low] = total[:low, low : low + _STRIP].t()
        return InputStatistics(self.count, square_sum, abs_sum, abs_max, gram[0] if gram else None)


class InputCollector(Collector):
    """`InputStatistics` of a linear layer's input: [in] sums, and the Gram matrix if asked for."""

    def __init__(self, width: int, *, gram: bool = True) -> None:
        self._sums = _Sums(width, gram)

    @property
    def nbytes(self) -> int:
        """Bytes that the sums take."""
        return self._sums.nbytes

    def see(self, call: Call) -> Tensor:
        """Add one call."""
        return self._sums.add(call.rows(call.args[0]))

    def result(self) -> InputStatistics:
        """The sums so far."""
        return self._sums.result()


@dataclass(frozen=True)
class StreamStatistics:
    """How far a block turns the stream: sums over `count` tokens, h its input and h' its output.

    cosine_sum: Σ cos(h, h'), from which ShortGPT's block influence is 1 - mean. angle_sum: Σ of
    arccos / π. change_square: Σ ‖h' - h‖².
    """

    count: int
    cosine_sum: float
    angle_sum: float
    change_square: float
    inputs: InputStatistics
    outputs: InputStatistics


class StreamCollector(Collector):
    """A block's own input and output; hangs on the block."""

    def __init__(self, width: int, *, gram: bool = False) -> None:
        self._inputs, self._outputs = _Sums(width, gram), _Sums(width, gram)
        self._sums: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the sums take."""
        return self._inputs.nbytes + self._outputs.nbytes

    def see(self, call: Call) -> Tensor:
        """Add one call."""
        before = call.rows(call.args[0])
        after = call.rows(hidden_of(call.output))
        x, y = before.double(), after.double()
        # Rounding can carry the cosine of a stream that does not turn past 1.
        cosine = F.cosine_similarity(x, y, dim=1).clamp(-1, 1)
        sums = torch.stack([cosine.sum(), cosine.arccos().sum() / math.pi, (y - x).square().sum()])
        self._sums = sums if self._sums is None else self._sums + sums
        return self._inputs.add(before) & self._outputs.add(after)

    def result(self) -> StreamStatistics:
        """The sums so far."""
        cosine, angle, change = [0.0] * 3 if self._sums is None else self._sums.tolist()
        inputs, outputs = self._inputs.result(), self._outputs.result()
        return StreamStatistics(inputs.count, cosine, angle, change, inputs, outputs)


@dataclass(frozen=True)
class ExpertStatistics:
    """Per expert: `inputs` of its gate and up rows, `inner` of its down rows.

    below: experts that saw fewer than `min_tokens` tokens, whose statistics say little.
    pairs: [E, E], how many tokens chose both experts; its diagonal counts each one's tokens.
    """

    inputs: tuple[InputStatistics, ...]
    inner: tuple[InputStatistics, ...]
    pairs: Int[Tensor, "E E"]
    min_tokens: int

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens that each expert saw."""
        return tuple(statistics.count for statistics in self.inputs)

    @property
    def below(self) -> tuple[int, ...]:
        """Experts with fewer than `min_tokens` tokens."""
        return tuple(e for e, count in enumerate(self.counts) if count < self.min_tokens)


class ExpertCollector(Collector):
    """Inputs of each expert of a fused mixture; hangs on the module that holds the 3-D tensors.

    That module is called with hidden states [N, D] and the chosen experts [N, k]. What reaches
    down_proj is computed here a second time, since the fused call shows it to nobody.
    """

    def __init__(
        self, experts: int, width: int, inner: int, *, gram: bool = False, min_tokens: int = 128
    ) -> None:
        self._inputs = [_Sums(width, gram) for _ in range(experts)]
        self._inner = [_Sums(inner, gram) for _ in range(experts)]
        self._pairs: Float64[Tensor, "E E"] | None = None
        self._min_tokens = min_tokens

    @property
    def nbytes(self) -> int:
        """Bytes that the sums take."""
        return sum(sums.nbytes for sums in (*self._inputs, *self._inner))

    def see(self, call: Call) -> Tensor:
        """Add one call."""
        module: Any = call.module
        x, chosen = call.args[0].detach(), call.args[1]
        rows = x.reshape(-1, x.shape[-1])
        # One row per token: [N, E]. Padding is sent to experts as well, and counts for none.
        size = len(self._inputs)
        hit = torch.zeros(len(rows), size + 1, dtype=torch.bool, device=rows.device)
        # The last column takes what expert parallelism marks as another machine's.
        hit = hit.scatter(1, chosen.reshape(len(rows), -1), True)[:, :size]
        counted = call.counted(len(rows))
        if counted is not None:
            hit = hit & counted[:, None]
        pairs = hit.double().t() @ hit.double()
        self._pairs = pairs if self._pairs is None else self._pairs + pairs
        finite = torch.ones((), dtype=torch.bool, device=rows.device)
        for e, (inputs, inner) in enumerate(zip(self._inputs, self._inner, strict=True)):
            own = rows[hit[:, e]]
            gate, up = F.linear(own, module.gate_up_proj[e].detach()).chunk(2, dim=-1)
            finite = finite & inputs.add(own) & inner.add(module.act_fn(gate) * up)
        return finite

    def result(self) -> ExpertStatistics:
        """The sums so far."""
        size = len(self._inputs)
        pairs = torch.zeros(size, size) if self._pairs is None else self._pairs
        return ExpertStatistics(
            tuple(sums.result() for sums in self._inputs),
            tuple(sums.result() for sums in self._inner),
            pairs.long(),
            self._min_tokens,
        )

    def summary(self) -> dict[str, Any]:
        """Tokens of the expert that saw fewest, and which saw too few."""
        counts = [sums.count for sums in self._inputs]
        below = [e for e, count in enumerate(counts) if count < self._min_tokens]
        return {"min_tokens": self._min_tokens, "fewest": min(counts), "below": below}


Watch = Callable[[nn.Module, Block], Mapping[str, Collector]]
"""What to observe in a block: collectors by the full name of the module they hang on. A name may
repeat another's collector where both read the same input: it then sees the first one's calls."""


def watch_inputs(
    model: nn.Module, block: Block, *, gram: bool = True, min_tokens: int = 128
) -> dict[str, Collector]:
    """`InputStatistics` of every linear layer in a block, and `ExpertStatistics` of its experts.

    Layers that read the same input (queries, keys and values; gate and up) share their sums.
    gram: of dense layers only; experts' would take 8 E (D² + F²) bytes: see `watch_experts`.
    """
    found: dict[str, Collector] = {}
    a = block.attention
    groups = [(a.query, a.key, a.value), *(mlp.into for _, mlp in block.ffns())]
    first = {name: group[0] for group in groups for name in group}
    for name, module in _inside(model, block):
        width = _in_width(module)
        if width is None:
            continue
        shared = found.get(first.get(name, name))
        found[name] = shared or InputCollector(width, gram=gram)
    return found | watch_experts(model, block, min_tokens=min_tokens)


def watch_nothing(model: nn.Module, block: Block) -> dict[str, Collector]:
    """For edits that look at weights alone."""
    return {}


def watch_experts(
    model: nn.Module, block: Block, *, gram: bool = False, min_tokens: int = 128
) -> dict[str, Collector]:
    """`ExpertStatistics` of a sparse block, under its experts' name; nothing of a dense one."""
    if block.experts is None:
        return {}
    name = block.experts.module
    module: Any = model.get_submodule(name)
    down = getattr(module, "down_proj", None)
    plain = hasattr(module, "act_fn") and not getattr(module, "is_transposed", False)
    if not plain or down is None or down.dim() != 3:
        raise OptionError(
            f"{name} is a {type(module).__name__}: inputs of experts are collected where act_fn, "
            "gate_up_proj [E, 2F, D] and down_proj [E, D, F] make them"
        )
    experts, width, inner = down.shape
    return {name: ExpertCollector(experts, width, inner, gram=gram, min_tokens=min_tokens)}


def watch_stream(model: nn.Module, block: Block, *, gram: bool = False) -> dict[str, Collector]:
    """`StreamStatistics` of a block, under its own name."""
    width = _in_width(model.get_submodule(block.attention.query))
    if width is None:
        raise OptionError(f"{block.attention.query} is no linear layer: its width is not known")
    return {block.name: StreamCollector(width, gram=gram)}


def hidden_of(output: Any) -> Tensor:
    """The stream in what a block gives: one tensor, or the first of a tuple."""
    found = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(found, Tensor):
        raise OptionError(f"a block gives {type(output).__name__}: one tensor or a tuple is needed")
    return found


def _inside(model: nn.Module, block: Block) -> list[tuple[str, nn.Module]]:
    root = model.get_submodule(block.name)
    return [(f"{block.name}.{name}", module) for name, module in root.named_modules() if name]


def _in_width(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.weight.shape[0] if isinstance(module, Conv1D) else None
