"""Proof of masked consistency distillation (arXiv 2602.00792): is an eighth of the steps as good?

The source is a Markov chain of order 2 over 32 symbols, whose likelihood is known: a sample's
quality is its exact NLL, compared with the source's entropy. A small masked LM is trained on it
(the teacher) and goes on for equal steps in four ways: MCD, MCD with the divergence it did not
choose, SDTT's targets, plain masked training. All are sampled by the ancestral sampler with the
same noise, at several numbers of steps. Likelihood alone can be bought with diversity, so the
entropies of symbols, of pairs and of a symbol given the two before it are measured beside it, and
one control does just that: the teacher at the temperature that suits it best.

Divergence and temperature are chosen on samples of a seed that is not reported.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from whet.data.mixture import ResponseBatch
from whet.dlm.ancestral import Ancestral
from whet.dlm.canvas import denoise
from whet.dlm.mcd import McdRecipe, McdTraining, whole
from whet.dlm.provider import MakeProvider
from whet.fit import fit
from whet.measure.items import save_items
from whet.measure.record import Arm, Claim, Comparison, Metric, Op, Record, claim, new_record
from whet.measure.stats import Floats, quantile_interval
from whet.models.llada import LLaDAConfig, LLaDAModelLM
from whet.reproduce import OnProgress
from whet.reproduce.markov import LENGTH, SYMBOLS, Chain, exact
from whet.rng import key_bits, keyed

_GUARD = 0.03
_STEPS = (4, 8, 16, 32, 64)
_ENTROPIES = ("entropy", "pair_entropy", "conditional_entropy")


class Entropies(NamedTuple):
    """Nats, of all positions pooled: of a symbol, of two in a row, of one given the two before."""

    entropy: float
    pair_entropy: float
    conditional_entropy: float


def entropies(tokens: Int[Tensor, "N L"], weights: Floats, symbols: int = SYMBOLS) -> Entropies:
    """The plug-in estimates where sequence n counts weights[n] times."""
    x = tokens.numpy()
    found = []
    for order in (1, 2, 3):
        places = x.shape[1] - order + 1
        cells = sum(x[:, k : k + places] * symbols ** (order - 1 - k) for k in range(order))
        counts = np.bincount(np.ravel(cells), np.repeat(weights, places), symbols**order)
        p = counts[counts > 0] / counts.sum()
        found.append(float(-(p * np.log(p)).sum()))
    return Entropies(found[0], found[1], found[2] - found[1])


class _Samples(NamedTuple):
    """An arm: its texts, the gap of each to the source's entropy, and resampled statistics.

    drawn: name -> [resamples], of means over resampled sequences, in which sequence n is the
    same request in every arm.
    """

    tokens: Tensor
    gap: Floats
    value: dict[str, float]
    drawn: dict[str, Floats]
    chain: str
    forwards: float


@dataclass(frozen=True)
class McdProof:
    """Settings of the proof.

    near, far: how strongly the chain depends on the last symbol and the one before. steps: of the
    teacher. rounds x round_steps: of everything that starts from it, jumps of 2^n / resolution.
    """

    near: float = 2.0
    far: float = 1.0
    width: int = 96
    layers: int = 3
    steps: int = 1500
    learning_rate: float = 3e-3
    rounds: int = 4
    round_steps: int = 200
    resolution: int = 64
    distil_rate: float = 2e-3
    data_weight: float = 1.0
    batch_size: int = 32
    samples: int = 1024
    validation: int = 256
    temperatures: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    resamples: int = 1000
    seed: int = 26020079

    def run(self, *, quick: bool, out: Path, on_progress: OnProgress) -> Record:
        """Train, distil, sample, judge."""
        proof = self
        if quick:
            proof = replace(self, steps=150, round_steps=10, samples=128, resamples=200)
        return proof._run(out, "smoke" if quick else "cpu", on_progress)

    def _run(self, out: Path, level: Literal["smoke", "cpu"], on_progress: OnProgress) -> Record:
        chain = Chain.drawn(self.seed, near=self.near, far=self.far)
        work = out / "mcd.runs" / level
        teacher = self._train(chain, work / "teacher", self._fresh(), "plain")
        on_progress(0.2)
        students: dict[str, Any] = {}
        for name, settings in _STUDENTS.items():
            students[name] = self._train(chain, work / name, teacher, **settings)
            on_progress(0.2 + 0.5 * len(students) / len(_STUDENTS))
        chosen = self._choose(chain, teacher, students)
        on_progress(0.75)
        plan = self._plan(teacher, students, chosen)
        ideal = {f"exact@{n}": (teacher, n, 1.0, exact(chain)) for n in (4, 8, 64)}
        results = {"source": self._measure(chain, self._own(chain), "source", 0.0)}
        for name, (model, steps, temperature, maker) in (plan | ideal).items():
            results[name] = self._sampled(chain, model, steps, temperature, make_provider=maker)
            on_progress(0.75 + 0.25 * len(results) / (len(plan) + len(ideal) + 1))
        return self._record(chain, results, chosen, out, level)

    def _fresh(self) -> Any:
        """A model with random weights; its vocabulary is the symbols and the mask."""
        config = LLaDAConfig(
            d_model=self.width,
            n_heads=4,
            n_layers=self.layers,
            mlp_hidden_size=2 * self.width,
            vocab_size=SYMBOLS + 1,
            max_sequence_length=LENGTH,
            rope_theta=10000.0,
            mask_token_id=SYMBOLS,
            eos_token_id=None,
            pad_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key_bits(self.seed, "weights", bits=64) >> 1)
            return LLaDAModelLM(config)

    def _train(
        self,
        chain: Chain,
        run: Path,
        start: Any,
        targets: str,
        divergence: str = "forward",
    ) -> Any:
        """Train from a copy of `start`, or go on from the run's checkpoint; the averaged model."""
        first = run.name == "teacher"
        recipe = McdRecipe.model_validate(
            {
                "method": "mcd",
                "init": run.name,
                "text": {"path": "chain", "length": LENGTH, "batch_size": self.batch_size},
                "mcd": {
                    "targets": targets,
                    "divergence": divergence,
                    "data_weight": self.data_weight,
                    "resolution": self.resolution,
                    "round_steps": self.round_steps,
                },
                "fit": {
                    "steps": self.steps if first else self.rounds * self.round_steps,
                    "learning_rate": self.learning_rate if first else self.distil_rate,
                    "warmup": 50,
                    "ema": 0.99,
                    "seed": self.seed + (not first),
                    "checkpoint_every": 200,
                },
            }
        )

        def draw_batch(step: int) -> Sequence[ResponseBatch]:
            return [whole(chain.sample(keyed(recipe.fit.seed, "text", step), self.batch_size))]

        model = copy.deepcopy(start).train().requires_grad_(True)
        training = McdTraining(recipe, start=(model, None), draw_batch=draw_batch)
        identity = recipe.model_dump(mode="json") | {"chain": [self.near, self.far]}
        fit(training, recipe.fit, run=run, identity=identity, label=run.name)
        average = training.players["model"].ema
        assert average is not None
        with average.swapped_in(training.model):
            return copy.deepcopy(training.model).eval()

    def _choose(self, chain: Chain, teacher: Any, students: dict[str, Any]) -> _Chosen:
        """Divergence and the control's temperature, by the gap in eight steps.

        Among those whose entropies of symbols and pairs stay within the guard, where there are
        any. On samples of the validation seed.
        """
        small = replace(self, samples=self.validation, resamples=2)
        reference = small._measure(chain, small._own(chain, "validation"), "source", 0.0)

        def score(model: Any, temperature: float) -> tuple[bool, float]:
            found = small._sampled(chain, model, 8, temperature, "validation")
            off = [abs(found.value[n] / reference.value[n] - 1) for n in _ENTROPIES[:2]]
            return max(off) > _GUARD, abs(found.value["gap"])

        divergence = min(_DIVERGENCES, key=lambda name: score(students[name], 1.0))
        temperature = min(self.temperatures, key=lambda t: score(teacher, t))
        return _Chosen(divergence, temperature)

    def _plan(
        self, teacher: Any, students: dict[str, Any], chosen: _Chosen
    ) -> dict[str, tuple[Any, int, float, MakeProvider | None]]:
        """Arms: model, steps, temperature, source of logits (None: the model)."""
        plan: dict[str, tuple[Any, int, float, MakeProvider | None]] = {
            f"teacher@{n}": (teacher, n, 1.0, None) for n in _STEPS
        }
        plan["cold teacher@8"] = teacher, 8, chosen.temperature, None
        for name, model in students.items():
            named = "mcd" if name == chosen.divergence else name
            plan |= {f"{named}@{n}": (model, n, 1.0, None) for n in (4, 8)}
        return plan

    def _own(self, chain: Chain, split: str = "test") -> Tensor:
        return chain.sample(keyed(self.seed, "source", split), self.samples)

    def _sampled(
        self,
        chain: Chain,
        model: Any,
        steps: int,
        temperature: float,
        split: str = "test",
        make_provider: MakeProvider | None = None,
    ) -> _Samples:
        options = Ancestral(
            steps=steps, temperature=temperature, seed=key_bits(self.seed, split, bits=32)
        )
        parts, forwards = [], 0.0
        for first in range(0, self.samples, 256):
            requests = range(first, min(first + 256, self.samples))
            canvas = torch.full((len(requests), LENGTH), SYMBOLS)
            tokens, trace = denoise(
                model,
                canvas,
                options=options,
                start=0,
                requests=requests,
                make_provider=make_provider,
            )
            parts.append(tokens)
            forwards += float(trace.steps.sum())
        chain_name = f"ancestral:steps={steps},temperature={temperature:g}"
        return self._measure(chain, torch.cat(parts), chain_name, forwards / self.samples)

    def _measure(self, chain: Chain, tokens: Tensor, name: str, forwards: float) -> _Samples:
        gap, each_nll = chain.nll(tokens) - chain.entropy(), chain.conditional_nll(tokens)
        every = np.ones(len(gap))
        # The same sequences (requests) are resampled in every arm.
        rng = keyed(self.seed, "resamples", len(gap))
        weights = rng.multinomial(len(gap), every / len(gap), self.resamples).astype(float)
        drawn = {"gap": weights @ gap / len(gap)}
        each = np.array([entropies(tokens, w) for w in weights])
        drawn |= {n: each[:, k] for k, n in enumerate(_ENTROPIES)}
        drawn["distance"] = weights @ each_nll / len(gap) - drawn["conditional_entropy"]
        value = {"gap": float(gap.mean())} | entropies(tokens, every)._asdict()
        value["distance"] = float(each_nll.mean()) - value["conditional_entropy"]
        return _Samples(tokens, gap, value, drawn, name, forwards)

    def _record(
        self,
        chain: Chain,
        results: dict[str, _Samples],
        chosen: _Chosen,
        out: Path,
        level: Literal["smoke", "cpu"],
    ) -> Record:
        comparisons = [
            Comparison(a=a, b=b, metric=metric, value=v, ci=(low, high), test=_TEST)
            for a, b, metrics in _compared(results)
            for metric in metrics
            for v, low, high in [ratio(results[a], results[b], metric)]
        ]
        items = {
            "ids": list(range(self.samples)),
            "arms": {name: {"gap": np.round(r.gap, 6)} for name, r in results.items()},
        }
        settings: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if name != "seed"
        }
        return new_record(
            "mcd",
            title="MCD: consistency distillation of a masked LM, sampled in few steps",
            level=level,
            seeds={"chain": self.seed, "weights": self.seed, "samples": self.seed},
            settings=settings
            | {
                "symbols": SYMBOLS,
                "length": LENGTH,
                "source_entropy": round(chain.entropy(), 4),
                "divergence": chosen.divergence,
                "temperature": chosen.temperature,
            },
            arms=[_arm(name, r) for name, r in results.items()],
            items=save_items(out / "mcd.items.json", items),
            comparisons=comparisons,
            claims=_claims(comparisons),
            notes=_NOTES,
        )


class _Chosen(NamedTuple):
    """divergence: the name of the MCD student that validation prefers."""

    divergence: str
    temperature: float


_DIVERGENCES = ("mcd forward", "mcd reverse")
_STUDENTS: dict[str, dict[str, str]] = {
    "mcd forward": {"targets": "mcd"},
    "mcd reverse": {"targets": "mcd", "divergence": "reverse"},
    "sdtt": {"targets": "sdtt", "divergence": "reverse"},
    "continued": {"targets": "plain"},
}
_TEST = "bootstrap over sequences, the same requests in both"
_NOTES = [
    "gap: exact NLL of samples under the source, less the source's entropy, nats per symbol. A "
    "sampler that is too sure of itself lowers it below what it should be; then entropies fall.",
    "distance: divergence of the law of a symbol given the two before it from the source's, nats. "
    "Likelihood that is bought with diversity does not lower it.",
    "Entropies are plug-in estimates of as many samples of the source as of every arm; the "
    "entropy of a symbol given two is the strictest guard and is reported, not claimed about.",
    "A step reveals its tokens independently of each other given the canvas: no training changes "
    "that. `exact` has the chain's own conditionals, and its gap is that price alone; a student in "
    "few steps can only match the teacher in many where the teacher's own error is larger.",
    "The arms `continued` (the same texts, the same steps, no teacher) and `cold teacher` (no "
    "training at all) show how much of a gain needs distillation.",
    "forwards: per text. Steps that reveal nothing are left out, in every arm, so that 64 steps "
    "cost the teacher fewer forwards than 64; claims count steps.",
    "Students take equal optimiser steps on the same texts; MCD's cost one more forward each, "
    "SDTT's two.",
]


def ratio(a: _Samples, b: _Samples, metric: str) -> tuple[float, float, float]:
    """(value, low, high) of a's over b's at 95 %, sequences resampled alike.

    Errors: InputError where the interval has no finite end.
    """
    value = a.value[metric] / b.value[metric]
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = quantile_interval(a.drawn[metric] / b.drawn[metric], 0.95)
    return value, min(low, value), max(high, value)


def _compared(results: dict[str, _Samples]) -> list[tuple[str, str, tuple[str, ...]]]:
    pairs = [("mcd@8", "teacher@64"), ("mcd@4", "teacher@64")]
    pairs += [(f"{a}@8", "teacher@64") for a in ("teacher", "sdtt", "continued", "cold teacher")]
    pairs += [("mcd@8", b) for b in ("teacher@8", "sdtt@8", "continued@8", "cold teacher@8")]
    pairs += [("exact@8", "teacher@64"), ("exact@8", "exact@64"), ("mcd@8", "exact@8")]
    gaps = [(a, b, ("gap", "distance")) for a, b in pairs]
    return gaps + [(name, "source", _ENTROPIES) for name in results if name != "source"]


def _arm(name: str, r: _Samples) -> Arm:
    metrics = {}
    for metric, value in r.value.items():
        low, high = quantile_interval(r.drawn[metric], 0.95)
        interval = (min(low, value), max(high, value))
        metrics[metric] = Metric(value=value, ci=interval, n=len(r.gap), unit="nats")
    return Arm(name=name, chain=r.chain, metrics=metrics, cost={"forwards": r.forwards})


def _claims(comparisons: list[Comparison]) -> list[Claim]:
    found = {(c.a, c.b, c.metric): c for c in comparisons}

    def judged(name: str, a: str, b: str, metric: str, op: Op, target: float, text: str) -> Claim:
        c = found[a, b, metric]
        return claim(name, "ratio", a, b, metric, c.value, c.ci, op, target, text)

    sides: tuple[tuple[str, Op, float], ...] = (
        ("no less", ">=", 1 - _GUARD),
        ("no more", "<=", 1 + _GUARD),
    )
    guards = [
        judged(f"{metric}, {side}", "mcd@8", "source", metric, op, target,
               f"MCD in 8 steps keeps its {metric.replace('_', ' ')} within 3 % of the source's")
        for metric in _ENTROPIES[:2]
        for side, op, target in sides
    ]  # fmt: skip
    return [
        judged("8 times fewer steps", "mcd@8", "teacher@64", "gap", "<=", 1.1,
               "MCD in 8 steps is as good as the teacher in 64 (gap at most 1.1 times)"),
        *guards,
        judged("16 times fewer steps", "mcd@4", "teacher@64", "gap", "<=", 1.1,
               "the goal: MCD in 4 steps is as good as the teacher in 64"),
        judged("something to win", "teacher@8", "teacher@64", "gap", ">=", 1.1,
               "fewer steps cost the teacher quality: without that the first claim is empty"),
        judged("equal steps", "mcd@8", "teacher@8", "gap", "<=", 0.9,
               "MCD in 8 steps is clearly better than the teacher in 8"),
        judged("over stochastic distillation", "mcd@8", "sdtt@8", "gap", "<=", 1.0,
               "MCD is at least as good as SDTT's targets at equal steps"),
        judged("over more training", "mcd@8", "continued@8", "gap", "<", 1.0,
               "MCD is better than plain training that goes on for equal steps"),
    ]  # fmt: skip


MCD = McdProof()
