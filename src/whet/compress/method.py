"""What a compression method is: frozen options that say what they will do, and do it.

A chain runs methods by stage: whole blocks go first and number formats last, since every stage
sees what the ones before it left. Within a method, everything that fits is done block by block
(`Job.calibrate`), so that models larger than memory can be compressed.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from whet.compress.calibrate import Batch, Calibration, Edit, Progress, Restore, Watch, calibrate
from whet.compress.calibrate.collect import watch_inputs
from whet.compress.calibrate.source import restore_block
from whet.errors import OptionError

Stage = Literal["depth", "width", "factorize", "heal", "transform", "quantize"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a method works on.

    model: changed in place; with a `source`, an empty one whose weights are in that folder.
    batches: calibration inputs of the model, with an `attention_mask` where there is padding.
    folder: of this step of the chain, for what a killed run goes on from (None: nothing is kept).
    evaluate: a model's score on a task (or on several, by name), larger is better, for methods
    that are led by one. original: gives the model as it was before the chain, for methods that
    learn from it. prompts: token ids that the original is to answer, as it is used to being asked;
    answers: known ones, in the same order, with their end.
    device, max_memory, on_progress: see `calibrate`.
    """

    model: Any
    batches: Sequence[Batch]
    tokenizer: Any = None
    seed: int = 0
    folder: Path | None = None
    source: Path | None = None
    device: torch.device | None = None
    max_memory: int | None = None
    evaluate: Callable[[Any], float | Mapping[str, float]] | None = None
    original: Callable[[], Any] | None = None
    prompts: Sequence[Sequence[int]] = ()
    answers: Sequence[Sequence[int]] = ()
    on_progress: Callable[[Progress], None] = field(default=lambda progress: None)

    def calibrate(
        self,
        edit: Edit,
        *,
        identity: Mapping[str, Any],
        watch: Watch = watch_inputs,
        propagate_error: bool = True,
        restore: Restore = restore_block,
    ) -> Calibration:
        """`whet.compress.calibrate.calibrate` with what this job says."""
        return calibrate(
            self.model,
            self.batches,
            edit,
            watch=watch,
            propagate_error=propagate_error,
            source=self.source,
            folder=self.folder,
            identity={**identity, "seed": self.seed},
            max_memory=self.max_memory,
            device=self.device,
            restore=restore,
            on_progress=self.on_progress,
        )


@dataclass(frozen=True)
class Compression(ABC):
    """Options of one method; a subclass is a frozen dataclass and the catalogue's `compress` part.

    stage: its place in a chain. calibrates: whether it needs batches. streams: whether it works
    on a model that is larger than memory (it does nothing outside `Job.calibrate`). applies_to:
    "decoder", "encoder", "dit".
    """

    stage: ClassVar[Stage]
    id: ClassVar[str]
    calibrates: ClassVar[bool] = True
    streams: ClassVar[bool] = False

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Whether it can be done to this model, which may be an empty one.

        Errors: OptionError naming the option or the role that is missing.
        """

    @abstractmethod
    def shape(self, model: nn.Module) -> None:
        """Give an empty model (on the meta device) the shapes that the result will have."""

    @abstractmethod
    def apply(self, job: Job) -> dict[str, Any]:
        """Do it to `job.model`, in place. Gives what is worth telling, as JSON."""

    def identity(self) -> dict[str, Any]:
        """What a run that goes on must agree with: the method and its options."""
        return {"method": self.id, **asdict(self)}


def checked_order(chain: Sequence[Compression]) -> None:
    """Errors: OptionError where a step comes after one of a later stage."""
    for first, second in itertools.pairwise(chain):
        if STAGES.index(first.stage) > STAGES.index(second.stage):
            raise OptionError(
                f"{second.id} ({second.stage}) comes after {first.id} ({first.stage}): a chain "
                f"goes {' -> '.join(STAGES)}"
            )
