"""Proof of dParallel (arXiv 2509.26488): the same answers in a fraction of the forwards.

The teacher is `tiny-dlm`, the student `tiny-dlm-dparallel`, both as they ship. What the certainty
term does is seen earlier in its training: `forced` and `control` are the first rounds of the
student's recipe as it is and with beta = 0 (the same problems and steps; from the second round on
each learns from its own answers). All decode the same fresh problems with the entropy threshold at
the same thresholds, teacher and student also one token per step. The thresholds that are judged
were the best on problems of the validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whet.bench.decoding import ArmResult, DecoderArm, compare, item_columns, record_arm, run_arms
from whet.dlm.dparallel import DParallelRecipe, DParallelTraining, OwnAnswers
from whet.evaluate import Problem, draw_problems
from whet.measure.items import save_items
from whet.measure.record import Claim, Comparison, Record, claim, new_record
from whet.measure.stats import Floats, quantile_interval
from whet.reproduce import OnProgress
from whet.rng import keyed
from whet.tasks import expand
from whet.zoo import load, recipes

_MARGIN = 0.02
_ONE = "one token per step"
_EQUAL = "forwards at equal accuracy"


@dataclass(frozen=True)
class DParallelProof:
    """Settings of the proof. seed: of the problems. rounds: that `forced` and `control` are
    trained for. kept: accuracy that the choice of a threshold may lose on the validation problems,
    half of the margin that is judged."""

    teacher: str = "tiny-dlm"
    student: str = "tiny-dlm-dparallel"
    thresholds: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    problems: int = 2100
    validation: int = 700
    gen_length: int = 16
    batch_size: int = 200
    rounds: int = 4
    kept: float = _MARGIN / 2
    seed: int = 20250926

    def run(self, *, quick: bool, out: Path, on_progress: OnProgress) -> Record:
        """Train the first rounds with and without the term, choose a threshold, decode, judge."""
        level = "smoke" if quick else "cpu"
        proof = replace(self, problems=210, validation=140, rounds=1) if quick else self
        recipe = DParallelRecipe.read(recipes()[self.student], method="dparallel")
        recipe = recipe.model_copy(update={"rounds": proof.rounds})
        if quick:
            recipe = _shortened(recipe)
        models: dict[str, str | Path] = {"teacher": self.teacher, "student": self.student}
        for name, beta in (("forced", recipe.beta), ("control", 0.0)):
            run = out / "dparallel.runs" / level / name
            DParallelTraining(recipe.model_copy(update={"beta": beta})).run(run)
            models[name] = run / "model"
            on_progress(0.35 * (len(models) - 2))
        return proof._judged(models, out, level, lambda share: on_progress(0.7 + 0.3 * share))

    def _judged(
        self, models: Mapping[str, str | Path], out: Path, level: Any, on_progress: OnProgress
    ) -> Record:
        tasks = expand(["scratchpad"])
        tried = draw_problems(tasks, self.validation, seed=self.seed, split="validation")
        asked = draw_problems(tasks, self.problems, seed=self.seed, split="test")
        loaded = {name: load(source) for name, source in models.items()}
        done, total = 0, 3 * self.validation + 6 * self.problems

        def decode(name: str, problems: Sequence[Problem], with_one: bool, part: int) -> Any:
            nonlocal done
            before = done
            done += part
            return self._decode(
                name, *loaded[name], problems, with_one,
                lambda share: on_progress((before + share * part) / total),
            )  # fmt: skip

        first = decode("teacher", tried, True, 2 * self.validation)
        second = decode("student", tried, False, self.validation)
        at = self._choose(first, second)
        results = decode("teacher", asked, True, 2 * self.problems)
        results |= decode("student", asked, True, 2 * self.problems)
        results |= decode("forced", asked, False, self.problems)
        results |= decode("control", asked, False, self.problems)
        return self._record(results, asked, at, out, level)

    def _decode(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        asked: Sequence[Problem],
        with_one: bool,
        on_progress: Callable[[float], None],
    ) -> dict[str, ArmResult]:
        arms = [
            DecoderArm.parse(f"entropy-threshold:entropy_threshold={t:g}", _name(name, t))
            for t in self.thresholds
        ]
        if with_one:
            arms.append(DecoderArm.parse("low-confidence", f"{name}, {_ONE}"))
        return run_arms(
            model,
            tokenizer,
            asked,
            arms,
            gen_length=self.gen_length,
            batch_size=self.batch_size,
            on_batch=lambda done: on_progress(done / len(asked)),
        )

    def _choose(self, teacher: Mapping[str, ArmResult], student: Mapping[str, ArmResult]) -> float:
        """The loosest threshold at which the student is about as good as the one-token teacher."""
        goal = teacher[f"teacher, {_ONE}"].correct.mean() - self.kept
        good = [t for t in self.thresholds if student[_name("student", t)].correct.mean() >= goal]
        return max(good, default=min(self.thresholds))

    def _curve(self, results: Mapping[str, ArmResult], name: str) -> tuple[Floats, Floats]:
        """Right or not, and forwards, by threshold and problem; [T, N] each."""
        arms = [results[_name(name, t)] for t in sorted(self.thresholds)]
        correct = np.array([a.correct for a in arms], dtype=float)
        return correct, np.array([a.column("answer_steps") for a in arms], dtype=float)

    def _record(
        self,
        results: dict[str, ArmResult],
        asked: Sequence[Problem],
        at: float,
        out: Path,
        level: Any,
    ) -> Record:
        one, student = f"teacher, {_ONE}", _name("student", at)
        comparisons = [
            c
            for a, b in (
                (student, one),
                (student, _name("teacher", at)),
                (f"student, {_ONE}", one),
            )
            for c in compare(results[a], results[b])
            # Models ran one after the other, so that their times are not of pairs of batches.
            if c.metric in ("accuracy", "forwards")
        ]
        # One of the thresholds, at which the two are as good as each other or nearly so.
        reached = [float(results[_name(n, at)].correct.mean()) for n in ("forced", "control")]
        value, low, high = forwards_ratio(
            self._curve(results, "forced"), self._curve(results, "control"), min(reached)
        )
        comparisons.append(
            Comparison(
                a=_name("forced", at),
                b=_name("control", at),
                metric=_EQUAL,
                value=value,
                ci=(low, high),
                test="curves over thresholds read at one accuracy; paired bootstrap of the ratio",
            )
        )
        return new_record(
            "dparallel",
            title="dParallel: the same answers in fewer forwards, on tiny-dlm",
            level=level,
            seeds={"problems": self.seed},
            settings={
                "teacher": self.teacher,
                "student": self.student,
                "tasks": [t.id for t in expand(["scratchpad"])],
                "split": "test",
                "gen_length": self.gen_length,
                "batch_size": self.batch_size,
                "problems": self.problems,
                "validation_problems": self.validation,
                "thresholds": list(self.thresholds),
                "chosen_threshold": at,
                "accuracy_margin": _MARGIN,
            },
            arms=[record_arm(r) for r in results.values()],
            items=save_items(out / "dparallel.items.json", item_columns(asked, results)),
            comparisons=comparisons,
            claims=_claims(comparisons, student, one, at),
            notes=[
                "The threshold that is judged is the loosest at which the student lost at most "
                f"{100 * self.kept:g} point on {self.validation} problems of the validation split, "
                "against the teacher at one token per step; the strictest where none is.",
                "Forwards per problem leave out steps that committed only end-of-text filling, in "
                "every arm.",
                "Equal accuracy of forced and control is the lower of the two at that threshold: "
                "forwards of both curves are interpolated there; where a curve does not reach it, "
                "its best threshold counts.",
                "Rounds are whet's, not the paper's: students answer the problems of the next "
                "round, since a choice among answers that are equally good can be made at once "
                "only where it is the student's own.",
                "The paper reports, for LLaDA-8B on GSM8K, 256 forwards down to 30 at equal "
                "accuracy (8.5 times as fast): the goal.",
            ],
        )


def _name(model: str, threshold: float) -> str:
    return f"{model} at {threshold:g}"


def _shortened(recipe: DParallelRecipe) -> DParallelRecipe:
    """A recipe that takes a moment instead of minutes, to see that everything runs."""
    assert isinstance(recipe.data, OwnAnswers)
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"count": 140}),
            "fit": recipe.fit.model_copy(update={"steps": 10, "warmup": 2}),
        }
    )


def forwards_at(accuracy: Floats, forwards: Floats, goal: float) -> float:
    """Forwards that an accuracy costs on a curve, strictest threshold first; [T] each.

    From the loosest threshold on, the first piece that reaches the goal, read linearly. A curve
    that never does gives the forwards of its most accurate threshold, which is too few.
    """
    for i in range(len(accuracy) - 1, -1, -1):
        if accuracy[i] < goal:
            continue
        if i == len(accuracy) - 1:
            return float(forwards[i])
        share = (goal - accuracy[i + 1]) / (accuracy[i] - accuracy[i + 1])
        return float(forwards[i + 1] + share * (forwards[i] - forwards[i + 1]))
    return float(forwards[int(accuracy.argmax())])


def forwards_ratio(
    a: tuple[Floats, Floats],
    b: tuple[Floats, Floats],
    goal: float,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(value, low, high) of the ratio of forwards that two curves need for an accuracy.

    a, b: right or not and forwards, [T, N] each, of the same N problems, which are resampled in
    pairs.
    """

    def ratio(rows: Any) -> float:
        one, two = (
            forwards_at(correct[:, rows].mean(1), steps[:, rows].mean(1), goal)
            for correct, steps in (a, b)
        )
        return one / two

    count = a[0].shape[1]
    rng = keyed(seed, "curves", count)
    draws = np.array([ratio(rng.integers(0, count, count)) for _ in range(resamples)])
    value = ratio(slice(None))
    low, high = quantile_interval(draws, 0.95)
    return value, min(low, value), max(high, value)


def _claims(comparisons: list[Comparison], student: str, one: str, at: float) -> list[Claim]:
    same, forced, control = (_name(n, at) for n in ("teacher", "forced", "control"))
    found = {(c.a, c.b, c.metric): c for c in comparisons}

    def judged(name: str, a: str, b: str, metric: str, op: Any, target: float, text: str) -> Claim:
        c = found[a, b, metric]
        kind: Any = "difference" if metric == "accuracy" else "ratio"
        return claim(name, kind, a, b, metric, c.value, c.ci, op, target, text)

    return [
        judged("quality", student, one, "accuracy", ">=", -_MARGIN,
               "the student is as good as the teacher at one token per step (2 points)"),
        judged("forwards", student, one, "forwards", "<=", 0.25,
               "in at most a quarter of its forwards"),
        judged("goal", student, one, "forwards", "<=", 0.125, "the goal: an eighth"),
        judged("same threshold", student, same, "forwards", "<=", 0.6,
               "at most 0.6 of the teacher's forwards at the same threshold"),
        judged("certainty", forced, control, _EQUAL, "<=", 0.85,
               "the entropy term saves 15 % of the forwards at equal accuracy"),
    ]  # fmt: skip


DPARALLEL = DParallelProof()
