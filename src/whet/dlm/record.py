"""Record decodings as trajectories: a model's own answers as training data.

Problems come from the training split, so that no evaluation problem is ever recorded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.data.trajectories import Trajectories, Trajectory, build_trajectories
from whet.dlm.options import DecodeOptions
from whet.dlm.texts import Completion, encode_prompt, generate_texts
from whet.errors import InputError, OptionError
from whet.evaluate import draw_problems, judge_texts
from whet.evaluate.runner import Problem
from whet.models.denoiser import Denoiser
from whet.tasks import Task


@dataclass(frozen=True)
class Asked:
    """A prompt to decode. check: says whether an answer is right, where that can be known."""

    source: str
    prompt: str
    check: Callable[[str], bool] | None = None


def record_prompts(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Asked],
    *,
    folder: Path,
    identity: dict[str, Any],
    options: DecodeOptions,
    gen_length: int,
    batch_size: int = 64,
    chat: bool = False,
    shard_size: int = 1024,
    part: tuple[int, int] = (0, 1),
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Decode prompts into `folder`, resuming; the i-th is request i.

    identity: what names the model; prompts and options are added. part: (k, n), see `build_rows`.
    Errors: OptionError for a decoder that rewrites tokens, since a trajectory has one step for
    each; those of `generate_texts` and `build_rows`.
    """
    if not asked:
        raise InputError("there is no prompt to record")
    if options.edits or options.uniform:
        raise OptionError(
            f"{type(options).__name__} rewrites tokens: a trajectory holds each token's one step, "
            "use a decoder without edits"
        )
    denoiser = Denoiser.of(model, tokenizer)

    def decode(numbers: range) -> list[Trajectory]:
        # Of like length together, which saves padding; a batch equals its parts.
        order = sorted(numbers, key=lambda i: len(asked[i].prompt))
        done = generate_texts(
            model,
            tokenizer,
            [asked[i].prompt for i in order],
            options=options,
            gen_length=gen_length,
            batch_size=batch_size,
            chat=chat,
            requests=order,
        )
        made = {i: _trajectory(i, asked[i], c) for i, c in zip(order, done, strict=True)}
        return [made[i] for i in numbers]

    def _trajectory(request: int, source: Asked, done: Completion) -> Trajectory:
        assert done.trace is not None
        ids = encode_prompt(denoiser, tokenizer, source.prompt, gen_length, chat=chat)
        return Trajectory(
            request=request,
            source=source.source,
            prompt=source.prompt,
            prompt_ids=ids.tolist(),
            tokens=done.tokens,
            commit_step=done.trace.commit_step[done.index].tolist(),
            confidence=done.trace.confidence[done.index].tolist(),
            text=done.text,
            correct=None if source.check is None else source.check(done.text),
        )

    build_trajectories(
        folder,
        identity={
            **identity,
            "prompts": hashlib.sha256(json.dumps([a.prompt for a in asked]).encode()).hexdigest(),
            "decoder": type(options).__name__,
            "options": dataclasses.asdict(options),
            "gen_length": gen_length,
            "chat": chat,
        },
        total=len(asked),
        decode=decode,
        shard_size=shard_size,
        part=part,
        on_progress=on_progress,
    )


def ask_tasks(tasks: Sequence[Task], count: int, *, seed: int) -> list[Asked]:
    """`count` training problems, spread over the tasks, with their checkers.

    Errors: those of `draw_problems`.
    """
    drawn = draw_problems(tasks, count, seed=seed, split="train")
    return [Asked(p.task.id, p.instance.prompt, _checker(p)) for p in drawn]


def record_trajectories(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    name: str,
    count: int,
    options: DecodeOptions,
    gen_length: int,
    folder: Path,
    seed: int = 0,
    batch_size: int = 64,
    shard_size: int = 1024,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Trajectories:
    """Decode `count` training problems of the tasks, judge the answers and give them back.

    name: of the model, for the folder's identity. Errors: those of `record_prompts`; InputError
    where the tasks have fewer distinct training problems.
    """
    record_prompts(
        model,
        tokenizer,
        ask_tasks(tasks, count, seed=seed),
        folder=folder,
        identity={"model": name},
        options=options,
        gen_length=gen_length,
        batch_size=batch_size,
        shard_size=shard_size,
        on_progress=on_progress,
    )
    return Trajectories(folder)


def _checker(problem: Problem) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        [outcome] = judge_texts([problem], [text])
        return outcome.correct

    return check
