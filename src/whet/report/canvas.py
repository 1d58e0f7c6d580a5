"""A decoded canvas as the page draws it: which token was committed when, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whet.errors import InputError

GIVEN = -1
# Confidences pile up near 1, so the classes narrow there: class i holds bound i-1 <= c < bound i.
BOUNDS = (0.5, 0.8, 0.95, 0.99)
LEGEND = ("below 0.5", "0.5 – 0.8", "0.8 – 0.95", "0.95 – 0.99", "0.99 and up")
OUTLINES = 6

_VISIBLE = str.maketrans({"\n": "↵", "\r": "␍", "\t": "⇥"})


@dataclass(frozen=True)
class CanvasRun:
    """One decoder's run on a prompt.

    tokens: the final text of each position. commit_step: the step (from 0) that committed it,
    -1 where it was given. confidence: in [0, 1] when committed; ignored where given. steps: how
    many the run took. correct: None where nobody checked.
    """

    name: str
    tokens: Sequence[str]
    commit_step: Sequence[int]
    confidence: Sequence[float]
    steps: int
    correct: bool | None = None


@dataclass(frozen=True)
class Canvas:
    """A prompt and what each decoder made of it."""

    prompt: str
    decoders: Sequence[CanvasRun]


def canvas_view(canvas: Canvas) -> dict[str, Any]:
    """What the template needs to draw `canvas`. Errors: InputError where a run contradicts itself.

    Steps are counted from 1 there; 0 is the state before the first.
    """
    runs = [_run_view(run) for run in canvas.decoders]
    return {
        "prompt": canvas.prompt,
        "steps": max((run.steps for run in canvas.decoders), default=0),
        "runs": runs,
    }


def _run_view(run: CanvasRun) -> dict[str, Any]:
    _check(run)
    columns = zip(run.tokens, run.commit_step, run.confidence, strict=True)
    return {
        "name": run.name,
        "steps": run.steps,
        "correct": run.correct,
        "cells": [_cell_view(token, step, sure) for token, step, sure in columns],
    }


def _cell_view(token: str, step: int, confidence: float) -> dict[str, Any]:
    text = token.translate(_VISIBLE)
    shown = text if text.strip() else "␣" * len(text) or "∅"
    if step == GIVEN:
        return {"text": shown, "step": 0, "given": True, "title": "given"}
    return {
        "text": shown,
        "step": step + 1,
        "given": False,
        "shade": sum(confidence >= bound for bound in BOUNDS),
        "outline": step % OUTLINES,
        "title": f"step {step + 1}, confidence {confidence:.3f}",
    }


def _check(run: CanvasRun) -> None:
    if not len(run.tokens) == len(run.commit_step) == len(run.confidence):
        raise InputError(
            f"canvas run {run.name!r} has {len(run.tokens)} tokens, {len(run.commit_step)} steps "
            f"and {len(run.confidence)} confidences; needed is one of each per position"
        )
    for step, confidence in zip(run.commit_step, run.confidence, strict=True):
        if not GIVEN <= step < run.steps:
            raise InputError(
                f"canvas run {run.name!r} commits in step {step} of {run.steps}; allowed are "
                f"-1 (given) to {run.steps - 1}"
            )
        if step != GIVEN and not 0 <= confidence <= 1:
            raise InputError(
                f"canvas run {run.name!r} has the confidence {confidence}; allowed is 0 to 1"
            )
