"""Stochastic binary gates, and what is taken for their gradient.

A gate has a logit a, p = sigm(a) and noise u, uniform on [0, 1). Its step 1[a >= logit(u)] is 1
with probability p and has no gradient. The estimators:

- `st`: h = step; dh/da := 1 (straight-through). Biased; of one unit alone the sign is right.
- `st_sigmoid`: h = step; dh/da := p (1 - p).
- `reinforce`: h = step, no gradient here: `score_function_loss` brings it, without bias.
- `sts`: stochastic times smooth. h = b s, s = sqrt(p), b = 1[u <= s]; dh/da = b ds/da. E[h] = p;
  for a loss linear in h the expected gradient is half of the true one.
- `noisy_relu`: h = max(0, a - logit(u)), a rectifier with logistic noise. P(h > 0) = p and
  E[h] = log(1 + e^a); the gradient is exact for the noisy graph, as in the two below.
- `concrete`: h = sigm((a - logit(u)) / temperature). P(h > 1/2) = p; never exactly 0.
- `hard_concrete`: h = min(1, max(0, 1.2 concrete - 0.1)), which has exact zeros and ones.

Source: arXiv 1308.3432 (the first five); binary concrete: Maddison et al., arXiv 1611.00712,
appendix B, and Jang et al., arXiv 1611.01144; hard concrete: Louizos et al., arXiv 1712.01312,
equations 10 and 11. Deviations: one noise serves all estimators, so that the same u opens the same
gates in all but `sts` and `hard_concrete`.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from whet.errors import OptionError, nearest

Estimator = Literal[
    "st", "st_sigmoid", "reinforce", "sts", "noisy_relu", "concrete", "hard_concrete"
]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

# Where these are off, their logit still gets a gradient: it needs the output that the gate hides.
GRADIENT_WHERE_OFF: frozenset[Estimator] = frozenset({"st", "st_sigmoid"})

# The ends to which the hard concrete gate is stretched before it is cut to [0, 1].
_LOW, _HIGH = -0.1, 1.1


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0].to(ctx.dtype)


def straight_through(
    hard: Float[Tensor, "*shape"], soft: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The values and dtype of `hard` with the gradient of `soft`: dy/dsoft = 1, dy/dhard = 0.

    hard(x) is any rounding of x and soft(x) what its gradient is taken from: x itself, x.clamp(-1,
    1), x.sigmoid(), x.tanh(); or a one-hot argmax with x.softmax(-1). The values are those of
    `hard` to the bit, which soft + (hard - soft).detach() does not give: in bfloat16 it makes 0.996
    of 1 at soft = -0.3, and 0 of 1 at soft = 300. No second-order terms come from `hard`.
    Errors: OptionError where the shapes differ.
    """
    if hard.shape != soft.shape:
        raise OptionError(
            f"hard has shape {tuple(hard.shape)}: it must be that of soft, {tuple(soft.shape)}"
        )
    result: Tensor = _StraightThrough.apply(hard, soft)  # type: ignore[no-untyped-call]
    return result


def gate_noise(
    logits: Float[Tensor, "*shape"], generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """The noise u of `stochastic_binary`, in at least float32, on the logits' device.

    A CPU generator draws on the CPU, and so the same numbers for every device.
    """
    # 16-bit uniforms have 256 or 2048 values: gates that should open once in 10,000 never would.
    dtype = torch.promote_types(logits.dtype, torch.float32)
    device = logits.device if generator is None else generator.device
    drawn = torch.rand(logits.shape, generator=generator, device=device, dtype=dtype)
    return drawn.to(logits.device)


def stochastic_binary(
    logits: Float[Tensor, "*shape"],
    estimator: Estimator = "st",
    *,
    sample: bool = True,
    generator: torch.Generator | None = None,
    noise: Float[Tensor, "*shape"] | None = None,
    temperature: float = 2 / 3,
    gradient_scale: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """Gates of the logits' dtype, with the gradient of `estimator` (see the module).

    sample: False puts the noise at its median 1/2 and draws nothing: steps become 1[a >= 0], the
    noisy rectifier max(0, a), `sts` opens from p = 1/4 on.
    generator: of the noise; torch's global one by default. noise: u itself, drawn before by
    `gate_noise`. Activation checkpointing runs a forward twice and restores the global generator
    only: there use that one, or `noise`.
    temperature: of the two concrete gates. gradient_scale: multiplies the gradient and not the
    value; 2 makes `sts` unbiased for losses linear in h.
    A logit that is NaN gives a gate that is NaN, never one that is silently off.
    Errors: OptionError for an unknown estimator, a temperature that is not positive, noise of
    another shape, or noise beside a generator or sample=False.
    """
    _check(estimator, temperature)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if noise is None:
        u = gate_noise(logits, generator) if sample else torch.full_like(wide, 0.5).detach()
    elif generator is not None or not sample:
        raise OptionError("noise takes the place of a draw: leave out generator and sample=False")
    elif noise.shape != logits.shape:
        raise OptionError(
            f"noise has shape {tuple(noise.shape)}: it must be that of the logits, "
            f"{tuple(logits.shape)}"
        )
    else:
        u = noise.to(wide.dtype)
    gates = _gates(logits, wide, u, estimator, temperature)
    if gradient_scale != 1:
        gates = straight_through(gates.detach(), gradient_scale * gates)
    return gates


def _gates(
    logits: Tensor, wide: Tensor, u: Tensor, estimator: Estimator, temperature: float
) -> Tensor:
    if estimator == "sts":
        # sqrt(sigm(a)) by way of its logarithm: autograd of sqrt gives 0/0 where p underflows.
        smooth = (functional.logsigmoid(wide) / 2).exp()
        return (smooth * (u <= smooth)).to(logits.dtype)
    # eps keeps the quantile finite; it is half a step of the uniform numbers.
    shifted = wide - torch.logit(u, eps=torch.finfo(u.dtype).eps / 2)
    if estimator == "noisy_relu":
        return shifted.relu().to(logits.dtype)
    if estimator in ("concrete", "hard_concrete"):
        gates = (shifted / temperature).sigmoid()
        if estimator == "hard_concrete":
            gates = (_LOW + (_HIGH - _LOW) * gates).clamp(0, 1)
        return gates.to(logits.dtype)
    shifted = shifted.detach()
    hard = torch.where(shifted.isnan(), shifted, (shifted >= 0).to(shifted.dtype)).to(logits.dtype)
    if estimator == "reinforce":
        return hard
    return straight_through(hard, wide.sigmoid() if estimator == "st_sigmoid" else logits)


def gate_probability(
    logits: Float[Tensor, "*shape"], estimator: Estimator = "st", *, temperature: float = 2 / 3
) -> Float[Tensor, "*shape"]:
    """P(h != 0): p, but sqrt(p) for `sts`, and more than p for `hard_concrete`.

    For `concrete`, which is never 0, it is P(h > 1/2) = p.
    Errors: OptionError as in `stochastic_binary`.
    """
    return log_gate_probability(logits, estimator, temperature)[0].exp().to(logits.dtype)


def log_gate_probability(
    logits: Float[Tensor, "*shape"], estimator: Estimator, temperature: float
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """log P(h != 0) and log P(h = 0), finite with finite gradients at any finite logit."""
    _check(estimator, temperature)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if estimator == "hard_concrete":
        # h > 0 where sigm((a - logit(u)) / temperature) > -low / (high - low).
        wide = wide - temperature * math.log(-_LOW / _HIGH)
    log_on, log_off = functional.logsigmoid(wide), functional.logsigmoid(-wide)
    if estimator == "sts":
        # 1 - sqrt(p) = (1 - p) / (1 + sqrt(p)), which does not cancel.
        log_on = log_on / 2
        log_off = log_off - log_on.exp().log1p()
    return log_on, log_off


def _check(estimator: str, temperature: float) -> None:
    if estimator not in ESTIMATORS:
        raise OptionError(f"estimator={estimator!r} is unknown: {nearest(estimator, ESTIMATORS)}")
    if not 0 < temperature < math.inf:
        raise OptionError(f"temperature={temperature} must be a positive number")
