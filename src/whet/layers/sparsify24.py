"""2:4 sparsity of activations: of every four neighbouring features, two stay.

Rules that choose the two, and what they keep of the values:

- magnitude: the two largest |x|; of equals the first. A total order, so exactly two are kept, and
  NaN comes before everything, so that none is lost from sight.
- mvue: a random two, scaled so that the mean over draws is x. Two features are drawn one after
  the other in proportion to a = |x|: with t = a / sum(a), s_i = sum(a) - a_i, k = t / s and
  K = sum(k), feature i is among them with probability p_i = t_i + a_i (K - k_i), and x_i / p_i is
  kept. The unbiased estimator of least variance among those that keep two of four.
- soft: the two largest, less the third magnitude; continuous in x. Their shrinking is undone on
  average by the factor <x, S(x)> / <S(x), S(x)>.

Sources: ELAS, arXiv 2605.03667; mvue: Chmiel et al., arXiv 2203.10991; soft: S-STE, Hu et al.,
arXiv 2409.09099.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from whet.errors import InputError, OptionError, nearest

Rule24 = Literal["none", "magnitude", "mvue", "soft"]
Gradient24 = Literal["masked", "ste"]

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Sparsity:
    """What sparsifying a tensor met and did.

    zeros: share of entries that were zero before. dropped_energy: share of the sum of squares
    that went; 0 for a tensor of zeros.
    """

    zeros: float
    dropped_energy: float


def check_rule(rule: str, gradient: str) -> None:
    """Errors: OptionError for a name that is not known, or a pair that makes no sense."""
    for field, value, known in (
        ("sparsify", rule, get_args(Rule24)),
        ("gradient", gradient, get_args(Gradient24)),
    ):
        if value not in known:
            raise OptionError(f"{field}={value!r} is unknown: {nearest(value, known)}")
    if rule in ("mvue", "soft") and gradient == "masked":
        raise OptionError(
            f"sparsify={rule!r} needs gradient='ste': what it keeps also depends on what it drops"
        )


def groups(x: Tensor) -> Tensor:
    """x [..., m] as [..., m / 4, 4], a view. Errors: InputError where 4 does not divide m."""
    if not x.dim() or x.shape[-1] % 4:
        raise InputError(f"2:4 sparsity needs a last dimension that 4 divides, got {list(x.shape)}")
    return x.view(*x.shape[:-1], x.shape[-1] // 4, 4)


def keep24(x: Float[Tensor, "*B m"]) -> Bool[Tensor, "*B m"]:
    """True at the two entries of every four with the largest magnitude; of equals at the first."""
    # The bits of a non-negative float order like the float, with NaN above infinity.
    a, b, c, d = groups(x.abs().view(_BITS[x.element_size()])).unbind(-1)
    ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d
    # An entry stays that beats two of the other three.
    kept = (
        _two_of(ab, ac, ad),
        _two_of(~ab, bc, bd),
        _two_of(~ac, ~bc, cd),
        _two_of(~ad, ~bd, ~cd),
    )
    return torch.stack(kept, -1).flatten(-2)


def magnitude24(x: Float[Tensor, "*B m"]) -> Float[Tensor, "*B m"]:
    """x where `keep24`, 0 elsewhere."""
    return torch.where(keep24(x), x, 0)


def select24(x: Float[Tensor, "*B m"], keep: Bool[Tensor, "*B m"]) -> Float[Tensor, "*B m"]:
    """torch.where(keep, x, 0) without a gradient, several times as fast on a CPU."""
    return (x.detach().view(_BITS[x.element_size()]) * keep).view(x.dtype)


def inclusion24(x: Float[Tensor, "*B m"]) -> Float[Tensor, "*B m"]:
    """Probability with which `mvue24` keeps each entry; a group's add up to 2.

    Groups with at most two entries that are not zero keep those surely (and add up to fewer).
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).abs()
    a = groups(wide)
    others = torch.stack([a[..., [j for j in range(4) if j != i]].sum(-1) for i in range(4)], -1)
    first = a / a.sum(-1, keepdim=True)
    k = first / others
    p = first + a * (k.sum(-1, keepdim=True) - k)
    sure = (a != 0).sum(-1, keepdim=True) <= 2
    return torch.where(sure, (a != 0).to(a.dtype), p).flatten(-2)


def draw24(
    x: Float[Tensor, "*B m"], generator: torch.Generator | None = None
) -> Bool[Tensor, "*B m"]:
    """Two entries of every four, drawn without replacement in proportion to their magnitude."""
    # A race: of exponential times with rates a_i the two shortest come in that law's order.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    times = torch.empty(wide.shape, dtype=wide.dtype).exponential_(generator=generator)
    return keep24(wide.abs() / times.to(wide.device))


def scale_drawn24(x: Float[Tensor, "*B m"], drawn: Bool[Tensor, "*B m"]) -> Float[Tensor, "*B m"]:
    """x / p where `drawn`, 0 elsewhere."""
    return torch.where(drawn & (x != 0), x / inclusion24(x).to(x.dtype), 0)


def mvue24(
    x: Float[Tensor, "*B m"], generator: torch.Generator | None = None
) -> Float[Tensor, "*B m"]:
    """A random x with two entries of every four and mean x. For training only.

    generator: of the CPU, whatever the device of x.
    """
    return scale_drawn24(x, draw24(x, generator))


def soft24(x: Float[Tensor, "*B m"]) -> Float[Tensor, "*B m"]:
    """The two largest of every four less the third magnitude, with their signs; 0 elsewhere."""
    keep, size = keep24(x), x.abs()
    third = groups(torch.where(keep, 0, size)).amax(-1, keepdim=True)
    shrunk = (groups(size) - third).flatten(-2)
    return torch.where(keep, x.sign() * shrunk, 0)


def soft_scale(x: Float[Tensor, "*B m"]) -> Float[Tensor, ""]:
    """The factor that brings soft24(x) nearest to x in squares; 1 where that is all zeros."""
    soft = soft24(x)
    energy = soft.square().sum()
    return torch.where(energy > 0, (x * soft).sum() / energy, 1)


def sparsity24(x: Float[Tensor, "*B m"]) -> Sparsity:
    """Zeros of x, and what the magnitude rule drops of it."""
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    energy = float(wide.square().sum())
    dropped = float(torch.where(keep24(wide), 0, wide).square().sum())
    zeros = float((wide == 0).to(torch.float32).mean())
    return Sparsity(zeros=zeros, dropped_energy=dropped / energy if energy else 0.0)


def _two_of(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a & b) | (a & c) | (b & c)
