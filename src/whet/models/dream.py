"""Dream (arXiv 2508.15487): Qwen2.5 made bidirectional, with logits shifted by one, native.

Tensor names and configuration keys are Qwen2's. logits[i] predict token i + 1, as in the
autoregressive model it was initialised from; `whet.models.denoiser` undoes the shift.

Deviations from the published code: norms keep float64 models in float64; no key/value cache is
built unless asked for; the trained context is 2,048 tokens although the configuration says more.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2TokenizerFast
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from whet.layers.norm import RMSNorm
from whet.models.generation import MaskedGenerationMixin


class DreamConfig(Qwen2Config):  # type: ignore[misc]
    """Qwen2's configuration with a mask token and full attention; defaults are Dream-7B's sizes."""

    model_type = "Dream"

    def __init__(
        self,
        *,
        vocab_size: int = 152064,
        hidden_size: int = 3584,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 28,
        num_key_value_heads: int = 4,
        intermediate_size: int = 18944,
        mask_token_id: int = 151666,
        eos_token_id: int | None = 151643,
        pad_token_id: int | None = 151643,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("rope_theta", 1e6)
        if kwargs.get("rope_scaling", ...) is None:
            del kwargs["rope_scaling"]  # the published null means none; transformers warns at it
        for fixed in ("is_causal", "use_cache"):
            kwargs.pop(fixed, None)
        super().__init__(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
            intermediate_size=intermediate_size,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            use_cache=False,
            **kwargs,
        )
        self.mask_token_id = mask_token_id
        # transformers' mask builder then makes a bidirectional mask.
        self.is_causal = False


class DreamTokenizerFast(Qwen2TokenizerFast):  # type: ignore[misc]
    """Qwen2's byte-level tokenizer under Dream's name (the published one is remote code)."""


def _make_bidirectional(model: nn.Module) -> None:
    """Turn a Qwen2 stack into Dream's, in place: full attention, norms that keep float64."""
    for module in list(model.modules()):
        if hasattr(module, "is_causal"):
            module.is_causal = False  # type: ignore[assignment]
        for name, child in list(module.named_children()):
            if isinstance(child, Qwen2RMSNorm):
                setattr(module, name, RMSNorm(child.weight.shape[0], child.variance_epsilon))


class DreamModel(MaskedGenerationMixin, Qwen2ForCausalLM):  # type: ignore[misc]
    """The masked LM, under the class name of the published checkpoints."""

    config_class = DreamConfig

    def __init__(self, config: DreamConfig) -> None:
        super().__init__(config)
        _make_bidirectional(self.model)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states that have passed the final norm (still shifted by one)."""
        logits: Tensor = self.lm_head(hidden)
        return logits
