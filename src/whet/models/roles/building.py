"""Building the axes of one model from its family's names and the shapes its tensors have now."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from whet.errors import OptionError
from whet.models.roles.families import POST_NORM
from whet.models.roles.names import Attention, Experts, Hidden, Mlp, join, prefixed
from whet.models.roles.structure import (
    ATTENTION_SKIP,
    MLP_SKIP,
    Axis,
    Block,
    Role,
    Side,
    View,
    blocks_of,
)

_CHANNELS = "its units pass through a nonlinearity one by one, or are counted, not added"
_ONE_WIDTH = "the stock attention takes one width for queries, keys and values of every head"
_ROTATED = "its stream has a basis and a width of its own at every site"
# "dynamic" and "longrope" compute their frequencies anew when texts grow.
_FIXED_FREQUENCIES = {"default", "linear", "llama3", "yarn"}


def axes_of(view: View, kind: str | None = None, at: int | None = None) -> list[Axis]:
    """All axes, or those of one kind (in one block): building only these is what takes time."""
    parts = blocks_of(view)
    found: list[Axis] = []
    if kind in (None, "residual"):
        found.append(_residual(view, parts))
    if kind in (None, "rotary") and _rotary_is_stored(view):
        found.append(_rotary(view, parts))
    if kind in ("residual", "rotary"):
        return found
    for block in parts if at is None else parts[at : at + 1]:
        found += _attention(view, block)
        for name, mlp in block.ffns():
            found.append(_ffn(view, name, block.index, mlp))
        if block.experts:
            found += _experts(view, block.index, block.experts)
        for hidden in view.family.hidden:
            found.append(_hidden(view, block, hidden))
    return [axis for axis in found if kind in (None, axis.kind)]


def _roles(
    view: View,
    names: Iterable[str],
    side: Side,
    *,
    unit: int = 1,
    repeat: int = 1,
    part: tuple[int, int] | None = None,
    norm: str = "",
) -> list[Role]:
    """Roles of everything at one side of the named modules; `part` is (start, stop)."""
    found = []
    for name in names:
        for tensor, dim in view.side_of(name, side != "read"):
            start, stop = part or (0, view.tensors[tensor].shape[dim])
            found.append(Role(tensor, dim, unit, start, stop, side, repeat, norm=norm))
    return found


def _once(roles: Iterable[Role]) -> tuple[Role, ...]:
    """Each part of each tensor once: tied tensors and fused modules come up several times."""
    unique: dict[tuple[str, int, int, int], Role] = {}
    for role in roles:
        unique.setdefault((role.tensor, role.dim, role.start, role.stop), role)
    return tuple(unique.values())


def head_shape(view: View, names: Attention) -> tuple[int, int, int]:
    """(query heads, key-value heads, width of a head) of an attention as it is now."""
    width = view.in_width(names.output)
    module = view.modules[names.module]
    if names.head_dim:
        head_dim = int(getattr(module, names.head_dim))
    else:
        head_dim = width // int(getattr(module, names.heads))
    keys = view.out_width(names.key)
    if names.query == names.key:
        keys = (keys - width) // 2
    return width // head_dim, keys // head_dim, head_dim


def _parts(view: View, names: Attention) -> tuple[tuple[int, int], ...]:
    """(start, stop) of queries, keys and values in what their modules write."""
    heads, kv_heads, head_dim = head_shape(view, names)
    q, k = heads * head_dim, kv_heads * head_dim
    if names.query == names.key:
        return (0, q), (q, q + k), (q + k, q + 2 * k)
    return (0, q), (0, k), (0, k)


def _attention(view: View, block: Block) -> list[Axis]:
    names, at = block.attention, block.index
    heads, kv_heads, d = head_shape(view, names)
    group = heads // kv_heads
    query, key, value = _parts(view, names)
    wide = names.wide_norms
    q_norm, k_norm = (names.query_norm, names.key_norm) if wide else ("", "")
    q = _roles(view, [names.query], "write", unit=group * d, part=query, norm=q_norm)
    k = _roles(view, [names.key], "write", unit=d, part=key, norm=k_norm)
    v = _roles(view, [names.value], "write", unit=d, part=value)
    o = _roles(view, [names.output], "read", unit=group * d)
    q_gain = _roles(view, [q_norm], "gain", unit=group * d) if wide else []
    k_gain = _roles(view, [k_norm], "gain", unit=d) if wide else []
    found = [
        Axis(
            "kv_groups",
            at,
            kv_heads,
            _once([*q, *k, *v, *o, *q_gain, *k_gain]),
            unrotatable=_CHANNELS,
        )
    ]
    if group > 1:
        single = [*_sized(q, d), *_sized(o, d), *_sized(q_gain, d)]
        found.append(
            Axis("heads", at, group, _once(single), copies=kv_heads, unrotatable=_CHANNELS)
        )
    clip = view.family.clip and getattr(view.model.config, view.family.clip) is not None
    clipped = "its queries, keys and values are clipped one by one" if clip else ""
    inner = [("values", [*_sized(v, 1), *_sized(o, 1, group)])]
    if view.family.free_keys:
        inner.append(("keys", [*_sized(k, 1), *_sized(q, 1, group)]))
    for kind, roles in inner:
        found.append(Axis(kind, at, d, _once(roles), kv_heads, _ONE_WIDTH, clipped))
    return found


def _sized(roles: Iterable[Role], unit: int, repeat: int = 1) -> list[Role]:
    return [
        Role(r.tensor, r.dim, unit, r.start, r.stop, r.side, repeat, norm=r.norm) for r in roles
    ]


def _ffn(view: View, kind: str, at: int, names: Mlp) -> Axis:
    units = view.in_width(names.output)
    roles: list[Role] = []
    for name in names.into:
        for start in range(0, view.out_width(name), units):  # twice where gate and up are fused
            roles += _roles(view, [name], "write", part=(start, start + units))
    roles += _roles(view, [names.output], "read")
    return Axis(kind, at, units, _once(roles), unrotatable=_CHANNELS)


def _experts(view: View, at: int, names: Experts) -> list[Axis]:
    router, gate_up, down = map(view.first_name, (names.router, names.gate_up, names.down))
    count, _, width = view.tensors[down].shape
    whole = (
        Role(router, 0, 1, 0, count, "write"),
        Role(gate_up, 0, 1, 0, count, "write"),
        Role(down, 0, 1, 0, count, "read"),
    )
    inner = (
        Role(gate_up, 1, 1, 0, width, "write", batch=0),
        Role(gate_up, 1, 1, width, 2 * width, "write", batch=0),
        Role(down, 2, 1, 0, width, "read", batch=0),
    )
    return [
        Axis("experts", at, count, whole, unrotatable=_CHANNELS),
        Axis("expert_ffn", at, width, inner, copies=count, unrotatable=_CHANNELS),
    ]


def _hidden(view: View, block: Block, hidden: Hidden) -> Axis:
    names = prefixed(hidden, block.name)
    readers = [*names.reads]
    readers += [view.inside(name) for name in hidden.reads_first] if block.index == 0 else []
    roles = _once([*_roles(view, names.writes, "write"), *_roles(view, readers, "read")])
    units = view.out_width(names.writes[0])
    return Axis(hidden.kind, block.index, units, roles, unrotatable=_CHANNELS)


def stream_norms(view: View, parts: list[Block]) -> list[str]:
    """Norms on the stream or on what is added to it, that the model has; weights or not."""
    family = view.family
    names = [name for block in parts for name in block.norms()]
    names += [view.inside(name) for name in (family.final_norm, *family.stream_norms) if name]
    names += family.head_transform
    found = [name for name in dict.fromkeys(names) if name in view.modules]
    return [name for name in found if not isinstance(view.modules[name], nn.Linear)]


def _residual(view: View, parts: list[Block]) -> Axis:
    family = view.family
    units = view.in_width(parts[0].attention.query)
    roles = _roles(view, map(view.inside, family.embeddings), "write")
    for block in parts:
        roles += _block_residual(view, block)
        roles += _modulations(
            view, units, (join(block.name, name) for name in family.block_modulations)
        )
    roles += _modulations(view, units, map(view.inside, family.trunk_modulations))
    roles += _roles(view, stream_norms(view, parts), "gain")
    final = view.inside(family.final_norm) if family.final_norm else ""
    roles += _roles(view, map(view.inside, family.stream_readers), "read")
    dense = [n for n in family.head_transform if isinstance(view.modules.get(n), nn.Linear)]
    roles += [*_roles(view, dense, "read"), *_roles(view, dense, "write")]
    if view.head in view.modules:
        roles += _roles(view, [view.head], "read", norm=final)
    for block in parts:  # none but in a rotated model
        roles += _roles(
            view, [join(block.name, skip) for skip in (ATTENTION_SKIP, MLP_SKIP)], "read"
        )
    found = _once(roles)
    if any(join(block.name, ATTENTION_SKIP) in view.modules for block in parts):
        return Axis("residual", None, units, found, uncuttable=_ROTATED, unrotatable=_ROTATED)
    for role in found:
        if role.stop - role.start != units:
            raise OptionError(
                f"{role.tensor} has {role.stop - role.start} entries where the residual stream "
                f"has {units}: models with projected embeddings are not supported"
            )
    post = parts[0].flow == "post"
    layer_norms = [
        name for name in stream_norms(view, parts) if isinstance(view.modules[name], nn.LayerNorm)
    ]
    unrotatable = family.unrotatable or (POST_NORM if post else "")
    uncuttable = ""
    if layer_norms:
        uncuttable = (
            f"{layer_norms[0]} is a LayerNorm, which takes mean and variance over all units"
        )
        uncuttable += "" if unrotatable else ": call fold_norms first"
    return Axis("residual", None, units, found, uncuttable=uncuttable, unrotatable=unrotatable)


def _block_residual(view: View, block: Block) -> list[Role]:
    names = block.attention
    through = "" if block.flow == "post" else names.norm
    roles = _roles(view, [names.query, names.key, names.value], "read", norm=through)
    roles += _roles(view, [names.output], "write", norm=names.output_norm)
    for _, mlp in block.ffns():
        roles += _roles(view, mlp.into, "read", norm="" if block.flow == "post" else mlp.norm)
        roles += _roles(view, [mlp.output], "write", norm=mlp.output_norm)
    if block.experts:
        e = block.experts
        router, gate_up, down = map(view.first_name, (e.router, e.gate_up, e.down))
        units = view.tensors[router].shape[1]
        roles += [
            Role(router, 1, 1, 0, units, "read", norm=e.norm),
            Role(gate_up, 2, 1, 0, units, "read", norm=e.norm),
            Role(down, 1, 1, 0, units, "write", norm=e.output_norm),
        ]
        roles += _roles(view, [e.gate] if e.gate else [], "read", norm=e.norm)
    return roles


def _modulations(view: View, units: int, names: Iterable[str]) -> list[Role]:
    """Shifts, scales and gates: as many vectors of the stream's width as a module writes."""
    return [
        role
        for name in names
        for start in range(0, view.out_width(name), units)
        for role in _roles(view, [name], "carry", part=(start, start + units))
    ]


def _rotary_is_stored(view: View) -> bool:
    """Whether the angles' frequencies are buffers that stay as they are."""
    rotary = view.modules.get(view.inside(view.family.rotary)) if view.family.rotary else None
    kinds = getattr(rotary, "rope_type", "")
    kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
    return rotary is not None and kinds <= _FIXED_FREQUENCIES


def _rotary(view: View, parts: list[Block]) -> Axis:
    """Pairs (i, i + half) of every head, one order for all, since they share the frequencies."""
    holder = view.inside(view.family.rotary)
    buffers = [
        name for name in view.tensors if name.startswith(holder + ".") and name.endswith("inv_freq")
    ]
    half = view.tensors[buffers[0]].shape[0]
    roles = [Role(name, 0, 1, 0, half, "carry") for name in buffers]
    for block in parts:
        names = block.attention
        heads, kv_heads, d = head_shape(view, names)
        query, key, _ = _parts(view, names)
        per_head = not names.wide_norms
        for name, (start, _), count, norm in (
            (names.query, query, heads, names.query_norm),
            (names.key, key, kv_heads, names.key_norm),
        ):
            for head in range(count):
                first = start + head * d
                roles += _roles(view, [name], "write", repeat=2, part=(first, first + 2 * half))
            for head in range(1 if per_head else count) if norm else ():
                roles += _roles(
                    view, [norm], "gain", repeat=2, part=(head * d, head * d + 2 * half)
                )
    return Axis(
        "rotary",
        None,
        half,
        _once(roles),
        uncuttable=_ONE_WIDTH,
        unrotatable="every pair turns at its own frequency",
    )
