"""SmoothQuant's scales and the folding of any."""

import pytest
import torch

from tests.compress.inputs import correlated, random, statistics
from whet.compress.awq import awq_scale
from whet.compress.folding import divide_norm, divide_outputs, multiply_inputs
from whet.compress.smoothquant import smoothing_scale
from whet.compress.statistics import InputStatistics
from whet.errors import InputError, NonFiniteError, OptionError
from whet.layers.quantizer import Grid, fake_quantize


def inputs_of(model, modules, ids):
    """What goes into each of the modules in one forward."""
    seen = {}
    handles = [
        m.register_forward_pre_hook(lambda _, args, key=key: seen.update({key: args[0]}))
        for key, m in modules.items()
    ]
    model(ids)
    for handle in handles:
        handle.remove()
    return {key: InputStatistics.of(x) for key, x in seen.items()}


def smooth(weights, stats):
    return smoothing_scale(weights, stats, 0.5)


def activation_aware(weights, stats):
    return awq_scale(weights, stats, Grid(3, True, "group", 16)).scale


@pytest.mark.parametrize("rule", [smooth, activation_aware])
@torch.no_grad()
def test_a_model_with_folded_scales_has_the_same_logits(tiny_llada, rule):
    model = tiny_llada
    ids = torch.arange(24).view(2, 12)
    before = model(ids).logits
    for block in model.model.transformer.blocks:
        block.attn_norm.weight.mul_(random(32).exp())  # strong and weak channels
        block.ff_norm.weight.mul_(random(32, seed=1).exp())
    scaled = model(ids).logits
    assert (scaled - before).abs().max() > 0.1
    for block in model.model.transformer.blocks:
        modules = {"attention": block.q_proj, "mlp": block.up_proj, "down": block.ff_out}
        stats = inputs_of(model, modules, ids)
        for norm, readers, key in (
            (block.attn_norm, [block.q_proj, block.k_proj, block.v_proj], "attention"),
            (block.ff_norm, [block.ff_proj, block.up_proj], "mlp"),
        ):
            scale = rule([r.weight for r in readers], stats[key])
            assert (scale - 1).abs().max() > 0.1
            for reader in readers:
                reader.weight.copy_(multiply_inputs(reader.weight, scale))
            norm.weight.copy_(divide_norm(norm.weight, None, scale)[0])
        scale = rule([block.ff_out.weight], stats["down"])
        block.ff_out.weight.copy_(multiply_inputs(block.ff_out.weight, scale))
        weight, bias = divide_outputs(block.up_proj.weight, block.up_proj.bias, scale)
        assert bias is None
        block.up_proj.weight.copy_(weight)
    assert torch.allclose(model(ids).logits, scaled, rtol=0, atol=1e-11)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_with_bias_and_offset_is_divided(offset):
    x, weight, bias = random(5, 8), random(8, seed=1), random(8, seed=2)
    scale = random(8, seed=3).exp()
    new, shift = divide_norm(weight, bias, scale, offset=offset)
    expected = (x * (offset + weight) + bias) / scale
    assert torch.allclose(x * (offset + new) + shift, expected, rtol=1e-13)


def test_a_linear_layer_with_bias_is_divided():
    layer, scale = torch.nn.Linear(6, 8).double(), random(8).exp()
    x = random(5, 6)
    weight, bias = divide_outputs(layer.weight, layer.bias, scale)
    expected = layer(x) / scale
    assert torch.allclose(torch.nn.functional.linear(x, weight, bias), expected, rtol=1e-13)


def test_scales_are_those_of_the_paper():
    x, weights = correlated(50, 6), [random(4, 6), random(3, 6, seed=5)]
    both = torch.cat(weights)
    for alpha in (0.0, 0.5, 0.8, 1.0):
        found = smoothing_scale(weights, statistics(x), alpha)
        expected = x.abs().amax(0) ** alpha / both.abs().amax(0) ** (1 - alpha)
        assert torch.allclose(found, expected)


def test_at_one_half_activations_and_weights_share_their_range():
    x, weight = correlated(50, 6), random(4, 6)
    s = smoothing_scale([weight], statistics(x), 0.5)
    assert torch.allclose((x / s).abs().amax(0), (weight * s).abs().amax(0))


def test_rounding_activations_with_strong_channels_loses_less():
    x, weight = random(200, 32), random(16, 32)
    x[:, [3, 20]] *= 50
    s = smoothing_scale([weight], statistics(x), 0.5)
    token, channel = Grid(8, True, "token"), Grid(8, True, "channel")

    def error(inputs, weights):
        y = fake_quantize(inputs, token) @ fake_quantize(weights, channel).t()
        return float((y - x @ weight.t()).square().mean())

    assert error(x / s, multiply_inputs(weight, s)) < 0.5 * error(x, weight)


def test_channels_that_are_never_used_keep_their_scale():
    x, weight = correlated(50, 6), random(4, 6)
    x[:, 1] = 0
    weight[:, 4] = 0
    found = smoothing_scale([weight], statistics(x), 0.5)
    assert found[1] == found[4] == 1
    assert (smoothing_scale([weight], statistics(x[:0])) == 1).all()


def test_what_makes_no_sense_is_refused():
    stats, weight = statistics(correlated(9, 6)), random(4, 6)
    with pytest.raises(OptionError, match=r"alpha=1.5 must be between 0 and 1"):
        smoothing_scale([weight], stats, 1.5)
    with pytest.raises(InputError, match="weights are empty"):
        smoothing_scale([], stats)
    with pytest.raises(InputError, match=r"scale has shape \[5\]: the layer has 6 inputs"):
        multiply_inputs(weight, torch.ones(5))
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="finite and above 0"):
            divide_outputs(weight, None, torch.full((4,), bad))
    with pytest.raises(NonFiniteError, match=r"does not fit torch\.float16"):
        multiply_inputs(weight.half(), torch.full((6,), 1e6))
