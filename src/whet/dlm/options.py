"""What every decoder can be told. Each decoder's own options extend this dataclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

from whet.dlm.eos import Eos
from whet.dlm.schedule import Windows
from whet.dlm.select import Selector
from whet.errors import OptionError
from whet.layers.sampling import CONFIDENCES, Confidence

Softmax = Literal["float32", "float64"]


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(ABC):
    """Options that every decoder has.

    block_length: positions per window, filled left to right (None: one window).
    temperature: 0 takes the most likely token, above 0 samples.
    confidence: `prob`, `margin` (gap of the two best) or `neg_entropy`, of the plain softmax.
    cfg_scale: classifier-free guidance, l_u + (s + 1)(l_c - l_u); 0 = off.
    eos: `none`, `suppress` (never predicted), `defer` (filled last) or `early_stop` (a finished
    window that holds EOS ends the text). softmax: precision of confidences. seed: of all noise.
    """

    block_length: int | None = None
    temperature: float = 0.0
    confidence: Confidence = "prob"
    cfg_scale: float = 0.0
    eos: Eos = "none"
    softmax: Softmax = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.block_length is not None and self.block_length < 1:
            raise OptionError(f"block_length={self.block_length} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise OptionError(f"temperature={self.temperature:g} must be 0 or more")
        if not 0 <= self.cfg_scale < float("inf"):
            raise OptionError(f"cfg_scale={self.cfg_scale:g} must be 0 (off) or more")
        for name, value, allowed in (
            ("confidence", self.confidence, CONFIDENCES),
            ("eos", self.eos, get_args(Eos)),
            ("softmax", self.softmax, get_args(Softmax)),
        ):
            if value not in allowed:
                raise OptionError(f"{name}={value!r} is not one of {', '.join(allowed)}")

    @abstractmethod
    def selector(self, windows: Windows) -> Selector:
        """The rule that says what to commit, for a canvas cut into `windows`."""
