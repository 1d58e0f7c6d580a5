"""Decoders side by side: the same problems, batch by batch, in rotating order.

Time is measured per batch after a warm-up batch of every arm, so that arms can be compared in
pairs. Steps and rows are counted per problem and leave out what was spent behind the end of the
answer: filling the canvas with end-of-text tokens is not speed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from whet.dlm.decoders import decoder_options
from whet.dlm.options import DecodeOptions
from whet.dlm.texts import Completion, generate_texts
from whet.errors import OptionError
from whet.evaluate import Outcome, Problem, accuracy_metrics, accuracy_rows, judge_texts
from whet.measure.clock import Clock, ratio_interval
from whet.measure.memory import peak_memory
from whet.measure.record import Arm, Comparison, Metric
from whet.measure.stats import bootstrap_mean, mcnemar, paired_bootstrap
from whet.spec import Spec


@dataclass(frozen=True)
class DecoderArm:
    """A decoder under a name. chain: how a user would ask for it. model: the one it decodes, None
    for the model of the run."""

    name: str
    chain: str
    options: DecodeOptions
    model: str | None = None

    @classmethod
    def parse(cls, text: str, name: str | None = None) -> DecoderArm:
        """From `NAME[:key=value,...]`, where the key `model` names another model than the run's.

        Errors: those of `decoder_options`.
        """
        spec = Spec.parse(text)
        model = spec.settings.pop("model", None)
        return cls(name or text, text, decoder_options(str(spec)), model)


# Models of arms that decode another one than the run's, by name, with their tokenizers.
Models = Mapping[str, tuple[Any, Any]]


@dataclass
class ArmResult:
    """What an arm did, per problem (lists in problem order) and per batch (seconds, sizes)."""

    arm: DecoderArm
    outcomes: list[Outcome] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    arness: list[float] = field(default_factory=list)
    added_bytes: int | None = None

    @property
    def correct(self) -> np.ndarray:
        return np.array([o.correct for o in self.outcomes])

    def column(self, name: str) -> np.ndarray:
        """A number of every completion: steps, rows, forwards, light, answer_steps, …"""
        return np.array([getattr(c, name) for c in self.completions])


OnBatch = Callable[[int], None]


def run_arms(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Problem],
    arms: Sequence[DecoderArm],
    *,
    gen_length: int,
    batch_size: int,
    others: Models = MappingProxyType({}),
    on_batch: OnBatch = lambda done: None,
) -> dict[str, ArmResult]:
    """Every arm on every problem. on_batch(problems done) is called after each round of arms.

    others: models of the arms that name one. Errors: OptionError where two arms share a name.
    """
    if len({a.name for a in arms}) < len(arms):
        raise OptionError("two arms share a name: name each decoder and setting once")
    results = {a.name: ArmResult(a) for a in arms}

    def decode(arm: DecoderArm, lo: int, size: int) -> list[Completion]:
        hi = min(lo + size, len(asked))
        return list(
            generate_texts(
                *_model_of(arm, model, tokenizer, others),
                [p.instance.prompt for p in asked[lo:hi]],
                options=arm.options,
                gen_length=gen_length,
                batch_size=batch_size,
                requests=range(lo, hi),
            )
        )

    for arm in arms:  # warm-up
        decode(arm, 0, min(8, batch_size))
    for arm in arms:  # a second one, of a whole batch, tells the memory
        _, peak = peak_memory(lambda arm=arm: decode(arm, 0, batch_size))  # type: ignore[misc]
        results[arm.name].added_bytes = peak.added_bytes
    for turn, lo in enumerate(range(0, len(asked), batch_size)):
        hi = lo + batch_size
        first = turn % len(arms)
        for arm in [*arms[first:], *arms[:first]]:
            result = results[arm.name]
            with Clock() as clock:
                done = decode(arm, lo, batch_size)
            result.seconds.append(clock.seconds)
            result.sizes.append(len(done))
            result.arness.extend(c.arness() for c in done)
            result.completions.extend(dataclasses.replace(c, trace=None) for c in done)
            result.outcomes.extend(judge_texts(asked[lo:hi], (c.text for c in done)))
        on_batch(min(hi, len(asked)))
    return results


def _model_of(arm: DecoderArm, model: Any, tokenizer: Any, others: Models) -> tuple[Any, Any]:
    return (model, tokenizer) if arm.model is None else others[arm.model]


def record_arm(result: ArmResult) -> Arm:
    """Accuracy (pooled and by task), forwards, rows and tokens per forward, and what it cost."""
    metrics = accuracy_metrics(accuracy_rows(result.outcomes))
    for name, column in (("forwards", "answer_steps"), ("rows", "answer_rows")):
        value, low, high = bootstrap_mean(result.column(column), resamples=2000)
        n = len(result.completions)
        metrics[name] = Metric(value=value, ci=(low, high), n=n, unit="")
    tokens = np.array([c.answer_tokens for c in result.completions])
    metrics["tokens_per_forward"] = Metric(
        value=float(tokens.sum() / result.column("answer_steps").sum()), n=len(tokens)
    )
    ordered = np.array([a for a in result.arness if not np.isnan(a)])
    if len(ordered):
        metrics["arness"] = Metric(value=float(ordered.mean()), n=len(ordered))
    metrics["seconds"] = _seconds_each(result)
    # Prompts and what lies behind the end of an answer are no tokens that anybody asked for.
    rate = float(tokens.sum() / sum(result.seconds))
    metrics["tokens_per_second"] = Metric(value=rate, n=len(tokens))
    # Totals with everything in them; the metrics leave out steps behind the end of an answer.
    cost = {
        "seconds": float(sum(result.seconds)),
        "forwards": float(result.column("forwards").sum()),
        "rows": float(result.column("rows").sum()),
    }
    if light := float(result.column("light").sum()):
        cost["light_passes"] = light
    if result.added_bytes is not None:
        cost["added_bytes"] = float(result.added_bytes)
    return Arm(
        name=result.arm.name,
        chain=result.arm.chain,
        settings=dataclasses.asdict(result.arm.options)
        | ({"model": result.arm.model} if result.arm.model else {}),
        metrics=metrics,
        cost=cost,
    )


def _seconds_each(result: ArmResult) -> Metric:
    """Time per problem; the interval is over batches."""
    each = np.array(result.seconds) / np.array(result.sizes)
    value = sum(result.seconds) / sum(result.sizes)
    if len(each) < 2:
        return Metric(value=value, n=len(each), unit="s")
    _, low, high = bootstrap_mean(each, resamples=2000)
    ci = (min(low, value), max(high, value))
    return Metric(value=value, ci=ci, n=len(each), unit="s")


def compare(a: ArmResult, b: ArmResult) -> list[Comparison]:
    """Arm a against arm b: accuracy difference, ratios of forwards, rows and time, in pairs."""
    value, low, high = paired_bootstrap(a.correct, b.correct, "difference")
    out = [
        Comparison(
            a=a.arm.name,
            b=b.arm.name,
            metric="accuracy",
            value=value,
            ci=(low, high),
            test="paired bootstrap of the difference; p from McNemar's exact test",
            p=mcnemar(a.correct, b.correct),
        )
    ]
    for metric, column in (("forwards", "answer_steps"), ("rows", "answer_rows")):
        value, low, high = paired_bootstrap(a.column(column), b.column(column), "ratio")
        test = "paired bootstrap of the ratio of means"
        out.append(
            Comparison(
                a=a.arm.name, b=b.arm.name, metric=metric, value=value, ci=(low, high), test=test
            )
        )
    if len(a.seconds) > 1:
        value, low, high = ratio_interval(a.seconds, b.seconds)
        test = "ratio of medians over batches run in turns; bootstrap"
        out.append(
            Comparison(
                a=a.arm.name, b=b.arm.name, metric="seconds", value=value, ci=(low, high), test=test
            )
        )
    return out


def item_columns(asked: Sequence[Problem], results: dict[str, ArmResult]) -> dict[str, Any]:
    """Per-problem outcomes for `measure.items.save_items`."""
    return {
        "ids": [p.id for p in asked],
        "arms": {
            name: {
                "correct": r.correct.astype(int).tolist(),
                "steps": r.column("answer_steps").tolist(),
                "rows": r.column("answer_rows").tolist(),
            }
            for name, r in results.items()
        },
    }


@dataclass(frozen=True)
class Example:
    """One problem decoded by every arm, with traces, to look at."""

    problem: Problem
    runs: list[tuple[DecoderArm, Completion, bool]]


def examples(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Problem],
    arms: Sequence[DecoderArm],
    *,
    gen_length: int,
    others: Models = MappingProxyType({}),
) -> Iterator[Example]:
    """Decode each problem alone with every arm, keeping traces."""
    for index, problem in enumerate(asked):
        runs = []
        for arm in arms:
            [done] = generate_texts(
                *_model_of(arm, model, tokenizer, others),
                [problem.instance.prompt],
                options=arm.options,
                gen_length=gen_length,
                requests=[index],
            )
            [outcome] = judge_texts([problem], [done.text])
            runs.append((arm, done, outcome.correct))
        yield Example(problem, runs)
