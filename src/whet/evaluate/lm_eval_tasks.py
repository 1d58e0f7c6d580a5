"""whet's generated tasks in lm-evaluation-harness: `beyondbench_TASK`, `whet_TASK` and groups.

The harness knows tasks as YAML files; `task_folder` writes one per task, which name the functions
here. Problems are drawn when a task is loaded and judged by computation, so nothing is downloaded.
What an `lm_eval` command may choose, by `--metadata problem_seed=1 problem_count=500`:
problem_seed (which problems, default 0), problem_count (how many of each task, default 100, spread
over its variations), problem_mode ("faithful" or "wide", BeyondBench only). Benchmarks from local
files are in `lm_eval_static`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.errors import OptionError
from whet.evaluate.lm_eval_static import VERSION, generation, means, static_yaml
from whet.evaluate.model import Finish, Generation
from whet.evaluate.runner import Problem, draw_limited, judge
from whet.tasks import SUITES
from whet.tasks.registry import select

METRICS = ("acc_lenient", "acc_strict")
_COUNT = 100
_ROOM = {"beyondbench": 1024, "scratchpad": 16}
"""Tokens of an answer by kind of task; a scratchpad answer has 16 characters at most."""
SCRATCHPAD_TASKS = frozenset(f"whet_{cls.id}" for cls in SUITES["scratchpad"])
_LEVELS = ("easy", "medium", "hard")


@contextlib.contextmanager
def task_folder() -> Iterator[str]:
    """A temporary folder with every task's YAML, for `--include_path` or TaskManager."""
    with tempfile.TemporaryDirectory(prefix="whet-tasks-") as folder:
        write_tasks(Path(folder))
        yield folder


def write_tasks(folder: Path) -> list[str]:
    """Write a YAML file per task and group. Returns their names."""
    files: dict[str, str] = {}
    for level in _LEVELS:
        members = []
        for cls in SUITES[f"beyondbench:{level}"]:
            name = f"beyondbench_{cls.id}"
            files[name] = _task_yaml(name, f"beyondbench:{cls.id}", "beyondbench", [])
            members.append(name)
        if members:
            files[f"beyondbench_{level}"] = _group_yaml(f"beyondbench_{level}", members)
    suites = [name for name in files if name.rpartition("_")[2] in _LEVELS]
    if suites:
        # The paper's overall score is the mean of the three suites, not of all tasks.
        files["beyondbench"] = _group_yaml("beyondbench", suites, metrics=())
    pad = [cls.id for cls in SUITES["scratchpad"]]
    for task in pad:
        files[f"whet_{task}"] = _task_yaml(f"whet_{task}", task, "scratchpad", ["\n"])
    files["whet_scratchpad"] = _group_yaml("whet_scratchpad", [f"whet_{task}" for task in pad])
    files |= static_yaml()
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return list(files)


def documents(
    whet_task: str,
    problem_seed: int = 0,
    problem_count: int = _COUNT,
    problem_mode: str = "",
    **others: Any,
) -> dict[str, Any]:
    """The harness's `custom_dataset`: {"test": problems}.

    others: whatever else the harness passes, such as the model's arguments. Errors: OptionError for
    a bad setting.
    """
    from datasets import Dataset

    key = {
        "whet_task": whet_task,
        "problem_seed": _whole("problem_seed", problem_seed),
        "problem_count": _whole("problem_count", problem_count),
        "problem_mode": problem_mode,
    }
    rows = [
        {"id": p.id, "prompt": p.instance.prompt, "target": p.instance.example, "place": i, **key}
        for i, p in enumerate(drawn(**key))
    ]
    return {"test": Dataset.from_list(rows)}


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The harness's `process_results`: 1 or 0 for an answer anywhere, and in the form asked for."""
    key = ("whet_task", "problem_seed", "problem_count", "problem_mode")
    problem = drawn(**{k: doc[k] for k in key})[doc["place"]]
    finish: Finish = getattr(results[0], "finish", "stop")
    outcome = judge(problem, Generation(text=results[0], tokens=0, finish=finish))
    strict = outcome.correct and outcome.strict
    return {"acc_lenient": float(outcome.correct), "acc_strict": float(strict)}


@functools.lru_cache(maxsize=256)
def drawn(
    whet_task: str, problem_seed: int, problem_count: int, problem_mode: str
) -> tuple[Problem, ...]:
    """The problems of a task. A pure function of its arguments, kept since `score` needs them."""
    if problem_mode and not whet_task.startswith("beyondbench:"):
        raise OptionError(f"problem_mode={problem_mode!r}: task {whet_task!r} has no modes")
    name = f"{whet_task}:mode={problem_mode}" if problem_mode else whet_task
    tasks = select([name]).tasks
    return tuple(draw_limited(tasks, problem_count, seed=problem_seed).problems)


def _task_yaml(name: str, task: str, kind: str, until: Sequence[str]) -> str:
    # JSON is YAML, and quotes whatever needs it.
    return (
        f"task: {name}\n"
        "custom_dataset: !function whet.evaluate.lm_eval_tasks.documents\n"
        f"dataset_kwargs: {json.dumps({'whet_task': task})}\n"
        "test_split: test\n"
        "output_type: generate_until\n"
        "doc_to_text: prompt\n"
        "doc_to_target: target\n"
        "process_results: !function whet.evaluate.lm_eval_tasks.score\n"
        "num_fewshot: 0\n"
        f"generation_kwargs: {json.dumps(generation(_ROOM[kind], until))}\n"
        f"metric_list: {json.dumps(means(METRICS))}\n"
        f"metadata: {json.dumps({'version': VERSION})}\n"
    )


def _group_yaml(name: str, members: Iterable[str], metrics: Sequence[str] = METRICS) -> str:
    """Means over tasks, every task counting the same."""
    wanted = [{"metric": m, "aggregation": "mean", "weight_by_size": False} for m in metrics]
    lines = [f"group: {name}", f"task: {json.dumps(list(members))}"]
    if wanted:
        lines.append(f"aggregate_metric_list: {json.dumps(wanted)}")
    return "\n".join([*lines, f"metadata: {json.dumps({'version': VERSION})}", ""])


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{name}={value!r} must be a whole number")
    return value
