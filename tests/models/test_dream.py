import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from whet.models.dream import DreamConfig, DreamModel

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "vocab_size": 40,
    "initializer_range": 0.2,
}
IDS = {"mask_token_id": 39, "eos_token_id": 0, "pad_token_id": 0}


def make(**settings):
    torch.manual_seed(1)
    model = DreamModel(DreamConfig(**(SIZES | IDS | {"num_key_value_heads": 2} | settings))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"rope_theta": 1e6}),
        ({"num_key_value_heads": 4}, {"num_key_value_heads": 4, "rope_theta": 1e6}),
        ({"rope_theta": 1e4}, {"rope_theta": 1e4}),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": True, "rope_theta": 1e6}),
        ({"rms_norm_eps": 1e-2}, {"rms_norm_eps": 1e-2, "rope_theta": 1e6}),
    ],
    ids=lambda s: ",".join(s) or "plain",
)
@torch.no_grad()
def test_logits_equal_qwen2_without_its_causal_mask(ours, theirs):
    model = make(**ours)
    theta = theirs.pop("rope_theta")
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    qwen = Qwen2ForCausalLM(
        Qwen2Config(**(SIZES | {"num_key_value_heads": 2} | rope | theirs))
    ).eval()
    qwen.load_state_dict(model.state_dict())
    ids = torch.randint(0, 40, (2, 11), generator=torch.Generator().manual_seed(0))
    expected = qwen(ids, attention_mask=torch.zeros(2, 1, 11, 11)).logits
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert (qwen(ids).logits - expected)[:, :-1].abs().max() > 1e-2


@torch.no_grad()
def test_attention_is_bidirectional(tiny_dream):
    ids = torch.randint(1, 39, (1, 8))
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 39
    for mask in (None, torch.ones(1, 8, dtype=torch.bool)):
        one = tiny_dream(ids, attention_mask=mask).logits
        two = tiny_dream(changed, attention_mask=mask).logits
        assert ((one - two).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def test_left_padding_changes_nothing(tiny_dream):
    ids = torch.randint(1, 39, (1, 7))
    alone = tiny_dream(ids).logits
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), ids), -1)
    mask = padded.ne(0)
    positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
    out = tiny_dream(padded, attention_mask=mask, position_ids=positions).logits
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, 5:], alone, atol=1e-12, rtol=0)


@torch.no_grad()
def test_float64_norms_stay_float64(tiny_dream):
    state = torch.randn(1, 3, 32, dtype=torch.float64)
    expected = state / (state.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    for norm in (tiny_dream.model.norm, tiny_dream.model.layers[0].input_layernorm):
        torch.testing.assert_close(norm(state), expected, atol=1e-14, rtol=0)
    assert tiny_dream(torch.randint(0, 39, (1, 6))).logits.dtype == torch.float64


def test_no_module_calls_itself_causal(tiny_dream):
    """Attention kernels that get no mask go by this flag."""
    flags = [m.is_causal for m in tiny_dream.modules() if hasattr(m, "is_causal")]
    assert len(flags) >= 2
    assert not any(flags)


def test_no_cache_is_built(tiny_dream):
    assert tiny_dream.config.use_cache is False
    assert tiny_dream(torch.randint(0, 39, (1, 6))).past_key_values is None


def test_published_keys_give_a_full_attention_model():
    """The keys of the published config.json, `use_cache` and sliding window included."""
    config = DreamConfig.from_dict(
        {
            "architectures": ["DreamModel"],
            "auto_map": {"AutoConfig": "configuration_dream.DreamConfig"},
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "hidden_act": "silu",
            "max_window_layers": 28,
            "model_type": "Dream",
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_mrope": False,
            "use_sliding_window": False,
            **SIZES,
            "num_key_value_heads": 2,
            **IDS,
        }
    )
    assert config.use_cache is False
    assert config.is_causal is False
    assert config.mask_token_id == 39
    again = DreamConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    ids = torch.randint(0, 39, (1, 6))
    models = []
    for c in (config, again):
        torch.manual_seed(0)
        models.append(DreamModel(c).eval())
    assert torch.equal(models[0](ids).logits, models[1](ids).logits)
    defaults = DreamConfig()
    assert (defaults.mask_token_id, defaults.eos_token_id, defaults.vocab_size) == (
        151666,
        151643,
        152064,
    )
