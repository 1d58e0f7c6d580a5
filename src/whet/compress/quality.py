"""What compression cost in quality: both models on the same texts, problems or pairs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.compress.data import TASKS, solved_problems, split_text
from whet.compress.target import Target
from whet.errors import InputError, OptionError
from whet.evaluate.autoregressive import AutoregressiveModel
from whet.evaluate.diffusion import DiffusionModel
from whet.evaluate.encoding import TokenPair
from whet.evaluate.run import Budget, plan, run_model
from whet.evaluate.runner import Outcome, draw_problems
from whet.evaluate.sts import Pair, read_pairs, similarity, spearman_difference
from whet.evaluate.summary import accuracy_metrics, accuracy_rows, paired_comparisons
from whet.measure.record import Comparison, Metric
from whet.measure.stats import bootstrap_mean
from whet.rng import keyed
from whet.tasks import Split, evaluation_only, expand

Floats = NDArray[np.float64]

_NGRAM = 4
_GUIDE_PROBLEMS = 70


@dataclass(frozen=True)
class Measured:
    """Metrics of one model, and what they came from item by item, for comparisons."""

    metrics: dict[str, Metric]
    items: dict[str, Any] = field(default_factory=dict)


class Quality(ABC):
    """A measurement of one model that can be compared with that of another."""

    @abstractmethod
    def check(self, target: Target) -> None:
        """Whether a model can be measured so, before any work. Errors: OptionError, InputError."""

    @abstractmethod
    def measure(self, model: Any, tokenizer: Any, target: Target) -> Measured:
        """Errors: those of what is measured."""

    @abstractmethod
    def compare(self, a: str, first: Measured, b: str, second: Measured) -> list[Comparison]:
        """`a` against `b` on the same items."""

    @abstractmethod
    def notes(self, found: Measured) -> list[str]:
        """How it was measured."""


@dataclass(frozen=True)
class TextQuality(Quality):
    """Perplexity of a text in windows that do not overlap, and repetition in what is written on.

    The protocol is `whet.evaluate.perplexity`'s: a window's first token is given. prompts: windows
    whose first half is continued greedily; `new_tokens` each.
    """

    text: str
    name: str
    window: int
    prompts: int = 8
    new_tokens: int = 48

    def check(self, target: Target) -> None:
        """Errors: OptionError for an encoder; InputError for less than one window."""
        _check_writes(target)
        found = len(target.tokenizer()(self.text, verbose=False)["input_ids"])
        if found < self.window:
            raise InputError(
                f"{self.name} has {found:,} tokens to measure on, a window has {self.window:,}: "
                "give a longer text or a smaller length"
            )

    def measure(self, model: Any, tokenizer: Any, target: Target) -> Measured:
        """Errors: as `check`."""
        self.check(target)
        scorer = scorer_of(model, tokenizer, target)
        ids = scorer.encode(self.text)
        count = len(ids) // self.window
        windows = [
            ids[low : low + self.window] for low in range(0, count * self.window, self.window)
        ]
        pairs = [
            TokenPair((row[0],), tuple(row[1:]), ("window", place))
            for place, row in enumerate(windows)
        ]
        nats = _nats(scorer, pairs)
        tokens = np.full(count, self.window - 1.0)
        metrics = {"perplexity": _perplexity(nats, tokens)}
        if target.kind == "autoregressive" and self.prompts:
            halves = [row[: self.window // 2] for row in windows[: self.prompts]]
            written = continuations(model, halves, self.new_tokens)
            metrics["repetition"] = repetition(written)
        return Measured(metrics, {"nats": nats, "tokens": tokens})

    def compare(self, a: str, first: Measured, b: str, second: Measured) -> list[Comparison]:
        """Ratio of perplexities over the same windows."""
        return [_perplexity_ratio(a, first, b, second, "windows")]

    def notes(self, found: Measured) -> list[str]:
        """The protocol."""
        told = [
            f"perplexity: {self.name}, one tokenisation, windows of {self.window} apart, first "
            "token given"
        ]
        if "repetition" in found.metrics:
            told.append("repetition: share of 4-grams of a greedy continuation that came before")
        return told


@dataclass(frozen=True)
class TaskQuality(Quality):
    """Held-out problems: perplexity of their answers, and accuracy where the model writes texts.

    source: "tasks:NAME". count: problems of the split.
    """

    source: str
    count: int = 210
    seed: int = 0
    split: Split = "test"

    def check(self, target: Target) -> None:
        """Errors: OptionError for an encoder."""
        _check_writes(target)

    def measure(self, model: Any, tokenizer: Any, target: Target) -> Measured:
        """Errors: InputError for tasks with too few problems."""
        scorer = scorer_of(model, tokenizer, target)
        solved = solved_problems(
            tokenizer, self.source, self.count, seed=self.seed, split=self.split
        )
        pairs = [
            TokenPair(tuple(problem), tuple(answer), ("answer", place))
            for place, (problem, answer) in enumerate(solved)
        ]
        nats = _nats(scorer, pairs)
        tokens = np.array([float(len(answer)) for _, answer in solved])
        found = Measured(
            {"perplexity": _perplexity(nats, tokens)}, {"nats": nats, "tokens": tokens}
        )
        if isinstance(scorer, AutoregressiveModel):
            outcomes = self._answers(scorer)
            metrics = accuracy_metrics(accuracy_rows(outcomes))
            texts = [scorer.codec.plain(o.text) for o in outcomes]
            metrics = {"accuracy": metrics.pop("accuracy"), **found.metrics, **metrics}
            metrics["repetition"] = repetition(texts)
            right = [float(o.correct) for o in outcomes]
            return Measured(metrics, {**found.items, "correct": right})
        return found

    def _answers(self, scorer: AutoregressiveModel) -> list[Outcome]:
        tasks = [t for t in expand([self.source.removeprefix(TASKS)]) if not evaluation_only(t)]
        count = max(self.count, len(tasks))
        asked = draw_problems(tasks, count, seed=self.seed, split=self.split)
        planned = plan(scorer, asked, budget=Budget())
        return run_model(scorer, asked, plan=planned)

    def compare(self, a: str, first: Measured, b: str, second: Measured) -> list[Comparison]:
        """Ratio of perplexities and difference of accuracies on the same problems."""
        found = [_perplexity_ratio(a, first, b, second, "problems")]
        if "correct" in first.items:
            found = (
                paired_comparisons(a, b, first.items["correct"], second.items["correct"]) + found
            )
        return found

    def notes(self, found: Measured) -> list[str]:
        """The protocol."""
        told = [
            f"perplexity: per token of the answers to {self.count} {self.split} problems of "
            f"{self.source}"
        ]
        if "accuracy" in found.metrics:
            told.append("accuracy: written answers, checked by computation")
            told.append("repetition: share of 4-grams of a written answer that came before in it")
        return told


@dataclass(frozen=True)
class SimilarityQuality(Quality):
    """Spearman correlation with people's scores of sentence pairs (`whet.evaluate.sts`)."""

    folder: Path
    limit: int | None = None

    @cached_property
    def pairs(self) -> list[Pair]:
        """Pairs of the files, spread evenly where there is a limit. Errors: InputError."""
        found = read_pairs(self.folder)
        if self.limit is None or self.limit >= len(found):
            return found
        places = np.linspace(0, len(found) - 1, self.limit).round().astype(int)
        return [found[place] for place in places]

    def check(self, target: Target) -> None:
        """Errors: OptionError for a model that is no encoder."""
        if target.kind != "encoder":
            raise OptionError(f"sts15 is for encoders, {target.name} is a language model")

    def measure(self, model: Any, tokenizer: Any, target: Target) -> Measured:
        """Errors: as `check`."""
        self.check(target)
        found = similarity(model, tokenizer, self.pairs)
        metrics = {"spearman": Metric(value=found.spearman, n=len(self.pairs))}
        return Measured(metrics, {"cosines": found.cosines})

    def compare(self, a: str, first: Measured, b: str, second: Measured) -> list[Comparison]:
        """Difference of correlations over the same pairs."""
        scores = [pair.score for pair in self.pairs]
        value, low, high = spearman_difference(
            first.items["cosines"], second.items["cosines"], scores
        )
        test = f"bootstrap over {len(scores)} pairs"
        return [Comparison(a=a, b=b, metric="spearman", value=value, ci=(low, high), test=test)]

    def notes(self, found: Measured) -> list[str]:
        """The protocol."""
        return [
            f"spearman: cosines of mean-pooled embeddings against people's scores of "
            f"{len(self.pairs)} STS 2015 pairs, all domains together"
        ]


def quality_of(
    evaluation: str | None,
    *,
    source: str | Path | Sequence[str] | None,
    held_out: float,
    window: int,
    count: int = 210,
    sts: Path | None = None,
    seed: int = 0,
) -> Quality | None:
    """What quality is measured on: what was asked for, else what calibration has held out.

    evaluation: a text file, "tasks:NAME" or "sts15" (with the folder of its files). None where
    nothing is known to measure on. Errors: OptionError for sts15 without a folder, or a share of a
    text that is not held out; InputError for a file that cannot be read.
    """
    if evaluation == "sts15":
        if sts is None:
            raise OptionError("sts15 needs the folder of its files: give --sts FOLDER")
        quality = SimilarityQuality(sts)
        quality.pairs  # noqa: B018 - read now, not after an hour of compression
        return quality
    if evaluation is not None and not evaluation.startswith(TASKS):
        text, _ = split_text(Path(evaluation), 0.0)
        return TextQuality(text, Path(evaluation).name, window)
    if evaluation is not None:
        return TaskQuality(evaluation, count, seed)
    if isinstance(source, str):
        return TaskQuality(source, count, seed)
    if isinstance(source, Path) and held_out:
        name = f"the last {100 * held_out:g} % of {source.name}"
        return TextQuality(split_text(source, held_out)[1], name, window)
    return None


def guide_of(
    source: str | Path | Sequence[str] | None, *, held_out: float, window: int, seed: int = 0
) -> Quality | None:
    """What methods that are led by a score may look at: nothing that the result is measured on.

    Problems of the validation split, or the last tenth of what a text file is calibrated on.
    """
    if isinstance(source, str):
        return TaskQuality(source, _GUIDE_PROBLEMS, seed, "validation")
    if isinstance(source, Path):
        text, _ = split_text(source, held_out)
        return TextQuality(text[-len(text) // 10 :], source.name, window, prompts=0)
    return None


def scorer_of(model: Any, tokenizer: Any, target: Target) -> Any:
    """The model as `whet.evaluate` sees it. Errors: OptionError for an encoder."""
    _check_writes(target)
    if target.kind == "masked":
        return DiffusionModel(model, tokenizer, name=target.name, samples=16)
    return AutoregressiveModel(model, tokenizer, name=target.name)


def _check_writes(target: Target) -> None:
    if target.kind == "encoder":
        raise OptionError(
            f"{target.name} is an encoder, which predicts no text: measure it on sts15"
        )


def score(quality: Quality, target: Target, model: Any, tokenizer: Any) -> float | dict[str, float]:
    """Quality as numbers, larger is better: accuracy by task, else log-likelihood per token."""
    metrics = quality.measure(model, tokenizer, target).metrics
    by_task = {n: m.value for n, m in metrics.items() if n.startswith("accuracy/")}
    if by_task:
        return by_task
    if "accuracy" in metrics:
        return metrics["accuracy"].value
    return -math.log(metrics["perplexity"].value)


def continuations(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    """Greedy continuations [new_tokens] of prompts of one length; end-of-text does not end them."""
    import torch
    from transformers import GenerationConfig

    tokens = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    with torch.inference_mode():
        out = model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=settings
        )
    return [row[tokens.shape[1] :] for row in out.tolist()]


def repetition(texts: Sequence[Sequence[int]]) -> Metric:
    """Mean share of 4-grams that a text of token ids has had before; short texts have none."""
    shares = []
    for text in texts:
        grams = Counter(tuple(text[i : i + _NGRAM]) for i in range(len(text) - _NGRAM + 1))
        total = sum(grams.values())
        shares.append(1 - len(grams) / total if total else 0.0)
    if len(shares) < 2:
        return Metric(value=float(np.mean(shares or [0.0])), n=len(shares), unit="fraction")
    value, low, high = bootstrap_mean(shares)
    return Metric(value=value, ci=(low, high), n=len(shares), unit="fraction")


def _nats(scorer: Any, pairs: Sequence[TokenPair]) -> Floats:
    """Negative log-likelihoods [n]."""
    return -np.array([found.value for found in scorer.score(pairs)], dtype=np.float64)


def _perplexity(nats: Floats, tokens: Floats) -> Metric:
    """exp of nats per token, with a bootstrap over items."""
    rows = _draws(len(nats))
    drawn = nats[rows].sum(1) / tokens[rows].sum(1)
    low, high = np.exp(np.minimum(np.quantile(drawn, (0.025, 0.975)), 700.0))
    value = math.exp(min(nats.sum() / tokens.sum(), 700.0))
    return Metric(value=value, ci=(min(low, value), max(high, value)), n=len(nats))


def _perplexity_ratio(a: str, first: Measured, b: str, second: Measured, what: str) -> Comparison:
    nats, tokens = first.items["nats"] - second.items["nats"], first.items["tokens"]
    rows = _draws(len(nats))
    drawn = nats[rows].sum(1) / tokens[rows].sum(1)
    low, high = np.exp(np.clip(np.quantile(drawn, (0.025, 0.975)), -700.0, 700.0))
    value = math.exp(max(-700.0, min(nats.sum() / tokens.sum(), 700.0)))
    return Comparison(
        a=a,
        b=b,
        metric="perplexity",
        value=value,
        ci=(min(float(low), value), max(float(high), value)),
        test=f"ratio, paired bootstrap over {len(nats)} {what}",
    )


def _draws(count: int) -> NDArray[np.int64]:
    rng = keyed(0, "bootstrap", count)
    return rng.integers(0, count, (2000, count))
