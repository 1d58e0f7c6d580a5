"""Sets of reasoning paths: several independent workings of one problem and a summary of them.

NAP (arXiv 2602.23225), section 4: paths are drawn independently, at temperature 1.0, and stay
together; the summary concludes with the right answer, whatever the paths say. A row keeps every
path apart, with what the checker said of it, so that a text can be laid out in slots, packed
or as one chain.

Paths come from an `EvalModel` (in memory or behind an endpoint) or from the problem's own task,
where that can work in several orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from whet import rng as rng_
from whet.data.arrow import ArrowRows, KeptRows, build_rows
from whet.dlm.nap.layout import MOST_PATHS
from whet.errors import InputError, OptionError
from whet.evaluate import Generation, GenerationRequest, Problem, draw_problems, judge
from whet.tasks import Task
from whet.tasks.base import HasPaths

TEMPERATURE = 1.0
"""Of paths, in the paper."""


@dataclass(frozen=True)
class PathSet:
    """A problem, several workings of it and what they come to.

    request: number of the problem. source: its task. right: what the checker said of each path.
    summary: a right answer.
    """

    request: int
    source: str
    prompt: str
    paths: list[str]
    right: list[bool]
    summary: str


@runtime_checkable
class WritesPaths(Protocol):
    """Where paths come from. identity: what they depend on, for the folder."""

    identity: dict[str, Any]

    def __call__(
        self, numbers: Sequence[int], problems: Sequence[Problem], count: int
    ) -> list[list[Generation]]:
        """`count` workings of each problem; the i-th problem is request `numbers[i]`."""


class SolverPaths:
    """The tasks' own workings. Errors: OptionError for a task without `paths`."""

    def __init__(self, tasks: Sequence[Task], *, seed: int) -> None:
        for task in tasks:
            if not isinstance(task, HasPaths):
                raise OptionError(
                    f"task {task.id!r} has no workings of its own: use a model or an endpoint"
                )
        self.seed = seed
        self.identity: dict[str, Any] = {"source": "solver", "paths_seed": seed}

    def __call__(
        self, numbers: Sequence[int], problems: Sequence[Problem], count: int
    ) -> list[list[Generation]]:
        """See `WritesPaths`."""
        made = []
        for number, problem in zip(numbers, problems, strict=True):
            rng = rng_.keyed(self.seed, "paths", number)
            assert isinstance(problem.task, HasPaths)
            texts = problem.task.paths(problem.instance, rng, count)
            made.append([Generation(text=text, tokens=0) for text in texts])
        return made


Generate = Callable[[Sequence[GenerationRequest]], Iterator[tuple[int, Generation]]]


class SampledPaths:
    """Paths that a model writes. generate: as `EvalModel.generate`.

    name: of the model. Errors (of the call): InputError where more than half of the texts of a
    shard failed, as when a server has gone.
    """

    def __init__(
        self,
        generate: Generate,
        *,
        name: str,
        max_new_tokens: int,
        temperature: float = TEMPERATURE,
        stop: tuple[str, ...] = (),
    ) -> None:
        if max_new_tokens < 1:
            raise OptionError(f"max_new_tokens={max_new_tokens} must be at least 1")
        if not temperature > 0:
            raise OptionError(
                f"temperature={temperature:g} must be above 0: paths are to differ from each other"
            )
        self.generate = generate
        self.max_new_tokens, self.temperature, self.stop = max_new_tokens, temperature, stop
        self.identity: dict[str, Any] = {
            "source": name,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
        }

    def __call__(
        self, numbers: Sequence[int], problems: Sequence[Problem], count: int
    ) -> list[list[Generation]]:
        """See `WritesPaths`."""
        requests = [
            GenerationRequest(
                prompt=problem.instance.prompt,
                max_new_tokens=self.max_new_tokens,
                stop=self.stop,
                temperature=self.temperature,
                # A number of its own, so that paths are independent and do not depend on shards.
                request=number * MOST_PATHS + k,
            )
            for number, problem in zip(numbers, problems, strict=True)
            for k in range(count)
        ]
        found: list[Generation | None] = [None] * len(requests)
        for place, text in self.generate(requests):
            found[place] = text
        texts = [t for t in found if t is not None]
        failed = [t for t in texts if t.finish == "failed"]
        if 2 * len(failed) > len(texts):
            raise InputError(
                f"{len(failed)} of {len(texts)} texts failed ({failed[0].error}): the same "
                "command goes on from here"
            )
        return [texts[i : i + count] for i in range(0, len(texts), count)]


def build_path_sets(
    folder: Path,
    tasks: Sequence[Task],
    write: WritesPaths,
    *,
    count: int,
    paths: int = 3,
    seed: int = 0,
    shard_size: int = 256,
    part: tuple[int, int] = (0, 1),
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Work out `count` training problems, spread over the tasks, `paths` times each; resumable.

    Errors: OptionError for a number of paths out of range; InputError where the tasks have fewer
    training problems; those of `write` and `build_rows`.
    """
    if not 1 <= paths <= MOST_PATHS:
        raise OptionError(f"paths={paths} must be between 1 and {MOST_PATHS}")
    asked = draw_problems(tasks, count, seed=seed, split="train")

    def make(numbers: range) -> list[dict[str, Any]]:
        chosen = [asked[i] for i in numbers]
        written = write(numbers, chosen, paths)
        return [
            asdict(path_set(number, problem, texts))
            for number, problem, texts in zip(numbers, chosen, written, strict=True)
        ]

    build_rows(
        folder,
        schema=_schema,
        identity={
            "data": "paths",
            "tasks": [repr(task) for task in tasks],
            "paths": paths,
            "seed": seed,
            **write.identity,
        },
        total=count,
        make=make,
        shard_size=shard_size,
        part=part,
        on_progress=on_progress,
    )


def path_set(number: int, problem: Problem, texts: Sequence[Generation]) -> PathSet:
    """Judge the workings of a problem; its own example answer is the summary."""
    return PathSet(
        request=number,
        source=problem.task.id,
        prompt=problem.instance.prompt,
        paths=[t.text.strip() for t in texts],
        right=[_right(problem, t) for t in texts],
        summary=problem.instance.example,
    )


def _right(problem: Problem, made: Generation) -> bool:
    return judge(problem, made).correct


class PathSets(KeptRows[PathSet]):
    """Those of a finished folder, read as they are looked at.

    least_right: sets with fewer right paths, and those with an empty path, are left out.
    Errors: those of `ArrowRows`; InputError where none is left.
    """

    def __init__(self, folder: str | Path, *, least_right: int = 1) -> None:
        def keep(rows: ArrowRows) -> list[int]:
            marked = zip(rows.column("right"), rows.column("paths"), strict=True)
            return [
                i for i, (r, texts) in enumerate(marked) if sum(r) >= least_right and all(texts)
            ]

        super().__init__(folder, PathSet, keep)
        if not self.kept:
            raise InputError(
                f"{folder}: none of {len(self.rows)} problems has {least_right} right paths"
            )
        self.paths = len(self[0].paths)


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "request": pa.int64(),
            "source": pa.string(),
            "prompt": pa.string(),
            "paths": pa.list_(pa.string()),
            "right": pa.list_(pa.bool_()),
            "summary": pa.string(),
        }
    )
