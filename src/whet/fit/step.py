"""One step of training: every turn's loss, its gradient and the update of the player."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from whet._io import write_json
from whet.errors import InputError, NonFiniteError, OptionError, nearest
from whet.fit.distributed import World
from whet.fit.memory import autocast
from whet.fit.method import Splittable, TrainingMethod
from whet.fit.settings import FitSettings


def one_step(
    method: TrainingMethod,
    settings: FitSettings,
    batch: Any,
    step: int,
    run: Path,
    world: World,
) -> dict[str, float]:
    """Play the turns of a step; give the numbers to log.

    A turn updates its own player only: gradients that its loss sends to others are dropped. With
    several players each turn's loss and gradient norm is also logged under the player's name.

    Errors: NonFiniteError, see `fit`; OptionError for a step without turns or an unknown player.
    """
    values: dict[str, float] = {}
    turns = method.turns(step)
    if not turns:
        raise OptionError(f"step {step + 1} has no turns: at least one player must move")
    for turn in turns:
        if turn not in method.players:
            raise OptionError(
                f"step {step + 1} has a turn of {turn!r}, which is no player: "
                f"{nearest(turn, method.players)}"
            )
        player = method.players[turn]
        value, metrics, why = _gradient(method, settings, batch, turn, world)
        if not math.isfinite(value):
            _stop(run, step, batch, why, world)
        norm = player.clip_gradients()
        own = {"loss": value}
        if math.isfinite(norm):
            player.update(step)
            own["gradient_norm"] = norm
        elif not player.lower_scale():
            _stop(run, step, batch, f"the gradient norm of {turn!r} is {norm}", world)
        # What reached others, or parameters that no optimizer holds, must not meet the next turn.
        for other in method.players.values():
            other.module.zero_grad(set_to_none=True)
        if player.scaler is not None:
            own["loss_scale"] = player.scaler.get_scale()
        # A step that was left out has no norm; that of an earlier turn is not its own.
        values.pop("gradient_norm", None)
        values |= own | metrics
        if len(method.players) > 1:
            values |= {f"{turn}.{name}": number for name, number in own.items()}
    return values


def _gradient(
    method: TrainingMethod, settings: FitSettings, batch: Any, turn: str, world: World
) -> tuple[float, dict[str, float], str]:
    """Back-propagate a turn's loss part by part; its value, numbers to log, what is wrong if any.

    A part whose loss is not finite contributes no gradient, and the value is then not finite in
    any process: all of them stop.
    """
    player = method.players[turn]
    # FSDP averages gradients over the processes; shares want them summed.
    sharded = world.size > 1 and player.sharded
    factor = float(world.size) if sharded else 1.0
    total, averages, why = 0.0, dict[str, float](), ""
    for part, share in _parts(method, settings, batch, turn, world):
        value = math.nan
        try:
            with autocast(settings, player.module):
                loss, metrics = method.loss(part, turn)
            value = float(loss.detach())
        except NonFiniteError as error:  # a loss that looks at its rows says which
            why = f"the loss of {turn!r} is not finite ({error})"
        total += share * value
        # Going back through a module that is cut up takes all processes: none may stay behind.
        if not math.isfinite(world.sum([value])[0] if sharded else value):
            break
        weight = share * factor
        player.backward(loss if weight == 1 else loss * weight)
        for name, number in metrics.items():
            averages[name] = averages.get(name, 0.0) + share * number
    (total,) = world.sum([total])
    if not math.isfinite(total):
        return total, {}, why or f"the loss of {turn!r} is {total}"
    world.sum_gradients(player.module)
    names = sorted(averages)
    sums = dict(zip(names, world.sum([averages[name] for name in names]), strict=True))
    return total, {name: sums[name] for name in averages}, why


def _parts(
    method: TrainingMethod, settings: FitSettings, batch: Any, turn: str, world: World
) -> Sequence[tuple[Any, float]]:
    """This process's parts of the batch with their shares in the whole."""
    count = settings.accumulation * world.size
    if count == 1:
        return [(batch, 1.0)]
    assert isinstance(method, Splittable)  # `check_method` saw to it
    parts = method.split(batch, turn, count)
    if len(parts) != count:
        raise InputError(
            f"a batch was cut into {len(parts)} parts instead of {count}: it must hold at least "
            "as many rows as there are processes times accumulation"
        )
    first = world.rank * settings.accumulation
    return parts[first : first + settings.accumulation]


def _stop(run: Path, step: int, batch: Any, what: str, world: World) -> NoReturn:
    if world.main:
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
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no NaN, and it is what one looks for here
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)
