"""OWL: how much of each layer to prune, from how many outliers it has.

Yin et al., arXiv 2310.05175. With A = |W| · ‖X‖₂ the scores of Wanda, the outlier ratio of a
layer (in practice: of all linear layers of a block together) is the percentage of its scores
above M times their mean. Ratios r_l become densities

    g = 2 λ (r - min r) / (max r - min r),     density = g - mean(g) + (1 - s),

so that layers with more outliers keep more, none is further than 2 λ from another, and the mean
sparsity is s. The paper's M = 5 and λ = 0.08 are the defaults (the released code has M = 3).

Deviations: where all ratios are equal the released code divides by 0; here all layers get s.
Layers may differ in size: the mean is weighted with it. The released code lifts a sparsity that
is not above 0 to 0.01; so do we, and cut one above 0.99, and the result says that the mean has
moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.compress.masks import check_sparsity
from whet.errors import InputError, NonFiniteError, OptionError

_LEAST, _MOST = 0.01, 0.99


@dataclass(frozen=True)
class Allocation:
    """Sparsity of every layer; `mean` of them all, weighted with their sizes."""

    sparsities: tuple[float, ...]
    mean: float
    notes: tuple[str, ...] = ()


@torch.no_grad()
def outlier_ratio(scores: Sequence[Tensor], multiple: float = 5.0) -> float:
    """Percentage of the scores of one block's layers that exceed `multiple` times their mean.

    scores: one matrix for each layer, of any shapes (`wanda.wanda_scores`).

    Errors: InputError for no scores; NonFiniteError for NaN or infinity among them.
    """
    count = sum(s.numel() for s in scores)
    if not count:
        raise InputError("scores are empty: the outlier ratio of a block needs some")
    limit = multiple * sum(float(s.double().sum()) for s in scores) / count
    if not limit < float("inf"):
        raise NonFiniteError("scores hold NaN or infinity")
    return 100 * sum(int((s.double() > limit).sum()) for s in scores) / count


def owl_sparsities(
    ratios: Sequence[float],
    sparsity: float,
    *,
    spread: float = 0.08,
    sizes: Sequence[int] | None = None,
) -> Allocation:
    """Sparsities of layers with these outlier ratios.

    spread: λ. sizes: weights of each layer; None: all alike.
    Errors: OptionError for a sparsity outside [0, 1) or a spread below 0; InputError where there
    are no ratios, or sizes do not fit; NonFiniteError for a ratio that is no number.
    """
    check_sparsity(sparsity)
    if not 0 <= spread < float("inf"):
        raise OptionError(f"spread={spread:g} must be at least 0")
    sizes = [1] * len(ratios) if sizes is None else sizes
    if not ratios or len(sizes) != len(ratios) or min(sizes) < 1:
        raise InputError(
            f"{len(ratios)} ratios and {len(sizes)} sizes: one size of at least 1 is needed for "
            "every ratio, and one ratio at least"
        )
    low, high = min(ratios), max(ratios)
    if not all(abs(r) < float("inf") for r in ratios):
        raise NonFiniteError(f"an outlier ratio is not a number: {list(ratios)}")
    if high == low:
        return Allocation((float(sparsity),) * len(ratios), float(sparsity))
    gain = [2 * spread * (r - low) / (high - low) for r in ratios]
    centre = _mean(gain, sizes)
    raw = [sparsity - g + centre for g in gain]
    found = [min(max(s, _LEAST), _MOST) if not 0 < s <= _MOST else s for s in raw]
    changed = [i for i, (a, b) in enumerate(zip(raw, found, strict=True)) if a != b]
    mean = _mean(found, sizes)
    if not changed:
        return Allocation(tuple(found), mean)
    note = (
        f"spread={spread:g} asks layers {changed} for a sparsity outside (0, {_MOST}]: "
        f"cut off, which makes the mean {mean:.4f} and not {sparsity:g}"
    )
    return Allocation(tuple(found), mean, (note,))


def _mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    return sum(v * n for v, n in zip(values, sizes, strict=True)) / sum(sizes)
