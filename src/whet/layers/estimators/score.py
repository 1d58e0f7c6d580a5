"""The score-function estimator (REINFORCE) for binary gates, with the baseline of least variance.

For gates h_i ~ Bernoulli(p_i), p_i = sigm(a_i), and a loss L of any kind,
dE[L]/da_i = E[(h_i - p_i)(L - c_i)] with any c_i that is independent of h_i. The variance is least
at c_i = E[(h_i - p_i)^2 L] / E[(h_i - p_i)^2], a mean of the loss with weights of unit i.

Source: Bengio, Léonard and Courville, arXiv 1308.3432, section 4. Deviations: averages start at the
first batch; that batch itself uses the weighted mean of its other rows.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from whet.errors import InputError, OptionError


def score_function_loss(
    logits: Float[Tensor, "B E"],
    gates: Float[Tensor, "B E"],
    loss: Float[Tensor, " B"],
    baseline: Float[Tensor, "#B #E"] | float = 0.0,
) -> Float[Tensor, ""]:
    """A term to add to loss.mean(): its gradient in the logits is (h - p)(loss - baseline) / B.

    mean over rows of sum_i (loss - c_i) log q(h_i), log q(h) = h a - softplus(a); the term's value
    means nothing. It leaves all other gradients alone, so that one backward serves gates of
    several estimators.
    gates: as sampled by `stochastic_binary(logits, "reinforce")`. loss: of each row, before any
    mean: a mean over rows would tell every unit about all rows. baseline: anything that does not
    depend on the same row's gates, such as `RunningBaseline`.
    Errors: InputError where loss is not one value per row.
    """
    _check(logits, gates, loss)
    wide, advantage = _wide(logits), _wide(loss).detach()[:, None]
    if isinstance(baseline, Tensor):
        baseline = baseline.detach()
    log_q = _wide(gates).detach() * wide - functional.softplus(wide)
    return ((advantage - baseline) * log_q).sum(1).mean()


@torch.no_grad()
def leave_one_out_baseline(
    logits: Float[Tensor, "B E"], gates: Float[Tensor, "B E"], loss: Float[Tensor, " B"]
) -> Float[Tensor, "B E"]:
    """Per row and unit, the weighted mean of the loss over the other rows; 0 for a single row.

    Weights are (h - p)^2. Without the row itself the estimator stays unbiased: rows are drawn
    independently. Errors: InputError as in `score_function_loss`.
    """
    _check(logits, gates, loss)
    weight, weighted = _weights(logits, gates, loss)
    # Sums over other rows by prefix and suffix: total minus own would cancel.
    return _ratio(_others(weighted), _others(weight), 0.0)


class RunningBaseline(nn.Module):
    """The least-variance baseline from running averages over earlier batches, one per unit.

    numerator <- m numerator + (1 - m) mean((h - p)^2 L), denominator <- m denominator + (1 - m)
    mean((h - p)^2); the baseline is their ratio before the batch at hand is added, so that it
    stays independent of it. Both averages are saved with the model. Keep the module in float32:
    16-bit averages stop moving. Under data parallelism each process has its own averages.
    Errors: OptionError for units below 1 or a momentum outside [0, 1).
    """

    numerator: Tensor
    denominator: Tensor

    def __init__(self, units: int, momentum: float = 0.99) -> None:
        super().__init__()
        if units < 1:
            raise OptionError(f"units={units} must be at least 1")
        if not 0 <= momentum < 1:
            raise OptionError(f"momentum={momentum} must be at least 0 and below 1")
        self.momentum = momentum
        self.register_buffer("numerator", torch.zeros(units))
        self.register_buffer("denominator", torch.zeros(units))

    @torch.no_grad()
    def forward(
        self,
        logits: Float[Tensor, "B E"],
        gates: Float[Tensor, "B E"],
        loss: Float[Tensor, " B"],
    ) -> Float[Tensor, "B E"]:
        """The baseline for this batch; in training mode the batch then joins the averages."""
        _check(logits, gates, loss)
        weight, weighted = _weights(logits, gates, loss)
        started = self.denominator > 0
        first = _ratio(_others(weighted), _others(weight), 0.0)
        earlier = _ratio(self.numerator, self.denominator, 0.0).to(first.dtype)
        baseline = torch.where(started, earlier, first)
        if self.training:
            for average, new in ((self.numerator, weighted), (self.denominator, weight)):
                mean = new.mean(0).to(average.dtype)
                average.copy_(torch.where(started, average.lerp(mean, 1 - self.momentum), mean))
        return baseline

    def extra_repr(self) -> str:
        return f"{self.numerator.shape[0]}, momentum={self.momentum}"


def _weights(logits: Tensor, gates: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    weight = (_wide(gates) - _wide(logits).sigmoid()).square()
    return weight, weight * _wide(loss)[:, None]


def _others(x: Tensor) -> Tensor:
    """Per row the sum of all other rows."""
    zero = torch.zeros_like(x[:1])
    before = torch.cat([zero, x[:-1].cumsum(0)])
    after = torch.cat([x[1:].flip(0).cumsum(0).flip(0), zero])
    return before + after


def _ratio(x: Tensor, y: Tensor, otherwise: float) -> Tensor:
    return torch.where(y > 0, x / y.clamp_min(torch.finfo(y.dtype).tiny), otherwise)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(logits: Tensor, gates: Tensor, loss: Tensor) -> None:
    if logits.ndim != 2 or gates.shape != logits.shape:
        raise InputError(
            f"logits and gates have shapes {tuple(logits.shape)} and {tuple(gates.shape)}: "
            "they must be the same, (rows, units)"
        )
    if loss.shape != logits.shape[:1]:
        raise InputError(
            f"loss has shape {tuple(loss.shape)}: it must be one value per row, "
            f"({logits.shape[0]},), before any mean"
        )
