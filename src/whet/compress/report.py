"""What a compression gained and what it cost: both models, loaded as users load them, in one run.

Sizes are those of the files, index and metadata included. Times are of both models in turns,
warm-up left out; peak memory is that of a fresh process that loads a model and reads one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from whet.compress.chain import Steps, step_text
from whet.compress.quality import Measured, Quality
from whet.compress.run import Compressed
from whet.compress.sizes import count_parameters, flops_per_token, share_of_zeros
from whet.compress.target import Target, open_target
from whet.measure.clock import alternate, paired_ratio
from whet.measure.memory import peak_memory, run_isolated
from whet.measure.record import Arm, Comparison, Level, Metric, Record, new_record
from whet.models.registry import model_classes

DENSE, COMPRESSED = "dense", "compressed"
_TOLD = 12
_SPARSE = 0.2


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How speed is measured: `repeats` rounds in turns after `warmup` that do not count.

    rows, length: of the batch that is read at once. new_tokens: written one by one after a prompt
    of half that length, one row.
    """

    rows: int = 4
    length: int = 128
    new_tokens: int = 32
    repeats: int = 7
    warmup: int = 1


def compression_record(
    target: Target,
    made: Compressed,
    chain: Steps,
    *,
    quality: Quality | None,
    settings: Mapping[str, Any],
    seed: int = 0,
    timing: Timing = Timing(),
    memory: bool = True,
    level: Level = "cpu",
) -> Record:
    """The record of a compressed model beside the one it was made from.

    memory: whether peaks are measured, which starts a process for each model.
    Errors: those of loading and measuring.
    """
    result = open_target(made.folder, packed=True)
    targets = {DENSE: target, COMPRESSED: result}
    dtype = working_dtype(target)
    models = {name: t.load(dtype) for name, t in targets.items()}
    timing = _fitting(timing, target, result)
    speed, compared = speeds({n: m for n, (m, _) in models.items()}, target, timing)
    arms, found = [], {}
    for name, (model, tokenizer) in models.items():
        metrics, cost = _sizes(model, targets[name], timing.length)
        if quality is not None:
            found[name] = quality.measure(model, tokenizer, targets[name])
            metrics = {**found[name].metrics, **metrics}
        if memory:
            cost["peak_bytes"], metrics["added_bytes"] = _peak(targets[name], timing, dtype)
        text = " -> ".join(map(step_text, chain)) if name == COMPRESSED else "as it was"
        arms.append(Arm(name=name, chain=text, metrics={**metrics, **speed[name]}, cost=cost))
    return new_record(
        "compress",
        title=f"{target.name}: {' -> '.join(map(step_text, chain))}",
        level=level,
        seeds={"compression": seed},
        settings={
            **settings,
            "model": target.name,
            "model_type": made.model_type,
            "steps": [step_text(step) for step in chain],
            "threads": torch.get_num_threads(),
            "timing": {"rows": timing.rows, "length": timing.length, "repeats": timing.repeats},
        },
        arms=arms,
        comparisons=[*_compared(quality, found), *compared],
        notes=[
            *_loads(made, target),
            *speed_notes(compared, models[COMPRESSED][0]),
            *_protocol(quality, found, target),
            *findings(made),
        ],
    )


def disk_bytes(folder: Path) -> dict[str, int]:
    """Bytes of a checkpoint's files: weights, metadata (configurations and indices), tokenizer.

    Reports that whet writes beside the model are left out.
    """
    found = {"weights": 0, "metadata": 0, "tokenizer": 0}
    for path in folder.iterdir():
        if not path.is_file() or path.name in ("steps.json", "report.json", "report.html"):
            continue
        if path.suffix == ".safetensors":
            found["weights"] += path.stat().st_size
        elif path.name in ("config.json", "generation_config.json") or "index" in path.name:
            found["metadata"] += path.stat().st_size
        elif path.name.startswith(("tokenizer", "vocab", "merges", "special_tokens")):
            found["tokenizer"] += path.stat().st_size
    return found


def working_dtype(target: Target) -> torch.dtype:
    """What both models compute in: the stored type, but float32 for half precision on a CPU."""
    return torch.float32 if target.dtype == torch.float16 else target.dtype


def _sizes(model: Any, target: Target, length: int) -> tuple[dict[str, Metric], dict[str, float]]:
    disk = disk_bytes(target.folder)
    # Loaders keep packed weights in forms of their own; the shapes are those of the empty model.
    empty = target.empty()
    metrics = {
        "parameters": Metric(value=count_parameters(empty)),
        "zeros": Metric(value=share_of_zeros(model), unit="fraction"),
        "disk": Metric(value=disk["weights"] + disk["metadata"], unit="bytes"),
        "flops_per_token": Metric(value=flops_per_token(empty, length)),
    }
    return metrics, {f"{name}_bytes": float(size) for name, size in disk.items()}


def speeds(
    models: Mapping[str, Any], target: Target, timing: Timing
) -> tuple[dict[str, dict[str, Metric]], list[Comparison]]:
    """Tokens per second of both models, and how much faster the compressed one is.

    prefill: a batch read at once. decode: tokens written one by one, of models that do so.
    """
    ids = _ids(models[DENSE], timing)
    seconds = {"prefill": _timed(models, lambda model: _read(model, ids), timing)}
    tokens = {"prefill": ids.numel(), "decode": timing.new_tokens}
    if target.kind == "autoregressive":
        prompt = ids[:1, : timing.length // 2]
        seconds["decode"] = _timed(models, lambda model: _write(model, prompt, timing), timing)
    metrics: dict[str, dict[str, Metric]] = {name: {} for name in models}
    compared = []
    for what, times in seconds.items():
        name = f"{what}_tokens_per_second"
        for arm, own in times.items():
            ordered = sorted(tokens[what] / second for second in own)
            middle = ordered[len(ordered) // 2]
            metrics[arm][name] = Metric(value=middle, n=len(own))
        ratio, low, high = paired_ratio(times[DENSE], times[COMPRESSED])
        compared.append(
            Comparison(
                a=COMPRESSED,
                b=DENSE,
                metric=name,
                value=ratio,
                ci=(low, high),
                test=f"median ratio over {timing.repeats} rounds in turns",
            )
        )
    return metrics, compared


def _timed(
    models: Mapping[str, Any], use: Callable[[Any], object], timing: Timing
) -> dict[str, list[float]]:
    uses = {name: partial(use, model) for name, model in models.items()}
    return alternate(uses, repeats=timing.repeats, warmup=timing.warmup)


def _ids(model: Any, timing: Timing) -> torch.Tensor:
    size = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(size, (timing.rows, timing.length), generator=generator).to(model.device)


@torch.inference_mode()
def _read(model: Any, ids: torch.Tensor) -> None:
    model(input_ids=ids)


def _write(model: Any, prompt: torch.Tensor, timing: Timing) -> None:
    from whet.compress.quality import continuations

    continuations(model, prompt.tolist(), timing.new_tokens)


def _fitting(timing: Timing, *targets: Target) -> Timing:
    """Lengths that every model takes."""
    most = min((t.context_length or timing.length for t in targets), default=timing.length)
    length = min(timing.length, most)
    room = max(1, most - length // 2)
    return Timing(
        rows=timing.rows,
        length=length,
        new_tokens=min(timing.new_tokens, room),
        repeats=timing.repeats,
        warmup=timing.warmup,
    )


def _peak(target: Target, timing: Timing, dtype: torch.dtype) -> tuple[float, Metric]:
    found = run_isolated(
        "whet.compress.report:footprint",
        {
            "folder": str(target.folder),
            "dtype": str(dtype).removeprefix("torch."),
            "rows": timing.rows,
            "length": timing.length,
        },
    )
    return found["peak"], Metric(value=found["added"], unit="bytes")


def footprint(*, folder: str, dtype: str, rows: int, length: int) -> dict[str, int]:
    """Peak resident bytes of this process while it loads a model and reads a batch, and how far
    that raised it."""
    target = open_target(folder, packed=True)

    def use() -> None:
        model, _ = target.load(getattr(torch, dtype))
        _read(model, _ids(model, Timing(rows=rows, length=length)))

    _, peak = peak_memory(use)
    return {"peak": peak.peak_bytes, "added": peak.added_bytes or 0}


def _compared(quality: Quality | None, found: Mapping[str, Measured]) -> list[Comparison]:
    if quality is None:
        return []
    return quality.compare(COMPRESSED, found[COMPRESSED], DENSE, found[DENSE])


def _protocol(quality: Quality | None, found: Mapping[str, Measured], target: Target) -> list[str]:
    if quality is None:
        return ["quality was not measured: give something to measure on"]
    bound = ["perplexity is an upper bound, by Monte Carlo"] if target.kind == "masked" else []
    return [*quality.notes(found[COMPRESSED]), *bound]


def _loads(made: Compressed, target: Target) -> list[str]:
    """Where the result loads, and how that was seen."""
    needs = ["compressed-tensors"] if made.packed else []
    if made.model_type.startswith("whet_"):
        needs.append("whet (its shapes are in no stock class: import whet.auto)")
    elif made.model_type in model_classes():
        needs.append("whet (import whet.auto)")
    where = f"with {' and '.join(needs)}" if needs else "as it is, without whet"
    found = f"loads in transformers {where}; model_type {made.model_type}"
    if made.difference is not None:
        found += f"; reloaded in a fresh process: logits differ by {made.difference:.1e} at most"
    return [found]


def speed_notes(compared: Sequence[Comparison], model: Any) -> list[str]:
    """A sentence where nothing got faster, or something slower, and why that is so if known."""
    faster = [c for c in compared if c.ci is not None and c.ci[0] > 1]
    slower = [c for c in compared if c.ci is not None and c.ci[1] < 1]
    if faster and not slower:
        return []
    what, shown = ("got slower", slower) if faster else ("nothing got faster here", compared)
    ratios = ", ".join(f"{c.metric.partition('_')[0]} {c.value:.2f}×" for c in shown)
    why = []
    if _packed(model):
        why.append(
            "transformers turns packed weights into numbers before it multiplies: an engine with "
            "kernels for them, such as vLLM, is needed"
        )
    elif share_of_zeros(model) > _SPARSE:
        why.append("zeros are multiplied like other numbers")
    return [f"{what} ({ratios})" + (f": {'; '.join(why)}" if why else "")]


def _packed(model: Any) -> bool:
    return getattr(model.config, "quantization_config", None) is not None


def findings(made: Compressed) -> list[str]:
    """What did not go the usual way in the steps: notes, dead channels, cold experts."""
    found = []
    for step in made.steps:
        told = [str(note) for note in step.report.get("notes", ())]
        dead = step.report.get("dead") or {}
        if dead:
            told.append(f"{sum(dead.values())} dead channels in {_layers(dead)}")
        cold = step.report.get("cold_experts") or {}
        if cold:
            told.append(f"experts that saw too few tokens in {_layers(cold)}")
        found += [f"{step.step}: {sentence}" for sentence in told]
    more = len(found) - _TOLD
    return [*found[:_TOLD], *([f"and {more} more, in steps.json"] if more > 0 else [])]


def _layers(found: Mapping[str, Any]) -> str:
    names = list(found)
    return names[0] + (f" and {len(names) - 1} more layers" if len(names) > 1 else "")
