"""From logit rows to proposals: one token and one confidence per row.

Confidences are computed on the plain softmax (no temperature, no noise), in float32 unless
float64 is asked for: in bfloat16 they saturate at 1.0 and tie. Ties between tokens go to the
lowest id. Rows are worked in chunks, so that without sampling a 126k vocabulary never needs a
second full copy (sampling needs its noise, [N, V] in float64).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.errors import OptionError

Confidence = Literal["prob", "margin", "neg_entropy"]
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


def propose(
    logits: Float[Tensor, "N V"],
    *,
    confidence: Confidence = "prob",
    dtype: torch.dtype = torch.float32,
    temperature: float = 0.0,
    uniform: Float[Tensor, "N V"] | None = None,
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Token and confidence per row.

    temperature 0 takes the argmax. Above 0 the token is the argmax of exp(l) / (-log u)^T, which
    samples softmax(l / T), with `uniform` the noise u in (0, 1) (LLaDA's rule; the quotient is
    taken in the log domain and float64). `confidence` of the chosen token under softmax(l):
    its probability, the gap between the two largest probabilities, or the negative entropy.
    """
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.long, device=logits.device)
    confidences = torch.empty(rows, dtype=dtype, device=logits.device)
    step = max(1, _CHUNK_VALUES // max(1, vocab))
    for lo in range(0, rows, step):
        part = slice(lo, min(lo + step, rows))
        wide = logits[part].to(dtype)
        if temperature > 0:
            if uniform is None:
                raise ValueError("temperature > 0 needs `uniform` noise")
            noisy = wide.double() - temperature * (-uniform[part].double().log()).log()
            chosen = noisy.argmax(-1)
        else:
            chosen = wide.argmax(-1)
        tokens[part] = chosen
        confidences[part] = _confidence(wide, chosen, confidence)
    return tokens, confidences


def _confidence(
    logits: Float[Tensor, "N V"], tokens: Int[Tensor, " N"], kind: Confidence
) -> Float[Tensor, " N"]:
    normaliser = torch.logsumexp(logits, -1)
    if kind == "prob":
        return (logits.gather(-1, tokens[:, None])[:, 0] - normaliser).exp()
    if kind == "margin":
        top = (logits.topk(2, -1).values - normaliser[:, None]).exp()
        return top[:, 0] - top[:, 1]
    logp = logits - normaliser[:, None]
    # Suppressed ids have log-probability -inf and contribute nothing.
    return torch.nan_to_num(logp.exp() * logp, nan=0.0).sum(-1)
