"""Proof of BeyondBench (arXiv 2509.24210): a score on fresh problems cannot be memorised.

Two equal character transformers learn to name the largest of four numbers, for the same number of
steps: `memoriser` from 300 fixed problems, `learner` from a stream that never repeats. Each is
asked the problems it was trained on and 1,000 fresh ones of the test split. The learner then meets
longer lists, and fresh problems again with its weights rounded to 8, 4 and 2 bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whet.ar.causal import CausalTraining
from whet.bench.eval_models import wrap_model
from whet.data.mixture import Source
from whet.errors import InputError
from whet.evaluate import Outcome, Problem, outcome_metrics, paired_comparisons
from whet.evaluate.run import Budget, plan, run_model
from whet.fit import FitSettings, fit
from whet.layers.rounding import round_linears
from whet.measure.items import save_items
from whet.measure.record import Arm, Claim, Comparison, Record, claim, new_record
from whet.measure.stats import Floats, newcombe, paired_bootstrap
from whet.reproduce import OnProgress
from whet.tasks import Instance, Task, get_task, problems, trainable
from whet.zoo.training import TaskRecipe

_RANGE = "low=-99,high=99"
_WORDS = [
    "Find the largest number in [",
    "]. End with the result in digits, as \\boxed{result}.",
    "\\boxed{",
    ", ",
]


@dataclass(frozen=True)
class BeyondBenchProof:
    """Settings of the proof. seed: of problems and weights."""

    fixed: int = 300
    fresh: int = 1000
    longer: int = 300
    size: int = 4
    sizes: tuple[int, ...] = (2, 6, 8)
    bits: tuple[int, ...] = (8, 4, 2)
    steps: int = 3000
    batch_size: int = 64
    width: int = 128
    seed: int = 20250924

    def run(self, *, quick: bool, out: Path, on_progress: OnProgress) -> Record:
        """Train both, ask both, judge."""
        proof = replace(self, steps=self.steps // 20, fresh=100, longer=40) if quick else self
        return proof._run(out, "smoke" if quick else "cpu", on_progress)

    def _run(self, out: Path, level: str, on_progress: OnProgress) -> Record:
        task = self._task(self.size)
        fixed = list(problems(task, seed=self.seed, split="train", count=self.fixed))
        work = out / "beyondbench.work" / level  # a checkpoint of another length is refused
        memoriser = self._train(_cycle(fixed), work / "memoriser", "memoriser")
        on_progress(0.4)
        learner = self._train(_stream(task), work / "learner", "learner")
        on_progress(0.8)
        seen = self._seen(task)
        fresh = list(problems(task, seed=self.seed, split="test", count=self.fresh))
        results = {
            "memoriser, its problems": self._ask(memoriser, task, fixed),
            "memoriser, fresh": self._ask(memoriser, task, fresh),
            "learner, its problems": self._ask(learner, task, seen),
            "learner, fresh": self._ask(learner, task, fresh),
        }
        on_progress(0.88)
        for size in self.sizes:
            other = self._task(size)
            asked = list(problems(other, seed=self.seed, split="test", count=self.longer))
            results[f"learner, {size} numbers"] = self._ask(learner, other, asked)
        for bits in self.bits:
            model, tokenizer = learner
            rounded = copy.deepcopy(model)
            round_linears(rounded, bits)
            results[f"learner, {bits} bits"] = self._ask((rounded, tokenizer), task, fresh)
        on_progress(1.0)
        return self._record(results, out, level)

    def _task(self, size: int) -> Task:
        return get_task(f"find_maximum:size={size},{_RANGE}")

    def _training(self, source: Source) -> CausalTraining:
        recipe = TaskRecipe.model_validate(
            {
                "method": "causal",
                "model": {
                    "model_type": "llama",
                    "hidden_size": self.width,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 4,
                    "num_hidden_layers": 2,
                    "intermediate_size": 3 * self.width,
                    "vocab_size": 112,
                    "max_position_embeddings": 256,
                    "tie_word_embeddings": True,
                },
                "data": {
                    "tasks": {f"find_maximum:size={self.size},{_RANGE}": 1.0},
                    "words": _WORDS,
                    "gen_lengths": None,
                    "batch_size": self.batch_size,
                },
                "fit": FitSettings(
                    steps=self.steps,
                    learning_rate=0.002,
                    warmup=100,
                    ema=0.99,
                    seed=self.seed,
                ).model_dump(),
            }
        )
        return CausalTraining(recipe, sources=dict.fromkeys(recipe.data.tasks, source))

    def _train(self, source: Source, run: Path, label: str) -> tuple[Any, Any]:
        """Train, or go on from the run's last checkpoint; the averaged model and its tokenizer."""
        training = self._training(source)
        identity = {"proof": "beyondbench", "arm": label, "fixed": self.fixed}
        identity |= training.recipe.model_dump(mode="json")
        fit(training, training.recipe.fit, run=run, identity=identity, label=label)
        average = training.players["model"].ema
        assert average is not None
        with average.swapped_in(training.model):
            return copy.deepcopy(training.model).eval(), training.tokenizer

    def _seen(self, task: Task) -> list[Instance]:
        """The first problems of the learner's own stream, drawn again by its keys.

        Fewer than `fresh` where the training did not draw as many.
        """
        found: dict[str, Instance] = {}

        def note(rng: np.random.Generator) -> tuple[str, str]:
            instance = _draw(task, rng)
            found.setdefault(instance.prompt, instance)
            return instance.prompt, instance.example

        mixture = self._training(note).mixture
        for step in range(self.steps):
            if len(found) >= self.fresh:
                break
            mixture.batch(step)
        return list(found.values())[: self.fresh]

    def _ask(
        self, loaded: tuple[Any, Any], task: Task, instances: Sequence[Instance]
    ) -> list[Outcome]:
        model = wrap_model(*loaded, name="transformer", batch_size=200)
        asked = [Problem(f"{task.id}-{i.key}", task, i) for i in instances]
        budget = Budget(max_new_tokens=16, reasoning=0)
        return run_model(model, asked, plan=plan(model, asked, budget=budget))

    def _record(self, results: dict[str, list[Outcome]], out: Path, level: str) -> Record:
        baseline = results["learner, fresh"]
        right = {name: [float(o.correct) for o in r] for name, r in results.items()}
        comparisons = [
            c
            for name in (f"learner, {bits} bits" for bits in self.bits)
            for c in paired_comparisons(
                name, "learner, fresh", right[name], right["learner, fresh"]
            )
        ]
        arms = [
            Arm(
                name=name,
                chain="autoregressive",
                metrics={
                    k: v
                    for k, v in outcome_metrics(outcomes).items()
                    if k in ("accuracy", "strict_accuracy", "unparsed", "truncated")
                },
            )
            for name, outcomes in results.items()
        ]
        shared = {
            n: r for n, r in results.items() if len(r) == len(baseline) and _same(r, baseline)
        }
        items = {
            "ids": [o.problem.id for o in baseline],
            "arms": {n: {"correct": [int(o.correct) for o in r]} for n, r in shared.items()},
        }
        return new_record(
            "beyondbench",
            title="BeyondBench: what was memorised does not score on fresh problems",
            level="smoke" if level == "smoke" else "cpu",
            seeds={"problems": self.seed, "training": self.seed},
            settings={
                "task": f"find_maximum, {self.size} numbers of -99 to 99",
                "log10_space": round(self._task(self.size).log10_space(), 2),
                "fixed": self.fixed,
                "fresh": self.fresh,
                "steps": self.steps,
                "batch_size": self.batch_size,
                "layers": 2,
                "width": self.width,
            },
            arms=arms,
            items=save_items(out / "beyondbench.items.json", items),
            comparisons=comparisons,
            claims=_claims(results, comparisons, self),
            notes=[
                "Intervals of gaps between different problems are Newcombe's, from two Wilson "
                "intervals; rounded weights are compared on the same problems.",
                "Both models have the same weights at the start, the same number of steps and "
                "the same batches but for the problems in them.",
                "Training problems are of the training split, fresh ones of the test split: no "
                "problem is in both.",
            ],
        )


def _claims(
    results: dict[str, list[Outcome]], comparisons: list[Comparison], proof: BeyondBenchProof
) -> list[Claim]:
    def gap(name: str, a: str, b: str, op: str, target: float, text: str) -> Claim:
        (k, n), (j, m) = ((sum(o.correct for o in results[x]), len(results[x])) for x in (a, b))
        value, low, high = newcombe(k, n, j, m)
        return claim(
            name, "difference", a, b, "accuracy", value, (low, high), op, target, text  # type: ignore[arg-type]
        )  # fmt: skip

    most, least = f"learner, {max(proof.bits)} bits", f"learner, {min(proof.bits)} bits"
    right = {n: np.array([o.correct for o in r], dtype=float) for n, r in results.items()}
    kept = _kept(right[most], right["learner, fresh"])
    lost = next(c for c in comparisons if c.a == least)
    longest = f"learner, {max(proof.sizes)} numbers"
    return [
        gap("memory", "memoriser, its problems", "memoriser, fresh", ">=", 0.4,
            "what was memorised is worth 40 points less on fresh problems"),
        gap("learning", "learner, its problems", "learner, fresh", "<=", 0.03,
            "what was learnt is worth the same on fresh problems (3 points)"),
        gap("difficulty", longest, "learner, fresh", "<", 0.0,
            "longer lists than those trained on are harder"),
        claim(f"{max(proof.bits)} bits", "ratio", most, "learner, fresh", "accuracy",
              kept[0], kept[1:], ">=", 0.98, f"{max(proof.bits)} bits keep 0.98 of the accuracy"),
        claim(f"{min(proof.bits)} bits", "difference", least, "learner, fresh", "accuracy",
              lost.value, lost.ci, "<", 0.0, f"{min(proof.bits)} bits visibly lose"),
    ]  # fmt: skip


def _kept(a: Floats, b: Floats) -> tuple[float, float, float]:
    """mean(a) / mean(b) with its interval; 0 to 1, which is open, where too few are right."""
    try:
        return paired_bootstrap(a, b, "ratio")
    except InputError:
        value = float(a.mean() / b.mean()) if b.any() else 0.0
        return value, 0.0, max(1.0, value)


def _same(a: Sequence[Outcome], b: Sequence[Outcome]) -> bool:
    return [o.problem.id for o in a] == [o.problem.id for o in b]


def _draw(task: Task, rng: np.random.Generator) -> Instance:
    while True:
        instance = task.generate(rng)
        if trainable(task, instance):
            return instance


def _stream(task: Task) -> Callable[[np.random.Generator], tuple[str, str]]:
    def draw(rng: np.random.Generator) -> tuple[str, str]:
        instance = _draw(task, rng)
        return instance.prompt, instance.example

    return draw


def _cycle(fixed: Sequence[Instance]) -> Callable[[np.random.Generator], tuple[str, str]]:
    def draw(rng: np.random.Generator) -> tuple[str, str]:
        instance = fixed[int(rng.integers(len(fixed)))]
        return instance.prompt, instance.example

    return draw


BEYONDBENCH = BeyondBenchProof()
