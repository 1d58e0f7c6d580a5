"""Bases of the stream's sites, and how wide each site becomes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from whet.errors import NonFiniteError, OptionError


def principal(
    gram: Float64[Tensor, "F F"], damp: float = 0.01
) -> tuple[Float64[Tensor, " F"], Float64[Tensor, "F F"]]:
    """Eigenvalues of a Gram matrix, largest first, and its eigenvectors as columns.

    damp: share of the mean of the diagonal that is added to it for the decomposition; it moves
    all eigenvalues alike, and is taken off again. Σ ‖x - x Q_D Q_Dᵀ‖² over the tokens whose Gram
    matrix it is equals the sum of the eigenvalues from D on. Errors: NonFiniteError.
    """
    if not bool(gram.isfinite().all()):
        raise NonFiniteError("the Gram matrix of the stream holds NaN or infinity")
    added = damp * gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    values, vectors = torch.linalg.eigh((gram + gram.t()) / 2 + added * eye)
    return (values - added).flip(0), vectors.flip(1)


def orthogonal(
    size: int, generator: torch.Generator, device: torch.device | None = None
) -> Float64[Tensor, "F F"]:
    """An orthogonal matrix, all being equally likely (Haar measure), from a CPU generator.

    device: where it is worked out, and is.
    """
    normal = torch.randn(size, size, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal.to(device))
    turned: Tensor = q * r.diagonal().sign()
    return turned


def discarded(values: Float64[Tensor, " F"]) -> Float64[Tensor, " F+1"]:
    """Share of the stream's energy that goes where the first 0, 1, ..., F entries are kept."""
    positive = values.clamp(min=0)  # below 0 by rounding only
    total = positive.sum()
    if not total > 0:
        return torch.zeros(len(values) + 1, dtype=values.dtype, device=values.device)
    left = torch.cat([positive.flip(0).cumsum(0).flip(0), positive.new_zeros(1)])
    return left / total


def width_of(sparsity: float, full_dim: int, interval: int) -> int:
    """(1 - sparsity) full_dim entries, rounded down to a multiple of `interval`; 0 keeps all.

    Errors: OptionError where nothing would be left.
    """
    if not sparsity:
        return full_dim
    # 0.7 * 10 is 6.9999...: what is meant is 7.
    width = int((1 - sparsity) * full_dim + 1e-9)
    width -= width % interval
    if width < 1:
        raise OptionError(
            f"sparsity={sparsity:g} leaves none of {full_dim} channels in multiples of {interval}"
        )
    return width


def between(ends: Sequence[float], count: int) -> list[float]:
    """`count` numbers from the first to the last of the ends, equally far apart."""
    start, end = ends
    if count == 1:
        return [start]
    return [start + (end - start) * index / (count - 1) for index in range(count)]


def widths_by_share(
    shares: Sequence[Float[Tensor, " N"]],
    fixed: Callable[[list[int]], list[int]],
    parameters: Callable[[list[int]], int],
    budget: int,
    interval: int,
) -> list[int]:
    """Widths that lose least energy over all sites, as shares of each site's, within `budget`.

    Entries are kept, `interval` at a time, where they hold more than some share of their site's
    energy each; the least such share whose widths have at most `budget` parameters.

    shares: lost by every width of every site, as `discarded` gives them. fixed: what becomes of
    widths that cannot be chosen freely. parameters: of a model of these widths. Errors:
    OptionError where even the narrowest widths have more parameters.
    """
    gains: list[
        list[tuple[int, float]]
    ] = []  # of every further step: the width after it, per entry
    for left in shares:
        full = len(left) - 1
        steps = [*range(interval, full, interval), full]
        lost = [float(left[width]) for width in steps]
        gains.append(
            [
                (b, (x - y) / (b - a))
                for a, b, x, y in zip(steps, steps[1:], lost, lost[1:], strict=False)
            ]
        )

    def chosen(level: float) -> list[int]:
        found = []
        for left, site in zip(shares, gains, strict=True):
            kept = itertools.takewhile(lambda step: step[1] > level, site)
            least = min(interval, len(left) - 1)
            found.append(max((width for width, _ in kept), default=least))
        return fixed(found)

    levels = sorted({gain for site in gains for _, gain in site} | {-1.0})
    low, high = 0, len(levels) - 1
    if parameters(chosen(levels[high])) > budget:
        raise OptionError(f"no widths in multiples of {interval} have {budget} parameters or fewer")
    while low < high:
        middle = (low + high) // 2
        if parameters(chosen(levels[middle])) <= budget:
            high = middle
        else:
            low = middle + 1
    return chosen(levels[low])
