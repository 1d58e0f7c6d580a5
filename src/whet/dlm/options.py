"""What every decoder can be told. Each decoder's own options extend this dataclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor

from whet.dlm.eos import Eos
from whet.dlm.forward import Cache, CachedForward, Forward, FullForward
from whet.dlm.provider import GuidedProvider, PlainProvider, Provider, SmoothProvider
from whet.dlm.schedule import Windows
from whet.dlm.select import Selector
from whet.dlm.state import Rows
from whet.errors import OptionError
from whet.layers.sampling import CONFIDENCES, Confidence, ConfidenceOf
from whet.models.denoiser import Denoiser

Softmax = Literal["float32", "float64"]


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(ABC):
    """Options that every decoder has.

    block_length: positions per window, filled left to right (None: one window; in block-causal
    models the model's own). temperature: 0 takes the most likely token, above 0 samples. top_p,
    top_k: sample among the likeliest tokens only. confidence: `prob`, `margin` (gap of the two
    best) or `neg_entropy`; confidence_of: of the `model`'s plain softmax or of the distribution
    that is `sampled` from. cfg_scale: classifier-free guidance, l_u + (s + 1)(l_c - l_u); 0 = off.
    smooth: IterSmooth, soft embeddings at masks with at most this weight (dInfer: 0.3); 0 = off.
    eos: `none`, `suppress` (never predicted), `defer` (filled last) or `early_stop` (a finished
    window that holds EOS ends the text). cache: `none`, `prefix`, `dual` (both approximate in
    models with full attention) or `block` (block-causal models). refresh_interval: steps between
    refreshes of a cache within a window (None: at its first step only). vicinity: columns fed
    beside the window on each side (dual cache). softmax: precision of confidences. seed: of all
    noise.
    """

    block_length: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    confidence: Confidence = "prob"
    confidence_of: ConfidenceOf = "model"
    cfg_scale: float = 0.0
    smooth: float = 0.0
    eos: Eos = "none"
    cache: Cache = "none"
    refresh_interval: int | None = None
    vicinity: int = 0
    softmax: Softmax = "float32"
    seed: int = 0

    # What kind of rule it is. branches: several hypotheses per prompt. uniform: works on canvases
    # of random tokens instead of masks.
    branches: ClassVar[bool] = False
    uniform: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, lowest in (
            ("block_length", 1),
            ("top_k", 1),
            ("refresh_interval", 1),
            ("vicinity", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise OptionError(f"{name}={value} must be at least {lowest}")
        if not 0 <= self.temperature < float("inf"):
            raise OptionError(f"temperature={self.temperature:g} must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p={self.top_p:g} must be above 0 and at most 1")
        if not 0 <= self.cfg_scale < float("inf"):
            raise OptionError(f"cfg_scale={self.cfg_scale:g} must be 0 (off) or more")
        if not 0 <= self.smooth <= 1:
            raise OptionError(f"smooth={self.smooth:g} must be between 0 (off) and 1")
        for name, value, allowed in (
            ("confidence", self.confidence, CONFIDENCES),
            ("confidence_of", self.confidence_of, get_args(ConfidenceOf)),
            ("eos", self.eos, get_args(Eos)),
            ("cache", self.cache, get_args(Cache)),
            ("softmax", self.softmax, get_args(Softmax)),
        ):
            if value not in allowed:
                raise OptionError(f"{name}={value!r} is not one of {', '.join(allowed)}")
        if self.refresh_interval is not None and self.cache not in ("prefix", "dual"):
            raise OptionError(
                f"refresh_interval={self.refresh_interval} needs cache=prefix or cache=dual: "
                f"cache={self.cache} has nothing to refresh"
            )
        if self.vicinity and self.cache != "dual":
            raise OptionError(
                f"vicinity={self.vicinity} needs cache=dual: cache={self.cache} feeds what lies "
                "beside the window anyway or not at all"
            )
        if self.smooth and self.cfg_scale:
            raise OptionError(
                f"smooth={self.smooth:g} with cfg_scale={self.cfg_scale:g}: soft embeddings of the "
                "guided mixture would leak the prompt into the unconditional half; use one"
            )

    @abstractmethod
    def selector(self, denoiser: Denoiser) -> Selector:
        """The rule that says what to commit."""

    @property
    def edits(self) -> bool:
        """Whether filled tokens may be overwritten."""
        return False

    @property
    def revises(self) -> bool:
        """Whether a token that was shown as committed may still change."""
        return self.branches or self.edits or self.uniform

    @property
    def official_eos(self) -> bool:
        """Whether `eos=defer` works as in LLaDA's official code, by `ignored_ids`."""
        return False

    def ignored_ids(self, denoiser: Denoiser) -> tuple[int, ...]:
        """Tokens that count as impossible when confidences are taken (official LLaDA)."""
        return ()

    def planned_steps(self, windows: Windows) -> int:
        """Steps planned per window, for rules with a schedule. Errors: OptionError."""
        return windows.block_length

    def temperatures(self, rows: Rows) -> float | Tensor:
        """Temperature of this step: one, or one per row."""
        return self.temperature

    def token_noise(self, rows: Rows, asked: Bool[Tensor, "R G"]) -> Float[Tensor, " N"] | None:
        """Uniform numbers by which tokens are drawn; None: fresh ones in every step."""
        return None

    def provider(self, denoiser: Denoiser, forward: Forward) -> Provider:
        """Where logits come from."""
        if self.cfg_scale:
            return GuidedProvider(denoiser, forward, self.cfg_scale)
        if self.smooth:
            return SmoothProvider(denoiser, forward, self.smooth)
        return PlainProvider(denoiser, forward)

    def forward(self, denoiser: Denoiser) -> Forward:
        """How the model is run. Errors: OptionError where a cache does not fit the model."""
        if self.cache == "none":
            return FullForward(denoiser)
        if self.cache == "block" and denoiser.block_length is None:
            raise OptionError(
                "cache=block is for block-causal models: this model attends to the whole canvas, "
                "use cache=prefix or cache=dual"
            )
        return CachedForward(denoiser, self.cache, self.refresh_interval, self.vicinity)

    def windows(self, denoiser: Denoiser, length: int, before: int) -> Windows:
        """The windows of `length` positions behind `before` tokens. Errors: OptionError."""
        if denoiser.block_length is None:
            return Windows.cut(length, self.block_length)
        if self.block_length not in (None, denoiser.block_length):
            raise OptionError(
                f"block_length={self.block_length}: this model was trained with blocks of "
                f"{denoiser.block_length}, leave block_length out"
            )
        return Windows.aligned(length, denoiser.block_length, before)

    def check(self, denoiser: Denoiser, gen_length: int) -> None:
        """Whether canvases with `gen_length` positions to fill can be decoded so.

        Errors: OptionError with the reason why not.
        """
        self.check_model(denoiser)
        self.forward(denoiser)
        self.planned_steps(self.windows(denoiser, gen_length, 0))

    def check_model(self, denoiser: Denoiser) -> None:
        """Errors: OptionError where the rule does not fit the model."""
        if self.uniform != (denoiser.traits.noise == "uniform"):
            wanted, instead = "masks", "the decoder diffusion-gemma"
            if self.uniform:
                wanted, instead = "random tokens", "another decoder"
            raise OptionError(
                f"{type(self).__name__} decodes canvases of {wanted}; a model of type "
                f"{denoiser.model.config.model_type!r} was trained on the other kind: use {instead}"
            )
