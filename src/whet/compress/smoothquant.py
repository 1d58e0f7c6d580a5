"""SmoothQuant: part of the activations' range moved into the weights.

Xiao et al., arXiv 2211.10438, equation 4: with the migration strength α,

    s_j = max|X_j|^α / max|W_j|^(1 - α),     X -> X / s,     W -> W s,

where W_j are the weights of channel j in all the layers that read it. α = 0.5; 0.8 to 0.85 for
models with strong outliers. `folding` puts s into the weights.

Deviation: a channel that was never other than 0, or that no weight reads, keeps s = 1 (the
released code gives it 10⁻⁵ or so).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from whet.compress.result import check_weight
from whet.compress.statistics import InputStatistics
from whet.errors import InputError, OptionError

# As in the released code: nothing is scaled by less.
_LEAST = 1e-5


@torch.no_grad()
def smoothing_scale(
    weights: Sequence[Tensor], statistics: InputStatistics, alpha: float = 0.5
) -> Float64[Tensor, " I"]:
    """s for layers [out, in] that read the same input; outputs may differ in number.

    Errors: OptionError for alpha outside [0, 1]; InputError for no weights; those of
    `result.check_weight` and `InputStatistics.check`.
    """
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha={alpha:g} must be between 0 and 1")
    if not weights:
        raise InputError("weights are empty: at least one layer must read the input")
    for weight in weights:
        check_weight(weight)
        statistics.check(weight.shape[1])
    of_weight = torch.stack([w.double().abs().amax(0) for w in weights]).amax(0)
    scale = statistics.abs_max.pow(alpha) / of_weight.clamp(min=_LEAST).pow(1 - alpha)
    unused = (statistics.abs_max == 0) | (of_weight == 0)
    return scale.clamp(min=_LEAST).masked_fill(unused, 1)
