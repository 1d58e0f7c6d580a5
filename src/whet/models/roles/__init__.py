"""Roles and blocks: where every family keeps its axes, so that a method is written once.

    for ffn in axes(model, "ffn"):
        size = magnitudes(model, ffn)
        keep(model, ffn, size.topk(ffn.units // 2).indices.sort().values)

An axis is a set of roles (sides of tensors) that must be permuted, cut or rotated together:

- residual: the stream that all blocks read and write, with norm gains and embeddings.
- ffn, shared_ffn, expert_ffn: inner channels of an MLP, of the shared expert, of each expert.
- kv_groups: a key-value head with its query heads. heads: query heads within each group.
- values, keys: dimensions of a head that only values, or queries and keys, see; keys where
  neither rotary angles nor norms bind them.
- rotary: pairs of dimensions of queries and keys, with their frequencies, model-wide.
- experts: experts of a mixture with their rows of the router.
- conditioning, timestep_ffn (DiT): inner channels of each block's time and class embedding.

Frequencies of rotary angles and DiT's table of positions are buffers that checkpoints do not
store, so a model whose rotary axis (DiT: residual axis) was permuted is not a stock one any more.
"""

from whet.models.roles.axes import axes, axis, blocks, untouched
from whet.models.roles.edit import keep, magnitudes, permute, rotate, units_of, zero
from whet.models.roles.families import FAMILIES, find_family
from whet.models.roles.fold import fold_norms, untie
from whet.models.roles.names import Attention, Experts, Family, Mlp
from whet.models.roles.structure import Axis, Block, Role

__all__ = [
    "FAMILIES",
    "Attention",
    "Axis",
    "Block",
    "Experts",
    "Family",
    "Mlp",
    "Role",
    "axes",
    "axis",
    "blocks",
    "find_family",
    "fold_norms",
    "keep",
    "magnitudes",
    "permute",
    "rotate",
    "units_of",
    "untie",
    "untouched",
    "zero",
]
