"""Gram matrices factored, and the sweep of SparseGPT and GPTQ over a layer's columns.

Both take the columns in turn, change each (to zeros, or onto a grid) and let the columns after it
make up for the error in the least-squares sense of H = Σ x xᵀ / n + damping: with U the upper
factor of H⁻¹ = Uᵀ U, column j moves by w_j - v_j and

    e_j = (w_j - v_j) / U_jj,     w_k -= e_j U_jk for k > j;     total loss = Σ e_j².

Here H = R Rᵀ with R upper triangular, R = U⁻¹ (the Cholesky factor of H with its order turned
round), and no inverse of H is made. With D = W - V of the columns done, those of a block b are
brought up to date by

    w_b = W_b + (D R_·b) U_bb,     U_bb = R_bb⁻¹,

one factorization where H⁻¹ and its factor take the work of four, and one matrix product per
block. Inside a block the updates are those above.

Sources: SparseGPT, arXiv 2301.00774; GPTQ, arXiv 2210.17323, section 3.3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from whet.compress.statistics import InputStatistics
from whet.errors import OptionError

# How often the damping is raised, by a factor of ten, before giving up.
_RAISES = 4
_LEAST_DAMP = 1e-6


def lower_factor(
    matrix: Float64[Tensor, "N N"], damp: float
) -> tuple[Float64[Tensor, "N N"], float] | None:
    """Lower Cholesky factor of matrix + damp · (mean of its diagonal) · I, and the damp it took.

    Where the factorization breaks down, damp rises tenfold (from 1e-6 where it was 0), four times
    at most; None if that does not help. The matrix' diagonal is overwritten.
    """
    diagonal = matrix.diagonal()
    undamped, mean = diagonal.clone(), diagonal.mean()
    for _ in range(_RAISES + 1):
        diagonal.copy_(undamped + damp * mean)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        # The sum of what is not finite is not: asking every entry takes 1.3 times the factor.
        if not int(failed) and bool(factor.sum().isfinite()):
            return factor, damp
        damp = max(10 * damp, _LEAST_DAMP)
    return None


@dataclass(frozen=True)
class Factored:
    """factor: R upper triangular with R Rᵀ = H + damping, None where there is none; damp: what
    that took. dead: channels that were 0 in every token. order: of the columns, if it is not
    their own."""

    factor: Float[Tensor, "I I"] | None
    damp: float
    dead: Bool[Tensor, " I"]
    order: Int[Tensor, " I"] | None


def factored_gram(
    statistics: InputStatistics, damp: float, dtype: torch.dtype, *, act_order: bool = False
) -> Factored:
    """H = Σ x xᵀ / n, factored. Dead channels get the mean of the others' diagonal: they are
    coupled with none. act_order: columns of strong inputs first."""
    assert statistics.gram is not None  # every caller has checked
    gram, count = statistics.gram, max(1, statistics.count)
    diagonal = gram.diagonal() / count
    dead = diagonal == 0
    if bool(dead.all()):
        return Factored(None, damp, dead, None)
    diagonal[dead] = diagonal[~dead].mean()
    order = diagonal.argsort(descending=True, stable=True) if act_order else None
    if order is not None:
        gram, diagonal = gram[order][:, order], diagonal[order]
    # One copy of the matrix and no more: of the largest layers, it is what memory goes to.
    hessian = gram.flip(0, 1).div_(count)
    del gram
    hessian.diagonal().copy_(diagonal.flip(0))
    found = lower_factor(hessian, damp)
    del hessian
    if found is None:
        return Factored(None, damp, dead, order)
    return Factored(found[0].to(dtype).flip(0, 1), found[1], dead, order)


class ColumnRule(ABC):
    """What becomes of the columns. Tensors are transposed, [in, out]: a column is contiguous."""

    @abstractmethod
    def start_block(self, current: Float[Tensor, "b O"], factor: Float[Tensor, " b"]) -> None:
        """Called with a block's columns, up to date with all before it, and its 1 / U_jj."""

    @abstractmethod
    def column(self, j: int, current: Float[Tensor, "rest O"]) -> Float[Tensor, " O"]:
        """The new column j. current: it and the rest of its block, up to date."""


def sweep(
    columns: Float[Tensor, "I O"],
    factor: Float[Tensor, "I I"],
    rule: ColumnRule,
    block_size: int,
) -> tuple[Float[Tensor, "I O"], float]:
    """The new columns and the loss Σ e². factor: R, see the module."""
    new = columns.clone()
    difference = torch.zeros_like(columns)
    loss = 0.0
    for start in range(0, len(columns), block_size):
        stop = min(start + block_size, len(columns))
        block = factor[start:stop, start:stop]
        identity = torch.eye(stop - start, dtype=block.dtype, device=block.device)
        inverse = torch.linalg.solve_triangular(block, identity, upper=True)
        current = columns[start:stop].clone()
        if start:
            pending = factor[:start, start:stop].t() @ difference[:start]
            current += inverse.t() @ pending
        diagonal = block.diagonal()
        rule.start_block(current, diagonal)
        errors = torch.empty_like(current)
        for i, pivot in enumerate(diagonal.tolist()):
            value = rule.column(start + i, current[i:])
            new[start + i] = value
            error = errors[i]
            torch.sub(current[i], value, out=error).mul_(pivot)
            current[i + 1 :].addr_(inverse[i, i + 1 :], error, alpha=-1)
        torch.sub(columns[start:stop], new[start:stop], out=difference[start:stop])
        loss += float(errors.square().sum())
    return new, loss


def check_damp(damp: float) -> None:
    """Errors: OptionError for a damp below 0."""
    if not 0 <= damp < float("inf"):
        raise OptionError(f"damp={damp:g} must be at least 0")


def check_sweep(damp: float, block_size: int) -> None:
    """Errors: OptionError for a damp below 0 or a block without columns."""
    check_damp(damp)
    if block_size < 1:
        raise OptionError(f"block_size={block_size} must be at least 1")
