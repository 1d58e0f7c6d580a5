"""Where quantized matrices go: packed layers where compressed-tensors has a layout, else numbers.

Experts that are fused in one tensor become packed layers one by one: transformers (5.23) reads a
compressed-tensors checkpoint of a mixture only so. Their inputs are never rounded: there is no
layout for that. Widths of other than 4 and 8 bits, and GPT-2's Conv1D, have no layout: the rounded
numbers take the place of the weight, and nothing gets smaller.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from whet.compress.baselines.matrices import Matrix, every_matrix, matrices
from whet.compress.baselines.telling import Told, with_note
from whet.compress.calibrate import Restore, restore_block
from whet.compress.method import Compression, Stage
from whet.compress.result import QuantizedLinear
from whet.errors import OptionError
from whet.layers.packed_linear import PackedExperts, PackedLinear, check_layout
from whet.layers.quantizer import Grid, Quantized, Scales
from whet.models.roles import Block, blocks

_PACKED = (4, 8)


@dataclass(frozen=True)
class Scheme:
    """What becomes of weights and of their inputs (None: nothing)."""

    weights: Grid
    activations: Grid | None = None

    @classmethod
    def of(cls, bits: int, group_size: int | None, symmetric: bool, activation_bits: int) -> Scheme:
        """From the options of a method. Errors: OptionError for what cannot be stored."""
        granularity = "channel" if group_size is None else "group"
        grid = Grid(bits, symmetric, granularity, group_size)  # type: ignore[arg-type]
        if activation_bits == 16:
            return cls(grid)
        if activation_bits != 8:
            raise OptionError(f"activation_bits={activation_bits} must be 16 (as they are) or 8")
        if (bits, group_size, symmetric) != (8, None, True):
            raise OptionError(
                "activation_bits=8 needs bits=8, group_size=none and symmetric=true, not "
                f"bits={bits}, group_size={group_size}, symmetric={str(symmetric).lower()}"
            )
        scheme = cls(grid, Grid(8, True, "token"))
        check_layout(scheme.weights, scheme.activations)
        return scheme

    @property
    def packs(self) -> bool:
        """Whether weights of so many bits have a layout."""
        return self.weights.bits in _PACKED

    def check(self, model: nn.Module) -> None:
        """Errors: OptionError for a model that cannot be quantized so."""
        size = self.weights.group_size
        for matrix, (_, columns) in every_matrix(model):
            if size is not None and columns % size:
                raise OptionError(
                    f"group_size={size} does not divide the {columns} inputs of {matrix}: "
                    f"choose {_divisor(columns, size)}, or none for one scale a row"
                )
            conv = isinstance(model.get_submodule(matrix.module), Conv1D)
            if conv and self.activations is not None:
                raise OptionError(
                    f"activation_bits=8: {matrix} is a Conv1D, whose inputs no layout rounds"
                )
            if matrix.expert is not None and self.packs and not self.weights.symmetric:
                raise OptionError(
                    f"symmetric=false: {matrix} is of a mixture, and loaders read no zero points "
                    "of experts"
                )

    def shape(self, model: nn.Module) -> None:
        """Give an empty model the layers that the result will have. Errors: as `check`."""
        self.check(model)
        for block in blocks(model):
            self._shape(model, block)

    def _shape(self, model: nn.Module, block: Block) -> None:
        if not self.packs:
            return
        found = matrices(model, block)
        for matrix in found:
            layer = model.get_submodule(matrix.module)
            if matrix.expert is None and isinstance(layer, nn.Linear):
                empty = _empty(self, layer.weight, layer.bias)
                model.set_submodule(matrix.module, empty.train(layer.training))
        self._experts(model, found, None)

    def store(
        self, model: nn.Module, results: Sequence[tuple[Matrix, QuantizedLinear]]
    ) -> list[Told]:
        """Put a block's matrices in their places; of experts all must be there."""
        told: list[Told] = []
        experts: dict[Matrix, Quantized] = {}
        for matrix, result in results:
            report, module = result.report, model.get_submodule(matrix.module)
            size = result.quantized.values.numel()
            if self.packs and matrix.expert is not None:
                experts[matrix] = result.quantized
            elif self.packs and isinstance(module, nn.Linear):
                layer = PackedLinear.of(module, result.quantized, activations=self.activations)
                model.set_submodule(matrix.module, layer)
            else:
                matrix.write(model, result.weight)
                what = f"{self.weights.bits} bits" if not self.packs else type(module).__name__
                report = with_note(report, f"{what}: no packed layout, stored as numbers")
            if matrix.expert is not None and self.activations is not None:
                report = with_note(report, "inputs of experts are not rounded")
            told.append(Told(matrix, report, size, size))
        self._experts(model, list(experts), experts)
        return told

    def restore(self, model: nn.Module) -> Restore:
        """What gives a block of the model its shard's tensors: for `calibrate`."""

        def restore(module: nn.Module, block: Block, tensors: Mapping[str, Tensor]) -> None:
            self._shape(model, block)
            restore_block(model.get_submodule(block.name), block, tensors)

        return restore

    def _experts(
        self,
        model: nn.Module,
        found: Sequence[Matrix],
        results: Mapping[Matrix, Quantized] | None,
    ) -> None:
        """Fused experts one by one: packed from results, or empty without."""
        alone = Scheme(self.weights)
        for name in dict.fromkeys(m.module for m in found if m.expert is not None):
            fused: Any = model.get_submodule(name)
            parts = []
            for e in range(len(fused.down_proj)):
                gate_up, down = Matrix(name, "gate_up_proj", e), Matrix(name, "down_proj", e)
                if results is None:
                    gate, up = gate_up.read(model).chunk(2)
                    empty = [_empty(alone, w, None) for w in (gate, up, down.read(model))]
                    parts.append((empty[0], empty[1], empty[2]))
                else:
                    halves = [PackedLinear(half) for half in _halves(results[gate_up])]
                    parts.append((halves[0], halves[1], PackedLinear(results[down])))
            layer = PackedExperts(parts, fused.act_fn, expert_names(model))
            model.set_submodule(name, layer.train(fused.training))


@dataclass(frozen=True)
class Quantizer(Compression):
    """What quantizing methods share: their scheme says what can be done, and what comes of it."""

    stage: ClassVar[Stage] = "quantize"
    streams: ClassVar[bool] = True

    @abstractmethod
    def scheme(self) -> Scheme:
        """From the options. Errors: OptionError for what cannot be stored."""

    def check(self, model: nn.Module) -> None:
        """Errors: OptionError."""
        self.scheme().check(model)

    def shape(self, model: nn.Module) -> None:
        """Errors: OptionError."""
        self.scheme().shape(model)


def expert_names(model: nn.Module) -> tuple[str, str, str]:
    """What checkpoints of the model's family call gate, up and down of one expert."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    names: list[str] = []
    for converter in get_model_conversion_mapping(model):
        if isinstance(converter, WeightConverter):
            for tensor in ("gate_up_proj", "down_proj"):
                if any(t.endswith(f".experts.{tensor}") for t in converter.target_patterns):
                    names += [p.split(".")[-2] for p in converter.source_patterns]
    return (
        (names[0], names[1], names[2]) if len(names) == 3 else ("gate_proj", "up_proj", "down_proj")
    )


def _empty(scheme: Scheme, weight: Tensor, bias: Tensor | None) -> PackedLinear:
    rows, columns = weight.shape
    return PackedLinear.empty(
        rows,
        columns,
        scheme.weights,
        activations=scheme.activations,
        bias=bias is not None,
        dtype=weight.dtype,
    )


def _halves(whole: Quantized) -> tuple[Quantized, Quantized]:
    """The upper and the lower rows, with their scales."""
    scale, zero = whole.scales.scale, whole.scales.zero_point
    parts = []
    for half in range(2):
        values = whole.values.chunk(2)[half].contiguous()
        point = None if zero is None else zero.chunk(2)[half].contiguous()
        scales = Scales(scale.chunk(2)[half].contiguous(), point)
        parts.append(Quantized(values, scales, whole.grid, whole.group_index))
    return parts[0], parts[1]


def _divisor(columns: int, size: int) -> int:
    """The largest size of groups below the one asked for that fits."""
    return next(n for n in range(size, 0, -1) if not columns % n)
