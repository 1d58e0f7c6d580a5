"""LLaDA2.0 (arXiv 2512.15745) and LLaDA2.1 (arXiv 2602.08676): a block-causal MoE, native.

Reads directories in the published layout: configuration keys and tensor names of the Bailing MoE
V2 models it was made from, one module per expert. logits[i] predict token i; there is no time
input. A token attends to every token of its own block and of the blocks before it.

Routing: sigmoid scores s = sigmoid(W x); with the load-balancing bias b added, s + b chooses the
experts (the best groups by the sum of their two best entries, then the best experts of these);
the chosen experts' s alone, scaled to sum 1 and multiplied by a constant, weigh their outputs. A
shared expert sees every token.

Deviations from the published code: it leaves the block-causal mask to its caller, here a 2-D mask
or none makes the model build it; norms, rotary embedding and router run in at least float32 and
in float64 inside float64 models; no dropout, no load-balancing loss, no update of the bias.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from whet.errors import CheckpointError, InputError
from whet.layers.norm import RMSNorm
from whet.models.generation import MaskedGenerationMixin
from whet.models.llada import rotary, rotate


class LLaDA2MoeConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration under the keys of the published checkpoints; defaults are LLaDA2.1-mini's.

    block_length is whet's own key: the published files do not say it. Errors: CheckpointError
    naming the key, where a variant is asked for that LLaDA2 never shipped.
    """

    model_type = "llada2_moe"

    def __init__(
        self,
        *,
        vocab_size: int = 157184,
        hidden_size: int = 2048,
        intermediate_size: int = 5120,
        num_hidden_layers: int = 20,
        num_attention_heads: int = 16,
        num_key_value_heads: int | None = 4,
        head_dim: int | None = None,
        max_position_embeddings: int = 32768,
        rope_theta: float = 600000.0,
        partial_rotary_factor: float = 0.5,
        rotary_dim: int | None = None,
        rope_parameters: dict[str, Any] | None = None,
        rope_scaling: dict[str, Any] | None = None,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        use_qkv_bias: bool = False,
        use_bias: bool = False,
        num_experts: int = 256,
        num_experts_per_tok: int = 8,
        num_shared_experts: int | None = 1,
        moe_intermediate_size: int = 512,
        first_k_dense_replace: int = 1,
        n_group: int = 8,
        topk_group: int = 4,
        routed_scaling_factor: float = 2.5,
        block_length: int = 32,
        mask_token_id: int = 156895,
        eos_token_id: int | list[int] | None = 156892,
        pad_token_id: int | None = 156892,
        hidden_act: str = "silu",
        score_function: str = "sigmoid",
        norm_topk_prob: bool = True,
        moe_router_enable_expert_bias: bool = True,
        use_qk_norm: bool = True,
        use_sliding_window: bool = False,
        norm_head: bool = False,
        norm_softmax: bool = False,
        **kwargs: Any,
    ) -> None:
        fixed = {
            "hidden_act": (hidden_act, "silu"),
            "score_function": (score_function, "sigmoid"),
            "norm_topk_prob": (norm_topk_prob, True),
            "moe_router_enable_expert_bias": (moe_router_enable_expert_bias, True),
            "use_qk_norm": (use_qk_norm, True),
            "use_sliding_window": (use_sliding_window, False),
            "norm_head": (norm_head, False),
            "norm_softmax": (norm_softmax, False),
        }
        for key, (value, supported) in fixed.items():
            if value != supported:
                raise CheckpointError(
                    f"LLaDA2 configuration has {key}={value!r}: only {supported!r} is supported"
                )
            setattr(self, key, value)
        for key, rope in {"rope_parameters": rope_parameters, "rope_scaling": rope_scaling}.items():
            rope = rope or {}
            if rope.get("rope_type", rope.get("type", "default")) != "default":
                raise CheckpointError(
                    f"LLaDA2 configuration has {key}={rope!r}: only the type 'default' is supported"
                )
            rope_theta = rope.get("rope_theta", rope_theta)
            partial_rotary_factor = rope.get("partial_rotary_factor", partial_rotary_factor)
        shared = num_shared_experts or 0
        for key, (size, least) in {
            "vocab_size": (vocab_size, 1),
            "hidden_size": (hidden_size, 1),
            "intermediate_size": (intermediate_size, 1),
            "num_hidden_layers": (num_hidden_layers, 1),
            "num_attention_heads": (num_attention_heads, 1),
            "max_position_embeddings": (max_position_embeddings, 1),
            "num_experts": (num_experts, 1),
            "num_experts_per_tok": (num_experts_per_tok, 1),
            "num_shared_experts": (shared, 0),
            "moe_intermediate_size": (moe_intermediate_size, 1),
            "first_k_dense_replace": (first_k_dense_replace, 0),
            "n_group": (n_group, 1),
            "topk_group": (topk_group, 1),
            "block_length": (block_length, 1),
        }.items():
            _check_size(key, size, least)
        heads, keys = num_attention_heads, num_key_value_heads
        keys = heads if keys is None else _check_size("num_key_value_heads", keys, 1)
        if heads % keys:
            raise CheckpointError(
                f"LLaDA2 configuration has num_key_value_heads={keys}: "
                f"it must divide num_attention_heads={heads}"
            )
        width = _check_size("head_dim", head_dim or hidden_size // heads, 1)
        turned = int(width * partial_rotary_factor)
        if not 0 < turned <= width or turned % 2:
            raise CheckpointError(
                f"LLaDA2 configuration has partial_rotary_factor={partial_rotary_factor!r}: "
                f"of head_dim={width} it must leave an even number of dimensions to turn"
            )
        if rotary_dim not in (None, turned):
            raise CheckpointError(
                f"LLaDA2 configuration has rotary_dim={rotary_dim!r}: "
                f"head_dim={width} and partial_rotary_factor={partial_rotary_factor!r} "
                f"give {turned}"
            )
        if num_experts % n_group or topk_group > n_group:
            raise CheckpointError(
                f"LLaDA2 configuration has n_group={n_group} and topk_group={topk_group}: n_group "
                f"must divide num_experts={num_experts} and topk_group must not be above n_group"
            )
        if num_experts_per_tok > num_experts // n_group * topk_group:
            raise CheckpointError(
                f"LLaDA2 configuration has num_experts_per_tok={num_experts_per_tok}: "
                f"{topk_group} groups have only {num_experts // n_group * topk_group} experts"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = heads
        self.num_key_value_heads = keys
        self.head_dim = width
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.partial_rotary_factor = partial_rotary_factor
        self.rotary_dim = turned
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.use_qkv_bias = use_qkv_bias
        self.use_bias = use_bias
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.num_shared_experts = shared
        self.moe_intermediate_size = moe_intermediate_size
        self.first_k_dense_replace = first_k_dense_replace
        self.n_group = n_group
        self.topk_group = topk_group
        self.routed_scaling_factor = routed_scaling_factor
        self.block_length = block_length
        self.mask_token_id = mask_token_id
        kwargs.pop("use_cache", None)  # published configurations ask for one; none is built here
        super().__init__(
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self.use_cache = False


def _check_size(key: str, size: int, least: int) -> int:
    if not isinstance(size, int) or size < least:
        raise CheckpointError(
            f"LLaDA2 configuration has {key}={size!r}: it must be a whole number from {least} on"
        )
    return size


def block_causal_mask(
    position_ids: Int[Tensor, "#B L"],
    attention_mask: Tensor | None,
    block_length: int,
) -> Bool[Tensor, "#B 1 Q K"]:
    """Which keys each query attends to: those of its own block of positions and of blocks before.

    attention_mask: None; [B, L] with 0 where a key is attended by nobody (padding on either
    side); or [B, 1, Q, K] boolean, which is given back as it is. A query that would be left
    without any key attends to itself, because some attention kernels answer NaN otherwise.
    Errors: InputError for another shape, and for a 4-D mask that is not boolean: masks of 0 and 1
    and masks to be added to the scores cannot be told apart.
    """
    if attention_mask is not None:
        whole = attention_mask.dim() == 4 and attention_mask.dtype == torch.bool
        if not whole and attention_mask.shape[1:] != position_ids.shape[1:]:
            raise InputError(
                f"attention_mask is {attention_mask.dtype} of shape {tuple(attention_mask.shape)}: "
                f"give [batch, {position_ids.shape[-1]}], or boolean [batch, 1, queries, keys]"
            )
        if whole:
            return attention_mask
    block = position_ids.div(block_length, rounding_mode="floor")
    mask = block[:, None] <= block[..., None]
    if attention_mask is not None:
        mask = mask & attention_mask[:, None].bool()
        itself = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        mask = mask | (itself & ~mask.any(-1, keepdim=True))
    return mask[:, None]


class LLaDA2MoeMLP(nn.Module):
    """down_proj(silu(gate_proj x) * up_proj x): a dense layer, an expert or the shared expert."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class LLaDA2MoeGate(nn.Module):
    """The router: which experts each token goes to, and with what weights."""

    expert_bias: Tensor

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.experts_per_token = config.num_experts_per_tok
        self.groups, self.kept_groups = config.n_group, config.topk_group
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.register_buffer("expert_bias", torch.zeros(config.num_experts))

    def forward(self, x: Float[Tensor, "N D"]) -> tuple[Int[Tensor, "N k"], Float[Tensor, "N k"]]:
        """Experts and weights of every token; the weights in at least float32."""
        wide = torch.promote_types(x.dtype, torch.float32)
        scores = F.linear(x.to(wide), self.weight.to(wide)).sigmoid()
        grouped = (scores + self.expert_bias).view(len(x), self.groups, -1)
        best = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool)
        kept.scatter_(-1, best.topk(self.kept_groups, -1).indices, True)
        eligible = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
        experts = eligible.topk(self.experts_per_token, -1).indices
        weights = scores.gather(-1, experts)
        if self.experts_per_token > 1:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return experts, weights * self.scale


class LLaDA2MoeSparseMLP(nn.Module):
    """Every token through its experts, weighted, plus the shared expert."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        size = config.moe_intermediate_size
        self.gate = LLaDA2MoeGate(config)
        self.experts = nn.ModuleList(
            LLaDA2MoeMLP(config.hidden_size, size) for _ in range(config.num_experts)
        )
        self.shared_experts = (
            LLaDA2MoeMLP(config.hidden_size, size * config.num_shared_experts)
            if config.num_shared_experts
            else None
        )

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        flat = x.flatten(0, -2)
        chosen, weights = self.gate(flat)
        # Token copies sorted by expert; each expert that got any runs once.
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        parts = torch.split(flat[order // chosen.shape[-1]], counts)
        done = [expert(part) for expert, part in zip(self.experts, parts, strict=True) if len(part)]
        copies = torch.cat(done)[order.argsort()].view(*chosen.shape, -1)
        out: Tensor = (copies * weights[..., None]).sum(-2).to(x.dtype).view_as(x)
        return out if self.shared_experts is None else out + self.shared_experts(x)


class LLaDA2MoeAttention(nn.Module):
    """Grouped attention with normed queries and keys, of which the first dimensions are turned."""

    def __init__(self, config: LLaDA2MoeConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        d = config.head_dim
        self.query_key_value = nn.Linear(
            config.hidden_size, (self.heads + 2 * self.kv_heads) * d, bias=config.use_qkv_bias
        )
        self.query_layernorm = RMSNorm(d, config.rms_norm_eps)
        self.key_layernorm = RMSNorm(d, config.rms_norm_eps)
        self.dense = nn.Linear(self.heads * d, config.hidden_size, bias=config.use_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: Any) -> Tensor:
        fused = self.query_key_value(x).unflatten(-1, (self.heads + 2 * self.kv_heads, -1))
        q, k, v = fused.transpose(1, 2).split((self.heads, self.kv_heads, self.kv_heads), 1)
        q = _turn(self.query_layernorm(q), cos, sin)
        k = _turn(self.key_layernorm(k), cos, sin)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=self.heads != self.kv_heads
        )
        out: Tensor = self.dense(attended.transpose(1, 2).flatten(2))
        return out


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the first dimensions, as many as `cos` has; the others pass."""
    width = cos.shape[-1]
    return torch.cat((rotate(x[..., :width], cos, sin), x[..., width:]), -1)


class LLaDA2MoeDecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """x + attention(norm x), then x + mlp(norm x); the first layers may have a dense mlp."""

    def __init__(self, config: LLaDA2MoeConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = LLaDA2MoeAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = (
            LLaDA2MoeMLP(config.hidden_size, config.intermediate_size)
            if layer < config.first_k_dense_replace
            else LLaDA2MoeSparseMLP(config)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: Any) -> Tensor:
        x = x + self.attention(self.input_layernorm(x), cos, sin, mask, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class LLaDA2MoePreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What the base and the head share with transformers' loading and saving code."""

    config_class = LLaDA2MoeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LLaDA2MoeDecoderLayer"]  # noqa: RUF012
    _supports_sdpa = True
    # The bias decides which experts run; half precision would choose others.
    _keep_in_fp32_modules_strict = ["expert_bias"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding, LLaDA2MoeGate)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            bias = getattr(module, "bias", getattr(module, "expert_bias", None))
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)


class LLaDA2MoeModel(LLaDA2MoePreTrainedModel):
    """Embeddings, layers and final norm."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            LLaDA2MoeDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_embeddings = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Int[Tensor, "B Q"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#B Q"] | None = None,
        inputs_embeds: Float[Tensor, "B Q D"] | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Hidden states after the final norm, [B, Q, hidden_size].

        attention_mask: see `block_causal_mask`. position_ids: 0, 1, … where left out; with
        padding on the left they must begin at the first real token, for blocks are blocks of
        positions. past_key_values: an object with transformers' `update(keys, values, layer)`,
        which gives the keys and values to attend to (`whet.models.kv`); where these are more than
        the queries, give the 4-D mask. None is built unasked.
        """
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        wide = torch.promote_types(x.dtype, torch.float32)
        cos, sin = rotary(position_ids, self.config.rotary_dim, self.config.rope_theta, wide)
        mask = block_causal_mask(position_ids, attention_mask, self.config.block_length)
        for layer in self.layers:
            x = layer(x, cos, sin, mask, past_key_values)
        return BaseModelOutput(last_hidden_state=self.norm(x))


class LLaDA2MoeModelLM(MaskedGenerationMixin, LLaDA2MoePreTrainedModel):
    """The masked LM, under the class name of the published checkpoints."""

    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__(config)
        self.model = LLaDA2MoeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value  # type: ignore[assignment]

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
        hidden = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs
        ).last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(hidden[:, keep])
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)
