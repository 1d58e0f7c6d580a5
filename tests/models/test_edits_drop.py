import copy
from unittest.mock import patch

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from tests.models import test_roles_models as families
from tests.models.test_roles_models import CONFIGS, ENCODERS, NAMES, inputs, output, same, widen
from whet.compress.calibrate import empty_model
from whet.errors import OptionError
from whet.models.edits import Resize, edits_of
from whet.models.edits.drop import drop_blocks, without_blocks
from whet.models.roles import axis, blocks, keep

COUNTS = {"n_layer", "n_layers", "num_hidden_layers"}
CAUSAL = [
    name
    for name in NAMES
    if name not in {*ENCODERS, "llada", "llada-tied", "dream", "sdar", "dit", "opt-post"}
]
GONE = (1, 2)


def deep(name, count=4, **changes):
    """The family's tiny model with more blocks (DiT keeps its two), float32."""
    kind, settings = CONFIGS[name]
    key = COUNTS & set(settings)
    settings = settings | dict.fromkeys(key, count) | changes
    with patch.dict(families.CONFIGS, {name: (kind, settings)}):
        return eager(families.plain(name))


def eager(model):
    """The grouped kernel of experts knows neither float64 nor odd widths."""
    if any(parameter.dim() == 3 for parameter in model.parameters()):
        model.set_experts_implementation("eager")
    return model


def wide(model):
    """The same in float64."""
    return widen(model.double())


def reloaded(model, folder, **options):
    """As the stock class reads it back."""
    model.save_pretrained(folder)
    return eager(type(model).from_pretrained(folder, **options).eval())


def gone_of(name):
    return (1,) if name == "dit" else GONE


def bypassed(model, indices):
    """The model with these blocks' output replaced by their input."""

    def skip(module, args, kwargs, output):
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    for index in indices:
        block = model.get_submodule(blocks(model)[index].name)
        block.register_forward_hook(skip, with_kwargs=True)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_computes_what_the_model_does_with_the_blocks_bypassed(name):
    model = wide(deep(name))
    expected = output(bypassed(copy.deepcopy(model), gone_of(name)), name)
    drop_blocks(model, gone_of(name))
    same(output(model, name), expected, name)
    assert (expected - output(wide(deep(name)), name)).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_model_loads_in_its_stock_class_to_the_same_bits(name, tmp_path):
    model = deep(name)
    before = len(blocks(model))
    drop_blocks(model, gone_of(name))
    assert edits_of(model) == []
    loaded = reloaded(model, tmp_path)
    assert type(loaded) is type(deep(name))
    assert len(blocks(loaded)) == before - len(gone_of(name))
    stored = loaded.state_dict()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in model.state_dict().items())
    # Products depend in their last bit on where a tensor begins.
    assert torch.allclose(output(loaded, name), output(model, name), atol=1e-6)


@pytest.mark.parametrize("name", CAUSAL)
def test_generation_with_and_without_a_cache_gives_the_same_tokens(name):
    model = wide(deep(name))
    drop_blocks(model, GONE)
    model.generation_config.eos_token_id = None
    given = {"input_ids": inputs(name)["input_ids"][:1, :5], "do_sample": False}
    given |= {"max_new_tokens": 20, "attention_mask": torch.ones(1, 5).long(), "pad_token_id": 0}
    with_cache = model.generate(**given, use_cache=True)
    assert torch.equal(with_cache, model.generate(**given, use_cache=False))
    cache = DynamicCache(config=model.config)
    out = model(inputs(name)["input_ids"], past_key_values=cache, use_cache=True)
    assert len(out.past_key_values.layers) == 2
    assert all(layer.get_seq_length() == 9 for layer in out.past_key_values.layers)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_operations_fall_by_those_of_the_blocks(name):
    model = deep(name)
    parts = [model.get_submodule(blocks(model)[index].name) for index in gone_of(name)]
    before, lost = model.num_parameters(), sum(p.numel() for x in parts for p in x.parameters())
    flops, of_blocks = counted(model, name), [counted(model, name, i) for i in gone_of(name)]
    drop_blocks(model, gone_of(name))
    assert model.num_parameters() == before - lost
    assert counted(model, name) == flops - sum(of_blocks)


def counted(model, name, block=None):
    counter = FlopCounterMode(display=False)
    with counter:
        output(model, name)
    if block is None:
        return counter.get_total_flops()
    found = counter.get_flop_counts()
    part = blocks(model)[block].name
    [own] = [v for k, v in found.items() if k.endswith(f".{part}")]
    return sum(own.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2_moe-dense", "bert", "distilbert"])
def test_dropping_nothing_changes_nothing(name):
    model = deep(name)
    config, expected = model.config.to_dict(), output(model, name)
    drop_blocks(model, [])
    assert model.config.to_dict() == config
    assert torch.equal(output(model, name), expected)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_model_gets_the_same_shapes(name):
    model = deep(name)
    if name == "dit":
        with torch.device("meta"):
            empty = type(model).from_config(model.config)
    else:
        empty = empty_model(type(model), copy.deepcopy(model.config))
    drop_blocks(model, gone_of(name))
    drop_blocks(empty, gone_of(name))
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in empty.state_dict().items()} == shapes


def test_what_was_cut_before_is_said_of_the_blocks_that_are_left():
    model = deep("llama")
    keep(model, axis(model, "ffn", 3), range(5))
    drop_blocks(model, GONE)
    assert edits_of(model) == [Resize("ffn", 1, 5)]


def test_a_block_that_writes_nothing_is_free():
    model = wide(deep("llama"))
    for parameter in (*model.model.layers[2].self_attn.o_proj.parameters(),):
        parameter.data.zero_()
    for parameter in (*model.model.layers[2].mlp.down_proj.parameters(),):
        parameter.data.zero_()
    expected = output(model, "llama")
    drop_blocks(model, [2])
    same(output(model, "llama"), expected, "llama")


S, F = "sliding_attention", "full_attention"


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma2", "gemma3", "qwen2_moe"])
@pytest.mark.parametrize(
    ("types", "gone", "left"),
    [
        ([S, F, S, F, S, F], (1, 2), [S, F, S, F]),
        ([S, S, F, S, S, F], (0,), [S, F, S, S, F]),
        ([S, S, F, S, F, F], (2, 4, 5), [S, S, S]),
    ],
)
def test_hybrid_models_keep_each_layers_own_kind_of_attention(name, types, gone, left, tmp_path):
    changes = {"layer_types": types, "sliding_window": 4}
    changes |= {"use_sliding_window": True} if name.startswith("qwen") else {}
    model = deep(name, 6, **changes)
    expected = output(bypassed(copy.deepcopy(model), gone), name)
    assert not torch.allclose(expected, output(deep(name, 6), name))  # the window matters
    drop_blocks(model, gone)
    assert model.config.layer_types == left
    attentions = [layer.self_attn for layer in model.model.layers]
    windows = [getattr(part, "sliding_window", None) is not None for part in attentions]
    assert windows == [kind == S for kind in left]
    same(output(model, name), expected, name, 1e4)
    assert torch.allclose(output(reloaded(model, tmp_path), name), output(model, name), atol=1e-6)


@pytest.mark.parametrize(
    ("gone", "dense"), [((0,), [1, 3]), ((1,), [0, 1, 3]), ((1, 3), [0, 1, 2])]
)
@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
def test_sparse_and_dense_layers_stay_what_they_were(name, gone, dense, tmp_path):
    model = deep(name, 5, decoder_sparse_step=2)  # layers 0, 2 and 4 are dense
    drop_blocks(model, gone)
    loaded = reloaded(model, tmp_path)
    assert [b.index for b in blocks(loaded) if b.mlp] == dense
    assert torch.allclose(output(loaded, name), output(model, name), atol=1e-6)


def test_layers_before_the_window_are_counted_anew():
    model = deep("qwen2", 6, max_window_layers=3, use_sliding_window=True, sliding_window=4)
    drop_blocks(model, (1, 4))
    assert model.config.max_window_layers == 2
    assert model.config.layer_types == [F, F, S, S]
    deep_enough = deep("qwen2", 6, max_window_layers=6)
    drop_blocks(deep_enough, (1, 4))
    assert deep_enough.config.max_window_layers == 4


def test_scores_that_are_divided_by_the_layers_number_stay_the_same(tmp_path):
    model = wide(deep("gpt2", 5, scale_attn_by_inverse_layer_idx=True))
    gone = (0, 2)
    expected = output(bypassed(copy.deepcopy(model), gone), "gpt2")
    drop_blocks(model, gone)
    same(output(model, "gpt2"), expected, "gpt2")
    loaded = reloaded(model, tmp_path, dtype=torch.float64)
    same(output(loaded, "gpt2"), expected, "gpt2")


def test_overrides_of_single_layers_go_with_their_layers():
    model = deep("llama")
    model.config.per_layer_config = {1: {"attention_dropout": 0.1}, 3: {"attention_dropout": 0.2}}
    drop_blocks(model, (1, 2))
    assert [c.attention_dropout for c in model.config.per_layer_config] == [0.0, 0.2]
    drop_blocks(model, (1,))
    assert not model.config.is_heterogeneous


def test_dropping_twice_counts_from_what_is_left():
    once, twice = wide(deep("llama", 6)), wide(deep("llama", 6))
    drop_blocks(once, (1, 4))
    drop_blocks(twice, (4,))
    drop_blocks(twice, (1,))
    assert torch.equal(output(once, "llama"), output(twice, "llama"))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_blocks_shares_tensors_with_the_whole_one(name):
    model = wide(deep(name))
    config, before = model.config, output(model, name)
    told = copy.deepcopy(dict(config) if name == "dit" else config.to_dict())
    smaller = without_blocks(model, gone_of(name))
    tensors = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert {id(tensor) for tensor in (*smaller.parameters(), *smaller.buffers())} < tensors
    assert model.config is config
    assert (dict(config) if name == "dit" else config.to_dict()) == told
    assert torch.equal(output(model, name), before)
    drop_blocks(model, gone_of(name))
    assert torch.equal(output(model, name), output(smaller, name))


def test_the_whole_model_keeps_its_scaled_queries():
    model = wide(deep("gpt2", 5, scale_attn_by_inverse_layer_idx=True))
    before = output(model, "gpt2")
    without_blocks(model, (0, 2))
    assert torch.equal(output(model, "gpt2"), before)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([4], "names block 4: there are blocks 0 to 3"),
        ([-1], "names block -1"),
        ([1, 1], "names a block twice"),
        (range(4), "names all 4 blocks"),
        ([1.5], "must be whole numbers"),
    ],
)
def test_numbers_that_cannot_be_dropped_are_refused(indices, message):
    with pytest.raises(OptionError, match=message):
        drop_blocks(deep("llama"), indices)


def test_layers_that_others_depend_on_are_refused():
    with pytest.raises(OptionError, match="block 0 of a dit model cannot be dropped"):
        drop_blocks(deep("dit"), [0])
    model = deep("llama")
    model.config.num_kv_shared_layers = 2
    with pytest.raises(OptionError, match="num_kv_shared_layers=2"):
        drop_blocks(model, [1])
    model.config.model_type = "gemma3n_text"
    with pytest.raises(OptionError, match="no roles are known"):
        drop_blocks(model, [1])
