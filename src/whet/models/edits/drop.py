"""Dropping whole blocks, so that what is left is a stock model of fewer layers.

The list of blocks is indexed by the ones that are kept; everything that counts layers follows:
the configuration's number of layers, its lists with an entry per layer (taken by index, never
cut off at the end: a hybrid model would give sliding attention to full layers), its lists of
layer numbers, and the number that each module keeps of its layer, which is its slot in a cache.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import OptionError
from whet.models.roles import blocks
from whet.models.roles.structure import View

# Keys of configurations whose lists have one entry per layer.
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")


def drop_blocks(model: nn.Module, indices: Iterable[int]) -> None:
    """Take blocks out in place; the others keep their order and their weights.

    The result computes what the model did with these blocks bypassed, and is a model of its stock
    class, which its configuration describes and any loader of that class reads.

    Errors: OptionError for numbers that are not blocks or named twice, for all of them, for a
    model of no known family, and for one in which another layer needs what the block makes
    (shared keys and values; the first block of a DiT, whose embeddings the head reads).
    """
    view = View.of(model)
    gone = _checked(view, indices)
    if not gone:
        return
    parts = blocks(model)
    kept = [block.index for block in parts if block.index not in gone]
    stack = view.inside(view.family.blocks)
    parent, _, name = stack.rpartition(".")
    modules = [model.get_submodule(parts[index].name) for index in kept]
    left = nn.ModuleList(modules)
    left.training = model.get_submodule(stack).training
    setattr(model.get_submodule(parent), name, left)
    _set_attributes(model, parent, count=len(parts), now=len(kept))
    for number, module in enumerate(modules):
        _renumber(module, kept[number], number)
    _set_config(model, kept, count=len(parts))


def check_droppable(model: nn.Module, indices: Iterable[int]) -> None:
    """Errors: as `drop_blocks`."""
    _checked(View.of(model), indices)


def bound_blocks(model: nn.Module) -> tuple[int, ...]:
    """Blocks that something outside them reads (a DiT's first). Errors: as `drop_blocks`."""
    family = View.of(model).family
    return (0,) if any(hidden.reads_first for hidden in family.hidden) else ()


def without_blocks(model: nn.Module, indices: Iterable[int]) -> Any:
    """A model like this one without these blocks, which shares its tensors; both can be used.

    Errors: as `drop_blocks`.
    """
    tensors = (*model.parameters(), *model.buffers())
    made = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    drop_blocks(made, indices)
    return made


def _checked(view: View, indices: Iterable[int]) -> list[int]:
    """The numbers, ascending. Errors: OptionError."""
    parts = blocks(view.model)
    try:
        gone = [operator.index(index) for index in indices]
    except TypeError as error:
        raise OptionError(f"indices must be whole numbers: {error}") from None
    for index in gone:
        if not 0 <= index < len(parts):
            raise OptionError(
                f"indices names block {index}: there are blocks 0 to {len(parts) - 1}"
            )
    if len(set(gone)) < len(gone):
        raise OptionError("indices names a block twice")
    if len(gone) == len(parts):
        raise OptionError(f"indices names all {len(parts)} blocks: at least one must be left")
    if gone:
        _check_independent(view, gone)
    return sorted(gone)


def _check_independent(view: View, gone: list[int]) -> None:
    config: Any = view.model.config
    if shared := getattr(config, "num_kv_shared_layers", None):
        raise OptionError(
            f"num_kv_shared_layers={shared}: its last layers read the keys and values of earlier "
            "ones, so that none can be dropped alone"
        )
    if bound := set(gone) & set(bound_blocks(view.model)):
        raise OptionError(
            f"block {min(bound)} of a {view.family.name} model cannot be dropped: the head reads "
            "its embeddings of time and class"
        )


def _renumber(module: nn.Module, old: int, new: int) -> None:
    """Give a block its new number, wherever it keeps it."""
    for part in module.modules():
        target: Any = part
        if getattr(target, "scale_attn_by_inverse_layer_idx", False):
            _move_scale(target, (new + 1) / (old + 1))
        if getattr(target, "layer_idx", None) is not None:
            target.layer_idx = new


@torch.no_grad()
def _move_scale(attention: Any, factor: float) -> None:
    """GPT-2 divides scores by the number of the layer: what the new one lacks goes to the queries.

    Exact up to rounding of the query weights.
    """
    attention.scaling /= factor
    fused, width = attention.c_attn, attention.split_size
    for name in ("weight", "bias"):
        # Not in place: another model may share the tensor.
        tensor: Tensor = getattr(fused, name).clone()
        tensor[..., :width] *= factor
        setattr(fused, name, nn.Parameter(tensor, getattr(fused, name).requires_grad))


def _set_attributes(model: nn.Module, parent: str, *, count: int, now: int) -> None:
    """The number of layers that the module around the blocks may keep (DistilBERT's)."""
    around: Any = model.get_submodule(parent)
    if getattr(around, "n_layers", None) == count:
        around.n_layers = now


def _set_config(model: nn.Module, kept: list[int], *, count: int) -> None:
    config: Any = model.config
    if not hasattr(config, "model_type"):  # diffusers: frozen, and set through the model
        registered: Any = model
        registered.register_to_config(num_layers=len(kept))
        return
    overrides = _layer_overrides(config)
    per_layer = {
        key: [values[index] for index in kept]
        for key in _PER_LAYER
        if isinstance(values := getattr(config, key, None), (list, tuple)) and len(values) == count
    }
    config.num_hidden_layers = len(kept)
    for key, values in per_layer.items():
        setattr(config, key, values)
    if getattr(config, "max_window_layers", None) is not None:
        # The first layers without a window.
        first = config.max_window_layers
        config.max_window_layers = first - sum(
            1 for index in range(min(first, count)) if index not in kept
        )
    if getattr(config, "mlp_only_layers", None) is not None:
        # Which layers are sparse followed from their old numbers, maybe every n-th.
        config.decoder_sparse_step = 1
        config.mlp_only_layers = [b.index for b in blocks(model) if b.experts is None]
    chosen = {new: overrides[old] for new, old in enumerate(kept) if old in overrides}
    if chosen:
        config.per_layer_config = chosen


def _layer_overrides(config: Any) -> dict[int, dict[str, Any]]:
    """Take a heterogeneous configuration's entries per layer off it."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    found = {int(k): dict(v) for k, v in config.to_dict()["per_layer_config"].items()}
    config.per_layer_config = None
    return found
