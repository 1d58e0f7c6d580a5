"""Rounds: collect data with the current model, train on it, promote what came out; again.

Every round has a folder of its own with three parts, each of which is either whole or will be
done again:

    rounds.json               what is being run
    round-000/data/           what was collected
    round-000/fit/            the training run (its checkpoints, metrics.jsonl)
    round-000/promoted/       what the next round starts from

So a run can stop anywhere. `collect` and the training go on where they were, `promote` starts over.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from whet._io import atomic_path, claim_folder
from whet.errors import OptionError
from whet.fit.distributed import refuse_several
from whet.fit.loop import fit
from whet.fit.method import TrainingMethod
from whet.fit.settings import FitSettings


class RoundsMethod(Protocol):
    """What a method of several rounds supplies. Rounds count from 0.

    promoted: the folder the round before filled, None in the first. What a part does may depend
    on the round, on the folders it is given and on keyed randomness, and on nothing else: then a
    run that was stopped ends as one that was not.
    """

    def collect(self, number: int, promoted: Path | None, data: Path) -> None:
        """Fill `data`. After a stop it is called again and finds what it had written so far."""

    def training(self, number: int, promoted: Path | None, data: Path) -> TrainingMethod:
        """A fresh training on `data`, before its first step."""

    def promote(self, number: int, method: TrainingMethod, promoted: Path) -> None:
        """Fill the empty folder `promoted` from the trained method."""


def run_rounds(
    method: RoundsMethod,
    settings: FitSettings,
    *,
    rounds: int,
    run: Path,
    identity: dict[str, Any],
    label: str = "train",
) -> Path:
    """Do what is left of `rounds` rounds in `run`; give the last promoted folder.

    A later call with more rounds goes on from the last one.

    Errors: OptionError for rounds < 1 or several processes; CheckpointError where `run` holds
    rounds of another recipe or is damaged; those of `fit`.
    """
    if rounds < 1:
        raise OptionError(f"rounds={rounds} must be at least 1")
    refuse_several("run_rounds")
    claim_folder(
        run / "rounds.json", {"identity": identity, "fit": settings.model_dump(mode="json")}
    )
    promoted: Path | None = None
    for number in range(rounds):
        folder = run / f"round-{number:03}"
        if not (folder / "promoted").is_dir():
            _one_round(method, settings, number, promoted, folder, identity, f"{label} {number}")
        promoted = folder / "promoted"
    assert promoted is not None
    return promoted


def _one_round(
    method: RoundsMethod,
    settings: FitSettings,
    number: int,
    promoted: Path | None,
    folder: Path,
    identity: dict[str, Any],
    label: str,
) -> None:
    data = folder / "data"
    if not data.is_dir():
        unfinished = folder / "data.unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        method.collect(number, promoted, unfinished)
        os.replace(unfinished, data)
    training = method.training(number, promoted, data)
    fit(
        training,
        settings,
        run=folder / "fit",
        identity={**identity, "round": number},
        label=label,
    )
    with atomic_path(folder / "promoted") as temporary:
        temporary.mkdir()
        method.promote(number, training, temporary)
