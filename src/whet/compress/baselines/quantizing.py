"""RTN and GPTQ as steps of a chain: weights become integers, block by block.

What they compute: `whet.compress.rtn` and `gptq` (arXiv 2210.17323). Where the integers go:
`storing`. Head, embeddings and routers stay as they are, and so does a tied head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from whet.compress.baselines.matrices import matrices
from whet.compress.baselines.pruning import check_solver, watch_layers
from whet.compress.baselines.storing import Quantizer, Scheme
from whet.compress.baselines.telling import layers_json, summary, with_note
from whet.compress.calibrate import BlockRun, Watch, watch_nothing
from whet.compress.gptq import gptq
from whet.compress.method import Compression, Job
from whet.compress.result import QuantizedLinear
from whet.compress.rtn import rtn
from whet.compress.statistics import InputStatistics
from whet.layers.quantizer import Search

# From this share of zeros on a weight counts as pruned, and its zeros stay (as in llm-compressor).
_PRUNED = 0.05

Rule = Callable[[Tensor, InputStatistics | None, Scheme], QuantizedLinear]


@dataclass(frozen=True)
class RTN(Quantizer):
    """Every weight to the nearest number of its grid; no data.

    bits: 4 and 8 are packed, others are rounded and stored as numbers. group_size: inputs that
    share a scale, none for one scale a row. symmetric: no zero points. activation_bits: 16 leaves
    inputs alone, 8 rounds each token (with bits=8, group_size=none). search: smaller ranges are
    tried.
    """

    id: ClassVar[str] = "rtn"
    calibrates: ClassVar[bool] = False

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = True
    activation_bits: int = 16
    search: bool = False

    def __post_init__(self) -> None:
        self.scheme()

    def scheme(self) -> Scheme:
        """Errors: OptionError."""
        return Scheme.of(self.bits, self.group_size, self.symmetric, self.activation_bits)

    def apply(self, job: Job) -> dict[str, Any]:
        """Errors: those of `check` and of `calibrate`."""
        search = Search() if self.search else None
        rule = lambda weight, _, scheme: rtn(weight, scheme.weights, search=search)  # noqa: E731
        return quantize(replace(job, batches=()), self, self.scheme(), watch_nothing, rule)


@dataclass(frozen=True)
class GPTQ(Quantizer):
    """Weights not yet rounded make up for the errors of those that are.

    bits, group_size, symmetric, activation_bits, search: as of RTN. act_order: columns with
    strong inputs first, groups staying where they are. damp, block_size: of the solver.
    min_tokens: experts that saw fewer are rounded to nearest.
    """

    id: ClassVar[str] = "gptq"

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = True
    activation_bits: int = 16
    search: bool = False
    act_order: bool = False
    damp: float = 0.01
    block_size: int = 128
    min_tokens: int = 128

    def __post_init__(self) -> None:
        self.scheme()
        check_solver(self.damp, self.block_size)

    def scheme(self) -> Scheme:
        """Errors: OptionError."""
        return Scheme.of(self.bits, self.group_size, self.symmetric, self.activation_bits)

    def apply(self, job: Job) -> dict[str, Any]:
        """Errors: those of `check` and of `calibrate`."""
        watch = watch_layers(gram=True, min_tokens=self.min_tokens)
        return quantize(job, self, self.scheme(), watch, self._solve)

    def _solve(
        self, weight: Tensor, seen: InputStatistics | None, scheme: Scheme
    ) -> QuantizedLinear:
        search = Search() if self.search else None
        if seen is None:
            found = rtn(weight, scheme.weights, search=search)
            note = "too few tokens: rounded to nearest"
            return replace(found, report=with_note(found.report, note))
        return gptq(
            weight,
            seen,
            scheme.weights,
            damp=self.damp,
            block_size=self.block_size,
            act_order=self.act_order,
            search=search,
            keep_zeros=float((weight == 0).float().mean()) >= _PRUNED,
        )


def quantize(
    job: Job, method: Compression, scheme: Scheme, watch: Watch, rule: Rule
) -> dict[str, Any]:
    """Quantize every matrix by a rule, which is given no statistics where there are too few.

    Errors: those of `Scheme.check` and of `calibrate`.
    """
    scheme.check(job.model)

    def edit(run: BlockRun) -> Mapping[str, Any]:
        results = []
        for matrix in matrices(run.model, run.block):
            known = bool(run.statistics) and not matrix.cold(run.statistics)
            seen = matrix.seen(run.statistics) if known else None
            results.append((matrix, rule(matrix.read(run.model), seen, scheme)))
        return {"layers": layers_json(scheme.store(run.model, results))}

    found = job.calibrate(
        edit, identity=method.identity(), watch=watch, restore=scheme.restore(job.model)
    )
    return summary(found.reports)
