"""What to do about the end-of-text token, which floods the canvas of instruction-tuned models.

Sources: LLaDA's `logits_eos_inf` (suppress) and `confidence_eos_eot_inf` (defer) settings, and
dInfer's early stop (arXiv 2510.08666).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Eos = Literal["none", "suppress", "defer", "early_stop"]

# The priority of a deferred token: below every confidence, behind everything else.
DEFERRED = -1e9


def suppress_eos(logits: Float[Tensor, "N V"], eos_ids: Sequence[int]) -> None:
    """EOS can never be predicted (in place)."""
    logits[:, list(eos_ids)] = -torch.inf


def is_eos(tokens: Int[Tensor, "*N"], eos_ids: Sequence[int]) -> Bool[Tensor, "*N"]:
    """Where tokens are one of the EOS ids."""
    return torch.isin(tokens, torch.tensor(list(eos_ids), device=tokens.device))


def stop_positions(
    tokens: Int[Tensor, "R G"],
    masked: Bool[Tensor, "R G"],
    before: Bool[Tensor, "R G"],
    eos_ids: Sequence[int],
) -> Bool[Tensor, "R G"]:
    """Masks to the right of an EOS that lies in a finished window (`before`: finished windows)."""
    ended = (is_eos(tokens, eos_ids) & before).cumsum(-1) > 0
    return masked & ended
