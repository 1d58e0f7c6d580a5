"""Trajectories: decodings of a model with the step in which each token was committed.

One row per prompt. The canvas after any number of steps can be had from it, so that a trajectory
serves distillation on a model's own answers as well as imitation of its single steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whet.data.arrow import ArrowRows, KeptRows, build_rows


@dataclass(frozen=True)
class Trajectory:
    """A prompt and what was decoded behind it.

    request: number that names the prompt in noise keys. source: where the prompt is from (a
    task). tokens: all positions behind the prompt. commit_step: the step (from 0) that committed
    each, -1 where it was given. confidence: of each token when it was committed. text: the answer
    without end-of-text tokens. correct: what its checker said; None where there is none.
    """

    request: int
    source: str
    prompt: str
    prompt_ids: list[int]
    tokens: list[int]
    commit_step: list[int]
    confidence: list[float]
    text: str
    correct: bool | None

    @property
    def steps(self) -> int:
        """Steps until the last token was there."""
        return max(self.commit_step, default=-1) + 1

    def canvas(self, steps: int, mask_token_id: int) -> list[int]:
        """The positions behind the prompt after the first `steps` steps."""
        return [
            token if step < steps else mask_token_id
            for token, step in zip(self.tokens, self.commit_step, strict=True)
        ]


def build_trajectories(
    folder: Path,
    *,
    identity: dict[str, Any],
    total: int,
    decode: Callable[[range], Sequence[Trajectory]],
    shard_size: int = 1024,
    part: tuple[int, int] = (0, 1),
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Decode what is missing of `total` prompts; `decode(numbers)` gives one shard's.

    Options and errors: those of `build_rows`.
    """
    build_rows(
        folder,
        schema=_schema,
        identity=identity,
        total=total,
        make=lambda numbers: [asdict(t) for t in decode(numbers)],
        shard_size=shard_size,
        part=part,
        on_progress=on_progress,
    )


class Trajectories(KeptRows[Trajectory]):
    """Those of a finished folder, read as they are looked at.

    right_only: leave out those whose checker said no. Errors: those of `ArrowRows`.
    """

    def __init__(self, folder: str | Path, *, right_only: bool = False) -> None:
        super().__init__(folder, Trajectory, _not_wrong if right_only else None)


def _not_wrong(rows: ArrowRows) -> list[int]:
    return [i for i, right in enumerate(rows.column("correct")) if right is not False]


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "request": pa.int64(),
            "source": pa.string(),
            "prompt": pa.string(),
            "prompt_ids": pa.list_(pa.int32()),
            "tokens": pa.list_(pa.int32()),
            "commit_step": pa.list_(pa.int32()),
            "confidence": pa.list_(pa.float32()),
            "text": pa.string(),
            "correct": pa.bool_(),
        }
    )
