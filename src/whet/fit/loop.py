"""The training loop. A method says who plays, whose turn it is and what the loss is.

One step: for every turn of the step, the loss of the batch is taken, back-propagated and the
player of that turn updated. Simple methods have one player and one turn. Batches come from a key
(the step), so a run that was stopped and resumed ends bit-equal to one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from whet._io import write_json
from whet.errors import NonFiniteError
from whet.fit.checkpoint import load_checkpoint, save_checkpoint
from whet.fit.ema import EMA
from whet.fit.schedules import Schedule
from whet.fit.tracker import Tracker


class FitSettings(BaseModel):
    """What every run shares. clip: largest gradient norm. ema: decay, 0 = off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta2: float = Field(default=0.98, gt=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    seed: int = 0
    checkpoint_every: int = Field(default=500, gt=0)
    log_every: int = Field(default=20, gt=0)


@dataclass
class Player:
    """One set of parameters with its optimizer, learning-rate schedule and average."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: EMA | None = None
    clip: float = 1.0

    def __post_init__(self) -> None:
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]

    def clip_gradients(self) -> float:
        """Clip in place; give the gradient norm before clipping."""
        return float(nn.utils.clip_grad_norm_(self.module.parameters(), self.clip))

    def update(self, step: int) -> None:
        """One optimizer step at the schedule's rate, then the average."""
        factor = self.schedule(step)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.module)


class TrainingMethod(Protocol):
    """What a method supplies. `tokens` counts a batch, for tokens/s."""

    players: Mapping[str, Player]

    def turns(self, step: int) -> Sequence[str]:
        """Names of the players that move in this step, in order."""

    def batch(self, step: int) -> Any:
        """The batch of a step, from its key."""

    def loss(self, batch: Any, turn: str) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss of the player whose turn it is, and numbers to log."""

    def tokens(self, batch: Any) -> int:
        """Tokens in the batch."""


def fit(
    method: TrainingMethod,
    settings: FitSettings,
    *,
    run: Path,
    identity: dict[str, Any],
    label: str = "train",
) -> None:
    """Train until `settings.steps`, resuming from `run/checkpoint` if there is one.

    Errors: NonFiniteError when a loss or gradient is NaN or infinite: nothing is updated, step
    and batch are written to `run/nonfinite.json`, and the last checkpoint stays. CheckpointError
    when the checkpoint is damaged or belongs to another recipe. Ctrl-C stops; the last checkpoint
    stays.
    """
    run.mkdir(parents=True, exist_ok=True)
    done = load_checkpoint(run, method.players, identity=identity) or 0
    tracker = Tracker(run, total=settings.steps, done=done, label=label)
    window_start, window_tokens = time.perf_counter(), 0
    step = done
    try:
        for step in range(done, settings.steps):
            batch = method.batch(step)
            window_tokens += method.tokens(batch)
            values = _one_step(method, batch, step, run)
            if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
                now = time.perf_counter()
                spent, window_start = now - window_start, now
                steps = (step % settings.log_every) + 1
                values["tokens_per_second"] = window_tokens / spent
                values["seconds_left"] = spent / steps * (settings.steps - step - 1)
                window_tokens = 0
                tracker.log(step + 1, values)
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
                save_checkpoint(run, method.players, step=step + 1, identity=identity)
    except KeyboardInterrupt:
        # `step` was interrupted somewhere inside: only whole steps are saved, by the schedule
        # above, so that a resumed run stays exact.
        tracker.console.print(f"stopped in step {step + 1}; the same command resumes from {run}")
        raise
    finally:
        tracker.close()


def _one_step(method: TrainingMethod, batch: Any, step: int, run: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for turn in method.turns(step):
        loss, metrics = method.loss(batch, turn)
        value = float(loss.detach())
        if not math.isfinite(value):
            _stop(run, step, batch, f"the loss of {turn!r} is {value}")
        loss.backward()  # type: ignore[no-untyped-call]
        player = method.players[turn]
        norm = player.clip_gradients()
        if not math.isfinite(norm):
            _stop(run, step, batch, f"the gradient norm of {turn!r} is {norm}")
        player.update(step)
        values |= {"loss": value, "gradient_norm": norm, **metrics}
    return values


def _stop(run: Path, step: int, batch: Any, what: str) -> None:
    write_json(run / "nonfinite.json", {"step": step + 1, "why": what, "batch": _plain(batch)})
    raise NonFiniteError(
        f"{what} in step {step + 1}: stopped before the update; the batch is in "
        f"{run / 'nonfinite.json'} and the last checkpoint is kept"
    )


def _plain(value: Any) -> Any:
    """A batch of token tensors as JSON: tensors as lists, dataclasses and sequences by parts."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no NaN, and it is what one looks for here
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)
