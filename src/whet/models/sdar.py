"""SDAR (arXiv 2510.06303): Qwen3 made block-causal, native.

Tensor names and configuration keys are Qwen3's. logits[i] predict token i: the shift of the
autoregressive model it was initialised from is gone. A token attends to every token of its own
block and of the blocks before it.

The published configurations name neither the mask token nor the block length. SDAR's training
code reads them as `mask_token_id` and `block_size`, and so does this configuration; without the
keys they are 151669 and 4. Checkpoints for longer blocks need `block_size` in their
configuration, or `model.config.block_length` set after loading.

Deviations from the published code: it leaves the block-causal mask to its caller, here a 2-D mask
or none makes the model build it; norms keep float64 models in float64 (the rotary embedding's
sines are rounded to float32, as in Qwen3); no key/value cache is built unless one is given.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.modeling_outputs import BaseModelOutputWithPast, MaskedLMOutput
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from whet.errors import CheckpointError
from whet.layers.norm import RMSNorm
from whet.models.generation import MaskedGenerationMixin
from whet.models.llada2 import block_causal_mask


class SDARConfig(Qwen3Config):  # type: ignore[misc]
    """Qwen3's configuration with a mask token and a block; defaults are SDAR-4B's sizes.

    The block is stored as `block_size` and also answers to `block_length`, whet's common name.
    Errors: CheckpointError naming the key, for what SDAR never shipped.
    """

    model_type = "sdar"
    attribute_map = {"block_length": "block_size"}  # noqa: RUF012 - transformers declares it so

    def __init__(
        self,
        *,
        vocab_size: int = 151936,
        hidden_size: int = 2560,
        num_hidden_layers: int = 36,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = 8,
        intermediate_size: int = 9728,
        block_size: int | None = None,
        block_length: int | None = None,
        mask_token_id: int = 151669,
        eos_token_id: int | list[int] | None = 151643,
        use_sliding_window: bool = False,
        layer_types: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if block_size is not None and block_length not in (None, block_size):
            raise CheckpointError(
                f"SDAR configuration has block_size={block_size!r} and "
                f"block_length={block_length!r}: they name the same thing and must be equal"
            )
        block = next((b for b in (block_size, block_length) if b is not None), 4)
        if not isinstance(block, int) or block < 1:
            raise CheckpointError(
                f"SDAR configuration has block_size={block!r}: it must be a whole number above 0"
            )
        if use_sliding_window or set(layer_types or ()) - {"full_attention"}:
            raise CheckpointError(
                f"SDAR configuration has use_sliding_window={use_sliding_window!r} and "
                f"layer_types={layer_types!r}: only full attention is supported"
            )
        if num_key_value_heads and num_attention_heads % num_key_value_heads:
            raise CheckpointError(
                f"SDAR configuration has num_key_value_heads={num_key_value_heads!r}: "
                f"it must divide num_attention_heads={num_attention_heads!r}"
            )
        kwargs.setdefault("rope_theta", 1e6)
        if kwargs.get("rope_scaling", ...) is None:
            del kwargs["rope_scaling"]  # the published null means none; transformers warns at it
        if kwargs.get("attn_implementation") == "flex_attention":
            del kwargs["attn_implementation"]  # published, for training; masks are tensors here
        kwargs.pop("use_cache", None)
        super().__init__(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
            intermediate_size=intermediate_size,
            eos_token_id=eos_token_id,
            use_sliding_window=use_sliding_window,
            layer_types=layer_types,
            use_cache=False,
            **kwargs,
        )
        self.block_size = block
        self.mask_token_id = mask_token_id


class SDARModel(Qwen3Model):  # type: ignore[misc]
    """Qwen3's stack under a block-causal mask, with norms that keep float64."""

    config_class = SDARConfig
    _supports_flash_attn = False  # takes no mask of this kind
    _supports_flex_attn = False

    def __init__(self, config: SDARConfig) -> None:
        super().__init__(config)
        for module in list(self.modules()):
            if hasattr(module, "is_causal"):
                module.is_causal = False
            for name, child in list(module.named_children()):
                if isinstance(child, Qwen3RMSNorm):
                    setattr(module, name, RMSNorm(child.weight.shape[0], child.variance_epsilon))

    def forward(
        self,
        input_ids: Int[Tensor, "B Q"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B Q"] | None = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "B Q D"] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm, [B, Q, hidden_size].

        attention_mask: see `block_causal_mask`. position_ids: 0, 1, … where left out; with
        padding on the left they must begin at the first real token, for blocks are blocks of
        positions. past_key_values: an object with transformers' `update(keys, values, layer)`,
        which gives the keys and values to attend to (`whet.models.kv`); where these are more than
        the queries, give the 4-D mask. None is built unasked, whatever `use_cache` says.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        mask = block_causal_mask(position_ids, attention_mask, self.config.block_length)
        if self.config._attn_implementation == "eager":  # adds the mask to the scores
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(
                ~mask, torch.finfo(x.dtype).min
            )
        return super().forward(
            # As a mapping from kinds of layers, masks are taken as they are.
            attention_mask={"full_attention": mask},
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=x,
            use_cache=False,
            **kwargs,
        )


class SDARForCausalLM(MaskedGenerationMixin, Qwen3ForCausalLM):  # type: ignore[misc]
    """The masked LM, under the class name of the published checkpoints."""

    config_class = SDARConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: SDARConfig) -> None:
        super(Qwen3ForCausalLM, self).__init__(config)  # whose own would build Qwen3's stack
        self.model = SDARModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def head(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Logits of hidden states that have passed the final norm."""
        logits: Tensor = self.lm_head(hidden)
        return logits

    def forward(
        self,
        input_ids: Int[Tensor, "B Q"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B Q"] | None = None,
        inputs_embeds: Float[Tensor, "B Q D"] | None = None,
        labels: Int[Tensor, "B Q"] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Logits [B, Q, V]; `logits_to_keep` as in transformers (last n, or indices of positions).

        `labels` (-100 = ignored) give the mean cross-entropy of the unshifted logits; training
        with the masked-diffusion objective is `whet.noise.masked`'s business.
        """
        outputs = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(outputs.last_hidden_state[:, keep])
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
