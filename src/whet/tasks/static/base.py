"""Fixed benchmarks from local files: what such a task is, and how its files are found and read.

Nothing is downloaded. Problems come from JSON lines (`.jsonl`, also `.jsonl.gz`) or a JSON list
(`.json`), as the benchmarks' authors publish them.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from whet.errors import InputError, OptionError, nearest

T = TypeVar("T")
Split = Literal["train", "test"]
Execute = Callable[[str], bool]
"""Runs a program and says whether it came to its end; the caller's, as tasks run nothing."""
ExecuteMany = Callable[[Sequence[str]], Sequence[object]]
"""The same for programs that may run at once: what is true came to its end."""

VARIABLE = "WHET_DATA"


@dataclass(frozen=True, kw_only=True)
class StaticProblem:
    """One problem. prompt: the bare question; data: what scoring needs; target: the reference."""

    id: str
    prompt: str
    target: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StaticTask(ABC):
    """A benchmark whose problems are fixed.

    id: its name. folder: where its files lie under the data folder. files: their usual names by
    split. num_fewshot: solved examples by default. stop: strings that end an answer.
    max_new_tokens: tokens of an answer by default (diffusion models: the canvas). metrics: what
    `score` gives, the main one first.
    """

    id: ClassVar[str]
    summary: ClassVar[str]
    folder: ClassVar[str]
    files: ClassVar[Mapping[Split, tuple[str, ...]]]
    num_fewshot: ClassVar[int]
    stop: ClassVar[tuple[str, ...]]
    max_new_tokens: ClassVar[int]
    metrics: ClassVar[tuple[str, ...]]

    @abstractmethod
    def problem(self, record: Mapping[str, Any], where: str) -> StaticProblem:
        """One line of a file. where: names the line in errors. Errors: InputError."""

    @abstractmethod
    def question(self, problem: StaticProblem) -> str:
        """The problem as the prompt puts it; an answer follows directly."""

    @abstractmethod
    def solution(self, problem: StaticProblem) -> str:
        """The reference as an example shows it, after `question`."""

    @abstractmethod
    def score(
        self, problem: StaticProblem, text: str, execute: Execute | None = None
    ) -> dict[str, float]:
        """Each of `metrics` for a model's text, 0 or 1.

        Errors: OptionError where programs must be run and `execute` is not given.
        """

    def score_many(
        self,
        problems: Sequence[StaticProblem],
        texts: Sequence[str],
        execute_many: ExecuteMany | None = None,
    ) -> list[dict[str, float]]:
        """`score` of each problem's text. One call runs all programs, equal ones once.

        Errors: as `score`; OptionError where there are not as many texts as problems.
        """
        if len(problems) != len(texts):
            raise OptionError(f"there are {len(texts)} texts for {len(problems)} problems")
        pairs = list(zip(problems, texts, strict=True))
        made = dict.fromkeys(self.program(problem, text) for problem, text in pairs)
        programs = [program for program in made if program is not None]
        if execute_many is None or not programs:
            return [self.score(problem, text) for problem, text in pairs]
        ended = dict(zip(programs, map(bool, execute_many(programs)), strict=True))
        return [self.score(problem, text, ended.__getitem__) for problem, text in pairs]

    def program(self, problem: StaticProblem, text: str) -> str | None:
        """The program whose end without an exception means success; None where none is run."""
        return None

    def load(self, data: Path | str | None = None, split: Split = "test") -> list[StaticProblem]:
        """All problems of a split, in the order of the file.

        data: a folder that holds the files or the task's folder; None takes it from WHET_DATA.
        Errors: OptionError where no folder is given or the task has no such split; InputError
        for a missing file, a line that is no record, a missing field or an id that comes twice.
        """
        if split not in self.files:
            raise OptionError(f"task {self.id!r} has no {split} split: it has {[*self.files]}")
        path = self.find(data_folder(self.id, data), split)
        found = [self.problem(record, where) for where, record in read_records(path)]
        if not found:
            raise InputError(f"{path} holds no problem")
        seen: set[str] = set()
        for problem in found:
            if problem.id in seen:
                raise InputError(f"{path} has problem {problem.id!r} twice")
            seen.add(problem.id)
        return found

    def find(self, data: Path, split: Split) -> Path:
        """The file of a split. Errors: InputError that says where it was looked for."""
        names = self.files[split]
        for folder in (data / self.folder, data):
            for name in names:
                for path in (folder / name, folder / f"{name}.gz"):
                    if path.is_file():
                        return path
        raise InputError(
            f"task {self.id!r} needs {' or '.join(names)} (or .gz) in {data / self.folder} "
            f"or {data}"
        )

    def fewshot(self, data: Path | str | None, count: int) -> list[StaticProblem]:
        """The first `count` problems of the training split, never of the test split.

        Errors: OptionError for a task without one or with fewer, or a negative count; as `load`.
        """
        if count < 0:
            raise OptionError(f"shots={count} must be at least 0")
        if count == 0:
            return []
        if "train" not in self.files:
            raise OptionError(f"task {self.id!r} has no training problems: shots must be 0")
        found = self.load(data, "train")
        if count > len(found):
            raise OptionError(f"shots={count}: task {self.id!r} has {len(found)} to show")
        return found[:count]

    def prompt(self, problem: StaticProblem, shots: Sequence[StaticProblem] = ()) -> str:
        """What a model reads: solved examples, a blank line between, then the question.

        Errors: OptionError where the problem itself is among the examples.
        """
        if any(shot.prompt == problem.prompt for shot in shots):
            raise OptionError(f"problem {problem.id!r} is among its own examples")
        shown = [f"{self.question(shot)}{self.solution(shot)}" for shot in shots]
        return "\n\n".join([*shown, self.question(problem)])

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        ends = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        return text[: min(ends, default=len(text))]


def data_folder(task: str, data: Path | str | None) -> Path:
    """The folder given, else that of the environment variable WHET_DATA.

    Errors: OptionError where neither is given; InputError where it is no folder.
    """
    named = data if data is not None else os.environ.get(VARIABLE)
    if not named:
        raise OptionError(
            f"task {task!r} reads local files: name their folder with --data or in {VARIABLE}"
        )
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise InputError(f"the data folder {folder} does not exist or is no folder")
    return folder


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) for each line of a file, or each item of a `.json` list; empty lines go.

    Errors: InputError with file and line for what cannot be read.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if path.name.removesuffix(".gz").endswith(".json"):
        items = _parse(text, str(path))
        if not isinstance(items, list):
            raise InputError(f"{path} must hold a list of records")
        rows = [(f"{path}, item {i}", item) for i, item in enumerate(items, 1)]
    else:
        # Not splitlines, which also cuts at characters that may stand inside a JSON string.
        lines = [(f"{path}, line {i}", x) for i, x in enumerate(text.split("\n"), 1) if x.strip()]
        rows = [(where, _parse(line, where)) for where, line in lines]
    for where, record in rows:
        if not isinstance(record, dict):
            raise InputError(f"{where} must be a record {{...}}, not {type(record).__name__}")
        yield where, record


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}") from error


def get_field(record: Mapping[str, Any], name: str, kind: type[T], where: str) -> T:
    """A field of a record. Errors: InputError where it is missing or of another type."""
    if name not in record:
        raise InputError(f"{where} has no field {name!r}: {nearest(name, record)}")
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(
            f"{where}: field {name!r} is {type(value).__name__}, it must be {kind.__name__}"
        )
    return value


def texts(record: Mapping[str, Any], name: str, where: str) -> list[str]:
    """A field that is a list of texts. Errors: InputError."""
    values = get_field(record, name, list, where)
    if not all(isinstance(value, str) for value in values):
        raise InputError(f"{where}: field {name!r} must be a list of texts")
    return values
