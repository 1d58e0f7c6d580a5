"""Llama with low-rank layers and 2:4 sparse feed-forward activations (ELAS, arXiv 2605.03667).

Attention, embeddings, norms and cache are those of transformers' Llama; every projection is a
layer of `whet.layers.low_rank`. The feed-forward layer of kind "relu2" is

    y1 = up(x),   y2 = relu(y1)²,   out = down(S24(y2)),

with width 3/2 of `intermediate_size`, rounded up to a multiple of 64: two matrices of that width
have the parameters of SwiGLU's three (one rank's fewer where they are factored). For the first
`dense_steps` steps of training S24 is left out. The kind "swiglu" is Llama's own.

Deviations: in evaluation the random and the soft rule give way to the magnitude rule. Norms keep
float64 models in float64.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers import initialization as init
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from whet.errors import CheckpointError, OptionError, nearest
from whet.layers.low_rank import (
    FactoredLinear,
    Factors,
    FewParameterLinear,
    SparseLowRankLinear,
    make_linear,
)
from whet.layers.norm import RMSNorm
from whet.layers.packing24 import faster_here
from whet.layers.relu2_linear import relu2_linear
from whet.layers.sparsify24 import (
    Gradient24,
    Rule24,
    Sparsity,
    check_rule,
    soft_scale,
    sparsity24,
)
from whet.rng import keyed_torch

FeedForward = Literal["relu2", "swiglu"]


class ElasLlamaConfig(LlamaConfig):  # type: ignore[misc]
    """Llama's configuration with the factors of its layers and the sparsity of its activations.

    rank: of all factors. factors: see `whet.layers.low_rank`; sltrain_alpha and sltrain_share
    belong to "sltrain". ffn: "relu2" or "swiglu". sparsify: rule of `whet.layers.sparsify24`, for
    "relu2". gradient: "masked" or "ste". dense_steps: training steps that are still dense.
    soft_refresh: steps between new factors of the soft rule, 0 keeps the first. noise_seed: of the
    random rule. kernels: use NVIDIA's 2:4 products where a measurement says they are faster.
    Errors: CheckpointError naming the key and what is allowed.
    """

    model_type = "whet_elas_llama"
    base_model_tp_plan = None  # Llama's names layers that are not here

    def __init__(
        self,
        *,
        rank: int = 128,
        factors: Factors = "plain",
        ffn: FeedForward = "relu2",
        sparsify: Rule24 = "magnitude",
        gradient: Gradient24 = "masked",
        dense_steps: int = 0,
        soft_refresh: int = 0,
        noise_seed: int = 0,
        kernels: bool = False,
        sltrain_alpha: float = 32.0,
        sltrain_share: float = 0.03,
        **kwargs: Any,
    ) -> None:
        for key, value, names in (("factors", factors, Factors), ("ffn", ffn, FeedForward)):
            if value not in get_args(names):
                raise CheckpointError(f"{key}={value!r} is unknown: {_known(value, names)}")
        for key, least in (("rank", 1), ("dense_steps", 0), ("soft_refresh", 0)):
            value = locals()[key]
            if not isinstance(value, int) or value < least:
                raise CheckpointError(f"{key}={value!r} must be a whole number of at least {least}")
        if ffn == "swiglu" and sparsify != "none":
            raise CheckpointError(
                f"sparsify={sparsify!r} needs ffn='relu2': SwiGLU's activations are hardly ever 0"
            )
        try:
            check_rule(sparsify, gradient if sparsify != "none" else "ste")
        except OptionError as error:
            raise CheckpointError(str(error)) from error
        if not 0 < sltrain_share < 1:
            raise CheckpointError(f"sltrain_share={sltrain_share!r} must be between 0 and 1")
        for key in ("attention_bias", "mlp_bias"):
            if kwargs.get(key):
                raise CheckpointError(f"{key}=True is not supported: the layers have no biases")
        if kwargs.get("hidden_act", "silu") != "silu":
            raise CheckpointError(f"hidden_act={kwargs['hidden_act']!r} must be 'silu'")
        kwargs.setdefault("bos_token_id", None)
        super().__init__(**kwargs)
        self.rank = rank
        self.factors = factors
        self.ffn = ffn
        self.sparsify = sparsify
        self.gradient = gradient
        self.dense_steps = dense_steps
        self.soft_refresh = soft_refresh
        self.noise_seed = noise_seed
        self.kernels = kernels
        self.sltrain_alpha = sltrain_alpha
        self.sltrain_share = sltrain_share

    @property
    def ffn_width(self) -> int:
        """Features between the two (or three) matrices of a feed-forward layer."""
        if self.ffn == "swiglu":
            return int(self.intermediate_size)
        return -(-int(1.5 * self.intermediate_size) // 64) * 64

    def linear(self, in_features: int, out_features: int) -> FewParameterLinear:
        """A layer of this model's kind."""
        return make_linear(
            self.factors,
            in_features,
            out_features,
            rank=self.rank,
            alpha=self.sltrain_alpha,
            sparse_share=self.sltrain_share,
        )


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), the baseline's feed-forward layer."""

    def __init__(self, config: ElasLlamaConfig) -> None:
        super().__init__()
        self.gate = config.linear(config.hidden_size, config.ffn_width)
        self.up = config.linear(config.hidden_size, config.ffn_width)
        self.down = config.linear(config.ffn_width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class SparseFeedForward(nn.Module):
    """The feed-forward layer of kind "relu2". Its counters are its own: they move by `advance`.

    observed: zeros and dropped energy of the last forward, where `observing`.
    """

    soft_scale: Tensor

    def __init__(self, config: ElasLlamaConfig, layer: int) -> None:
        super().__init__()
        self.up = config.linear(config.hidden_size, config.ffn_width)
        self.down = config.linear(config.ffn_width, config.hidden_size)
        self.rule: Rule24 = config.sparsify
        self.gradient: Gradient24 = config.gradient
        self.layer, self.noise_seed = layer, config.noise_seed
        self.kernels, self.soft_refresh = config.kernels, config.soft_refresh
        self.dense_steps, self.step, self.scaled_at = config.dense_steps, 0, -1
        self.observing = False
        self.observed: Sparsity | None = None
        if self.rule == "soft":
            self.register_buffer("soft_scale", torch.ones(()))

    @property
    def present_rule(self) -> Rule24:
        """What a forward does now: dense in the first steps, never random or soft in eval."""
        if self.dense_steps:
            return "none"
        if not self.training and self.rule in ("mvue", "soft"):
            return "magnitude"
        return self.rule

    def forward(self, x: Tensor) -> Tensor:
        y1 = self.up(x)
        rule = self.present_rule
        if self.observing:
            self.observed = sparsity24(y1.detach().relu().square())
        if rule == "soft":
            self._refresh_scale(y1.detach())
        weight = self.down.first_weight()
        rows = y1.numel() // y1.shape[-1]
        device = str(y1.device)
        fast = self.kernels and faster_here(rows, *weight.t().shape, y1.dtype, device).faster
        noise = None
        if rule == "mvue":  # drawn by step, not by call: a recomputed forward has to draw the same
            noise = keyed_torch(self.noise_seed, "mvue", self.layer, self.step)
        h = relu2_linear(
            y1,
            weight,
            sparsify=rule,
            gradient=self.gradient,
            soft_scale=self.soft_scale if rule == "soft" else None,
            generator=noise,
            kernels=fast,
        )
        out: Tensor = self.down.finish(h)
        return out

    def advance(self) -> None:
        """A step of training is over."""
        self.dense_steps = max(0, self.dense_steps - 1)
        self.step += 1

    def _refresh_scale(self, y1: Tensor) -> None:
        since = self.step - self.scaled_at
        if self.scaled_at < 0 or (self.soft_refresh and since >= self.soft_refresh):
            self.soft_scale.copy_(soft_scale(y1.relu().square()))
            self.scaled_at = self.step


class ElasLlamaModel(LlamaModel):  # type: ignore[misc]
    """Llama's stack with this family's layers."""

    config_class = ElasLlamaConfig

    def __init__(self, config: ElasLlamaConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                full = getattr(layer.self_attn, name)
                setattr(layer.self_attn, name, config.linear(full.in_features, full.out_features))
            layer.mlp = (
                SwiGLU(config) if config.ffn == "swiglu" else SparseFeedForward(config, index)
            )
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, LlamaRMSNorm):
                    setattr(module, name, RMSNorm(child.weight.shape[0], child.variance_epsilon))
        self.init_weights()  # of the new layers: what has its weights is passed over

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, FactoredLinear):
            init.normal_(module.inner, std=module.init_std)
            init.normal_(module.outer, std=module.init_std)
        elif isinstance(module, SparseLowRankLinear):
            bound = module.init_bound
            init.uniform_(module.inner, -bound, bound)
            init.zeros_(module.outer)
            init.uniform_(module.values, -bound, bound)
            init.copy_(module.support, module.draw_support())
        elif isinstance(module, SparseFeedForward):
            if module.rule == "soft":
                init.ones_(module.soft_scale)
        else:
            super()._init_weights(module)


class ElasLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """The language model. Call `advance()` after every step of training."""

    config_class = ElasLlamaConfig

    def __init__(self, config: ElasLlamaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)  # whose own would build Llama's stack
        self.model = ElasLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def feed_forwards(self) -> list[SparseFeedForward]:
        """The layers that may be sparse, in order; none in a model of kind "swiglu"."""
        return [m for m in self.modules() if isinstance(m, SparseFeedForward)]

    def advance(self) -> None:
        """A step of training is over: dense steps run out. Nothing happens in eval mode."""
        if not self.training:
            return
        for module in self.feed_forwards():
            module.advance()
        self.config.dense_steps = max(0, self.config.dense_steps - 1)

    def observe(self, on: bool) -> None:
        """Whether forwards measure zeros and dropped energy (about a tenth of a step's time)."""
        for module in self.feed_forwards():
            module.observing = on

    def counters(self) -> Tensor:
        """[layers, 3] integers that a resumed training needs beside the weights."""
        rows = [(m.dense_steps, m.step, m.scaled_at) for m in self.feed_forwards()]
        return torch.tensor(rows, dtype=torch.int64).view(-1, 3)

    def set_counters(self, counters: Tensor) -> None:
        """Take back what `counters` gave. Errors: ValueError for another number of layers."""
        for module, row in zip(self.feed_forwards(), counters.tolist(), strict=True):
            module.dense_steps, module.step, module.scaled_at = row
            self.config.dense_steps = module.dense_steps


def _known(value: object, names: Any) -> str:
    return nearest(str(value), get_args(names))
