"""The weight matrices of a block that methods change, wherever they lie, as [out, in]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from whet.compress.statistics import InputStatistics
from whet.errors import OptionError
from whet.layers.low_rank_linear import LowRankLinear
from whet.layers.packed_linear import PackedLinear, packed_layers
from whet.models.roles import Block, blocks


@dataclass(frozen=True)
class Matrix:
    """One matrix. module: the layer that it is the weight of, or the module of fused experts.

    tensor: "weight", or which tensor of the experts; expert: which slice of it.
    """

    module: str
    tensor: str = "weight"
    expert: int | None = None

    def __str__(self) -> str:
        return self.module if self.expert is None else f"{self.module}.{self.expert}.{self.tensor}"

    @property
    def group(self) -> str:
        """The name under which it is reported: experts together."""
        return self.module if self.expert is None else f"{self.module}.{self.tensor}"

    def read(self, model: nn.Module) -> Float[Tensor, "O I"]:
        """A view of it; changing that changes the model."""
        module: Any = model.get_submodule(self.module)
        whole: Tensor = getattr(module, self.tensor).detach()
        if self.expert is not None:
            return whole[self.expert]
        return whole.t() if isinstance(module, Conv1D) else whole

    @torch.no_grad()
    def write(self, model: nn.Module, weight: Float[Tensor, "O I"]) -> None:
        """Put other numbers in its place."""
        self.read(model).copy_(weight)

    def seen(self, statistics: Mapping[str, Any]) -> InputStatistics:
        """Of its inputs, in what `watch_inputs` gave."""
        found = statistics[self.module]
        if self.expert is None:
            return found  # type: ignore[no-any-return]
        return (found.inner if self.tensor == "down_proj" else found.inputs)[self.expert]  # type: ignore[no-any-return]

    def cold(self, statistics: Mapping[str, Any]) -> bool:
        """Whether it is of an expert that saw too few tokens for its statistics to count."""
        return self.expert is not None and self.expert in statistics[self.module].below


def matrices(model: nn.Module, block: Block) -> list[Matrix]:
    """All of a block, attention first, each once. Low-rank layers have two.

    Errors: OptionError for a layer that holds no matrix of numbers.
    """
    a = block.attention
    names = [a.query, a.key, a.value, a.output]
    names += [name for _, mlp in block.ffns() for name in (*mlp.into, mlp.output)]
    known = dict(model.named_modules())
    found = [
        Matrix(inner)
        for name in dict.fromkeys(names)
        if name in known
        for inner in _layers(known[name], name)
    ]
    if block.experts is not None:
        module: Any = known[block.experts.module]
        for tensor in ("gate_up_proj", "down_proj"):
            found += [
                Matrix(block.experts.module, tensor, e) for e in range(len(getattr(module, tensor)))
            ]
    return found


def every_matrix(model: nn.Module) -> Iterator[tuple[Matrix, tuple[int, int]]]:
    """All matrices of a model with their shapes; the model may be empty.

    Errors: OptionError for a model of no known family, or one whose weights are packed.
    """
    check_not_packed(model)
    for block in blocks(model):
        for matrix in matrices(model, block):
            rows, columns = matrix.read(model).shape
            yield matrix, (rows, columns)


def check_not_packed(model: nn.Module) -> None:
    """Errors: OptionError."""
    stored = getattr(getattr(model, "config", None), "quantization_config", None)
    if stored or packed_layers(model):
        raise OptionError(
            "the model is quantized already: its weights are integers, which nothing can be done "
            "to after; compress the model it was made from"
        )


def reader(model: nn.Module, name: str) -> str:
    """The layer that meets the input of `name`: of a low-rank one the first of its two."""
    low = isinstance(model.get_submodule(name), LowRankLinear)
    return f"{name}.down" if low else name


def writer(model: nn.Module, name: str) -> str:
    """The layer that makes the output of `name`."""
    low = isinstance(model.get_submodule(name), LowRankLinear)
    return f"{name}.up" if low else name


def _layers(module: nn.Module, name: str) -> list[str]:
    if isinstance(module, LowRankLinear):
        return [f"{name}.down", f"{name}.up"]
    if isinstance(module, PackedLinear):
        raise OptionError(f"{name} is packed already: integers cannot be compressed further")
    weight = module.weight if isinstance(module, (nn.Linear, Conv1D)) else None
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        raise OptionError(
            f"{name} is a {type(module).__name__}: linear layers with a weight of floats are "
            "compressed; take adapters off or merge them"
        )
    return [name]
