"""Running a chain: step by step, each from what the one before it left, resumable after each.

A work folder beside the output holds the finished steps' reports, the model after the last of
them, and what the step in work needs to go on; it goes when the result has been saved and
reloaded. With `max_memory` no model is ever whole in memory: every step reads a checkpoint folder
block by block and writes the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whet._io import check_writable, claim_folder, write_json
from whet.compress.calibrate import Progress
from whet.compress.chain import Steps, step_text
from whet.compress.method import Compression, Job, checked_order
from whet.compress.plan import Calibrating, check_free, check_options, work_folder
from whet.compress.target import Target, open_target
from whet.errors import CheckpointError, NonFiniteError
from whet.layers.packed_linear import quantization_config_of
from whet.models.edits import save_model

_CLAIM, _STATE, _MODEL = "claim.json", "state.json", "model"
_STEPS = "steps.json"

Score = float | Mapping[str, float]
Tell = Callable[[int, str, float], None]
"""(number of the step, its text, share of it that is done)"""


@dataclass(frozen=True)
class StepReport:
    """What a step said of itself. seconds: of the run that finished it."""

    step: str
    seconds: float
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Compressed:
    """The result. model_type: of the checkpoint in `folder`; packed: whether weights are integers.

    difference: of logits after loading in a fresh process, relative to the largest; None where
    the result was streamed and is larger than memory.
    """

    folder: Path
    model_type: str
    packed: bool
    difference: float | None
    steps: tuple[StepReport, ...]


@dataclass
class _State:
    """finished: steps of which nothing has to be done again."""

    finished: int = 0
    reports: list[StepReport] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> _State:
        """Errors: CheckpointError."""
        if not path.is_file():
            return cls()
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(raw["finished"]), [StepReport(**entry) for entry in raw["reports"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged ({error!r})") from error

    def write(self, path: Path) -> None:
        reports = [asdict(report) for report in self.reports]
        write_json(path, {"finished": self.finished, "reports": reports})


def run(
    chain: Steps,
    target: Target,
    *,
    out: Path,
    calibrating: Calibrating,
    seed: int = 0,
    max_memory: int | None = None,
    device: torch.device | None = None,
    evaluate: Callable[[Any, Any], Score] | None = None,
    on_progress: Tell = lambda number, step, share: None,
) -> Compressed:
    """Compress a model and save it in `out`, whole and reloaded, or not at all.

    evaluate: score of a model with its tokenizer, larger is better, for methods led by one.
    Numbers are computed in float32 and stored in the checkpoint's own type. A run that was killed
    goes on with the same arguments; the order of its random choices does not depend on that.

    Errors: OptionError and InputError as `plan`; CheckpointError where the work folder is of
    another chain, or the saved model does not load or computes something else; NonFiniteError
    where a step leaves NaN or infinity.
    """
    checked_order(chain)
    check_options(chain, calibrating, max_memory)
    check_free(out)
    work = work_folder(out)
    check_writable(work)
    batches = calibrating.batches(target, seed=seed)
    runner = _Runner(
        chain=chain,
        target=target,
        batches=batches,
        work=work,
        seed=seed,
        max_memory=max_memory,
        device=device,
        prompts=calibrating.prompts(target, seed=seed),
        evaluate=evaluate,
        tell=on_progress,
    )
    claim = _claim(chain, target, calibrating, seed, max_memory)
    claim_folder(work / _CLAIM, claim)
    if out.is_dir():  # an empty one
        out.rmdir()
    made = runner.streamed(out) if max_memory is not None else runner.in_memory(out)
    _copy_pipeline(target.folder, out)
    told = {key: value for key, value in asdict(made).items() if key != "folder"}
    write_json(out / _STEPS, {"claim": claim, **told})
    shutil.rmtree(work, ignore_errors=True)
    return made


def finished(
    chain: Steps,
    target: Target,
    *,
    out: Path,
    calibrating: Calibrating,
    seed: int = 0,
    max_memory: int | None = None,
) -> Compressed | None:
    """What an earlier `run` with the same arguments has left in `out`, None where none has."""
    try:
        stored = json.loads((out / _STEPS).read_text(encoding="utf-8"))
        claim = json.loads(json.dumps(_claim(chain, target, calibrating, seed, max_memory)))
        if stored.pop("claim") != claim:
            return None
        steps = tuple(StepReport(**entry) for entry in stored.pop("steps"))
        return Compressed(folder=out, steps=steps, **stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # something else lies there


def _claim(
    chain: Steps, target: Target, calibrating: Calibrating, seed: int, max_memory: int | None
) -> dict[str, Any]:
    """What two runs must agree in to be one."""
    source = calibrating.source
    if source is not None and not isinstance(source, (str, Path)):
        source = hashlib.sha256("\0".join(source).encode()).hexdigest()
    files = {p.name: p.stat() for p in sorted(target.folder.glob("*.safetensors"))}
    return {
        "model": target.name,
        "files": {name: [found.st_size, found.st_mtime_ns] for name, found in files.items()},
        "chain": [step.identity() for step in chain],
        "calibration": {
            "source": None if source is None else str(source),
            "count": calibrating.count,
            "length": calibrating.window(target),
            "batch_size": calibrating.batch_size,
            "held_out": calibrating.held_out,
        },
        "seed": seed,
        "streamed": max_memory is not None,
    }


@dataclass(kw_only=True)
class _Runner:
    chain: Steps
    target: Target
    batches: Sequence[dict[str, Tensor]]
    work: Path
    seed: int
    max_memory: int | None
    device: torch.device | None
    prompts: Sequence[Sequence[int]]
    evaluate: Callable[[Any, Any], Score] | None
    tell: Tell

    def in_memory(self, out: Path) -> Compressed:
        """Steps change one model; between them it is kept where a checkpoint can hold it."""
        state = _State.read(self.work / _STATE)
        start = open_target(self._model(state.finished)) if state.finished else self.target
        model, tokenizer = start.load()
        reports = list(state.reports)
        for index, step in self._left(state):
            step.check(model)
            reports.append(self._apply(index, step, model=model, tokenizer=tokenizer))
            _check_finite(model, step)
            # Packed weights load as other layers; their steps are short to do again.
            if index + 1 < len(self.chain) and quantization_config_of(model) is None:
                save_model(model, tokenizer, self._model(index + 1), verify=False, overwrite=True)
                _State(index + 1, reports).write(self.work / _STATE)
                self._forget(index)
        saved = save_model(model, tokenizer, out, dtype=self.target.dtype)
        return Compressed(out, saved.model_type, saved.packed, saved.difference, tuple(reports))

    def streamed(self, out: Path) -> Compressed:
        """Every step reads a folder and writes the next."""
        state = _State.read(self.work / _STATE)
        for index, step in self._left(state):
            source = self._folder(index - 1) if index else self.target.folder
            start = open_target(source) if index else self.target
            model = start.empty()
            step.check(model)
            report = self._apply(index, step, model=model, tokenizer=None, source=source)
            state.reports.append(report)
            state.finished = index + 1
            state.write(self.work / _STATE)
            if index:
                shutil.rmtree(source, ignore_errors=True)
        last = self._folder(len(self.chain) - 1)
        shutil.rmtree(last / "calibration", ignore_errors=True)
        self.target.tokenizer().save_pretrained(last)
        raw = json.loads((last / "config.json").read_text(encoding="utf-8"))
        check_loads(last)
        os.replace(last, out)
        packed = "quantization_config" in raw
        return Compressed(out, str(raw["model_type"]), packed, None, tuple(state.reports))

    def _left(self, state: _State) -> list[tuple[int, Compression]]:
        return list(enumerate(self.chain))[state.finished :]

    def _folder(self, index: int) -> Path:
        return self.work / f"step-{index}"

    def _model(self, finished: int) -> Path:
        return self.work / f"{_MODEL}-{finished}"

    def _forget(self, index: int) -> None:
        """What nothing goes on from any more."""
        shutil.rmtree(self._folder(index), ignore_errors=True)
        shutil.rmtree(self._model(index), ignore_errors=True)

    def _apply(
        self,
        index: int,
        step: Compression,
        *,
        model: Any,
        tokenizer: Any,
        source: Path | None = None,
    ) -> StepReport:
        text = step_text(step)
        self.tell(index, text, 0.0)
        score = self.evaluate
        job = Job(
            model=model,
            batches=self.batches,
            tokenizer=tokenizer,
            seed=self.seed,
            folder=self._folder(index),
            source=source,
            device=self.device,
            max_memory=self.max_memory,
            evaluate=None if score is None else lambda other: score(other, tokenizer),
            original=lambda: self.target.load()[0],
            prompts=self.prompts,
            on_progress=lambda progress: self.tell(index, text, _share(progress)),
        )
        start = time.perf_counter()
        report = step.apply(job)
        self.tell(index, text, 1.0)
        return StepReport(text, time.perf_counter() - start, report)


def check_loads(folder: Path) -> None:
    """Errors: CheckpointError where a fresh process does not load a checkpoint that fits here, or
    gets numbers from it that are not finite."""
    from whet.measure.memory import run_isolated

    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if weights * 2 > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"):
        return
    if not run_isolated("whet.compress.run:finite_logits", {"folder": str(folder)}):
        raise CheckpointError(f"{folder}: the compressed model's logits are not finite")


def finite_logits(folder: str) -> bool:
    """Whether a checkpoint's first logits are finite."""
    model, _ = open_target(folder, packed=True).load()
    with torch.no_grad():
        return bool(model(input_ids=torch.arange(8)[None])[0].isfinite().all())


def _share(progress: Progress) -> float:
    begun = {"capture": 0.0, "observe": 0.0, "edit": 0.5, "propagate": 0.6, "save": 0.9}
    return (progress.block + begun[progress.phase]) / progress.blocks


def _check_finite(model: nn.Module, step: Compression) -> None:
    """Errors: NonFiniteError."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"{step.id} left NaN or infinity in {name}: nothing was saved")


def _copy_pipeline(source: Path, out: Path) -> None:
    """What sentence-transformers keeps beside the model: how embeddings are pooled."""
    modules = source / "modules.json"
    if not modules.is_file():
        return
    for name in (modules.name, "sentence_bert_config.json", "config_sentence_transformers.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    for entry in json.loads(modules.read_text(encoding="utf-8")):
        part = Path(entry.get("path", ""))
        inside = bool(part.parts) and not part.is_absolute() and ".." not in part.parts
        if inside and (source / part / "config.json").is_file():
            (out / part).mkdir(exist_ok=True)
            shutil.copyfile(source / part / "config.json", out / part / "config.json")
