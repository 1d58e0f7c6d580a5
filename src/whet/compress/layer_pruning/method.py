"""Layer pruning as a step of a chain: options, and the adapter to models and tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from whet._io import claim_folder, write_json
from whet.compress.calibrate import Batch, Progress
from whet.compress.calibrate.capture import digest
from whet.compress.layer_pruning.criteria import (
    angular_distances,
    angular_window,
    at_random,
    cosines,
    greedy,
    most_redundant,
    reverse,
    simple,
    weight_sizes,
)
from whet.compress.layer_pruning.observe import observe
from whet.compress.layer_pruning.skip import losses_without, taylor_sizes
from whet.compress.method import Compression, Job, Stage
from whet.errors import CheckpointError, OptionError
from whet.models.edits.drop import bound_blocks, check_droppable, drop_blocks, without_blocks
from whet.models.registry import is_autoregressive, is_encoder
from whet.models.roles import blocks

Criterion = Literal[
    "cosine",
    "angular",
    "simple",
    "reverse",
    "iterative",
    "perplexity",
    "magnitude",
    "taylor",
    "random",
]
_FROM_BATCHES = ("cosine", "angular", "perplexity", "taylor")
_NEXT_TOKEN = ("perplexity", "taylor")


@dataclass(frozen=True)
class Choice:
    """blocks: which go, ascending. scores: what was measured, as JSON, for a reader."""

    blocks: tuple[int, ...]
    scores: Mapping[str, Any]


@dataclass(frozen=True)
class LayerPruning(Compression):
    """Drop blocks.

    criterion: how they are chosen, see the package. n: how many; or sparsity: their share,
    rounded down. protect: blocks that stay. mean: of cosines, see `cosines`. skip_first: leave
    each prompt's first token out of them. seed of "random": the chain's.
    """

    stage: ClassVar[Stage] = "depth"
    id: ClassVar[str] = "layer-pruning"

    criterion: Criterion = "cosine"
    n: int | None = None
    sparsity: float | None = None
    protect: tuple[int, ...] = (0,)
    mean: Literal["prompt", "token"] = "prompt"
    skip_first: bool = False

    def __post_init__(self) -> None:
        """Errors: OptionError."""
        if self.criterion not in get_args(Criterion):
            raise OptionError(
                f"criterion={self.criterion!r} is not one of {', '.join(get_args(Criterion))}"
            )
        if (self.n is None) == (self.sparsity is None):
            raise OptionError("give n, how many blocks go, or sparsity, their share, and not both")
        if self.n is not None and self.n < 0:
            raise OptionError(f"n={self.n} must be at least 0")
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise OptionError(f"sparsity={self.sparsity:g} must be between 0 and 1")

    @property
    def calibrates(self) -> bool:  # type: ignore[override]
        """Whether the criterion looks at batches."""
        return self.criterion in _FROM_BATCHES

    def stays(self, model: nn.Module) -> set[int]:
        """Blocks that do: those that are protected, and those that others read."""
        return {*self.protect, *bound_blocks(model)}

    def number(self, model: nn.Module) -> int:
        """How many of the model's blocks go.

        Errors: OptionError where that is none, or more than are free to go.
        """
        count = len(blocks(model))
        free = len(set(range(count)) - self.stays(model))
        if self.n is not None:
            if self.n > free:
                raise OptionError(
                    f"n={self.n}: of {count} blocks {free} are free to go (protect="
                    f"{'+'.join(map(str, self.protect)) or 'none'})"
                )
            return self.n
        assert self.sparsity is not None
        found = int(self.sparsity * count + 1e-9)
        if not 1 <= found <= free:
            raise OptionError(
                f"sparsity={self.sparsity:g} of {count} blocks is {found}: between 1 and {free} "
                "can go"
            )
        return found

    def check(self, model: nn.Module) -> None:
        """Errors: OptionError."""
        count = len(blocks(model))
        for index in self.protect:
            if not 0 <= index < count:
                raise OptionError(f"protect names block {index}: there are blocks 0 to {count - 1}")
        check_droppable(model, reverse(count, self.number(model), self.stays(model)))
        if self.criterion in _NEXT_TOKEN and (not is_autoregressive(model) or is_encoder(model)):
            raise OptionError(
                f"criterion={self.criterion!r} needs a model that predicts the next token, which "
                f"a {type(model).__name__} does not"
            )

    def shape(self, model: nn.Module) -> None:
        """The last blocks go: which ones do makes no difference where all have one shape."""
        count = len(blocks(model))
        chosen = simple if self.criterion == "simple" else reverse
        drop_blocks(model, chosen(count, self.number(model), self.stays(model)))

    def apply(self, job: Job) -> dict[str, Any]:
        """Choose and drop. Errors: OptionError, those of `calibrate` and of the evaluator."""
        self.check(job.model)
        count = len(blocks(job.model))
        choice = self.choose(job)
        drop_blocks(job.model, choice.blocks)
        return {
            "criterion": self.criterion,
            "blocks": count,
            "dropped": list(choice.blocks),
            "kept": [index for index in range(count) if index not in choice.blocks],
            **choice.scores,
        }

    def choose(self, job: Job) -> Choice:
        """Which blocks of `job.model`, as it is, would go. Errors: as `apply`."""
        n = self.number(job.model)
        if not n:
            return Choice((), {})
        find = {
            "iterative": self._iterative,
            "perplexity": self._perplexity,
            "cosine": self._turning,
            "angular": self._turning,
        }.get(self.criterion, self._plain)
        training = job.model.training
        job.model.eval()
        try:
            return find(job, n, self.stays(job.model))
        finally:
            job.model.train(training)

    def _plain(self, job: Job, n: int, stays: set[int]) -> Choice:
        parts, total = blocks(job.model), len(job.batches)
        count = len(parts)
        if self.criterion == "random":
            return Choice(tuple(at_random(count, n, stays, seed=job.seed)), {})
        if self.criterion in ("reverse", "simple"):
            chosen = reverse if self.criterion == "reverse" else simple
            return Choice(tuple(chosen(count, n, stays)), {})
        if self.criterion == "taylor":
            sizes = taylor_sizes(
                job.model, job.batches, parts, on_batch=lambda done: _tell(job, done, total)
            )
        else:
            sizes = weight_sizes(job.model, parts)
        gone = most_redundant([-size for size in sizes], n, stays)
        return Choice(tuple(gone), {"sizes": sizes})

    def _turning(self, job: Job, n: int, stays: set[int]) -> Choice:
        seen = observe(
            job.model,
            job.batches,
            skip_first=self.skip_first,
            device=job.device,
            on_progress=job.on_progress,
        )
        if self.criterion == "cosine":
            found = cosines(seen, self.mean)
            return Choice(tuple(most_redundant(found, n, stays)), {"cosines": found})
        distances = angular_distances(seen.last, n)
        gone = angular_window(distances, n, stays)
        return Choice(tuple(gone), {"distances": distances})

    def _iterative(self, job: Job, n: int, stays: set[int]) -> Choice:
        evaluate = job.evaluate
        if evaluate is None:
            raise OptionError(
                "criterion='iterative' is led by a task: give the job an evaluator, or use "
                "criterion='perplexity'"
            )
        notes = _Notes.of(job, self.identity())
        base = notes.get("whole", lambda: _scores(evaluate(job.model)))
        count = len(blocks(job.model))
        free_now = len(set(range(count)) - stays)
        total, done = sum(free_now - gone for gone in range(n)), 0

        def rate(gone: tuple[int, ...], free: Sequence[int]) -> dict[int, float]:
            nonlocal done
            found = {}
            for index in free:
                name = "-".join(map(str, (*gone, index)))
                own = notes.get(name, partial(_without, job.model, evaluate, (*gone, index)))
                found[index] = _relative(own, base)
                done += 1
                _tell(job, done, total)
            return found

        return _told(*greedy(count, n, stays, rate), whole=base)

    def _perplexity(self, job: Job, n: int, stays: set[int]) -> Choice:
        notes = _Notes.of(job, self.identity())

        def rate(gone: tuple[int, ...], free: Sequence[int]) -> dict[int, float]:
            def measure() -> dict[str, float]:
                losses = losses_without(job.model, job.batches, gone, free)
                return {str(index): loss for index, loss in losses.items()}

            losses = notes.get("-".join(map(str, gone)) or "whole", measure)
            _tell(job, len(gone) + 1, n)
            return {int(index): -loss for index, loss in losses.items()}

        return _told(*greedy(len(blocks(job.model)), n, stays, rate))


@dataclass(frozen=True)
class ShortGPT(Compression):
    """ShortGPT, arXiv 2403.03853: the blocks with the least influence (1 - mean cosine of input
    and output, over all tokens alike) go at once.

    n: how many; or sparsity: their share. protect: blocks that stay (the paper names none).
    """

    stage: ClassVar[Stage] = "depth"
    id: ClassVar[str] = "shortgpt"

    n: int | None = None
    sparsity: float | None = None
    protect: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Errors: OptionError."""
        self._rule()

    def _rule(self) -> LayerPruning:
        return LayerPruning(
            criterion="cosine",
            n=self.n,
            sparsity=self.sparsity,
            protect=self.protect,
            mean="token",
        )

    def check(self, model: nn.Module) -> None:
        """Errors: OptionError."""
        self._rule().check(model)

    def shape(self, model: nn.Module) -> None:
        """As layer pruning's."""
        self._rule().shape(model)

    def apply(self, job: Job) -> dict[str, Any]:
        """Choose and drop. Errors: as layer pruning's."""
        return self._rule().apply(job)


def _told(gone: list[int], rounds: Sequence[Mapping[int, float]], **more: Any) -> Choice:
    rates = [{str(index): rate for index, rate in found.items()} for found in rounds]
    return Choice(tuple(sorted(gone)), {"order": gone, "rates": rates, **more})


def _tell(job: Job, done: int, total: int) -> None:
    """Parts of the search are told as if they were blocks."""
    job.on_progress(Progress(done - 1, total, "observe", 1, 1))


def _scores(given: float | Mapping[str, float]) -> dict[str, float]:
    return dict(given) if isinstance(given, Mapping) else {"score": float(given)}


def _relative(own: Mapping[str, float], base: Mapping[str, float]) -> float:
    """Mean over tasks of the score over the full model's, 0 where the latter is 0."""
    return sum(own[task] / base[task] if base[task] else 0.0 for task in base) / len(base)


def _without(model: Any, evaluate: Callable[[Any], Any], gone: tuple[int, ...]) -> dict[str, float]:
    return _scores(evaluate(without_blocks(model, gone)))


class _Notes:
    """What was measured so far, in a file, so that a run that was killed goes on."""

    def __init__(self, path: Path | None, known: dict[str, dict[str, float]]) -> None:
        self.path, self.known = path, known

    @classmethod
    def of(cls, job: Job, identity: Mapping[str, Any]) -> _Notes:
        """Errors: CheckpointError for a folder of another run, or a damaged file."""
        if job.folder is None:
            return cls(None, {})
        what = {"identity": {**identity, "seed": job.seed}, "batches": _of_batches(job.batches)}
        what["weights"] = digest(*(p.detach().flatten()[:256] for p in job.model.parameters()))
        claim_folder(job.folder / "layer-pruning.json", what)
        path = job.folder / "scores.json"
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged ({error!r})") from error
        return cls(path, known)

    def get(self, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """A measurement by its name, made where it is not known yet."""
        if name not in self.known:
            self.known[name] = measure()
            if self.path is not None:
                write_json(self.path, self.known)
        return self.known[name]


def _of_batches(batches: Sequence[Batch]) -> str:
    return digest(*(x for batch in batches for x in batch.values() if isinstance(x, Tensor)))
