import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from whet.errors import CheckpointError
from whet.models.llada import LLaDAConfig, LLaDAModelLM

SIZES = {"d_model": 32, "n_heads": 4, "n_layers": 2, "mlp_hidden_size": 48, "vocab_size": 40}
IDS = {"mask_token_id": 39, "eos_token_id": 0, "pad_token_id": 0}


def make(**settings):
    torch.manual_seed(1)
    config = LLaDAConfig(**(SIZES | IDS | {"init_std": 0.2, "rope_theta": 1e4} | settings))
    model = LLaDAModelLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "ln_f" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def as_llama(model):
    """The same weights in transformers' Llama, an implementation that is not ours."""
    c = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=c.d_model,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            num_hidden_layers=c.n_layers,
            intermediate_size=c.mlp_hidden_size,
            vocab_size=c.embedding_size,
            rms_norm_eps=c.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            tie_word_embeddings=c.weight_tying,
            attention_bias=c.include_bias or c.include_qkv_bias,
            mlp_bias=c.include_bias,
        )
    ).eval()
    inside = {
        "attn_norm": "input_layernorm",
        "ff_norm": "post_attention_layernorm",
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "attn_out": "self_attn.o_proj",
        "ff_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "ff_out": "mlp.down_proj",
    }
    outside = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
    weights = {}
    for name, tensor in model.state_dict().items():
        parts = name.removeprefix("model.transformer.").split(".")
        if parts[0] == "blocks":
            target = f"model.layers.{parts[1]}.{inside[parts[2]]}.{parts[3]}"
        else:
            target = f"{outside[parts[0]]}.{parts[1]}"
        weights[target] = tensor
    head_bias = weights.pop("lm_head.bias", None)
    result = llama.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    for name in result.missing_keys:
        # Llama's attention_bias also gives the output projection a bias.
        assert name == "lm_head.weight" or name.endswith("o_proj.bias")
        if name.endswith("bias"):
            llama.get_parameter(name).data.zero_()
    return llama, 0.0 if head_bias is None else head_bias


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_kv_heads": 2},
        {"n_kv_heads": 1, "include_qkv_bias": True},
        {"include_bias": True},
        {"weight_tying": True},
        {"rope_theta": 5e5, "rms_norm_eps": 1e-3, "embedding_size": 48},
    ],
    ids=lambda s: ",".join(s) or "plain",
)
@torch.no_grad()
def test_logits_equal_llama_without_its_causal_mask(settings):
    model = make(**settings)
    llama, bias = as_llama(model)
    ids = torch.randint(0, 40, (2, 11), generator=torch.Generator().manual_seed(0))
    full = torch.zeros(2, 1, 11, 11)
    expected = llama(ids, attention_mask=full).logits + bias
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
    causal = llama(ids).logits + bias
    assert (causal - expected)[:, :-1].abs().max() > 1e-2


@torch.no_grad()
def test_masks_of_every_shape_agree(tiny_llada):
    ids = torch.randint(0, 39, (2, 9))
    kept = torch.ones(2, 9, dtype=torch.long)
    kept[0, :4] = 0
    logits = tiny_llada(ids, attention_mask=kept).logits
    additive = torch.zeros(2, 1, 9, 9, dtype=torch.float64)
    additive.masked_fill_((kept == 0)[:, None, None], torch.finfo(torch.float64).min)
    infinite = additive.clamp_min(-1) * torch.inf
    infinite = infinite.nan_to_num(nan=0.0, neginf=-torch.inf)
    boolean = kept.bool()[:, None, None].expand(2, 1, 9, 9)
    for other in (kept.bool(), boolean, additive, additive[:, :, :1], infinite, additive.float()):
        again = tiny_llada(ids, attention_mask=other).logits
        torch.testing.assert_close(again[0, 4:], logits[0, 4:], atol=1e-12, rtol=0)
        torch.testing.assert_close(again[1], logits[1], atol=1e-12, rtol=0)
    assert (tiny_llada(ids).logits - logits)[0, 4:].abs().max() > 1e-3
    # An additive mask reaches single queries too.
    additive[1, 0, 2, 3:] = -1e9
    partly = tiny_llada(ids, attention_mask=additive).logits
    assert (partly - logits)[1, 2].abs().max() > 1e-3


@torch.no_grad()
def test_left_padding_changes_nothing(tiny_llada):
    ids = torch.randint(1, 39, (1, 7))
    alone = tiny_llada(ids).logits
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), ids), -1)
    mask = padded.ne(0)
    for positions in (None, (mask.long().cumsum(-1) - 1).clamp_min(0)):
        out = tiny_llada(padded, attention_mask=mask, position_ids=positions).logits
        assert out.isfinite().all()
        torch.testing.assert_close(out[:, 5:], alone, atol=1e-12, rtol=0)


@torch.no_grad()
def test_attention_is_bidirectional(tiny_llada):
    ids = torch.randint(1, 39, (1, 8))
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 39
    difference = (tiny_llada(ids).logits - tiny_llada(changed).logits).abs().amax(-1)
    assert (difference > 1e-6).all()


@torch.no_grad()
def test_float64_stays_float64(tiny_llada):
    out = tiny_llada.model(torch.randint(0, 39, (1, 6)))
    assert out.last_hidden_state.dtype == torch.float64
    # In float32 anywhere inside, a shift of all positions would show up at 1e-7.
    ids = torch.randint(0, 39, (1, 12))
    shifted = tiny_llada(ids, position_ids=torch.arange(12)[None] + 31).logits
    torch.testing.assert_close(shifted, tiny_llada(ids).logits, atol=1e-11, rtol=0)


@torch.no_grad()
def test_half_precision_runs_and_is_near(tiny_llada):
    ids = torch.randint(0, 39, (2, 6))
    exact = tiny_llada(ids).logits
    rough = tiny_llada.bfloat16()(ids).logits
    assert rough.dtype == torch.bfloat16
    assert 0 < (rough.double() - exact).abs().max() < 0.1 * exact.abs().max()


@torch.no_grad()
def test_logits_to_keep_and_labels(tiny_llada):
    ids = torch.randint(0, 39, (2, 6))
    full = tiny_llada(ids).logits
    assert torch.equal(tiny_llada(ids, logits_to_keep=2).logits, full[:, -2:])
    index = torch.tensor([0, 4])
    torch.testing.assert_close(tiny_llada(ids, logits_to_keep=index).logits, full[:, index])
    labels = ids.masked_fill(ids < 20, -100)
    expected = cross_entropy(full[labels >= 0], labels[labels >= 0])
    torch.testing.assert_close(tiny_llada(ids, labels=labels).loss, expected)


def test_gradient_checkpointing_keeps_gradients():
    ids = torch.randint(0, 39, (2, 6))
    gradients = []
    for checkpointing in (False, True):
        model = make().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append(model.model.transformer["blocks"][0].q_proj.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alibi", True),
        ("rope", False),
        ("scale_logits", True),
        ("input_emb_norm", True),
        ("block_type", "sequential"),
        ("activation_type", "swiglu"),
        ("layer_norm_type", "default"),
        ("attention_layer_norm", True),
        ("multi_query_attention", True),
    ],
)
def test_variants_that_llada_never_shipped_are_refused_by_name(key, value):
    with pytest.raises(CheckpointError) as caught:
        LLaDAConfig(**SIZES, **{key: value})
    message = str(caught.value)
    assert f"{key}={value!r}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"n_heads": 5}, "n_heads=5"),
        ({"n_kv_heads": 3}, "n_kv_heads=3"),
        ({"n_heads": 0}, "n_heads=0"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(settings, named):
    with pytest.raises(CheckpointError, match=named):
        LLaDAConfig(**(SIZES | settings))


def test_configuration_answers_to_both_namings():
    config = LLaDAConfig(**SIZES, n_kv_heads=2, max_sequence_length=77, **IDS)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 4)
    assert (config.num_key_value_heads, config.intermediate_size) == (2, 48)
    assert config.max_position_embeddings == 77
    stored = config.to_dict()
    assert stored["d_model"] == 32
    assert stored["max_sequence_length"] == 77
    assert LLaDAConfig.from_dict(stored).to_dict() == stored
    defaults = LLaDAConfig()
    assert (defaults.mask_token_id, defaults.eos_token_id, defaults.pad_token_id) == (
        126336,
        126081,
        126081,
    )
    assert LLaDAConfig(**SIZES, mlp_ratio=4).mlp_hidden_size == 48
    assert LLaDAConfig(d_model=32, n_heads=4, mlp_hidden_size=None).mlp_hidden_size == 128


def test_generate_refuses_what_a_masked_lm_cannot_do(tiny_llada):
    ids = torch.randint(1, 39, (1, 4))
    for settings in ({"num_beams": 2}, {"stop_strings": ["x"]}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            tiny_llada.generate(ids, max_new_tokens=4, **settings)


def test_new_embeddings_can_be_set():
    model = make(weight_tying=True)
    new = torch.nn.Embedding(40, 32)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    assert model.get_output_embeddings() is None
