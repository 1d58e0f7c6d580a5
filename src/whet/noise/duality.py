"""Masked diffusion as the shadow of Gaussian diffusion: keep probabilities and coupled masks.

Source: "Latent Shadows", arXiv 2602.00792, figure 1. Token k of a vocabulary of K is the latent
w = a x + sigma eps (x its one-hot vector, eps ~ N(0, I_K)) and counts as kept while w_k is the
largest entry. With D = max over j != k of eps_j, less eps_k, and rho = a / sigma,

    kept  <=>  D < rho,     alpha(rho) = P(D < rho) = integral of phi(e) Phi(e + rho)^(K-1) de.

With one eps for all times the trajectory is a function of eps: as rho falls a token is lost once,
and masks are nested. Only the event D < rho matters and alpha(D) is uniform, so one uniform number
per token does what K Gaussian ones do (mode "uniform" of `coupled_masks`; the other is kept as the
reference).

Deviations: alpha(0) = 1 / K, so the latent never masks everything. Keep probabilities below that
are reached here through negative rho, which the integral allows and the latent (a >= 0) does not.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet.errors import InputError, OptionError

Coupling = Literal["uniform", "gaussian"]
KeepSchedule = Literal["linear", "gaussian"]

# Beyond 12 standard deviations the normal density is 2e-32.
_REACH, _POINTS = 12.0, 1601
_TABLE = 4097
# Duo's range of log(sigma^2 / a^2), arXiv 2506.10892: rho from 7.39 down to 1.65.
GAMMA = (-4.0, -1.0)


def keep_probability(rho: Float[Tensor, "*N"], vocab_size: int) -> Float[Tensor, "*N"]:
    """alpha(rho) in float64: the probability that a token of `vocab_size` is kept.

    By the trapezoid rule over the token's own noise, to 1e-6 for vocabularies up to a million.
    Errors: OptionError for fewer than two tokens.
    """
    if vocab_size < 2:
        raise OptionError(f"vocab_size={vocab_size} must be at least 2")
    e = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
    density = torch.exp(-0.5 * e**2) / (2 * torch.pi) ** 0.5
    out = []
    for part in torch.split(rho.double().reshape(-1), 256):
        others = (vocab_size - 1) * torch.special.log_ndtr(e + part[:, None])
        out.append(torch.trapezoid(density * others.exp(), e, dim=-1))
    return torch.cat(out).reshape(rho.shape) if out else rho.double()


@dataclass(frozen=True)
class KeepTable:
    """alpha and its inverse by interpolation, of one vocabulary. Build it with `keep_table`.

    rho: ascending. alpha: strictly ascending.
    """

    vocab_size: int
    rho: Float[Tensor, " T"]
    alpha: Float[Tensor, " T"]

    def alpha_of(self, rho: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """alpha(rho), to 1e-5 of `keep_probability`."""
        return _interpolate(rho, self.rho, self.alpha)

    def rho_of(self, alpha: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """The signal-to-noise ratio at which a token is kept with probability alpha.

        0 and 1 give -inf and inf. Errors: OptionError outside [0, 1].
        """
        _check_probability("alpha", alpha)
        rho = _interpolate(alpha, self.alpha, self.rho)
        rho = rho.masked_fill(alpha == 0, -torch.inf)
        return rho.masked_fill(alpha == 1, torch.inf)


@functools.lru_cache(maxsize=16)
def keep_table(vocab_size: int) -> KeepTable:
    """The table of a vocabulary, worked out once."""
    rho = torch.linspace(-_REACH, _REACH, _TABLE, dtype=torch.float64)
    alpha = keep_probability(rho, vocab_size)
    # Near its ends alpha stops growing in float64; an inverse needs that it grows.
    highest = torch.cat((alpha.new_full((1,), 0.0), alpha[:-1].cummax(0).values))
    grows = (alpha > highest) & (alpha < 1)
    return KeepTable(vocab_size, rho[grows], alpha[grows])


def keep_schedule(
    steps: int, *, kind: KeepSchedule = "linear", vocab_size: int | None = None
) -> Float[Tensor, " S"]:
    """Keep probabilities after each of `steps` sampling steps, float64, the last one 1.

    linear: k / steps, the log-linear schedule of masked diffusion. gaussian: alpha(rho) of the
    latent at gamma = log(sigma^2 / a^2) going evenly from -1 to -4, which needs `vocab_size`.
    Errors: OptionError for steps < 1, an unknown kind or a missing vocabulary.
    """
    if steps < 1:
        raise OptionError(f"steps={steps} must be at least 1")
    if kind not in get_args(KeepSchedule):
        raise OptionError(f"schedule={kind!r} is not one of {', '.join(get_args(KeepSchedule))}")
    done = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    if kind == "linear":
        return done
    if vocab_size is None:
        raise OptionError("schedule='gaussian' needs vocab_size: alpha depends on it")
    gamma = GAMMA[1] + (GAMMA[0] - GAMMA[1]) * done
    alpha = keep_probability(torch.exp(-gamma / 2), vocab_size)
    alpha[-1] = 1.0
    return alpha


def coupled_masks(
    rng: np.random.Generator,
    tokens: Int[Tensor, "B L"],
    eligible: Bool[Tensor, "B L"],
    alpha_s: Float[Tensor, " B"],
    alpha_t: Float[Tensor, " B"],
    *,
    mode: Coupling = "uniform",
    vocab_size: int | None = None,
) -> tuple[Bool[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """What is masked at s and at t > s on one trajectory; the first lies within the second.

    tokens: read by mode "gaussian" only, which draws B x L x `vocab_size` numbers. eligible: what
    may be masked. alpha_s >= alpha_t: each row's keep probabilities. Both modes have the same law:
    kept at both with alpha_t, at s only with alpha_s - alpha_t.
    Errors: OptionError for an unknown mode, a missing vocabulary or keep probabilities outside
    [0, 1] or in the wrong order; InputError for tokens outside the vocabulary.
    """
    _check_probability("alpha_s", alpha_s)
    _check_probability("alpha_t", alpha_t)
    if bool((alpha_s < alpha_t).any()):
        raise OptionError("alpha_s must be at least alpha_t in every row: s is the earlier time")
    if mode == "uniform":
        u = torch.from_numpy(rng.random(tuple(eligible.shape)))
        return eligible & (u >= alpha_s[:, None]), eligible & (u >= alpha_t[:, None])
    if mode != "gaussian":
        raise OptionError(f"mode={mode!r} is not one of {', '.join(get_args(Coupling))}")
    if vocab_size is None:
        raise OptionError("mode='gaussian' needs vocab_size: it draws a number per token of it")
    table = keep_table(vocab_size)
    margin = gaussian_margin(rng, tokens, vocab_size)
    return (
        eligible & (margin >= table.rho_of(alpha_s)[:, None]),
        eligible & (margin >= table.rho_of(alpha_t)[:, None]),
    )


def gaussian_margin(
    rng: np.random.Generator, tokens: Int[Tensor, "B L"], vocab_size: int
) -> Float[Tensor, "B L"]:
    """D of every token: the largest noise of the other entries, less the token's own; float64.

    Errors: InputError for a token outside the vocabulary.
    """
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise InputError(
            f"tokens lie between {int(tokens.min())} and {int(tokens.max())}: "
            f"the vocabulary ends at {vocab_size - 1}"
        )
    noise = torch.from_numpy(rng.standard_normal((*tokens.shape, vocab_size)))
    own = noise.gather(-1, tokens[..., None])
    return noise.scatter(-1, tokens[..., None], -torch.inf).amax(-1) - own[..., 0]


def _interpolate(x: Tensor, known: Tensor, values: Tensor) -> Tensor:
    found = np.interp(x.double().numpy(), known.numpy(), values.numpy())
    return torch.as_tensor(found, dtype=torch.float64)


def _check_probability(name: str, alpha: Tensor) -> None:
    if not bool(((alpha >= 0) & (alpha <= 1)).all()):
        raise OptionError(f"{name} must lie between 0 and 1")
