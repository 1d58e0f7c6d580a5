"""The training loop. A method says who plays, whose turn it is and what the loss is.

One step: for every turn of the step, the loss of the batch is taken, back-propagated and the
player of that turn updated. Simple methods have one player and one turn. Batches come from a key
(the step), so a run that was stopped and resumed ends bit-equal to one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whet.errors import CheckpointError
from whet.fit.checkpoint import load_checkpoint, save_checkpoint
from whet.fit.distributed import World, current_world
from whet.fit.memory import activation_checkpointing, add_scalers
from whet.fit.method import AfterEpoch, AfterStep, Player, Stateful, TrainingMethod, check_method
from whet.fit.settings import FitSettings
from whet.fit.step import one_step
from whet.fit.stop import stop_on_signal
from whet.fit.tracker import Tracker

__all__ = ["FitSettings", "Player", "TrainingMethod", "fit"]


def fit(
    method: TrainingMethod,
    settings: FitSettings,
    *,
    run: Path,
    identity: dict[str, Any],
    label: str = "train",
) -> None:
    """Train until `settings.steps`, resuming from `run/checkpoint` if there is one.

    SIGTERM and Ctrl-C finish the running step, save a checkpoint, say so and leave (SystemExit
    and KeyboardInterrupt); a second one stops at once, and the last checkpoint stays.

    Under `torchrun`, inside `process_group()`, the processes share the steps (see `distributed`);
    `run` must be a folder they all see.

    Errors: NonFiniteError when a loss or gradient is NaN or infinite: nothing is updated, step
    and batch are written to `run/nonfinite.json`, and the last checkpoint stays. CheckpointError
    when the checkpoint is damaged or belongs to another recipe. InputError where a checkpoint
    cannot be written (the disk is full): the last good one stays.
    """
    world = current_world()
    check_method(method, parts=settings.accumulation * world.size)
    add_scalers(settings, method.players)
    run.mkdir(parents=True, exist_ok=True)
    own = method if isinstance(method, Stateful) else None
    with (
        stop_on_signal(patient=world.size > 1) as stop,
        activation_checkpointing(settings, method.players),
    ):
        done = load_checkpoint(run, method.players, identity=identity, method=own, world=world)
        _agree(method, done, run, world)
        tracker = Tracker(run, total=settings.steps, done=done, label=label, quiet=not world.main)
        after_step = _hooks(method)
        window_start, window_tokens, window_steps = time.perf_counter(), 0, 0
        step = done
        try:
            for step in range(done, settings.steps):
                last = step + 1 == settings.steps
                batch = method.batch(step)
                window_tokens += method.tokens(batch)
                window_steps += 1
                values = one_step(method, settings, batch, step, run, world)
                after_step(step)
                if (step + 1) % settings.log_every == 0 or last:
                    now = time.perf_counter()
                    spent, window_start = now - window_start, now
                    values["tokens_per_second"] = window_tokens / spent
                    values["seconds_left"] = spent / window_steps * (settings.steps - step - 1)
                    window_tokens = window_steps = 0
                    tracker.log(step + 1, values)
                # Not assigned where nobody asked: a signal may come in this very moment.
                if stopped := world.largest(stop.signal or 0):
                    stop.signal = stopped
                if (step + 1) % settings.checkpoint_every == 0 or last or stopped:
                    save_checkpoint(
                        run,
                        method.players,
                        step=step + 1,
                        identity=identity,
                        method=own,
                        world=world,
                    )
                if stopped:
                    tracker.say(
                        f"stopped after step {step + 1} of {settings.steps}, which is saved; "
                        f"the same command resumes from {run}"
                    )
                    break
        except KeyboardInterrupt:
            # `step` was interrupted somewhere inside: only whole steps are saved, by the schedule
            # above, so that a resumed run stays exact.
            tracker.say(f"stopped in step {step + 1}; the same command resumes from {run}")
            raise
        finally:
            tracker.close()
    stop.leave()


def _agree(method: TrainingMethod, done: int, run: Path, world: World) -> None:
    """Start every process from the same step and weights."""
    if (most := world.largest(done)) != -(least := world.largest(-done)):
        raise CheckpointError(
            f"{run}/checkpoint has {most} steps for one process and {-least} for another: "
            "all processes need the same folder"
        )
    for player in method.players.values():
        world.copy_from_main((*player.module.parameters(), *player.module.buffers()))
        if player.ema is not None:
            world.copy_from_main(player.ema.average.values())


def _hooks(method: TrainingMethod) -> Callable[[int], None]:
    """What is to be called after a step. Looked up once: isinstance of a protocol takes time."""
    step_hook = method.after_step if isinstance(method, AfterStep) else None
    epoch_hook = method.after_epoch if isinstance(method, AfterEpoch) else None
    length = method.steps_per_epoch if isinstance(method, AfterEpoch) else 1

    def call(step: int) -> None:
        if step_hook is not None:
            step_hook(step)
        if epoch_hook is not None and (step + 1) % length == 0:
            epoch_hook(step // length)

    return call
