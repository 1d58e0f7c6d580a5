"""How large a model is, with or without weights: parameters, bytes, matrix products per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from whet.layers.packed_linear import PackedLinear
from whet.models.roles import blocks
from whet.models.roles.structure import View


@dataclass(frozen=True)
class Size:
    """parameters: numbers that the model computes with, packed ones counted singly, shared ones
    once. weight_bytes: of what a checkpoint stores. flops: floating-point operations of the matrix
    products for one of `length` tokens that are read at once, zeros not left out.
    """

    parameters: int
    weight_bytes: int
    flops: int
    length: int


def size_of(model: Any, *, dtype: torch.dtype | None = None, length: int = 128) -> Size:
    """The size of a model, which may be an empty one.

    dtype: what floats will be stored as (None: as they are); scales of packed weights keep theirs.
    Errors: OptionError for a model of no known family.
    """
    return Size(
        parameters=count_parameters(model),
        weight_bytes=stored_bytes(model, dtype),
        flops=flops_per_token(model, length),
        length=length,
    )


def count_parameters(model: nn.Module) -> int:
    """Numbers that the model computes with."""
    packed = (m for m in model.modules() if isinstance(m, PackedLinear))
    return sum(p.numel() for p in model.parameters()) + sum(
        layer.in_features * layer.out_features for layer in packed
    )


def share_of_zeros(model: nn.Module) -> float:
    """Share of the matrices' entries that are 0, embeddings and packed weights included."""
    entries = zeros = 0
    for module in model.modules():
        if isinstance(module, PackedLinear):
            weights = [module.dequantized()]
        else:
            weights = [p for n, p in module.named_parameters(recurse=False) if _is_matrix(n, p)]
        entries += sum(weight.numel() for weight in weights)
        zeros += sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(1, entries)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Not the scales that other libraries keep as parameters."""
    return parameter.dim() > 1 and "scale" not in name and "zero_point" not in name


def stored_bytes(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Bytes of all tensors that a checkpoint stores; tied ones once."""
    total, seen = 0, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        kept = dtype is None or not tensor.is_floating_point() or name.endswith("weight_scale")
        total += tensor.numel() * (tensor.element_size() if kept or not dtype else dtype.itemsize)
    return total


def flops_per_token(model: Any, length: int) -> int:
    """Twice the matrix entries that a token meets in blocks and head, and attention's products.

    Attention is counted over all `length` positions, as kernels without a causal shortcut compute
    it. A mixture of experts is counted with those that a token is sent to.
    Errors: OptionError for a model of no known family.
    """
    view = View.of(model)
    total = 0
    for block in blocks(model):
        total += 2 * _entries(view.modules[block.name], view)
        total += 4 * length * view.in_width(block.attention.output)
    head = view.modules.get(view.head) or model.get_output_embeddings()
    if head is None and getattr(model.config, "weight_tying", False):  # LLaDA's has no module
        head = model.get_input_embeddings()
    if head is not None:
        before = (view.modules.get(name) for name in view.family.head_transform)
        total += 2 * sum(_entries(module, view) for module in (head, *before) if module)
    return total


def _entries(module: nn.Module, view: View) -> int:
    """Matrix entries that one token meets."""
    total = 0
    for part in module.modules():
        if isinstance(part, PackedLinear):
            total += part.in_features * part.out_features
            continue
        for parameter in part.parameters(recurse=False):
            if parameter.dim() == 2:
                total += parameter.numel()
            elif parameter.dim() == 3:  # experts, fused
                total += parameter.numel() // parameter.shape[0] * _chosen(view)
    return total


def _chosen(view: View) -> int:
    return int(getattr(view.model.config, "num_experts_per_tok", 1))
