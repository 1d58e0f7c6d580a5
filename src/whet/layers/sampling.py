"""From logit rows to proposals: one token and one confidence per row.

Confidences are those of the model's plain softmax, or of the distribution that is sampled from
(after temperature, top-p and top-k), in float32 unless float64 is asked for: in bfloat16 they
saturate at 1.0 and tie. Ties between tokens go to the lowest id. Rows are worked in chunks, so
that a 126k vocabulary never needs a second full copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet.errors import OptionError

Confidence = Literal["prob", "margin", "neg_entropy"]
ConfidenceOf = Literal["model", "sampled"]
CONFIDENCES: tuple[str, ...] = get_args(Confidence)
CONFIDENCE_RANGE: dict[str, tuple[float, float]] = {
    "prob": (0.0, 1.0),
    "margin": (0.0, 1.0),
    "neg_entropy": (-math.inf, 0.0),
}

# 2**21 float32 values are 8 MiB of scratch: small beside any model.
_CHUNK_VALUES = 2**21


def check_threshold(threshold: float, confidence: str, name: str = "threshold") -> None:
    """Errors: OptionError unless `threshold` lies in the range of its confidence type."""
    if confidence not in CONFIDENCE_RANGE:
        raise OptionError(f"confidence={confidence!r} is not one of {', '.join(CONFIDENCES)}")
    low, high = CONFIDENCE_RANGE[confidence]
    if not low <= threshold <= high:
        shown = f"at most {high:g}" if low == -math.inf else f"between {low:g} and {high:g}"
        raise OptionError(
            f"{name}={threshold:g} is outside the range of confidence={confidence!r}: "
            f"it must be {shown}"
        )


def keep_top(logits: Float[Tensor, "N V"], top_p: float, top_k: int | None) -> Bool[Tensor, "N V"]:
    """Which tokens may be drawn: the nucleus of mass top_p, of which at most the top_k best.

    The token that crosses the mass belongs to the nucleus, so one token is always left. Equal
    logits rank by id, lowest first.
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(logits, dtype=torch.bool)
    if top_p < 1:
        probability = logits.gather(-1, order).softmax(-1)
        keep = probability.cumsum(-1) - probability <= top_p
    if top_k is not None:
        keep[:, top_k:] = False
    return torch.empty_like(keep).scatter_(-1, order, keep)


def draw(logits: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Tokens of softmax(logits): per row the first whose cumulated probability exceeds u."""
    cumulated = logits.double().softmax(-1).cumsum(-1)
    target = (uniform.double() * cumulated[:, -1])[:, None]
    return torch.searchsorted(cumulated, target, right=True)[:, 0]


def propose(
    logits: Float[Tensor, "N V"],
    *,
    confidence: Confidence = "prob",
    dtype: torch.dtype = torch.float32,
    temperature: float | Float[Tensor, " N"] = 0.0,
    uniform: Float[Tensor, " N"] | None = None,
    top_p: float = 1.0,
    top_k: int | None = None,
    of: ConfidenceOf = "model",
    ignored: Sequence[int] = (),
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Token and confidence per row.

    temperature (one, or one per row) 0 takes the argmax. Above 0 the token is drawn from
    softmax(l / T): the first whose cumulated probability (in float64, by id) exceeds `uniform`, the
    noise u in [0, 1). (LLaDA's argmax of exp(l) / (-log u)^T draws from the same distribution, with
    a noise for every token of the vocabulary.) top_p, top_k: only the likeliest
    tokens of softmax(l / T) are drawn. `confidence` of the chosen token under softmax(l), or under
    the distribution sampled from: its probability, the gap between the two largest probabilities,
    or the negative entropy. ignored: ids that have no probability when confidences are taken,
    though they may be chosen.
    """
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.long, device=logits.device)
    confidences = torch.empty(rows, dtype=dtype, device=logits.device)
    sampling = isinstance(temperature, Tensor) or temperature > 0
    if sampling and uniform is None:
        raise ValueError("temperature > 0 needs `uniform` noise")
    filtering = top_p < 1 or (top_k is not None and top_k < vocab)
    step = max(1, _CHUNK_VALUES // max(1, vocab))
    for lo in range(0, rows, step):
        part = slice(lo, min(lo + step, rows))
        wide = logits[part].to(dtype)
        heat, cold = temperature, None
        if isinstance(temperature, Tensor):
            # Rows at 0 take the argmax, and are judged, as if nothing were sampled.
            heat = temperature[part, None]
            cold = heat == 0
            heat = heat.masked_fill(cold, 1.0)
        tempered = wide / heat if sampling and (filtering or of == "sampled") else wide
        if filtering:
            tempered = tempered.masked_fill(~keep_top(tempered, top_p, top_k), -torch.inf)
        if sampling:
            assert uniform is not None
            drawn_from = tempered if tempered is not wide else wide / heat
            chosen = draw(drawn_from, uniform[part])
            if cold is not None:
                chosen = torch.where(cold[:, 0], wide.argmax(-1), chosen)
        else:
            chosen = wide.argmax(-1)
        tokens[part] = chosen
        judged = tempered if of == "sampled" else wide
        if ignored:
            judged = judged.index_fill(
                1, torch.tensor(list(ignored), device=judged.device), -torch.inf
            )
        confidences[part] = _confidence(judged, chosen, confidence)
    return tokens, confidences


def _confidence(
    logits: Float[Tensor, "N V"], tokens: Int[Tensor, " N"], kind: Confidence
) -> Float[Tensor, " N"]:
    # Where no token has any probability, that of each is 0 (and not 0/0).
    normaliser = torch.logsumexp(logits, -1).clamp_min(torch.finfo(logits.dtype).min)
    if kind == "prob":
        return (logits.gather(-1, tokens[:, None])[:, 0] - normaliser).exp()
    if kind == "margin":
        top = (logits.topk(2, -1).values - normaliser[:, None]).exp()
        return top[:, 0] - top[:, 1]
    logp = logits - normaliser[:, None]
    # Suppressed ids have log-probability -inf and contribute nothing.
    return torch.nan_to_num(logp.exp() * logp, nan=0.0).sum(-1)
