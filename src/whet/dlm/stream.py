"""First done, first out: a finished prompt leaves the batch and another takes its place.

A fixed batch is as slow as its longest text; here the batch stays full while prompts wait. Canvases
are aligned on the right and only as wide as the longest that is being decoded. Every text is the
one it would be alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from whet.dlm.loop import CanvasLoop, OnCommit
from whet.dlm.options import DecodeOptions
from whet.dlm.trace import Trace
from whet.errors import InputError, OptionError
from whet.models.denoiser import Denoiser


@dataclass(frozen=True)
class Job:
    """A canvas that waits: tokens [L] without padding, to be filled from `start` on.

    request: names it in the noise keys.
    """

    tokens: Int[Tensor, " n"]
    start: int
    request: int


@dataclass(frozen=True)
class Done:
    """A canvas that is filled. index: which job, in the order they came. trace: of this prompt
    alone; it counts its own steps as forwards, since model calls are shared."""

    index: int
    tokens: Int[Tensor, " n"]
    trace: Trace


class DenoiseStream:
    """Iterate to decode jobs, at most `batch_size` at a time; they come out as they finish.

    Jobs are drawn from the iterable when a place is free, so it may be a queue. `loop.forward`
    counts the model calls. Errors: InputError for a job without masks or longer than the context;
    OptionError where options do not fit.
    """

    def __init__(
        self,
        model: Any,
        jobs: Iterable[Job],
        *,
        options: DecodeOptions,
        batch_size: int,
        on_commit: OnCommit | None = None,
    ) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size={batch_size} must be at least 1")
        self.denoiser = Denoiser.of(model)
        self.jobs = enumerate(jobs)
        self.batch_size = batch_size
        self.loop = CanvasLoop(self.denoiser, options, on_commit=on_commit)
        self.places: dict[int, int] = {}

    def __iter__(self) -> Iterator[Done]:
        free = list(range(self.batch_size))
        heapq.heapify(free)
        while True:
            while free and (job := next(self.jobs, None)) is not None:
                place = heapq.heappop(free)
                self._admit(*job, place)
            if not self.loop.live:
                return
            finished = self.loop.step()
            for f in finished:
                heapq.heappush(free, f.place)
                yield Done(self.places.pop(f.place), f.tokens, Trace.single(f))
            if finished:
                self.loop.shrink()

    @torch.inference_mode()
    def _admit(self, index: int, job: Job, place: int) -> None:
        tokens = job.tokens.to(self.denoiser.device)[None]
        if tokens.shape[1] > self.denoiser.context_length:
            raise InputError(
                f"job {index + 1}: {tokens.shape[1]} positions exceed the model's context of "
                f"{self.denoiser.context_length}"
            )
        if job.start < 0:
            raise InputError(f"job {index + 1}: start={job.start} must be 0 or more")
        masks = (tokens[0] == self.denoiser.mask_token_id).nonzero()[:, 0]
        if len(masks) == 0 or int(masks[0]) < job.start:
            raise InputError(
                f"job {index + 1} has no mask token to fill"
                if len(masks) == 0
                else f"job {index + 1}: column {int(masks[0])} holds a mask, before "
                f"start={job.start}"
            )
        first = torch.zeros(1, dtype=torch.long, device=tokens.device)
        self.loop.admit(tokens, first, start=job.start, requests=[job.request], places=[place])
        self.places[place] = index
