"""Proof of layer pruning (arXiv 2602.01997): answers of many steps suffer first, and heal less.

A Llama of 8 blocks learns three tasks: one of choice and two of writing (`three_tasks`). Then 1, 2
and 3 blocks go by each criterion, and retention (accuracy over the whole model's) of choice and of
writing is compared on the same fresh problems. Where 2 blocks went, what is left is healed on the
whole model's own answers and, as a control, on right answers to the same prompts. Decoding is
timed against the whole model in turns.

A guess at a choice is right a quarter of the time, which alone keeps its retention up; the first
claim is therefore made a second time with what exceeds chance.

The choice is which of four letters occurs in a string. Whether a pair of letters does, yes or no,
Llamas of this size did not learn in this time (51 % right); which of four letters occurs most they
learn so well that none of it is lost with 3 blocks gone, so that nothing is left to heal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from whet import rng as rng_
from whet.compress.data import padded
from whet.compress.heal import Heal
from whet.compress.layer_pruning import Choice, LayerPruning
from whet.compress.layer_pruning.method import Criterion
from whet.compress.method import Job
from whet.measure.clock import alternate, ratio_interval
from whet.measure.items import save_items
from whet.measure.record import Arm, Claim, Comparison, Metric, Record, claim, new_record
from whet.measure.stats import Floats, wilson
from whet.models.edits import drop_blocks
from whet.models.edits.drop import without_blocks
from whet.reproduce import OnProgress
from whet.reproduce.three_tasks import (
    CHANCE,
    CHOICE,
    TASKS,
    WRITTEN,
    Answers,
    ThreeTasks,
    ask,
    ids_of,
    problems,
)

_FIVE: tuple[Criterion, ...] = ("cosine", "angular", "reverse", "iterative", "perplexity")
_CONTROLS: tuple[Criterion, ...] = ("simple", "magnitude", "taylor", "random")
_WHOLE = "whole"
_OWN, _RIGHT = "healed on its own answers", "healed on right answers"
_HEALINGS: Mapping[str, Literal["self", "answers"]] = {_OWN: "self", _RIGHT: "answers"}


@dataclass(frozen=True)
class LayerPruningProof:
    """Settings of the proof.

    removed: numbers of blocks that go; healed: of those, the one that is healed and timed. test,
    validation, calibration, prompts: problems of each task (training split for the last two).
    heal: options of the fine-tuning, but for its data.
    """

    tasks: ThreeTasks = field(default_factory=ThreeTasks)
    removed: tuple[int, ...] = (1, 2, 3)
    healed: int = 2
    test: int = 300
    validation: int = 80
    calibration: int = 32
    prompts: int = 200
    heal: Mapping[str, Any] = field(default_factory=lambda: {"max_new_tokens": 24})
    rounds: int = 24
    decoded: int = 32
    batch_size: int = 64
    seed: int = 2602

    def run(self, *, quick: bool, out: Path, on_progress: OnProgress) -> Record:
        """Train, prune by every criterion, heal, ask, time, judge."""
        proof = self
        if quick:
            tasks = replace(self.tasks, steps=self.tasks.steps // 15)
            heal = {**self.heal, "steps": 20, "warmup": 5}
            small: dict[str, Any] = {"test": 60, "validation": 20, "prompts": 32, "rounds": 6}
            proof = replace(self, tasks=tasks, heal=heal, removed=(self.healed,), **small)
        return proof._run(out, "smoke" if quick else "cpu", on_progress)

    def _run(self, out: Path, level: Literal["smoke", "cpu"], on_progress: OnProgress) -> Record:
        work = out / "layer-pruning.runs" / level
        model, tokenizer = self.tasks.trained(work / "whole")
        on_progress(0.5)
        bench = _Bench(self, model, tokenizer, work)
        asked = {_WHOLE: bench.ask(model)}
        dropped: dict[str, tuple[int, ...]] = {_WHOLE: ()}
        chosen = [(c, n) for n in self.removed for c in (*_FIVE, *_CONTROLS)]
        for number, (criterion, n) in enumerate(chosen):
            blocks = bench.choose(criterion, n)
            name = _name(criterion, n)
            dropped[name] = blocks
            asked[name] = bench.ask(without_blocks(model, blocks), blocks)
            on_progress(0.5 + 0.2 * (number + 1) / len(chosen))
        for number, criterion in enumerate(_FIVE):
            for how, data in _HEALINGS.items():
                name = _name(criterion, self.healed)
                dropped[f"{name}, {how}"] = dropped[name]
                asked[f"{name}, {how}"] = bench.healed(dropped[name], data)
            on_progress(0.7 + 0.25 * (number + 1) / len(_FIVE))
        seconds = bench.seconds(dropped[_name("cosine", self.healed)])
        on_progress(1.0)
        return self._record(asked, dropped, seconds, model, out, level)

    # --- the record

    def _record(
        self,
        asked: Mapping[str, Mapping[str, Answers]],
        dropped: Mapping[str, tuple[int, ...]],
        seconds: Mapping[str, Sequence[float]],
        model: Any,
        out: Path,
        level: Literal["smoke", "cpu"],
    ) -> Record:
        means = _Means(asked, self.seed)
        tests = {task: self._asked(task) for task in TASKS}
        items = {
            "ids": [prompt for task in TASKS for prompt, _ in tests[task]],
            "arms": {
                name: {"correct": [int(x) for task in TASKS for x in answers[task].right]}
                for name, answers in asked.items()
            },
        }
        size = sum(p.numel() for p in model.parameters())
        block = sum(p.numel() for p in model.model.layers[0].parameters())
        arms = [
            _arm(name, answers, dropped[name], size - block * len(dropped[name]), means)
            for name, answers in asked.items()
        ]
        return new_record(
            "layer-pruning",
            title="Layer pruning: answers of many steps suffer first, and heal less",
            level=level,
            seeds={"problems": self.seed, "training": self.tasks.seed},
            settings={
                "layers": self.tasks.layers,
                "width": self.tasks.width,
                "training_steps": self.tasks.steps,
                "removed": list(self.removed),
                "healed": self.healed,
                "problems_per_task": self.test,
                "prompts_per_task": self.prompts,
                "heal": {key: getattr(self._heal("self"), key) for key in _TOLD},
                "decode": f"{self.decoded} tokens, batch {self.batch_size}",
            },
            arms=arms,
            items=save_items(out / "layer-pruning.items.json", items),
            comparisons=self._comparisons(means),
            claims=self._claims(means, dropped, seconds),
            notes=[
                "choice: membership; writing: mean of addition and brackets. retention: accuracy "
                "over the whole model's; above_chance: of what exceeds a quarter for choice.",
                "Intervals resample the problems of each task, the same ones for all arms; one "
                "trained model, so that they say nothing about other ones.",
                "Counts of criteria: as observed; as many as whole intervals say; as many as no "
                "interval denies.",
                "The iterative criterion is led by validation problems of all three tasks, "
                "perplexity by their texts; the others see texts of the training split.",
                "closed: share of the loss of accuracy that healing made good, summed over the "
                "criteria's choices, each counted once. An interval that ends at 1,000 has no end: "
                "in many resamples nothing was lost.",
            ],
        )

    def _asked(self, task: str) -> list[tuple[str, str]]:
        return problems(task, "test", self.test, seed=self.seed)

    def _heal(self, data: Literal["self", "answers"]) -> Heal:
        return Heal(data=data, **self.heal)

    def _comparisons(self, means: _Means) -> list[Comparison]:
        found = []
        names = [_name(c, n) for n in self.removed for c in (*_FIVE, *_CONTROLS)]
        for name in names:
            for metric, corrected in (("retention", False), ("above_chance", True)):
                value, low, high = means.gap(name, corrected)
                if np.isnan(value):  # the whole model is right by chance alone
                    continue
                found.append(
                    Comparison(
                        a=name,
                        b=_WHOLE,
                        metric=f"{metric}: writing - choice",
                        value=value,
                        ci=(low, high),
                        test="bootstrap over problems",
                    )
                )
        return found

    def _claims(
        self,
        means: _Means,
        dropped: Mapping[str, tuple[int, ...]],
        seconds: Mapping[str, Sequence[float]],
    ) -> list[Claim]:
        n = self.healed
        first, default = _name("iterative", n), _name("cosine", n)
        raw, corrected = (self._suffers_first(means, c) for c in (False, True))
        pairs: dict[tuple[int, ...], str] = {}
        for criterion in _FIVE:
            pairs.setdefault(dropped[_name(criterion, n)], _name(criterion, n))
        closed = means.closed(list(pairs.values()), CHOICE)
        less = means.closed_less(list(pairs.values()))
        better = means.better("iterative", "cosine", self.removed)
        ratio, low, high = ratio_interval(seconds["whole"], seconds["pruned"], seed=self.seed)
        due = self.tasks.layers / (self.tasks.layers - n)
        speed = (ratio / due, (low / due, high / due))
        text = f"decoding gets faster as blocks get fewer, {due:.2f} times"
        found = [
            claim("writing suffers first", "order", default, _WHOLE, "criteria", *raw, ">=", 4,
                  f"with {n} blocks gone, writing is retained less than choice by 4 of 5 criteria"),
            claim("above chance", "order", default, _WHOLE, "criteria", *corrected, ">=", 4,
                  "the same of what exceeds chance"),
            claim("iterative", "difference", first, default, "accuracy", *better, ">=", 0.0,
                  "the iterative choice keeps at least the accuracy of the cosine's"),
            claim("speed, at least", "ratio", _WHOLE, default, "seconds", *speed, ">=", 0.9,
                  f"{text}, 10 % less at worst"),
            claim("speed, at most", "ratio", _WHOLE, default, "seconds", *speed, "<=", 1.1,
                  f"{text}, 10 % more at best"),
        ]  # fmt: skip
        own = f"{default}, {_OWN}"
        if closed is not None:
            found.append(
                claim("choice heals", "ratio", own, default, "closed", *closed, ">=", 0.5,
                      "healing on its own answers makes good half of what choice lost"),
            )  # fmt: skip
        if less is not None:
            found.append(
                claim("addition heals less", "difference", own, default, "closed", *less, "<", 0.0,
                      "and a smaller share of what addition lost"),
            )  # fmt: skip
        return found

    def _suffers_first(self, means: _Means, corrected: bool) -> tuple[float, tuple[float, float]]:
        gaps = [means.gap(_name(c, self.healed), corrected) for c in _FIVE]
        sure = sum(high < 0 for _, _, high in gaps)
        open_ = sum(low < 0 for _, low, _ in gaps)
        return float(sum(value < 0 for value, _, _ in gaps)), (float(sure), float(open_))


_TOLD = ("steps", "batch_size", "learning_rate", "warmup", "rank", "alpha", "temperature", "top_p")
Interval = tuple[float, tuple[float, float]]


class _Bench:
    """The trained model with everything that is measured on it; equal choices are asked once."""

    def __init__(self, proof: LayerPruningProof, model: Any, tokenizer: Any, work: Path) -> None:
        self.proof, self.model, self.tokenizer, self.work = proof, model, tokenizer, work
        self.known: dict[Any, dict[str, Answers]] = {}
        self.choices: dict[tuple[str, int], Choice] = {}
        self.tests = {task: proof._asked(task) for task in TASKS}
        self.trial = self._drawn("validation", proof.validation)
        self.seen = self._texts(self._drawn("train", proof.calibration))
        self.held_out = self._texts(self.trial)

    def ask(self, model: Any, key: Any = None) -> dict[str, Answers]:
        """Answers to the test problems. key: of a model that may have been asked before."""
        if key is None or key not in self.known:
            found = {task: ask(model, self.tokenizer, self.tests[task]) for task in TASKS}
            self.known[key] = found
        return self.known[key]

    def choose(self, criterion: Criterion, n: int) -> tuple[int, ...]:
        """Which blocks go. A search for more blocks begins with the search for fewer."""
        searched = criterion in ("iterative", "perplexity")
        asked = max(self.proof.removed) if searched else n
        if (criterion, asked) not in self.choices:
            batches = self.held_out if criterion == "perplexity" else self.seen
            job = Job(
                model=self.model,
                batches=batches,
                seed=self.proof.seed,
                folder=self.work / f"{criterion}-{asked}",
                evaluate=self._accuracy,
            )
            self.choices[criterion, asked] = LayerPruning(criterion=criterion, n=asked).choose(job)
        choice = self.choices[criterion, asked]
        return tuple(sorted(choice.scores["order"][:n])) if searched else choice.blocks

    def healed(
        self, blocks: tuple[int, ...], data: Literal["self", "answers"]
    ) -> dict[str, Answers]:
        """Answers of what is left without these blocks and then fine-tuned."""
        key = (blocks, data)
        if key in self.known:
            return self.known[key]
        model = copy.deepcopy(self.model)
        drop_blocks(model, blocks)
        pairs = [p for own in self._drawn("train", self.proof.prompts).values() for p in own]
        end = self.tokenizer.eos_token_id
        job = Job(
            model=model,
            batches=self.seen,
            tokenizer=self.tokenizer,
            seed=self.proof.seed,
            folder=self.work / f"heal-{data}-{'-'.join(map(str, blocks))}",
            original=lambda: copy.deepcopy(self.model),
            prompts=ids_of(self.tokenizer, [prompt for prompt, _ in pairs]),
            answers=[[*ids, end] for ids in ids_of(self.tokenizer, [a for _, a in pairs])],
        )
        self.proof._heal(data).apply(job)
        return self.ask(model, key)

    def seconds(self, blocks: tuple[int, ...]) -> dict[str, list[float]]:
        """Of decoding, with and without these blocks, in turns."""
        ids = torch.full((self.proof.batch_size, 8), 20)
        count = self.proof.decoded

        def decode(model: Any) -> Callable[[], object]:
            return lambda: model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=count,
                min_new_tokens=count,
                pad_token_id=0,
            )

        smaller = without_blocks(self.model, blocks)
        variants = {"whole": decode(self.model), "pruned": decode(smaller)}
        return alternate(variants, repeats=self.proof.rounds, warmup=2)

    def _accuracy(self, model: Any) -> dict[str, float]:
        return {
            task: float(ask(model, self.tokenizer, self.trial[task]).right.mean()) for task in TASKS
        }

    def _drawn(
        self, split: Literal["train", "validation"], count: int
    ) -> dict[str, list[tuple[str, str]]]:
        return {task: problems(task, split, count, seed=self.proof.seed) for task in TASKS}

    def _texts(self, drawn: Mapping[str, list[tuple[str, str]]]) -> list[dict[str, Tensor]]:
        """Problems with their answers, a batch per task, so that little is padded."""
        end = self.tokenizer.eos_token_id
        rows = [[p + a for p, a in drawn[task]] for task in TASKS]
        return [padded([[*ids, end] for ids in ids_of(self.tokenizer, own)], end) for own in rows]


class _Means:
    """Accuracies, and what they are in 4,000 resamples of the problems (which all arms share)."""

    def __init__(self, asked: Mapping[str, Mapping[str, Answers]], seed: int) -> None:
        self.means: dict[tuple[str, str], Floats] = {}
        for task in TASKS:
            count = len(asked[_WHOLE][task].right)
            rng = rng_.keyed(seed, "bootstrap", task)
            drawn = rng.multinomial(count, np.full(count, 1 / count), 4000)
            weights = np.concatenate([np.ones((1, count)), drawn]) / count  # as observed first
            for name, answers in asked.items():
                self.means[name, task] = weights @ answers[task].right

    def accuracy(self, name: str, tasks: Sequence[str]) -> Floats:
        """Mean over tasks, [1 + resamples]."""
        return np.asarray(np.mean([self.means[name, task] for task in tasks], axis=0))

    def retention(self, name: str, tasks: Sequence[str], corrected: bool = False) -> Floats:
        """Over the whole model's, [1 + resamples]."""
        chance = float(np.mean([CHANCE[task] for task in tasks])) if corrected else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            return (self.accuracy(name, tasks) - chance) / (self.accuracy(_WHOLE, tasks) - chance)

    def gap(self, name: str, corrected: bool) -> tuple[float, float, float]:
        """Retention of writing minus that of choice, with its interval."""
        difference = self.retention(name, WRITTEN, corrected) - self.retention(
            name, CHOICE, corrected
        )
        return _with_interval(difference)

    def closed(self, names: Sequence[str], tasks: Sequence[str]) -> Interval | None:
        """Share of what was lost that healing on own answers made good; None where none was."""
        return _as_interval(self._closed(names, tasks))

    def closed_less(self, names: Sequence[str]) -> Interval | None:
        """That of addition minus that of choice."""
        return _as_interval(self._closed(names, ("addition",)) - self._closed(names, CHOICE))

    def better(self, a: str, b: str, removed: Sequence[int]) -> Interval:
        """Mean accuracy by one criterion minus that by another, over all numbers of blocks."""
        difference = np.mean(
            [
                self.accuracy(_name(a, n), TASKS) - self.accuracy(_name(b, n), TASKS)
                for n in removed
            ],
            axis=0,
        )
        value, low, high = _with_interval(difference)
        return value, (low, high)

    def _closed(self, names: Sequence[str], tasks: Sequence[str]) -> Floats:
        gained = np.sum(
            [self.accuracy(f"{n}, {_OWN}", tasks) - self.accuracy(n, tasks) for n in names], axis=0
        )
        lost = np.sum(
            [self.accuracy(_WHOLE, tasks) - self.accuracy(n, tasks) for n in names], axis=0
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(lost > 0, gained / lost, np.nan)


def _with_interval(draws: Floats) -> tuple[float, float, float]:
    """As observed, with the interval of the resamples; a draw without a value is the worst."""
    missing = np.isnan(draws[1:])
    low = np.quantile(np.where(missing, -1e3, draws[1:]), 0.025, method="lower")
    high = np.quantile(np.where(missing, 1e3, draws[1:]), 0.975, method="higher")
    return float(draws[0]), float(low), float(high)


def _as_interval(draws: Floats) -> Interval | None:
    value, low, high = _with_interval(draws)
    return None if np.isnan(value) else (value, (low, high))


def _name(criterion: str, n: int) -> str:
    assert criterion in get_args(Criterion)
    return f"{criterion}, {n}"


def _arm(
    name: str,
    answers: Mapping[str, Answers],
    dropped: tuple[int, ...],
    parameters: int,
    means: _Means,
) -> Arm:
    metrics: dict[str, Metric] = {}
    for task in TASKS:
        right = answers[task].right
        k, count = int(right.sum()), len(right)
        metrics[f"accuracy/{task}"] = Metric(value=k / count, ci=wilson(k, count), n=count)
    for kind, tasks in (("choice", CHOICE), ("writing", WRITTEN)):
        for metric, corrected in (("retention", False), ("above_chance", True)):
            value, low, high = _with_interval(means.retention(name, tasks, corrected))
            if np.isfinite([value, low, high]).all():
                metrics[f"{metric}/{kind}"] = Metric(value=value, ci=(low, high))
    metrics["repetition"] = Metric(value=float(np.mean([answers[t].repeated for t in WRITTEN])))
    metrics["ended"] = Metric(value=float(np.mean([answers[t].ended for t in TASKS])))
    chain = "layer-pruning" if dropped else "none"
    return Arm(
        name=name,
        chain=f"{chain} + heal" if "healed" in name else chain,
        settings={"dropped": list(dropped), "parameters": parameters},
        metrics=metrics,
    )


LAYER_PRUNING = LayerPruningProof()
