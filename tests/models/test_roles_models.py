"""Tiny random models of every family, which the other tests of roles import; and what roles see."""

import copy
import functools

import pytest
import torch
import transformers
from torch import nn

from whet.errors import OptionError
from whet.models.roles import FAMILIES, axes, axis, blocks, find_family, untouched

VOCAB = 37
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
ENCODER = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6}
LLADA = {
    "d_model": 16,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "mlp_hidden_size": 12,
    "vocab_size": VOCAB,
    "max_sequence_length": 32,
    "rope_theta": 1e4,
    "init_std": 0.3,
    "mask_token_id": 3,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
DISTIL = {"vocab_size": VOCAB, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 12}

# name -> (configuration class, settings); several per family where settings change the roles.
CONFIGS = {
    "llama": ("LlamaConfig", BASE | {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("LlamaConfig", BASE | {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", BASE | {"head_dim": 6}),
    "qwen2": ("Qwen2Config", BASE),
    "qwen3": ("Qwen3Config", BASE | {"head_dim": 6}),
    "gemma": ("GemmaConfig", BASE | {"head_dim": 6}),
    "gemma2": ("Gemma2Config", BASE | {"head_dim": 6}),
    "gemma3": ("Gemma3TextConfig", BASE | {"head_dim": 6}),
    "phi": (
        "PhiConfig",
        BASE | {"hidden_size": 32, "partial_rotary_factor": 0.5, "qk_layernorm": True},
    ),
    "phi-plain": ("PhiConfig", BASE | {"partial_rotary_factor": 1.0}),
    "phi3": ("Phi3Config", BASE),
    "opt": ("OPTConfig", ENCODER | {"ffn_dim": 12, "word_embed_proj_dim": 16}),
    "opt-plain": ("OPTConfig", ENCODER | {"ffn_dim": 12, "enable_bias": False}),
    "opt-post": ("OPTConfig", ENCODER | {"ffn_dim": 12, "do_layer_norm_before": False}),
    "gpt2": ("GPT2Config", GPT2 | {"n_inner": 12, "initializer_range": 0.3}),
    "bert": ("BertConfig", ENCODER),
    "bert-untied": ("BertConfig", ENCODER | {"tie_word_embeddings": False}),
    "roberta": ("RobertaConfig", ENCODER),
    "distilbert": ("DistilBertConfig", DISTIL | {"max_position_embeddings": 32}),
    "mixtral": ("MixtralConfig", BASE | {"num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", BASE | {"num_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeConfig", BASE | SPARSE | {"shared_expert_intermediate_size": 10}),
    "qwen2_moe-dense": (
        "Qwen2MoeConfig",
        BASE | SPARSE | {"shared_expert_intermediate_size": 10, "mlp_only_layers": [0]},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", BASE | SPARSE | {"head_dim": 6}),
    "llada": ("LLaDAConfig", LLADA | {"include_bias": True}),
    "llada-tied": ("LLaDAConfig", LLADA | {"weight_tying": True}),
    "dream": ("DreamConfig", BASE | {"mask_token_id": 3}),
    "sdar": ("SDARConfig", BASE | {"mask_token_id": 3, "head_dim": 6, "block_size": 4}),
    "dit": ("DiT", {}),
}
ENCODERS = {"bert", "bert-untied", "roberta", "distilbert"}
OURS = {"LLaDAConfig": "llada", "DreamConfig": "Dream", "SDARConfig": "sdar"}
NAMES = list(CONFIGS)
POST = {"opt-post", *ENCODERS}
LAYER_NORM = {"phi", "phi-plain", "opt", "opt-plain", "opt-post", "gpt2", "dit", *ENCODERS}
PRE = [name for name in NAMES if name not in {*POST, "dit"}]
# Parts that transformers computes in float32 inside float64 models (eager softmax, router).
LOOSE = {"gemma2": 2e-5, **dict.fromkeys(["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"], 2e-5)}
LOOSE |= {"qwen2_moe-dense": 2e-5}


class WideNorm(nn.Module):
    """transformers' RMS norms compute in float32; this one in float64, with gain `offset` + w."""

    def __init__(self, norm, offset):
        super().__init__()
        self.weight, self.offset = norm.weight, offset
        self.eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))

    def forward(self, x):
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * scale * (self.offset + self.weight)


def widen(model):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            kind = type(child)
            if kind.__name__.endswith("RMSNorm") and kind.__module__.startswith("transformers"):
                setattr(module, name, WideNorm(child, float("Gemma" in kind.__name__)))
    return model


def plain(name):
    """A float32 model as the host library makes it, with random gains and biases."""
    kind, settings = CONFIGS[name]
    torch.manual_seed(0)
    if kind == "DiT":
        import diffusers

        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=6,
            in_channels=3,
            out_channels=6,
            num_layers=2,
            num_embeds_ada_norm=5,
            sample_size=8,
        )
    elif kind in OURS:
        from whet.models.registry import model_classes

        config_class, model_class = model_classes()[OURS[kind]]
        model = model_class(config_class(**copy.deepcopy(settings)))
    else:
        config = getattr(transformers, kind)(**copy.deepcopy(settings))
        head = "MaskedLM" if name in ENCODERS else "CausalLM"
        model = getattr(transformers, f"AutoModelFor{head}").from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or kind in ("DiT", "DistilBertConfig"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            if parameter.dim() == 3:
                parameter.normal_(0, 0.3)
    return model.eval()


@functools.cache
def _made(name):
    model = widen(plain(name).double())
    if any(parameter.dim() == 3 for parameter in model.parameters()):
        model.set_experts_implementation("eager")  # the grouped one knows no float64
    return model


def make(name):
    """A fresh float64 model."""
    return copy.deepcopy(_made(name))


def inputs(name):
    generator = torch.Generator().manual_seed(1)
    if name == "dit":
        latent = torch.randn(2, 3, 8, 8, generator=generator)
        return {
            "timestep": torch.tensor([3, 700]),
            "class_labels": torch.tensor([1, 4]),
            "hidden_states": latent,
        }
    return {"input_ids": torch.randint(3, VOCAB, (2, 9), generator=generator)}


@torch.no_grad()
def output(model, name):
    given = inputs(name)
    if name == "dit":
        given["hidden_states"] = given["hidden_states"].to(next(model.parameters()).dtype)
        return model(**given).sample
    return model(**given).logits


def same(a, b, name, scale=1.0):
    tolerance = LOOSE.get(name, 1e-9) * scale
    assert torch.isfinite(a).all()
    assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())


def every_axis(model):
    """One axis of each kind: that of the first block with one, which the other blocks repeat."""
    return list({a.kind: a for a in reversed(axes(model))}.values())


UNTOUCHED = {
    "phi": {"lm_head.bias"},
    "phi-plain": {"lm_head.bias"},
    "bert": {"cls.predictions.bias"},
    "bert-untied": {"cls.predictions.bias", "cls.predictions.decoder.bias"},
    "roberta": {"lm_head.bias"},
    "distilbert": {"vocab_projector.bias"},
    "llada": {"model.transformer.ff_out.bias"},
    "dit": {"proj_out_2.bias"},
}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_a_role_or_listed_as_untouched(name):
    model = make(name)
    reached = {role.tensor for found in axes(model) for role in found.roles}
    assert set(untouched(model)) == UNTOUCHED.get(name, set())
    assert reached | set(untouched(model)) >= {key for key, _ in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_axes_are_of_the_kinds_that_the_family_declares(name):
    model = make(name)
    declared = set(find_family(getattr(model.config, "model_type", type(model).__name__)).kinds())
    found = {a.kind for a in axes(model)}
    assert found <= declared
    may_lack = {"heads", "ffn"}  # single-query groups; all layers sparse
    assert declared - found <= may_lack


def test_every_family_has_a_tiny_model():
    covered = {
        find_family(getattr(_made(n).config, "model_type", type(_made(n)).__name__)).name
        for n in NAMES
    }
    assert covered == {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", NAMES)
def test_blocks_name_modules_and_norms_that_exist(name):
    model = make(name)
    modules, tensors = dict(model.named_modules()), dict(model.named_parameters())
    found = blocks(model)
    assert len(found) == 2
    for block in found:
        assert block.name in modules
        a = block.attention
        assert {a.query, a.key, a.value, a.output, a.module, *block.norms()} <= set(modules)
        if block.experts:
            assert {block.experts.router, block.experts.gate_up, block.experts.down} <= set(tensors)
        for _, mlp in block.ffns():
            assert {*mlp.into, mlp.output} <= set(modules)
        assert bool(block.mlp) != bool(block.experts)


def test_blocks_say_how_their_parts_are_connected():
    flows = {name: blocks(make(name))[0].flow for name in ("llama", "phi", "gemma2", "bert")}
    assert flows == {"llama": "pre", "phi": "parallel", "gemma2": "sandwich", "bert": "post"}
    assert blocks(make("opt"))[0].flow == "pre"
    assert blocks(make("opt-post"))[0].flow == "post"
    sparse = blocks(make("qwen2_moe-dense"))
    assert sparse[0].mlp is not None
    assert sparse[1].experts.shared is not None


@pytest.mark.parametrize(
    ("name", "trunk"),
    [("llama", "model"), ("opt", "model"), ("gpt2", "transformer"), ("llada", "model")],
)
def test_a_trunk_without_its_head_has_axes_too(name, trunk):
    model = getattr(make(name), trunk)
    assert axis(model, "ffn", 1).units == 12
    assert axis(model, "residual").units == 16


def test_an_encoder_with_a_pooler_has_axes_too():
    model = transformers.BertModel(transformers.BertConfig(**ENCODER))
    assert "pooler.dense.weight" in {role.tensor for role in axis(model, "residual").roles}
    assert untouched(model) == ["pooler.dense.bias"]


def test_a_model_without_blocks_is_refused():
    model = make("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(OptionError, match=r"model\.layers of this LlamaForCausalLM has no blocks"):
        axes(model)


def test_an_unknown_architecture_is_named_with_its_nearest_neighbour():
    model = make("llama")
    model.config.model_type = "llamas"
    with pytest.raises(OptionError, match=r"type 'llamas': did you mean 'llama'\?"):
        axes(model)


def test_a_missing_role_is_named_with_the_families_that_have_it():
    with pytest.raises(OptionError, match=r"llama model has no roles of kind 'experts'.*mixtral"):
        axis(make("llama"), "experts", 0)
    with pytest.raises(OptionError, match="no family has them"):
        axis(make("llama"), "horses")
    with pytest.raises(OptionError, match=r"no roles of kind 'rotary'.*llama, qwen2"):
        axis(make("gpt2"), "rotary")
    with pytest.raises(OptionError, match="block=7: the ffn axis is found in blocks 0, 1"):
        axis(make("llama"), "ffn", 7)


def test_parameters_that_no_role_covers_are_refused():
    model = make("llama")
    model.model.layers[1].adapter = nn.Linear(16, 16)
    with pytest.raises(OptionError, match=r"layers\.1\.adapter\.bias and 1 more, which the family"):
        axes(model)
    model = make("llama")
    model.model.layers[0].mlp.up_proj = nn.Sequential(nn.Linear(16, 12))
    with pytest.raises(OptionError, match=r"up_proj is a Sequential"):
        axes(model)


def test_projected_embeddings_are_refused():
    model = transformers.OPTForCausalLM(
        transformers.OPTConfig(**ENCODER | {"ffn_dim": 12, "word_embed_proj_dim": 8})
    )
    with pytest.raises(OptionError, match="projected embeddings are not supported"):
        axes(model)


def test_frequencies_that_change_with_length_leave_no_rotary_axis():
    settings = BASE | {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    with pytest.raises(OptionError, match="no roles of kind 'rotary'"):
        axes(model, "rotary")
