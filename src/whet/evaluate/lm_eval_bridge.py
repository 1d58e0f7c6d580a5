"""A model under test as a model of lm-evaluation-harness, and a run of its tasks from here.

The harness is an extra: nothing else in whet imports this module. Results come back in the order
of the requests; texts hold neither the prompt nor a stop string.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from whet.errors import InputError, OptionError, WhetWarning, nearest
from whet.evaluate.encoding import first_stop
from whet.evaluate.endpoint import EndpointError
from whet.evaluate.lm_eval_tasks import SCRATCHPAD_TASKS, task_folder
from whet.evaluate.model import (
    EvalModel,
    Finish,
    Generation,
    GenerationRequest,
    LikelihoodRequest,
)
from whet.rng import key_bits

try:
    from lm_eval.api.model import LM
except ImportError:
    raise OptionError("lm-evaluation-harness needs the extra whet[lm-eval]") from None

MAX_GEN_TOKS = 256
"""Tokens of a text where neither the task nor the model says: the harness's own default."""
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_WORKING = 128
"""Tokens of a scratchpad answer with its working, for models that may stop earlier."""
_NEUTRAL = {"top_p": 1.0, "top_k": 0, "num_beams": 1, "n": 1, "repetition_penalty": 1.0}


class HarnessRequest(Protocol):
    """What lm-eval calls an Instance: `args` are those of the method that is asked."""

    @property
    def args(self) -> tuple[Any, ...]: ...

    @property
    def task_name(self) -> str | None: ...

    @property
    def doc_id(self) -> int | None: ...


class Written(str):
    """A text that remembers how it ended, so that whet's tasks judge it as whet does."""

    finish: Finish

    def __new__(cls, text: str, finish: Finish = "stop") -> Written:
        made = super().__new__(cls, text)
        made.finish = finish
        return made


class WhetLM(LM):  # type: ignore[misc]
    """`model` as lm-eval asks for one.

    gen_length: tokens of every text whatever its task says (a diffusion model's canvas); by default
    the task's `max_gen_toks`, else 256, within what the context leaves. Temperatures count where
    `do_sample` is true or not given; other sampling settings are ignored with a warning.
    """

    def __init__(self, model: EvalModel, *, gen_length: int | None = None) -> None:
        super().__init__()
        if gen_length is not None and gen_length < 1:
            raise OptionError(f"gen_length={gen_length} must be at least 1")
        self.model, self.gen_length = model, gen_length
        self._texts = self._failed = self._tokens = 0
        self._forwards: float | None = 0.0

    def generate_until(self, requests: Sequence[HarnessRequest]) -> list[str]:
        """Texts, settings of one kind together.

        A text that could not be written (a prompt that fills the context, a remote model that
        fails) is empty, and a warning says how many are.
        """
        asked = [
            self._generation(request, earlier)
            for request, earlier in zip(requests, _occurrences(requests), strict=True)
        ]
        groups: dict[tuple[Any, ...], list[int]] = {}
        made: dict[int, Generation] = {}
        for place, wanted in enumerate(asked):
            if wanted.max_new_tokens < 1:
                made[place] = _unwritten(f"a prompt fills all {self.model.context_length} tokens")
            else:
                kind = (wanted.max_new_tokens, wanted.stop, wanted.temperature)
                groups.setdefault(kind, []).append(place)
        with _bar("texts", len(asked)) as step:
            for places in groups.values():
                for place, written in self._write(asked, places):
                    made[place] = written
                    if written.finish != "failed":
                        text = _cut(written, asked[place])
                        self.cache_hook.add_partial("generate_until", requests[place].args, text)
                    step()
        self._count(made.values())
        return [_cut(made[place], wanted) for place, wanted in enumerate(asked)]

    def _write(
        self, asked: Sequence[GenerationRequest], places: Sequence[int]
    ) -> Iterator[tuple[int, Generation]]:
        """Texts by place; a prompt that the model cannot use fails alone."""
        left = dict.fromkeys(places)
        try:
            for found, written in self.model.generate([asked[p] for p in places]):
                del left[places[found]]
                yield places[found], written
            return
        except InputError as error:
            if isinstance(error, EndpointError) or not left:
                raise
            reason = str(error)
        open_ = list(left)
        if len(open_) == 1:
            yield open_[0], _unwritten(reason)
            return
        # Halving finds the prompt at fault and keeps batches of the others.
        for part in (open_[: len(open_) // 2], open_[len(open_) // 2 :]):
            yield from self._write(asked, part)

    def loglikelihood(self, requests: Sequence[HarnessRequest]) -> list[tuple[float, bool]]:
        """(nats, whether greedy decoding would write it: false where that is not known)."""
        asked = [
            LikelihoodRequest(context=c, continuation=t, question=_question(r))
            for r in requests
            for c, t in [r.args]
        ]
        answers = [(f.value, bool(f.greedy)) for f in self.model.loglikelihood(asked)]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[HarnessRequest]) -> list[float]:
        """Of whole texts, in nats."""
        values = [f.value for f in self.model.rolling([r.args[0] for r in requests])]
        for request, value in zip(requests, values, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return values

    @property
    def max_gen_toks(self) -> int:
        """Tokens of a text where its task does not say."""
        return self.gen_length or MAX_GEN_TOKS

    @property
    def tokenizer_name(self) -> str:
        """Names the harness's caches of prompts."""
        name = getattr(self._tokenizer, "name_or_path", "") or self.model.name
        return str(name).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's template; "" where it has none."""
        return str(getattr(self._tokenizer, "chat_template", None) or "")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as a prompt.

        Errors: OptionError where the model has no template or its template refuses.
        """
        if not self.chat_template():
            roles = [message["role"] for message in chat_history]
            if getattr(self.model, "chat", False) and roles == ["user"]:
                return chat_history[0]["content"]  # the endpoint applies its own
            raise OptionError(
                f"model {self.model.name!r} has no chat template here: leave out "
                "--apply_chat_template (endpoints take single user messages only)"
            )
        from jinja2 import TemplateError

        try:
            prompt = self._tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except TemplateError as error:
            raise OptionError(f"the chat template refuses the prompt: {error}") from None
        return str(prompt)

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's results: the model and what its texts took."""
        return {
            "whet_model": self.model.name,
            "gen_length": self.gen_length,
            "texts": self._texts,
            "failed_texts": self._failed,
            "tokens": self._tokens,
            "forwards": self._forwards,
        }

    @property
    def _tokenizer(self) -> Any:
        return getattr(getattr(self.model, "codec", self.model), "tokenizer", None)

    def _generation(self, request: HarnessRequest, earlier: int) -> GenerationRequest:
        prompt, given = request.args[0], dict(request.args[1])
        limit = next((int(given[k]) for k in _LIMITS if given.get(k) is not None), MAX_GEN_TOKS)
        if not self.model.fixed_canvas and request.task_name in SCRATCHPAD_TASKS:
            limit = max(limit, _WORKING)
        # With what comes before every text, where the model says so.
        tokens = getattr(self.model, "encode", None)
        used = self.model.count_tokens(prompt) if tokens is None else len(tokens(prompt))
        room = self.model.context_length - used
        settings = sorted((k, str(v)) for k, v in given.items())
        return GenerationRequest(
            prompt=prompt,
            max_new_tokens=min(self.gen_length or limit, max(0, room)),
            stop=_stop_strings(given.get("until")),
            temperature=_temperature(given),
            # Named by what is asked, not by its place: noise then survives any order and batch.
            request=key_bits(earlier, prompt, json.dumps(settings), bits=32) >> 1,
        )

    def _count(self, made: Collection[Generation]) -> None:
        """Add to what `get_model_info` says, and warn of failures."""
        failed = [text.error for text in made if text.finish == "failed"]
        if failed:
            said = f"{len(failed)} of {len(made)} texts could not be written, one as {failed[0]}"
            warnings.warn(said, WhetWarning, stacklevel=3)
        self._texts += len(made)
        self._failed += len(failed)
        self._tokens += sum(text.tokens for text in made)
        for text in made:
            if text.finish != "failed":
                if self._forwards is None or text.forwards is None:
                    self._forwards = None
                else:
                    self._forwards += text.forwards


def evaluate_with_lm_eval(
    model: EvalModel | WhetLM,
    tasks: Sequence[str],
    *,
    limit: float | None = None,
    num_fewshot: int | None = None,
    include: Sequence[Path | str] = (),
    defaults: bool = False,
    metadata: dict[str, Any] | None = None,
    apply_chat_template: bool = False,
    log_samples: bool = True,
    cache: Path | None = None,
    unsafe_code: bool = False,
) -> dict[str, Any]:
    """lm-eval's results for `model` on tasks by name.

    Known are whet's own tasks, those in the folders `include`, and the harness's own with
    `defaults` (which takes seconds to index; most of them download data). limit: problems per task,
    a share below 1. metadata: goes to every task, as {"problem_seed": 1}. cache: where answers are
    kept between runs.
    Errors: OptionError for unknown tasks.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    lm = model if isinstance(model, WhetLM) else WhetLM(model)
    with task_folder() as own:
        manager = TaskManager(
            include_path=[own, *map(str, include)],
            include_defaults=defaults,
            metadata=dict(metadata or {}),
        )
        known = [t for t in tasks if t in manager.all_tasks or Path(t).is_file()]
        if len(known) < len(tasks):
            first = next(t for t in tasks if t not in known)
            raise OptionError(f"unknown task {first!r}: {nearest(first, manager.all_tasks)}")
        results: dict[str, Any] = simple_evaluate(
            model=lm,
            tasks=list(tasks),
            limit=limit,
            num_fewshot=num_fewshot,
            task_manager=manager,
            apply_chat_template=apply_chat_template,
            log_samples=log_samples,
            use_cache=None if cache is None else str(cache),
            confirm_run_unsafe_code=unsafe_code,
        )
    return results


def _cut(made: Generation, wanted: GenerationRequest) -> Written:
    return Written(made.text[: first_stop(made.text, wanted.stop)], made.finish)


def _unwritten(reason: str) -> Generation:
    return Generation(text="", tokens=0, finish="failed", error=reason)


def _stop_strings(until: Any) -> tuple[str, ...]:
    found = [until] if isinstance(until, str) else list(until or ())
    return tuple(str(s) for s in found if s)


def _temperature(given: dict[str, Any]) -> float:
    """As lm-eval reads it: 0 without `do_sample` unless a temperature is given."""
    known = {*_LIMITS, "until", "do_sample", "temperature"}
    ignored = {
        k: v for k, v in given.items() if k not in known and v is not None and _NEUTRAL.get(k) != v
    }
    if ignored:
        said = ", ".join(f"{k}={v}" for k, v in sorted(ignored.items()))
        warnings.warn(f"ignored settings of a task: {said}", WhetWarning, stacklevel=2)
    if given.get("do_sample") is False:
        return 0.0
    return float(given.get("temperature") or 0.0)


def _question(request: HarnessRequest) -> int:
    """The same for all choices of a question, in whatever order they come."""
    named = request.task_name is not None and request.doc_id is not None
    key = (str(request.task_name), int(request.doc_id or 0)) if named else (request.args[0],)
    return key_bits(0, "question", *key, bits=32) >> 1


def _occurrences(requests: Sequence[HarnessRequest]) -> Iterator[int]:
    """How often each request came before: repeats of a problem differ in their noise."""
    seen: dict[str, int] = {}
    for request in requests:
        key = json.dumps(request.args, default=str)
        seen[key] = seen.get(key, -1) + 1
        yield seen[key]


@contextlib.contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[], Any]]:
    from tqdm import tqdm  # type: ignore[import-untyped] # comes with the harness

    with tqdm(total=total, desc=label, mininterval=1.0) as bar:
        yield bar.update
