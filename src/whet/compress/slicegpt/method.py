"""SliceGPT as a step of a chain: options, and slicing site by site in one calibration pass."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor, nn

from whet.compress.calibrate import BlockRun, Call, Collector, InputCollector, restore_block
from whet.compress.calibrate.capture import capture, counted_tokens
from whet.compress.calibrate.store import read_tensors, write_tensors
from whet.compress.method import Compression, Job, Stage
from whet.compress.slicegpt.basis import (
    between,
    discarded,
    orthogonal,
    principal,
    width_of,
    widths_by_share,
)
from whet.errors import NonFiniteError, OptionError
from whet.models.edits.rotated import (
    RotateSkip,
    Site,
    check_rotatable,
    check_widths,
    first_site,
    narrow,
    project,
    same_ends,
    set_forward,
    set_norm,
    set_skip,
    shape_block,
    skips,
    stream_sites,
    tensor_widths,
)
from whet.models.roles import Block, axis, blocks, fold_norms
from whet.models.roles.structure import ATTENTION_SKIP
from whet.rng import keyed_torch

Basis = Float64[Tensor, "F W"]


@dataclass(frozen=True)
class SliceGPT(Compression):
    """sparsity: share of the stream's channels that go. round_interval: widths are multiples.

    schedule: "constant" slices every site alike; "linear" by `attention_sparsity` and
    `mlp_sparsity` (of what attention and MLP read, first and last block, as 0.2+0.3; the MLP's
    is the attention's where it is left out); "eigen" so that the sites lose the least
    energy in all, at the parameters that the constant schedule has.
    final_orientation: "random" turns what is kept, so that no channel stands out, "pca" leaves
    the strongest first; the function is the same. slice_head: also what the head reads (without
    it a GPT-2's first site stays whole too, since its class wants both ends alike). damp: of the
    eigendecomposition. rotation: "random" for directions that know nothing of the data.
    """

    stage: ClassVar[Stage] = "width"
    id: ClassVar[str] = "slicegpt"

    sparsity: float = 0.25
    round_interval: int = 8
    schedule: Literal["constant", "linear", "eigen"] = "constant"
    attention_sparsity: tuple[float, ...] = ()
    mlp_sparsity: tuple[float, ...] = ()
    final_orientation: Literal["random", "pca"] = "random"
    slice_head: bool = False
    damp: float = 0.01
    rotation: Literal["pca", "random"] = "pca"

    def __post_init__(self) -> None:
        given = {"sparsity": (self.sparsity,)}
        for name in ("attention_sparsity", "mlp_sparsity"):
            given[name] = tuple(getattr(self, name))
            if given[name] and self.schedule != "linear":
                raise OptionError(f"{name} is for schedule=linear: this is {self.schedule}")
            if len(given[name]) not in (0, 2):
                raise OptionError(f"{name} must be two shares, START+END")
        if self.schedule == "linear" and not self.attention_sparsity:
            raise OptionError("schedule=linear needs attention_sparsity=START+END")
        for name, values in given.items():
            for value in values:
                if not 0 <= value < 1:
                    raise OptionError(f"{name}={value:g} must be at least 0 and below 1")
        if self.round_interval < 1:
            raise OptionError(f"round_interval={self.round_interval} must be at least 1")
        if not 0 <= self.damp < math.inf:
            raise OptionError(f"damp={self.damp:g} must be at least 0")
        if self.schedule == "eigen" and self.rotation == "random":
            raise OptionError("schedule=eigen needs rotation=pca: random directions have no order")

    def check(self, model: nn.Module) -> None:
        """Errors: OptionError for a model whose stream cannot be rotated, or too few channels."""
        check_rotatable(model)
        self._width(axis(model, "residual").units)

    def shape(self, model: nn.Module) -> None:
        """Widths of `schedule="eigen"` come from the data: the constant schedule's stand for them.

        They have as many parameters, or a few more.
        """
        self.check(model)
        fold_norms(model)
        rotation = RotateSkip(self.widths(model, stream_sites(model)), _full_dim(model))
        rotation.build(model)

    def widths(self, model: nn.Module, sites: Sequence[Site]) -> list[int]:
        """Of every site, by the schedule (of "eigen": the constant one)."""
        full = _full_dim(model)
        parts = blocks(model)
        per_block = len(skips(parts[0]))
        if self.schedule == "linear":
            attention = between(self.attention_sparsity, len(parts))
            mlp = between(self.mlp_sparsity or self.attention_sparsity, len(parts))
            shares = [x for pair in zip(attention, mlp, strict=True) for x in pair[:per_block]]
            shares.append(attention[-1])
        else:
            shares = [self.sparsity] * len(sites)
        return self._fixed(
            [width_of(x, full, self.round_interval) for x in shares], model, sites, full
        )

    def _fixed(
        self, widths: list[int], model: nn.Module, sites: Sequence[Site], full: int
    ) -> list[int]:
        """The widths with those that cannot be chosen."""
        if not self.slice_head:
            widths = [*widths[:-1], full]
        if same_ends(model):
            widths = [widths[-1], *widths[1:]]
        for index, site in enumerate(sites):
            if site.sparse:  # what is wider on one side only would be filled with zeros
                widths[index] = max(widths[index], widths[index + 1])
        return widths

    def _width(self, full: int) -> int:
        return width_of(self.sparsity, full, self.round_interval)

    def apply(self, job: Job) -> dict[str, Any]:
        """Slice the model. Tells widths, parameters and the share of energy lost at each site."""
        self.check(job.model)
        if job.source is not None:
            raise OptionError("SliceGPT changes what is outside blocks: load the model whole")
        before = _parameters(job.model)
        fold_norms(job.model)
        untied = _parameters(job.model)
        sites = stream_sites(job.model)
        with torch.no_grad():
            widths = self.widths(job.model, sites)
            if self.schedule == "eigen":
                widths = self._widths_by_energy(job, sites, widths)
            check_widths(job.model, sites, widths, _full_dim(job.model))
            slicer = _Slicer(self, job, sites, widths, _full_dim(job.model))
            slicer.start()
            calibration = job.calibrate(
                slicer.edit,
                identity=self.identity() | {"widths": widths},
                watch=slicer.watch,
                restore=slicer.restore,
            )
        notes = []
        if self.rotation == "pca" and calibration.tokens < slicer.full:
            notes.append(
                f"{calibration.tokens} tokens say nothing about most of {slicer.full} directions: "
                "calibrate on more"
            )
        return {
            "widths": widths,
            "full_dim": slicer.full,
            "parameters": {
                "before": before,
                "untied": untied,
                "after": _parameters(job.model),
            },
            "discarded": slicer.first
            + [share for report in calibration.reports for share in report["discarded"]],
            "tokens": calibration.tokens,
            "notes": notes,
        }

    def _widths_by_energy(self, job: Job, sites: Sequence[Site], constant: list[int]) -> list[int]:
        """Widths of `schedule="eigen"`, from the streams of the unsliced model."""
        model, full, step = job.model, _full_dim(job.model), self.round_interval

        def watch(_: nn.Module, block: Block) -> Mapping[str, Collector]:
            first = first_site(block)
            names = [site.norm for site in sites[first : first + len(skips(block))]]
            return {name: InputCollector(full) for name in names}

        def shares_of(gram: Tensor) -> list[float]:
            left: list[float] = discarded(principal(gram, self.damp)[0]).tolist()
            return left

        def edit(run: BlockRun) -> dict[str, Any]:
            found = [shares_of(statistics.gram) for statistics in run.statistics.values()]
            if run.block.index + 1 == len(blocks(model)):
                found.append(shares_of(_output_gram(run, full)))
            return {"shares": found}

        own = None if job.folder is None else job.folder / "energy"
        seen = replace(job, folder=own).calibrate(
            edit, identity=self.identity(), watch=watch, propagate_error=False
        )
        shares = [torch.tensor(x) for report in seen.reports for x in report["shares"]]
        per_read = [_per_entry(model, site.readers) for site in sites]
        per_write = [_per_entry(model, site.writers) for site in sites]
        pairs = [(n, n + 1) for n in range(len(sites) - 1)]

        def parameters(widths: list[int]) -> int:
            reads, writes = tensor_widths(sites, widths)
            total = sum(r * n for r, n in zip(reads, per_read, strict=True))
            total += sum(w * n for w, n in zip(writes, per_write, strict=True))
            return total + sum(widths[a] * widths[b] for a, b in pairs)

        return widths_by_share(
            shares,
            lambda widths: self._fixed(widths, model, sites, full),
            parameters,
            parameters(constant),
            step,
        )


@dataclass
class _Slicer:
    """Slices site by site. basis: of the site that was sliced last; first: its share lost."""

    options: SliceGPT
    job: Job
    sites: Sequence[Site]
    widths: Sequence[int]
    full: int
    basis: Basis = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64))
    first: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Slice what writes the first site, and let the first block read it."""
        self.reads, self.writes = tensor_widths(self.sites, self.widths)
        self.parts = blocks(self.job.model)
        gram = self._embedding_gram() if self.options.rotation == "pca" else None
        self.basis = self._choose(0, gram, self.first)
        for role in self.sites[0].writers:
            project(self.job.model, role, self.basis)
        self._enter(self.parts[0])

    def watch(self, model: nn.Module, block: Block) -> Mapping[str, Collector]:
        """The stream between attention and MLP, as wide as it was: attention is not sliced yet."""
        if len(skips(block)) == 1 or self.options.rotation == "random":
            return {}
        return {self.sites[first_site(block) + 1].norm: InputCollector(self.full)}

    def edit(self, run: BlockRun) -> dict[str, Any]:
        """Slice the two sites (parallel blocks: the one) that a block writes."""
        block, site = run.block, first_site(run.block)
        lost: list[float] = []
        for skip in skips(block)[:-1]:
            site += 1
            seen = run.statistics.get(self.sites[site].norm)
            middle = self._choose(site, None if seen is None else seen.gram, lost)
            self._write(run.module, site, skip, middle)
            self._read(run.module, site, skips(block)[-1], middle)
            set_forward(run.model, block, self.full if block.experts else None)
        pca = self.options.rotation == "pca"
        after = self._choose(site + 1, _output_gram(run, self.full) if pca else None, lost)
        self._write(run.module, site + 1, skips(block)[-1], after)
        if block.experts:
            for role in self.sites[site].readers:
                narrow(run.model, role, self.reads[site])
            set_forward(run.model, block, self.reads[site])
        if self.job.folder is not None:
            write_tensors(_basis_file(self.job.folder, block), {"basis": after})
        self._advance(block)
        return {"discarded": lost}

    def restore(self, module: nn.Module, block: Block, tensors: Mapping[str, Tensor]) -> None:
        """A finished block, and the way on from it, when a run that was stopped goes on."""
        assert self.job.folder is not None  # nothing else is resumed
        shape_block(self.job.model, block, self.sites, self.widths, self.full)
        restore_block(module, block, tensors)
        self.basis = read_tensors(_basis_file(self.job.folder, block))["basis"].clone()
        self._advance(block)

    def _advance(self, block: Block) -> None:
        """Let the next block, or the head, read the basis of now."""
        if block.index + 1 < len(self.parts):
            self._enter(self.parts[block.index + 1])
            return
        for role in self.sites[-1].readers:
            project(self.job.model, role, self.basis)
        set_norm(self.job.model, self.sites[-1], self.widths[-1], self.full)

    def _enter(self, block: Block) -> None:
        module = self.job.model.get_submodule(block.name)
        self._read(module, first_site(block), ATTENTION_SKIP, self.basis)
        set_forward(self.job.model, block)

    def _read(self, module: nn.Module, site: int, skip: str, basis: Basis) -> None:
        """Let a site be read in a basis; its skip leads back to the whole stream for now."""
        wide = F.pad(basis, (0, self.full - basis.shape[1])) if self.sites[site].sparse else basis
        for role in self.sites[site].readers:
            project(self.job.model, role, wide)
        set_norm(self.job.model, self.sites[site], basis.shape[1], self.full)
        set_skip(module, skip, basis)
        self.basis = basis

    def _write(self, module: nn.Module, site: int, skip: str, basis: Basis) -> None:
        """Let a site be written in a basis, by its branch and by the skip from the site before."""
        wide = F.pad(basis, (0, self.writes[site] - basis.shape[1]))
        for role in self.sites[site].writers:
            project(self.job.model, role, wide)
        device = next(module.parameters()).device
        set_skip(module, skip, basis.to(device).t() @ self.basis.to(device))
        self.basis = basis

    def _choose(self, site: int, gram: Tensor | None, lost: list[float]) -> Basis:
        """Orthonormal columns [full, width]; adds the share of energy lost."""
        width, key = self.widths[site], ("slicegpt", site)
        if gram is None:
            turn = keyed_torch(self.job.seed, *key, "rotation")
            return orthogonal(self.full, turn)[:, :width].contiguous()
        values, vectors = principal(gram, self.options.damp)
        lost.append(float(discarded(values)[width]))
        kept = vectors[:, :width]
        if self.options.final_orientation == "random":
            turn = keyed_torch(self.job.seed, *key, "orientation")
            kept = kept @ orthogonal(width, turn, gram.device)
        return kept.cpu().contiguous()

    def _embedding_gram(self) -> Tensor:
        model, seen = self.job.model, InputCollector(self.full)
        embedding: Tensor = model.get_input_embeddings().weight
        with _evaluating(model):
            for number, batch in enumerate(self.job.batches):
                moved = {
                    k: v.to(embedding.device) if isinstance(v, Tensor) else v
                    for k, v in batch.items()
                    if v is not None
                }
                hidden = capture(model, self.parts, moved).hidden
                mask = counted_tokens(batch, number)
                mask = None if mask is None else mask.to(hidden.device)
                call = Call("the embedding", model, (hidden,), hidden, mask)
                if not bool(seen.see(call)):
                    raise NonFiniteError(f"the embedding gives NaN or infinity in batch {number}")
        found = seen.result().gram
        assert found is not None  # it was collected
        return found


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Any:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def _output_gram(run: BlockRun, full: int) -> Tensor:
    """Gram matrix of what a block gives now."""
    seen = InputCollector(full)
    for number in range(run.batches):
        output = run.run(number)
        call = Call(run.block.name, run.module, (output,), output, run.mask(number))
        if not bool(seen.see(call)):
            raise NonFiniteError(f"{run.block.name} gives NaN or infinity in batch {number}")
    found = seen.result().gram
    assert found is not None  # it was collected
    return found


def _basis_file(folder: Path, block: Block) -> Path:
    return folder / "slicegpt" / f"basis-{block.index:05}.safetensors"


def _full_dim(model: nn.Module) -> int:
    return axis(model, "residual").units


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _per_entry(model: nn.Module, roles: Sequence[Any]) -> int:
    """Numbers that readers or writers of a site have for each entry of the stream."""
    sizes = ((model.get_parameter(role.tensor), role.dim) for role in roles)
    return sum(tensor.numel() // tensor.shape[dim] for tensor, dim in sizes)
