import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from whet.errors import CheckpointError, OptionError
from whet.models.loading import check_dtype, load_checkpoint, read_config, resolve_directory
from whet.zoo.tokenizer import character_tokenizer

# What the published LLaDA-8B configuration holds beside sizes and ids.
LLADA_KEYS = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        "AutoModel": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "embedding_dropout": 0.0,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "transformers_version": "4.46.3",
    "use_cache": False,
    "weight_tying": False,
}
DREAM_KEYS = {
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_dream.DreamConfig",
        "AutoModel": "modeling_dream.DreamModel",
    },
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_window_layers": 28,
    "model_type": "Dream",
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_sliding_window": False,
}
LLADA_SIZES = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "mlp_hidden_size": 48}
LLADA_SIZES |= {"vocab_size": 112, "embedding_size": 112, "max_sequence_length": 64}
DREAM_SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
DREAM_SIZES |= {"num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 112}
DREAM_SIZES |= {"max_position_embeddings": 64}
IDS = {"mask_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
TOKENS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Directories as they are published: sharded, remote code named, foreign configuration keys."""
    from whet.models.dream import DreamConfig, DreamModel
    from whet.models.llada import LLaDAConfig, LLaDAModelLM

    made = {}
    for name, model_class, config in (
        ("llada", LLaDAModelLM, LLaDAConfig(**LLADA_SIZES, **IDS, init_std=0.2)),
        ("Dream", DreamModel, DreamConfig(**DREAM_SIZES, **IDS, initializer_range=0.2)),
    ):
        torch.manual_seed(2)
        model = model_class(config).eval()
        directory = tmp_path_factory.mktemp(name)
        model.save_pretrained(directory, max_shard_size="20KB")
        character_tokenizer(["sort"]).save_pretrained(directory)
        raw = LLADA_KEYS | LLADA_SIZES if name == "llada" else DREAM_KEYS | DREAM_SIZES
        (directory / "config.json").write_text(json.dumps(raw | IDS))
        (directory / f"modeling_{name.lower()}.py").write_text(
            "raise SystemExit('remote code ran')"
        )
        (directory / f"configuration_{name.lower()}.py").write_text("raise SystemExit('ran')")
        with torch.no_grad():
            made[name] = directory, model, model(TOKENS).logits
    return made


@pytest.fixture
def single(published, tmp_path):
    """A copy of the LLaDA directory with one weight file, to be damaged."""
    source, model, _ = published["llada"]
    directory = tmp_path / "model"
    shutil.copytree(source, directory)
    for path in directory.glob("*.safetensors*"):
        path.unlink()
    tensors = {n: t.detach().clone() for n, t in model.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def change_tensors(directory, **changes):
    """Replace tensors by name in the weight file; None removes one."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(directory, *named):
    """Loading fails with one sentence that names what is wrong."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(directory)
    message = str(caught.value)
    assert "\n" not in message
    for text in (str(directory), *named):
        assert text in message
    return message


@pytest.mark.parametrize("name", ["llada", "Dream"])
@torch.no_grad()
def test_published_directories_load_natively(published, name):
    directory, model, logits = published[name]
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    loaded, tokenizer = load_checkpoint(directory)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(loaded(TOKENS).logits, logits)
    assert (
        tokenizer("sort 31")["input_ids"] == character_tokenizer(["sort"])("sort 31")["input_ids"]
    )
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id) == (0, 1)


@pytest.mark.parametrize("name", ["llada", "Dream"])
@pytest.mark.parametrize("trust", [None, False, True])
@torch.no_grad()
def test_the_auto_classes_load_the_same_without_remote_code(published, name, trust):
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoTokenizer,
    )

    import whet.auto  # noqa: F401

    directory, model, logits = published[name]
    assert AutoConfig.from_pretrained(directory, trust_remote_code=trust).model_type == name
    for factory in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
        loaded = factory.from_pretrained(directory, trust_remote_code=trust).eval()
        assert type(loaded) is type(model)
        assert torch.equal(loaded(TOKENS).logits, logits)
    assert len(AutoTokenizer.from_pretrained(directory, trust_remote_code=trust)) > 90


@pytest.mark.parametrize("name", ["llada", "Dream"])
def test_saving_and_loading_are_inverse(published, name, tmp_path):
    directory, model, logits = published[name]
    loaded, tokenizer = load_checkpoint(directory)
    loaded.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    again, _ = load_checkpoint(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, logits)
    assert again.config.to_dict() | {"_name_or_path": ""} == loaded.config.to_dict() | {
        "_name_or_path": ""
    }


def test_llada_files_hold_the_published_names(single):
    with safe_open(single / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    block = ["attn_norm", "ff_norm", "q_proj", "k_proj", "v_proj"]
    block += ["attn_out", "ff_proj", "up_proj", "ff_out"]
    expected = {f"model.transformer.blocks.{i}.{b}.weight" for i in range(2) for b in block}
    expected |= {f"model.transformer.{n}.weight" for n in ("wte", "ln_f", "ff_out")}
    assert names == expected


@pytest.mark.parametrize("name", ["llada", "Dream"])
@torch.no_grad()
def test_tied_heads_survive(published, name, tmp_path):
    config_class, model_class = type(published[name][1].config), type(published[name][1])
    sizes = LLADA_SIZES if name == "llada" else DREAM_SIZES
    key = "weight_tying" if name == "llada" else "tie_word_embeddings"
    model = model_class(config_class(**sizes, **IDS, **{key: True})).eval()
    model.save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    loaded, _ = load_checkpoint(tmp_path)
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize(
    ("stored", "asked", "found"),
    [
        (torch.float16, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float32, "auto", torch.float32),
        (torch.float16, torch.float64, torch.float64),
        (torch.float16, torch.float16, torch.float16),
    ],
)
def test_dtypes(single, stored, asked, found):
    path = single / "model.safetensors"
    tensors = {n: t.to(stored) for n, t in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    change_config(single, dtype=str(stored).removeprefix("torch."))
    model, _ = load_checkpoint(single, dtype=asked)
    assert {p.dtype for p in model.parameters()} == {found}
    name = "model.transformer.wte.weight"
    assert torch.equal(model.state_dict()[name], tensors[name].to(found))


def test_dtype_names():
    assert check_dtype("float64") == torch.float64
    assert check_dtype("auto") == "auto"
    with pytest.raises(OptionError, match=r"dtype='bfloat' is not allowed: .*'bfloat16'"):
        check_dtype("bfloat")


def test_dreams_tokenizer_needs_no_remote_code(published, tmp_path):
    """A byte-level vocabulary under the published class name, as Dream-7B ships it."""
    from tokenizers.pre_tokenizers import ByteLevel

    from whet.models.dream import DreamTokenizerFast

    directory = tmp_path / "dream"
    shutil.copytree(published["Dream"][0], directory)
    for path in directory.glob("*token*"):
        path.unlink()
    characters = sorted(ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*characters, "he", "ll", "hell"])}
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_text("#version: 0.2\nh e\nl l\nhe ll\n")
    special = {
        str(len(vocab) + i): {"content": text, "special": True, "lstrip": False, "rstrip": False}
        | {"normalized": False, "single_word": False}
        for i, text in enumerate(("<|endoftext|>", "<|mask|>"))
    }
    settings = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": special,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "model_max_length": 131072,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "tokenization_dream.py").write_text("raise SystemExit('remote code ran')")
    _, tokenizer = load_checkpoint(directory)
    assert type(tokenizer) is DreamTokenizerFast
    ids = tokenizer("hello<|mask|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["hell", "o", "<|mask|>"]
    assert tokenizer.mask_token_id == len(vocab) + 1
    assert len(tokenizer) == len(vocab) + 2
    text = "żółw hello\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_directory_that_is_not_there(tmp_path):
    for text in (str(tmp_path / "no"), "./no", "no", "a/b/c"):
        with pytest.raises(CheckpointError, match="not a directory, a zoo model or a hub name"):
            resolve_directory(text)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not a directory"):
        resolve_directory(tmp_path / "file")


def test_a_hub_name_without_network_says_so():
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint("nobody-at-all/no-such-model")
    assert "nobody-at-all/no-such-model: no such local directory" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_configurations(single):
    path = single / "config.json"
    good = path.read_text()
    change_config(single, model_type="lada")
    assert "did you mean 'llada'?" in refused(single, "config.json", "'lada'")
    for text in ("{", "[]", "{}", '{"model_type": ["llada"]}', "\x80"):
        path.write_bytes(text.encode("latin-1"))
        refused(single, "config.json")
    for changes in ({"n_layers": "two"}, {"n_heads": 5}, {"alibi": True}, {"vocab_size": -4}):
        path.write_text(good)
        change_config(single, **changes)
        refused(single, "config.json", *changes)
    path.unlink()
    refused(single, "no config.json")


def test_bad_dream_configuration(published, tmp_path):
    directory = tmp_path / "dream"
    shutil.copytree(published["Dream"][0], directory)
    change_config(directory, num_hidden_layers="two")
    refused(directory, "config.json", "num_hidden_layers")


WTE, NORM = "model.transformer.wte.weight", "model.transformer.blocks.1.ff_norm.weight"


def test_a_missing_tensor(single):
    change_tensors(single, **{NORM: None})
    refused(single, "1 tensor missing", NORM)
    change_config(single, n_layers=3)
    refused(single, "10 tensors missing", "and 7 more")


def test_an_extra_tensor(single):
    change_tensors(single, **{"model.transformer.blocks.7.x": torch.zeros(2)})
    refused(single, "1 unknown tensor", "model.transformer.blocks.7.x")


def test_a_misshapen_tensor(single):
    change_tensors(single, **{NORM: torch.ones(31)})
    refused(single, NORM, "(31,)", "(32,)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite(single, value):
    change_tensors(single, **{NORM: torch.full((32,), value)})
    refused(single, NORM, "NaN or infinite")


@pytest.mark.parametrize("keep", [0, 5, 100, 3000, -4])
def test_a_truncated_file(single, keep):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(single, "model.safetensors", "damaged or truncated")


def test_a_missing_or_truncated_shard(published, tmp_path):
    directory = tmp_path / "m"
    shutil.copytree(published["llada"][0], directory)
    shards = sorted(directory.glob("model-*.safetensors"))
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-10])
    refused(directory, shards[1].name, "damaged or truncated")
    shards[1].unlink()
    refused(directory, "1 shard missing", shards[1].name)
    shards[1].write_bytes(content)
    load_checkpoint(directory)
    index = directory / "model.safetensors.index.json"
    for text in ("{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": ["b"]}}'):
        index.write_text(text)
        refused(directory, index.name, "not a shard index")
    index.write_text(json.dumps({"weight_map": {"a": "../config.json"}}))
    refused(directory)


@torch.no_grad()
def test_an_index_that_does_not_place_every_tensor_loses_none(published, tmp_path):
    directory = tmp_path / "m"
    shutil.copytree(published["llada"][0], directory)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"][NORM]
    path.write_text(json.dumps(index))
    loaded, _ = load_checkpoint(directory)
    assert torch.equal(loaded(TOKENS).logits, published["llada"][2])


def test_pickles_are_refused(single):
    (single / "model.safetensors").unlink()
    refused(single, "no model.safetensors")
    (single / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(single, "only pickle files", "pytorch_model.bin")


def test_pickles_beside_safetensors_are_not_read(single):
    (single / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    load_checkpoint(single)


@pytest.mark.parametrize("text", [None, "{", "\x00"])
def test_a_directory_without_a_usable_tokenizer(single, text):
    for path in single.glob("*token*"):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    refused(single, "tokenizer")


def test_reading_a_configuration_leaves_remote_code_alone(published):
    model_class, config = read_config(published["llada"][0])
    assert model_class.__name__ == "LLaDAModelLM"
    assert not hasattr(config, "auto_map")
    assert config.rope_theta == 500000.0
