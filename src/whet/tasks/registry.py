"""Tasks by name: `sudoku`, `sudoku:min_blanks=10`, or a suite such as `beyondbench:easy`.

A suite may carry settings that all its tasks have: `beyondbench:hard:mode=wide`. Tasks with
several variations or sizes stand for all of them unless one is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from whet.errors import OptionError, nearest
from whet.spec import Spec
from whet.tasks import beyondbench, scratchpad, workings
from whet.tasks.base import Task
from whet.tasks.beyondbench.base import BeyondTask

SUITES: dict[str, tuple[type[Task], ...]] = {
    "scratchpad": (
        scratchpad.Sudoku,
        scratchpad.Queens,
        scratchpad.Brackets,
        scratchpad.Ladder,
        scratchpad.Colouring,
        scratchpad.Permutation,
        scratchpad.Sorting,
    ),
    **{f"beyondbench:{level}": tasks for level, tasks in beyondbench.SUITES.items()},
    "beyondbench": tuple(task for tasks in beyondbench.SUITES.values() for task in tasks),
    "workings": workings.TASKS,
}
TASKS: dict[str, type[Task]] = {cls.id: cls for suite in SUITES.values() for cls in suite}


@dataclass(frozen=True)
class Selection:
    """Tasks with all their settings, and sentences on what was left out and why."""

    tasks: list[Task]
    notes: list[str] = field(default_factory=list)


def get_task(name: str) -> Task:
    """One task with its settings, from `NAME[@suite][:key=value,...]`.

    Errors: OptionError for an unknown task, suite or setting, with the nearest match.
    """
    text = _plain(name)
    suite = _suite_of(text)
    if suite is not None:
        raise OptionError(f"{name!r} is a suite of {len(SUITES[suite])} tasks: name one of them")
    spec = Spec.parse(text)
    cls = _class_of(spec)
    found = cls.cells(spec.settings)
    if len(found) > 1 and not spec.settings:
        return cls()
    return found[0]


def expand(names: Iterable[str]) -> list[Task]:
    """Tasks of a list of names in which a suite stands for all its tasks.

    Errors: OptionError for unknown names, an empty list or settings that a task does not have.
    """
    return select(names).tasks


def select(
    names: Iterable[str], *, sizes: Sequence[int] = (), mode: str | None = None
) -> Selection:
    """Every cell (task, variation, size) of a list of names, in their order.

    mode: of all BeyondBench tasks that do not say theirs. sizes: used instead of each task's
    default ones. In a suite, tasks for which one is impossible go without it, and cells that have
    no problem at all are left out; both are noted. A cell that is named twice is there once.
    Errors: OptionError as in `expand`; also where a task that is named itself cannot have one of
    the sizes, or nothing is left.
    """
    for size in sizes:
        if size < 1:
            raise OptionError(f"sizes: {size} is impossible, a size is at least 1")
    tasks: list[Task] = []
    notes: list[str] = []
    for text in map(_plain, names):
        suite = _suite_of(text)
        spec = Spec.parse(text if suite is None else f"suite{text.removeprefix(suite)}")
        classes = (_class_of(spec),) if suite is None else SUITES[suite]
        for cls in classes:
            settings = dict(spec.settings)
            if mode is not None and issubclass(cls, BeyondTask):
                settings.setdefault("mode", mode)
            made = cls.cells(settings, sizes)
            notes += _impossible(cls, settings, sizes, made, named=suite is None)
            for task in made:
                why = task.empty_because() if isinstance(task, BeyondTask) else ""
                if why:
                    notes.append(f"{task.label}, size {task.size}: {why}")  # type: ignore[attr-defined]
                else:
                    tasks.append(task)
    if not tasks:
        raise OptionError("; ".join(notes) or f"no task named: known are {_known()}")
    return Selection(list(dict.fromkeys(tasks)), list(dict.fromkeys(notes)))


def _impossible(
    cls: type[Task],
    settings: Mapping[str, str],
    sizes: Sequence[int],
    made: Sequence[Task],
    *,
    named: bool,
) -> list[str]:
    """What became of the sizes asked for. Errors: OptionError for a task named itself."""
    if not sizes or not issubclass(cls, BeyondTask) or "size" in settings:
        return []
    mode = settings.get("mode", "faithful")
    kinds = (settings["variation"],) if "variation" in settings else cls.variations or ("",)
    allowed = {kind: cls.allowed_sizes(kind, mode) for kind in kinds}  # type: ignore[arg-type]
    if all(len(found) == 1 for found in allowed.values()):
        return []
    possible = {size for found in allowed.values() for size in found}
    gone = [str(size) for size in sizes if size not in possible]
    notes = []
    if gone:
        span = f"they go from {min(possible)} to {max(possible)}"
        end = "" if made else ": left out"
        notes.append(f"{cls.id}: sizes {', '.join(gone)} are impossible, {span}{end}")
    # A variation with one size keeps it, so these have several and none that was asked for.
    out = [kind for kind in kinds if kind not in {getattr(task, "variation", "") for task in made}]
    if out and not (gone and not made):
        asked = ", ".join(map(str, sizes))
        notes.append(f"{cls.id}: {', '.join(out)} cannot have the sizes {asked}: left out")
    if named and (gone or not made):
        raise OptionError("; ".join(note.removesuffix(": left out") for note in notes))
    return notes


def _suite_of(text: str) -> str | None:
    """The suite that a text names, alone or with settings; the longest name that fits."""
    fitting = [s for s in SUITES if text == s or (text.startswith(f"{s}:") and "=" in text)]
    return max(fitting, key=len, default=None)


def _plain(text: str) -> str:
    """`beyondbench:sum` is the task `sum`; other names are as they are, without a last colon."""
    text = text.strip().rstrip(":")
    suite, _, rest = text.partition(":")
    head = rest.partition(":")[0]
    if suite != "beyondbench" or not head or "=" in head or f"{suite}:{head}" in SUITES:
        return text
    if head not in {cls.id for cls in SUITES[suite]}:
        known = [*SUITES, *(f"{suite}:{cls.id}" for cls in SUITES[suite])]
        raise OptionError(f"unknown suite {text!r}: {nearest(f'{suite}:{head}', known)}")
    return rest


def _class_of(spec: Spec) -> type[Task]:
    pool = TASKS
    if spec.suite is not None:
        if spec.suite not in SUITES:
            raise OptionError(f"unknown suite {spec.suite!r}: {nearest(spec.suite, SUITES)}")
        pool = {cls.id: cls for cls in SUITES[spec.suite]}
    if spec.name not in pool:
        raise OptionError(f"unknown task {spec.name!r}: {nearest(spec.name, [*pool, *SUITES])}")
    return pool[spec.name]


def _known() -> str:
    return ", ".join([*SUITES, *(cls.id for cls in SUITES["scratchpad"])])
