import json

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from whet.errors import CheckpointError
from whet.layers.norm import RMSNorm
from whet.models.denoiser import base_model
from whet.models.loading import load_checkpoint
from whet.models.sdar import SDARConfig, SDARForCausalLM
from whet.zoo.tokenizer import character_tokenizer

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "vocab_size": 112,
    "max_position_embeddings": 64,
}
IDS = {"mask_token_id": 1, "eos_token_id": 0, "bos_token_id": 0}
# What the published SDAR-4B-Chat configuration holds beside sizes; it names neither the mask
# token nor the block.
PUBLISHED = {
    "architectures": ["SDARForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_sdar.SDARConfig",
        "AutoModel": "modeling_sdar.SDARModel",
        "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
    },
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_implementation": "flex_attention",
    "bos_token_id": 151643,
    "debug": False,
    "eos_token_id": 151643,
    "ep_size": 1,
    "fuse_cross_entropy": True,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_window_layers": 36,
    "micro_forward": False,
    "model_type": "sdar",
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "skip_checkpoint": False,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.52.4",
    "use_cache": False,
    "use_deepep": False,
    "use_sliding_window": False,
}
BLOCK = 4
TOKENS = torch.randint(3, 100, (2, 11), generator=torch.Generator().manual_seed(0))


def make(dtype=torch.float64, **settings):
    torch.manual_seed(1)
    config = SDARConfig(**(SIZES | IDS | {"initializer_range": 0.2} | settings))
    model = SDARForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def seen(length, block, columns=None):
    """Row i, column j: may the query at position i attend to the key at position j?"""
    columns = length if columns is None else columns
    rows = [[j // block <= i // block for j in range(columns)] for i in range(length)]
    return torch.tensor(rows)[None, None]


def as_qwen3(model, **settings):
    """The same weights in transformers' Qwen3, an implementation that is not ours."""
    sizes = SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}} | settings
    qwen = Qwen3ForCausalLM(Qwen3Config(**sizes)).to(model.dtype).eval()
    qwen.load_state_dict(model.state_dict())
    return qwen


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"num_key_value_heads": 4}, {"num_key_value_heads": 4}),
        (
            {"rope_theta": 1e4},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        ),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
        ({"rms_norm_eps": 1e-2}, {"rms_norm_eps": 1e-2}),
        ({"attention_bias": True}, {"attention_bias": True}),
        ({"block_length": 3}, {}),
        ({"block_size": 16}, {}),
    ],
    ids=lambda s: ",".join(s) or "plain",
)
@torch.no_grad()
def test_logits_equal_qwen3_under_a_block_causal_mask(ours, theirs):
    model = make(torch.float32, **ours)
    qwen = as_qwen3(model, **theirs)
    allowed = seen(11, model.config.block_length).expand(2, 1, 11, 11)
    expected = qwen(TOKENS, attention_mask=allowed).logits
    torch.testing.assert_close(model(TOKENS).logits, expected, atol=1e-5, rtol=1e-5)
    assert (qwen(TOKENS).logits - expected).abs().max() > 1e-2  # its own mask is causal


@torch.no_grad()
def test_float64_logits_equal_qwen3_with_norms_that_keep_float64():
    model = make()
    qwen = as_qwen3(model)
    for module in list(qwen.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Qwen3RMSNorm":
                norm = RMSNorm(child.weight.shape[0], child.variance_epsilon).double()
                norm.weight = child.weight
                setattr(module, name, norm)
    expected = qwen(TOKENS, attention_mask=seen(11, BLOCK).expand(2, 1, 11, 11)).logits
    torch.testing.assert_close(model(TOKENS).logits, expected, atol=1e-13, rtol=0)


@torch.no_grad()
def test_attention_is_block_causal():
    model = make()
    base = base_model(model)
    before = base(TOKENS).last_hidden_state
    for place in range(11):
        changed = TOKENS.clone()
        changed[:, place] = (changed[:, place] + 1) % 100
        difference = (base(changed).last_hidden_state - before).abs().amax(-1)
        start = place // BLOCK * BLOCK
        assert (difference[:, :start] == 0).all()
        assert (difference[:, start:] > 1e-9).all()


@torch.no_grad()
def test_the_block_length_can_be_set_after_loading():
    model, other = make(), make(block_length=8)
    assert (model(TOKENS).logits - other(TOKENS).logits).abs().max() > 1e-3
    model.config.block_length = 8
    assert torch.equal(model(TOKENS).logits, other(TOKENS).logits)


@pytest.mark.parametrize("pad", [1, 4, 6])
@pytest.mark.parametrize("clamped", [False, True])
@torch.no_grad()
def test_left_padding_changes_nothing(pad, clamped):
    model = make()
    long, short = TOKENS[:1], TOKENS[1:, pad:]
    padded = torch.cat((torch.zeros(1, pad, dtype=torch.long), short), -1)
    batch, mask = torch.cat((long, padded)), torch.ones(2, 11, dtype=torch.long)
    mask[1, :pad] = 0
    positions = mask.cumsum(-1) - 1
    if clamped:
        positions = positions.clamp_min(0)
    states = model.model(batch, mask, positions).last_hidden_state
    assert states.isfinite().all()
    torch.testing.assert_close(states[:1], model.model(long)[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(states[1:, pad:], model.model(short)[0], atol=1e-12, rtol=0)
    again = model.model(batch, mask.bool(), positions).last_hidden_state
    assert torch.equal(again, states)


@torch.no_grad()
def test_keys_masked_on_the_right_are_not_attended():
    model = make()
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[:, 9:] = 0
    logits = model(TOKENS, attention_mask=mask).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:, :9], model(TOKENS[:, :9]).logits, atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_four_dimensional_mask_is_used_as_it_is():
    model = make()
    allowed = torch.rand(2, 1, 11, 11, generator=torch.Generator().manual_seed(3)) < 0.5
    allowed |= torch.eye(11, dtype=torch.bool)
    expected = as_qwen3(model.float())(TOKENS, attention_mask=allowed).logits
    given = model(TOKENS, attention_mask=allowed).logits
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    for bad in (allowed.float(), allowed[:, 0], allowed[:, 0, 0, :5]):
        with pytest.raises(ValueError, match="attention_mask is torch"):
            model(TOKENS, attention_mask=bad)


@torch.no_grad()
def test_the_eager_attention_agrees():
    model = make()
    expected = model(TOKENS).logits
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[:, :3] = 0
    masked = model(TOKENS, attention_mask=mask).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(TOKENS).logits, expected, atol=1e-6, rtol=0)
    again = model(TOKENS, attention_mask=mask).logits
    torch.testing.assert_close(again[:, 3:], masked[:, 3:], atol=1e-6, rtol=0)
    assert again.isfinite().all()


class Store:
    """Keys and values by column, and nothing else of transformers' cache classes."""

    def __init__(self, length):
        self.length, self.columns, self.kept, self.calls = length, None, {}, []

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.calls.append((layer_idx, tuple(key_states.shape), tuple(value_states.shape)))
        if layer_idx not in self.kept:
            rows, heads, _, width = key_states.shape
            self.kept[layer_idx] = [
                torch.full((rows, heads, self.length, width), torch.nan, dtype=key_states.dtype)
                for _ in range(2)
            ]
        for held, fed in zip(self.kept[layer_idx], (key_states, value_states), strict=True):
            held[:, :, self.columns] = fed
        return tuple(held.nan_to_num(nan=0.0) for held in self.kept[layer_idx])


def through(model, store, ids, columns):
    """States of some columns, the keys of the others taken from the store."""
    store.columns = columns
    return model.model(
        ids[:, columns],
        attention_mask=seen(11, BLOCK)[:, :, columns].expand(2, 1, -1, -1),
        position_ids=torch.tensor(columns)[None],
        past_key_values=store,
    ).last_hidden_state


@torch.no_grad()
def test_forwards_of_parts_with_stored_keys_equal_the_whole():
    model = make()
    whole = model.model(TOKENS).last_hidden_state
    store = Store(11)
    for begin in (0, 4, 8):
        columns = list(range(begin, min(begin + 4, 11)))
        unfinished = TOKENS.index_fill(1, torch.tensor(columns[1:]), 1)
        through(model, store, unfinished, columns)  # a step on masks, overwritten by the next
        states = through(model, store, TOKENS, columns)
        torch.testing.assert_close(states, whole[:, columns], atol=1e-12, rtol=0)
    # Once everything is stored, any columns can be fed again, in any order.
    for columns in ([2], [9, 3, 6], list(range(11))):
        states = through(model, store, TOKENS, columns)
        torch.testing.assert_close(states, whole[:, columns], atol=1e-12, rtol=0)
    assert store.calls[0] == (0, (2, 2, 4, 8), (2, 2, 4, 8))
    assert [layer for layer, *_ in store.calls[:4]] == [0, 1, 0, 1]


@torch.no_grad()
def test_transformers_own_cache_works_too():
    model = make()
    whole, cache = model(TOKENS).logits, DynamicCache()
    for columns in (range(4), range(4, 8), range(8, 11)):
        part = model(
            TOKENS[:, columns],
            attention_mask=seen(11, BLOCK)[:, :, columns, : columns[-1] + 1].expand(2, 1, -1, -1),
            position_ids=torch.tensor([*columns])[None],
            past_key_values=cache,
        )
        torch.testing.assert_close(part.logits, whole[:, columns], atol=1e-12, rtol=0)


@torch.no_grad()
def test_no_cache_is_built():
    model = make()
    assert model.config.use_cache is False
    for settings in ({}, {"use_cache": True}):
        assert model.model(TOKENS, **settings).past_key_values is None


@torch.no_grad()
def test_embeddings_in_place_of_tokens():
    model = make()
    embeds = model.get_input_embeddings()(TOKENS)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(TOKENS).logits)


@torch.no_grad()
def test_float64_stays_float64():
    model = make()
    state = torch.randn(1, 3, 32, dtype=torch.float64)
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    assert len(norms) == 4 * 2 + 1
    assert all(type(norm) is RMSNorm for norm in norms)
    weight = model.model.norm.weight
    expected = weight * state / (state.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(model.model.norm(state), expected, atol=1e-14, rtol=0)
    assert model(TOKENS).logits.dtype == torch.float64


@torch.no_grad()
def test_half_precision_runs_and_is_near():
    model = make()
    exact = model(TOKENS).logits
    rough = model.bfloat16()(TOKENS).logits
    assert rough.dtype == torch.bfloat16
    assert 0 < (rough.double() - exact).abs().max() < 0.1 * exact.abs().max()


@torch.no_grad()
def test_logits_to_keep_and_labels():
    model = make()
    full = model(TOKENS).logits
    torch.testing.assert_close(model(TOKENS, logits_to_keep=2).logits, full[:, -2:])
    index = torch.tensor([0, 4])
    torch.testing.assert_close(model(TOKENS, logits_to_keep=index).logits, full[:, index])
    labels = TOKENS.masked_fill(TOKENS < 50, -100)
    expected = cross_entropy(full[labels >= 0], labels[labels >= 0])  # not shifted
    torch.testing.assert_close(model(TOKENS, labels=labels).loss, expected)
    torch.testing.assert_close(model.head(model.model(TOKENS).last_hidden_state), full)


@torch.no_grad()
def test_hidden_states_can_be_asked_for():
    model = make()
    states = model(TOKENS, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert torch.equal(states[-1], model.model(TOKENS).last_hidden_state)


def test_no_module_calls_itself_causal():
    """Attention kernels that get no mask go by this flag."""
    flags = [m.is_causal for m in make().modules() if hasattr(m, "is_causal")]
    assert len(flags) >= 2
    assert not any(flags)


def test_gradient_checkpointing_keeps_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = make().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(TOKENS, labels=TOKENS).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_defaults_are_the_published_models():
    config = SDARConfig.from_dict(dict(PUBLISHED))
    assert (config.mask_token_id, config.block_length, config.block_size) == (151669, 4, 4)
    assert (config.eos_token_id, config.vocab_size, config.head_dim) == (151643, 151936, 128)
    assert (config.hidden_size, config.num_hidden_layers) == (2560, 36)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1000000}
    assert config.use_cache is False
    assert config._attn_implementation is None
    assert config.to_dict() | {"_name_or_path": ""} == (
        SDARConfig.from_dict(config.to_dict()).to_dict() | {"_name_or_path": ""}
    )


@pytest.mark.parametrize("name", ["block_size", "block_length"])
def test_both_names_of_the_block_are_read_and_one_is_written(name):
    config = SDARConfig(**SIZES, **IDS, **{name: 16}, rope_theta=1e4)
    assert config.block_length == config.block_size == 16
    stored = config.to_dict()
    assert stored["block_size"] == 16
    assert "block_length" not in stored
    again = SDARConfig.from_dict(stored)
    assert again.to_dict() == stored
    assert again.rope_parameters["rope_theta"] == 1e4
    config.block_length = 8
    assert config.to_dict()["block_size"] == 8


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"block_size": 0}, "block_size=0"),
        ({"block_length": "4"}, "block_size='4'"),
        ({"block_size": 4, "block_length": 8}, "block_size=4 and block_length=8"),
        ({"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
    ],
)
def test_what_sdar_never_shipped_is_refused_by_name(settings, named):
    with pytest.raises(CheckpointError) as caught:
        SDARConfig(**(SIZES | IDS | settings))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A directory as on the hub: sharded, remote code named, the published configuration keys."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = tmp_path_factory.mktemp("sdar")
    model = make(torch.float32)
    model.save_pretrained(directory, max_shard_size="20KB")
    character_tokenizer(["sort"]).save_pretrained(directory)
    raw = PUBLISHED | SIZES | IDS
    (directory / "config.json").write_text(json.dumps(raw))
    for name in ("modeling_sdar.py", "configuration_sdar.py"):
        (directory / name).write_text("raise SystemExit('remote code ran')")
    return directory, model


@torch.no_grad()
def test_a_published_directory_loads(published):
    directory, model = published
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    loaded, tokenizer = load_checkpoint(directory)
    assert type(loaded) is SDARForCausalLM
    assert not loaded.training
    assert loaded.config._attn_implementation == "sdpa"
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert tokenizer.padding_side == "left"
    exact, _ = load_checkpoint(directory, dtype=torch.float64)
    assert exact(TOKENS).logits.dtype == torch.float64


@pytest.mark.parametrize("trust", [None, False, True])
@torch.no_grad()
def test_the_auto_classes_load_the_same_without_remote_code(published, trust):
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    import whet.auto  # noqa: F401

    directory, model = published
    assert AutoConfig.from_pretrained(directory, trust_remote_code=trust).model_type == "sdar"
    for factory in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
        loaded = factory.from_pretrained(directory, trust_remote_code=trust).eval()
        assert type(loaded) is SDARForCausalLM
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_saving_and_loading_are_inverse_under_the_published_names(tied, tmp_path):
    model = make(torch.float32, tie_word_embeddings=tied, block_length=8)
    model.save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    parts = [f"self_attn.{p}_{k}" for p in "qk" for k in ("proj", "norm")]
    parts += ["self_attn.v_proj", "self_attn.o_proj", "input_layernorm"]
    parts += ["post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    expected = {f"model.layers.{i}.{part}.weight" for i in range(2) for part in parts}
    expected |= {"model.embed_tokens.weight", "model.norm.weight"}
    assert names == expected | (set() if tied else {"lm_head.weight"})
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded.config.block_length == 8
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_a_bad_configuration_is_refused_when_loading(published, tmp_path):
    directory, _ = published
    raw = json.loads((directory / "config.json").read_text())
    for key, value in {"block_size": -1, "use_sliding_window": True, "hidden_size": "32"}.items():
        (tmp_path / "config.json").write_text(json.dumps(raw | {key: value}))
        with pytest.raises(CheckpointError, match=key) as caught:
            load_checkpoint(tmp_path)
        assert "\n" not in str(caught.value)


def test_the_published_tokenizer_needs_no_remote_code(published, tmp_path):
    """A byte-level vocabulary under Qwen2's class name, as SDAR ships it."""
    import shutil

    from tokenizers.pre_tokenizers import ByteLevel

    directory = tmp_path / "sdar"
    shutil.copytree(published[0], directory)
    for path in directory.glob("*token*"):
        path.unlink()
    characters = sorted(ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*characters, "he", "ll", "hell"])}
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_text("#version: 0.2\nh e\nl l\nhe ll\n")
    special = {
        str(len(vocab) + i): {"content": text, "special": True, "lstrip": False, "rstrip": False}
        | {"normalized": False, "single_word": False}
        for i, text in enumerate(("<|endoftext|>", "<|im_end|>", "<|MASK|>"))
    }
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "auto_map": {
            "AutoTokenizer": [
                "tokenization_qwen2.Qwen2Tokenizer",
                "tokenization_qwen2_fast.Qwen2TokenizerFast",
            ]
        },
        "added_tokens_decoder": special,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|MASK|>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    for name in ("tokenization_qwen2.py", "tokenization_qwen2_fast.py"):
        (directory / name).write_text("raise SystemExit('remote code ran')")
    _, tokenizer = load_checkpoint(directory)
    ids = tokenizer("hello<|MASK|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["hell", "o", "<|MASK|>"]
    assert tokenizer.mask_token_id == len(vocab) + 2
