"""Tasks by name: `sudoku`, `sudoku:min_blanks=10`, or a suite such as `scratchpad`."""

from __future__ import annotations

from collections.abc import Iterable

from whet.errors import OptionError, nearest
from whet.spec import Spec, build
from whet.tasks import scratchpad
from whet.tasks.base import Task

SUITES: dict[str, tuple[type[Task], ...]] = {
    "scratchpad": (
        scratchpad.Sudoku,
        scratchpad.Queens,
        scratchpad.Brackets,
        scratchpad.Ladder,
        scratchpad.Colouring,
        scratchpad.Permutation,
        scratchpad.Sorting,
    )
}
TASKS: dict[str, type[Task]] = {cls.id: cls for suite in SUITES.values() for cls in suite}


def get_task(name: str) -> Task:
    """One task with its settings, from `NAME[@suite][:key=value,...]`.

    Errors: OptionError for an unknown task, suite or setting, with the nearest match.
    """
    found = expand([name])
    if len(found) != 1:
        raise OptionError(f"{name!r} is a suite of {len(found)} tasks: name one of them")
    return found[0]


def expand(names: Iterable[str]) -> list[Task]:
    """Tasks of a list of names in which a suite stands for all its tasks.

    Errors: OptionError for unknown names, an empty list or settings given to a whole suite.
    """
    tasks: list[Task] = []
    for text in names:
        spec = Spec.parse(text)
        if spec.name in SUITES:
            if spec.settings:
                raise OptionError(f"{text!r}: settings belong to one task, not to a suite")
            tasks.extend(cls() for cls in SUITES[spec.name])
            continue
        pool = TASKS
        if spec.suite is not None:
            if spec.suite not in SUITES:
                raise OptionError(f"unknown suite {spec.suite!r}: {nearest(spec.suite, SUITES)}")
            pool = {cls.id: cls for cls in SUITES[spec.suite]}
        if spec.name not in pool:
            raise OptionError(f"unknown task {spec.name!r}: {nearest(spec.name, [*pool, *SUITES])}")
        tasks.append(build(pool[spec.name], dict(spec.settings), of=f"task {spec.name!r}"))
    if not tasks:
        raise OptionError(f"no task named: known are {', '.join([*SUITES, *TASKS])}")
    return tasks
