"""What the tasks of BeyondBench share: difficulty, variations, modes and answer markers.

BeyondBench, arXiv 2509.24210. A task has variations (kinds of problem) and sizes (difficulty).
`faithful` draws as the paper's code does, without its defects; `wide` draws from spaces so large
that no problem was ever published.
"""

from __future__ import annotations

import functools
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

from whet.errors import OptionError, nearest
from whet.tasks.base import Instance, Task, evaluation_only

Level = Literal["easy", "medium", "hard"]
Drawing = Literal["faithful", "wide"]


@dataclass(frozen=True, kw_only=True)
class BeyondTask(Task):
    """A task of the suite. variation: one of `variations`, the first by default where there are
    several. size: difficulty, None = the smallest of the default sizes. mode: see the module.
    """

    level: ClassVar[Level]
    reasoning_allowance: ClassVar[float] = 4.0
    separator: ClassVar[str] = "\n"
    variation: str = ""
    size: int | None = None
    mode: Drawing = "faithful"

    def __post_init__(self) -> None:
        if self.mode not in ("faithful", "wide"):
            raise OptionError(f"task {self.id!r}: mode={self.mode!r} is not faithful or wide")
        if not self.variation and self.variations:
            object.__setattr__(self, "variation", self.variations[0])
        if self.variation and self.variation not in self.variations:
            known = nearest(self.variation, self.variations) if self.variations else "it has none"
            raise OptionError(f"task {self.id!r} has no variation {self.variation!r}: {known}")
        allowed = self.allowed_sizes(self.variation, self.mode)
        if self.size is None:
            object.__setattr__(self, "size", self.default_sizes(self.variation, self.mode)[0])
        elif self.size not in allowed:
            raise OptionError(
                f"task {self.label!r}: size={self.size} is impossible, it must be "
                f"{_in_words(allowed)}"
            )

    @property
    def label(self) -> str:
        """The task with its variation, as shown in tables."""
        return f"{self.id}/{self.variation}" if self.variation else self.id

    @property
    def cell(self) -> tuple[str | int, ...]:
        """See `Task.cell`."""
        own = [f"{name}={getattr(self, name)}" for name in self._settings if self._changed(name)]
        return (self.mode, self.variation, self.size or 0, *own)

    @property
    def _settings(self) -> list[str]:
        """Fields of the task's own, beside variation, size and mode."""
        return [f.name for f in fields(self) if f.name not in ("variation", "size", "mode")]

    def _changed(self, name: str) -> bool:
        return bool(getattr(self, name) != getattr(self._usual, name))

    @property
    def _usual(self) -> Self:
        """The same cell with the task's own settings at their defaults."""
        return type(self)(variation=self.variation, size=self.size, mode=self.mode)

    @property
    def shares_problems(self) -> bool:
        """See `Task.shares_problems`: a narrowed range lies within the usual one."""
        usual = self._usual
        return any(map(self._changed, self._settings)) and not evaluation_only(usual)

    def reserved(self, instance: Instance) -> bool:
        """See `Task.reserved`: the few problems that `faithful` has are never trained on."""
        if self.mode == "faithful":
            return False
        sizes = self.allowed_sizes(self.variation, "faithful")
        return self.size in sizes and instance.key in _few(
            type(self), self.variation, self.size or 0
        )

    def empty_because(self) -> str:
        """Why this cell has no problem at all ("" where it has some): the paper's filter."""
        return ""

    @classmethod
    @abstractmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        """Every possible size of a variation, ascending (a range where there are many)."""

    @classmethod
    def default_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        """Sizes used where none is asked for: by default the smallest possible."""
        return cls.allowed_sizes(variation, mode)[:1]

    @classmethod
    def cells(cls, settings: Mapping[str, Any], sizes: Sequence[int] = ()) -> list[Task]:
        """See `Task.cells`. A variation with one possible size keeps it whatever is asked for."""
        given = dict(settings)
        if "size" in given:
            found = [int(given.pop("size"))] if str(given["size"]).isdecimal() else None
            if found is None:
                raise OptionError(f"task {cls.id!r}: size={given['size']!r} must be a whole number")
        else:
            found = None
        mode = given.get("mode", "faithful")
        variations = [given.pop("variation")] if "variation" in given else cls.variations or ("",)
        out: list[Task] = []
        for variation in variations:
            probe = super().cells({**given, "variation": variation})[0]
            if found is not None:
                chosen: Sequence[int] = found
            else:
                allowed = cls.allowed_sizes(probe.variation, mode)  # type: ignore[attr-defined]
                chosen = cls.default_sizes(probe.variation, mode)  # type: ignore[attr-defined]
                if sizes and len(allowed) > 1:
                    chosen = [s for s in sizes if s in allowed]
            for size in chosen:
                out.extend(super().cells({**given, "variation": variation, "size": size}))
        return out

    def certify(self, instance: Instance) -> str:
        """What a solver has against an instance: "" where it is solvable, and unique or optimal
        where its prompt or its checker says so.
        """
        return "" if self.check(instance, self.solve(instance)).ok else "no solution is accepted"

    def instance(self, prompt: str, data: tuple[Any, ...], answer: Any) -> Instance:
        """An Instance of this cell: `answer` is one valid answer. data: plain values only."""
        return Instance(
            task=self.id,
            prompt=prompt,
            data=data,
            example=self.render(answer),
            variation=self.variation,
            size=self.size,
            public=f"{self.label}:{self.size}:{json.dumps(data, separators=(',', ':'))}",
        )


@functools.cache
def _few(cls: type[BeyondTask], variation: str, size: int) -> frozenset[str]:
    """Keys of a faithful cell that is for evaluation only, where it can be listed."""
    task = cls(variation=variation, size=size, mode="faithful")
    listed = task.all_instances() if evaluation_only(task) else None
    return frozenset(instance.key for instance in listed or ())


def _in_words(sizes: Sequence[int]) -> str:
    if len(sizes) > 2 and list(sizes) == list(range(sizes[0], sizes[-1] + 1)):
        return f"from {sizes[0]} to {sizes[-1]}"
    return " or ".join(map(str, sizes))
