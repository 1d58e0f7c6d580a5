"""What the easy tasks share, and the classes made from their rows."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from whet.errors import OptionError
from whet.tasks.answers import as_json_list
from whet.tasks.base import Instance, Mode, Verdict
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level
from whet.tasks.beyondbench.easy.draws import Draw
from whet.tasks.beyondbench.easy.rows import Row

MAX_SIZE = 256
MAX_NUMBER = 10**9
_SIZES = (8, 16, 32)  # the paper has 64 as well
_PAPER = 100
_WIDE, _WIDE_PAIR = 10**6, 10**9  # pairs need more: their space is the range squared


@dataclass(frozen=True, kw_only=True)
class EasyTask(BeyondTask):
    """One operation on whole numbers of low..high.

    low, high: None = -100 and 100; in `wide` a million either way (for pairs a billion).
    Errors: OptionError for a range from which the task cannot draw.
    """

    level: ClassVar[Level] = "easy"
    many_answers: ClassVar[bool] = False
    row: ClassVar[Row]
    low: int | None = None
    high: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        end = _PAPER if self.mode == "faithful" else _WIDE_PAIR if self.row.pair else _WIDE
        if self.low is None:
            object.__setattr__(self, "low", -end)
        if self.high is None:
            object.__setattr__(self, "high", end)
        low, high = self._range
        for name, value in (("low", low), ("high", high)):
            if not -MAX_NUMBER <= value <= MAX_NUMBER:
                raise OptionError(
                    f"task {self.id!r}: {name}={value} must be between -{MAX_NUMBER} and "
                    f"{MAX_NUMBER}"
                )
        if low > high:
            raise OptionError(f"task {self.id!r}: low={low} must not exceed high={high}")
        missing = self._draw.lacks(self._size, low, high)
        if missing:
            raise OptionError(f"task {self.id!r}: low={low}, high={high} must leave {missing}")

    @property
    def _range(self) -> tuple[int, int]:
        return cast(int, self.low), cast(int, self.high)

    @property
    def _size(self) -> int:
        return cast(int, self.size)

    @property
    def _draw(self) -> Draw:
        wide = self.row.wide if self.mode == "wide" else None
        return wide or self.row.draw

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        """See `BeyondTask`: the length of the list; two numbers are always two."""
        return (2,) if cls.row.pair else range(cls.row.least, MAX_SIZE + 1)

    @classmethod
    def default_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        """See `BeyondTask`."""
        return (2,) if cls.row.pair else _SIZES

    def generate(self, rng: np.random.Generator) -> Instance:
        """See `Task`. data: the numbers."""
        x = self._draw.numbers(rng, self._size, *self._range)
        if self.row.pair:
            question = self.row.question.format(a=x[0], b=x[1])
        else:
            question = self.row.question.format(x=as_json_list(x))
        prompt = f"{question} {self.row.kind.ask}"
        return self.instance(prompt, (tuple(x),), self.row.answer(x))

    def check(self, instance: Instance, answer: Any) -> Verdict:
        """See `Task`."""
        wrong = self.row.kind.wrong(answer, self.solve(instance))
        return Verdict(not wrong, wrong)

    def solve(self, instance: Instance) -> Any:
        """See `Task`."""
        return self.row.answer(instance.data[0])

    def log10_space(self) -> float:
        """See `Task`: exact."""
        return self._draw.log10_count(self._size, *self._range)

    def render(self, answer: Any) -> str:
        """See `Task`."""
        return rf"\boxed{{{self.row.kind.write(answer)}}}"

    def parse(self, text: str, mode: Mode = "lenient") -> Any | None:
        """See `Task`: what stands in the last box, of the type of the task's answers.

        A question of the task that the text repeats, about any numbers, is left out.
        """
        return self.row.kind.read(_repeated(self.row.question).sub("\n", text), mode)


@functools.cache
def _repeated(question: str) -> re.Pattern[str]:
    """The question with any numbers, spaced in any way."""
    number = r"[-−–+]?\d[\d,]*"
    pattern = re.escape(question).replace(r"\ ", r"\s+").replace(r"\{x\}", r"\[[^\[\]]*\]")
    return re.compile(pattern.replace(r"\{a\}", number).replace(r"\{b\}", number), re.I | re.A)


def task_class(row: Row, module: str) -> type[EasyTask]:
    """The class of a row. module: where it can be found under its name (`pickle` asks)."""
    name = row.id.title().replace("_", "")
    members = {
        "__doc__": f"{row.summary[0].upper()}{row.summary[1:]}.",
        "__module__": module,
        "id": row.id,
        "summary": row.summary,
        "row": row,
    }
    return cast(type[EasyTask], type(name, (EasyTask,), members))
