"""Benchmarks from local files in lm-evaluation-harness: `whet_gsm8k`, `whet_humaneval`, ...

Nothing is downloaded: their files lie in the folder named by WHET_DATA, or by an `lm_eval` command
with `--metadata data_folder=FOLDER`. Examples are the first problems of the training split;
`--num_fewshot` chooses how many. Programs run in whet's sandbox; `--metadata
allow_unsandboxed_code=true` runs them where it cannot be had.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from whet.errors import InputError, WhetWarning
from whet.tasks.static import STATIC, StaticProblem, StaticTask, get_static

VERSION = 1.0
"""Of prompts and scoring, as the harness reports it."""
_MOST_EXAMPLES = 64


def static_yaml() -> dict[str, str]:
    """YAML by task name. `whet_humaneval_instruct` lets an answer go on behind a second function,
    as chat models write whole functions in a fenced block."""
    files = {
        f"whet_{task.id}": _yaml(f"whet_{task.id}", task, task.stop) for task in STATIC.values()
    }
    name = "whet_humaneval_instruct"
    return files | {name: _yaml(name, get_static("humaneval"), ())}


def documents(
    whet_task: str,
    data_folder: str | None = None,
    allow_unsandboxed_code: bool = False,
    **others: Any,
) -> dict[str, Any]:
    """The harness's `custom_dataset`: {"test": problems, "train": examples}.

    others: whatever else the harness passes, such as the model's arguments.
    Errors: those of `StaticTask.load`.
    """
    from datasets import Dataset

    task = get_static(whet_task)
    rows = [_row(task, p, allow_unsandboxed_code) for p in task.load(data_folder)]
    found = {"test": Dataset.from_list(rows)}
    if "train" not in task.files:
        return found
    try:
        shown = task.load(data_folder, "train")[:_MOST_EXAMPLES]
    except InputError as error:
        warnings.warn(f"no solved examples, run with --num_fewshot 0: {error}", WhetWarning, 2)
        return found | {"train": found["test"].select([])}
    solved = [_row(task, p, allow_unsandboxed_code) for p in shown]
    return found | {"train": Dataset.from_list(solved)}


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The harness's `process_results`: the task's metrics, 0 or 1.

    Errors: OptionError where a program must be run and cannot be enclosed.
    """
    from whet.evaluate.sandbox import run_code

    def execute(program: str) -> bool:
        return bool(run_code(program, allow_unsandboxed=doc["allow_unsandboxed_code"]))

    problem = StaticProblem(
        id=doc["id"], prompt=doc["prompt"], target=doc["target"], data=json.loads(doc["data"])
    )
    return get_static(doc["whet_task"]).score(problem, results[0], execute)


def means(metrics: Iterable[str]) -> list[dict[str, Any]]:
    """The harness's `metric_list` for shares."""
    return [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics]


def generation(max_gen_toks: int, until: Sequence[str]) -> dict[str, Any]:
    """The harness's `generation_kwargs` of greedy decoding."""
    settings = {"max_gen_toks": max_gen_toks, "do_sample": False, "temperature": 0.0}
    return {"until": list(until), **settings}


def _row(task: StaticTask, problem: StaticProblem, allow: bool) -> dict[str, Any]:
    return {
        "id": problem.id,
        "prompt": problem.prompt,
        "target": problem.target,
        "data": json.dumps(dict(problem.data)),
        "question": task.question(problem),
        "solution": task.solution(problem),
        "whet_task": task.id,
        "allow_unsandboxed_code": allow,
    }


def _yaml(name: str, task: StaticTask, until: Sequence[str]) -> str:
    """Prompts are put together by the harness as by `StaticTask.prompt`."""
    examples = "fewshot_split: train\nfewshot_config: {sampler: first_n}\n"
    return (
        f"task: {name}\n"
        "custom_dataset: !function whet.evaluate.lm_eval_static.documents\n"
        f"dataset_kwargs: {json.dumps({'whet_task': task.id})}\n"
        "test_split: test\n"
        f"{examples if 'train' in task.files else ''}"
        "output_type: generate_until\n"
        "doc_to_text: question\n"
        "doc_to_target: solution\n"
        'target_delimiter: ""\n'
        'fewshot_delimiter: "\\n\\n"\n'
        "process_results: !function whet.evaluate.lm_eval_static.score\n"
        f"num_fewshot: {task.num_fewshot}\n"
        f"unsafe_code: {'true' if 'pass@1' in task.metrics else 'false'}\n"
        f"generation_kwargs: {json.dumps(generation(task.max_new_tokens, until))}\n"
        f"metric_list: {json.dumps(means(task.metrics))}\n"
        f"metadata: {json.dumps({'version': VERSION})}\n"
    )
