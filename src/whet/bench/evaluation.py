"""Any number of models on the same fresh problems: one record with an arm per model.

The first model is the baseline of all paired comparisons. With a folder, answers are logged as
they are made and a killed run goes on where it stopped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.errors import InputError, OptionError
from whet.evaluate.file_tasks import FileTask, is_static, load_problems
from whet.evaluate.model import EvalModel
from whet.evaluate.perplexity import Perplexity
from whet.evaluate.run import AnswerLog, Budget, plan, run_model, with_examples
from whet.evaluate.runner import (
    Outcome,
    Problem,
    by_task,
    cell_name,
    draw_limited,
    draw_problems,
    interleave,
    judge,
)
from whet.evaluate.summary import cell_rows, counted, outcome_metrics, paired_comparisons
from whet.measure.items import save_items
from whet.measure.record import Arm, Comparison, Level, Metric, Record, new_record
from whet.tasks import evaluation_only
from whet.tasks.registry import select


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Which problems: everything that must be the same for two models to be compared.

    tasks: names as users write them. sizes, mode: instead of the default ones. n: problems in all,
    or limit: problems per task; one of them. seed: of the problems. data: folder of benchmarks
    that come as files (gsm8k, …); shots: solved examples, None = none, or the benchmark's number.
    """

    tasks: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    mode: str | None = None
    n: int | None = None
    limit: int | None = None
    seed: int = 0
    data: str | None = None
    shots: int | None = None

    def problems(self, *, allow_unsandboxed: bool = False) -> tuple[list[Problem], list[str]]:
        """The problems, and sentences on what was left out.

        Errors: OptionError for unknown names, impossible sizes, or both n and limit.
        """
        static = [name for name in self.tasks if is_static(name)]
        if self.n is not None and self.limit is not None:
            raise OptionError("give either n (problems in all) or limit (problems per task)")
        if static:
            if len(static) < len(self.tasks):
                other = next(name for name in self.tasks if name not in static)
                raise OptionError(f"{static[0]} comes from files, {other} is drawn: run them apart")
            folder = Path(self.data) if self.data is not None else None
            share = None if self.n is None else -(-self.n // len(static))
            loaded = load_problems(
                static,
                folder,
                limit=self.limit if share is None else max(1, share),
                shots=self.shots,
                allow_unsandboxed=allow_unsandboxed,
            )
            if self.n is not None and self.n < 1:
                raise OptionError(f"n={self.n} must be at least 1")
            return interleave(list(by_task(loaded)))[: self.n], []
        chosen = select(self.tasks, sizes=self.sizes, mode=self.mode)
        tasks = list(dict.fromkeys(chosen.tasks))  # a suite and one of its tasks may be named
        notes = list(dict.fromkeys(chosen.notes))
        if self.shots:
            few = [cell_name(task) for task in tasks if evaluation_only(task)]
            tasks = [task for task in tasks if not evaluation_only(task)]
            if few:
                more = f" and {len(few) - 1} more cells" if len(few) > 1 else ""
                notes.append(f"{few[0]}{more}: no problems to show solved, left out")
            if not tasks:
                raise OptionError(notes[-1])
        if self.limit is not None:
            drawn = draw_limited(tasks, self.limit, seed=self.seed)
            found, notes = drawn.problems, notes + drawn.notes
        elif self.n is not None:
            found = draw_problems(tasks, self.n, seed=self.seed)
        else:
            raise OptionError("give n (problems in all) or limit (problems per task)")
        unique = {p.id: p for p in reversed(found)}
        if len(unique) < len(found):
            notes.append(f"{len(found) - len(unique)} problems came twice and are asked once")
        return [p for p in found if unique[p.id] is p], notes

    def as_settings(self) -> dict[str, Any]:
        """As records and logs say it."""
        given = {"tasks": list(self.tasks), "sizes": list(self.sizes), "mode": self.mode}
        given |= {"n": self.n, "limit": self.limit, "seed": self.seed}
        return given | {"data": self.data, "shots": self.shots}

    @classmethod
    def from_settings(cls, value: Any) -> Draw:
        """The reverse of `as_settings`. Errors: InputError where it is not what that gives."""
        try:
            fields = {**value, "tasks": tuple(value["tasks"]), "sizes": tuple(value["sizes"])}
            found = cls(**fields)
        except (KeyError, TypeError) as error:
            raise InputError(f"the log does not say which problems it answers ({error})") from None
        numbers = [found.seed, *found.sizes, *(x for x in (found.n, found.limit) if x is not None)]
        if not all(isinstance(x, int) for x in numbers) or found.as_settings() != value:
            raise InputError("the log does not say which problems it answers")
        return found


@dataclass
class Answered:
    """What one model made of the problems. seconds: None where part came from a log."""

    name: str
    chain: str
    outcomes: list[Outcome]
    seconds: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def answer(
    model: EvalModel,
    asked: Sequence[Problem],
    *,
    chain: str,
    budget: Budget,
    shots: int = 0,
    seed: int = 0,
    chat: Callable[[str], str] | None = None,
    log: AnswerLog | None = None,
    on_done: Callable[[int], None] = lambda done: None,
) -> Answered:
    """Let one model answer all problems. chat: wraps a prompt in a chat template.

    Errors: those of the model; answers until then are in the log.
    """
    prompts = with_examples(asked, shots, seed=seed)
    if chat is not None:
        prompts = [chat(text) for text in prompts]
    planned = plan(model, asked, budget=budget, prompts=prompts, chat=chat is not None)
    fresh = log is None or not log.answers
    start = time.perf_counter()
    outcomes = run_model(model, asked, plan=planned, log=log, on_done=on_done)
    seconds = time.perf_counter() - start
    settings: dict[str, Any] = {"chat": chat is not None}
    if not any(isinstance(p.task, FileTask) for p in asked):  # those bring their own
        settings["shots"] = shots
    lengths = sorted({r.max_new_tokens for r in planned.requests.values()})
    if lengths:
        settings["max_new_tokens"] = lengths[0] if len(lengths) == 1 else [lengths[0], lengths[-1]]
    return Answered(model.name, chain, outcomes, seconds if fresh else None, settings)


def judged_again(
    logs: Sequence[Path], *, allow_unsandboxed: bool = False
) -> tuple[list[Answered], Draw]:
    """Logs of answers to the same problems, judged without any model.

    Problems that a log does not answer are left out. Errors: InputError for a log that is damaged
    or answers other problems than the first.
    """
    answered: list[Answered] = []
    draws: list[Draw] = []
    for path in logs:
        log = AnswerLog.read(path)
        name, chain = log.identity.get("model"), log.identity.get("chain")
        if not isinstance(name, str) or not isinstance(chain, str):
            raise InputError(f"{path} does not say whose answers it holds")
        draws.append(Draw.from_settings(log.identity.get("problems")))
        if draws[-1] != draws[0]:
            raise InputError(f"{path} answers other problems than {logs[0]}")
        asked, _ = draws[0].problems(allow_unsandboxed=allow_unsandboxed)
        answered.append(Answered(name, chain, [_again(p, log) for p in asked]))
    return answered, draws[0]


def _again(problem: Problem, log: AnswerLog) -> Outcome:
    if problem.id not in log.answers:
        why = "the log holds no answer"
        return Outcome(problem, "", False, "skipped_budget", False, why)
    return judge(problem, log.answers[problem.id], prompt=log.prompts[problem.id])


def skipped_note(answered: Answered) -> str:
    """A sentence on what a model was not asked ("" where it was asked everything)."""
    skipped = [o for o in answered.outcomes if o.bucket == "skipped_budget"]
    if not skipped:
        return ""
    first = skipped[0]
    return (
        f"{answered.name}: {len(skipped)} of {len(answered.outcomes)} problems skipped, such as "
        f"{cell_name(first.problem.task)}: {first.reason}"
    )


def evaluation_record(
    answered: Sequence[Answered],
    draw: Draw,
    *,
    folder: Path | None,
    level: Level = "cpu",
    notes: Sequence[str] = (),
    name: str = "evaluate",
) -> Record:
    """The record of models that answered the same problems; items go to `folder`."""
    problems = [o.problem for o in answered[0].outcomes]
    names = arm_names(answered)
    items = None
    if folder is not None:
        items = save_items(folder / f"{name}.items.json", _items(problems, answered, names))
    comparisons: list[Comparison] = []
    for arm, other in zip(names[1:], answered[1:], strict=True):
        comparisons += _compare(arm, other, names[0], answered[0])
    spaces = {row["cell"]: round(row["log10_space"], 2) for row in cell_rows(answered[0].outcomes)}
    return new_record(
        "evaluate",
        title="Valid answers on fresh problems",
        level=level,
        seeds={"problems": draw.seed},
        settings={
            **{k: v for k, v in draw.as_settings().items() if k != "seed"},
            "problems": len(problems),
            "log10_space": spaces,
        },
        arms=[_arm(arm, a) for arm, a in zip(names, answered, strict=True)],
        items=items,
        comparisons=comparisons,
        notes=[*notes, *filter(None, map(skipped_note, answered))],
    )


def perplexity_record(
    found: Mapping[str, Sequence[Perplexity]], *, level: Level = "cpu", seed: int = 0
) -> Record:
    """Perplexities by model as a record: an arm per model, a metric per text.

    seed: of the Monte-Carlo bounds of masked models. Texts are named by file and hash, so that no
    two different texts are ever compared.
    """
    arms = [
        Arm(
            name=name,
            chain=name,
            settings={"window": values[0].window, "bound": values[0].bound},
            metrics={
                f"perplexity/{p.file} {p.sha256}": Metric(
                    value=p.value,
                    ci=(p.value - 1.96 * p.error, p.value + 1.96 * p.error) if p.error else None,
                    n=p.tokens,
                )
                for p in values
            },
        )
        for name, values in found.items()
    ]
    texts = {f"{p.file} {p.sha256}": p.reason for values in found.values() for p in values}
    protocols = dict.fromkeys(p.protocol for values in found.values() for p in values)
    return new_record(
        "perplexity",
        title="Perplexity per token",
        level=level,
        seeds={"masks": seed},
        arms=arms,
        notes=[*protocols, *(f"{name}: {reason}" for name, reason in texts.items())],
    )


def arm_names(answered: Sequence[Answered]) -> list[str]:
    """Model names, told apart by what decoded them where one stands twice."""
    plain = [a.name for a in answered]
    names = [a.name if plain.count(a.name) == 1 else f"{a.name}, {a.chain}" for a in answered]
    return [n if names.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(names)]


def log_name(model: str) -> str:
    """A file name for a model's answers."""
    return f"answers-{re.sub(r'[^A-Za-z0-9._-]+', '-', model).strip('-') or 'model'}.jsonl"


def fingerprint(model: str) -> str:
    """What tells a local checkpoint from a changed one: sizes and times of its files."""
    from whet import zoo

    folder = Path(zoo.__file__).parent / model if model in zoo.names() else Path(model)
    if not folder.is_dir():
        return ""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json"))
    return ";".join(f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files)


def _arm(name: str, answered: Answered) -> Arm:
    kept = counted(answered.outcomes)
    cost = {}
    if answered.seconds is not None:
        cost["seconds"] = answered.seconds
    if kept and all(o.tokens is not None for o in kept):
        cost["tokens"] = float(sum(o.tokens or 0 for o in kept))
    if kept and all(o.forwards is not None for o in kept):
        cost["forwards"] = float(sum(o.forwards or 0 for o in kept))
    return Arm(
        name=name,
        chain=answered.chain,
        settings=answered.settings,
        metrics=outcome_metrics(answered.outcomes),
        cost=cost,
    )


def _compare(a: str, first: Answered, b: str, second: Answered) -> list[Comparison]:
    """Over problems that neither model skipped."""
    pairs = [
        (x.correct, y.correct)
        for x, y in zip(first.outcomes, second.outcomes, strict=True)
        if "skipped_budget" not in (x.bucket, y.bucket)
    ]
    if len(pairs) < 2:
        return []
    return paired_comparisons(a, b, [float(x) for x, _ in pairs], [float(y) for _, y in pairs])


def _items(
    problems: Sequence[Problem], answered: Sequence[Answered], names: Sequence[str]
) -> dict[str, Any]:
    def columns(a: Answered) -> dict[str, list[Any]]:
        return {
            "correct": [
                None if o.bucket == "skipped_budget" else int(o.correct) for o in a.outcomes
            ],
            "strict": [int(o.strict) for o in a.outcomes],
            "bucket": [o.bucket for o in a.outcomes],
            "tokens": [o.tokens for o in a.outcomes],
            "forwards": [o.forwards for o in a.outcomes],
        }

    return {
        "ids": [p.id for p in problems],
        "arms": {n: columns(a) for n, a in zip(names, answered, strict=True)},
    }
