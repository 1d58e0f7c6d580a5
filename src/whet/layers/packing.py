"""Quantized weights as the compressed-tensors layout stores them, and its `quantization_config`.

Of a linear layer [out, in] with b-bit weights (version 0.20; older ones agree for 4 and 8 bits):

- "pack-quantized" (weights only): weight_packed int32 [out, in b / 32], weight_scale
  [out, groups], weight_shape int64 [2]; asymmetric: weight_zero_point int32 [out b / 32, groups],
  packed along dimension 0; columns that do not share a scale with their neighbours: weight_g_idx
  int32 [in];
- "int-quantized" (8-bit weights, activations quantized when they are seen): weight int8
  [out, in], weight_scale [out, 1].

A packed integer is stored as q + 2^(b-1), the first in the lowest bits of the word; what fills
the last word is 0. Widths of 3, 5, 6 and 7 bits are not written: their packing has changed
between versions. 2:4 sparse weights have no layout of their own any more: they are stored dense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from whet.errors import CheckpointError, InputError, OptionError
from whet.layers.quantizer import Grid, Quantized, Scales

ActOrder = Literal["weight", "group"]


def pack_integers(
    values: Int[Tensor, "R C"], bits: int, *, dim: Literal[0, 1] = 1
) -> Int32[Tensor, "r c"]:
    """Signed b-bit integers, 32 / b to a word along `dim`.

    Errors: OptionError for bits other than 4 and 8; InputError for integers out of range.
    """
    _check_bits(bits)
    top = 2 ** (bits - 1)
    if values.numel() and not -top <= int(values.min()) <= int(values.max()) < top:
        raise InputError(
            f"values lie between {int(values.min())} and {int(values.max())}: "
            f"{bits} bits hold {-top} to {top - 1}"
        )
    per_word = 32 // bits
    unsigned = (values if dim == 1 else values.t()).to(torch.int32) + top
    rows, columns = unsigned.shape
    unsigned = torch.nn.functional.pad(unsigned, (0, -columns % per_word))
    words = unsigned.new_zeros((rows, unsigned.shape[1] // per_word))
    for place in range(per_word):
        words |= unsigned[:, place::per_word] << (bits * place)
    return words if dim == 1 else words.t().contiguous()


def unpack_integers(
    packed: Int32[Tensor, "r c"], bits: int, count: int, *, dim: Literal[0, 1] = 1
) -> Int[Tensor, "R C"]:
    """What `pack_integers` packed, `count` of them along `dim`, as int8.

    Errors: OptionError for bits other than 4 and 8; InputError where `count` needs another
    number of words.
    """
    _check_bits(bits)
    per_word = 32 // bits
    words = packed if dim == 1 else packed.t()
    if words.shape[1] != -(-count // per_word):
        raise InputError(
            f"{count} integers of {bits} bits need {-(-count // per_word)} words, "
            f"not {words.shape[1]}"
        )
    mask, top = 2**bits - 1, 2 ** (bits - 1)
    lanes = [((words >> (bits * place)) & mask) - top for place in range(per_word)]
    values = torch.stack(lanes, -1).flatten(1)[:, :count].to(torch.int8)
    return values if dim == 1 else values.t().contiguous()


def packed_tensors(quantized: Quantized) -> dict[str, Tensor]:
    """The tensors of "pack-quantized", by their names below the layer's.

    Errors: OptionError for a grid that the layout has no place for.
    """
    grid = quantized.grid
    _check_bits(grid.bits)
    if grid.granularity not in ("channel", "group"):
        raise OptionError(
            f"granularity={grid.granularity!r} cannot be packed: it must be 'channel' or 'group'"
        )
    tensors = {
        "weight_packed": pack_integers(quantized.values, grid.bits),
        "weight_scale": quantized.scales.scale,
        "weight_shape": torch.tensor(quantized.values.shape, dtype=torch.int64),
    }
    if quantized.scales.zero_point is not None:
        zero = pack_integers(quantized.scales.zero_point, grid.bits, dim=0)
        tensors["weight_zero_point"] = zero
    if quantized.group_index is not None:
        tensors["weight_g_idx"] = quantized.group_index.to(torch.int32)
    return tensors


def int8_tensors(quantized: Quantized) -> dict[str, Tensor]:
    """The tensors of "int-quantized", by their names below the layer's.

    Errors: OptionError for a grid other than 8 bits, symmetric, one scale a row.
    """
    grid = quantized.grid
    if (grid.bits, grid.symmetric, grid.granularity) != (8, True, "channel"):
        raise OptionError(
            f"int-quantized weights need bits=8, symmetric=True and granularity='channel', "
            f"not bits={grid.bits}, symmetric={grid.symmetric}, granularity={grid.granularity!r}"
        )
    return {"weight": quantized.values, "weight_scale": quantized.scales.scale}


def stored_weight(tensors: Mapping[str, Tensor], grid: Grid) -> Quantized:
    """What either layout holds. grid: see `weight_grid`.

    Errors: CheckpointError naming a tensor that is missing or of another shape or type.
    """
    packed = "weight_packed" in tensors
    for name in ("weight_scale", "weight_shape" if packed else "weight"):
        if name not in tensors:
            raise CheckpointError(f"{name} is missing from a quantized layer: it has {[*tensors]}")
    if packed:
        rows, columns = (int(n) for n in tensors["weight_shape"])
        words = _expect(tensors, "weight_packed", (rows, -(-columns * grid.bits // 32)))
        values = unpack_integers(words, grid.bits, columns)
    else:
        values = tensors["weight"]
        rows, columns = values.shape
        _expect(tensors, "weight", (rows, columns), torch.int8)
    groups = grid.groups(columns)
    scale = _expect(tensors, "weight_scale", (rows, groups), None)
    zero = index = None
    if not grid.symmetric:
        words = _expect(tensors, "weight_zero_point", (-(-rows * grid.bits // 32), groups))
        zero = unpack_integers(words, grid.bits, rows, dim=0)
    if "weight_g_idx" in tensors:
        index = _expect(tensors, "weight_g_idx", (columns,)).to(torch.int64)
    return Quantized(values, Scales(scale, zero), grid, index)


def quantization_config(
    weights: Grid,
    *,
    activations: Grid | None = None,
    act_order: ActOrder | None = None,
    targets: Sequence[str] = ("Linear",),
    ignore: Sequence[str] = ("lm_head",),
) -> dict[str, Any]:
    """The dictionary for config.json: "pack-quantized" without `activations`, else "int-quantized".

    act_order: "group" where layers have weight_g_idx (compressed-tensors has stopped reading it
    in 0.20; older versions and engines do), "weight" where columns were merely taken in another
    order. targets, ignore: names of layer classes or of layers, or "re:" and a pattern; routers,
    norms and a tied head belong in `ignore`.
    Errors: OptionError for grids that have no layout.
    """
    if activations is None:
        _check_bits(weights.bits)
        if weights.granularity not in ("channel", "group"):
            raise OptionError(
                f"weights.granularity={weights.granularity!r} must be 'channel' or 'group'"
            )
    elif (weights.bits, weights.symmetric, weights.granularity, activations.bits) != (
        8,
        True,
        "channel",
        8,
    ):
        raise OptionError(
            "quantized activations need 8 bits, and symmetric 8-bit weights with "
            "granularity='channel'"
        )
    elif activations.granularity != "token":
        raise OptionError(f"activations.granularity={activations.granularity!r} must be 'token'")
    arguments = _arguments(weights)
    if act_order is not None:
        arguments["actorder"] = act_order
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if activations is None else "int-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(ignore),
        "config_groups": {
            "group_0": {
                "targets": list(targets),
                "weights": arguments,
                "input_activations": None if activations is None else _arguments(activations),
                "output_activations": None,
            }
        },
    }


def weight_grid(config: Mapping[str, Any], group: str = "group_0") -> Grid:
    """The grid of the weights that a `quantization_config` describes.

    Errors: CheckpointError for one that whet does not read.
    """
    try:
        entry = config["config_groups"][group]["weights"]
        if entry.get("type", "int") != "int":
            raise CheckpointError(f"quantized weights of type {entry['type']!r} are not read")
        return Grid(
            bits=entry["num_bits"],
            symmetric=entry.get("symmetric", True),
            granularity=entry["strategy"],
            group_size=entry.get("group_size"),
        )
    except (KeyError, TypeError, OptionError) as error:
        raise CheckpointError(f"quantization_config is not understood: {error!r}") from error


def _arguments(grid: Grid) -> dict[str, Any]:
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": grid.granularity,
        "group_size": grid.group_size,
        "dynamic": grid.granularity == "token",
    }


def _check_bits(bits: int) -> None:
    if bits not in (4, 8):
        raise OptionError(f"bits={bits} cannot be packed: it must be 4 or 8")


def _expect(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype | None = torch.int32,
) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{name} is missing from a quantized layer: it has {[*tensors]}")
    found = tensors[name]
    if tuple(found.shape) != shape or (dtype is not None and found.dtype != dtype):
        raise CheckpointError(
            f"{name} is {found.dtype} of shape {list(found.shape)}: "
            f"{dtype or 'a floating type'} of shape {list(shape)} is needed"
        )
    return found
