"""Gradients through gates that are 0 or 1: estimators, score-function loss, skipped computation.

Source: Bengio, Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic
Neurons for Conditional Computation", arXiv 1308.3432.
"""

from __future__ import annotations

from whet.layers.estimators.gated import GatedLayer, GatedOutput, gated_sum, sparsity_penalty
from whet.layers.estimators.gates import (
    ESTIMATORS,
    GRADIENT_WHERE_OFF,
    Estimator,
    gate_noise,
    gate_probability,
    stochastic_binary,
    straight_through,
)
from whet.layers.estimators.score import (
    RunningBaseline,
    leave_one_out_baseline,
    score_function_loss,
)

__all__ = [
    "ESTIMATORS",
    "GRADIENT_WHERE_OFF",
    "Estimator",
    "GatedLayer",
    "GatedOutput",
    "RunningBaseline",
    "gate_noise",
    "gate_probability",
    "gated_sum",
    "leave_one_out_baseline",
    "score_function_loss",
    "sparsity_penalty",
    "stochastic_binary",
    "straight_through",
]
