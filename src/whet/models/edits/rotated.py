"""A residual stream with a basis and a width of its own at every site, and skips between them.

A site is a place that norms read: where a block's attention reads, where its MLP reads (with the
attention's output added), and behind the last block. What writes to a site writes in that site's
basis, and what was there before is carried over by a matrix on the residual path:

    x' = x S_a + attention(norm x),   x'' = x' S_m + MLP(norm x');   parallel: x' = x S + both.

Norms are RMS norms without gains that divide by the width of the stream as it was, so that what
was left out counts as zeros. Blocks keep their stock class (transformers records hidden states by
class) and their parts; only their forward pass is another one, set on the instance.

Source: SliceGPT, arXiv 2401.15024, sections 3.1 to 3.4. A mixture of experts reads and writes one
width, the wider of its two sites, filled with zeros on the narrower side.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from whet.errors import OptionError
from whet.layers.norm import RMSNorm
from whet.models.roles import Block, Role, axis, blocks, fold_norms
from whet.models.roles.sizes import refresh
from whet.models.roles.structure import ATTENTION_SKIP, MLP_SKIP, View, blocks_of

# Stock classes that reshape their last stream by the width of their first.
_SAME_ENDS = ("gpt2",)
_CACHES = ("past_key_values", "layer_past", "cache")


@dataclass(frozen=True)
class RotateSkip:
    """widths: of the stream at every site, first to last. full_dim: of the stream as it was."""

    kind: ClassVar[str] = "rotate_skip"
    widths: Sequence[int]
    full_dim: int

    def build(self, model: nn.Module) -> None:
        """Fold the norms and give every tensor its shape; numbers do not matter.

        Errors: OptionError for a model whose stream cannot be rotated, and for widths that do
        not fit it.
        """
        check_rotatable(model)
        fold_norms(model)
        sites = stream_sites(model)
        check_widths(model, sites, self.widths, self.full_dim)
        for role in sites[0].writers:
            narrow(model, role, self.widths[0])
        for block in blocks(model):
            shape_block(model, block, sites, self.widths, self.full_dim)
        for role in sites[-1].readers:
            narrow(model, role, self.widths[-1])
        set_norm(model, sites[-1], self.widths[-1], self.full_dim)


@dataclass(frozen=True)
class Site:
    """One place of the stream. norm: that it is read through. sparse: whether experts read it."""

    readers: tuple[Role, ...]
    writers: tuple[Role, ...]
    norm: str
    sparse: bool


def check_rotatable(model: nn.Module) -> None:
    """Errors: OptionError for a model whose stream cannot have bases of its own."""
    view = View.of(model)
    flow = blocks_of(view)[0].flow
    reason = view.family.unrotatable
    if flow not in ("pre", "parallel") or reason:
        what = "post-norm" if flow == "post" else "adaptive norms" if reason else "output norms"
        raise OptionError(
            f"SliceGPT needs pre-norm blocks: this {type(model).__name__} has {what}, which act "
            "on single channels of the stream"
        )
    if find_rotation(model) is not None:
        raise OptionError(f"this {type(model).__name__} has a rotated stream already")
    if not view.whole:
        raise OptionError(
            f"this {type(model).__name__} has no head, which its last norm is folded into"
        )


def stream_sites(model: nn.Module) -> list[Site]:
    """Every site of a model that is not rotated yet, in order; norms must be folded.

    Errors: OptionError for parts that roles do not know.
    """
    view = View.of(model)
    roles = axis(model, "residual").roles
    parts = blocks_of(view)
    norms: list[str] = []
    writers: list[list[str]] = [[]]  # prefixes of what writes to each site; none: embeddings
    sparse: list[bool] = []
    for block in parts:
        norms.append(block.attention.norm)
        sparse.append(False)
        written = [f"{block.attention.output}."]
        fed = [f"{mlp.output}." for _, mlp in block.ffns()]
        fed += [block.experts.down] if block.experts else []
        if block.flow == "parallel":
            writers.append(written + fed)
            continue
        writers.append(written)
        norms.append(_mlp_norm(block))
        sparse.append(block.experts is not None)
        writers.append(fed)
    norms.append(view.inside(view.family.final_norm))
    sparse.append(False)
    every = tuple(prefix for prefixes in writers for prefix in prefixes)

    def site(index: int) -> Site:
        wanted = tuple(writers[index])
        return Site(
            readers=tuple(r for r in roles if r.side == "read" and r.norm == norms[index]),
            writers=tuple(
                r
                for r in roles
                if r.side == "write"
                and (r.tensor.startswith(wanted) if index else not r.tensor.startswith(every))
            ),
            norm=norms[index],
            sparse=sparse[index],
        )

    return [site(index) for index in range(len(norms))]


def check_widths(
    model: nn.Module, sites: Sequence[Site], widths: Sequence[int], full_dim: int
) -> None:
    """Errors: OptionError for another number of widths than sites, and widths out of range."""
    if len(widths) != len(sites):
        raise OptionError(f"widths has {len(widths)} entries: the stream has {len(sites)} sites")
    view = View.of(model)
    width = view.in_width(blocks_of(view)[0].attention.query)
    if full_dim != width:
        raise OptionError(f"full_dim={full_dim}: the stream has {width} entries")
    wrong = [w for w in widths if not 1 <= w <= full_dim]
    if wrong:
        raise OptionError(f"widths has {wrong[0]}: from 1 to {full_dim} are allowed")
    if same_ends(model) and widths[0] != widths[-1]:
        raise OptionError(
            f"widths begins with {widths[0]} and ends with {widths[-1]}: a "
            f"{view.family.name} model gives its output the width of its embedding"
        )


def same_ends(model: nn.Module) -> bool:
    """Whether the stock class wants the first and the last site to be equally wide."""
    return View.of(model).family.name in _SAME_ENDS


def tensor_widths(sites: Sequence[Site], widths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Entries that readers and writers of each site have: its width, unless they are experts."""
    reads, writes = list(widths), list(widths)
    for index, site in enumerate(sites):
        if site.sparse:
            reads[index] = writes[index + 1] = max(widths[index], widths[index + 1])
    return reads, writes


def shape_block(
    model: nn.Module, block: Block, sites: Sequence[Site], widths: Sequence[int], full_dim: int
) -> None:
    """Give a block the shapes and the forward pass of these widths; numbers do not matter."""
    module = model.get_submodule(block.name)
    reads, writes = tensor_widths(sites, widths)
    first = first_site(block)
    for index, skip in enumerate(skips(block), first):
        for role in sites[index].readers:
            narrow(model, role, reads[index])
        for role in sites[index + 1].writers:
            narrow(model, role, writes[index + 1])
        set_norm(model, sites[index], widths[index], full_dim)
        shape = (widths[index + 1], widths[index])
        set_skip(module, skip, next(module.parameters()).new_zeros(shape))
    set_forward(model, block, reads[first + 1] if block.experts else None)


def first_site(block: Block) -> int:
    """The site that a block reads first."""
    return block.index * len(skips(block))


def skips(block: Block) -> tuple[str, ...]:
    """Names of the matrices on a block's residual path, in order."""
    return (ATTENTION_SKIP,) if block.flow == "parallel" else (ATTENTION_SKIP, MLP_SKIP)


def find_rotation(model: nn.Module) -> RotateSkip | None:
    """What a model with a rotated stream was built from; None where no block has skips."""
    widths: list[int] = []
    full_dim = 0
    for block in blocks(model):
        module: Any = model.get_submodule(block.name)
        if not hasattr(module, ATTENTION_SKIP):
            continue
        found = [getattr(module, name) for name in skips(block)]
        widths = widths[:-1] + [skip.in_features for skip in found] + [found[-1].out_features]
        full_dim = int(model.get_submodule(block.attention.norm).full_dim)  # type: ignore[arg-type]
    return RotateSkip(tuple(widths), full_dim) if widths else None


# --- changing tensors -----------------------------------------------------------------------------


@torch.no_grad()
def project(model: nn.Module, role: Role, basis: Float[Tensor, "F W"]) -> None:
    """Express a reader or writer of a site in a basis: row vectors x become x @ basis."""
    tensor = model.get_parameter(role.tensor)
    wide = torch.tensordot(tensor.double(), basis.double().to(tensor.device), ([role.dim], [0]))
    _set(model, role, wide.movedim(-1, role.dim).to(tensor.dtype).contiguous())


def narrow(model: nn.Module, role: Role, width: int) -> None:
    """Keep the first entries of a reader or writer."""
    tensor = model.get_parameter(role.tensor).data
    _set(model, role, tensor.narrow(role.dim, 0, width).contiguous())


def _set(model: nn.Module, role: Role, value: Tensor) -> None:
    parameter = model.get_parameter(role.tensor)
    parameter.data = value
    parameter.grad = None
    owner: Any = model.get_submodule(role.tensor.rpartition(".")[0])
    refresh(owner)
    if hasattr(owner, "hidden_dim"):  # experts and their router
        owner.hidden_dim = value.shape[role.dim]


def set_norm(model: nn.Module, site: Site, width: int, full_dim: int) -> None:
    """Put a norm without gains over `width` entries at a site; epsilon stays."""
    parent, _, name = site.norm.rpartition(".")
    old: Any = model.get_submodule(site.norm)
    eps = float(getattr(old, "variance_epsilon", getattr(old, "eps", 0.0)))
    norm = RMSNorm(width, eps, full_dim=full_dim, affine=False).train(model.training)
    setattr(model.get_submodule(parent), name, norm)


@torch.no_grad()
def set_skip(module: nn.Module, name: str, weight: Float[Tensor, "out in"]) -> None:
    """Put a matrix on a block's residual path, in the type and on the device of the block."""
    like = next(module.parameters())
    skip = nn.Linear(
        weight.shape[1], weight.shape[0], bias=False, device=like.device, dtype=like.dtype
    )
    skip.weight.copy_(weight)
    setattr(module, name, skip.train(module.training))


# --- the forward pass -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """Names inside a block. attention: "" where the block has it itself, as `attend`.

    mlp: "" where it is spread over the block. mlp_norm: "" in a parallel block. arguments: names
    that the block takes, the stream's first; those that its attention takes too are
    attention_arguments, None where it takes any. width: what a mixture reads and writes.
    """

    attention: str
    attention_norm: str
    mlp: str
    mlp_norm: str
    arguments: tuple[str, ...]
    attention_arguments: tuple[str, ...] | None
    width: int | None


def set_forward(model: nn.Module, block: Block, width: int | None = None) -> None:
    """Give a block the forward pass with skips. width: see `Parts`."""
    module: Any = model.get_submodule(block.name)

    def inside(name: str) -> str:
        return name.removeprefix(block.name).removeprefix(".")

    down = block.experts.module if block.experts else block.mlp.output if block.mlp else ""
    attention = inside(block.attention.module)
    attend = type(getattr(module, attention)).forward if attention else type(module).attend
    names, anything = _arguments(attend)
    parts = Parts(
        attention=attention,
        attention_norm=inside(block.attention.norm),
        mlp=inside(down).rpartition(".")[0],
        mlp_norm="" if block.flow == "parallel" else inside(_mlp_norm(block)),
        arguments=_arguments(type(module).forward)[0],
        attention_arguments=None if anything else names,
        width=width,
    )
    module.forward = functools.partial(rotated_forward, module, parts)


def rotated_forward(block: Any, parts: Parts, *args: Any, **kwargs: Any) -> Tensor:
    """A block's forward pass with skips, called as the stock one is."""
    given = dict(zip(parts.arguments, args, strict=False)) | kwargs
    stream = given.pop(parts.arguments[0])
    if block.training and getattr(block, "gradient_checkpointing", False):
        # The class does this around its own forward pass. A second run must not fill a cache.
        given.update({name: None for name in _CACHES if name in given})
        run = functools.partial(_forward, block, parts, given)
        found: Tensor = block._gradient_checkpointing_func(run, stream)
        return found
    return _forward(block, parts, given, stream)


def _forward(block: Any, parts: Parts, given: Mapping[str, Any], x: Tensor) -> Tensor:
    y = getattr(block, parts.attention_norm)(x)
    attended = _dropped(block, "attn", _attend(block, parts, given, y))
    x = _skipped(block, ATTENTION_SKIP, x) + attended
    if not parts.mlp_norm:
        return x + _dropped(block, "mlp", _feed_forward(block, parts, y, x.shape[-1]))
    carried = _skipped(block, MLP_SKIP, x)
    y = getattr(block, parts.mlp_norm)(x)
    fed = _feed_forward(block, parts, y, carried.shape[-1])
    return carried + _dropped(block, "mlp", fed)


def _attend(block: Any, parts: Parts, given: Mapping[str, Any], y: Tensor) -> Tensor:
    call = getattr(block, parts.attention) if parts.attention else block.attend
    if parts.attention_arguments is not None:
        given = {name: given[name] for name in parts.attention_arguments if name in given}
    found = call(y, **given)
    output: Tensor = found[0] if isinstance(found, tuple) else found
    return output


def _feed_forward(block: Any, parts: Parts, y: Tensor, width: int) -> Tensor:
    if parts.width is not None:
        y = F.pad(y, (0, parts.width - y.shape[-1]))
    found: Tensor
    if parts.mlp:
        found = getattr(block, parts.mlp)(y)
    elif hasattr(block, "feed_forward"):
        found = block.feed_forward(y)
    else:  # OPT
        found = block.fc2(block.activation_fn(block.fc1(y)))
    return found if parts.width is None else found[..., :width]


def _skipped(block: Any, name: str, x: Tensor) -> Tensor:
    skip = getattr(block, name, None)
    return x if skip is None else skip(x)


def _dropped(block: Any, branch: str, x: Tensor) -> Tensor:
    """Dropout of a branch, where its stock block has one."""
    if not block.training:
        return x
    for name in (f"resid_{branch}_dropout", "resid_dropout"):  # Phi-3, Phi
        if hasattr(block, name):
            found: Tensor = getattr(block, name)(x)
            return found
    rate = getattr(block, "dropout", None)  # OPT
    return F.dropout(x, rate) if isinstance(rate, float) else x


def _arguments(function: Any) -> tuple[tuple[str, ...], bool]:
    """Names that a method takes after `self`, and whether it takes any others too."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = tuple(p.name for p in parameters if p.kind in plain)
    return names, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _mlp_norm(block: Block) -> str:
    part = block.experts or block.mlp
    assert part is not None
    return part.norm
