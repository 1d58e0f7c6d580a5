"""Proof of gradients through stochastic gates (arXiv 1308.3432): what trains sparse gates, and how.

A classifier of 16 small experts behind gates, which a gater opens per example. Arms are the
estimators, the same layer with a deterministic rectifier for its gates, and a dense one (sigmoid
gates, every expert computed, no penalty). Data are generated: classes that are unions of Gaussian
clusters. Each arm's learning rate, weight of the sparsity penalty and way of evaluation (gates
sampled, or their noise at its median) are chosen on a validation split; accuracy and work are of
the test split, where experts that are off are not computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from whet.layers.estimators import (
    Estimator,
    GatedLayer,
    GatedOutput,
    RunningBaseline,
    gated_sum,
    score_function_loss,
    sparsity_penalty,
)
from whet.measure.items import save_items
from whet.measure.record import Arm, Claim, Comparison, Metric, Op, Record, claim, new_record
from whet.measure.stats import Floats, two_level
from whet.reproduce import OnProgress
from whet.rng import key_bits, keyed, keyed_torch


class _Gates(NamedTuple):
    """An arm. estimator: None for dense sigmoid gates. sampled: with noise in training."""

    estimator: Estimator | None
    sampled: bool = True
    baseline: bool = False


_ARMS = {
    "dense": _Gates(None),
    "rectifier": _Gates("noisy_relu", sampled=False),
    "st": _Gates("st"),
    "st_sigmoid": _Gates("st_sigmoid"),
    "sts": _Gates("sts"),
    "noisy_relu": _Gates("noisy_relu"),
    "hard_concrete": _Gates("hard_concrete"),
    "reinforce": _Gates("reinforce", baseline=True),
    "reinforce, no baseline": _Gates("reinforce"),
}
_SPARSE = tuple(name for name in _ARMS if name != "dense")


class _Split(NamedTuple):
    """x [N, D], y [N]."""

    x: Tensor
    y: Tensor


class _Net(NamedTuple):
    layer: GatedLayer
    baseline: RunningBaseline


class _Choice(NamedTuple):
    """What validation decides. sampled: gates are drawn in evaluation too."""

    learning_rate: float
    penalty: float
    sampled: bool


class _Result(NamedTuple):
    """Of one arm: what was chosen, [runs, test items] outcomes, floating point operations by run.

    still, drawn: (right, share of gates on) with the noise at its median, and sampled. moments,
    plain_moments: [runs, items] squared score-function gradients with and without the baseline,
    where there is one.
    """

    choice: _Choice
    still: tuple[Floats, Floats]
    drawn: tuple[Floats, Floats]
    flops: Floats
    moments: Floats | None
    plain_moments: Floats | None

    @property
    def correct(self) -> Floats:
        return (self.drawn if self.choice.sampled else self.still)[0]

    @property
    def on(self) -> Floats:
        return (self.drawn if self.choice.sampled else self.still)[1]


@dataclass(frozen=True)
class StraightThroughProof:
    """Settings of the proof.

    clusters: Gaussian ones of deviation `spread`, their centres drawn from a unit Gaussian.
    target: the share of gates that the penalty asks to be on; its weight, one of `penalties`,
    falls from five times that over the first fifth of the steps. budget: the largest share of the
    dense arm's work at which a choice may win by its accuracy. runs: seeds per arm.
    """

    dims: int = 16
    classes: int = 8
    clusters: int = 96
    spread: float = 0.5
    train: int = 16384
    validation: int = 2000
    test: int = 2000
    experts: int = 16
    width: int = 16
    target: float = 0.1
    budget: float = 0.25
    steps: int = 1000
    batch_size: int = 128
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    penalties: tuple[float, ...] = (0.3, 1.0)
    runs: int = 5
    seed: int = 13083432

    def run(self, *, quick: bool, out: Path, on_progress: OnProgress) -> Record:
        """Choose, train, test, judge."""
        proof = replace(self, steps=self.steps // 20, runs=2) if quick else self
        return proof._run(out, "smoke" if quick else "cpu", on_progress)

    def _run(self, out: Path, level: Literal["smoke", "cpu"], on_progress: OnProgress) -> Record:
        data = {n: self._draw(n, getattr(self, n)) for n in ("train", "validation", "test")}
        results: dict[str, _Result] = {}
        for name, gates in _ARMS.items():
            results[name] = self._arm(gates, data)
            on_progress(len(results) / len(_ARMS))
        return self._record(results, out, level)

    def _draw(self, split: str, count: int) -> _Split:
        centres = keyed(self.seed, "centres").normal(size=(self.clusters, self.dims))
        rng = keyed(self.seed, "examples", split)
        cluster = rng.integers(0, self.clusters, count)
        x = centres[cluster] + self.spread * rng.normal(size=(count, self.dims))
        # Clusters are numbered in no order, so their remainder spreads every class over space.
        return _Split(torch.tensor(x, dtype=torch.float32), torch.tensor(cluster % self.classes))

    def _net(self, gates: _Gates, seed: int) -> _Net:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key_bits(self.seed, "weights", seed, bits=64) >> 1)
            gater = nn.Sequential(
                nn.Linear(self.dims, self.width), nn.Tanh(), nn.Linear(self.width, self.experts)
            )
            experts = [
                nn.Sequential(
                    nn.Linear(self.dims, self.width),
                    nn.ReLU(),
                    nn.Linear(self.width, self.classes),
                )
                for _ in range(self.experts)
            ]
        layer = GatedLayer(gater, experts, estimator=gates.estimator or "st")
        return _Net(layer, RunningBaseline(self.experts))

    def _train(self, gates: _Gates, data: _Split, choice: _Choice, seed: int) -> _Net:
        net = self._net(gates, seed)
        optimiser = torch.optim.Adam(net.layer.parameters(), lr=choice.learning_rate)
        generator = keyed_torch(self.seed, "noise", seed)
        for step in range(self.steps):
            rows = torch.from_numpy(
                keyed(self.seed, "batch", seed, step).integers(0, len(data.y), self.batch_size)
            )
            found = _forward(net, gates, data.x[rows], generator)
            each = functional.cross_entropy(found.output, data.y[rows], reduction="none")
            loss = each.mean()
            if gates.estimator is not None:
                early = max(0.0, 1 - 5 * step / self.steps)
                loss = loss + choice.penalty * (1 + 4 * early) * sparsity_penalty(
                    found.logits, self.target, estimator=gates.estimator
                )
            if gates.estimator == "reinforce":
                cost = each.detach()
                base = net.baseline(found.logits, found.gates, cost) if gates.baseline else 0.0
                loss = loss + score_function_loss(found.logits, found.gates, cost, base)
            for group in optimiser.param_groups:
                group["lr"] = choice.learning_rate * (1 - step / self.steps)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        net.layer.eval()
        net.baseline.eval()
        return net

    def _arm(self, gates: _Gates, data: dict[str, _Split]) -> _Result:
        """Try every choice in one run, keep the best on the validation split, make all runs."""
        tried: dict[_Choice, tuple[bool, float]] = {}
        first: dict[_Choice, _Net] = {}
        for rate in self.learning_rates:
            for penalty in self.penalties if gates.estimator else (0.0,):
                net = self._train(gates, data["train"], _Choice(rate, penalty, False), 0)
                for sampled in (False, True) if gates.estimator and gates.sampled else (False,):
                    generator = keyed_torch(self.seed, "choice") if sampled else None
                    correct, on = _outcomes(net, gates, data["validation"], generator)
                    work = self.work(float(on.mean()))
                    within = gates.estimator is None or work <= self.budget
                    # In the budget the most accurate; where nothing is, what works least.
                    choice = _Choice(rate, penalty, sampled)
                    tried[choice] = within, float(correct.mean()) if within else -work
                    first[choice] = net
        choice = max(tried, key=lambda c: tried[c])
        nets = [first[choice]] + [
            self._train(gates, data["train"], choice, seed) for seed in range(1, self.runs)
        ]
        test = data["test"]
        noise = [keyed_torch(self.seed, "test noise", seed) for seed in range(self.runs)]
        still = [_outcomes(net, gates, test, None) for net in nets]
        drawn = [_outcomes(net, gates, test, g) for net, g in zip(nets, noise, strict=True)]
        flops = [
            _flops(net, gates, test, keyed_torch(self.seed, "test noise", seed))
            if choice.sampled
            else _flops(net, gates, test, None)
            for seed, net in enumerate(nets)
        ]
        moments = [
            _moments(net, gates, test, keyed_torch(self.seed, "moments", seed))
            for seed, net in enumerate(nets)
            if gates.baseline
        ]
        return _Result(
            choice=choice,
            still=_stacked(still),
            drawn=_stacked(drawn),
            flops=np.array(flops, dtype=float),
            moments=np.stack([m for m, _ in moments]) if moments else None,
            plain_moments=np.stack([p for _, p in moments]) if moments else None,
        )

    def work(self, on: float) -> float:
        """Multiplications with the share `on` of the experts, over those with all; gater included.

        The counted operations of a test forward give the same.
        """
        gater = self.dims * self.width + self.width * self.experts
        experts = self.experts * self.width * (self.dims + self.classes)
        return (gater + on * experts) / (gater + experts)

    def _record(
        self, results: dict[str, _Result], out: Path, level: Literal["smoke", "cpu"]
    ) -> Record:
        pairs = [(a, b) for a in _SPARSE for b in ("dense", "rectifier") if a != b]
        pairs += [(a, "reinforce, no baseline") for a in ("st", "noisy_relu", "reinforce")]
        comparisons = [
            Comparison(a=a, b=b, metric=metric, value=v, ci=(low, high), test=_TEST)
            for a, b in pairs
            for metric in ("accuracy", "work")
            for v, low, high in [self._compare(results, a, b, metric)]
        ]
        items = {
            "ids": list(range(self.test)),
            "arms": {
                name: {"correct": r.correct.mean(0), "on": r.on.mean(0)}
                for name, r in results.items()
            },
        }
        return new_record(
            "straight-through",
            title="Straight-through and other gradients for gates that skip computation",
            level=level,
            seeds={"data": self.seed},
            settings={
                "runs": self.runs,
                "steps": self.steps,
                "batch_size": self.batch_size,
                "learning_rates": list(self.learning_rates),
                "dims": self.dims,
                "classes": self.classes,
                "clusters": self.clusters,
                "spread": self.spread,
                "train": self.train,
                "validation": self.validation,
                "test": self.test,
                "experts": self.experts,
                "width": self.width,
                "target": self.target,
                "penalties": list(self.penalties),
                "budget": self.budget,
            },
            arms=[self._record_arm(name, r) for name, r in results.items()],
            items=save_items(out / "straight-through.items.json", items),
            comparisons=comparisons,
            claims=self._claims(results, comparisons),
            notes=[
                "Intervals resample runs (seeds of weights, batches and noise) and test examples; "
                "all runs share the data.",
                "work: multiplications of gater and experts in a test forward that skips experts "
                "whose gate is 0, over those of the dense arm.",
                "Learning rate, weight of the penalty and way of evaluation are chosen per arm by "
                "one run's accuracy on the validation split, among those whose work there is "
                "within the budget.",
                "Metrics named still put the gates' noise at its median, those named sampled draw "
                "it as in training; accuracy, off and work are of the one chosen.",
            ],
        )

    def _record_arm(self, name: str, r: _Result) -> Arm:
        def metric(values: Floats, unit: str = "fraction") -> Metric:
            mean, low, high = two_level(values, None, "difference", seed=self.seed)
            return Metric(value=mean, ci=(low, high), n=values.shape[1], unit=unit)

        return Arm(
            name=name,
            chain="straight-through",
            settings=dict(r.choice._asdict()),
            metrics={
                "accuracy": metric(r.correct),
                "off": metric(1 - r.on),
                "work": metric(self._works(r)),
                "still_accuracy": metric(r.still[0]),
                "still_off": metric(1 - r.still[1]),
                "sampled_accuracy": metric(r.drawn[0]),
                "sampled_off": metric(1 - r.drawn[1]),
                "accuracy_deviation": Metric(
                    value=float(r.correct.mean(1).std(ddof=1)), n=self.runs, unit="fraction"
                ),
            },
            cost={"flops": float(r.flops.mean())},
        )

    def _works(self, r: _Result) -> Floats:
        return self.work(0.0) + (1 - self.work(0.0)) * r.on

    def _compare(
        self, results: dict[str, _Result], a: str, b: str, metric: str
    ) -> tuple[float, float, float]:
        x, y = results[a], results[b]
        if metric == "accuracy":
            return two_level(x.correct, y.correct, "difference", seed=self.seed)
        return two_level(self._works(x), self._works(y), "ratio", seed=self.seed)

    def _claims(self, results: dict[str, _Result], comparisons: list[Comparison]) -> list[Claim]:
        found = {(c.a, c.b, c.metric): c for c in comparisons}

        def judged(
            name: str, a: str, b: str, metric: str, op: Op, target: float, text: str
        ) -> Claim:
            c = found[a, b, metric]
            kind: Literal["difference", "ratio"] = "difference" if metric == "accuracy" else "ratio"
            return claim(name, kind, a, b, metric, c.value, c.ci, op, target, text)

        plain, reinforce = "reinforce, no baseline", results["reinforce"]
        assert reinforce.moments is not None
        assert reinforce.plain_moments is not None
        ratio, low, high = two_level(
            reinforce.moments, reinforce.plain_moments, "ratio", seed=self.seed
        )
        return [
            judged("quality", "st", "dense", "accuracy", ">=", -0.01,
                   "straight-through gates lose at most a point to dense ones"),
            judged("work", "st", "dense", "work", "<=", self.budget,
                   f"with at most {self.budget:g} of the work"),
            judged("paper's order", "st", "rectifier", "accuracy", ">", 0.0,
                   "straight-through beats the deterministic rectifier"),
            judged("st over score function", "st", plain, "accuracy", ">", 0.0,
                   "straight-through beats the score function without a baseline"),
            judged("noise over score function", "noisy_relu", plain, "accuracy", ">", 0.0,
                   "the noisy rectifier beats the score function without a baseline"),
            claim("variance", "ratio", "reinforce", plain, "squared gradient", ratio, (low, high),
                  "<=", 0.5, "the baseline halves the score function's mean squared gradient, "
                  "measured with and without it on the same trained gates"),
        ]  # fmt: skip


_TEST = "bootstrap over runs and examples"


def _forward(net: _Net, gates: _Gates, x: Tensor, generator: torch.Generator | None) -> GatedOutput:
    """Logits of the classes; gates drawn from `generator`, or without noise where it is None."""
    layer = net.layer
    if gates.estimator is None:
        logits = layer.gater(x)
        return GatedOutput(
            gated_sum(x, logits.sigmoid(), layer.experts, skip=False), logits, logits.sigmoid()
        )
    sample = gates.sampled and generator is not None
    return layer(x, sample=sample, generator=generator if sample else None)  # type: ignore[no-any-return]


def _stacked(runs: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    return np.stack([a for a, _ in runs]), np.stack([b for _, b in runs])


@torch.no_grad()
def _outcomes(
    net: _Net, gates: _Gates, split: _Split, generator: torch.Generator | None
) -> tuple[Floats, Floats]:
    """Per example: 1 where the class is right, and the share of gates that are on."""
    found = _forward(net, gates, split.x, generator)
    correct = found.output.argmax(-1) == split.y
    return correct.double().numpy(), (found.gates != 0).double().mean(1).numpy()


@torch.no_grad()
def _flops(net: _Net, gates: _Gates, split: _Split, generator: torch.Generator | None) -> int:
    with FlopCounterMode(display=False) as counter:
        _forward(net, gates, split.x, generator)
    return int(counter.get_total_flops())


@torch.no_grad()
def _moments(
    net: _Net, gates: _Gates, split: _Split, generator: torch.Generator
) -> tuple[Floats, Floats]:
    """Per example the squared norm of (h - p)(L - c), and of (h - p) L, for one draw of gates."""
    found = _forward(net, gates, split.x, generator)
    loss = functional.cross_entropy(found.output, split.y, reduction="none")
    base = net.baseline(found.logits, found.gates, loss)
    score = found.gates - found.logits.sigmoid()
    return tuple(  # type: ignore[return-value]
        (score * (loss[:, None] - c)).square().sum(1).double().numpy() for c in (base, 0.0)
    )


STRAIGHT_THROUGH = StraightThroughProof()
