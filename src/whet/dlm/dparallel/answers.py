"""What the teacher answers: recorded as trajectories, right ones read back as batches.

dParallel, arXiv 2509.26488, section 3: the model's own answers to training prompts, decoded with
one token per step, filled up with EOS tokens that count as answer.

Deviation: later rounds (which the paper does not have) let the student answer at entropy
thresholds, since an answer that it reached in few steps and that is right is one it can be sure of.
What it answers wrong the teacher answers, so that the student does not forget how.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch.utils.data import ConcatDataset

from whet.data.mixture import ResponseBatch
from whet.data.trajectories import Trajectories, Trajectory
from whet.dlm.entropy import EntropyThreshold
from whet.dlm.low_confidence import LowConfidence
from whet.dlm.options import DecodeOptions
from whet.dlm.record import Asked, ask_tasks, record_prompts
from whet.errors import InputError, nearest
from whet.fit.distributed import current_world
from whet.models.denoiser import Denoiser
from whet.tasks import expand
from whet.zoo.training import Share


class OwnAnswers(BaseModel):
    """Training problems that the teacher answers, one token per step; wrong answers are dropped.

    count: problems asked in a round, spread evenly over the tasks. batch_size: decoded together.
    seed: of the problems. thresholds: in rounds after the first, the entropy thresholds at which
    the student answers, the loosest first, each asked what was wrong at those before; what is
    wrong at all of them the teacher is asked. focus: tasks that are asked that many times as often
    as others, since what is often answered wrong is otherwise hardly trained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: list[str] = Field(min_length=1)
    count: int = Field(gt=0)
    gen_length: int = Field(gt=0)
    block_length: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=128, gt=0)
    seed: int = 0
    thresholds: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = []
    focus: dict[str, Share] = {}

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: list[str]) -> list[str]:
        expand(tasks)
        return tasks

    @model_validator(mode="after")
    def _focus_is_asked(self) -> OwnAnswers:
        asked = [task.id for task in expand(self.tasks)]
        for name in self.focus:
            if name not in asked:
                raise ValueError(f"focus: {name!r} is not asked: {nearest(name, asked)}")
        return self

    def shares(self) -> dict[str, float]:
        """How often each task is asked, relative to the others."""
        return {task.id: self.focus.get(task.id, 1.0) for task in expand(self.tasks)}


@dataclass(frozen=True)
class Answerer:
    """A model that answers. name: identifies it in what is recorded."""

    model: Any
    tokenizer: Any
    name: str


def record_answers(
    data: OwnAnswers,
    teacher: Answerer,
    student: Answerer | None = None,
    *,
    folder: Path,
    round_: int = 0,
) -> None:
    """Answer a round's problems, in this process's part of the shards.

    student: asked first, at the thresholds (None: the teacher answers everything). The folder gets
    one of trajectories per way of answering. Errors: those of `record_prompts`.
    """
    world = current_world()
    asked = _problems(data, round_)
    for kind, who, options in _ways(data, teacher, student):
        record_prompts(
            who.model,
            who.tokenizer,
            asked,
            folder=folder / kind,
            identity={"model": who.name},
            options=options,
            gen_length=data.gen_length,
            batch_size=data.batch_size,
            part=(world.rank, world.size),
        )
        world.wait()
        answered = Trajectories(folder / kind)
        asked = [a for a, t in zip(asked, answered, strict=True) if not t.correct]
        if not asked:
            break


def _problems(data: OwnAnswers, round_: int) -> list[Asked]:
    """A round's problems, spread over the tasks by their shares."""
    tasks, shares = expand(data.tasks), data.shares()
    seed = data.seed + round_
    if len(set(shares.values())) == 1:
        return ask_tasks(tasks, data.count, seed=seed)
    total = sum(shares.values())
    return [
        asked
        for task in tasks
        for asked in ask_tasks(
            [task], max(1, round(data.count * shares[task.id] / total)), seed=seed
        )
    ]


def _ways(
    data: OwnAnswers, teacher: Answerer, student: Answerer | None
) -> Iterator[tuple[str, Answerer, DecodeOptions]]:
    """Who answers, and how, in order, with the folders' names."""
    if student is not None:
        for t in sorted(data.thresholds, reverse=True):
            options = EntropyThreshold(entropy_threshold=t, block_length=data.block_length)
            yield f"threshold-{t:g}", student, options
    yield "one-token", teacher, LowConfidence(block_length=data.block_length)


def read_answers(folder: Path) -> ConcatDataset[Trajectory]:
    """The right answers of a folder of trajectories, or of all such folders in it.

    Errors: those of `Trajectories`; InputError where none is right.
    """
    parts = sorted(p.parent for p in folder.glob("*/rows.json")) or [folder]
    kept = [t for t in (Trajectories(p, right_only=True) for p in parts) if len(t)]
    if not kept:
        raise InputError(f"{folder} holds no right answer: there is nothing to learn from")
    return ConcatDataset(kept)  # type: ignore[arg-type]  # a Dataset but for the base class


def collate(answers: Sequence[Trajectory], *, eos: int, pad: int) -> ResponseBatch:
    """Prompts padded on the left, answers filled up with EOS tokens that are part of them.

    Errors: InputError for an answer without tokens.
    """
    longest = max(len(a.prompt_ids) for a in answers)
    width = max(len(a.tokens) for a in answers)
    tokens = torch.full((len(answers), longest + width), pad)
    response = torch.zeros(tokens.shape, dtype=torch.bool)
    response[:, longest:] = True
    attention_mask = response.clone()
    tokens[:, longest:] = eos
    for row, answer in enumerate(answers):
        if not answer.tokens:
            raise InputError(f"trajectory {answer.request} has an empty answer")
        first = longest - len(answer.prompt_ids)
        tokens[row, first:longest] = torch.tensor(answer.prompt_ids)
        tokens[row, longest : longest + len(answer.tokens)] = torch.tensor(answer.tokens)
        attention_mask[row, first:] = True
    return ResponseBatch(tokens, attention_mask, response)


def check_tokens(answers: Any, denoiser: Denoiser, tokenizer: Any, some: int = 32) -> None:
    """Whether the first answers say as tokens of this tokenizer what was recorded as text.

    Errors: InputError naming the first that does not.
    """
    for answer in (answers[i] for i in range(min(some, len(answers)))):
        ids = torch.tensor([*answer.prompt_ids, *answer.tokens])
        denoiser.check_prompt(ids, f"trajectory {answer.request}")
        ends = [i for i, t in enumerate(answer.tokens) if t in denoiser.end_ids]
        kept = answer.tokens[: ends[0]] if ends else answer.tokens
        if tokenizer.decode(kept, skip_special_tokens=False) != answer.text:
            raise InputError(
                f"trajectory {answer.request} was recorded with another vocabulary than the "
                "student's: its tokens do not spell its text"
            )
