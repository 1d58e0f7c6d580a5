import copy
import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from tests.models.test_roles_models import BASE, plain
from whet.errors import InputError, NonFiniteError, OptionError
from whet.layers.packed_linear import (
    PackedExperts,
    PackedLinear,
    packed_layers,
    quantization_config_of,
)
from whet.layers.quantizer import Grid, Quantized, fake_quantize, quantize_nearest

TOKEN = Grid(8, True, "token")
GROUP = Grid(4, True, "group", 8)
W8 = Grid(8, True, "channel")
SCHEMES = {
    "W4A16 g8": (GROUP, None),
    "W4A16 g4": (Grid(4, True, "group", 4), None),
    "W4A16 channel": (Grid(4, True, "channel"), None),
    "W4A16 asymmetric": (Grid(4, False, "group", 8), None),
    "W4A16 asymmetric channel": (Grid(4, False, "channel"), None),
    "W8A16": (W8, None),
    "W8A16 g8": (Grid(8, True, "group", 8), None),
    "W8A8": (W8, TOKEN),
}


def linear(out=24, inputs=32, bias=True, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, out, bias=bias).to(dtype)


def pack(layer, grid, activations=None):
    weight = layer.weight.detach()
    return PackedLinear.of(layer, quantize_nearest(weight, grid), activations=activations)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_that_of_the_rounded_weight(scheme, dtype, bias):
    grid, activations = SCHEMES[scheme]
    layer = linear(bias=bias, dtype=dtype)
    packed = pack(layer, grid, activations)
    x = torch.randn(2, 5, 32).to(dtype)
    seen = x if activations is None else fake_quantize(x, activations)
    weight = fake_quantize(layer.weight.detach(), grid)
    assert torch.equal(packed.dequantized(), weight)
    assert torch.equal(packed(x), F.linear(seen, weight, layer.bias))
    assert (packed.in_features, packed.out_features) == (32, 24)
    assert not any(buffer.requires_grad for buffer in packed.buffers())
    assert [name for name, _ in packed.named_parameters()] == ["bias"] * bias


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_empty_layer_takes_the_state_of_a_full_one(scheme):
    grid, activations = SCHEMES[scheme]
    packed = pack(linear(), grid, activations)
    empty = PackedLinear.empty(24, 32, grid, activations=activations, bias=True)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    shapes = [
        {name: (tensor.dtype, tensor.shape) for name, tensor in layer.state_dict().items()}
        for layer in (packed, empty)
    ]
    assert shapes[0] == shapes[1]
    empty.load_state_dict(packed.state_dict(), assign=True)
    x = torch.randn(3, 32)
    assert torch.equal(empty(x), packed(x))


def test_gradients_reach_the_input_and_the_bias_alone():
    packed = pack(linear(), GROUP)
    x = torch.randn(3, 32, requires_grad=True)
    packed(x).sum().backward()
    assert torch.allclose(x.grad, packed.dequantized().sum(0).expand(3, -1))
    assert torch.equal(packed.bias.grad, torch.full((24,), 3.0))
    assert [p.grad is not None for p in packed.parameters()] == [True]


def test_types_and_devices_move_only_what_has_a_type_to_change():
    packed = pack(linear(), Grid(4, False, "group", 8))
    wide = copy.deepcopy(packed).double()
    kinds = {name: tensor.dtype for name, tensor in wide.state_dict().items()}
    assert kinds == {
        "bias": torch.float64,
        "weight_packed": torch.int32,
        "weight_scale": torch.float64,
        "weight_shape": torch.int64,
        "weight_zero_point": torch.int32,
    }
    assert torch.allclose(wide.dequantized(), packed.dequantized().double())
    meta = packed.to("meta")
    assert all(tensor.is_meta for tensor in meta.state_dict().values())
    assert meta(torch.empty(3, 32, device="meta")).shape == (3, 24)


def test_columns_of_any_group_keep_their_index():
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    layer = linear()
    by_group = quantize_nearest(layer.weight.detach()[:, order], GROUP)
    index = torch.empty_like(order)
    index[order] = torch.arange(32) // 8
    values = torch.empty_like(by_group.values)
    values[:, order] = by_group.values
    packed = PackedLinear(Quantized(values, by_group.scales, GROUP, index), layer.bias)
    assert torch.equal(packed.dequantized()[:, order], by_group.dequantized())
    config = quantization_config_of(nn.ModuleDict({"a": packed}))
    assert config["config_groups"]["group_0"]["weights"]["actorder"] == "group"


@pytest.mark.parametrize(
    ("grid", "activations", "says"),
    [
        (Grid(3, True, "channel"), None, "bits=3 cannot be packed"),
        (Grid(4, True, "tensor"), None, "granularity='tensor'"),
        (Grid(4, True, "channel", narrow=True), None, "narrow=True has no layout"),
        (Grid(4, True, "channel"), TOKEN, "8 bits"),
        (W8, W8, "must be 'token'"),
    ],
)
def test_what_the_layout_has_no_place_for_is_refused(grid, activations, says):
    with pytest.raises(OptionError, match=says):
        pack(linear(), grid, activations)
    with pytest.raises(OptionError, match=says):
        PackedLinear.empty(24, 32, grid, activations=activations)


def test_groups_must_divide_and_inputs_be_finite():
    with pytest.raises(InputError, match="does not divide 30"):
        PackedLinear.empty(24, 30, GROUP)
    packed = pack(linear(), W8, TOKEN)
    with pytest.raises(NonFiniteError):
        packed(torch.full((2, 32), float("nan")))


def quantized_model(model, rule, skip=("lm_head",)):
    """rule(name) -> (grid, activations) or None."""
    for name, module in list(model.named_modules()):
        scheme = rule(name) if isinstance(module, nn.Linear) and name not in skip else None
        if scheme is not None:
            model.set_submodule(name, pack(module, *scheme))
    return model


def logits(model):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, BASE["vocab_size"], (2, 9), generator=generator)
    with torch.no_grad():
        return model(input_ids=ids).logits


def reloaded(model, folder):
    model.config.quantization_config = quantization_config_of(model)
    model.save_pretrained(folder)
    again, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return again


@pytest.mark.parametrize("scheme", SCHEMES)
def test_transformers_and_compressed_tensors_load_what_is_saved_bit_for_bit(scheme, tmp_path):
    grid, activations = SCHEMES[scheme]
    # Wide enough for zero points of two words, of which the package takes one for none.
    sizes = {"hidden_size": 64, "intermediate_size": 48, "attention_bias": True}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**BASE | sizes)).eval()
    quantized_model(model, lambda name: (grid, activations))
    again = reloaded(model, tmp_path)
    assert torch.equal(logits(again), logits(model))
    for name, layer in packed_layers(model).items():
        assert torch.equal(again.get_submodule(name).weight, layer.dequantized()), name
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["lm_head"]
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]


@pytest.mark.parametrize("name", ["llama-tied", "qwen3", "gemma3", "phi3", "opt"])
def test_every_family_loads(name, tmp_path):
    model = plain(name)
    quantized_model(model, lambda n: (Grid(4, True, "group", 4), None))
    assert torch.equal(logits(reloaded(model, tmp_path)), logits(model))


@pytest.mark.parametrize("second", [(Grid(8, True, "channel"), None), (W8, TOKEN), None])
def test_several_schemes_in_one_model(second, tmp_path):
    first = Grid(4, True, "group", 4)
    model = quantized_model(plain("llama"), lambda n: second if "mlp" in n else (first, None))
    again = reloaded(model, tmp_path)
    assert torch.equal(logits(again), logits(model))
    config = quantization_config_of(model)
    assert len(config["config_groups"]) == (1 if second is None else 2)
    named = {n for g in config["config_groups"].values() for n in g["targets"]}
    packed = set(packed_layers(model))
    assert named == ({"Linear"} if second is None else packed)
    dense = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert dense == set(config["ignore"])


def packed_mixture(name, experts, attention):
    """A mixture whose experts, and whose attention, have grids."""
    model = plain(name)
    names = ("w1", "w3", "w2") if name == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    quantized_model(model, lambda n: attention if "self_attn" in n else None)
    for layer in model.model.layers:
        fused = layer.mlp.experts
        parts = []
        for gate_up, down in zip(
            fused.gate_up_proj.detach(), fused.down_proj.detach(), strict=True
        ):
            three = (*gate_up.chunk(2), down)
            parts.append(tuple(PackedLinear(quantize_nearest(w, experts)) for w in three))
        layer.mlp.experts = PackedExperts(parts, fused.act_fn, names)
    return model


@pytest.mark.parametrize("name", ["olmoe", "mixtral"])
@pytest.mark.parametrize("attention", [(Grid(4, True, "group", 2), None), (W8, TOKEN)])
def test_packed_experts_load_as_the_fused_tensors_of_the_stock_class(name, attention, tmp_path):
    model = packed_mixture(name, Grid(4, True, "group", 2), attention)
    again = reloaded(model, tmp_path)
    for layer, stock in zip(model.model.layers, again.model.layers, strict=True):
        experts = layer.mlp.experts
        for number in range(len(experts)):
            gate, up, down = (experts.get_submodule(f"{number}.{n}") for n in experts.names)
            fused = torch.cat([gate.dequantized(), up.dequantized()])
            assert torch.equal(stock.mlp.experts.gate_up_proj[number], fused)
            assert torch.equal(stock.mlp.experts.down_proj[number], down.dequantized())
    assert torch.allclose(logits(again), logits(model), atol=1e-4)


def test_packed_experts_are_the_fused_ones_of_the_rounded_weights():
    grid = Grid(8, True, "channel")
    model, plain_model = packed_mixture("olmoe", grid, None), plain("olmoe")
    for layer in plain_model.model.layers:
        for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            weight.data = torch.stack([fake_quantize(w, grid) for w in weight.data])
    assert torch.allclose(logits(model), logits(plain_model), atol=1e-5)


def test_routers_heads_and_fused_experts_are_ignored():
    model = plain("qwen2_moe")
    assert quantization_config_of(model) is None
    quantized_model(model, lambda n: (W8, None) if "self_attn" in n else None)
    ignore = quantization_config_of(model)["ignore"]
    assert {"lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.shared_expert_gate"} <= {
        *ignore
    }
    assert "re:model\\.layers\\.0\\.mlp\\.experts(\\..*)?$" in ignore
    assert not any("self_attn" in name or "norm" in name for name in ignore)
