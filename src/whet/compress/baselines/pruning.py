"""Magnitude, Wanda and SparseGPT as steps of a chain; the last two with OWL's sparsities.

What they compute: `whet.compress.magnitude` (arXiv 1506.02626), `wanda` (2306.11695), `sparsegpt`
(2301.00774) and `owl` (2310.05175). Zeros are stored like other numbers: a pruned model has the
size it had, in any loader, and kernels for 2:4 patterns find them there.

They come after healing, which would fill the zeros again, and before number formats, which keep
them. A share is rounded down in every part that it is taken of, and one that would drop nothing
is refused. Experts that saw fewer than `min_tokens` calibration tokens are pruned by magnitude.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from whet._io import write_json
from whet.compress.baselines.matrices import Matrix, every_matrix, matrices
from whet.compress.baselines.telling import Told, layers_json, summary, with_note
from whet.compress.calibrate import BlockRun, Watch, watch_experts, watch_inputs, watch_nothing
from whet.compress.magnitude import magnitude
from whet.compress.masks import Part, Pattern, check_sparsity, share
from whet.compress.method import Compression, Job, Stage
from whet.compress.owl import Allocation, outlier_ratio, owl_sparsities
from whet.compress.result import PrunedLinear
from whet.compress.sparsegpt import sparsegpt
from whet.compress.statistics import InputStatistics
from whet.compress.wanda import wanda, wanda_scores
from whet.errors import CheckpointError, OptionError, nearest

Amount = float | Pattern
Ratios = Literal["uniform", "owl"]
Rule = Callable[[Tensor, InputStatistics | None, Amount], PrunedLinear]


@dataclass(frozen=True)
class Magnitude(Compression):
    """The smallest weights go.

    sparsity: share that goes (0.5). pattern: "2:4" and the like, instead of a share. scope: what
    weights are compared within, "layer" or "row".
    """

    stage: ClassVar[Stage] = "transform"
    id: ClassVar[str] = "magnitude"
    calibrates: ClassVar[bool] = False
    streams: ClassVar[bool] = True

    sparsity: float | None = None
    pattern: str | None = None
    scope: Part = "layer"

    def __post_init__(self) -> None:
        amount_of(self.sparsity, self.pattern)
        _check_choice("scope", self.scope, get_args(Part))

    def check(self, model: nn.Module) -> None:
        """Errors: OptionError."""
        _check_reach(model, amount_of(self.sparsity, self.pattern), self.scope)

    def shape(self, model: nn.Module) -> None:
        """Zeros take the room that weights took."""

    def apply(self, job: Job) -> dict[str, Any]:
        """Errors: those of `check` and of `calibrate`."""
        self.check(job.model)
        rule = lambda weight, _, amount: magnitude(weight, amount, per=self.scope)  # noqa: E731
        amount = amount_of(self.sparsity, self.pattern)
        return _prune(replace(job, batches=()), self, watch_nothing, rule, lambda index: amount)


@dataclass(frozen=True)
class Wanda(Compression):
    """The weights go whose product with the norm of their input is smallest.

    sparsity, pattern: as of magnitude. scope: "row" or "layer". ratios: "uniform", or "owl" for a
    sparsity of each block from its outliers (`outliers` times the mean score: M; none further
    than 2 `spread` from another: lambda). min_tokens: see the module.
    """

    stage: ClassVar[Stage] = "transform"
    id: ClassVar[str] = "wanda"
    streams: ClassVar[bool] = True

    sparsity: float | None = None
    pattern: str | None = None
    scope: Part = "row"
    ratios: Ratios = "uniform"
    outliers: float = 5.0
    spread: float = 0.08
    min_tokens: int = 128

    def __post_init__(self) -> None:
        amount_of(self.sparsity, self.pattern)
        _check_choice("scope", self.scope, get_args(Part))
        _check_ratios(self.ratios, self.pattern, self.outliers, self.spread)

    def check(self, model: nn.Module) -> None:
        """Errors: OptionError."""
        _check_reach(model, amount_of(self.sparsity, self.pattern), self.scope)

    def shape(self, model: nn.Module) -> None:
        """Zeros take the room that weights took."""

    def apply(self, job: Job) -> dict[str, Any]:
        """Errors: those of `check` and of `calibrate`."""
        self.check(job.model)
        watch = watch_layers(gram=False, min_tokens=self.min_tokens)
        return _prune_by(job, self, watch, lambda w, s, a: wanda(w, s, a, per=self.scope))


@dataclass(frozen=True)
class SparseGPT(Compression):
    """Weights go, and those that stay make up for them.

    sparsity, pattern, ratios, outliers, spread, min_tokens: as of Wanda. damp, block_size: of the
    solver; an unstructured share is taken of every `block_size` columns.
    """

    stage: ClassVar[Stage] = "transform"
    id: ClassVar[str] = "sparsegpt"
    streams: ClassVar[bool] = True

    sparsity: float | None = None
    pattern: str | None = None
    ratios: Ratios = "uniform"
    outliers: float = 5.0
    spread: float = 0.08
    damp: float = 0.01
    block_size: int = 128
    min_tokens: int = 128

    def __post_init__(self) -> None:
        amount_of(self.sparsity, self.pattern)
        _check_ratios(self.ratios, self.pattern, self.outliers, self.spread)
        check_solver(self.damp, self.block_size)

    def check(self, model: nn.Module) -> None:
        """Errors: OptionError."""
        amount = amount_of(self.sparsity, self.pattern)
        if isinstance(amount, Pattern) and self.block_size % amount.of:
            raise OptionError(
                f"block_size={self.block_size} must be a multiple of {amount.of} for {amount}"
            )
        _check_reach(model, amount, "layer")

    def shape(self, model: nn.Module) -> None:
        """Zeros take the room that weights took."""

    def apply(self, job: Job) -> dict[str, Any]:
        """Errors: those of `check` and of `calibrate`."""
        self.check(job.model)
        watch = watch_layers(gram=True, min_tokens=self.min_tokens)
        rule = lambda w, s, a: sparsegpt(  # noqa: E731
            w, s, a, damp=self.damp, block_size=self.block_size
        )
        return _prune_by(job, self, watch, rule)


# --- options


def amount_of(sparsity: float | None, pattern: str | None) -> Amount:
    """A share above 0, or a pattern. Errors: OptionError."""
    if pattern is None:
        amount = 0.5 if sparsity is None else sparsity
        check_sparsity(amount)
        if not amount:
            raise OptionError("sparsity=0 drops nothing: it must be above 0")
        return amount
    found = Pattern.parse(pattern)
    gone = 1 - found.kept / found.of
    if sparsity is not None and abs(sparsity - gone) > 1e-9:
        raise OptionError(
            f"pattern={pattern} is a sparsity of {gone:g}, and not sparsity={sparsity:g}: give one"
        )
    return found


def check_solver(damp: float, block_size: int) -> None:
    """Errors: OptionError for options of the solvers that go column by column."""
    if not 0 <= damp < float("inf"):
        raise OptionError(f"damp={damp:g} must be at least 0")
    if block_size < 1:
        raise OptionError(f"block_size={block_size} must be at least 1")


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise OptionError(f"{name}={value!r} is unknown: {nearest(value, allowed)}")


def _check_ratios(ratios: Ratios, pattern: str | None, outliers: float, spread: float) -> None:
    _check_choice("ratios", ratios, get_args(Ratios))
    if ratios == "owl" and pattern is not None:
        raise OptionError(f"ratios='owl' gives shares, which pattern={pattern} has no room for")
    if not 0 < outliers < float("inf"):
        raise OptionError(f"outliers={outliers:g} must be above 0")
    if not 0 <= spread < float("inf"):
        raise OptionError(f"spread={spread:g} must be at least 0")


def _check_reach(model: nn.Module, amount: Amount, scope: str) -> None:
    """Errors: OptionError where a matrix cannot be pruned by so much."""
    for matrix, (rows, columns) in every_matrix(model):
        if isinstance(amount, Pattern):
            if columns % amount.of:
                raise OptionError(
                    f"pattern={amount} cannot be made in {matrix}: it reads {columns} inputs, "
                    f"which {amount.of} does not divide"
                )
            continue
        size = columns if scope == "row" else rows * columns
        if not share(amount, size):
            least = math.ceil(1e4 / size) / 1e4
            raise OptionError(
                f"sparsity={amount:g} drops none of the {size} weights that are compared in "
                f"{matrix}: it must be at least {least:g}"
            )


# --- work


def watch_layers(*, gram: bool, min_tokens: int) -> Watch:
    """Inputs of all layers; of experts too, with as much."""
    return lambda model, block: {
        **watch_inputs(model, block, gram=gram),
        **watch_experts(model, block, gram=gram, min_tokens=min_tokens),
    }


def _prune_by(
    job: Job, method: Wanda | SparseGPT, watch: Watch, solve: Callable[..., PrunedLinear]
) -> dict[str, Any]:
    """Prune from statistics, by one amount or by OWL's."""
    amount = amount_of(method.sparsity, method.pattern)
    if method.ratios == "uniform" or isinstance(amount, Pattern):
        return _prune(job, method, watch, solve, lambda index: amount)
    found = owl_allocation(job, method, amount)
    report = _prune(job, method, watch, solve, lambda index: found.sparsities[index])
    owl = {"sparsities": list(found.sparsities), "notes": list(found.notes)}
    return {**report, "owl": owl}


def _prune(
    job: Job, method: Compression, watch: Watch, rule: Rule, amount: Callable[[int], Amount]
) -> dict[str, Any]:
    def edit(run: BlockRun) -> Mapping[str, Any]:
        told = []
        for matrix in matrices(run.model, run.block):
            pruned = _one(run, matrix, rule, amount(run.block.index))
            matrix.write(run.model, pruned.weight)
            size = pruned.keep.numel()
            told.append(Told(matrix, pruned.report, size, int(pruned.keep.sum())))
        return {"layers": layers_json(told)}

    found = job.calibrate(edit, identity=method.identity(), watch=watch)
    return summary(found.reports)


def _one(run: BlockRun, matrix: Matrix, rule: Rule, amount: Amount) -> PrunedLinear:
    weight = matrix.read(run.model)
    if not run.statistics:
        return rule(weight, None, amount)
    seen = matrix.seen(run.statistics)
    if not matrix.cold(run.statistics):
        return rule(weight, seen, amount)
    found = magnitude(weight, amount, per="row")
    return replace(found, report=with_note(found.report, "too few tokens: pruned by magnitude"))


def owl_allocation(job: Job, method: Wanda | SparseGPT, sparsity: float) -> Allocation:
    """OWL's sparsity of every block, from a pass through the model as it is.

    Kept in the job's folder, so that a run that goes on prunes by the same. Errors: OptionError
    for a model that comes from a source a block at a time; CheckpointError for a damaged file.
    """
    if job.source is not None:
        raise OptionError(
            "ratios='owl' looks at the whole model before it prunes the first block: it works on "
            "a model in memory, without a memory limit"
        )
    path = None if job.folder is None else job.folder / "owl.json"
    if path is not None and path.is_file():
        ratios, sizes = _stored(path)
        return owl_sparsities(ratios, sparsity, spread=method.spread, sizes=sizes)

    def look(run: BlockRun) -> Mapping[str, Any]:
        scores = [
            wanda_scores(m.read(run.model), m.seen(run.statistics).square_sum)
            for m in matrices(run.model, run.block)
        ]
        ratio = outlier_ratio(scores, method.outliers)
        return {"ratio": ratio, "size": sum(s.numel() for s in scores)}

    scratch = None if job.folder is None else job.folder / "owl"
    found = replace(job, folder=scratch).calibrate(
        look,
        identity={**method.identity(), "pass": "owl"},
        watch=watch_layers(gram=False, min_tokens=method.min_tokens),
        propagate_error=False,
    )
    ratios = [float(report["ratio"]) for report in found.reports]
    sizes = [int(report["size"]) for report in found.reports]
    if path is not None and scratch is not None:
        write_json(path, {"ratios": ratios, "sizes": sizes})
        shutil.rmtree(scratch, ignore_errors=True)
    return owl_sparsities(ratios, sparsity, spread=method.spread, sizes=sizes)


def _stored(path: Any) -> tuple[list[float], list[int]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [float(r) for r in found["ratios"]], [int(n) for n in found["sizes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error!r})") from error
