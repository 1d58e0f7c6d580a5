"""Accuracy on problems with verified answers."""

from whet.evaluate.runner import (
    Outcome,
    Problem,
    accuracy_metrics,
    accuracy_rows,
    draw_problems,
    judge_texts,
)

__all__ = [
    "Outcome",
    "Problem",
    "accuracy_metrics",
    "accuracy_rows",
    "draw_problems",
    "judge_texts",
]
