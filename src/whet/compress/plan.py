"""What a chain will do, found out before any weight is read: shapes, sizes, room, time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whet.compress.chain import Steps, step_text
from whet.compress.data import (
    COUNT,
    LENGTH,
    Source,
    calibration_batches,
    solved_problems,
    split_text,
)
from whet.compress.method import Stage, checked_order
from whet.compress.sizes import Size, size_of
from whet.compress.target import Target
from whet.errors import InputError, OptionError

_PASSES = 2
"""Of the calibration batches through every block: once to watch it, once when it is edited."""


@dataclass(frozen=True, kw_only=True)
class Calibrating:
    """What calibration reads: see `calibration_batches`.

    source: None where no step calibrates. An encoder reads the lines of a file. length: None takes
    what the model takes, 2,048 at most. held_out: share of a text file, at its end, that is left
    for measuring.
    """

    source: Source | None = None
    count: int = COUNT
    length: int | None = None
    batch_size: int = 8
    held_out: float = 0.0

    def batches(self, target: Target, *, seed: int) -> list[dict[str, Tensor]]:
        """The batches for this model. Errors: those of `calibration_batches`; OptionError for a
        length that the model does not take."""
        source = self.source
        if source is None:
            return []
        if target.kind == "encoder" and isinstance(source, Path):
            # Encoders are made for texts with a beginning and an end.
            text, _ = split_text(source, self.held_out)
            source = [line for line in map(str.strip, text.splitlines()) if line]
        return calibration_batches(
            target.tokenizer(),
            source,
            count=self.count,
            length=self.window(target),
            batch_size=self.batch_size,
            seed=seed,
            held_out=self.held_out,
        )

    def prompts(self, target: Target, *, seed: int) -> list[list[int]]:
        """Token ids that the original model may be asked to go on from: problems of tasks, first
        halves of texts. None for an encoder."""
        if self.source is None or target.kind == "encoder":
            return []
        if isinstance(self.source, str):
            tokenizer = target.tokenizer()
            solved = solved_problems(tokenizer, self.source, self.count, seed=seed, split="train")
            return [problem for problem, _ in solved]
        return [
            row[: max(1, int(real) // 2)].tolist()
            for batch in self.batches(target, seed=seed)
            for row, real in zip(
                batch["input_ids"], batch["attention_mask"].sum(-1).tolist(), strict=True
            )
        ]

    def window(self, target: Target) -> int:
        """Tokens of a row at most. Errors: OptionError."""
        most = target.context_length
        if self.length is None:
            return min(LENGTH, most or LENGTH)
        if most is not None and self.length > most:
            raise OptionError(f"length={self.length} exceeds the model's context of {most}")
        return self.length


@dataclass(frozen=True)
class Planned:
    """A step, and the size of what it leaves."""

    step: str
    stage: Stage
    size: Size


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a chain will do to a model.

    tokens: of the calibration batches, padding left out. rate: floating-point operations per
    second that this machine does now in one large product. seconds: of calibration's forward
    passes at that rate; solvers come on top. disk_bytes: needed at most, result included.
    """

    name: str
    before: Size
    steps: tuple[Planned, ...]
    tokens: int
    rate: float
    seconds: float
    disk_bytes: int

    @property
    def after(self) -> Size:
        """The size of the result."""
        return self.steps[-1].size


def plan(
    chain: Steps,
    target: Target,
    *,
    calibrating: Calibrating,
    out: Path,
    seed: int = 0,
    max_memory: int | None = None,
) -> Plan:
    """Check a chain against a model and say what it will do. Nothing is written, no weight read.

    Errors: OptionError for a wrong order, a method that this model cannot have, calibration data
    that is missing, or `max_memory` with a method that does not stream; InputError for data that
    cannot be used, an output folder that exists, or a disk that is too small.
    """
    checked_order(chain)
    check_options(chain, calibrating, max_memory)
    check_free(out)
    batches = calibrating.batches(target, seed=seed)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    length = calibrating.window(target)
    model = target.empty()
    before = size_of(model, dtype=target.dtype, length=length)
    rate = matmul_rate()
    seconds, snapshots, found = 0.0, [0], []
    for step in chain:
        step.check(model)
        if step.calibrates:
            per_token = size_of(model, length=length).flops
            seconds += _PASSES * tokens * per_token / rate
        snapshots.append(size_of(model, dtype=torch.float32).weight_bytes)
        step.shape(model)
        size = size_of(model, dtype=target.dtype, length=length)
        found.append(Planned(step_text(step), step.stage, size))
    streams = 2 * _stream_bytes(model.config, batches) if any(s.calibrates for s in chain) else 0
    # A step's blocks, the model it started from and its activations, and then the result.
    disk = 2 * max(snapshots) + streams + found[-1].size.weight_bytes
    check_room(out, disk)
    return Plan(
        name=target.name,
        before=before,
        steps=tuple(found),
        tokens=tokens,
        rate=rate,
        seconds=seconds,
        disk_bytes=disk,
    )


def check_options(chain: Steps, calibrating: Calibrating, max_memory: int | None) -> None:
    """Errors: OptionError."""
    needy = [step.id for step in chain if step.calibrates]
    if needy and calibrating.source is None:
        raise OptionError(
            f"{needy[0]} needs calibration data: give a text file, or tasks:NAME for whet's own "
            "tasks"
        )
    if max_memory is None:
        return
    if max_memory < 1:
        raise OptionError(f"max_memory={max_memory} must be at least 1 byte")
    whole = [step.id for step in chain if not step.streams]
    if whole:
        raise OptionError(
            f"max_memory: {whole[0]} needs the whole model in memory, so that nothing can be "
            "streamed: leave it out"
        )


def check_free(out: Path) -> None:
    """Errors: InputError where something is at `out` already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists: choose another folder, or remove it")


def check_room(out: Path, needed: int) -> None:
    """Errors: InputError for too small a disk. What an interrupted run left counts as room."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    there = sum(p.stat().st_size for p in work_folder(out).rglob("*") if p.is_file())
    room = shutil.disk_usage(place).free + there
    if room < needed:
        raise InputError(
            f"{out}: the disk has room for {room:,} bytes, the result and what is kept on the way "
            f"need {needed:,}"
        )


def work_folder(out: Path) -> Path:
    """Where steps keep what an interrupted run goes on from."""
    return out.with_name(f"{out.name}.work")


def matmul_rate(size: int = 512, seconds: float = 0.1) -> float:
    """Floating-point operations per second of one product of float32 matrices, measured now."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    a @ b  # starts the threads
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ b
        runs += 1
    return 2 * size**3 * runs / (time.perf_counter() - start)


def _stream_bytes(config: object, batches: Sequence[dict[str, Tensor]]) -> int:
    """The residual stream of all batches in float32."""
    known = ("hidden_size", "n_embd", "d_model", "dim")
    width = next((w for w in (getattr(config, key, None) for key in known) if w), 0)
    return sum(4 * width * batch["input_ids"].numel() for batch in batches)
