"""What a training method is to the loop: players, turns, a loss; hooks and state on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from whet.errors import OptionError
from whet.fit.distributed import is_sharded, whole
from whet.fit.ema import EMA
from whet.fit.schedules import Schedule

# Below it, gradients overflow because the loss does, not because of the scale.
_SMALLEST_SCALE = 2.0**-10


@dataclass
class Player:
    """One set of parameters with its optimizer, learning-rate schedule and average.

    scaler: of the loss, for float16; `fit` adds it.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: EMA | None = None
    clip: float = 1.0
    scaler: torch.amp.GradScaler | None = None

    def __post_init__(self) -> None:
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, scaled where there is a scaler."""
        loss = loss if self.scaler is None else self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def clip_gradients(self) -> float:
        """Take the scale out and clip in place; give the gradient norm before clipping."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        return float(whole(nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)))

    @property
    def sharded(self) -> bool:
        """Whether the parameters are cut up over the processes."""
        return any(map(is_sharded, self.module.parameters()))

    def update(self, step: int) -> None:
        """One optimizer step at the schedule's rate, then the average."""
        factor = self.schedule(step)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.module)

    def lower_scale(self) -> bool:
        """Halve the loss scale instead of an update; False where there is none left to halve."""
        if self.scaler is None or self.scaler.get_scale() <= _SMALLEST_SCALE:
            return False
        self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
        return True


class TrainingMethod(Protocol):
    """What a method supplies. `tokens` counts a batch, for tokens/s.

    Steps and epochs count from 0. What else a method may have: `AfterStep`, `AfterEpoch`,
    `Splittable`, `Stateful`.
    """

    players: Mapping[str, Player]

    def turns(self, step: int) -> Sequence[str]:
        """Names of the players that move in this step, in order."""

    def batch(self, step: int) -> Any:
        """The batch of a step, from its key."""

    def loss(self, batch: Any, turn: str) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss of the player whose turn it is, and numbers to log."""

    def tokens(self, batch: Any) -> int:
        """Tokens in the batch."""


@runtime_checkable
class AfterStep(Protocol):
    """A method with something to do when all turns of a step are over (before any checkpoint)."""

    def after_step(self, step: int) -> None:
        """Called once after every step."""


@runtime_checkable
class AfterEpoch(Protocol):
    """A method whose steps form epochs. The last epoch may be short and is then not over."""

    steps_per_epoch: int

    def after_epoch(self, epoch: int) -> None:
        """Called once after the last step of every epoch, after `after_step`."""


@runtime_checkable
class Splittable(Protocol):
    """A method whose batches can be cut, for accumulation and for several processes."""

    def split(self, batch: Any, turn: str, parts: int) -> Sequence[tuple[Any, float]]:
        """Exactly `parts` parts with shares such that loss(batch) = sum of share · loss(part).

        Numbers to log are averaged with the same shares; all parts must have the same ones.
        """


@runtime_checkable
class Stateful(Protocol):
    """A method that carries more than its players from step to step (and resumes exactly)."""

    def state(self) -> Mapping[str, Tensor]:
        """What a checkpoint has to keep."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave. Errors: KeyError, ValueError where it does not fit."""


def check_method(method: TrainingMethod, *, parts: int = 1) -> None:
    """See whether a method can be trained, its batches cut into `parts`.

    Errors: OptionError for a method without players, with epochs of no length, or whose batches
    cannot be cut.
    """
    if not method.players:
        raise OptionError(f"{type(method).__name__}.players is empty: at least one must be trained")
    if parts > 1 and not isinstance(method, Splittable):
        raise OptionError(
            f"{type(method).__name__} has no `split`: its batches cannot be cut into {parts} "
            "parts, so accumulation must be 1 and the process one"
        )
    if callable(getattr(method, "after_epoch", None)):
        length = getattr(method, "steps_per_epoch", None)
        if not isinstance(length, int) or length < 1:
            raise OptionError(
                f"{type(method).__name__}.steps_per_epoch={length!r} must be a whole number of "
                "at least 1, because the method has after_epoch"
            )
