"""SVD, ASVD and SVD-LLM as steps of a chain: every layer becomes two thin ones.

What they compute: `whet.compress.svd` (plain truncation; ASVD, arXiv 2312.05821; SVD-LLM,
2403.07378). A layer of `out` times `in` weights keeps the largest rank r for which r (out + in)
is at most the share `keep` of them; ASVD's search for a rank of every layer is not done.
Experts that are fused in one tensor stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from whet.compress.baselines.matrices import Matrix, every_matrix, matrices
from whet.compress.baselines.telling import say_all
from whet.compress.calibrate import (
    BlockRun,
    Restore,
    Watch,
    restore_block,
    watch_inputs,
    watch_nothing,
)
from whet.compress.method import Compression, Job, Stage
from whet.compress.result import FactoredLinear
from whet.compress.statistics import InputStatistics
from whet.compress.svd import rank_of_budget, svd, svd_diagonal, svd_whitened
from whet.errors import OptionError
from whet.layers.low_rank_linear import LowRankLinear
from whet.models.edits import replace as replace_layer
from whet.models.roles import Block, blocks

Rule = Callable[[Tensor, InputStatistics | None, int], FactoredLinear]


@dataclass(frozen=True)
class LowRank(Compression):
    """What factorizing methods share. keep: share of a layer's weights that is left."""

    stage: ClassVar[Stage] = "factorize"

    keep: float = 0.5

    def __post_init__(self) -> None:
        """Errors: OptionError."""
        _check_keep(self.keep)

    def check(self, model: nn.Module) -> None:
        """Errors: OptionError."""
        _check(model, self.keep)

    def shape(self, model: nn.Module) -> None:
        """Errors: OptionError."""
        _shape(model, self.keep)


@dataclass(frozen=True)
class SVD(LowRank):
    """The nearest weight of lower rank; no data."""

    id: ClassVar[str] = "svd"
    calibrates: ClassVar[bool] = False

    def apply(self, job: Job) -> dict[str, Any]:
        """Errors: those of `check` and of `calibrate`."""
        rule = lambda weight, _, rank: svd(weight, rank)  # noqa: E731
        return _factor(replace(job, batches=()), self, self.keep, watch_nothing, rule)


@dataclass(frozen=True)
class ASVD(LowRank):
    """Errors count by the mean strength of their input channel, to the power alpha."""

    id: ClassVar[str] = "asvd"

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < float("inf"):
            raise OptionError(f"alpha={self.alpha:g} must be at least 0")

    def apply(self, job: Job) -> dict[str, Any]:
        """Errors: those of `check` and of `calibrate`."""

        def rule(weight: Tensor, seen: InputStatistics | None, rank: int) -> FactoredLinear:
            assert seen is not None  # of every layer
            return svd_diagonal(weight, seen, rank, alpha=self.alpha)

        return _factor(job, self, self.keep, _without_gram, rule)


@dataclass(frozen=True)
class SVDLLM(LowRank):
    """The weight of lower rank whose outputs are nearest on the calibration tokens.

    damp: share of the mean of the Gram matrix' diagonal added to it.
    """

    id: ClassVar[str] = "svd-llm"

    damp: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.damp < float("inf"):
            raise OptionError(f"damp={self.damp:g} must be at least 0")

    def apply(self, job: Job) -> dict[str, Any]:
        """Errors: those of `check` and of `calibrate`."""

        def rule(weight: Tensor, seen: InputStatistics | None, rank: int) -> FactoredLinear:
            assert seen is not None  # of every layer
            return svd_whitened(weight, seen, rank, damp=self.damp)

        return _factor(job, self, self.keep, watch_inputs, rule)


def _without_gram(model: nn.Module, block: Block) -> dict[str, Any]:
    return watch_inputs(model, block, gram=False)


def _check_keep(keep: float) -> None:
    if not 0 < keep < 1:
        raise OptionError(f"keep={keep:g} must be above 0 and below 1")


def _check(model: nn.Module, keep: float) -> None:
    for matrix, (rows, columns) in every_matrix(model):
        if matrix.expert is None:
            parent = matrix.module.rpartition(".")[0]
            if isinstance(model.get_submodule(parent), LowRankLinear):
                raise OptionError(f"{parent} is of low rank already")
            rank_of_budget(rows, columns, keep)


def _layers(model: nn.Module, block: Block) -> list[Matrix]:
    return [m for m in matrices(model, block) if m.expert is None]


def _shape(model: nn.Module, keep: float) -> None:
    _check(model, keep)
    for block in blocks(model):
        for matrix in _layers(model, block):
            weight = matrix.read(model)
            rows, columns = weight.shape
            rank = rank_of_budget(rows, columns, keep)
            _empty(model, matrix.module, weight, rank)


def _empty(model: nn.Module, name: str, weight: Tensor, rank: int) -> None:
    bias = getattr(model.get_submodule(name), "bias", None)
    rows, columns = weight.shape
    layer = LowRankLinear(columns, rows, rank, bias is not None)
    replace_layer(model, name, layer.to(device="meta", dtype=weight.dtype))


def _factor(job: Job, method: Compression, keep: float, watch: Watch, rule: Rule) -> dict[str, Any]:
    """Replace every layer. Errors: OptionError for a model that comes from a source a block at a
    time, whose checkpoint could not say its new shape; those of `_check` and `calibrate`."""
    if job.source is not None:
        raise OptionError(f"{method.id} changes layers, and works on a model in memory only")
    _check(job.model, keep)

    def edit(run: BlockRun) -> Mapping[str, Any]:
        model = run.model
        layers: dict[str, Any] = {}
        for matrix in _layers(model, run.block):
            weight = matrix.read(model)
            seen = matrix.seen(run.statistics) if run.statistics else None
            rows, columns = weight.shape
            made = rule(weight, seen, rank_of_budget(rows, columns, keep))
            bias = getattr(model.get_submodule(matrix.module), "bias", None)
            replace_layer(model, matrix.module, LowRankLinear.of(made.up, made.down, bias))
            layers[str(matrix)] = _entry(made, weight.numel())
        return {"layers": layers}

    found = job.calibrate(
        edit, identity=method.identity(), watch=watch, restore=_restore(job.model)
    )
    entries = {name: e for report in found.reports for name, e in report["layers"].items()}
    weights = sum(e["weights"] for e in entries.values())
    left = sum(e["left"] for e in entries.values())
    summary: dict[str, Any] = {"weights": weights, "left": left / weights}
    experts = [b.experts.module for b in blocks(job.model) if b.experts is not None]
    notes = say_all({name: e.get("notes", ()) for name, e in entries.items()})
    notes += [f"{name}: experts stay as they are" for name in experts]
    return {**summary, **({"notes": notes} if notes else {}), "blocks": list(found.reports)}


def _entry(made: FactoredLinear, weights: int) -> dict[str, Any]:
    report = made.report
    found = {"method": report.method, "rank": made.rank, "weights": weights}
    found["left"] = made.up.numel() + made.down.numel()
    told = {"loss": report.loss, "damp": report.damp, "dead": report.dead or None}
    found |= {key: value for key, value in told.items() if value is not None}
    return {**found, **({"notes": list(report.notes)} if report.notes else {})}


def _restore(model: nn.Module) -> Restore:
    def restore(module: nn.Module, block: Block, tensors: Mapping[str, Tensor]) -> None:
        for matrix in _layers(model, block):
            down = tensors.get(f"{matrix.module}.down.weight")
            if down is not None:
                _empty(model, matrix.module, matrix.read(model), len(down))
        restore_block(module, block, tensors)

    return restore
