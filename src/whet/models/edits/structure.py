"""Edits: what a model's shape has that its stock class cannot build from the configuration.

Methods change a model in place (`resize`, `replace`, ...). What they changed is then read off the
model itself (`describe`), as a list of edits: building the stock model of its configuration and
applying them in order (`build`) gives every tensor its name and shape, on the meta device too.
That list is what a checkpoint stores, so nothing has to be remembered while methods run.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from whet.errors import CheckpointError, OptionError, nearest
from whet.layers.low_rank_linear import LowRankLinear
from whet.layers.norm import RMSNorm
from whet.layers.packed_linear import packed_experts
from whet.models.roles import keep
from whet.models.roles.building import axes_of
from whet.models.roles.names import join
from whet.models.roles.sizes import block_counts, head_dims
from whet.models.roles.structure import View, blocks_of


class Edit(Protocol):
    """One change of structure: a frozen dataclass whose fields are JSON."""

    kind: ClassVar[str]

    def build(self, model: nn.Module) -> None:
        """Make the change to a model; numbers do not matter."""


@dataclass(frozen=True)
class Resize:
    """An axis of one block (None: of the model) that has another number of units."""

    kind: ClassVar[str] = "resize"
    axis: str
    block: int | None
    units: int

    def build(self, model: nn.Module) -> None:
        """Errors: OptionError for an axis that is not there, or a number it cannot have."""
        view = View.of(model)
        for axis in axes_of(view, self.axis, self.block):
            if axis.block == self.block:
                keep(model, axis, range(self.units))
                return
        raise OptionError(f"this model has no {self.axis} axis in block {self.block}")


@dataclass(frozen=True)
class Replace:
    """A module that is another layer now. layer, settings: what `LAYERS` makes it from."""

    kind: ClassVar[str] = "replace"
    module: str
    layer: str
    settings: Mapping[str, Any]

    def build(self, model: nn.Module) -> None:
        """Errors: OptionError for a module or a kind of layer that there is not."""
        if self.layer not in LAYERS:
            raise OptionError(f"layer={self.layer!r} is unknown: {nearest(self.layer, LAYERS)}")
        name = _name_here(model, self.module)
        if name is None:
            return
        old = _submodule(model, name)
        like = next(old.parameters(), next(model.parameters()))
        with torch.device(like.device):
            layer = LAYERS[self.layer](**self.settings)
        set_submodule(model, name, layer.to(like.dtype))


LAYERS: dict[str, Any] = {
    "linear": nn.Linear,
    "low_rank": LowRankLinear,
    "rms_norm": RMSNorm,
    "conv1d": Conv1D,
    "embedding": nn.Embedding,
}


def _settings(module: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """What a layer would be made again from; None for kinds that `LAYERS` does not make."""
    if isinstance(module, LowRankLinear):
        shape = {"in_features": module.in_features, "out_features": module.out_features}
        return "low_rank", {**shape, "rank": module.rank, "bias": module.up.bias is not None}
    if type(module) is nn.Linear:
        shape = {"in_features": module.in_features, "out_features": module.out_features}
        return "linear", {**shape, "bias": module.bias is not None}
    if isinstance(module, RMSNorm):
        width: dict[str, Any] = {"dim": module.weight.shape[0], "eps": module.eps}
        full = getattr(module, "full_dim", None)
        return "rms_norm", width if full is None else {**width, "full_dim": full}
    if isinstance(module, Conv1D):
        return "conv1d", {"nf": module.nf, "nx": module.nx}
    if isinstance(module, nn.Embedding):
        shape = {"num_embeddings": module.num_embeddings, "embedding_dim": module.embedding_dim}
        return "embedding", {**shape, "padding_idx": module.padding_idx}
    return None


# --- changing a model ---------------------------------------------------------------------------


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put another layer in a module's place. Errors: OptionError for one that cannot be saved."""
    if _settings(layer) is None:
        raise OptionError(
            f"a {type(layer).__name__} cannot replace {name}: only {', '.join(LAYERS)} are saved"
        )
    set_submodule(model, name, layer)


def set_submodule(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Errors: OptionError where the model has no such module."""
    _submodule(model, name)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer.train(model.training))


def _name_here(model: nn.Module, name: str) -> str | None:
    """A module's name in this model, which may be a trunk where the name is of a whole model's,
    or the other way round; None for a part of the head where there is no head."""
    view = View.of(model)
    known = [name, name.removeprefix(f"{view.family.trunk}."), join(view.family.trunk, name)]
    found = next((n for n in known if n in view.modules), None)
    head = name == view.family.head or name.startswith(f"{view.family.head}.")
    return name if found is None and (view.whole or not head) else found


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise OptionError(f"this model has no module {name!r}") from error


# --- reading edits off a model, and building them -----------------------------------------------


def describe(model: nn.Module, stock: nn.Module) -> list[Edit]:
    """The edits that make `stock` (an empty model of the same configuration) what `model` is.

    Errors: OptionError for a difference that no edit can say.
    """
    with _experts_fused(model, stock):
        return _describe(model, stock)


@contextlib.contextmanager
def _experts_fused(model: nn.Module, stock: nn.Module) -> Iterator[None]:
    """Packed experts as the stock class has them, empty, while shapes are looked at: how numbers
    are stored is said elsewhere."""
    packed = packed_experts(model)
    for name, experts in packed.items():
        gate: Any = experts.get_submodule(f"0.{experts.names[0]}")
        width, size, dtype = gate.out_features, gate.in_features, gate.weight_scale.dtype
        stand_in: Any = copy.deepcopy(stock.get_submodule(name))
        for tensor, shape in (("gate_up_proj", (2 * width, size)), ("down_proj", (size, width))):
            empty = torch.empty(len(experts), *shape, dtype=dtype, device="meta")
            setattr(stand_in, tensor, nn.Parameter(empty))
        model.set_submodule(name, stand_in)
    try:
        yield
    finally:
        for name, experts in packed.items():
            model.set_submodule(name, experts)


def _describe(model: nn.Module, stock: nn.Module) -> list[Edit]:
    from whet.models.edits.rotated import find_rotation

    found: list[Edit] = []
    rotation = find_rotation(model)
    mine, plain = View.of(model), View.of(stock)
    found += _resized(mine, plain, residual=rotation is None)
    if rotation is not None:
        found.append(rotation)
    build(stock, found)
    replaced = list(_replaced(model, stock))
    build(stock, replaced)
    _check_same(model, stock)
    return [*found, *replaced]


def build(model: nn.Module, edits: Iterable[Edit]) -> None:
    """Apply edits in order. The model may be empty, and stand under `torch.device("meta")`."""
    for edit in edits:
        with torch.device("cpu"):  # indices, that is; layers say where they go
            edit.build(model)


_AXES = (
    ("kv_groups", "kv_heads"),
    ("heads", "groups"),
    ("ffn", "ffn"),
    ("shared_ffn", "shared_ffn"),
    ("experts", "experts"),
    ("expert_ffn", "expert_ffn"),
)


def _resized(mine: View, plain: View, *, residual: bool) -> list[Edit]:
    ours, theirs = blocks_of(mine), blocks_of(plain)
    if len(ours) != len(theirs):
        raise OptionError(
            f"the model has {len(ours)} blocks and its configuration says {len(theirs)}: drop "
            "blocks with drop_blocks"
        )
    widths, stock_widths = head_dims(mine), head_dims(plain)
    found: list[Edit] = []
    for block, other in zip(ours, theirs, strict=True):
        has = block_counts(mine, block, widths[block.index])
        had = block_counts(plain, other, stock_widths[block.index])
        for axis, count in _AXES:
            if has.get(count) != had.get(count):
                found.append(Resize(axis, block.index, has[count]))
        if block.index == 0 and residual and has["residual"] != had["residual"]:
            found.append(Resize("residual", None, has["residual"]))
    return found


def _replaced(model: nn.Module, stock: nn.Module) -> Iterable[Edit]:
    from whet.layers.packed_linear import PackedLinear

    theirs = dict(stock.named_modules())
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or (inside and name.startswith(inside)):
            continue
        other = theirs.get(name)
        if other is None or (type(other) is type(module) and _shapes(other) == _shapes(module)):
            continue
        packed = isinstance(module, PackedLinear)
        settings = _of_packed(module) if packed else _settings(module)
        if settings is None:
            if type(other) is type(module):
                continue  # a module of modules, whose parts differ
            raise OptionError(
                f"{name} is a {type(module).__name__} where stock models have a "
                f"{type(other).__name__}: only {', '.join(LAYERS)} are saved"
            )
        inside = (*inside, f"{name}.")
        if not (packed and settings == _settings(other)):
            yield Replace(name, *settings)


def _of_packed(module: Any) -> tuple[str, dict[str, Any]]:
    """Packed weights are a number format, which checkpoints say elsewhere: it is a linear layer."""
    shape = {"in_features": module.in_features, "out_features": module.out_features}
    return "linear", {**shape, "bias": module.bias is not None}


def _shapes(module: nn.Module) -> dict[str, Any]:
    own = {n: tuple(t.shape) for n, t in module.named_parameters(recurse=False)}
    return own | {n: tuple(t.shape) for n, t in module.named_buffers(recurse=False)}


def _check_same(model: nn.Module, built: nn.Module) -> None:
    """Whether an empty model has every tensor's name and shape. Errors: OptionError."""
    from whet.layers.packed_linear import PackedLinear

    packed = [f"{n}." for n, m in model.named_modules() if isinstance(m, PackedLinear)]

    def shapes(of: nn.Module) -> dict[str, tuple[int, ...]]:
        every = {**dict(of.named_parameters()), **dict(of.named_buffers())}
        plain = (n for n in every if not any(n.startswith(p) for p in packed))
        return {name: tuple(every[name].shape) for name in plain}

    has, made = shapes(model), shapes(built)
    for name in sorted(has.keys() ^ made.keys()):
        where = "the model" if name in has else "a model built from its description"
        raise OptionError(f"{name} is in {where} only: this change cannot be saved")
    for name, shape in has.items():
        if made[name] != shape:
            raise OptionError(
                f"{name} has shape {shape} and {made[name]} in a model built from its "
                "description: this change cannot be saved"
            )


# --- as JSON ------------------------------------------------------------------------------------


def to_json(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """For a configuration file."""
    plain = [{"kind": edit.kind, **asdict(edit)} for edit in edits]  # type: ignore[call-overload]
    return json.loads(json.dumps(plain))  # type: ignore[no-any-return]


def from_json(edits: Any) -> list[Edit]:
    """Errors: CheckpointError for what is no list of edits."""
    from whet.models.edits.rotated import RotateSkip

    kinds: dict[str, Any] = {e.kind: e for e in (Resize, Replace, RotateSkip)}
    found: list[Edit] = []
    try:
        for entry in edits:
            fields = dict(entry)
            kind = fields.pop("kind")
            if kind not in kinds:
                raise CheckpointError(f"edits: kind {kind!r} is unknown: {nearest(kind, kinds)}")
            found.append(kinds[kind](**fields))
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"edits of the configuration are not read: {error!r}") from error
    return found
