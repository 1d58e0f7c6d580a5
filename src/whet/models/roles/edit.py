"""Operations on an axis: permute, keep (cut), zero, rotate, and how large its units are.

All are exact: permuting and rotating leave the model's function alone, and cutting units gives
the function of zeroing them (experts: of a router that never chooses them). Where a norm runs
over what is cut, exactness needs more than slicing: an RMS norm over n of n0 entries divides by
n. Everything that writes the axis is multiplied by s = sqrt(n / n0) and the gains are divided by
s, which changes neither epsilon nor function (SliceGPT, arXiv 2401.15024, divides by n0 instead,
which no stock norm can).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from whet.errors import OptionError
from whet.models.roles.axes import check_fresh
from whet.models.roles.building import stream_norms
from whet.models.roles.sizes import follow, head_dims
from whet.models.roles.structure import Axis, Role, Side, View, blocks_of

Units = Tensor | Sequence[int] | Sequence[Sequence[int]]


@torch.no_grad()
def permute(model: nn.Module, axis: Axis, order: Units) -> None:
    """Reorder units: unit i becomes what unit order[i] was. The function does not change.

    order: [units], or [copies, units] for an order per copy. Errors: OptionError.
    """
    chosen = _check_units(model, axis, order, "order")
    if chosen.shape[1] != axis.units:
        raise OptionError(f"order has {chosen.shape[1]} units: {axis} has {axis.units}")
    view = View.of(model)
    for role in axis.roles:
        entries = units_of(view.tensors[role.tensor], role, axis)
        entries.copy_(_pick(entries, chosen))


@torch.no_grad()
def keep(model: nn.Module, axis: Axis, units: Units) -> None:
    """Cut the axis down to these units, in this order. The model's axes are other ones then.

    units: [kept], or [copies, kept] for a choice per copy. Shapes change; attributes such as
    out_features and head counts follow, and so does the configuration where all blocks agree and
    stock classes can say it. Half-precision weights are rounded once more where a norm runs over
    the axis. transformers' grouped expert kernels want rows of a multiple of 16 bytes, so cut the
    width of experts to multiples of 8. Errors: OptionError, also where no exact cut exists (see
    `Axis.uncuttable`) and where fewer experts would be left than each token is sent to.
    """
    chosen = _check_units(model, axis, units, "units")
    if axis.uncuttable:
        raise OptionError(f"{axis} cannot be cut: {axis.uncuttable}")
    if torch.equal(chosen, torch.arange(axis.units).expand(axis.copies, -1)):
        return
    view = View.of(model)
    _check_routed(view, axis, chosen.shape[1])
    widths = head_dims(view)
    _rescale(view, axis, (chosen.shape[1] / axis.units) ** 0.5)
    grouped: dict[tuple[str, int], list[Role]] = {}
    for role in axis.roles:
        grouped.setdefault((role.tensor, role.dim), []).append(role)
    for (name, dim), roles in grouped.items():
        tensor = view.tensors[name]
        tensor.data = _cut(tensor, dim, roles, axis, chosen)
        tensor.grad = None
    follow(view, axis, widths)


@torch.no_grad()
def zero(model: nn.Module, axis: Axis, units: Units) -> None:
    """Set every entry of these units to zero (gains of 1 + w norms to w = -1), in place.

    A router still chooses an expert whose row is zero; mask its logits to compare with `keep`.
    """
    chosen = _check_units(model, axis, units, "units")
    view = View.of(model)
    copies = torch.arange(axis.copies)[:, None]
    for role in axis.roles:
        gain = role.side == "gain" and role.tensor.endswith("weight")
        entries = units_of(view.tensors[role.tensor], role, axis)
        entries[copies, chosen] = -view.family.gain if gain else 0.0


@torch.no_grad()
def magnitudes(
    model: nn.Module, axis: Axis, *, sides: Collection[Side] = ("write", "read")
) -> Float[Tensor, " U"] | Float[Tensor, "C U"]:
    """Euclidean norm of all weights of each unit, in float64: [units], or [copies, units].

    sides: which roles count; norm gains ("gain") lie near 1 everywhere and are left out.
    """
    check_fresh(model, axis)
    view = View.of(model)
    device = view.tensors[axis.roles[0].tensor].device
    total = torch.zeros(axis.copies, axis.units, dtype=torch.float64, device=device)
    for role in axis.roles:
        if role.side in sides:
            entries = units_of(view.tensors[role.tensor], role, axis).double()
            total += entries.square().flatten(2).sum(2).to(device)
    result = total.sqrt()
    return result[0] if axis.copies == 1 else result


@torch.no_grad()
def rotate(model: nn.Module, axis: Axis, Q: Float[Tensor, "U U"] | Float[Tensor, "C U U"]) -> None:
    """Express the axis in the basis of Q's columns (row vectors x become x Q); exact.

    Q: orthogonal, [units, units], or one per copy. Made for the residual stream, whose norms
    must be folded, and for what lies between values (or queries and keys) and their readers.
    Errors: OptionError where Q is not orthogonal, and with the reason where no basis but the
    given one works (see `Axis.unrotatable`).
    """
    check_fresh(model, axis)
    view = View.of(model)
    reason = axis.unrotatable or (_bound_by(view) if axis.kind == "residual" else "")
    if reason:
        raise OptionError(f"{axis} of a {view.family.name} model cannot be rotated: {reason}")
    shape = (axis.copies, axis.units, axis.units)
    if tuple(Q.shape) not in (shape, shape[1:]):
        raise OptionError(f"Q has shape {list(Q.shape)}: {axis} needs {list(shape[1:])}")
    Q = Q.double().expand(shape)
    error = (Q.mT @ Q - torch.eye(axis.units, dtype=Q.dtype, device=Q.device)).abs().max().item()
    if not error < 1e-4:
        raise OptionError(f"Q is not orthogonal: QᵀQ differs from the identity by {error:.1e}")
    for role in axis.roles:
        if role.side != "gain":  # gains are equal over all units, so they stay
            entries = units_of(view.tensors[role.tensor], role, axis)
            basis = Q.to(entries.device)
            entries.copy_(torch.einsum("cij,ci...->cj...", basis, entries.double()))


def units_of(tensor: Tensor, role: Role, axis: Axis) -> Tensor:
    """A view of the tensor's entries as [copies, units, repeat, unit, other dimensions...]."""
    if role.batch is not None:
        part = tensor.movedim((role.batch, role.dim), (0, 1))
        part = part.narrow(1, role.start, role.stop - role.start)
        shape = (len(part), role.repeat, axis.units, role.unit, *part.shape[2:])
    else:
        part = tensor.movedim(role.dim, 0).narrow(0, role.start, role.stop - role.start)
        shape = (axis.copies, role.repeat, axis.units, role.unit, *part.shape[1:])
    return part.view(shape).movedim(1, 2)


def _pick(entries: Tensor, chosen: Int[Tensor, "C n"]) -> Tensor:
    chosen = chosen.to(entries.device)
    return entries[torch.arange(len(chosen), device=entries.device)[:, None], chosen]


def _check_units(model: nn.Module, axis: Axis, units: Units, name: str) -> Int[Tensor, "C n"]:
    check_fresh(model, axis)
    try:
        given = torch.as_tensor(units)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{name} must be whole numbers in rows of one length: {error}") from None
    given = given.cpu()
    if given.dtype.is_floating_point or given.dtype == torch.bool or given.dim() not in (1, 2):
        raise OptionError(f"{name} is {given.dtype} of shape {list(given.shape)}: give indices")
    if given.dim() == 2 and len(given) != axis.copies:
        raise OptionError(f"{name} has {len(given)} rows: {axis} has {axis.copies} copies")
    if not given.numel() or given.min() < 0 or given.max() >= axis.units:
        raise OptionError(f"{name} must name units 0 to {axis.units - 1} of {axis}, at least one")
    if any(len(set(row)) < len(row) for row in given.reshape(-1, given.shape[-1]).tolist()):
        raise OptionError(f"{name} names a unit of {axis} twice")
    return given.long().expand(axis.copies, -1)


def _check_routed(view: View, axis: Axis, left: int) -> None:
    if axis.kind != "experts" or axis.block is None:
        return
    experts = blocks_of(view)[axis.block].experts
    router: Any = view.modules[experts.router_module] if experts else None
    if router is not None and left < router.top_k:
        raise OptionError(
            f"units leaves {left} experts: each token is sent to {router.top_k} of them"
        )


def _cut(
    tensor: Tensor, dim: int, roles: list[Role], axis: Axis, chosen: Int[Tensor, "C n"]
) -> Tensor:
    """The tensor with the chosen units of these roles, and all entries that no role covers."""
    size, pieces, cursor = tensor.shape[dim], [], 0
    batch = roles[0].batch
    rows = axis.copies if batch is not None else 1
    everything = torch.arange(size).expand(rows, -1)
    for role in sorted(roles, key=lambda role: role.start):
        pieces.append(everything[:, cursor : role.start])
        numbers = everything[0] if batch is None else everything
        local = replace(role, dim=numbers.dim() - 1, batch=None if batch is None else 0)
        entries = _pick(units_of(numbers, local, axis), chosen)
        pieces.append(entries.movedim(1, 2).reshape(rows, -1))
        cursor = role.stop
    index = torch.cat([*pieces, everything[:, cursor:]], 1).to(tensor.device)
    if batch is None:
        return tensor.data.index_select(dim, index[0])
    lead = tensor.data.movedim((batch, dim), (0, 1))
    cut = lead[torch.arange(rows, device=tensor.device)[:, None], index]
    return cut.movedim((0, 1), (batch, dim)).contiguous()


def _rescale(view: View, axis: Axis, s: float) -> None:
    """Multiply what writes into norms over the axis by s, and divide these norms' gains by s."""
    if axis.kind == "residual":
        _rescale_stream(view, axis, s)
        return
    read_through = {role.norm for role in axis.roles if role.norm}
    for role in axis.roles:
        if role.side == "write" and role.norm:
            units_of(view.tensors[role.tensor], role, axis).mul_(s)
    _scale_gains(view, read_through, 1 / s)


def _rescale_stream(view: View, axis: Axis, s: float) -> None:
    family = view.family
    embedding = view.first_name(f"{view.inside(family.embeddings[0])}.weight")
    for name in dict.fromkeys(role.tensor for role in axis.roles if role.side == "write"):
        if not (family.embedding_scale and name == embedding):
            view.tensors[name].mul_(s)
    output_norms = {role.norm for role in axis.roles if role.side == "write"}
    norms = set(stream_norms(view, blocks_of(view))) - output_norms
    _scale_gains(view, norms, 1 / s)
    if family.embedding_scale:  # it grows with the root of the hidden size, which is the s needed
        module = view.modules[view.inside(family.embeddings[0])]
        getattr(module, family.embedding_scale).mul_(s)
        number = f"scalar_{family.embedding_scale}"
        setattr(module, number, getattr(module, number) * s)
    elif _is_tied(view, embedding):  # the head has been multiplied too
        _scale_gains(view, {view.inside(family.final_norm)}, 1 / s)


def _is_tied(view: View, embedding: str) -> bool:
    """Whether the embedding is the head too, under its own name or (LLaDA) under none."""
    head = f"{view.head}.weight"
    if head in view.tensors:
        return view.first_name(head) == embedding
    return view.whole and bool(getattr(view.model.config, "tie_word_embeddings", False))


def _scale_gains(view: View, norms: Iterable[str], factor: float) -> None:
    for name in norms:
        weight, gain = view.tensors[f"{name}.weight"], view.family.gain
        weight.copy_((weight.double() + gain) * factor - gain)


def _bound_by(view: View) -> str:
    """Why the stream cannot be rotated as the norms stand, or nothing."""
    written = _output_norms(view)
    for name in stream_norms(view, blocks_of(view)):
        module = view.modules[name]
        if isinstance(module, nn.LayerNorm):
            return f"{name} is a LayerNorm, which subtracts the mean: call fold_norms first"
        weight = view.tensors[f"{name}.weight"]
        if (weight != weight.flatten()[0]).any():
            return f"the gains of {name} differ from unit to unit: " + (
                "they act between a branch and the stream, where nothing can take them up"
                if name in written
                else "call fold_norms first"
            )
    return ""


def _output_norms(view: View) -> set[str]:
    parts = [part for block in blocks_of(view) for part in (block.attention, block.mlp)]
    return {part.output_norm for part in parts if part and part.output_norm}
