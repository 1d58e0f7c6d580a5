import pytest
import torch
from torch import nn

from tests.models.test_roles_models import (
    LAYER_NORM,
    NAMES,
    POST,
    PRE,
    inputs,
    make,
    output,
    plain,
    same,
)
from whet.errors import OptionError
from whet.layers.norm import RMSNorm
from whet.models.roles import axes, axis, fold_norms, rotate, untie

SANDWICH = ["gemma2", "gemma3"]


def orthogonal(size, copies=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (size, size) if copies is None else (copies, size, size)
    return torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64)).Q


@pytest.mark.parametrize("name", PRE)
def test_folding_norms_leaves_outputs_alone_and_gains_at_one(name):
    model = make(name)
    before = output(model, name)
    fold_norms(model)
    same(output(model, name), before, name)
    assert not any(
        isinstance(m, nn.LayerNorm) for k, m in model.named_modules() if "layernorm" not in k[-12:]
    )
    once = {key: value.clone() for key, value in model.state_dict().items()}
    fold_norms(model)
    assert all(torch.equal(value, once[key]) for key, value in model.state_dict().items())
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize("name", sorted({*LAYER_NORM} & {*PRE}))
def test_a_folded_layer_norm_model_has_a_stream_of_zero_mean(name):
    model = make(name)
    fold_norms(model)
    seen = []
    for module in model.modules():
        if isinstance(module, RMSNorm):
            assert (module.weight == 1).all()
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0].mean(-1)))
    output(model, name)
    assert len(seen) >= 3
    assert max(mean.abs().max() for mean in seen) < 1e-12


@pytest.mark.parametrize("name", [name for name in PRE if name not in SANDWICH])
def test_rotating_the_folded_stream_leaves_outputs_alone(name):
    model = make(name)
    before = output(model, name)
    fold_norms(model)
    embedding = model.get_input_embeddings().weight.detach().clone()
    a = axis(model, "residual")
    rotate(model, a, orthogonal(a.units))
    assert (model.get_input_embeddings().weight - embedding).abs().max() > 0.01
    same(output(model, name), before, name)


@pytest.mark.parametrize("name", SANDWICH)
def test_norms_on_branch_outputs_can_be_rotated_only_with_equal_gains(name):
    model = make(name)
    fold_norms(model)
    with pytest.raises(OptionError, match="between a branch and the stream"):
        rotate(model, axis(model, "residual"), orthogonal(16))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.fill_(0.3)
            layer.post_feedforward_layernorm.weight.fill_(-0.2)
    before = output(model, name)
    rotate(model, axis(model, "residual"), orthogonal(16))
    same(output(model, name), before, name)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_free_keys_can_be_rotated_in_every_group(name):
    model = make(name)
    before = output(model, name)
    found = [a for a in axes(model) if a.kind in ("values", "keys")]
    for a in found:
        rotate(model, a, orthogonal(a.units, a.copies, seed=a.block))
        same(output(model, name), before, name)
    assert {a.kind for a in found} >= {"values"}


@pytest.mark.parametrize("name", sorted(POST))
def test_post_norm_models_are_refused_with_the_reason(name):
    model = make(name)
    for operation in (fold_norms, lambda m: rotate(m, axis(m, "residual"), orthogonal(16))):
        with pytest.raises(OptionError, match=r"after every addition \(post-norm\)"):
            operation(model)


def test_dit_is_refused_with_the_reason():
    model = make("dit")
    for operation in (fold_norms, lambda m: rotate(m, axis(m, "residual"), orthogonal(12))):
        with pytest.raises(OptionError, match="shifts, scales and gates"):
            operation(model)


@pytest.mark.parametrize(("name", "words"), [("llama", "gains of"), ("opt", "is a LayerNorm")])
def test_an_unfolded_stream_is_not_rotated(name, words):
    model = make(name)
    with pytest.raises(OptionError, match=f"{words}.*call fold_norms first"):
        rotate(model, axis(model, "residual"), orthogonal(16))


def test_channels_behind_a_nonlinearity_are_not_rotated():
    model = make("llama")
    with pytest.raises(OptionError, match="ffn of block 0 of a llama model cannot be rotated"):
        rotate(model, axis(model, "ffn", 0), orthogonal(12))


def test_clipped_values_are_not_rotated():
    model = make("olmoe")
    model.config.clip_qkv = 2.0
    with pytest.raises(OptionError, match=r"values of block 1.*are clipped one by one"):
        rotate(model, axis(model, "values", 1), orthogonal(4))


def test_a_matrix_that_is_not_orthogonal_is_refused():
    model = make("llama")
    fold_norms(model)
    a = axis(model, "residual")
    with pytest.raises(OptionError, match="not orthogonal: QᵀQ differs from the identity by"):
        rotate(model, a, 1.01 * torch.eye(16))
    with pytest.raises(OptionError, match="not orthogonal"):
        rotate(model, a, torch.full((16, 16), torch.nan))
    with pytest.raises(OptionError, match=r"Q has shape \[8, 8\]: residual needs \[16, 16\]"):
        rotate(model, a, torch.eye(8))


def test_folding_a_trunk_is_refused():
    for trunk in (make("llama").model, make("opt").model):
        with pytest.raises(OptionError, match="has no head to fold its last norm into"):
            fold_norms(trunk)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "gemma", "llada-tied", "opt"])
def test_untying_copies_the_embedding_once(name):
    model = make(name)
    before = output(model, name)
    assert untie(model)
    assert not untie(model)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert torch.equal(embedding, head)
    assert embedding.data_ptr() != head.data_ptr()
    assert torch.equal(output(model, name), before)


def test_models_whose_norms_compute_in_float32_come_close():
    """Stock float32 modules, as users have them: fold and rotate within rounding."""
    for name in ("llama", "gemma", "qwen3", "phi", "opt", "gpt2", "mixtral"):
        model = plain(name)
        before = output(model, name)
        fold_norms(model)
        a = axis(model, "residual")
        rotate(model, a, orthogonal(a.units))
        assert (output(model, name) - before).abs().max() < 1e-4 * before.abs().max()


def test_folding_creates_the_biases_that_readers_lack():
    model = make("opt-plain")
    with torch.no_grad():
        model.model.decoder.layers[0].self_attn_layer_norm.bias.normal_()
    before = output(model, "opt-plain")
    assert model.model.decoder.layers[0].self_attn.q_proj.bias is None
    fold_norms(model)
    assert model.model.decoder.layers[0].self_attn.q_proj.bias.abs().max() > 0
    assert model.lm_head.bias is not None
    same(output(model, "opt-plain"), before, "opt-plain")
    ids = inputs("opt")["input_ids"]
    assert model.generate(ids, max_new_tokens=3, min_new_tokens=3).shape == (2, 12)
