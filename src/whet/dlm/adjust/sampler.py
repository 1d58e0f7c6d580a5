"""ADJUST's sampler layer g (arXiv 2509.22738): one transformer layer that carries states forward.

With E the base's embedding matrix, x the canvas as it is now and h the states that last entered
the base's output matrix (in a shifted model moved to the positions they predict):

    u  = W [norm_e(E[x]); norm_h(h)] + b
    u  = layer(u)            (full attention, rotary positions, gated feed-forward)
    h' = norm_o(u) + h

The layer is transformers' Qwen2 layer, whatever the base is.

Deviations from the official code: norm_o starts at 0, so that g starts as the identity; padding is
masked and not attended to, and positions count from the first real token; LLaDA works too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from whet.errors import CheckpointError
from whet.layers.norm import RMSNorm
from whet.models.denoiser import Denoiser, unwrap
from whet.models.loading import read_shards, verify_files


class AdjustConfig(Qwen2Config):  # type: ignore[misc]
    """Sizes of the layer under Qwen2's keys, which are the base's own.

    base_model_type: family of the base. tokens_per_forward: window it was trained for.
    """

    model_type = "whet_adjust"

    def __init__(
        self, *, base_model_type: str = "llada", tokens_per_forward: int = 4, **kwargs: Any
    ) -> None:
        super().__init__(**{**kwargs, "num_hidden_layers": 1, "use_cache": False})
        self.base_model_type = base_model_type
        self.tokens_per_forward = tokens_per_forward

    @classmethod
    def of(cls, denoiser: Denoiser, *, tokens_per_forward: int) -> AdjustConfig:
        """A layer shaped like one of the base's.

        Errors: CheckpointError for a base that does not attend to its whole canvas.
        """
        config = denoiser.model.config
        if denoiser.block_length is not None or denoiser.traits.noise != "mask":
            raise CheckpointError(
                f"model_type {config.model_type!r} cannot be a base: the sampler layer reads the "
                "states of a whole canvas of masks, which LLaDA and Dream have"
            )
        rotary = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
        return cls(
            base_model_type=config.model_type,
            tokens_per_forward=tokens_per_forward,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=rotary["rope_theta"],
            initializer_range=getattr(config, "init_std", None) or config.initializer_range,
        )


class AdjustSampler(PreTrainedModel):  # type: ignore[misc]
    """g: from the embeddings of a canvas and its last states to its next states."""

    config_class = AdjustConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2DecoderLayer"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: AdjustConfig) -> None:
        super().__init__(config)
        d, eps = config.hidden_size, config.rms_norm_eps
        self.embed_norm, self.hidden_norm = RMSNorm(d, eps), RMSNorm(d, eps)
        self.merge = nn.Linear(2 * d, d)
        self.layer = Qwen2DecoderLayer(config, 0)
        self.layer.self_attn.is_causal = False
        # transformers' own norms compute in float32 even in a float64 model.
        self.layer.input_layernorm = RMSNorm(d, eps)
        self.layer.post_attention_layernorm = RMSNorm(d, eps)
        self.out_norm = RMSNorm(d, eps)
        self.rotary = Qwen2RotaryEmbedding(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.out_norm:
            nn.init.zeros_(self.out_norm.weight)

    def forward(
        self,
        embeds: Float[Tensor, "R L D"],
        hidden: Float[Tensor, "R L D"],
        attention_mask: Bool[Tensor, "R L"] | None = None,
    ) -> Float[Tensor, "R L D"]:
        """The next states. attention_mask: True at real tokens; None where all are."""
        u = self.merge(torch.cat((self.embed_norm(embeds), self.hidden_norm(hidden)), -1))
        if attention_mask is None:
            position_ids = torch.arange(u.shape[1], device=u.device)[None]
            mask = None
        else:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
            mask = attention_mask[:, None, None].expand(-1, -1, u.shape[1], -1)
        u = self.layer(
            u,
            attention_mask=mask,
            position_embeddings=self.rotary(u, position_ids),
            use_cache=False,
        )
        out: Tensor = self.out_norm(u) + hidden
        return out


def asked_columns(denoiser: Denoiser, first: Int[Tensor, " R"], length: int) -> Int[Tensor, "R L"]:
    """The canvas columns whose predictions give the states of every column, aligned.

    In a shifted model the first real column is predicted by itself, as is column 0 of an unpadded
    canvas; what padding holds means nothing.
    """
    columns = torch.arange(length, device=first.device).expand(len(first), -1)
    lowest = first + int(denoiser.traits.shift)
    return torch.maximum(columns, lowest[:, None]).clamp_max(
        length - 1 + int(denoiser.traits.shift)
    )


def full_states(
    denoiser: Denoiser,
    tokens: Int[Tensor, "R L"],
    attention_mask: Bool[Tensor, "R L"] | None = None,
) -> Float[Tensor, "R L D"]:
    """One forward of the base: the states that predict each column of the canvas."""
    first = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    if attention_mask is not None:
        first = (~attention_mask).sum(-1)
    columns = asked_columns(denoiser, first, tokens.shape[1])
    source = denoiser.source(columns.flatten()).view_as(columns)
    states = denoiser.hidden(tokens, attention_mask)
    return states.gather(1, source[..., None].expand(-1, -1, states.shape[-1]))


def load_sampler(
    folder: str | Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> AdjustSampler:
    """A saved sampler layer. Errors: CheckpointError where the folder holds none that fits."""
    path = Path(folder)
    try:
        raw = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds no sampler layer: `whet train adjust` writes one with its config.json"
        ) from error
    if raw.get("model_type") != AdjustConfig.model_type:
        raise CheckpointError(
            f"{path} is no sampler layer: its model_type is {raw.get('model_type')!r}, "
            f"{AdjustConfig.model_type!r} is needed"
        )
    config = AdjustConfig.from_dict(raw)
    found, _ = read_shards(path)
    verify_files(path, AdjustSampler, config, found)
    sampler: AdjustSampler = AdjustSampler.from_pretrained(
        path, config=config, dtype=dtype, use_safetensors=True
    )
    sampler.to(device).eval()
    return sampler


def check_fits(sampler: AdjustSampler, denoiser: Denoiser, *, name: str = "the sampler") -> None:
    """Errors: CheckpointError where the layer was made for another base."""
    wanted, config = denoiser.model.config, sampler.config
    for key, ours, theirs in (
        ("model_type", config.base_model_type, wanted.model_type),
        ("hidden_size", config.hidden_size, wanted.hidden_size),
        ("vocab_size", config.vocab_size, wanted.vocab_size),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"{name} was made for a base with {key}={ours!r}, this model has {theirs!r}"
            )


def base_dtype(denoiser: Denoiser) -> torch.dtype:
    """The precision of the base's weights."""
    dtype: torch.dtype = next(unwrap(denoiser.model).parameters()).dtype
    return dtype
