"""Proof of SliceGPT (arXiv 2401.15024): deleting principal directions costs least.

Small Llamas are trained on made-up text at several seeds and sliced by 20 to 70 %: along the
principal components of their streams, along random directions (the same widths, so the same
bytes), and by deleting the channels of least weight, as few as give the same number of parameters.
Perplexity is of windows that neither training nor calibration sees; nothing is trained again, but
for the healed arms: 50 steps of LoRA on the training part, with the paper's settings of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from whet.compress.method import Job
from whet.compress.slicegpt import SliceGPT
from whet.data.synthetic import zipf_markov_text
from whet.data.text import TextWindows
from whet.fit import fit
from whet.fit.lora import LoraSettings, add_lora, merge_lora
from whet.fit.losses import window_losses
from whet.fit.settings import FitSettings
from whet.measure.items import save_items
from whet.measure.record import Arm, Claim, Comparison, Metric, Record, claim, new_record
from whet.measure.stats import Floats, quantile_interval, two_level
from whet.models.roles import axis, fold_norms, keep, magnitudes
from whet.reproduce import OnProgress
from whet.rng import keyed
from whet.zoo.recipe import Recipe
from whet.zoo.tokenizer import byte_tokenizer
from whet.zoo.training import Training, build_model

_DENSE = "dense"
_RESAMPLES = 2000


def _arm(kind: str, sparsity: float) -> str:
    return f"{kind}, {100 * sparsity:.0f} %"


_SLICED, _ENERGY = "SliceGPT", "SliceGPT by energy"
_RANDOM, _DELETED = "random rotation", "deleted channels"
_KINDS = (_SLICED, _ENERGY, _RANDOM, _DELETED)


@dataclass(frozen=True)
class SliceGptProof:
    """Settings of the proof. calibration: windows of the training part. windows: of the test part.

    healed: the sparsity that LoRA is tried at, for healing_steps at healing_rate, which is the best
    of 0.001, 0.003 and 0.01 on validation windows, at another seed than the first.
    """

    characters: int = 2_000_000
    runs: int = 3
    steps: int = 1000
    layers: int = 4
    width: int = 128
    intermediate: int = 352
    length: int = 128
    batch_size: int = 8
    learning_rate: float = 0.003
    calibration: int = 32
    windows: int = 96
    sparsities: tuple[float, ...] = (0.2, 0.3, 0.5, 0.7)
    healed: float = 0.7
    healing_steps: int = 50
    healing_rate: float = 0.003
    seed: int = 240115024

    def run(self, *, quick: bool, out: Path, on_progress: OnProgress) -> Record:
        """Train every seed's model, slice it in every way, test, judge."""
        proof = self
        if quick:
            proof = replace(self, steps=self.steps // 10, runs=2, windows=24)
        return proof._run(out, "smoke" if quick else "cpu", on_progress)

    def _run(self, out: Path, level: Literal["smoke", "cpu"], on_progress: OnProgress) -> Record:
        text = [zipf_markov_text(self.characters, seed=self.seed)]
        nats: dict[str, list[Floats]] = {}
        sizes: dict[str, int] = {}
        for run in range(self.runs):
            windows = TextWindows(
                byte_tokenizer(),
                text,
                length=self.length,
                batch_size=self.batch_size,
                seed=self.seed + run,
            )
            folder = out / "slicegpt.runs" / level / str(run)
            dense = self._trained(windows, folder / "dense", self.seed + run)
            on_progress(0.95 * (run + 0.7) / self.runs)
            for name, model in self._arms(dense, windows, folder, self.seed + run).items():
                nats.setdefault(name, []).append(
                    _test(model, windows.windows("test", self.windows))
                )
                sizes[name] = sum(parameter.numel() for parameter in model.parameters())
            on_progress(0.95 * (run + 1) / self.runs)
        record = self._record({name: np.stack(x) for name, x in nats.items()}, sizes, out, level)
        on_progress(1.0)
        return record

    # --- models

    def _trained(self, windows: TextWindows, folder: Path, seed: int) -> Any:
        torch.manual_seed(seed)
        settings = {
            "model_type": "llama",
            "hidden_size": self.width,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "vocab_size": 264,
            "max_position_embeddings": self.length,
        }
        model = build_model(settings, byte_tokenizer())
        self._fit(model, windows, folder, self.steps, self.learning_rate)
        return model.eval()

    def _fit(
        self, model: Any, windows: TextWindows, folder: Path, steps: int, learning_rate: float
    ) -> None:
        training = _WindowTraining(
            Recipe(
                method=_WindowTraining.method,
                fit=FitSettings(
                    steps=steps,
                    learning_rate=learning_rate,
                    warmup=steps // 10,
                    weight_decay=0.01,
                    ema=0,
                    seed=windows.seed,
                ),
            ),
            model,
            windows,
        )
        identity = training.recipe.model_dump(mode="json") | {"text": windows.sha256}
        fit(training, training.recipe.fit, run=folder, identity=identity, label=folder.name)

    def _arms(self, dense: Any, windows: TextWindows, folder: Path, seed: int) -> dict[str, Any]:
        found = {_DENSE: dense}
        for sparsity in self.sparsities:
            ways = {
                _SLICED: SliceGPT(sparsity=sparsity),
                _ENERGY: SliceGPT(sparsity=sparsity, schedule="eigen"),
                _RANDOM: SliceGPT(sparsity=sparsity, rotation="random"),
            }
            for kind, method in ways.items():
                model = copy.deepcopy(dense)
                method.apply(Job(model=model, batches=self._batches(windows), seed=seed))
                found[_arm(kind, sparsity)] = model
            parameters = _count(found[_arm(_SLICED, sparsity)])
            found[_arm(_DELETED, sparsity)] = without_channels(dense, parameters)
        for name in self._to_heal():
            model = copy.deepcopy(found[name])
            found[f"{name}, healed"] = self._healed(model, windows, folder / f"healed {name}", seed)
        return found

    def _to_heal(self) -> list[str]:
        return [_DENSE, _arm(_SLICED, self.healed), _arm(_DELETED, self.healed)]

    def _batches(self, windows: TextWindows) -> list[dict[str, Tensor]]:
        """Windows of the training part that no training step takes."""
        count = -(-self.calibration // self.batch_size)
        rows = torch.cat([windows.batch(self.steps + step) for step in range(count)])
        return [
            {"input_ids": part} for part in torch.split(rows[: self.calibration], self.batch_size)
        ]

    def _healed(self, model: Any, windows: TextWindows, folder: Path, seed: int) -> Any:
        torch.manual_seed(seed)
        wrapped = add_lora(model, LoraSettings(rank=32, alpha=10, dropout=0.05))
        self._fit(wrapped, windows, folder, self.healing_steps, self.healing_rate)
        return merge_lora(wrapped).eval()

    # --- the record

    def _record(
        self,
        nats: Mapping[str, Floats],
        sizes: Mapping[str, int],
        out: Path,
        level: Literal["smoke", "cpu"],
    ) -> Record:
        pairs = [
            (_arm(_SLICED, s), b)
            for s in self.sparsities
            for b in (_DENSE, _arm(_RANDOM, s), _arm(_DELETED, s))
        ]
        pairs += [(_arm(_ENERGY, s), _arm(_SLICED, s)) for s in self.sparsities]
        dense, *cut = [f"{name}, healed" for name in self._to_heal()]
        pairs += [(f"{name}, healed", name) for name in self._to_heal()]
        pairs += [(cut[0], dense), (cut[0], cut[1])]
        comparisons = [
            Comparison(a=a, b=b, metric="perplexity", value=v, ci=(low, high), test=_TEST)
            for a, b in pairs
            for v, low, high in [self._ratio(nats, a, b)]
        ]
        items = {
            "ids": list(range(self.windows)),
            "arms": {name: {"nats": x.mean(0)} for name, x in nats.items()},
        }
        return new_record(
            "slicegpt",
            title="SliceGPT: slicing the residual stream along its principal components",
            level=level,
            seeds={"first": self.seed},
            settings={
                "text": "made up: Zipf frequencies, words that follow words",
                "runs": self.runs,
                "steps": self.steps,
                "tokens": self.steps * self.batch_size * (self.length - 1),
                "layers": self.layers,
                "width": self.width,
                "intermediate_size": self.intermediate,
                "length": self.length,
                "batch_size": self.batch_size,
                "learning_rate": self.learning_rate,
                "calibration_windows": self.calibration,
                "test_windows": self.windows,
                "healing_steps": self.healing_steps,
                "healing_rate": self.healing_rate,
            },
            arms=[self._arm_of(name, x, sizes) for name, x in nats.items()],
            items=save_items(out / "slicegpt.items.json", items),
            comparisons=comparisons,
            claims=self._claims(nats),
            notes=[
                "Intervals resample runs (seeds of weights, batches, calibration windows and "
                "random directions) and test windows; arms are paired in both. perplexity: exp of "
                "the mean nats per token over runs and windows.",
                "A text made by a rule asks for few directions of the stream: what slicing costs "
                "here says nothing of models of real text, only how it compares with the controls.",
                "Widths are (1 - sparsity) of the stream's, rounded down to multiples of 8. What "
                "the head reads is not sliced, and matrices on the residual path are added, so "
                "that fewer parameters go than channels.",
                f"{_DELETED!r} keeps the channels of most weight (all that write or read them), at "
                "least as many parameters as SliceGPT of the same sparsity leaves.",
                f"{_ENERGY!r}: widths by the energy of each site, at no more parameters.",
                "Healed: LoRA of rank 32, alpha 10 and dropout 0.05 on all linear layers, those "
                "on the residual path with them.",
            ],
        )

    def _arm_of(self, name: str, nats: Floats, sizes: Mapping[str, int]) -> Arm:
        mean, low, high = two_level(nats, None, "difference", seed=self.seed)
        settings: dict[str, JsonValue] = {"parameters": sizes[name]}
        return Arm(
            name=name,
            chain=_DENSE if name == _DENSE else "slicegpt",
            settings=settings,
            metrics={
                "perplexity": Metric(
                    value=math.exp(mean), ci=(math.exp(low), math.exp(high)), n=self.windows
                ),
                "nats": Metric(value=mean, ci=(low, high), n=self.windows, unit="nats"),
                "parameters": Metric(
                    value=sizes[name] / sizes[_DENSE], n=1, unit="fraction of dense"
                ),
            },
        )

    def _ratio(self, nats: Mapping[str, Floats], a: str, b: str) -> tuple[float, float, float]:
        """Ratio of perplexities."""
        value, low, high = two_level(nats[a], nats[b], "difference", seed=self.seed)
        return math.exp(value), math.exp(low), math.exp(high)

    def _claims(self, nats: Mapping[str, Floats]) -> list[Claim]:
        found = []
        for sparsity in self.sparsities:
            sliced, random, deleted = (_arm(k, sparsity) for k in (_SLICED, _RANDOM, _DELETED))
            percent = f"{100 * sparsity:.0f} %"
            value, low, high = increases(nats[sliced], nats[random], nats[_DENSE], seed=self.seed)
            found.append(
                claim(
                    f"half of random, {percent}",
                    *("ratio", sliced, random, "perplexity added"),
                    *(value, (low, high), "<=", 0.5),
                    f"slicing {percent} adds at most half the perplexity that random directions do",
                )
            )
            for other, says in (
                (random, "random directions at the same widths"),
                (deleted, "deleting channels at the same number of parameters"),
            ):
                value, low, high = self._ratio(nats, sliced, other)
                found.append(
                    claim(
                        f"{other}",
                        *("ratio", sliced, other, "perplexity", value, (low, high), "<", 1.0),
                        f"slicing {percent} leaves a lower perplexity than {says}",
                    )
                )
        name = _arm(_SLICED, self.healed)
        value, low, high = self._ratio(nats, f"{name}, healed", name)
        found.append(
            claim(
                "healing",
                *("ratio", f"{name}, healed", name, "perplexity", value, (low, high), "<", 1.0),
                f"{self.healing_steps} steps of LoRA lower what slicing raised",
            )
        )
        return found


_TEST = "bootstrap over runs and windows, ratio"


class _WindowTraining(Training):
    """Next-token loss on windows of a text, for any model."""

    method = "slicegpt"

    def __init__(self, recipe: Recipe, model: Any, windows: TextWindows) -> None:
        super().__init__(recipe, model.train(), byte_tokenizer())
        self.windows = windows

    def batch(self, step: int) -> Tensor:
        """The windows of one step."""
        return self.windows.batch(step)

    def loss(self, batch: Tensor, turn: str) -> tuple[Tensor, dict[str, float]]:
        """Mean nats per token."""
        return window_losses(self.model, batch).mean(), {}

    def tokens(self, batch: Tensor) -> int:
        """Tokens that are read."""
        return batch[:, 1:].numel()


def without_channels(dense: Any, parameters: int) -> Any:
    """A copy without the channels of least weight: as narrow as it can be with so many parameters.

    Norms are folded first, so that a channel's weights are those that it is read by. Errors:
    OptionError, see `roles.keep`.
    """
    model = copy.deepcopy(dense)
    fold_norms(model)
    stream = axis(model, "residual")
    per_channel, left = divmod(_count(model), stream.units)
    assert not left  # every tensor of a Llama has the stream on one side, and on one only
    kept = min(stream.units, -(-parameters // per_channel))
    strongest = magnitudes(model, stream).topk(kept).indices.sort().values
    keep(model, stream, strongest)
    return model


def increases(a: Floats, b: Floats, dense: Floats, *, seed: int = 0) -> tuple[float, float, float]:
    """(perplexity a adds to dense) / (perplexity b adds), nats [runs, windows] each, at 95 %.

    Runs and windows are resampled as in `two_level`, the same in all three.
    """
    runs, items = a.shape
    rng = keyed(seed, "increases", runs, items)
    by_run = rng.multinomial(runs, np.full(runs, 1 / runs), _RESAMPLES) / runs
    by_item = rng.multinomial(items, np.full(items, 1 / items), _RESAMPLES) / items

    def perplexities(x: Floats) -> Floats:
        return np.asarray(np.exp(((by_run @ x) * by_item).sum(1)))

    base, one, other = perplexities(dense), perplexities(a), perplexities(b)
    plain = math.exp(dense.mean())
    value = (math.exp(a.mean()) - plain) / (math.exp(b.mean()) - plain)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = quantile_interval((one - base) / (other - base), 0.95)
    return value, min(low, value), max(high, value)


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def _test(model: Any, windows: Tensor) -> Floats:
    """Mean nats per token of every window."""
    model.eval()
    rows = [window_losses(model, part).double() for part in torch.split(windows, 16)]
    return np.asarray(torch.cat(rows).numpy())


SLICEGPT = SliceGptProof()
