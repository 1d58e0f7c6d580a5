"""Proof of ELAS (arXiv 2605.03667): 2:4 activations cost little loss and half the kept activation.

Low-rank Llamas trained on the same windows of text for the same number of tokens, at several
seeds: SwiGLU, the dense squared rectifier, and the squared rectifier with 2:4 activations by the
exact ("masked") and by the straight-through gradient. The three with a squared rectifier begin
with equal weights. Loss, zeros and dropped energy are of windows that training never sees.

Bytes kept for the way back are counted by autograd's hooks on a trained layer, against the dense
layer as autograd does it and the one that keeps its pre-activation alone and squares it again;
the peak memory of a whole training step is measured in processes of their own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from whet.data.synthetic import zipf_markov_text
from whet.data.text import TextWindows
from whet.fit import fit
from whet.fit.losses import window_losses
from whet.layers.relu2_linear import relu2_linear
from whet.measure.items import save_items
from whet.measure.memory import free_at_once, peak_memory, run_isolated
from whet.measure.record import Arm, Claim, Comparison, Metric, Op, Record, claim, new_record
from whet.measure.stats import Floats, Statistic, two_level
from whet.models.elas_llama import ElasLlamaForCausalLM, SparseFeedForward
from whet.reproduce import OnProgress
from whet.train.elas import ElasRecipe, ElasTraining
from whet.zoo.tokenizer import byte_tokenizer
from whet.zoo.training import build_model

_SWIGLU, _DENSE, _SPARSE, _STE = "SwiGLU", "relu², dense", "relu², 2:4", "relu², 2:4, ste"
_DEFAULT = "relu², dense, autograd"
_ARMS: dict[str, dict[str, str]] = {
    _SWIGLU: {"ffn": "swiglu", "sparsify": "none"},
    _DENSE: {"sparsify": "none"},
    _SPARSE: {"gradient": "masked"},
    _STE: {"gradient": "ste"},
}


class _Result(NamedTuple):
    """Of one arm, [runs, windows]: nats per token, zeros and dropped energy (None: SwiGLU)."""

    nats: Floats
    zeros: Floats | None
    dropped: Floats | None


class _Bytes(NamedTuple):
    """Kept for the way back. wide: the activations of full width, per token and layer; ffn: with
    the layer's input and the factors' outputs; peak: added by a whole training step."""

    wide: float | None
    ffn: float
    peak: float


@dataclass(frozen=True)
class ElasProof:
    """Settings of the proof.

    data: a UTF-8 file to train on instead of made-up text, for half the steps at two seeds.
    windows: of the test part.
    """

    data: Path | None = None
    characters: int = 2_000_000
    runs: int = 3
    steps: int = 1500
    layers: int = 4
    width: int = 128
    intermediate: int = 344
    rank: int = 32
    length: int = 128
    batch_size: int = 4
    learning_rate: float = 0.006
    windows: int = 96
    peak_rows: int = 64
    seed: int = 26050366

    def run(self, *, quick: bool, out: Path, on_progress: OnProgress) -> Record:
        """Train every arm at every seed, test, count bytes, judge."""
        proof = self
        if self.data is not None:
            proof = replace(proof, steps=proof.steps // 2, runs=2)
        if quick:
            proof = replace(proof, steps=self.steps // 10, runs=2, windows=24)
        return proof._run(out, "smoke" if quick else "cpu", on_progress)

    def _run(self, out: Path, level: Literal["smoke", "cpu"], on_progress: OnProgress) -> Record:
        text: Path | list[str] = self.data or [zipf_markov_text(self.characters, seed=self.seed)]
        results: dict[str, _Result] = {}
        trained: dict[str, ElasLlamaForCausalLM] = {}
        work = out / "elas.runs" / level / (self.data.stem if self.data else "made-up")
        for name, options in _ARMS.items():
            found = []
            for seed in range(self.runs):
                training = self._training(text, options, seed)
                folder = work / re.sub("[^a-z0-9]+", "-", f"{name} {seed}".lower())
                identity = training.recipe.model_dump(mode="json")
                identity["text"] = training.windows.sha256
                fit(training, training.recipe.fit, run=folder, identity=identity, label=name)
                model = training.model.eval()
                trained[name] = model
                found.append(_test(model, training.windows.windows("test", self.windows)))
                on_progress(0.95 * (len(results) + (seed + 1) / self.runs) / len(_ARMS))
            results[name] = _stacked(found)
        kept = self._memory(trained)
        on_progress(1.0)
        return self._record(results, kept, trained, out, level)

    def _training(
        self, text: Path | list[str], options: Mapping[str, str], seed: int
    ) -> ElasTraining:
        recipe = ElasRecipe.model_validate(
            {
                "method": "elas",
                "model": self._model(options),
                "data": {
                    # What is given as windows below: named here for the recipe's sake.
                    "text": self.data,
                    "synthetic": None if self.data else self.characters,
                    "length": self.length,
                    "batch_size": self.batch_size,
                },
                "fit": {
                    "steps": self.steps,
                    "learning_rate": self.learning_rate,
                    "warmup": self.steps // 10,
                    "weight_decay": 0.01,
                    "clip": 0.5,
                    "ema": 0,
                    "seed": self.seed + seed,
                },
            }
        )
        windows = TextWindows(
            byte_tokenizer(),
            text,
            length=self.length,
            batch_size=self.batch_size,
            seed=self.seed + seed,
        )
        return ElasTraining(recipe, windows=windows)

    def _model(self, options: Mapping[str, str]) -> dict[str, Any]:
        sparse = options.get("sparsify") != "none"
        return {
            "model_type": "whet_elas_llama",
            "hidden_size": self.width,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "vocab_size": 264,
            "max_position_embeddings": self.length,
            "tie_word_embeddings": True,
            "rank": self.rank,
            "dense_steps": self.steps // 10 if sparse else 0,
            **options,
        }

    def _memory(self, trained: Mapping[str, ElasLlamaForCausalLM]) -> dict[str, _Bytes]:
        found = {}
        for name in (*_ARMS, _DEFAULT):
            plain = name == _DEFAULT
            model = trained[_DENSE if plain else name].train()
            layer: Any = _Plain(model.model.layers[-1].mlp) if plain else model.model.layers[-1].mlp
            x = torch.randn(self.length, self.width)
            ffn = kept_bytes(layer, x) / self.length
            peak = run_isolated(
                "whet.reproduce.elas:step_peak",
                {
                    "model": self._model(_ARMS[_DENSE if plain else name]) | {"dense_steps": 0},
                    "rows": self.peak_rows,
                    "plain": plain,
                },
            )
            wide = None if name == _SWIGLU else _wide_bytes(model.model.layers[-1].mlp, x, plain)
            found[name] = _Bytes(None if wide is None else wide / self.length, ffn, peak)
        return found

    def _record(
        self,
        results: Mapping[str, _Result],
        kept: Mapping[str, _Bytes],
        trained: Mapping[str, nn.Module],
        out: Path,
        level: Literal["smoke", "cpu"],
    ) -> Record:
        comparisons = [
            Comparison(a=a, b=b, metric=metric, value=v, ci=(low, high), test=f"{_TEST}, {kind}")
            for a, b in (
                (_SPARSE, _DENSE),
                (_STE, _DENSE),
                (_SPARSE, _STE),
                (_DENSE, _SWIGLU),
                (_SPARSE, _SWIGLU),
            )
            for metric, kind in _METRICS
            for v, low, high in [self._compare(results, a, b, kind)]
        ]
        source = {"text": "made up: Zipf frequencies, words that follow words"}
        if self.data:
            source = {"text": self.data.name, "text_sha256": _sha256(self.data)}
        items = {
            "ids": list(range(self.windows)),
            "arms": {name: {"nats": r.nats.mean(0)} for name, r in results.items()},
        }
        name = f"elas-{self.data.stem}" if self.data else "elas"
        return new_record(
            "elas",
            title="ELAS: 2:4 sparse activations in low-rank pre-training",
            level=level,
            seeds={"first": self.seed},
            settings={
                **source,
                "runs": self.runs,
                "steps": self.steps,
                "tokens": self.steps * self.batch_size * (self.length - 1),
                "layers": self.layers,
                "width": self.width,
                "rank": self.rank,
                "intermediate_size": self.intermediate,
                "length": self.length,
                "batch_size": self.batch_size,
                "learning_rate": self.learning_rate,
                "dense_steps": self.steps // 10,
                "test_windows": self.windows,
                "peak_tokens": self.peak_rows * self.length,
            },
            arms=[self._arm(name, results, kept, trained) for name in (*_ARMS, _DEFAULT)],
            items=save_items(out / f"{name}.items.json", items),
            comparisons=comparisons,
            claims=self._claims(results, kept),
            notes=[
                "Intervals resample runs (seeds of weights and batches) and test windows; arms "
                "are paired in both.",
                "kept_bytes: what is kept for the way back of the activations as wide as the "
                "feed-forward layer, per token and layer in float32; ffn_bytes adds the layer's "
                "input and the outputs of its inner factors, which sparsity does not touch; "
                "parameters are left out. step_bytes: how far the resident set of a fresh process "
                "rises in one training step of the whole model.",
                f"{_DEFAULT!r} is {_DENSE!r} as autograd does it: equal in every number but bytes.",
                "zeros and dropped are of trained models in evaluation; dropped is the share of "
                "the squares' energy that 2:4 takes away (in the dense arms: would take).",
                "No time is claimed: a CPU has no 2:4 products, and packing costs time.",
            ],
        )

    def _compare(
        self, results: Mapping[str, _Result], a: str, b: str, kind: Statistic
    ) -> tuple[float, float, float]:
        return two_level(results[a].nats, results[b].nats, kind, seed=self.seed)

    def _arm(
        self,
        name: str,
        results: Mapping[str, _Result],
        kept: Mapping[str, _Bytes],
        trained: Mapping[str, nn.Module],
    ) -> Arm:
        metrics: dict[str, Metric] = {}
        settings: dict[str, JsonValue] = {}
        if name in results:
            r = results[name]
            columns: dict[str, Floats | None]
            columns = {"nats": r.nats, "zeros": r.zeros, "dropped": r.dropped}
            for key, column in columns.items():
                if column is None:
                    continue
                mean, low, high = two_level(column, None, "difference", seed=self.seed)
                unit = "nats" if key == "nats" else "fraction"
                metrics[key] = Metric(value=mean, ci=(low, high), n=self.windows, unit=unit)
            count = sum(p.numel() for p in trained[name].parameters())
            settings = {**_ARMS[name], "parameters": count}
        bytes_ = kept[name]
        if bytes_.wide is not None:
            metrics["kept_bytes"] = Metric(value=bytes_.wide, n=self.length, unit="bytes")
        metrics["ffn_bytes"] = Metric(value=bytes_.ffn, n=self.length, unit="bytes")
        metrics["step_bytes"] = Metric(value=bytes_.peak, n=1, unit="bytes")
        return Arm(name=name, chain="elas", settings=settings, metrics=metrics)

    def _claims(self, results: Mapping[str, _Result], kept: Mapping[str, _Bytes]) -> list[Claim]:
        loss, low, high = self._compare(results, _SPARSE, _DENSE, "ratio")
        column = results[_SPARSE].zeros
        assert column is not None
        zeros = two_level(column, None, "difference", seed=self.seed)

        def smaller(
            name: str,
            b: str,
            part: Literal["wide", "ffn", "peak"],
            op: Op,
            target: float,
            text: str,
        ) -> Claim:
            one, other = getattr(kept[_SPARSE], part), getattr(kept[b], part)
            metric = {"wide": "kept_bytes", "ffn": "ffn_bytes", "peak": "step_bytes"}[part]
            return claim(name, "ratio", _SPARSE, b, metric, one / other, None, op, target, text)

        return [
            claim("quality", "ratio", _SPARSE, _DENSE, "nats", loss, (low, high), "<=", 1.02,
                  "2:4 activations cost at most 2 % of the dense squared rectifier's loss"),
            claim("zeros", "order", _SPARSE, _SPARSE, "zeros", zeros[0], zeros[1:], ">", 0.6,
                  "more than 0.6 of the squared rectifier's output is zero before it is made 2:4"),
            smaller("kept, recomputed", _DENSE, "wide", "<=", 0.6,
                    "packed activations take 0.6 of what recomputing the square keeps"),
            smaller("kept, autograd", _DEFAULT, "wide", "<=", 0.35,
                    "and 0.35 of what autograd keeps of them"),
            smaller("peak, recomputed", _DENSE, "peak", "<", 1.0,
                    "the peak memory of a whole training step truly falls"),
            smaller("peak, autograd", _DEFAULT, "peak", "<", 1.0,
                    "also against autograd's own layer"),
        ]  # fmt: skip


_TEST = "bootstrap over runs and windows"
_METRICS: tuple[tuple[str, Statistic], ...] = (("nats", "ratio"), ("nats", "difference"))


class _Plain(nn.Module):
    """The dense squared rectifier as autograd does it, with the layers of a feed-forward layer."""

    def __init__(self, ffn: SparseFeedForward) -> None:
        super().__init__()
        self.up, self.down = ffn.up, ffn.down

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(x).relu().square())
        return out


def kept_bytes(work: nn.Module | Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes of the distinct storages that work(x) keeps for the way back, parameters left out.

    x [T, width] counts where it is kept.
    """
    parameters = list(work.parameters()) if isinstance(work, nn.Module) else []
    known = {p.untyped_storage().data_ptr() for p in parameters}
    held: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            # Held with its size: an address must not be used again while counting.
            held[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = work(x.requires_grad_())
    del out
    return sum(size for size, _ in held.values())


def _wide_bytes(ffn: SparseFeedForward, x: Tensor, plain: bool) -> int:
    """Of the activations between the two matrices alone."""
    # A constant weight would need no activation on the way back; its own bytes are taken out.
    weight = ffn.down.first_weight().detach().requires_grad_()
    y1 = ffn.up(x).detach()

    def default(y: Tensor) -> Tensor:
        return y.relu().square() @ weight.t()

    def ours(y: Tensor) -> Tensor:
        return relu2_linear(y, weight, sparsify=ffn.present_rule, gradient=ffn.gradient)

    return kept_bytes(default if plain else ours, y1) - weight.untyped_storage().nbytes()


def step_peak(model: dict[str, Any], rows: int, plain: bool) -> int:
    """Bytes that a training step adds to the resident set of this process.

    model: configuration keys. rows: windows as long as the model's context. plain: the dense
    squared rectifier as autograd does it. A step on one row is made before, so that what is
    loaded on first use does not count.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    free_at_once()
    made = build_model(model, byte_tokenizer()).train()
    if plain:
        for layer in made.model.layers:
            layer.mlp = _Plain(layer.mlp)
    tokens = torch.randint(0, 256, (rows, model["max_position_embeddings"]))

    def step(part: Tensor) -> None:
        window_losses(made, part).mean().backward()  # type: ignore[no-untyped-call]

    step(tokens[:1])
    _, peak = peak_memory(lambda: step(tokens))
    assert peak.added_bytes is not None
    return peak.added_bytes


@torch.no_grad()
def _test(model: ElasLlamaForCausalLM, windows: Tensor) -> _Result:
    """Every window on its own, [1, windows]."""
    model.observe(True)
    nats, zeros, dropped = [], [], []
    for window in windows:
        nats.append(float(window_losses(model, window[None])[0]))
        seen = [m.observed for m in model.feed_forwards() if m.observed is not None]
        if seen:
            zeros.append(float(np.mean([s.zeros for s in seen])))
            dropped.append(float(np.mean([s.dropped_energy for s in seen])))
    model.observe(False)
    return _Result(
        np.array([nats]),
        np.array([zeros]) if zeros else None,
        np.array([dropped]) if dropped else None,
    )


def _stacked(runs: list[_Result]) -> _Result:
    def join(parts: list[Floats | None]) -> Floats | None:
        found = [p for p in parts if p is not None]
        return np.concatenate(found) if found else None

    return _Result(
        np.concatenate([r.nats for r in runs]),
        join([r.zeros for r in runs]),
        join([r.dropped for r in runs]),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


ELAS = ElasProof()
