"""Conditional computation: experts behind sparse gates, computed only for the rows that use them.

y = sum_e h_e expert_e(x) with gates h = gates(gater(x)); the gates are a distributed code, any
subset of the experts may be on. What it saves is the experts' cost times the share of gates at 0,
less the gater's cost.

Source: Bengio, Léonard and Courville, arXiv 1308.3432, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from whet.errors import InputError, OptionError
from whet.layers.estimators.gates import (
    GRADIENT_WHERE_OFF,
    Estimator,
    log_gate_probability,
    stochastic_binary,
)


def gated_sum(
    x: Float[Tensor, "B D"],
    gates: Float[Tensor, "B E"],
    experts: Sequence[nn.Module] | nn.ModuleList,
    *,
    skip: bool = True,
) -> Float[Tensor, "B O"]:
    """sum_e gates[:, e] expert_e(x), each expert a map of rows [n, D] to [n, O].

    skip: an expert sees only the rows whose gate is not 0 (gathered, then added back), or is not
    called where there are none. Output and gradients equal the dense computation's but for two: a
    gate that is 0 gets no gradient, and an expert that was not called leaves its parameters'
    gradient as it was. An expert that mixes rows (batch norm) sees other rows than in the dense
    computation, and noise drawn inside experts differs.
    Errors: InputError where rows or the number of gates do not fit.
    """
    if not len(experts):
        raise InputError("experts is empty: at least one is needed")
    if gates.shape != (x.shape[0], len(experts)):
        raise InputError(
            f"gates have shape {tuple(gates.shape)}: it must be (rows, experts), "
            f"({x.shape[0]}, {len(experts)})"
        )
    if not skip:
        parts: list[Tensor] = [gates[:, e, None] * expert(x) for e, expert in enumerate(experts)]
        output = parts[0]
        for part in parts[1:]:
            output = output + part
        return output
    # One nonzero for all experts: on an accelerator each would wait for the device.
    expert_of, row_of = gates.detach().t().nonzero(as_tuple=True)
    counts = torch.bincount(expert_of, minlength=len(experts)).tolist()
    total: Tensor | None = None
    end = 0
    for e, count in enumerate(counts):
        if not count:
            continue
        rows, end = row_of[end : end + count], end + count
        part = gates[rows, e, None] * experts[e](x[rows])
        if total is None:
            total = part.new_zeros(x.shape[0], part.shape[1])
        # Rows are unique within an expert, so the sum has one order on every device.
        total.index_add_(0, rows, part)
    if total is None:
        # No expert runs; one on no rows at all tells the width and the dtype, and its sum (0)
        # keeps the output in the graph, so that a backward finds zeros and does not fail.
        empty = gates[:0, :1] * experts[0](x[:0])
        total = empty.new_zeros(x.shape[0], empty.shape[1]) + empty.sum()
    return total


def sparsity_penalty(
    logits: Float[Tensor, "*B E"],
    target: float,
    *,
    estimator: Estimator = "st",
    temperature: float = 2 / 3,
) -> Float[Tensor, ""]:
    """sum_e KL(target || q_e) in nats, q_e the mean over rows of P(gate e is not 0).

    0 where every gate is on in `target` of the rows; the cross-entropy less a constant. It is a
    function of probabilities, not of samples, so its gradient is exact, and it is computed from
    logarithms, so it stays finite where gates saturate.
    Errors: OptionError for a target outside (0, 1); InputError for no rows.
    """
    if not 0 < target < 1:
        raise OptionError(f"target={target} must be a share above 0 and below 1")
    log_on, log_off = (
        part.reshape(-1, part.shape[-1])
        for part in log_gate_probability(logits, estimator, temperature)
    )
    if not len(log_on):
        raise InputError("logits have no rows: a mean over rows needs at least one")
    rows = math.log(len(log_on))
    entropy = -target * math.log(target) - (1 - target) * math.log1p(-target)
    cross = -target * (log_on.logsumexp(0) - rows) - (1 - target) * (log_off.logsumexp(0) - rows)
    return (cross - entropy).sum()


class GatedOutput(NamedTuple):
    """output [*B, O]; logits and gates [*B, E], for the penalty and the score-function loss."""

    output: Tensor
    logits: Tensor
    gates: Tensor


class GatedLayer(nn.Module):
    """Experts behind the gates of a gater, which skips what is off.

    gater: rows [n, D] to logits [n, E]. experts: each rows [n, D] to [n, O].
    Experts are computed for all rows only where a gate that is off needs a gradient (`st` and
    `st_sigmoid` in training) or no gate can be off (`concrete`).
    """

    def __init__(
        self,
        gater: nn.Module,
        experts: Iterable[nn.Module],
        *,
        estimator: Estimator = "st",
        temperature: float = 2 / 3,
    ) -> None:
        super().__init__()
        self.gater = gater
        self.experts = nn.ModuleList(experts)
        self.estimator = estimator
        self.temperature = temperature

    def forward(
        self,
        x: Float[Tensor, "*B D"],
        *,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
        noise: Float[Tensor, "*B E"] | None = None,
    ) -> GatedOutput:
        """sample, generator, noise: as in `stochastic_binary`; sampled in training mode only,
        where nothing else is said.
        """
        logits = self.gater(x)
        gates = stochastic_binary(
            logits,
            self.estimator,
            sample=self.training if sample is None else sample,
            generator=generator,
            noise=noise,
            temperature=self.temperature,
        )
        needs_all = self.estimator in GRADIENT_WHERE_OFF and gates.requires_grad
        output = gated_sum(
            x.reshape(-1, x.shape[-1]),
            gates.reshape(-1, gates.shape[-1]),
            self.experts,
            skip=not needs_all and self.estimator != "concrete",
        )
        return GatedOutput(output.reshape(*x.shape[:-1], output.shape[-1]), logits, gates)

    def extra_repr(self) -> str:
        return f"estimator={self.estimator!r}, temperature={self.temperature:.3g}"
