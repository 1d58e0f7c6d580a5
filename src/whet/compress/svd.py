"""Low-rank layers: W as the product of two thin matrices, by singular values.

With W S = U Σ Vᵀ and U_r the first r columns of U, the product is

    W' = U_r U_rᵀ W  =  U_r Σ_r V_rᵀ S⁻¹  (where S has an inverse),

which of all matrices of rank r makes ‖(W - W') S‖ least (Eckart and Young). What S is:

- I: plain truncation, without data;
- diag(mean|x|^α), α = 0.5: ASVD, Yuan et al., arXiv 2312.05821;
- the lower Cholesky factor of Σ x xᵀ: SVD-LLM, Wang et al., arXiv 2403.07378; then
  ‖(W - W') S‖² is the squared error of the layer's outputs over the calibration tokens.

Deviation: the papers invert S, and split Σ between the factors; here the factors are U_r, with
orthonormal columns, and U_rᵀ W, which need no inverse, so that channels that were never other
than 0, or a singular Gram matrix, do no harm.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from whet.compress._linalg import check_damp, lower_factor
from whet.compress.result import FactoredLinear, LayerReport, check_weight
from whet.compress.statistics import InputStatistics
from whet.errors import NonFiniteError, OptionError


def rank_of_budget(outputs: int, inputs: int, keep: float) -> int:
    """Largest rank r with r (out + in) <= keep · out · in parameters.

    Errors: OptionError for keep outside (0, 1], or so small that not even rank 1 fits.
    """
    if not 0 < keep <= 1:
        raise OptionError(f"keep={keep:g} must be above 0 and at most 1")
    rank = math.floor(keep * outputs * inputs / (outputs + inputs) + 1e-9)
    if rank < 1:
        least = (outputs + inputs) / (outputs * inputs)
        raise OptionError(
            f"keep={keep:g} leaves no rank for a {outputs} x {inputs} layer: "
            f"it must be at least {least:.4g}"
        )
    return rank


@torch.no_grad()
def svd(weight: Float[Tensor, "O I"], rank: int) -> FactoredLinear:
    """The nearest weight of that rank.

    Errors: OptionError for a rank outside 1..min(out, in); those of `result.check_weight`.
    """
    _check(weight, rank)
    return _project(weight, weight.double(), rank, LayerReport("svd"))


@torch.no_grad()
def svd_diagonal(
    weight: Float[Tensor, "O I"], statistics: InputStatistics, rank: int, *, alpha: float = 0.5
) -> FactoredLinear:
    """ASVD: errors count by the strength of their input channel.

    Where no input was seen, plain truncation, and the report says so.
    Errors: OptionError for alpha below 0; those of `svd` and `InputStatistics.check`.
    """
    _check(weight, rank)
    statistics.check(weight.shape[1])
    if not 0 <= alpha < math.inf:
        raise OptionError(f"alpha={alpha:g} must be at least 0")
    if not statistics.seen:
        return _unseen(weight, rank)
    size = statistics.abs_sum / statistics.count
    dead = int((size == 0).sum())
    return _project(
        weight, weight.double() * size.pow(alpha), rank, LayerReport("svd_diagonal", dead=dead)
    )


@torch.no_grad()
def svd_whitened(
    weight: Float[Tensor, "O I"], statistics: InputStatistics, rank: int, *, damp: float = 0.0
) -> FactoredLinear:
    """SVD-LLM: the weight of that rank whose outputs are nearest on the calibration tokens.

    damp: share of the mean of the Gram matrix' diagonal that is added to it; raised (from 10⁻⁶)
    where it is singular. Where there is no Cholesky factor, or no input was seen, plain
    truncation, and the report says so. Its loss is the squared output error, damping included.
    Errors: OptionError for a damp below 0; those of `svd` and `InputStatistics.check`.
    """
    _check(weight, rank)
    statistics.check(weight.shape[1], gram=True)
    check_damp(damp)
    if not statistics.seen:
        return _unseen(weight, rank)
    assert statistics.gram is not None
    found = lower_factor(statistics.gram / statistics.count, damp)
    if found is None:
        note = "the Gram matrix has no Cholesky factor: truncated without data"
        return _project(weight, weight.double(), rank, LayerReport("svd", notes=(note,)))
    factor, used = found
    notes = () if used == damp else (f"damp was raised from {damp:g} to {used:g}",)
    dead = int((statistics.square_sum == 0).sum())
    report = LayerReport("svd_whitened", damp=used, dead=dead, notes=notes)
    return _project(weight, weight.double() @ factor, rank, report)


def _project(weight: Tensor, target: Tensor, rank: int, report: LayerReport) -> FactoredLinear:
    """W on the first left singular vectors of the target."""
    u, singular, _ = torch.linalg.svd(target, full_matrices=False)
    if report.method == "svd_whitened":
        report = replace(report, loss=float(singular[rank:].square().sum()))
    up = u[:, :rank]
    down = (up.t() @ weight.double()).to(weight.dtype)
    if not bool(down.isfinite().all()):
        raise NonFiniteError(f"the factors of a weight do not fit {weight.dtype}")
    return FactoredLinear(up.to(weight.dtype).contiguous(), down, report)


def _unseen(weight: Tensor, rank: int) -> FactoredLinear:
    note = "no input was seen: truncated without data"
    return _project(weight, weight.double(), rank, LayerReport("svd", notes=(note,)))


def _check(weight: Tensor, rank: int) -> None:
    check_weight(weight)
    if not 1 <= rank <= min(weight.shape):
        raise OptionError(
            f"rank={rank} must be between 1 and {min(weight.shape)} for a weight of shape "
            f"{list(weight.shape)}"
        )
