"""The families: where each architecture keeps its parts, as data.

Names are those of the installed transformers 5 and diffusers classes and of whet's own models. A
family is one entry here; nothing else in whet knows an architecture's names.
"""

from __future__ import annotations

from dataclasses import replace

from whet.errors import OptionError, nearest
from whet.models.roles.names import Attention, Experts, Family, Hidden, Mlp

_LLAMA_ATTENTION = Attention(
    norm="input_layernorm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    module="self_attn",
    sizes=(("num_key_value_groups", "groups"),),
)
_QWEN3_ATTENTION = replace(
    _LLAMA_ATTENTION, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"
)
_LLAMA_MLP = Mlp(
    norm="post_attention_layernorm",
    into=("mlp.gate_proj", "mlp.up_proj"),
    output="mlp.down_proj",
)
_HEAD_COUNTS = (("num_attention_heads", "heads"), ("num_key_value_heads", "kv_heads"))

LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral"),
    blocks="layers",
    attention=_LLAMA_ATTENTION,
    mlp=_LLAMA_MLP,
    embeddings=("embed_tokens",),
    final_norm="norm",
    rotary="rotary_emb",
    config=(("hidden_size", "residual"), ("intermediate_size", "ffn"), *_HEAD_COUNTS),
    keeps_head_dim=True,
)
QWEN2 = replace(LLAMA, name="qwen2", model_types=("qwen2", "Dream"))
QWEN3 = replace(LLAMA, name="qwen3", model_types=("qwen3", "sdar"), attention=_QWEN3_ATTENTION)

GEMMA = replace(
    LLAMA, name="gemma", model_types=("gemma",), gain=1.0, embedding_scale="embed_scale"
)
_SANDWICH_MLP = replace(
    _LLAMA_MLP, norm="pre_feedforward_layernorm", output_norm="post_feedforward_layernorm"
)
GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    model_types=("gemma2",),
    flow="sandwich",
    attention=replace(_LLAMA_ATTENTION, output_norm="post_attention_layernorm"),
    mlp=_SANDWICH_MLP,
)
GEMMA3 = replace(
    GEMMA2,
    name="gemma3",
    model_types=("gemma3_text",),
    attention=replace(_QWEN3_ATTENTION, output_norm="post_attention_layernorm"),
)

PHI = Family(
    name="phi",
    model_types=("phi",),
    blocks="layers",
    flow="parallel",
    attention=replace(
        _LLAMA_ATTENTION,
        output="self_attn.dense",
        query_norm="self_attn.q_layernorm",
        key_norm="self_attn.k_layernorm",
    ),
    mlp=Mlp(norm="input_layernorm", into=("mlp.fc1",), output="mlp.fc2"),
    embeddings=("embed_tokens",),
    final_norm="final_layernorm",
    rotary="rotary_emb",
    config=(("intermediate_size", "ffn"), *_HEAD_COUNTS),
    keeps_head_dim=True,
    head_dim_bound_by="qk_layernorm",
)
PHI3 = replace(
    LLAMA,
    name="phi3",
    model_types=("phi3",),
    attention=replace(
        _LLAMA_ATTENTION,
        query="self_attn.qkv_proj",
        key="self_attn.qkv_proj",
        value="self_attn.qkv_proj",
        sizes=(("num_key_value_groups", "groups"), ("num_key_value_heads", "kv_heads")),
        # Where the queries end in the fused projection is computed from the configuration.
        own_config=(("num_attention_heads", "heads"),),
    ),
    mlp=replace(_LLAMA_MLP, into=("mlp.gate_up_proj",)),
)

OPT = Family(
    name="opt",
    model_types=("opt",),
    trunk="model.decoder",
    blocks="layers",
    attention=replace(
        _LLAMA_ATTENTION,
        norm="self_attn_layer_norm",
        output="self_attn.out_proj",
        sizes=(("num_heads", "heads"),),
    ),
    mlp=Mlp(norm="final_layer_norm", into=("fc1",), output="fc2"),
    embeddings=("embed_tokens", "embed_positions"),
    final_norm="final_layer_norm",
    free_keys=True,
    config=(("ffn_dim", "ffn"),),
    post_when=("do_layer_norm_before", False),  # the 350m model
)
GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    trunk="transformer",
    blocks="h",
    attention=Attention(
        norm="ln_1",
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        output="attn.c_proj",
        module="attn",
        sizes=(("num_heads", "heads"), ("split_size", "width")),
    ),
    mlp=Mlp(norm="ln_2", into=("mlp.c_fc",), output="mlp.c_proj"),
    embeddings=("wte", "wpe"),
    final_norm="ln_f",
    free_keys=True,
    config=(("n_inner", "ffn"),),
)

POST_NORM = (
    "it normalises after every addition (post-norm), so that gains, biases and means act on the "
    "stream itself and cannot be folded into its readers"
)
BERT = Family(
    name="bert",
    model_types=("bert",),
    trunk="bert",
    blocks="encoder.layer",
    flow="post",
    attention=Attention(
        norm="attention.output.LayerNorm",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        output="attention.output.dense",
        module="attention.self",
        head_dim="attention_head_size",
        sizes=(("num_attention_heads", "heads"), ("all_head_size", "width")),
    ),
    mlp=Mlp(norm="output.LayerNorm", into=("intermediate.dense",), output="output.dense"),
    embeddings=(
        "embeddings.word_embeddings",
        "embeddings.position_embeddings",
        "embeddings.token_type_embeddings",
    ),
    stream_norms=("embeddings.LayerNorm",),
    stream_readers=("pooler.dense",),
    head="cls.predictions.decoder",
    head_transform=("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    free_keys=True,
    config=(("intermediate_size", "ffn"),),
    unrotatable=POST_NORM,
    untouched=("cls.predictions.bias",),
)
ROBERTA = replace(
    BERT,
    name="roberta",
    model_types=("roberta",),
    trunk="roberta",
    head="lm_head.decoder",
    head_transform=("lm_head.dense", "lm_head.layer_norm"),
    untouched=("lm_head.bias",),
)
DISTILBERT = replace(
    BERT,
    name="distilbert",
    model_types=("distilbert",),
    trunk="distilbert",
    blocks="transformer.layer",
    attention=Attention(
        norm="sa_layer_norm",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        module="attention",
        head_dim="attention_head_size",
        sizes=(("n_heads", "heads"), ("dim", "width")),
    ),
    mlp=Mlp(norm="output_layer_norm", into=("ffn.lin1",), output="ffn.lin2"),
    embeddings=("embeddings.word_embeddings", "embeddings.position_embeddings"),
    head="vocab_projector",
    head_transform=("vocab_transform", "vocab_layer_norm"),
    config=(("hidden_dim", "ffn"),),
    untouched=(),
)

_EXPERTS = Experts(
    norm="post_attention_layernorm",
    router="mlp.gate.weight",
    gate_up="mlp.experts.gate_up_proj",
    down="mlp.experts.down_proj",
    module="mlp.experts",
    router_module="mlp.gate",
)
MIXTRAL = replace(
    LLAMA,
    name="mixtral",
    model_types=("mixtral",),
    mlp=None,
    experts=_EXPERTS,
    config=(
        ("hidden_size", "residual"),
        ("intermediate_size", "expert_ffn"),
        ("num_local_experts", "experts"),
        *_HEAD_COUNTS,
    ),
)
OLMOE = replace(
    MIXTRAL,
    name="olmoe",
    model_types=("olmoe",),
    attention=replace(_QWEN3_ATTENTION, wide_norms=True),
    # Its norms of queries and keys are as wide as the configuration's hidden size, always.
    config=(("intermediate_size", "expert_ffn"), ("num_experts", "experts")),
    keeps_head_dim=False,
    clip="clip_qkv",
)
_SPARSE_CONFIG = (
    ("hidden_size", "residual"),
    ("intermediate_size", "ffn"),
    ("moe_intermediate_size", "expert_ffn"),
    ("num_experts", "experts"),
    *_HEAD_COUNTS,
)
QWEN2_MOE = replace(
    QWEN2,
    name="qwen2_moe",
    model_types=("qwen2_moe",),
    experts=replace(
        _EXPERTS,
        shared=Mlp(
            into=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
            output="mlp.shared_expert.down_proj",
            norm="post_attention_layernorm",
        ),
        gate="mlp.shared_expert_gate",
    ),
    config=(*_SPARSE_CONFIG, ("shared_expert_intermediate_size", "shared_ffn")),
)
QWEN3_MOE = replace(
    QWEN3,
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    experts=_EXPERTS,
    config=_SPARSE_CONFIG,
)

LLADA = Family(
    name="llada",
    model_types=("llada",),
    trunk="model.transformer",
    blocks="blocks",
    attention=Attention(
        norm="attn_norm",
        query="q_proj",
        key="k_proj",
        value="v_proj",
        output="attn_out",
        module=".",
        head_dim="",
        heads="n_heads",
        sizes=(("n_heads", "heads"), ("n_kv_heads", "kv_heads")),
    ),
    mlp=Mlp(norm="ff_norm", into=("ff_proj", "up_proj"), output="ff_out"),
    embeddings=("wte",),
    final_norm="ln_f",
    head="model.transformer.ff_out",
    # It works the width of a head out from d_model and n_heads, which therefore stay.
    config=(("mlp_hidden_size", "ffn"),),
)
DIT = Family(
    name="dit",
    model_types=("DiTTransformer2DModel",),
    trunk="",
    blocks="transformer_blocks",
    attention=Attention(
        query="attn1.to_q",
        key="attn1.to_k",
        value="attn1.to_v",
        output="attn1.to_out.0",
        module="attn1",
        head_dim="",
        heads="heads",
        sizes=(
            ("heads", "heads"),
            ("sliceable_head_dim", "heads"),
            ("inner_dim", "width"),
            ("inner_kv_dim", "width"),
        ),
        norm="norm1.norm",
    ),
    mlp=Mlp(norm="norm3", into=("ff.net.0.proj",), output="ff.net.2"),
    embeddings=("pos_embed.proj", "pos_embed.pos_embed"),
    final_norm="norm_out",
    head="proj_out_2",
    block_modulations=("norm1.linear",),
    trunk_modulations=("proj_out_1",),
    hidden=(
        Hidden(
            kind="conditioning",
            writes=(
                "norm1.emb.timestep_embedder.linear_2",
                "norm1.emb.class_embedder.embedding_table",
            ),
            reads=("norm1.linear",),
            reads_first=("proj_out_1",),
        ),
        Hidden(
            kind="timestep_ffn",
            writes=("norm1.emb.timestep_embedder.linear_1",),
            reads=("norm1.emb.timestep_embedder.linear_2",),
        ),
    ),
    free_keys=True,
    unrotatable=(
        "its shifts, scales and gates (adaLN) come from the time step and act on single channels"
    ),
)

FAMILIES = (
    *(LLAMA, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, PHI, PHI3, OPT, GPT2),
    *(BERT, ROBERTA, DISTILBERT, MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE, LLADA, DIT),
)


def stock_type(model_type: str) -> str:
    """The model_type that a `whet_` one, saved with its edits, was made from."""
    return model_type.removeprefix("whet_").removeprefix("Whet")


def find_family(model_type: str) -> Family:
    """The family of a configuration's model_type or of a diffusers class name.

    What whet has changed the shape of (`whet_llama`) is of its stock type's. Errors: OptionError
    where no family has it.
    """
    model_type = stock_type(model_type)
    known = {name: family for family in FAMILIES for name in family.model_types}
    if model_type not in known:
        raise OptionError(
            f"no roles are known for models of type {model_type!r}: {nearest(model_type, known)}"
        )
    return known[model_type]
