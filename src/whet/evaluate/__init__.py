"""The model under test, problems with verified answers, and what came of them."""

from whet.evaluate.model import (
    EvalModel,
    Generation,
    GenerationRequest,
    Likelihood,
    LikelihoodRequest,
)
from whet.evaluate.runner import (
    BUCKETS,
    Outcome,
    Problem,
    draw_limited,
    draw_problems,
    judge,
    judge_texts,
)
from whet.evaluate.summary import (
    accuracy_metrics,
    accuracy_rows,
    cell_rows,
    efficiency,
    outcome_metrics,
    paired_comparisons,
)

__all__ = [
    "BUCKETS",
    "EvalModel",
    "Generation",
    "GenerationRequest",
    "Likelihood",
    "LikelihoodRequest",
    "Outcome",
    "Problem",
    "accuracy_metrics",
    "accuracy_rows",
    "cell_rows",
    "draw_limited",
    "draw_problems",
    "efficiency",
    "judge",
    "judge_texts",
    "outcome_metrics",
    "paired_comparisons",
]
