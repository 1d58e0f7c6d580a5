"""The front door to axes: all of a model, or one, checked against what the family knows."""

from __future__ import annotations

from torch import nn

from whet.errors import OptionError
from whet.models.roles.building import axes_of
from whet.models.roles.families import FAMILIES
from whet.models.roles.structure import Axis, Block, View, blocks_of


def blocks(model: nn.Module) -> list[Block]:
    """The model's blocks in order. Errors: OptionError for a model of no known family."""
    return blocks_of(View.of(model))


def axes(model: nn.Module, kind: str | None = None) -> list[Axis]:
    """Every axis of the model, or those of one kind; blocks in order.

    Axes describe the shapes of now: get them again after a cut. Errors: OptionError for a model
    of no known family, for one with parameters that the family's table does not name (adapters,
    cross-attention, a classifier), and for a kind that the model does not have.
    """
    view = View.of(model)
    found = axes_of(view)
    _check_known(view, found)
    if kind is None:
        return found
    return [axis for axis in found if axis.kind == kind] or _missing(view, found, kind)


def axis(model: nn.Module, kind: str, block: int | None = None) -> Axis:
    """The one axis of this kind (in this block). Errors: as `axes`; and for a block without it."""
    found = axes(model, kind)
    for candidate in found:
        if candidate.block == block:
            return candidate
    where = sorted(candidate.block for candidate in found if candidate.block is not None)
    raise OptionError(
        f"block={block!r}: the {kind} axis is found in "
        + (f"blocks {', '.join(map(str, where))}" if where else "the whole model (block=None)")
    )


def untouched(model: nn.Module) -> list[str]:
    """Parameters that no axis reaches, and that are known: they never change shape or order."""
    view = View.of(model)
    return sorted(_parameters(view) - _reached(axes_of(view)))


def check_fresh(model: nn.Module, given: Axis) -> None:
    """Refuse an axis of before a cut. Errors: OptionError."""
    view = View.of(model)
    if given not in axes_of(view, given.kind, given.block):
        raise OptionError(
            f"the axis '{given}' with {given.units} units does not fit the model (any more): "
            "get axes again after each cut"
        )


def _parameters(view: View) -> set[str]:
    return {view.first_name(name) for name, _ in view.model.named_parameters()}


def _reached(found: list[Axis]) -> set[str]:
    return {role.tensor for axis in found for role in axis.roles}


def _check_known(view: View, found: list[Axis]) -> None:
    family = view.family
    known = {f"{view.head}.bias", *family.untouched}
    known |= {view.inside(f"{name}.bias") for name in family.stream_readers}
    for block in blocks_of(view):
        for norm in (block.attention.query_norm, block.attention.key_norm):
            known |= {f"{norm}.weight", f"{norm}.bias"}
    unknown = sorted(
        _parameters(view)
        - _reached(found)
        - {view.first_name(name) for name in known if name in view.tensors}
    )
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise OptionError(
            f"this {type(view.model).__name__} has {unknown[0]}{more}, which the family "
            f"{family.name} does not know: roles cover language models and trunks without "
            "adapters, cross-attention or other heads"
        )


def _missing(view: View, found: list[Axis], kind: str) -> list[Axis]:
    having = [family.name for family in FAMILIES if kind in family.kinds()]
    has = ", ".join(dict.fromkeys(axis.kind for axis in found))
    raise OptionError(
        f"this {view.family.name} model has no roles of kind {kind!r}, only {has}; "
        + (f"families with them: {', '.join(having)}" if having else "no family has them")
    )
