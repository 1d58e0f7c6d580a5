"""The map of the house: every method, what it is, where its parts are. Data only, nothing heavy.

The command line, the Python API, the benchmarks, the reference pages and the conformance tests
all read these rows. Parts are strings, resolved on first use, so listing the catalogue never
imports torch. Packages elsewhere add rows through the entry-point group `whet.methods`: each entry
point names an iterable of `Method`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from whet.errors import OptionError, nearest


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row.

    id: the name users type. kind: `system` = a published method with its own proof (`reproduce`
    part, record under `results/reproduce`), `baseline` = a rule everyone compares with.
    parts: verb -> "module:attribute". A `decode` part is a frozen options dataclass whose
    `selector()` builds the rule; `generate` is its `custom_generate` callable; `train` builds a
    training method from a recipe; `tasks` are suites by level; `layers` are functions and modules
    to build with; `reproduce` runs the small-scale proof.
    applies_to: kinds of model. needs: extras. conflicts: ids it cannot be combined with.
    order: rank in a chain. lossless: output distribution equals the baseline's.
    """

    id: str
    kind: Literal["system", "baseline"]
    summary: str
    parts: Mapping[str, str]
    title: str = ""
    arxiv: str | None = None
    aliases: tuple[str, ...] = ()
    applies_to: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    order: int = 0
    lossless: bool = False


FULL_ATTENTION = ("llada", "dream")
BLOCK_CAUSAL = ("sdar", "llada2_moe")
MASKED_LMS = FULL_ATTENTION + BLOCK_CAUSAL


def _decoder(
    name: str, part: str, shim: str | None, title: str, arxiv: str, summary: str, **more: Any
) -> Method:
    """A baseline decoder: its options at `part` ("module:Class"), its shim (if any) beside them."""
    parts = {"decode": f"whet.dlm.{part}"}
    if shim is not None:
        parts["generate"] = f"whet.dlm.{part.partition(':')[0]}:{shim}"
    more.setdefault("applies_to", MASKED_LMS)
    return Method(
        id=name, kind="baseline", title=title, arxiv=arxiv, summary=summary, parts=parts, **more
    )


def _compressor(name: str, part: str, title: str, arxiv: str | None, summary: str) -> Method:
    """A baseline of compression: the options of a step at `baselines.{part}`."""
    parts = {"compress": f"whet.compress.baselines.{part}"}
    return Method(id=name, kind="baseline", title=title, arxiv=arxiv, summary=summary, parts=parts)


_ROWS: tuple[Method, ...] = (
    Method(
        id="low-confidence",
        kind="baseline",
        title="Low-confidence remasking",
        aliases=("greedy",),
        arxiv="2502.09992",
        summary="LLaDA's rule: commit the most confident tokens, a fixed number per step.",
        parts={
            "decode": "whet.dlm.low_confidence:LowConfidence",
            "generate": "whet.dlm.low_confidence:low_confidence",
        },
        applies_to=MASKED_LMS,
    ),
    Method(
        id="random",
        kind="baseline",
        title="Random remasking",
        arxiv="2502.09992",
        summary="Commit random positions, a fixed number per step.",
        parts={
            "decode": "whet.dlm.low_confidence:RandomOrder",
            "generate": "whet.dlm.low_confidence:random_order",
        },
        applies_to=MASKED_LMS,
    ),
    Method(
        id="threshold",
        kind="baseline",
        title="Confidence threshold",
        arxiv="2505.22618",
        summary="Fast-dLLM's rule: commit every token above a confidence, at least one per step.",
        parts={
            "decode": "whet.dlm.threshold:Threshold",
            "generate": "whet.dlm.threshold:threshold",
        },
        applies_to=MASKED_LMS,
    ),
    _decoder(
        "ancestral",
        "ancestral:Ancestral",
        "ancestral",
        "Ancestral sampling",
        "2406.07524",
        "MDLM's sampler: positions are revealed at random, as a fixed map of the seed.",
    ),
    _decoder(
        "factor",
        "factor:Factor",
        "factor",
        "Factor rule",
        "2505.22618",
        "Fast-dLLM's second rule: the more tokens at once, the surer each must be.",
    ),
    _decoder(
        "entropy-threshold",
        "entropy:EntropyThreshold",
        "entropy_threshold",
        "Entropy threshold",
        "2509.26488",
        "dParallel's rule: commit every token of low entropy, at least one per step.",
    ),
    _decoder(
        "entropy-bound",
        "entropy:EntropyBound",
        "entropy_bound",
        "Entropy-bounded unmasking (EB sampler)",
        "2505.24857",
        "Commit tokens by entropy while their sum stays within a bound.",
    ),
    _decoder(
        "dream",
        "dream:Dream",
        "dream",
        "Dream's samplers",
        "2508.15487",
        "Dream's four algorithms: origin, maskgit_plus, topk_margin, entropy.",
    ),
    _decoder(
        "dinfer-threshold",
        "dinfer:DInferThreshold",
        "dinfer_threshold",
        "dInfer's threshold",
        "2510.08666",
        "A threshold that takes ties with the best along; may fall step by step.",
    ),
    _decoder(
        "credit",
        "dinfer:Credit",
        "credit",
        "Credit decoding",
        "2510.08666",
        "Tokens that stay a position's favourite gain credit, then a threshold.",
    ),
    _decoder(
        "hierarchy",
        "dinfer:Hierarchy",
        "hierarchy",
        "Hierarchical decoding",
        "2510.08666",
        "Commit the sure ones, and the best of every run of masks.",
    ),
    _decoder(
        "sdar",
        "block:Dynamic",
        "sdar",
        "Dynamic low-confidence remasking",
        "2510.06303",
        "SDAR's rule: all above a threshold if they meet the step's quota, else the quota.",
    ),
    _decoder(
        "llada2",
        "block:LLaDA2",
        "llada2",
        "LLaDA2.0's rule",
        "2512.15745",
        "The dynamic rule at 0.95; edit_threshold adds LLaDA2.1's edits.",
    ),
    _decoder(
        "llada2.1",
        "block:LLaDA21",
        "llada21",
        "LLaDA2.1's rule: edits",
        "2602.08676",
        "The dynamic rule; filled tokens the model no longer believes in are replaced.",
    ),
    _decoder(
        "diffusion-gemma",
        "gemma:DiffusionGemma",
        None,  # transformers' class has a generate() of its own, without custom_generate
        "DiffusionGemma's accept and renoise",
        "2505.24857",
        "Random tokens, accepted by entropy or made random again until a block is stable.",
        applies_to=("diffusion_gemma",),
    ),
    Method(
        id="nap",
        kind="system",
        title="NAP: parallel reasoning paths",
        arxiv="2602.23225",
        summary="Train on several independent reasoning paths, and advance all in every step.",
        parts={
            "decode": "whet.dlm.nap:Nap",
            "generate": "whet.dlm.nap:nap",
            "train": "whet.dlm.nap.training:NapTraining",
            "data": "whet.dlm.nap.data:build_path_sets",
            "reproduce": "whet.reproduce.nap:NAP",
        },
        applies_to=FULL_ATTENTION,
        needs=("data",),
    ),
    Method(
        id="pbs",
        kind="baseline",
        title="Position beam search",
        arxiv="2602.10953",
        summary="Keep the K best orders of commitment; one token per hypothesis and step.",
        parts={
            "decode": "whet.dlm.soar:PositionBeamSearch",
            "generate": "whet.dlm.soar:position_beam_search",
        },
        applies_to=MASKED_LMS,
    ),
    Method(
        id="soar",
        kind="system",
        title="SOAR: Search or Accelerate",
        arxiv="2602.10953",
        summary="Search over positions when unsure, commit many at once when sure.",
        parts={
            "decode": "whet.dlm.soar:Soar",
            "generate": "whet.dlm.soar:soar",
            "reproduce": "whet.reproduce.soar:SOAR",
        },
        applies_to=MASKED_LMS,
    ),
    Method(
        id="adjust",
        kind="system",
        title="ADJUST: approximate joint sampling",
        arxiv="2509.22738",
        summary="One small layer between full forwards: several tokens per forward, drawn jointly.",
        parts={
            "decode": "whet.dlm.adjust:Adjust",
            "generate": "whet.dlm.adjust:adjust",
            "train": "whet.dlm.adjust:AdjustTraining",
            "reproduce": "whet.reproduce.adjust:ADJUST",
        },
        applies_to=FULL_ATTENTION,
    ),
    Method(
        id="dparallel",
        kind="system",
        title="dParallel: certainty-forcing distillation",
        arxiv="2509.26488",
        summary="Fine-tune a masked LM on its own answers to be sure of many tokens at once.",
        parts={
            "train": "whet.dlm.dparallel:DParallelTraining",
            "decode": "whet.dlm.entropy:EntropyThreshold",
            "generate": "whet.dlm.entropy:entropy_threshold",
            "reproduce": "whet.reproduce.dparallel:DPARALLEL",
        },
        applies_to=MASKED_LMS,  # its rule; students are LLaDA or Dream
        needs=("data",),
    ),
    Method(
        id="masked",
        kind="baseline",
        title="Masked-diffusion training",
        arxiv="2502.09992",
        summary="Train a masked LM with the 1/t-weighted objective on the response.",
        parts={"train": "whet.dlm.masked:MaskedTraining"},
        applies_to=MASKED_LMS,
    ),
    Method(
        id="mcd",
        kind="system",
        title="Masked consistency distillation (MCD)",
        arxiv="2602.00792",
        summary="Distil a masked LM to sample in few steps, from masks on one trajectory.",
        parts={
            "train": "whet.dlm.mcd:McdTraining",
            "reproduce": "whet.reproduce.mcd:MCD",
        },
        applies_to=FULL_ATTENTION,
    ),
    Method(
        id="beyondbench",
        kind="system",
        title="BeyondBench",
        arxiv="2509.24210",
        summary="Problems generated afresh and checked by computation: 44 tasks, 117 variations.",
        parts={
            "tasks": "whet.tasks.beyondbench:SUITES",
            "reproduce": "whet.reproduce.beyondbench:BEYONDBENCH",
        },
        needs=("solvers",),
    ),
    Method(
        id="straight-through",
        kind="system",
        title="Gradients through stochastic gates",
        arxiv="1308.3432",
        summary="Four estimators of gradients through gates that are on or off; sparse experts.",
        parts={
            "layers": "whet.layers.estimators:stochastic_binary",
            "reproduce": "whet.reproduce.straight_through:STRAIGHT_THROUGH",
        },
    ),
    Method(
        id="elas",
        kind="system",
        title="ELAS: 2:4 sparse activations in low-rank pre-training",
        arxiv="2605.03667",
        summary="Low-rank Llamas whose squared-ReLU activations keep two of every four entries.",
        parts={
            "train": "whet.train.elas:ElasTraining",
            "layers": "whet.layers.relu2_linear:relu2_linear",
            "reproduce": "whet.reproduce.elas:ELAS",
        },
        applies_to=("llama",),
    ),
    Method(
        id="causal",
        kind="baseline",
        title="Next-token training",
        summary="Train an autoregressive LM by cross-entropy on the response.",
        parts={"train": "whet.ar.causal:CausalTraining"},
        applies_to=("llama",),
    ),
    Method(
        id="layer-pruning",
        kind="system",
        title="Layer pruning",
        arxiv="2602.01997",
        summary="Drop whole blocks, chosen by one of nine criteria; the result is a stock model.",
        parts={
            "compress": "whet.compress.layer_pruning:LayerPruning",
            "reproduce": "whet.reproduce.layer_pruning:LAYER_PRUNING",
        },
    ),
    Method(
        id="slicegpt",
        kind="system",
        title="SliceGPT",
        arxiv="2401.15024",
        summary="Rotate the residual stream to its principal directions and slice off the small.",
        parts={
            "compress": "whet.compress.slicegpt:SliceGPT",
            "reproduce": "whet.reproduce.slicegpt:SLICEGPT",
        },
    ),
    Method(
        id="shortgpt",
        kind="baseline",
        title="ShortGPT",
        arxiv="2403.03853",
        summary="Drop the blocks that turn the stream least, in one shot.",
        parts={"compress": "whet.compress.layer_pruning:ShortGPT"},
    ),
    Method(
        id="heal",
        kind="baseline",
        title="Healing",
        arxiv="2602.01997",
        summary="Fine-tune what is left on the original's own answers, on known ones or on text.",
        parts={"compress": "whet.compress.heal:Heal"},
        needs=("lora", "data"),
    ),
    _compressor(
        "channels",
        "width:Channels",
        "Channel pruning by magnitude",
        None,
        "Every MLP keeps the inner channels of largest weights; a stock model stays.",
    ),
    _compressor(
        "magnitude",
        "pruning:Magnitude",
        "Magnitude pruning",
        "1506.02626",
        "The smallest weights become 0, a share of each layer or 2 of every 4.",
    ),
    _compressor(
        "wanda",
        "pruning:Wanda",
        "Wanda",
        "2306.11695",
        "Weights become 0 by their size times the norm of their input; OWL's shares by block.",
    ),
    _compressor(
        "sparsegpt",
        "pruning:SparseGPT",
        "SparseGPT",
        "2301.00774",
        "Weights become 0, and those that stay make up for them.",
    ),
    _compressor(
        "rtn",
        "quantizing:RTN",
        "Round to nearest",
        None,
        "Every weight to the nearest number of its grid, without data.",
    ),
    _compressor(
        "gptq",
        "quantizing:GPTQ",
        "GPTQ",
        "2210.17323",
        "Rounded column by column; weights not yet rounded make up for the errors.",
    ),
    _compressor(
        "awq",
        "scaling:AWQ",
        "AWQ",
        "2306.00978",
        "Scales, found by search, that spare the weights of strong inputs.",
    ),
    _compressor(
        "smoothquant",
        "scaling:SmoothQuant",
        "SmoothQuant",
        "2211.10438",
        "8-bit weights and activations; part of the activations' range goes into the weights.",
    ),
    _compressor(
        "svd",
        "factoring:SVD",
        "Truncated singular values",
        None,
        "Every layer becomes two thin ones: the nearest weight of that rank.",
    ),
    _compressor(
        "asvd",
        "factoring:ASVD",
        "ASVD",
        "2312.05821",
        "Low rank, where errors count by the strength of their input channel.",
    ),
    _compressor(
        "svd-llm",
        "factoring:SVDLLM",
        "SVD-LLM",
        "2403.07378",
        "Low rank, with the least error of the outputs on the calibration tokens.",
    ),
)


@functools.cache
def methods() -> Mapping[str, Method]:
    """All rows by id: whet's own, then those of installed packages.

    Errors: OptionError if two rows share an id or alias.
    """
    rows = list(_ROWS)
    for entry in importlib.metadata.entry_points(group="whet.methods"):
        rows.extend(entry.load())
    names: dict[str, str] = {}
    for row in rows:
        for name in (row.id, *row.aliases):
            if name in names:
                raise OptionError(f"method name {name!r} is used by {names[name]!r} and {row.id!r}")
            names[name] = row.id
    return {row.id: row for row in rows}


def get(name: str, verb: str | None = None) -> Method:
    """The row called `name` (id or alias), which must have a part for `verb` if that is given.

    Errors: OptionError with the nearest match.
    """
    usable = {i: m for i, m in methods().items() if verb is None or verb in m.parts}
    names = {n: m for m in usable.values() for n in (m.id, *m.aliases)}
    if name in names:
        return names[name]
    kind = f"method for `{verb}`" if verb else "method"
    raise OptionError(f"unknown {kind} {name!r}: {nearest(name, names)}")


def resolve(name: str, verb: str) -> Any:
    """Import and return the part of method `name` for `verb`.

    Errors: OptionError where the method or the part does not exist.
    """
    target = get(name, verb).parts[verb]
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
