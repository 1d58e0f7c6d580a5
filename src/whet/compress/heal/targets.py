"""What LoRA is added to: the linear layers of attention and MLP, by role instead of by name."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers.pytorch_utils import Conv1D

from whet.errors import OptionError
from whet.models.roles import Block, blocks


def block_linears(model: nn.Module) -> list[str]:
    """Full names of the linear layers of every block's attention and MLP, in the model's order.

    A layer made of several (a low-rank one) gives those. Experts that are fused in one tensor are
    no layers, and routers are left alone.
    Errors: OptionError for a model of no known family, or a layer that is not made of linear ones
    (packed weights).
    """
    found: dict[str, None] = {}
    for block in blocks(model):
        for name in dict.fromkeys(_named(block)):
            module = model.get_submodule(name)
            inner = [
                f"{name}.{part}".rstrip(".")
                for part, layer in module.named_modules()
                if isinstance(layer, (nn.Linear, Conv1D))
            ]
            if not inner:
                raise OptionError(
                    f"{name} is a {type(module).__name__}, which cannot be fine-tuned: heal before "
                    "weights are packed"
                )
            found |= dict.fromkeys(inner)
    return list(found)


def _named(block: Block) -> Iterator[str]:
    a = block.attention
    yield from (a.query, a.key, a.value, a.output)
    for _, mlp in block.ffns():
        yield from (*mlp.into, mlp.output)
