"""What a model is made of: roles, axes and blocks, and looking tensors up by dotted name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from whet.errors import OptionError
from whet.layers.low_rank_linear import LowRankLinear
from whet.models.roles.families import find_family
from whet.models.roles.names import Attention, Experts, Family, Flow, Mlp, join, norms_of, prefixed

Side = Literal["write", "read", "gain", "carry"]
# Matrices on the residual path of a block whose stream was rotated (`whet.models.edits.rotated`).
ATTENTION_SKIP, MLP_SKIP = "attention_skip", "mlp_skip"


@dataclass(frozen=True)
class Role:
    """One side of one tensor: entries start to stop of dimension `dim` carry an axis.

    These entries are laid out [copies of the axis, repeat, units, unit]; where `batch` names a
    dimension, that one holds the copies (experts fused in one tensor), and the entries the rest.
    side: "write" makes the axis (rows of a projection, its bias), "read" consumes it (columns),
    "gain" belongs to a norm over it, "carry" acts on it element by element otherwise.
    norm: the norm that a reader reads, or a writer is read, through.
    """

    tensor: str
    dim: int
    unit: int
    start: int
    stop: int
    side: Side
    repeat: int = 1
    batch: int | None = None
    norm: str = ""


@dataclass(frozen=True)
class Axis:
    """Roles that are permuted, cut or rotated together: `units` units, in each of `copies`.

    Copies may be ordered and cut each in its own way (experts, groups of heads), to one number of
    units. uncuttable and unrotatable: why, where an operation is impossible, else "".
    """

    kind: str
    block: int | None
    units: int
    roles: tuple[Role, ...]
    copies: int = 1
    uncuttable: str = ""
    unrotatable: str = ""

    def __str__(self) -> str:
        where = "" if self.block is None else f" of block {self.block}"
        return f"{self.kind}{where}"


@dataclass(frozen=True)
class Block:
    """One block, with the full names of its modules: what a method walks.

    flow: "pre" is norm -> attention -> add -> norm -> MLP -> add; "parallel" adds both outputs
    of one norm; "sandwich" also normalises each output before its addition; "post" normalises
    after each addition. A sparse block has `experts`, a dense one `mlp`.
    """

    index: int
    name: str
    flow: Flow
    attention: Attention
    mlp: Mlp | None
    experts: Experts | None

    def ffns(self) -> list[tuple[str, Mlp]]:
        """Kind of axis and names of every MLP that is not fused with others in one tensor."""
        found = [("ffn", self.mlp)] if self.mlp else []
        if self.experts and self.experts.shared:
            found.append(("shared_ffn", self.experts.shared))
        return found

    def norms(self) -> list[str]:
        """Norms on the stream or on what is added to it, each once."""
        parts = (self.attention, self.mlp, self.experts)
        return list(dict.fromkeys(name for part in parts for name in norms_of(part)))


@dataclass
class View:
    """A model's tensors and modules by name, and its family. Tensors tied to others share a name.

    Cutting replaces the data of parameters, so a view of before describes another model.
    """

    model: nn.Module
    family: Family
    modules: dict[str, nn.Module]
    tensors: dict[str, Tensor]
    names: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> View:
        """Errors: OptionError for a model of no known family."""
        config = getattr(model, "config", None)
        model_type = getattr(config, "model_type", None) or type(model).__name__
        family = find_family(model_type)
        modules = dict(model.named_modules())
        tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        tensors.update(model.named_buffers(remove_duplicate=False))
        names: dict[int, str] = {}
        for name, tensor in tensors.items():
            names.setdefault(id(tensor), name)
        return cls(model, family, modules, tensors, names)

    @property
    def trunk(self) -> str:
        """The trunk's name in this model, which may be the trunk itself or begin inside it."""
        name = self.family.trunk
        while name not in self.modules:  # "" always is one
            name = name.partition(".")[2]
        return name

    @property
    def head(self) -> str:
        """The head's name in this model (which a trunk of LLaDA's holds too)."""
        return self.family.head.removeprefix(self.family.trunk.removesuffix(self.trunk))

    @property
    def whole(self) -> bool:
        """Whether this is a model around its trunk, not the trunk alone."""
        return self.family.trunk in self.modules

    def inside(self, name: str) -> str:
        """Full name of something in the trunk."""
        return join(self.trunk, name)

    def first_name(self, name: str) -> str:
        """The one name of a tensor that may have several."""
        return self.names[id(self.tensors[name])]

    def side_of(self, name: str, out: bool) -> Iterator[tuple[str, int]]:
        """(tensor, dimension) of everything at the input or output side of a module or buffer.

        Nothing where the model has no such module. Errors: OptionError for a kind of module that
        does not say which dimension is which (an adapter, packed weights).
        """
        if name in self.tensors:
            yield self.first_name(name), self.tensors[name].dim() - 1
            return
        module = self.modules.get(name)
        if module is None:
            return
        if isinstance(module, LowRankLinear):
            yield from self.side_of(f"{name}.up" if out else f"{name}.down", out)
            return
        weight = getattr(module, "weight", None)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            dim = 0 if out else 1
        elif isinstance(module, (Conv1D, nn.Embedding)):
            dim = 1 if out else 0
        elif out and (weight is None or weight.dim() == 1):
            dim = 0  # a norm
        else:
            raise OptionError(
                f"{name} is a {type(module).__name__}, whose roles are not known: take adapters "
                "off or merge them, and compress before quantizing"
            )
        if weight is not None:
            yield self.first_name(f"{name}.weight"), dim
        if out and getattr(module, "bias", None) is not None:
            yield self.first_name(f"{name}.bias"), 0

    def out_width(self, name: str) -> int:
        """How many entries a module writes."""
        width = getattr(self.modules.get(name), "out_features", None)
        if isinstance(width, int):  # of packed weights too, whose tensors do not show it
            return width
        tensor, dim = next(self.side_of(name, True))
        return self.tensors[tensor].shape[dim]

    def in_width(self, name: str) -> int:
        """How many entries a module reads."""
        width = getattr(self.modules.get(name), "in_features", None)
        if isinstance(width, int):
            return width
        tensor, dim = next(self.side_of(name, False))
        return self.tensors[tensor].shape[dim]


def blocks_of(view: View) -> list[Block]:
    """Every block, with the names of the parts it really has."""
    family = view.family
    stack = view.inside(family.blocks)
    if stack not in view.modules:
        raise OptionError(
            f"this {type(view.model).__name__} has no {stack}, where models of the family "
            f"{family.name} keep their blocks"
        )
    if not len(view.modules[stack]):  # type: ignore[arg-type]
        raise OptionError(f"{stack} of this {type(view.model).__name__} has no blocks left")
    flow = family.flow
    if family.post_when is not None:
        key, value = family.post_when
        if getattr(view.model.config, key) == value:
            flow = "post"
    found = []
    for index in range(len(view.modules[stack])):  # type: ignore[arg-type]
        name = f"{stack}.{index}"
        experts = prefixed(family.experts, name) if family.experts else None
        if experts and experts.gate_up not in view.tensors:
            experts = None
        mlp = prefixed(family.mlp, name) if family.mlp and not experts else None
        found.append(Block(index, name, flow, prefixed(family.attention, name), mlp, experts))
    return found
