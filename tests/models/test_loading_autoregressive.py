"""Autoregressive checkpoints of transformers' own classes: they load as saved, or say why not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import whet
from whet.errors import CheckpointError
from whet.models.registry import is_autoregressive, loadable_class, loadable_types
from whet.zoo.tokenizer import character_tokenizer

SHARED = {"vocab_size": 112, "initializer_range": 0.2, "eos_token_id": 0, "bos_token_id": 0}
LLAMA = SHARED | {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts_per_tok": 2}
CONFIGS = {
    "llama": LLAMA,
    "qwen2": LLAMA | {"tie_word_embeddings": True},
    "gpt2": SHARED | {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "mixtral": LLAMA | EXPERTS | {"num_local_experts": 4},
    "olmoe": LLAMA | EXPERTS | {"num_experts": 4},
}
TOKENS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function: model_type -> (folder written by save_pretrained, model), made once."""
    made = {}

    def make(model_type, **changes):
        if model_type not in made:
            config_class, model_class = loadable_class(model_type)
            torch.manual_seed(1)
            model = model_class(config_class(**CONFIGS[model_type], **changes)).eval()
            folder = tmp_path_factory.mktemp(model_type)
            model.save_pretrained(folder)
            character_tokenizer(["sort"]).save_pretrained(folder)
            made[model_type] = folder, model
        return made[model_type]

    return make


@pytest.fixture
def llama(saved, tmp_path):
    """A copy of the Llama, to be damaged."""
    return shutil.copytree(saved("llama")[0], tmp_path / "model")


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder, *named):
    with pytest.raises(CheckpointError) as caught:
        whet.load(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    for text in (str(folder), *named):
        assert text in message, message


# --- what loads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", CONFIGS)
@torch.no_grad()
def test_a_saved_model_loads_with_the_same_logits(saved, model_type):
    folder, model = saved(model_type)
    loaded, tokenizer = whet.load(str(folder))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert is_autoregressive(loaded)
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert tokenizer.padding_side == "left"
    if model_type != "qwen2":  # transformers replaces the tokenizer of this type by its own class
        assert tokenizer.decode(tokenizer("sort 31")["input_ids"]) == "sort 31"


@torch.no_grad()
def test_shards_and_half_precision_load(saved, tmp_path):
    _, model = saved("llama")
    model.save_pretrained(
        tmp_path,
        state_dict={n: t.half() for n, t in model.state_dict().items()},
        max_shard_size="20KB",
    )
    character_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded, _ = whet.load(str(tmp_path))
    assert loaded.dtype == torch.float32  # half precision is slow on a CPU
    assert torch.allclose(loaded(TOKENS).logits, model(TOKENS).logits, atol=0.05)


@pytest.mark.parametrize("model_type", ["mixtral", "olmoe"])
@torch.no_grad()
def test_experts_run_in_double_precision_and_in_any_batch(saved, model_type):
    folder, _ = saved(model_type)
    loaded, _ = whet.load(str(folder), dtype=torch.float64)
    both = loaded(TOKENS).logits
    assert both.dtype == torch.float64
    alone = torch.cat([loaded(row[None]).logits for row in TOKENS])
    assert torch.allclose(both, alone, atol=1e-10)


def test_every_known_model_type_names_its_classes():
    types = loadable_types()
    assert {"llada", "Dream", "sdar", "llada2_moe", "diffusion_gemma", *CONFIGS} <= set(types)
    for model_type in types:
        config_class, model_class = loadable_class(model_type)
        assert config_class is not None
        assert model_class is not None


# --- what does not ------------------------------------------------------------------------------


def test_a_missing_tensor_is_named(llama):
    change_tensors(llama, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    refused(llama, "1 tensor missing: model.layers.1.mlp.up_proj.weight")


def test_missing_experts_are_named(saved, tmp_path):
    folder = shutil.copytree(saved("mixtral")[0], tmp_path / "model")

    def drop(tensors):
        for name in [n for n in tensors if "layers.1" in n and "experts" in n]:
            del tensors[name]

    change_tensors(folder, drop)
    refused(folder, "missing", "layers.1", "experts")


def test_one_missing_expert_of_several_is_named(saved, tmp_path):
    folder = shutil.copytree(saved("mixtral")[0], tmp_path / "model")

    path = folder / "model.safetensors"
    name = sorted(n for n in load_file(path) if ".experts.1." in n)[0]
    change_tensors(folder, lambda t: t.pop(name))
    refused(folder, f"1 tensor missing: {name}")


def test_an_expert_of_another_shape_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved("mixtral")[0], tmp_path / "model")
    name = sorted(n for n in load_file(folder / "model.safetensors") if ".experts.1." in n)[0]
    change_tensors(folder, lambda t: t.update({name: torch.zeros(5, 5)}))
    refused(folder)


def test_a_wrong_shape_names_the_tensor(llama):
    change_tensors(llama, lambda t: t.update({"lm_head.weight": torch.zeros(100, 32)}))
    refused(
        llama, "tensor lm_head.weight has shape (100, 32), the configuration asks for (112, 32)"
    )


def test_another_size_in_the_configuration_is_refused(llama):
    change_config(llama, intermediate_size=64)
    refused(llama, "tensor model.layers.0.mlp.down_proj.weight has shape (32, 48)", "(32, 64)")


def test_a_truncated_file_is_named(llama):
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(llama, str(path), "damaged or truncated")


def test_a_missing_shard_is_named(saved, tmp_path):
    saved("llama")[1].save_pretrained(tmp_path, max_shard_size="20KB")
    character_tokenizer().save_pretrained(tmp_path)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path, "1 shard missing", shard.name)


@pytest.mark.parametrize(
    ("model_type", "says"),
    [
        ("lama", "did you mean 'llama'?"),
        ("ViT-huge-xxl-9", "model_type 'ViT-huge-xxl-9' is not supported"),
        ("t5", "model_type 't5' is not supported"),
        (None, "model_type 'None' is not supported"),
    ],
)
def test_an_unknown_model_type_is_refused(llama, model_type, says):
    change_config(llama, model_type=model_type)
    refused(llama, "config.json", says)


def test_pickle_files_are_not_read(llama):
    (llama / "model.safetensors").unlink()
    (llama / "pytorch_model.bin").write_bytes(b"would run")
    refused(llama, "only pickle files (pytorch_model.bin)")


def test_remote_code_does_not_run(llama):
    change_config(llama, auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    (llama / "modeling_own.py").write_text("raise SystemExit('remote code ran')")
    loaded, _ = whet.load(str(llama))
    assert type(loaded).__name__ == "LlamaForCausalLM"


def test_weights_that_are_not_finite_are_named(llama):
    change_tensors(llama, lambda t: t["model.norm.weight"].fill_(float("nan")))
    refused(llama, "model.norm.weight", "NaN")


def test_a_value_of_a_wrong_type_in_the_configuration_is_refused(llama):
    change_config(llama, hidden_size="wide")
    refused(llama, "hidden_size")


def test_a_folder_without_a_tokenizer_is_refused(llama):
    for path in llama.glob("token*"):
        path.unlink()
    refused(llama, "tokenizer")


def test_an_encoder_is_not_taken_for_a_model_that_writes_left_to_right(tmp_path):
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    sizes |= {"intermediate_size": 16, "vocab_size": 112, "max_position_embeddings": 32}
    for is_decoder in (False, True):
        BertLMHeadModel(BertConfig(**sizes, is_decoder=is_decoder)).save_pretrained(tmp_path)
        character_tokenizer().save_pretrained(tmp_path)
        if is_decoder:
            assert is_autoregressive(whet.load(str(tmp_path))[0])
        else:
            refused(tmp_path, "model_type 'bert' with is_decoder false reads both ways")
