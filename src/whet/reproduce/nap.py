"""Proof of NAP (arXiv 2602.23225): paths side by side survive four tokens per step.

Problems: permutations to complete, which have many answers. A path is a draft, an independent
completion of varying length; the answer is what the first draft says. The same three drafts make
both data sets: `nap` with every path in a slot of its own, `chain` as one text, on canvases of the
same width. Two equal masked LMs start from `tiny-dlm`, which has learnt to complete permutations
but no drafts, and see the same sets in the same steps. Each is asked fresh problems at 1, 2 and 4
tokens per step, by confidence in any order and with all paths forced to advance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whet.dlm.decoders import decoder_options
from whet.dlm.nap.data import SolverPaths, build_path_sets
from whet.dlm.nap.layout import Layout
from whet.dlm.nap.texts import think_texts
from whet.dlm.nap.training import NapRecipe, NapTraining
from whet.dlm.texts import generate_texts
from whet.evaluate import Outcome, Problem, draw_problems, judge_texts
from whet.fit import FitSettings
from whet.measure.items import save_items
from whet.measure.record import Arm, Claim, Comparison, Level, Metric, Record, claim, new_record
from whet.measure.stats import bootstrap_mean, mcnemar, paired_bootstrap, wilson
from whet.reproduce import OnProgress
from whet.tasks import get_task
from whet.zoo import load

_FORMS = ("chain", "paths")
_NAMES = {"chain": "chain", "paths": "nap"}
_MARGIN, _LOWER = 0.05, 0.2


@dataclass
class _Answers:
    """What one arm did, per problem. chain: its decoder, as a user would ask for it."""

    chain: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    arness: list[float] = field(default_factory=list)

    @property
    def right(self) -> np.ndarray:
        return np.array([o.correct for o in self.outcomes], dtype=float)


@dataclass(frozen=True)
class NapProof:
    """Settings of the proof. seed: of problems, workings and weights.

    init: what both start from. task: what the problems are. path_length: tokens of the longest
    draft. per_step: tokens committed per forward.
    """

    init: str = "tiny-dlm"
    task: str = "drafts"
    path_length: int = 13
    sets: int = 16384
    steps: int = 1200
    batch_size: int = 32
    learning_rate: float = 0.001
    time_weight: str = "none"
    problems: int = 400
    per_step: tuple[int, ...] = (1, 2, 4)
    seed: int = 20260226

    def run(self, *, quick: bool, out: Path, on_progress: OnProgress) -> Record:
        """Build the paths, train both, ask both, judge. A killed run goes on where it was."""
        proof = replace(self, sets=400, steps=20, problems=40) if quick else self
        return proof._run(out, "smoke" if quick else "cpu", on_progress)

    @property
    def layout(self) -> Layout:
        """Three slots and one for the summary (nine digits and their end of text)."""
        return Layout(3, self.path_length, 10)

    def _run(self, out: Path, level: Level, on_progress: OnProgress) -> Record:
        task = get_task(self.task)
        work = out / "nap.runs" / level
        build_path_sets(
            work / "sets",
            [task],
            SolverPaths([task], seed=self.seed),
            count=self.sets,
            paths=3,
            seed=self.seed,
            shard_size=4096,
        )
        on_progress(0.02)
        models = {}
        for done, form in enumerate(_FORMS, start=1):
            NapTraining(self._recipe(form, work / "sets")).run(work / _NAMES[form])
            models[form] = load(work / _NAMES[form] / "model", dtype=torch.float32)
            on_progress(0.02 + 0.35 * done)
        asked = draw_problems([task], self.problems, seed=self.seed, split="test")
        answers: dict[str, _Answers] = {}
        total = 2 * len(_FORMS) * len(self.per_step)
        for form in _FORMS:
            for forced in (False, True):
                for count in self.per_step:
                    name = f"{_NAMES[form]} {'forced' if forced else 'any order'}, {count}"
                    answers[name] = self._ask(models[form], form, forced, count, asked)
                    on_progress(0.72 + 0.28 * len(answers) / total)
        return self._record(answers, asked, out, level)

    def _recipe(self, form: str, folder: Path) -> NapRecipe:
        return NapRecipe.model_validate(
            {
                "method": "nap",
                "init": self.init,
                "time_weight": self.time_weight,
                "data": {
                    "folder": folder,
                    "form": form,
                    "paths": 3,
                    "path_length": self.path_length,
                    "summary_length": 10,
                    "separator": ";",
                    "chain_length": self.layout.width,
                    "batch_size": self.batch_size,
                },
                "fit": FitSettings(
                    steps=self.steps,
                    learning_rate=self.learning_rate,
                    warmup=min(100, self.steps // 10),
                    ema=0.99,
                    seed=self.seed,
                    checkpoint_every=100,
                ).model_dump(),
            }
        )

    def _ask(
        self,
        loaded: tuple[Any, Any],
        form: str,
        forced: bool,
        per_step: int,
        asked: Sequence[Problem],
    ) -> _Answers:
        """Answers of one model by one schedule. Both canvases are as wide as each other."""
        layout = self.layout
        slots = layout.width if form == "chain" else sum(layout.lengths or [])
        steps = math.ceil(slots / per_step)
        chain = f"low-confidence:steps={steps}"
        if forced:
            chain = f"nap:steps={steps}"
            if form == "chain":  # it has no slots: its canvas is cut where the other form has them
                chain += f",regions={'+'.join(str(n + 2) for n in layout.lengths or [])}"
        options = decoder_options(chain)
        prompts = [p.instance.prompt for p in asked]
        made = _Answers(chain=chain)
        texts = []
        if form == "chain":
            for done in generate_texts(
                *loaded, prompts, options=options, gen_length=layout.width, batch_size=100
            ):
                texts.append(done.text)
                made.steps.append(done.answer_steps)
                made.arness.append(done.arness())
        else:
            for worked in think_texts(
                *loaded, prompts, layout=layout, options=options, batch_size=100
            ):
                texts.append(worked.text)
                made.steps.append(worked.answer_steps)
                made.arness.append(worked.arness)
        made.outcomes = judge_texts(asked, texts)
        return made

    def _record(
        self, answers: dict[str, _Answers], asked: Sequence[Problem], out: Path, level: Level
    ) -> Record:
        comparisons = self._comparisons(answers)
        items = {
            "ids": [p.id for p in asked],
            "arms": {
                name: {
                    "correct": a.right.astype(int).tolist(),
                    "steps": a.steps,
                    "arness": [round(x, 6) for x in a.arness],
                }
                for name, a in answers.items()
            },
        }
        return new_record(
            "nap",
            title="NAP: paths side by side against one long chain, by tokens per step",
            level=level,
            seeds={"problems": self.seed, "paths": self.seed, "training": self.seed},
            settings={
                "task": self.task,
                "log10_space": round(get_task(self.task).log10_space(), 2),
                "paths": 3,
                "path_length": self.path_length,
                "canvas": self.layout.width,
                "sets": self.sets,
                "steps": self.steps,
                "batch_size": self.batch_size,
                "learning_rate": self.learning_rate,
                "init": self.init,
                "problems": self.problems,
                "split": "test",
                "time_weight": self.time_weight,
            },
            arms=[_arm(name, a) for name, a in answers.items()],
            items=save_items(out / "nap.items.json", items),
            comparisons=comparisons,
            claims=self._claims(comparisons),
            notes=[
                "Both models have the same weights at the start and the same path sets in every "
                "step, on canvases of the same width; nothing but the layout differs.",
                "ARness is Global-ARness@1 of the tokens up to each text's end, tokens of one "
                "step by descending confidence; filling and given tags do not count.",
                "The summary is the answer that the first draft comes to; the other drafts come to "
                "other answers, which are right as well.",
                "A first task, sums of digits modulo 3, 7 or 10 with partial sums as paths, was "
                "not learnt by models of this size in minutes: given up before any comparison.",
                "Tokens per step are of all positions to fill, filling included, in every arm; "
                "forwards leave out steps that committed nothing but filling.",
            ],
        )

    def _comparisons(self, answers: dict[str, _Answers]) -> list[Comparison]:
        found = []
        for count in self.per_step:
            pairs = [
                (f"nap forced, {count}", f"chain any order, {count}"),
                (f"nap any order, {count}", f"chain any order, {count}"),
                (f"nap forced, {count}", f"nap any order, {count}"),
                (f"chain forced, {count}", f"chain any order, {count}"),
            ]
            for a, b in pairs:
                x, y = answers[a], answers[b]
                found.append(_compared(a, b, "accuracy", x.right, y.right))
                found.append(_compared(a, b, "arness", np.array(x.arness), np.array(y.arness)))
        most, least = max(self.per_step), min(self.per_step)
        a, b = "chain any order", "nap forced"
        x, y = (answers[f"{n}, {least}"].right - answers[f"{n}, {most}"].right for n in (a, b))
        found.append(_compared(f"{a}, {most}", f"{b}, {most}", "lost accuracy", x, y))
        return found

    def _claims(self, comparisons: Sequence[Comparison]) -> list[Claim]:
        known = {(c.a, c.b, c.metric): c for c in comparisons}
        most = max(self.per_step)
        nap, chain = f"nap forced, {most}", f"chain any order, {most}"

        def judged(
            name: str, text: str, a: str, b: str, metric: str, op: str, target: float
        ) -> Claim:
            c = known[a, b, metric]
            return claim(name, "difference", a, b, metric, c.value, c.ci, op, target, text)  # type: ignore[arg-type]

        return [
            judged("accuracy", f"at {most} tokens per step NAP is more accurate",
                   nap, chain, "accuracy", ">", 0.0),
            judged("order", f"at {most} tokens per step it is further from left-to-right",
                   nap, chain, "arness", "<", 0.0),
            judged("distance", f"its ARness is lower by at least {_LOWER}",
                   nap, chain, "arness", "<=", -_LOWER),
            judged("drop", f"the chain loses {100 * _MARGIN:.0f} points more from 1 to {most}",
                   chain, nap, "lost accuracy", ">=", _MARGIN),
            judged("schedule", f"at {most} tokens per step forced paths are as good as any order",
                   nap, f"nap any order, {most}", "accuracy", ">=", 0.0),
            judged("needs training", "forcing a model trained on chains makes it worse",
                   f"chain forced, {most}", chain, "accuracy", "<", 0.0),
        ]  # fmt: skip


def _compared(a: str, b: str, metric: str, first: np.ndarray, second: np.ndarray) -> Comparison:
    """`a` less `b` on the same problems."""
    value, low, high = paired_bootstrap(first, second, "difference")
    test, p = f"paired bootstrap of the difference, {len(first)} problems", None
    if metric == "accuracy":
        test, p = f"{test}; p from McNemar's exact test", mcnemar(first, second)
    return Comparison(a=a, b=b, metric=metric, value=value, ci=(low, high), test=test, p=p)


def _arm(name: str, answers: _Answers) -> Arm:
    right, n = int(answers.right.sum()), len(answers.outcomes)
    metrics = {
        "accuracy": Metric(value=right / n, ci=wilson(right, n), n=n, unit="fraction"),
    }
    for key, values in (("arness", answers.arness), ("forwards", answers.steps)):
        value, low, high = bootstrap_mean(np.array(values, dtype=float))
        metrics[key] = Metric(value=value, ci=(low, high), n=n, unit="")
    return Arm(name=name, chain=answers.chain, metrics=metrics)


NAP = NapProof()
