"""One model over many problems: token budget, solved examples, and a log to resume from.

Every answer goes to the log as it is made. The same command reads it back, asks only for what is
missing, and gives what an uninterrupted run would have given; the log can also be judged again
without any model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whet._io import check_writable
from whet.errors import InputError, OptionError
from whet.evaluate.file_tasks import FileTask
from whet.evaluate.model import EvalModel, Generation, GenerationRequest
from whet.evaluate.runner import Outcome, Problem, judge
from whet.tasks import Task, evaluation_only, problems

_FORMAT = "whet-answers-1"
_CANVAS_STEP = 16
_OPEN_ENDED = 1024
_HEADING = "Problem: "
"""Before every problem among solved examples; a model that writes it has begun another one."""
_FIELDS = ("text", "tokens", "forwards", "finish", "error")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many tokens an answer may take.

    max_new_tokens: None gives diffusion models the longest expected answer of the task (in steps
    of 16) and others up to 1,024, or more where more is expected. reasoning: working expected
    before the answer, as a multiple of its tokens; None takes the task's own. temperature: 0 takes
    the most likely token.
    """

    max_new_tokens: int | None = None
    reasoning: float | None = None
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if self.reasoning is not None and not 0 <= self.reasoning < math.inf:
            raise OptionError(f"reasoning={self.reasoning} must be at least 0")
        if not 0 <= self.temperature < math.inf:
            raise OptionError(f"temperature={self.temperature} must be at least 0")

    def expected(self, model: EvalModel, problem: Problem) -> int:
        """Tokens expected of an answer: those of a valid one and the working before it."""
        task = problem.task
        reasoning = task.reasoning_allowance if self.reasoning is None else self.reasoning
        answer = model.count_tokens(problem.instance.example)
        return max(1, math.ceil(answer * (1 + reasoning)))


@dataclass(frozen=True)
class Plan:
    """What to ask of a model. requests: problem index -> request. skipped: index -> reason."""

    requests: dict[int, GenerationRequest]
    skipped: dict[int, str]


def plan(
    model: EvalModel,
    asked: Sequence[Problem],
    *,
    budget: Budget,
    prompts: Sequence[str] | None = None,
    chat: bool = False,
) -> Plan:
    """Which problems fit the model's context and the budget, and with how many tokens each.

    chat: whether the prompts went through a chat template.
    """
    texts = list(prompts) if prompts is not None else [p.instance.prompt for p in asked]
    room = [model.context_length - model.count_tokens(text) for text in texts]
    need = [budget.expected(model, p) for p in asked]
    canvas: dict[str, int] = {}
    for problem, left, tokens in zip(asked, room, need, strict=True):
        if tokens <= left:
            canvas[problem.task.id] = max(canvas.get(problem.task.id, 1), tokens)
    requests, skipped = {}, {}
    for index, problem in enumerate(asked):
        limit = budget.max_new_tokens
        if limit is None:
            limit = problem.task.answer_tokens
        if limit is None:
            if model.fixed_canvas:
                limit = canvas.get(problem.task.id, 1)
                limit = -(-limit // _CANVAS_STEP) * _CANVAS_STEP
            else:
                limit = min(max(_OPEN_ENDED, need[index]), room[index])
        if room[index] <= 0:
            have = model.context_length
            skipped[index] = f"the prompt has {have - room[index]} tokens, the context {have}"
        elif need[index] > room[index]:
            skipped[index] = f"{need[index]} tokens are expected, the context leaves {room[index]}"
        elif need[index] > limit:
            skipped[index] = f"{need[index]} tokens are expected, the budget is {limit}"
        else:
            if limit > room[index]:  # whole steps, which blocks divide, if an answer fits those
                whole = room[index] // _CANVAS_STEP * _CANVAS_STEP
                limit = max(need[index], whole) if model.fixed_canvas else room[index]
            requests[index] = GenerationRequest(
                prompt=texts[index],
                max_new_tokens=limit,
                stop=_stops(problem, texts[index], chat),
                temperature=budget.temperature,
                request=index,
            )
    return Plan(requests, skipped)


def _stops(problem: Problem, text: str, chat: bool) -> tuple[str, ...]:
    if isinstance(problem.task, FileTask):
        return problem.task.stop(chat=chat)
    return (f"\n{_HEADING}",) if _HEADING in text and problem.task.separator else ()


def with_examples(asked: Sequence[Problem], shots: int, *, seed: int) -> list[str]:
    """Prompts with `shots` solved problems before them, drawn from the training split.

    Errors: InputError for a task whose problems are all for evaluation.
    """
    if shots < 0:
        raise OptionError(f"shots={shots} must be at least 0")
    if not shots:
        return [p.instance.prompt for p in asked]
    heads: dict[Task, str] = {}
    for problem in asked:
        task = problem.task
        if isinstance(task, FileTask):  # brings its own
            return [p.instance.prompt for p in asked]
        if task not in heads:
            if evaluation_only(task):
                raise InputError(
                    f"shots={shots}: task {task.id!r} has too few problems to show some solved"
                )
            solved = problems(task, seed=seed, split="train", count=shots)
            heads[task] = "".join(f"{shown(task, i.prompt)}{i.example}\n\n" for i in solved)
    return [heads[p.task] + shown(p.task, p.instance.prompt) for p in asked]


def shown(task: Task, prompt: str) -> str:
    """A problem among solved examples, up to where its answer begins."""
    return f"{_HEADING}{prompt}{task.separator}" if task.separator else prompt


def run_model(
    model: EvalModel,
    asked: Sequence[Problem],
    *,
    plan: Plan,
    log: AnswerLog | None = None,
    on_done: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Outcomes of all problems in their order; answers that the log already holds are not asked.

    A request that failed has no answer, and is asked again.
    Errors: those of the model, and InputError where the log answers another prompt; what was
    answered until then is in the log.
    """
    found = {} if log is None else _known(log, asked, plan)
    open_ = [i for i in plan.requests if i not in found]
    on_done(len(found))
    for place, made in model.generate([plan.requests[i] for i in open_]):
        index = open_[place]
        found[index] = made
        if log is not None:
            log.add(asked[index], plan.requests[index].prompt, made)
        on_done(len(found))
    outcomes = []
    for index, problem in enumerate(asked):
        if index in plan.skipped:
            why = plan.skipped[index]
            outcomes.append(Outcome(problem, "", False, "skipped_budget", False, why))
        else:
            outcomes.append(judge(problem, found[index], prompt=plan.requests[index].prompt))
    return outcomes


def _known(log: AnswerLog, asked: Sequence[Problem], plan: Plan) -> dict[int, Generation]:
    """Answers of a log by problem index. Errors: InputError where another prompt was answered."""
    found = {}
    for index, request in plan.requests.items():
        name = asked[index].id
        made = log.answers.get(name)
        if made is None or made.finish == "failed":
            continue
        if log.prompts[name] != request.prompt:
            raise InputError(f"{log.path}: problem {name} had another prompt, use another --out")
        found[index] = made
    return found


@dataclass
class AnswerLog:
    """Answers in a JSONL file: a line that says whose they are, then one line each.

    identity: all that an answer depends on; a log with another one is refused. prompts: what was
    asked, by problem as the answers.
    """

    path: Path
    identity: Mapping[str, Any]
    answers: dict[str, Generation] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any]) -> AnswerLog:
        """Begin a log or go on with one; a half-written last line is dropped.

        Errors: InputError where the file is something else, belongs to other settings, or cannot
        be written.
        """
        check_writable(path.parent)
        log = cls(path, identity)
        if not path.exists() or _only_begun(_bytes(path)):
            path.unlink(missing_ok=True)
            log._write({"format": _FORMAT, **identity})
            return log
        header, log.answers, log.prompts, size = _read(path)
        wanted = _plain(identity)
        if header != wanted:
            changed = [k for k in {*header, *wanted} if header.get(k) != wanted.get(k)]
            raise InputError(
                f"{path} holds answers of other settings ({', '.join(sorted(changed))}): "
                "use another --out"
            )
        os.truncate(path, size)
        return log

    @classmethod
    def read(cls, path: Path) -> AnswerLog:
        """A log to judge again. Errors: InputError where there is none or it is damaged."""
        header, answers, prompts, _ = _read(path)
        return cls(path, header, answers, prompts)

    def add(self, problem: Problem, prompt: str, made: Generation) -> None:
        """Append one answer with its verdict (which reading back ignores)."""
        verdict = judge(problem, made, prompt=prompt)
        self.answers[problem.id], self.prompts[problem.id] = made, prompt
        self._write(
            {"id": problem.id, "prompt": prompt, **asdict(made), "bucket": verdict.bucket}
            | {"strict": verdict.strict, "reason": verdict.reason}
        )

    def _write(self, value: Mapping[str, Any]) -> None:
        # Model text may hold lone surrogates: JSON escapes keep them, UTF-8 could not.
        line = json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror}; answers before are kept, the same "
                "command goes on where it stopped"
            ) from error


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _only_begun(raw: bytes) -> bool:
    """Whether a log holds no answer and not half of one: nothing is lost by beginning anew."""
    mark = json.dumps({"format": _FORMAT})[:-1].encode()
    return mark.startswith(raw) or (raw.startswith(mark) and b"\n" not in raw[:-1])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Generation], dict[str, str], int]:
    """Header, answers and prompts by problem, and the size up to the last whole line."""
    raw = _bytes(path)
    size = raw.rfind(b"\n") + 1
    answers: dict[str, Generation] = {}
    prompts: dict[str, str] = {}
    try:
        lines: Iterator[Any] = (json.loads(line) for line in raw[:size].splitlines())
        header = next(lines)
        if header.pop("format") != _FORMAT:
            raise InputError(f"{path} is no log of answers")
        for value in lines:
            answers[value["id"]] = _generation(value)
            prompts[value["id"]] = value["prompt"]
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no log of answers, or is damaged ({error!r})") from error
    return header, answers, prompts, size


def _generation(value: Mapping[str, Any]) -> Generation:
    """Errors: KeyError or TypeError where a field is missing or of another type."""
    made = Generation(**{name: value[name] for name in _FIELDS})
    good = (
        isinstance(made.text, str)
        and isinstance(made.tokens, int)
        and (made.forwards is None or isinstance(made.forwards, (int, float)))
        and made.finish in ("stop", "length", "failed")
        and isinstance(made.error, str)
    )
    if not good or not isinstance(value["prompt"], str):
        raise TypeError(f"a field of {value['id']!r} has another type")
    return made
