"""A linear layer whose weight is stored as integers, in the layout of compressed-tensors.

Its state is what the layout stores (`packing`): weight_packed, weight_scale, weight_shape and,
where there are any, weight_zero_point and weight_g_idx; or, where activations are rounded too,
weight (int8) and weight_scale. So a model's own `save_pretrained` writes a compressed-tensors
checkpoint, which needs `quantization_config_of(model)` in its configuration to be loaded.

    y = W^ x + b,     W^ = s (q - z)

in the type of the scales, from the integers at every call: it saves memory, not time. With 8-bit
activations x is first rounded onto a grid of its own, a scale for every token, found when it is
seen; the product is then that of the rounded numbers in floating point.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from whet.errors import OptionError
from whet.layers.packing import (
    int8_tensors,
    packed_tensors,
    quantization_config,
    unpack_integers,
)
from whet.layers.quantizer import Grid, Quantized, Scales, fake_quantize


class PackedLinear(nn.Module):
    """The layer [out, in] of a quantized weight. Only the bias is a parameter.

    activations: the grid that inputs are rounded onto, None to leave them alone.
    Errors: OptionError for grids that the layout has no place for.
    """

    def __init__(
        self, quantized: Quantized, bias: Tensor | None = None, *, activations: Grid | None = None
    ) -> None:
        super().__init__()
        check_layout(quantized.grid, activations)
        stored = packed_tensors(quantized) if activations is None else int8_tensors(quantized)
        outputs, inputs = quantized.values.shape
        self._take((outputs, inputs), quantized.grid, activations, stored, bias)

    @classmethod
    def empty(
        cls,
        out_features: int,
        in_features: int,
        grid: Grid,
        *,
        activations: Grid | None = None,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "meta",
    ) -> PackedLinear:
        """A layer without numbers, to be filled from a state dict or only to be measured.

        dtype: of scales and bias. Errors: as the class; InputError for groups that do not divide
        the inputs.
        """
        check_layout(grid, activations)
        dtype = dtype or torch.get_default_dtype()
        groups = grid.groups(in_features)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]
        if activations is None:
            shapes = {"weight_packed": ((out_features, _words(in_features, grid)), torch.int32)}
        else:
            shapes = {"weight": ((out_features, in_features), torch.int8)}
        shapes["weight_scale"] = ((out_features, groups), dtype)
        if activations is None:
            shapes["weight_shape"] = ((2,), torch.int64)
        if not grid.symmetric:
            shapes["weight_zero_point"] = ((_words(out_features, grid), groups), torch.int32)
        stored = {
            name: torch.empty(shape, dtype=kind, device=device)
            for name, (shape, kind) in shapes.items()
        }
        start = torch.empty(out_features, dtype=dtype, device=device) if bias else None
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take((out_features, in_features), grid, activations, stored, start)
        return layer

    @classmethod
    def of(
        cls, linear: nn.Linear, quantized: Quantized, *, activations: Grid | None = None
    ) -> PackedLinear:
        """In the place of a linear layer: its bias, its weight quantized."""
        made = cls(quantized, linear.bias, activations=activations)
        return made.train(linear.training)

    def _take(
        self,
        shape: tuple[int, int],
        grid: Grid,
        activations: Grid | None,
        stored: dict[str, Tensor],
        bias: Tensor | None,
    ) -> None:
        self.out_features, self.in_features = shape
        self.grid, self.activations = grid, activations
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)
        if bias is None or isinstance(bias, nn.Parameter):
            self.bias = bias
        else:
            self.bias = nn.Parameter(bias)

    @property
    def quantized(self) -> Quantized:
        """The integers, unpacked, with their scales."""
        held = dict(self.named_buffers())
        # As `packing.stored_weight` reads them, without a look at the device for weight_shape.
        values, zero, index = held.get("weight"), None, held.get("weight_g_idx")
        if values is None:
            values = unpack_integers(held["weight_packed"], self.grid.bits, self.in_features)
        if not self.grid.symmetric:
            words = held["weight_zero_point"]
            zero = unpack_integers(words, self.grid.bits, self.out_features, dim=0)
        scales = Scales(held["weight_scale"], zero)
        return Quantized(values, scales, self.grid, None if index is None else index.long())

    def dequantized(self) -> Float[Tensor, "O I"]:
        """The weight as numbers, in the type of the scales."""
        return self.quantized.dequantized()

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Errors: NonFiniteError where inputs that are to be rounded hold NaN or infinity."""
        if self.activations is not None:
            x = fake_quantize(x, self.activations)
        return F.linear(x, self.dequantized(), self.bias)

    def extra_repr(self) -> str:
        what = f"bits={self.grid.bits}, {self.grid.granularity}"
        size = "" if self.grid.group_size is None else f" of {self.grid.group_size}"
        zero = "" if self.grid.symmetric else ", asymmetric"
        inputs = "" if self.activations is None else f", activations={self.activations.bits} bits"
        return f"{self.in_features}, {self.out_features}, {what}{size}{zero}{inputs}"


class PackedExperts(nn.Module):
    """Experts of a mixture as packed layers, one by one, in place of a module of fused tensors.

    Called as transformers' are: hidden states [N, D], chosen experts [N, k] and their weights;
    each chosen expert gives down(act(gate x) * up x). names: of gate, up and down, as checkpoints
    of the family have them.
    """

    def __init__(
        self,
        experts: Sequence[tuple[PackedLinear, PackedLinear, PackedLinear]],
        act_fn: nn.Module,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        super().__init__()
        self.names, self.act_fn = names, act_fn
        for number, layers in enumerate(experts):
            self.add_module(str(number), nn.ModuleDict(dict(zip(names, layers, strict=True))))

    def __len__(self) -> int:
        return len(self._modules) - 1

    def forward(
        self,
        hidden_states: Float[Tensor, "N D"],
        top_k_index: Int[Tensor, "N k"],
        top_k_weights: Float[Tensor, "N k"],
    ) -> Float[Tensor, "N D"]:
        total = torch.zeros_like(hidden_states)
        for number in sorted(set(top_k_index.flatten().tolist())):
            if number >= len(self):  # what expert parallelism marks as another machine's
                continue
            expert: Any = self._modules[str(number)]
            gate, up, down = (expert[name] for name in self.names)
            token, place = (top_k_index == number).nonzero(as_tuple=True)
            x = hidden_states[token]
            y = down(self.act_fn(gate(x)) * up(x)) * top_k_weights[token, place, None]
            total.index_add_(0, token, y.to(total.dtype))
        return total


def check_layout(grid: Grid, activations: Grid | None = None) -> None:
    """Errors: OptionError for grids that compressed-tensors has no layout for."""
    quantization_config(grid, activations=activations)
    if grid.narrow or (activations is not None and activations.narrow):
        raise OptionError("narrow=True has no layout: scales are stored for whole ranges")


def packed_layers(model: nn.Module) -> dict[str, PackedLinear]:
    """The packed layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, PackedLinear)}


def packed_experts(model: nn.Module) -> dict[str, PackedExperts]:
    """The packed experts of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, PackedExperts)}


def quantization_config_of(model: nn.Module) -> dict[str, Any] | None:
    """The `quantization_config` for the packed layers of a model, None where it has none.

    Layers of one grid make a group; one group alone is said to be all linear layers, several name
    theirs. Everything else with a matrix (heads, routers, experts that are fused in one tensor)
    is listed to be ignored.
    """
    groups: dict[tuple[Grid, Grid | None, bool], list[str]] = {}
    for name, layer in packed_layers(model).items():
        indexed = hasattr(layer, "weight_g_idx")
        groups.setdefault((layer.grid, layer.activations, indexed), []).append(name)
    if not groups:
        return None
    ignore = _not_packed(model)
    fused = {name: f"re:{re.escape(name)}\\..*" for name in packed_experts(model)}
    configs = [
        quantization_config(
            grid,
            activations=activations,
            act_order="group" if indexed else None,
            targets=_targets(names, fused) if len(groups) > 1 else ("Linear",),
            ignore=ignore,
        )
        for (grid, activations, indexed), names in groups.items()
    ]
    return _joined(configs)


def _words(count: int, grid: Grid) -> int:
    return -(-count * grid.bits // 32)


def _targets(names: Sequence[str], fused: Mapping[str, str]) -> list[str]:
    """Layers by name, experts by a pattern: loaders know the experts' group by it."""
    of = {name: next((e for e in fused if name.startswith(f"{e}.")), None) for name in names}
    return list(dict.fromkeys(name if e is None else fused[e] for name, e in of.items()))


def _joined(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One configuration with the group of each.

    dequantize: transformers 5.23 with compressed-tensors 0.20 cannot hold packed zero points (it
    expects them at their unpacked size), and reads them where weights become numbers on loading.
    """
    formats = {config["format"] for config in configs}
    found = dict(configs[0])
    if len(configs) == 1 and not found["config_groups"]["group_0"]["weights"]["symmetric"]:
        found["dequantize"] = True
    if len(formats) > 1:
        found["format"] = "mixed-precision"
    found["config_groups"] = {
        f"group_{i}": {
            **config["config_groups"]["group_0"],
            **({"format": config["format"]} if len(formats) > 1 else {}),
        }
        for i, config in enumerate(configs)
    }
    return found


def _not_packed(model: nn.Module) -> list[str]:
    found = []
    for name, module in model.named_modules():
        if isinstance(module, (PackedLinear, nn.Embedding)) or not name:
            continue
        sizes = {
            key: parameter.dim()
            for key, parameter in module.named_parameters(recurse=False)
            if parameter.is_floating_point()
        }
        if 3 in sizes.values():  # engines see every expert as layers of its own
            found.append(f"re:{re.escape(name)}(\\..*)?$")
        elif sizes.get("weight") == 2:
            found.append(name)
    return found
