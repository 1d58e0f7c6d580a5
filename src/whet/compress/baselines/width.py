"""Narrower MLPs by the size of their weights: the structured form of magnitude pruning.

A channel is as large as the Euclidean norm of all weights that write or read it
(`roles.magnitudes`). Cut channels leave as if they had been 0, and the model stays a stock one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from whet.compress.method import Compression, Job, Stage
from whet.errors import OptionError
from whet.models.roles import Axis, axes, keep, magnitudes


@dataclass(frozen=True)
class Channels(Compression):
    """Every MLP keeps its largest inner channels; no data. Fused experts stay as they are.

    keep: share of them that is left, rounded down to a multiple of `round_interval`.
    """

    stage: ClassVar[Stage] = "width"
    id: ClassVar[str] = "channels"
    calibrates: ClassVar[bool] = False

    keep: float = 0.75
    round_interval: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise OptionError(f"keep={self.keep:g} must be between 0 and 1")
        if self.round_interval < 1:
            raise OptionError(f"round_interval={self.round_interval} must be at least 1")

    def check(self, model: nn.Module) -> None:
        """Errors: OptionError for a model without MLPs of its own, or too narrow ones."""
        for axis in axes(model, "ffn"):
            self._left(axis)

    def shape(self, model: nn.Module) -> None:
        """Errors: as `check`."""
        for axis in axes(model, "ffn"):
            keep(model, axis, range(self._left(axis)))

    def apply(self, job: Job) -> dict[str, Any]:
        """Errors: as `check`."""
        left = {}
        for axis in axes(job.model, "ffn"):
            best = magnitudes(job.model, axis).topk(self._left(axis)).indices
            keep(job.model, axis, best.sort().values.cpu())
            left[str(axis)] = len(best)
        return {"channels": left}

    def _left(self, axis: Axis) -> int:
        left = int(self.keep * axis.units + 1e-9) // self.round_interval * self.round_interval
        if not left:
            raise OptionError(
                f"keep={self.keep:g} leaves none of the {axis.units} channels of {axis}, in "
                f"multiples of {self.round_interval}"
            )
        return left
