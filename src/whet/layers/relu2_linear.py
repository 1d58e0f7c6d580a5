"""A linear layer of squared rectified activations, which may be 2:4 sparse, in little memory.

Of ELAS (arXiv 2605.03667), the middle of the feed-forward layer, for pre-activations y1:

    y2 = relu(y1)²,   y2s = S24(y2),   h = y2s Wᵀ

and back, with the mask M of what S24 kept held constant:

    dW = dhᵀ y2s,   dy2 = dh W,   dy1 = 2 relu(y1) dy2 (⊙ M).

gradient "masked" (with M) is the exact gradient of the sparsified layer, and needs relu(y1) only
where y2s is: that is kept packed, 0.53 to 0.56 of the dense tensor, and y2s is squared again on
the way back. "ste" (straight-through, without M) sends gradients to what was dropped too, and
keeps relu(y1) whole. Either way y2 itself is not kept, whereas autograd keeps it and relu(y1).

Deviations: relu(y1) is packed where the kept y2s would do (its root is relu(y1)), so that nothing
is rounded twice; products on the way back are dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from whet.errors import InputError
from whet.layers.packing24 import Packed24, pack_kept24, sparse_product, unpack24
from whet.layers.sparsify24 import (
    Gradient24,
    Rule24,
    check_rule,
    draw24,
    keep24,
    scale_drawn24,
    select24,
    soft24,
)

_CACHE_VALUES = 2**18  # a mebibyte in float32


def relu2_linear(
    y1: Float[Tensor, "*B m"],
    weight: Float[Tensor, "n width"],  # of width m, else it is refused
    *,
    sparsify: Rule24 = "magnitude",
    gradient: Gradient24 = "masked",
    soft_scale: Float[Tensor, ""] | None = None,
    generator: torch.Generator | None = None,
    kernels: bool = False,
) -> Float[Tensor, "*B n"]:
    """S24(relu(y1)²) @ weight.T.

    sparsify: "none" is the dense layer; its activation is recomputed too. soft_scale: the factor
    of "soft", 1 where None. generator: of the CPU, for "mvue" (torch's own where None). kernels:
    the forward product by NVIDIA's 2:4 kernels; ask `packing24.faster_here` first. In float16 a
    square overflows from y1 = 256 on: prefer bfloat16.
    Errors: OptionError for an unknown rule or gradient, or "masked" with "mvue" or "soft";
    InputError for shapes that do not fit.
    """
    check_rule(sparsify, gradient if sparsify != "none" else "ste")
    if y1.shape[-1:] != weight.shape[1:]:
        raise InputError(
            f"y1 has shape {list(y1.shape)} and weight {list(weight.shape)}: "
            "their last dimensions must agree"
        )
    rows = y1.reshape(-1, y1.shape[-1])
    learnt = torch.is_grad_enabled()  # inside a Function it never is
    h: Tensor = _Relu2Linear.apply(  # type: ignore[no-untyped-call]
        rows, weight, sparsify, gradient == "masked", soft_scale, generator, kernels, learnt
    )
    return h.view(*y1.shape[:-1], len(weight))


class _Relu2Linear(torch.autograd.Function):
    """A few rows at a time, so that no more than inputs, outputs and what is kept is ever held."""

    @staticmethod
    def forward(
        ctx: Any,
        y1: Tensor,
        weight: Tensor,
        rule: Rule24,
        masked: bool,
        soft_scale: Tensor | None,
        generator: torch.Generator | None,
        kernels: bool,
        learnt: bool,
    ) -> Tensor:
        ctx.rule, ctx.packed = rule, rule == "magnitude" and masked
        needed = learnt and any(ctx.needs_input_grad)
        rows, width = y1.shape
        cast = weight.to(y1.dtype)
        h = y1.new_empty(rows, len(weight))
        root = torch.empty_like(y1) if needed and not ctx.packed else None
        values = y1.new_empty(rows, width // 2) if needed and ctx.packed else None
        # Of a random draw, which cannot be made again, the places alone are kept.
        drawn = needed and rule == "mvue"
        places = None
        if values is not None or drawn:
            places = torch.empty(rows, -(-width // 8), dtype=torch.uint8, device=y1.device)
        for part in _parts(y1, width):
            r = y1[part].relu()
            y2 = r * r
            keep = None
            if rule == "magnitude":
                keep = keep24(y2)
            elif rule == "mvue":
                keep = draw24(y2, generator)
            if root is not None:
                root[part] = r
            if places is not None and keep is not None:
                packed = pack_kept24(r, keep)
                places[part] = packed.places
                if values is not None:
                    values[part] = packed.values
            y = _sparsified(y2, rule, keep, soft_scale)
            h[part] = sparse_product(y, cast) if kernels and rule != "none" else y @ cast.t()
        ctx.save_for_backward(weight, root, values, places, soft_scale)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        weight, root, values, places, scale = ctx.saved_tensors
        kept = values if root is None else root
        cast = weight.to(kept.dtype)
        width = weight.shape[1]
        with_y1, with_weight = ctx.needs_input_grad[:2]
        dy1 = kept.new_empty(len(dh), width) if with_y1 else None
        # Parts are added up in float32 at least: 16 bits would round every sum.
        wide = torch.promote_types(kept.dtype, torch.float32)
        dweight = torch.zeros_like(weight, dtype=wide) if with_weight else None
        for part in _parts(dh, width):
            upstream = dh[part].to(kept.dtype)
            # Zero where y2 was dropped, if it is packed: that is the mask M.
            r = unpack24(Packed24(values[part], places[part])) if root is None else root[part]
            if dweight is not None:
                keep = None
                if root is not None and ctx.rule == "magnitude":
                    keep = keep24(r * r)
                elif ctx.rule == "mvue":
                    keep = unpack24(Packed24(torch.ones_like(r[:, ::2]), places[part])) != 0
                rule: Rule24 = "none" if root is None else ctx.rule
                dweight += upstream.t() @ _sparsified(r * r, rule, keep, scale)
            if dy1 is not None:
                torch.mm(upstream, cast, out=dy1[part]).mul_(r).mul_(2)
        if dweight is not None:
            dweight = dweight.to(weight.dtype)
        return dy1, dweight, None, None, None, None, None, None


def _parts(rows: Tensor, width: int) -> Iterator[slice]:
    """Runs of rows whose work fits a cache (on a GPU: fills it), 64 rows or a multiple."""
    values = 2**25 if rows.is_cuda else _CACHE_VALUES
    size = max(1, values // width // 64) * 64
    return (slice(start, start + size) for start in range(0, len(rows), size))


def _sparsified(y2: Tensor, rule: Rule24, keep: Tensor | None, scale: Tensor | None) -> Tensor:
    if rule == "none":
        return y2
    if rule == "soft":
        return soft24(y2) if scale is None else soft24(y2) * scale.to(y2.dtype)
    assert keep is not None
    return select24(y2, keep) if rule == "magnitude" else scale_drawn24(y2, keep)
