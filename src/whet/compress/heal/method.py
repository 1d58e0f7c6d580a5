"""Healing as a step of a chain: options, rounds that can be resumed, the adapter to models."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from whet import rng as rng_
from whet.compress.calibrate.capture import digest
from whet.compress.calibrate.store import read_tensors, write_tensors
from whet.compress.heal.data import Row, read_responses, record_responses, text_rows, token_rows
from whet.compress.heal.targets import block_linears
from whet.compress.heal.training import HealTraining
from whet.compress.method import Compression, Job, Stage
from whet.errors import InputError, OptionError
from whet.fit import FitSettings
from whet.fit.lora import LoraSettings, add_lora, lora_targets, merge_lora
from whet.fit.rounds import run_rounds
from whet.models.registry import is_autoregressive, is_encoder
from whet.models.roles import blocks

_WEIGHTS = "healed.safetensors"
_PRUNED = 0.2


@dataclass(frozen=True)
class Heal(Compression):
    """Fine-tune what is left.

    data: "self" = responses of the original model to the job's prompts, or, where there are none,
    to the first `prompt_length` tokens of every calibration row; "answers" = the job's answers to
    its prompts; "text" = the calibration rows themselves.
    temperature, top_p, max_new_tokens: of the responses; keep_truncated: also learn those that
    were cut off. steps, batch_size, accumulation (parts of a batch), learning_rate (constant after
    `warmup` steps), weight_decay, beta2, clip: of AdamW. rank (0: all weights), alpha, dropout: of
    LoRA; targets: the linear layers of attention and MLP ("roles"), or all but the head. distil:
    weight of the KL divergence to the original model, at distil_temperature.
    """

    stage: ClassVar[Stage] = "heal"
    id: ClassVar[str] = "heal"

    data: Literal["self", "answers", "text"] = "self"
    steps: int = 200
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 2e-4
    warmup: int = 50
    weight_decay: float = 1e-4
    beta2: float = 0.99
    clip: float = 1.0
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: Literal["roles", "all-linear"] = "roles"
    distil: float = 0.0
    distil_temperature: float = 1.0
    temperature: float = 0.9
    top_p: float = 0.95
    max_new_tokens: int = 256
    prompt_length: int = 32
    keep_truncated: bool = False

    def __post_init__(self) -> None:
        """Errors: OptionError."""
        if self.data not in ("self", "answers", "text"):
            raise OptionError(f"data={self.data!r} must be 'self', 'answers' or 'text'")
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise OptionError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("learning_rate", "alpha", "clip", "distil_temperature"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name}={getattr(self, name):g} must be above 0")
        for name in ("dropout", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name):g} must be at least 0 and below 1")
        if not 0 <= self.distil <= 1:
            raise OptionError(f"distil={self.distil:g} must be between 0 and 1")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p={self.top_p:g} must be above 0 and at most 1")
        if self.accumulation > self.batch_size:
            raise OptionError(
                f"accumulation={self.accumulation} must be at most batch_size={self.batch_size}"
            )

    def check(self, model: nn.Module) -> None:
        """Errors: OptionError for what does not predict the next token, or packed weights."""
        if not is_autoregressive(model) or is_encoder(model):
            raise OptionError(
                f"heal trains models that predict the next token, which a {type(model).__name__} "
                "does not"
            )
        block_linears(model)

    def shape(self, model: nn.Module) -> None:
        """Shapes stay."""

    def apply(self, job: Job) -> dict[str, Any]:
        """Train `job.model`, in place.

        Errors: OptionError for a missing original model, or weights that were pruned one by one;
        those of `run_rounds`.
        """
        self.check(job.model)
        _check_dense(job.model)
        if (self.data == "self" or self.distil) and job.original is None:
            raise OptionError(
                "heal learns from the model as it was before the chain: give the job `original`, "
                "or use data='text' without distil"
            )
        if self.data == "answers" and not 0 < len(job.prompts) == len(job.answers):
            raise OptionError(
                f"data='answers' needs prompts with an answer each: the job has {len(job.prompts)} "
                f"and {len(job.answers)}"
            )
        training = job.model.training
        with ExitStack() as stack:
            folder = job.folder
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            rounds = _Rounds(self, job)
            try:
                promoted = run_rounds(
                    rounds,
                    self._fit(job.seed),
                    rounds=1,
                    run=folder,
                    identity={**self.identity(), "job": rounds.identity},
                    label=self.id,
                )
            finally:
                rounds.take_off()
                job.model.train(training)
            _load(job.model, promoted / _WEIGHTS)
            told: dict[str, Any] = json.loads((promoted / "report.json").read_text("utf-8"))
        return told

    def _fit(self, seed: int) -> FitSettings:
        return FitSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            beta2=self.beta2,
            clip=self.clip,
            ema=0,
            seed=seed,
            checkpoint_every=100,
            log_every=max(1, min(20, self.steps // 10)),
            accumulation=self.accumulation,
        )


_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "accumulation": 1,
    "warmup": 0,
    "weight_decay": 0,
    "rank": 0,
    "temperature": 0,
    "max_new_tokens": 1,
    "prompt_length": 1,
}


class _Rounds:
    """What `run_rounds` asks for: responses, the training on them, the weights that came out."""

    def __init__(self, options: Heal, job: Job) -> None:
        self.options, self.job = options, job
        self.original: Any = None
        self.wrapped: Any = None
        self.changed: list[str] = []
        self.told: dict[str, Any] = {}
        self.flags = [(p, p.requires_grad) for p in job.model.parameters()]
        tensors = [x for b in job.batches for x in b.values() if isinstance(x, Tensor)]
        self.identity = {
            "seed": job.seed,
            "weights": digest(*(p.detach().flatten()[:256] for p in job.model.parameters())),
            "batches": digest(*tensors),
            "prompts": digest(*(torch.tensor(list(row)) for row in (*job.prompts, *job.answers))),
        }

    def collect(self, number: int, promoted: Path | None, data: Path) -> None:
        """Record the original's responses; nothing where there is something to learn already."""
        if self.options.data != "self":
            return
        record_responses(
            self._original(),
            self.job.tokenizer,
            self._prompts(),
            folder=data,
            identity={"job": self.identity},
            temperature=self.options.temperature,
            top_p=self.options.top_p,
            max_new_tokens=self.options.max_new_tokens,
            seed=self.job.seed,
        )
        if not self.options.distil:
            self.original = None  # its memory

    def training(self, number: int, promoted: Path | None, data: Path) -> HealTraining:
        """The model with what is trained, and the rows."""
        rows, dropped = self._rows(data)
        teacher = self._original() if self.options.distil else None
        model = self._with_updates()
        self.told = {
            "data": self.options.data,
            "rows": len(rows),
            "cut_off": dropped,
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        return HealTraining(
            model,
            rows,
            self.options._fit(self.job.seed),
            batch_size=self.options.batch_size,
            pad=_pad(self.job.tokenizer),
            teacher=teacher,
            distil=self.options.distil,
            temperature=self.options.distil_temperature,
        )

    def promote(self, number: int, method: Any, promoted: Path) -> None:
        """Merge, and write what has changed, with the last losses."""
        if self.wrapped is not None:
            merge_lora(self.wrapped)
            self.wrapped = None
        parameters = dict(self.job.model.named_parameters())
        changed = {name: parameters[name] for name in self.changed}
        write_tensors(promoted / _WEIGHTS, changed)
        lines = (promoted.parent / "fit" / "metrics.jsonl").read_text("utf-8").splitlines()
        losses = {f"{name}_loss": json.loads(lines[i])["loss"] for name, i in _ENDS.items()}
        told = json.dumps({**self.told, "steps": self.options.steps, **losses})
        (promoted / "report.json").write_text(told, encoding="utf-8")

    def take_off(self) -> None:
        """Leave the model as a plain one, also after an error."""
        if self.wrapped is not None:
            self.wrapped.unload()
        for parameter, needed in self.flags:
            parameter.requires_grad_(needed)
            parameter.grad = None

    def _original(self) -> Any:
        if self.original is None:
            assert self.job.original is not None
            original = self.job.original().eval().requires_grad_(False)
            self.original = original.to(self.job.device or self.job.model.device)
        return self.original

    def _prompts(self) -> list[list[int]]:
        if self.job.prompts:
            return [list(prompt) for prompt in self.job.prompts]
        found = [row[: self.options.prompt_length] for row in token_rows(self.job.batches)]
        if not found:
            raise InputError("there are no prompts: give the job prompts or calibration batches")
        return found

    def _rows(self, data: Path) -> tuple[list[Row], int]:
        if self.options.data == "text":
            return text_rows(self.job.batches), 0
        if self.options.data == "answers":
            pairs = zip(self.job.prompts, self.job.answers, strict=True)
            return [Row(prompt, answer) for prompt, answer in pairs], 0
        return read_responses(data, keep_truncated=self.options.keep_truncated)

    def _with_updates(self) -> Any:
        """The model, of which only what is trained needs gradients."""
        model, options = self.job.model, self.options
        if not options.rank:
            self.changed = [n for n, p in model.named_parameters() if p.is_floating_point()]
            return model.requires_grad_(True)
        names = (
            block_linears(model)
            if options.targets == "roles"
            else lora_targets(model, options.targets)
        )
        self.changed = [f"{name}.weight" for name in names]
        settings = LoraSettings(
            rank=options.rank, alpha=options.alpha, dropout=options.dropout, targets=names
        )
        device = model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(rng_.key_bits(self.job.seed, "lora", bits=64) >> 1)
            self.wrapped = add_lora(model, settings)
        return self.wrapped


_ENDS = {"first": 0, "last": -1}


@torch.no_grad()
def _load(model: nn.Module, path: Path) -> None:
    """Give the model the weights that a finished round left."""
    own = dict(model.named_parameters())
    for name, tensor in read_tensors(path).items():
        own[name].copy_(tensor)


def _pad(tokenizer: Any) -> int:
    """A token to fill rows with, which no prediction looks at."""
    for name in ("pad_token_id", "eos_token_id"):
        if (found := getattr(tokenizer, name, None)) is not None:
            return int(found)
    return 0


@torch.no_grad()
def _check_dense(model: nn.Module) -> None:
    """Errors: OptionError for zeros that training would fill."""
    for block in blocks(model):
        for name, weight in model.get_submodule(block.name).named_parameters():
            zeros = float((weight == 0).float().mean()) if weight.dim() > 1 else 0.0
            if zeros > _PRUNED:
                raise OptionError(
                    f"{block.name}.{name} is {zeros:.0%} zeros, which healing would fill: heal "
                    "before single weights are pruned"
                )
