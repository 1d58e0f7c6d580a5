"""Losses between rows of logits, worked out a few rows at a time.

Each takes logits [N, V] and gives N values in nats. Gradients go to the student (the logits of
cross-entropy and entropy) and are worked out again in chunks on the way back, so that beside the
logits and their gradient no tensor of N × V entries is ever held. A teacher is a constant.

A logit of -inf is a token that cannot be drawn. What is refused: NaN, +inf, a row in which no
token can be drawn, and a divergence that is infinite because the second distribution lacks a
token of the first.

Distillation with a temperature: Hinton et al., arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from whet.errors import InputError, NonFiniteError, OptionError

# 2**20 float32 values are 4 MiB; a rule holds about five tensors of a chunk at a time.
_CHUNK_VALUES = 2**20

# From the student's rows (in float32 or wider) and their numbers to the loss of each row and,
# where asked for, its derivative by every logit.
_Rule = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def kl_divergence(
    teacher: Float[Tensor, "N V"],
    student: Float[Tensor, "N V"],
    *,
    temperature: float = 1.0,
    mask: Bool[Tensor, " N"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, " N"]:
    """KL(teacher || student) of every row, both softened by the temperature.

    mask: rows that count; others give 0, get no gradient and are not looked at. chunk: rows
    worked at a time (None: as many as fit a few MiB).

    Errors: InputError for shapes that do not agree; OptionError for a temperature or chunk that
    is not above 0; NonFiniteError, see the module.
    """
    _same_shape(teacher, student)
    teacher = teacher.detach()

    def rule(rows: Tensor, which: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        log_q = _log_softmax(rows, temperature)
        log_p = _log_softmax(teacher[which].to(rows.dtype), temperature)
        p = log_p.exp()
        values = _expected(p, log_p - log_q)
        return values, (log_q.exp() - p) / temperature if with_gradient else None

    return _by_chunks(student, rule, mask, chunk, temperature)


def reverse_kl_divergence(
    teacher: Float[Tensor, "N V"],
    student: Float[Tensor, "N V"],
    *,
    temperature: float = 1.0,
    mask: Bool[Tensor, " N"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, " N"]:
    """KL(student || teacher) of every row; the rest as in `kl_divergence`."""
    _same_shape(teacher, student)
    teacher = teacher.detach()

    def rule(rows: Tensor, which: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        log_q = _log_softmax(rows, temperature)
        log_p = _log_softmax(teacher[which].to(rows.dtype), temperature)
        q, difference = log_q.exp(), log_q - log_p
        values = _expected(q, difference)
        if not with_gradient:
            return values, None
        return values, _weighted(q, difference - values[:, None]) / temperature

    return _by_chunks(student, rule, mask, chunk, temperature)


def cross_entropy(
    logits: Float[Tensor, "N V"],
    targets: Int[Tensor, " N"],
    *,
    mask: Bool[Tensor, " N"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, " N"]:
    """-log softmax(logits)[target] of every row; mask, chunk and errors as in `kl_divergence`.

    Errors: InputError also for a target that counts and lies outside the vocabulary.
    """
    if targets.shape != logits.shape[:1]:
        raise InputError(
            f"targets has shape {tuple(targets.shape)}: "
            f"logits of shape {tuple(logits.shape)} need {tuple(logits.shape[:1])}"
        )
    counted = targets if mask is None else targets[mask]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < logits.shape[-1]:
        raise InputError(
            f"targets lie between {int(counted.min())} and {int(counted.max())}: "
            f"the vocabulary ends at {logits.shape[-1] - 1}"
        )

    def rule(rows: Tensor, which: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        log_q = _log_softmax(rows, 1.0)
        wanted = targets[which][:, None]
        values = -log_q.gather(-1, wanted)[:, 0]
        if not with_gradient:
            return values, None
        minus_one = torch.full_like(wanted, -1, dtype=rows.dtype)
        return values, log_q.exp_().scatter_add_(-1, wanted, minus_one)

    return _by_chunks(logits, rule, mask, chunk, 1.0)


def entropy(
    logits: Float[Tensor, "N V"],
    *,
    temperature: float = 1.0,
    mask: Bool[Tensor, " N"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, " N"]:
    """Entropy of softmax(logits / temperature) of every row; the rest as in `kl_divergence`."""

    def rule(rows: Tensor, which: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        log_q = _log_softmax(rows, temperature)
        q = log_q.exp()
        values = -_expected(q, log_q)
        if not with_gradient:
            return values, None
        return values, -_weighted(q, log_q + values[:, None]) / temperature

    return _by_chunks(logits, rule, mask, chunk, temperature)


def distillation(
    teacher: Float[Tensor, "N V"],
    student: Float[Tensor, "N V"],
    targets: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    weight: float = 1.0,
    mask: Bool[Tensor, " N"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, " N"]:
    """weight · T² · KL(teacher || student at temperature T) + (1 - weight) · cross-entropy.

    T² keeps the size of the soft part's gradient when the temperature changes. The hard part has
    no temperature. A part whose weight is 0 is not worked out.

    Errors: OptionError also for a weight outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise OptionError(f"weight={weight:g} must be between 0 and 1")
    parts: list[Tensor] = []
    if weight > 0:
        soft = kl_divergence(teacher, student, temperature=temperature, mask=mask, chunk=chunk)
        parts.append(soft * (weight * temperature**2))
    if weight < 1:
        parts.append(cross_entropy(student, targets, mask=mask, chunk=chunk) * (1 - weight))
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def masked_mean(
    values: Float[Tensor, "..."], mask: Bool[Tensor, "..."] | None = None
) -> Float[Tensor, ""]:
    """Mean of the values that count. Errors: InputError where none does."""
    count = values.numel() if mask is None else int(mask.sum())
    if not count:
        raise InputError("the mean is over 0 values: the mask lets nothing through")
    # Filled rather than multiplied: 0 · NaN is NaN.
    kept = values if mask is None else values.masked_fill(~mask, 0)
    return kept.sum() / count


class _RowLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, rule: _Rule, which: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(logits, which)
        ctx.rule, ctx.chunk = rule, chunk
        values = torch.zeros(len(logits), dtype=_wide(logits), device=logits.device)
        for part in _parts(which, chunk):
            values[part] = rule(logits[part].to(values.dtype), part, False)[0]
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        logits, which = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        for part in _parts(which, ctx.chunk):
            _, slope = ctx.rule(logits[part].to(upstream.dtype), part, True)
            gradient[part] = slope.mul_(upstream[part, None]).to(gradient.dtype)
        return gradient, None, None, None


def _parts(which: Tensor, chunk: int) -> Iterator[Tensor]:
    return (which[start : start + chunk] for start in range(0, len(which), chunk))


def _by_chunks(
    logits: Tensor, rule: _Rule, mask: Tensor | None, chunk: int | None, temperature: float
) -> Tensor:
    if logits.dim() != 2 or not logits.shape[-1]:
        raise InputError(f"logits have shape {tuple(logits.shape)}: [rows, vocabulary] is needed")
    if mask is not None and (mask.shape != logits.shape[:1] or mask.dtype != torch.bool):
        raise InputError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}: "
            f"torch.bool of shape {tuple(logits.shape[:1])} is needed"
        )
    if not temperature > 0:
        raise OptionError(f"temperature={temperature:g} must be above 0")
    if chunk is None:
        chunk = max(1, _CHUNK_VALUES // logits.shape[-1])
    elif chunk < 1:
        raise OptionError(f"chunk={chunk} must be at least 1")
    every = torch.arange(len(logits), device=logits.device)
    which = every if mask is None else every[mask]
    values: Tensor = _RowLoss.apply(logits, rule, which, chunk)  # type: ignore[no-untyped-call]
    wrong = ~values.detach().isfinite()
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise NonFiniteError(
            f"the loss of row {row} is {float(values[row].detach())}: its logits hold NaN or +inf, "
            "or give no probability where some is needed"
        )
    return values


def _same_shape(teacher: Tensor, student: Tensor) -> None:
    if teacher.shape != student.shape:
        raise InputError(
            f"teacher logits have shape {tuple(teacher.shape)} and the student's "
            f"{tuple(student.shape)}: rows and vocabulary must agree"
        )


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _log_softmax(rows: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(rows if temperature == 1 else rows / temperature, -1)


def _weighted(probability: Tensor, values: Tensor) -> Tensor:
    """probability · value, 0 where the probability is: there the value may be infinite or NaN.

    A NaN probability stays NaN.
    """
    return torch.where(probability == 0, 0.0, probability * values)


def _expected(probability: Tensor, values: Tensor) -> Tensor:
    return _weighted(probability, values).sum(-1)


def window_losses(model: Any, tokens: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """Mean nats per token of every window; its first token is only read."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    nats = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    return nats.view(len(tokens), -1).mean(-1)
