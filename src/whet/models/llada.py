"""LLaDA (arXiv 2502.09992): a bidirectional Llama-shaped masked language model, native.

Reads directories in the published layout (OLMo-style configuration keys, tensor names
`model.transformer.*`) without remote code. logits[i] predict token i; there is no time input.

Deviations from the published code: RMS norms run in at least float32 but stay float64 in
float64 models; rotary positions may be given (`position_ids`), which left padding needs only for
parity with other families, since rotary scores depend on differences of positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from whet.errors import CheckpointError
from whet.layers.norm import RMSNorm
from whet.models.generation import MaskedGenerationMixin


class LLaDAConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration under the keys of the published checkpoints; defaults are LLaDA-8B's.

    Errors: CheckpointError naming the key, where a variant is asked for that LLaDA never shipped.
    """

    model_type = "llada"
    attribute_map = {  # noqa: RUF012 - transformers declares it so
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "tie_word_embeddings": "weight_tying",
    }

    def __init__(
        self,
        *,
        d_model: int = 4096,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        n_layers: int = 32,
        mlp_hidden_size: int | None = 12288,
        mlp_ratio: int = 4,
        vocab_size: int = 126464,
        embedding_size: int | None = None,
        max_sequence_length: int = 4096,
        rope_theta: float = 500000.0,
        rms_norm_eps: float = 1e-5,
        weight_tying: bool = False,
        include_bias: bool = False,
        include_qkv_bias: bool = False,
        init_std: float = 0.02,
        mask_token_id: int = 126336,
        eos_token_id: int | None = 126081,
        pad_token_id: int | None = 126081,
        layer_norm_type: str = "rms",
        activation_type: str = "silu",
        block_type: str = "llama",
        rope: bool = True,
        alibi: bool = False,
        input_emb_norm: bool = False,
        scale_logits: bool = False,
        attention_layer_norm: bool = False,
        multi_query_attention: bool | None = None,
        **kwargs: Any,
    ) -> None:
        fixed = {
            "layer_norm_type": (layer_norm_type, "rms"),
            "activation_type": (activation_type, "silu"),
            "block_type": (block_type, "llama"),
            "rope": (rope, True),
            "alibi": (alibi, False),
            "input_emb_norm": (input_emb_norm, False),
            "scale_logits": (scale_logits, False),
            "attention_layer_norm": (attention_layer_norm, False),
            "multi_query_attention": (multi_query_attention or False, False),
        }
        for key, (value, supported) in fixed.items():
            if value != supported:
                raise CheckpointError(
                    f"LLaDA configuration has {key}={value!r}: only {supported!r} is supported"
                )
            setattr(self, key, value)
        n_kv_heads = n_kv_heads if n_kv_heads is not None else n_heads
        for key, size in {
            "d_model": d_model,
            "n_heads": n_heads,
            "n_kv_heads": n_kv_heads,
            "n_layers": n_layers,
            "vocab_size": vocab_size,
            "max_sequence_length": max_sequence_length,
        }.items():
            if not isinstance(size, int) or size < 1:
                raise CheckpointError(
                    f"LLaDA configuration has {key}={size!r}: it must be a whole number above 0"
                )
        if d_model % (2 * n_heads):
            raise CheckpointError(
                f"LLaDA configuration has n_heads={n_heads}: d_model={d_model} must divide into "
                "that many heads of even width"
            )
        if n_heads % n_kv_heads:
            raise CheckpointError(
                f"LLaDA configuration has n_kv_heads={n_kv_heads}: it must divide n_heads={n_heads}"
            )
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.n_layers = n_layers
        self.mlp_ratio = mlp_ratio
        self.mlp_hidden_size = mlp_hidden_size or mlp_ratio * d_model
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size or vocab_size
        self.max_sequence_length = max_sequence_length
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.weight_tying = weight_tying
        self.include_bias = include_bias
        self.include_qkv_bias = include_qkv_bias
        self.init_std = init_std
        self.mask_token_id = mask_token_id
        kwargs.pop("use_cache", None)  # published configurations carry it; there is no cache
        super().__init__(eos_token_id=eos_token_id, pad_token_id=pad_token_id, **kwargs)
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.use_cache = False


def rotary(
    positions: Int[Tensor, "#B L"], head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "#B 1 L D"], Float[Tensor, "#B 1 L D"]]:
    """Cosines and sines of the rotate-half rotary embedding, in `dtype` (at least float32)."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=dtype) / head_dim
    angles = positions[..., None].to(dtype) * theta**-exponent
    both = torch.cat((angles, angles), -1)[:, None]
    return both.cos(), both.sin()


def rotate(
    x: Float[Tensor, "B H L D"], cos: Float[Tensor, "#B 1 L D"], sin: Float[Tensor, "#B 1 L D"]
) -> Float[Tensor, "B H L D"]:
    """Apply the rotary embedding in the precision of `cos`, return in that of `x`."""
    first, second = x.chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return (x.to(cos.dtype) * cos + turned.to(cos.dtype) * sin).to(x.dtype)


class LLaDABlock(GradientCheckpointingLayer):  # type: ignore[misc]
    """x + attn_out(attention(attn_norm x)), then x + ff_out(silu(ff_proj y) * up_proj y)."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        d = config.d_model
        kv = d // config.n_heads * config.n_kv_heads
        bias, qkv_bias = config.include_bias, config.include_bias or config.include_qkv_bias
        self.attn_norm = RMSNorm(d, config.rms_norm_eps)
        self.ff_norm = RMSNorm(d, config.rms_norm_eps)
        self.q_proj = nn.Linear(d, d, bias=qkv_bias)
        self.k_proj = nn.Linear(d, kv, bias=qkv_bias)
        self.v_proj = nn.Linear(d, kv, bias=qkv_bias)
        self.attn_out = nn.Linear(d, d, bias=bias)
        self.ff_proj = nn.Linear(d, config.mlp_hidden_size, bias=bias)
        self.up_proj = nn.Linear(d, config.mlp_hidden_size, bias=bias)
        self.ff_out = nn.Linear(config.mlp_hidden_size, d, bias=bias)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: Any = None,
        layer: int = 0,
    ) -> Tensor:
        x = x + self.attend(self.attn_norm(x), cos, sin, mask, cache, layer)
        return x + self.feed_forward(self.ff_norm(x))

    def attend(
        self,
        y: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: Any = None,
        layer: int = 0,
    ) -> Tensor:
        """What the attention adds to the stream; y: the normalised stream."""
        q, k, v = (
            projection(y).unflatten(-1, (heads, -1)).transpose(1, 2)
            for projection, heads in (
                (self.q_proj, self.n_heads),
                (self.k_proj, self.n_kv_heads),
                (self.v_proj, self.n_kv_heads),
            )
        )
        k = rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        attended = F.scaled_dot_product_attention(
            rotate(q, cos, sin),
            k,
            v,
            attn_mask=mask,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        out: Tensor = self.attn_out(attended.transpose(1, 2).flatten(2))
        return out

    def feed_forward(self, y: Tensor) -> Tensor:
        """What the MLP adds to the stream; y: the normalised stream."""
        out: Tensor = self.ff_out(F.silu(self.ff_proj(y)) * self.up_proj(y))
        return out


class LLaDAPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What the base and the head share with transformers' loading and saving code."""

    config_class = LLaDAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LLaDABlock"]  # noqa: RUF012
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.init_std)
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)
        elif isinstance(module, RMSNorm) and module.affine:
            nn.init.ones_(module.weight)


class LLaDAModel(LLaDAPreTrainedModel):
    """Embeddings, blocks and final norm; holds the output matrix too, as the checkpoints do."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        parts: dict[str, nn.Module] = {
            "wte": nn.Embedding(config.embedding_size, config.d_model),
            "blocks": nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers)),
            "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
        }
        if not config.weight_tying:
            parts["ff_out"] = nn.Linear(
                config.d_model, config.embedding_size, bias=config.include_bias
            )
        self.transformer = nn.ModuleDict(parts)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer["wte"] = value

    def forward(
        self,
        input_ids: Int[Tensor, "B L"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        inputs_embeds: Float[Tensor, "B L D"] | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Hidden states after the final norm, [B, L, d_model].

        attention_mask: [B, L] with 1 at real tokens, or [B, 1, Q, L] boolean (True = attend) or
        additive. Every query attends to every unmasked key; there is no causal mask.
        past_key_values: an object with transformers' `update(keys, values, layer)`, which gives
        the keys and values to attend to (`whet.models.kv`); none is built unasked.
        """
        x = self.transformer["wte"](input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        wide = torch.promote_types(x.dtype, torch.float32)
        head_dim = self.config.d_model // self.config.n_heads
        cos, sin = rotary(position_ids, head_dim, self.config.rope_theta, wide)
        if attention_mask is not None:
            if attention_mask.dim() == 2:
                attention_mask = attention_mask[:, None, None].bool()
            elif attention_mask.dtype != torch.bool:
                attention_mask = attention_mask.to(x.dtype)
        blocks: Any = self.transformer["blocks"]
        for layer, block in enumerate(blocks):
            x = block(x, cos, sin, attention_mask, past_key_values, layer)
        return BaseModelOutput(last_hidden_state=self.transformer["ln_f"](x))


class LLaDAModelLM(MaskedGenerationMixin, LLaDAPreTrainedModel):
    """The masked LM, under the class name of the published checkpoints."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.model.transformer["ff_out"] if not self.config.weight_tying else None

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.model.transformer["ff_out"] = value

    def head(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Logits of hidden states that have passed the final norm."""
        if self.config.weight_tying:
            embedding: Any = self.model.get_input_embeddings()
            return F.linear(hidden, embedding.weight)
        logits: Tensor = self.model.transformer["ff_out"](hidden)
        return logits

    def forward(
        self,
        input_ids: Int[Tensor, "B L"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B L"] | None = None,
        inputs_embeds: Float[Tensor, "B L D"] | None = None,
        labels: Int[Tensor, "B L"] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Logits [B, L, V]; `logits_to_keep` as in transformers (last n, or indices of positions).

        `labels` (-100 = ignored) give the mean cross-entropy of the unshifted logits; training
        with the masked-diffusion objective is `whet.noise.masked`'s business.
        """
        hidden = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs
        ).last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(hidden[:, keep])
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)
