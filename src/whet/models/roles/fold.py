"""Folding norms into what reads them, so that the stream between them may be rotated.

Source: SliceGPT, arXiv 2401.15024, section 3 and appendix. A norm's gain goes into the columns of
its readers and its bias through them into theirs. A LayerNorm's mean subtraction goes into
everything that writes to the stream, whose mean then is zero, so that the LayerNorm is an RMS
norm and is replaced by one with the same epsilon. Deviation from the official code: embeddings
lose their mean only in LayerNorm models (an RMS norm subtracts none), and epsilon is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import OptionError
from whet.layers.norm import RMSNorm
from whet.models.roles.axes import axis
from whet.models.roles.building import stream_norms
from whet.models.roles.structure import Axis, Role, View, blocks_of


@torch.no_grad()
def fold_norms(model: nn.Module) -> None:
    """Fold gains, biases and mean subtraction of the stream's norms, in place; the head is untied.

    Leaves norms with gain 1 (1 + w norms: w = 0). Gains of norms on a branch's output
    (Gemma 2 and 3) stay: nothing that reads the stream can take them up. Readers without a bias
    get one where a LayerNorm had one; LayerNorms become RMS norms, which stock classes of these
    families do not have, so the model no longer is a stock one. Folding twice changes nothing.
    Errors: OptionError for post-norm models, for DiT, and for a trunk without its head.
    """
    residual = axis(model, "residual")
    view = View.of(model)
    if residual.unrotatable:
        raise OptionError(
            f"the norms of {view.family.name} cannot be folded: {residual.unrotatable}"
        )
    if not view.whole:
        raise OptionError(
            f"this {type(model).__name__} has no head to fold its last norm into: load the "
            "language model it belongs to"
        )
    untie(model)
    residual = axis(model, "residual")
    view = View.of(model)
    kept = {role.norm for role in residual.roles if role.side == "write"}
    norms = [name for name in stream_norms(view, blocks_of(view)) if name not in kept]
    if any(isinstance(view.modules[name], nn.LayerNorm) for name in norms):
        for role in residual.roles:
            if role.side == "write":
                _centre(view.tensors[role.tensor], role.dim)
    for name in norms:
        _fold(view, residual, name)


def untie(model: nn.Module) -> bool:
    """Give the head weights of its own, where it shares the embedding's. Was it tied?"""
    view = View.of(model)
    owner: Any = model
    head = view.head
    if not view.whole:
        return False
    if head not in view.modules:
        if not getattr(owner.config, "tie_word_embeddings", False):
            return False
        weight = owner.get_input_embeddings().weight
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        owner.set_output_embeddings(layer)
        layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    else:
        name = f"{head}.weight"
        if view.first_name(name) == name:
            return False
        weight = view.tensors[name]
        module: Any = view.modules[head]
        module.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    owner.config.tie_word_embeddings = False
    return True


def _centre(tensor: Tensor, dim: int) -> None:
    wide = tensor.double()
    tensor.copy_(wide - wide.mean(dim, keepdim=True))


def _fold(view: View, residual: Axis, name: str) -> None:
    norm: Any = view.modules[name]
    readers = [role for role in residual.roles if role.side == "read" and role.norm == name]
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    for role in readers:
        if bias is not None:
            _add_bias(view, role, bias)
        if weight is not None:
            tensor = view.tensors[role.tensor]
            gain = (weight.double() + view.family.gain).to(tensor.device)
            along = [-1 if dim == role.dim else 1 for dim in range(tensor.dim())]
            tensor.copy_(tensor.double() * gain.view(along))
    if not isinstance(norm, nn.LayerNorm):
        norm.weight.fill_(1 - view.family.gain)
        return
    parent, _, last = name.rpartition(".")
    like = view.tensors[residual.roles[0].tensor] if weight is None else weight
    plain = RMSNorm(norm.normalized_shape[0], norm.eps).to(like.device, like.dtype)
    setattr(view.modules[parent], last, plain)


def _add_bias(view: View, role: Role, bias: Tensor) -> None:
    """Add to the reader's bias what the norm's bias gives after the reader's weights."""
    name = role.tensor.rpartition(".")[0]
    reader: Any = view.modules[name]
    tensor = view.tensors[role.tensor]
    added = torch.tensordot(tensor.double(), bias.double().to(tensor.device), ([role.dim], [0]))
    if reader.bias is None:
        reader.bias = nn.Parameter(added.to(tensor.dtype), tensor.requires_grad)
    else:
        reader.bias.copy_(reader.bias.double() + added)
