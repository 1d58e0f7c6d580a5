"""AWQ: scales that spare the weights of strong inputs, and smaller ranges, both by search.

Lin et al., arXiv 2306.00978. For the layers that read one input x:

    s = mean|x|^α / sqrt(max · min of it),    W -> Q(W s),    x -> x / s,

with α of {0, 1/20, ..., 19/20} for which the layers' outputs change least (section 3.2). Then, for
every group of weights, of max|w| · {1, 0.95, ..., 0.55} the limit for which the group's own part
of the output changes least (the released code's clipping; not for queries and keys, whose
product depends on it). `folding` puts s into the weights and into what makes x.

Deviations: errors are those of the layers' own outputs over all calibration tokens, from the Gram
matrix (the released code runs the attention or MLP around them on a sample); channels that were
never other than 0 count as the weakest other one, and weak ones are lifted to 10⁻⁴ of the
strongest (there: to 10⁻⁴), so that nothing depends on the units of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from whet.compress.folding import multiply_inputs
from whet.compress.result import LayerReport, QuantizedLinear, check_weight, working_type
from whet.compress.rtn import check_weight_grid
from whet.compress.statistics import InputStatistics
from whet.errors import InputError, NonFiniteError, OptionError
from whet.layers.quantizer import Grid, quantize_nearest

_FLOOR = 1e-4


@dataclass(frozen=True)
class ScaleChoice:
    """scale: s of each channel. errors: mean squared output error at every α that was tried, in
    order (infinite where W s did not fit its type)."""

    scale: Float64[Tensor, " I"]
    alpha: float
    errors: tuple[float, ...]


def no_scale(statistics: InputStatistics) -> ScaleChoice:
    """For an input that nothing can be folded into: s = 1."""
    return ScaleChoice(torch.ones_like(statistics.abs_sum), 0.0, ())


@dataclass(frozen=True)
class AWQSite:
    """Quantized layers that read one input, for that input divided by `choice.scale`."""

    choice: ScaleChoice
    linears: tuple[QuantizedLinear, ...]


@torch.no_grad()
def awq_scale(
    weights: Sequence[Tensor], statistics: InputStatistics, grid: Grid, *, steps: int = 20
) -> ScaleChoice:
    """The best s for layers [out, in] that read the same input.

    Errors: OptionError for steps below 1 or a grid of activations; InputError for no weights;
    those of `result.check_weight` and `InputStatistics.check`.
    """
    _check(weights, statistics, grid, steps)
    assert statistics.gram is not None
    choice = ScaleChoice(torch.ones_like(statistics.abs_sum), 0.0, ())
    grams = {w.dtype: _mean_gram(statistics, w) for w in weights}
    errors: list[float] = []
    for i in range(steps if statistics.seen else 1):
        scale = _scale(statistics, i / steps)
        errors.append(sum(_rounding_error(w, scale, grams[w.dtype], grid) for w in weights))
        if i == 0 or errors[-1] < min(errors[:-1]):
            choice = ScaleChoice(scale, i / steps, ())
    return ScaleChoice(choice.scale, choice.alpha, tuple(errors))


@torch.no_grad()
def awq_limits(
    weight: Float[Tensor, "O I"],
    statistics: InputStatistics,
    grid: Grid,
    *,
    steps: int = 20,
    most: float = 0.5,
) -> Float[Tensor, "O G"]:
    """Largest magnitude to leave in every group of a row: see the module.

    statistics: of the input the weight is for (divided by s). steps, most: the limits are
    max|w| (1 - i / steps), shrunk by less than `most`.
    Errors: OptionError for steps below 1, `most` outside [0, 1] or a grid that is not by row or
    group; those of `awq_scale`.
    """
    _check([weight], statistics, grid, steps)
    if not 0 <= most <= 1:
        raise OptionError(f"most={most:g} must be between 0 and 1")
    if grid.granularity == "tensor":
        raise OptionError("granularity='tensor' has one range: clipping needs 'channel' or 'group'")
    groups = grid.groups(weight.shape[1])
    size = weight.shape[1] // groups
    gram = _mean_gram(statistics, weight)
    own = torch.stack([gram[i : i + size, i : i + size] for i in range(0, len(gram), size)])
    wide = weight.to(gram.dtype)
    top = weight.abs().reshape(-1, groups, size).amax(-1)
    best, least = top, torch.full(top.shape, torch.inf, dtype=gram.dtype, device=top.device)
    # At least the range as it is; the share is counted in whole steps.
    for i in range(max(1, int(most * steps + 1e-9))):
        limit = top * (1 - i / steps)
        rounded = quantize_nearest(clip_to(weight, limit), grid).dequantized().to(gram.dtype)
        difference = (rounded - wide).view(-1, groups, size).transpose(0, 1)
        error = ((difference @ own) * difference).sum(-1).t()
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, limit, best)
    return best


@torch.no_grad()
def clip_to(weight: Float[Tensor, "O I"], limit: Float[Tensor, "O G"]) -> Float[Tensor, "O I"]:
    """The weight with every group of a row between -limit and limit."""
    parts = weight.reshape(*limit.shape, -1)
    edge = limit[..., None].to(weight.dtype)
    return torch.minimum(torch.maximum(parts, -edge), edge).flatten(1)


@torch.no_grad()
def awq(
    weights: Sequence[Tensor],
    statistics: InputStatistics,
    grid: Grid,
    *,
    choice: ScaleChoice | None = None,
    clip: bool | Sequence[bool] = True,
    steps: int = 20,
    most: float = 0.5,
) -> AWQSite:
    """Scale, clip and round the layers that read one input.

    choice: scales that were chosen before; None to search for them.
    clip: for all, or one for each (False for queries and keys). The reports' loss is the mean
    squared output error. Where no input was seen, scale and limits stay as they are.
    Errors: InputError where `clip` does not fit; those of `awq_scale` and `awq_limits`.
    """
    clips = [clip] * len(weights) if isinstance(clip, bool) else list(clip)
    if len(clips) != len(weights):
        raise InputError(f"clip has {len(clips)} entries for {len(weights)} weights")
    if choice is None:
        choice = awq_scale(weights, statistics, grid, steps=steps)
    else:
        _check(weights, statistics, grid, steps)
    scaled = statistics.divided(choice.scale)
    linears = []
    for weight, shrink in zip(weights, clips, strict=True):
        target = multiply_inputs(weight, choice.scale)
        narrowed = target
        if shrink and statistics.seen:
            limits = awq_limits(target, scaled, grid, steps=steps, most=most)
            narrowed = clip_to(target, limits)
        quantized = quantize_nearest(narrowed, grid)
        gram = _mean_gram(scaled, weight)
        loss = _quadratic(quantized.dequantized().to(gram.dtype) - target.to(gram.dtype), gram)
        if statistics.seen:
            report = LayerReport("awq", loss=loss, dead=int((statistics.square_sum == 0).sum()))
        else:
            note = "no input was seen: rounded to nearest"
            report = LayerReport("rtn", dead=statistics.width, notes=(note,))
        linears.append(QuantizedLinear(quantized, report))
    return AWQSite(choice, tuple(linears))


def _scale(statistics: InputStatistics, alpha: float) -> Float64[Tensor, " I"]:
    size = statistics.abs_sum
    if not statistics.seen:
        return torch.ones_like(size)
    size = torch.where(size > 0, size, size[size > 0].min())
    power = (size / size.max()).pow(alpha).clamp(min=_FLOOR)
    return power / (power.max() * power.min()).sqrt()


def _rounding_error(weight: Tensor, scale: Tensor, gram: Tensor, grid: Grid) -> float:
    try:
        scaled = multiply_inputs(weight, scale)
    except NonFiniteError:
        return float("inf")
    rounded = quantize_nearest(scaled, grid).dequantized().to(gram.dtype)
    return _quadratic(rounded / scale.to(gram.dtype) - weight.to(gram.dtype), gram)


def _quadratic(difference: Tensor, gram: Tensor) -> float:
    total = float(((difference @ gram) * difference).sum())
    # Below 0 by rounding only; what is not a number is never the least.
    return max(total, 0.0) if total < float("inf") else float("inf")


def _mean_gram(statistics: InputStatistics, weight: Tensor) -> Float[Tensor, "I I"]:
    assert statistics.gram is not None  # every caller has checked
    return (statistics.gram / max(1, statistics.count)).to(working_type(weight))


def _check(weights: Sequence[Tensor], statistics: InputStatistics, grid: Grid, steps: int) -> None:
    check_weight_grid(grid)
    if steps < 1:
        raise OptionError(f"steps={steps} must be at least 1")
    if not weights:
        raise InputError("weights are empty: at least one layer must read the input")
    for weight in weights:
        check_weight(weight)
        statistics.check(weight.shape[1], gram=True)
