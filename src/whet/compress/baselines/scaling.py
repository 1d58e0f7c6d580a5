"""AWQ and SmoothQuant as steps of a chain: scales move between a layer's input and its weight.

What they compute: `whet.compress.awq` (arXiv 2306.00978) and `smoothquant` (2211.10438). Here
x -> x / s goes into whatever makes x, so that nothing is left to do when the model runs:

- what attention and MLP read: into the norm before them, in blocks that normalise first. Not where
  a router reads it too, nor where the norm has no gains;
- what the attention's output layer reads: into the rows of the values, where every head has its
  own (AWQ only, as in its released code);
- what the MLP's last layer reads: into the rows of "up", where a gate multiplies them, or of the
  first layer, where a ReLU lies between (AWQ only).

Where there is no such place s = 1, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from whet.compress.awq import ScaleChoice, awq, awq_scale, no_scale
from whet.compress.baselines.matrices import Matrix, matrices, reader, writer
from whet.compress.baselines.pruning import watch_layers
from whet.compress.baselines.storing import Quantizer, Scheme
from whet.compress.baselines.telling import layers_json, summary, with_note
from whet.compress.calibrate import BlockRun
from whet.compress.folding import divide_norm, divide_outputs, multiply_inputs
from whet.compress.method import Job
from whet.compress.result import QuantizedLinear
from whet.compress.rtn import rtn
from whet.compress.smoothquant import smoothing_scale
from whet.errors import OptionError
from whet.models.roles import Block
from whet.models.roles.structure import View


@dataclass(frozen=True)
class AWQ(Quantizer):
    """Scales that spare the weights of strong inputs, and smaller ranges, both by search.

    bits, group_size, symmetric: as of RTN. clip: whether ranges are searched for. steps: how many
    scales, and ranges, are tried. min_tokens: experts that saw fewer are rounded to nearest.
    """

    id: ClassVar[str] = "awq"

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = True
    clip: bool = True
    steps: int = 20
    min_tokens: int = 128

    def __post_init__(self) -> None:
        self.scheme()
        if self.steps < 1:
            raise OptionError(f"steps={self.steps} must be at least 1")

    def scheme(self) -> Scheme:
        """Errors: OptionError."""
        return Scheme.of(self.bits, self.group_size, self.symmetric, 16)

    def apply(self, job: Job) -> dict[str, Any]:
        """Errors: those of `check` and of `calibrate`."""
        self.check(job.model)
        scheme = self.scheme()

        def edit(run: BlockRun) -> Mapping[str, Any]:
            results = _awq_block(run, self, scheme)
            return {"layers": layers_json(scheme.store(run.model, results))}

        found = job.calibrate(
            edit,
            identity=self.identity(),
            watch=watch_layers(gram=True, min_tokens=self.min_tokens),
            restore=scheme.restore(job.model),
        )
        return summary(found.reports)


@dataclass(frozen=True)
class SmoothQuant(Quantizer):
    """8-bit weights and activations; part of the activations' range goes into the weights first.

    alpha: how much of it (0.5; 0.8 to 0.85 for models with strong outliers).
    """

    id: ClassVar[str] = "smoothquant"

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise OptionError(f"alpha={self.alpha:g} must be between 0 and 1")

    def scheme(self) -> Scheme:
        """Errors: OptionError."""
        return Scheme.of(8, None, True, 8)

    def apply(self, job: Job) -> dict[str, Any]:
        """Errors: those of `check` and of `calibrate`."""
        self.check(job.model)
        scheme = self.scheme()

        def edit(run: BlockRun) -> Mapping[str, Any]:
            smoothed = []
            for site in sites(run.model, run.block):
                if site.norm:
                    weights = [m.read(run.model) for m in site.readers]
                    seen = site.readers[0].seen(run.statistics)
                    scale = smoothing_scale(weights, seen, self.alpha)
                    site.fold(run.model, scale)
                    for matrix, weight in zip(site.readers, weights, strict=True):
                        matrix.write(run.model, multiply_inputs(weight, scale))
                    smoothed += [str(m) for m in site.readers]
            results = [
                (matrix, rtn(matrix.read(run.model), scheme.weights))
                for matrix in matrices(run.model, run.block)
            ]
            told = scheme.store(run.model, results)
            return {"smoothed": smoothed, "layers": layers_json(told)}

        found = job.calibrate(
            edit,
            identity=self.identity(),
            watch=watch_layers(gram=False, min_tokens=1),
            restore=scheme.restore(job.model),
        )
        return summary(found.reports)


def _awq_block(run: BlockRun, method: AWQ, scheme: Scheme) -> list[tuple[Matrix, QuantizedLinear]]:
    """Choose all scales from the block as it was, fold them, then clip and round."""
    model, grid = run.model, scheme.weights
    chosen: list[tuple[Site, ScaleChoice]] = []
    for site in sites(model, run.block):
        seen = site.readers[0].seen(run.statistics)
        choice = no_scale(seen)
        if site.folds and not site.readers[0].cold(run.statistics):
            weights = [m.read(model) for m in site.readers]
            choice = awq_scale(weights, seen, grid, steps=method.steps)
        chosen.append((site, choice))
    for site, choice in chosen:
        if site.folds:
            site.fold(model, choice.scale)
    unclipped = {run.block.attention.query, run.block.attention.key}
    results = []
    for site, choice in chosen:
        weights = [m.read(model) for m in site.readers]
        if site.readers[0].cold(run.statistics):
            found = [rtn(weight, grid) for weight in weights]
            note = "too few tokens: rounded to nearest"
        else:
            seen = site.readers[0].seen(run.statistics)
            clip = [method.clip and m.module not in unclipped for m in site.readers]
            made = awq(weights, seen, grid, choice=choice, clip=clip, steps=method.steps)
            found = list(made.linears)
            note = "" if site.folds else "no place for scales before it: only ranges were searched"
        for matrix, one in zip(site.readers, found, strict=True):
            report = with_note(one.report, note) if note else one.report
            results.append((matrix, QuantizedLinear(one.quantized, report)))
    return results


@dataclass(frozen=True)
class Site:
    """Matrices that read one input, and where a scale of that can go: a norm, or rows start to
    stop of what writes it. Neither: nowhere."""

    readers: tuple[Matrix, ...]
    norm: str = ""
    offset: float = 0.0
    writer: Matrix | None = None
    start: int = 0
    stop: int = 0

    @property
    def folds(self) -> bool:
        """Whether there is a place."""
        return bool(self.norm) or self.writer is not None

    @torch.no_grad()
    def fold(self, model: nn.Module, scale: Float[Tensor, " I"]) -> None:
        """Divide what is read by the scale. Errors: NonFiniteError."""
        if self.writer is not None:
            module: Any = model.get_submodule(self.writer.module)
            rows = self.writer.read(model)[self.start : self.stop]
            bias = getattr(module, "bias", None) if self.writer.expert is None else None
            part = None if bias is None else bias.detach()[self.start : self.stop]
            divided, new = divide_outputs(rows, part, scale)
            rows.copy_(divided)
            if part is not None and new is not None:
                part.copy_(new)
            return
        norm: Any = model.get_submodule(self.norm)
        weight, bias = norm.weight.detach(), getattr(norm, "bias", None)
        gains, shifts = divide_norm(
            weight, None if bias is None else bias.detach(), scale, offset=self.offset
        )
        weight.copy_(gains)
        if bias is not None and shifts is not None:
            bias.detach().copy_(shifts)


def sites(model: nn.Module, block: Block) -> list[Site]:
    """Every matrix of a block in one site."""
    view = View.of(model)
    found = [*_after_norms(view, block), *_after_layers(view, block)]
    known = {matrix for site in found for matrix in site.readers}
    found += [Site((m,)) for m in matrices(model, block) if m not in known]
    return found


def _after_norms(view: View, block: Block) -> list[Site]:
    """What attention and MLP read, by norm; nothing where other things read it too."""
    if block.flow == "post":
        return []
    a = block.attention
    by_norm: dict[str, list[str]] = {a.norm: [a.query, a.key, a.value]}
    for _, mlp in block.ffns():
        by_norm.setdefault(mlp.norm, []).extend(mlp.into)
    if block.experts is not None:
        by_norm.pop(block.experts.norm, None)
    found = []
    for norm, layers in by_norm.items():
        gains = getattr(view.modules.get(norm), "weight", None)
        if not isinstance(gains, Tensor):
            continue
        readers = (Matrix(reader(view.model, name)) for name in dict.fromkeys(layers))
        found.append(Site(tuple(readers), norm=norm, offset=view.family.gain))
    return found


def _after_layers(view: View, block: Block) -> list[Site]:
    """What the output layers of attention and MLP read, where a layer makes it row by row."""
    model, a = view.model, block.attention
    found = []
    inputs = Matrix(reader(model, a.output)).read(model).shape[1]
    value = Matrix(writer(model, a.value))
    rows = len(value.read(model))
    fused = a.query == a.value
    clipped = view.family.clip and getattr(model.config, view.family.clip, None) is not None
    if rows == (3 if fused else 1) * inputs and not clipped:
        output = (Matrix(reader(model, a.output)),)
        found.append(Site(output, writer=value, start=rows - inputs, stop=rows))
    for _, mlp in block.ffns():
        last = Matrix(reader(model, mlp.output))
        inputs = last.read(model).shape[1]
        source = Matrix(writer(model, mlp.into[-1]))
        rows = len(source.read(model))
        gated = len(mlp.into) == 2 or rows == 2 * inputs
        if gated or _activation(model) == "relu":
            found.append(Site((last,), writer=source, start=rows - inputs, stop=rows))
    if block.experts is not None:
        fused_experts: Any = view.modules[block.experts.module]
        for e in range(len(fused_experts.down_proj)):
            last = Matrix(block.experts.module, "down_proj", e)
            source = Matrix(block.experts.module, "gate_up_proj", e)
            rows = len(source.read(model))
            found.append(Site((last,), writer=source, start=rows // 2, stop=rows))
    return found


def _activation(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    names = ("hidden_act", "activation_function", "hidden_activation", "activation")
    return next((str(v) for n in names if (v := getattr(config, n, None)) is not None), "")
