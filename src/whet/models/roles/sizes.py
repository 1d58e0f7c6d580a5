"""After a cut: module attributes follow their tensors, and the configuration where it can say so.

A configuration's key follows once all blocks agree; until then, and where the family's stock
classes cannot say the new shape at all, it stays, so that a checkpoint of the cut model fails to
load into the stock class instead of loading wrongly.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from whet.models.roles.building import head_shape
from whet.models.roles.structure import Axis, Block, View, blocks_of

_COUNTED_BY = {"kv_groups": ("heads", "kv_heads"), "heads": ("heads", "kv_heads")}


def head_dims(view: View) -> dict[int, int]:
    """Width of a head in every block; to be taken before a cut, which it survives."""
    return {block.index: head_shape(view, block.attention)[2] for block in blocks_of(view)}


def follow(view: View, axis: Axis, widths: dict[int, int]) -> None:
    """Make attributes and configuration agree with the tensors. widths: `head_dims` of before."""
    cut = {id(view.tensors[role.tensor]) for role in axis.roles}
    for name, tensor in view.tensors.items():
        if id(tensor) in cut:
            refresh(view.modules[name.rpartition(".")[0]])
    parts = blocks_of(view)
    counts = {block.index: block_counts(view, block, widths[block.index]) for block in parts}
    for block in parts:
        if axis.block in (None, block.index):
            _set_attributes(view, block, counts[block.index])
    _set_config(view, axis, list(counts.values()))
    for block in parts:
        _set_own_config(view, block, counts[block.index])


def refresh(module: nn.Module) -> None:
    """Sizes that torch's own modules keep beside their weights."""
    target: Any = module
    if isinstance(module, nn.Linear):
        target.out_features, target.in_features = module.weight.shape
    elif isinstance(module, Conv1D):
        target.nx, target.nf = module.weight.shape
    elif isinstance(module, nn.Embedding):
        target.num_embeddings, target.embedding_dim = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        target.out_channels, target.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.LayerNorm) and isinstance(module.weight, nn.Parameter):
        target.normalized_shape = tuple(module.weight.shape)


def block_counts(view: View, block: Block, head_dim: int) -> dict[str, int]:
    """What can be counted in a block: units of its axes, and what its attention is told."""
    names = block.attention
    width, keys = view.in_width(names.output), view.out_width(names.key)
    if names.query == names.key:
        keys = (keys - width) // 2
    heads, kv_heads = width // head_dim, keys // head_dim
    counts = {
        "residual": view.in_width(names.query),
        "heads": heads,
        "kv_heads": kv_heads,
        "groups": heads // kv_heads,
        "width": width,
        "head_dim": head_dim,
    }
    counts |= {kind: view.in_width(mlp.output) for kind, mlp in block.ffns()}
    if block.experts:
        shape = view.tensors[block.experts.down].shape
        counts |= {"experts": shape[0], "expert_ffn": shape[2]}
    return counts


def _set_attributes(view: View, block: Block, counts: dict[str, int]) -> None:
    attention = view.modules[block.attention.module]
    for attribute, what in block.attention.sizes:
        _set(attention, attribute, counts[what])
    if block.experts:
        for name in (block.experts.module, block.experts.router_module):
            module = view.modules[name]
            _set(module, "num_experts", counts["experts"])
            _set(module, "hidden_dim", counts["residual"])
            _set(module, "intermediate_dim", counts["expert_ffn"])


def _set(module: nn.Module, attribute: str, value: int) -> None:
    if hasattr(module, attribute):
        setattr(module, attribute, value)


def _set_config(view: View, axis: Axis, counts: list[dict[str, int]]) -> None:
    config: Any = view.model.config
    affected = _COUNTED_BY.get(axis.kind, (axis.kind,))
    agreed = all(len({block[what] for block in counts if what in block}) == 1 for what in affected)
    bound = view.family.head_dim_bound_by
    bound_now = bool(bound) and bool(getattr(config, bound))
    if not agreed or (bound_now and {"residual", "heads"} & set(affected)):
        return
    # Else the width of a head would be worked out anew from the sizes that change now.
    if view.family.keeps_head_dim and {"residual", "heads"} & set(affected):
        config.head_dim = counts[0]["head_dim"]
    for key, what in view.family.config:
        if what in affected:
            setattr(config, key, next(block[what] for block in counts if what in block))
    if "experts" in affected:
        sparse = next(block for block in counts if "experts" in block)
        _set(view.model, "num_experts", sparse["experts"])


def _set_own_config(view: View, block: Block, counts: dict[str, int]) -> None:
    """Give an attention whose forward pass reads the configuration one that is true of it."""
    shared: Any = view.model.config
    attention: Any = view.modules[block.attention.module]
    if not block.attention.own_config:
        return
    attention.config = shared
    for key, what in block.attention.own_config:
        if getattr(shared, key) != counts[what]:
            if attention.config is shared:
                attention.config = copy.copy(shared)
            setattr(attention.config, key, counts[what])
