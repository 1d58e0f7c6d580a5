"""What a family's table says: names of modules and tensors, without a line of code per method.

All names inside a block are relative to the block; those of `Family` are relative to its trunk,
except where the field says otherwise. An empty name means that the family has no such part. A
name that a particular model lacks (a norm switched off, a dense layer in a sparse model) is
skipped when the roles are resolved; what no table names is refused (`whet.models.roles.axes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar

Flow = Literal["pre", "post", "parallel", "sandwich"]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One attention. query = key = value names one fused module with the three parts in a row.

    norm: before it, or after the addition in a post-norm block. output_norm: on what it writes,
    before the addition. query_norm and key_norm: of every head alike, or over all heads at once
    where `wide_norms`. module: the one whose attributes count heads. head_dim: its attribute with
    a head's width, else `heads` is the one with the number of heads. sizes: (attribute of the
    module, what it counts): heads, kv_heads, groups (heads per kv head) or width (heads times
    head_dim). own_config: keys of the configuration that the forward pass reads, and what they
    count.
    """

    query: str
    key: str
    value: str
    output: str
    module: str
    norm: str = ""
    output_norm: str = ""
    query_norm: str = ""
    key_norm: str = ""
    wide_norms: bool = False
    head_dim: str = "head_dim"
    heads: str = ""
    sizes: tuple[tuple[str, str], ...] = ()
    own_config: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """into: the modules that read (gate and up, or one); one of twice the width is both, fused."""

    into: tuple[str, ...]
    output: str
    norm: str = ""
    output_norm: str = ""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture: 3-D tensors gate_up [expert, 2 * width, hidden] and down [expert, hidden, width].

    router: the tensor [expert, hidden]. gate: a module that reads the stream to weigh the shared
    expert. module and router_module: those whose attributes count.
    """

    router: str
    gate_up: str
    down: str
    module: str
    router_module: str
    norm: str = ""
    output_norm: str = ""
    shared: Mlp | None = None
    gate: str = ""


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """An inner axis of its own kind in every block: `reads` and `writes` are modules.

    reads_first: further readers, of the first block's axis, relative to the trunk.
    """

    kind: str
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    reads_first: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture. model_types: of configurations, or class names where there is none.

    blocks: the list of blocks. embeddings: modules and buffers whose sum starts the stream.
    stream_norms: further norms on the stream itself. head and head_transform (modules between
    stream and head that keep the stream's width) are relative to the model, not to the trunk.
    modulations (relative to block and to trunk): modules that write several vectors of the
    stream's width that act on it element by element. gain: what a norm's weight is added to.
    embedding_scale: attribute of the first embedding, the root of the hidden size.
    rotary: the module that holds the angles' frequencies as buffers. free_keys: neither rotary
    angles nor norms bind the dimensions of queries and keys. clip: key of the configuration
    that, where set, clips queries, keys and values.
    config: (key, what it counts), where a stock checkpoint can say it. keeps_head_dim: whether
    the configuration can say the width of a head, and head_dim_bound_by: a key that, where set,
    makes a part that does not listen. post_when: (key, value) of the configuration
    that makes the blocks post-norm.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    attention: Attention
    embeddings: tuple[str, ...]
    mlp: Mlp | None = None
    experts: Experts | None = None
    hidden: tuple[Hidden, ...] = ()
    flow: Flow = "pre"
    trunk: str = "model"
    final_norm: str = ""
    stream_norms: tuple[str, ...] = ()
    stream_readers: tuple[str, ...] = ()
    head: str = "lm_head"
    head_transform: tuple[str, ...] = ()
    block_modulations: tuple[str, ...] = ()
    trunk_modulations: tuple[str, ...] = ()
    gain: float = 0.0
    embedding_scale: str = ""
    rotary: str = ""
    free_keys: bool = False
    clip: str = ""
    config: tuple[tuple[str, str], ...] = ()
    keeps_head_dim: bool = False
    head_dim_bound_by: str = ""
    post_when: tuple[str, object] | None = None
    unrotatable: str = ""
    untouched: tuple[str, ...] = ()

    def kinds(self) -> tuple[str, ...]:
        """Kinds of axes that models of this family can have."""
        kinds = ["residual", "kv_groups", "heads", "values"]
        kinds += ["rotary"] if self.rotary else []
        kinds += ["keys"] if self.free_keys else []
        kinds += ["ffn"] if self.mlp else []
        if self.experts:
            kinds += ["experts", "expert_ffn"] + ["shared_ffn"] * (self.experts.shared is not None)
        return (*kinds, *(hidden.kind for hidden in self.hidden))


Names = TypeVar("Names", Attention, Mlp, Experts, Hidden)
# Fields that hold no module or tensor names.
_PLAIN = {"head_dim", "heads", "sizes", "own_config", "wide_norms", "kind", "reads_first"}


def prefixed(names: Names, prefix: str) -> Names:
    """The same names, seen from the model: `prefix` and a dot before each."""
    changed: dict[str, object] = {}
    for field in fields(names):
        value = getattr(names, field.name)
        if isinstance(value, Mlp):
            changed[field.name] = prefixed(value, prefix)
        elif field.name in _PLAIN or not value:
            continue
        elif isinstance(value, str):
            changed[field.name] = join(prefix, value)
        else:
            changed[field.name] = tuple(join(prefix, name) for name in value)
    return replace(names, **changed)  # type: ignore[arg-type]


def join(*parts: str) -> str:
    """Dotted name of the parts that are not empty; "." stands for the prefix itself."""
    return ".".join(part for part in parts if part and part != ".")


def norms_of(part: Attention | Mlp | Experts | None) -> Iterator[str]:
    """The norms on the stream or on what is added to it; not those of queries and keys."""
    if part is not None:
        yield from (name for name in (part.norm, part.output_norm) if name)
