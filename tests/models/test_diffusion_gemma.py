import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import whet
from tests.gemma import BLOCK, tiny_gemma
from whet.dlm.canvas import denoise
from whet.dlm.gemma import DiffusionGemma
from whet.dlm.texts import generate_texts
from whet.errors import CheckpointError
from whet.models.denoiser import BLANK, Denoiser, base_model, unwrap
from whet.models.loading import load_checkpoint
from whet.zoo.tokenizer import character_tokenizer

HEAD = "lm_head.weight"
EMBEDDINGS = "model.decoder.embed_tokens.weight"
OPTIONS = DiffusionGemma(max_steps=4, entropy_bound=2.0)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def model():
    """A head of 112 rows for a tokenizer of 99 tokens."""
    return tiny_gemma(vocab_size=112, eos_token_id=0)


@pytest.fixture(scope="module")
def published(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("gemma")
    model.save_pretrained(directory)
    character_tokenizer(["sort"]).save_pretrained(directory)
    return directory


@pytest.fixture
def damaged(published, tmp_path):
    """A copy to break: change(tensors) or config(settings) in place."""
    directory = tmp_path / "copy"
    shutil.copytree(published, directory)

    def edit(change=None, config=None):
        path = directory / "model.safetensors"
        tensors = load_file(path)
        if change is not None:
            change(tensors)
            save_file(tensors, path, metadata={"format": "pt"})
        if config is not None:
            raw = json.loads((directory / "config.json").read_text())
            config(raw)
            (directory / "config.json").write_text(json.dumps(raw))
        return directory

    return edit


def decode(model):
    canvas = torch.cat((torch.arange(20, 31), torch.full((2 * BLOCK,), BLANK)))[None]
    return denoise(model, canvas, options=OPTIONS)[0]


@pytest.mark.parametrize("load", [whet.load, load_checkpoint], ids=["load", "load_checkpoint"])
def test_saving_and_loading_are_inverse(model, published, load):
    loaded, tokenizer = load(published)
    assert type(loaded) is type(model)
    assert not loaded.training
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[n]) for n, t in loaded.state_dict().items())
    assert loaded.tokenizer is tokenizer
    assert tokenizer.padding_side == "left"
    del loaded.tokenizer
    assert torch.equal(decode(loaded), decode(model))


def test_what_is_tied_is_stored_once_and_stays_tied(model, published):
    with safe_open(published / "model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    tied = set(model.all_tied_weights_keys)
    assert {HEAD, "model.encoder.language_model.layers.0.mlp.up_proj.weight"} <= tied
    assert stored == set(model.state_dict()) - tied
    loaded, _ = load_checkpoint(published)
    weights = dict(loaded.named_parameters(remove_duplicate=False))
    for name, source in loaded.all_tied_weights_keys.items():
        assert weights[name] is weights[source]
    # What is not a weight is each part's own.
    parts = (loaded.model.decoder, loaded.model.encoder.language_model)
    assert parts[0].layers[0].layer_scalar != parts[1].layers[0].layer_scalar


def test_shards_and_files_that_hold_everything(model, tmp_path):
    for name, size in (("shards", "20KB"), ("whole", "1GB")):
        directory = tmp_path / name
        model.save_pretrained(directory, max_shard_size=size)
        character_tokenizer().save_pretrained(directory)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    everything = {n: t.detach().clone() for n, t in model.state_dict().items()}
    save_file(everything, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    for directory in (tmp_path / "shards", tmp_path / "whole"):
        loaded, _ = load_checkpoint(directory)
        assert all(torch.equal(t, everything[n]) for n, t in loaded.state_dict().items())


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16])
def test_dtypes(damaged, dtype):
    stored = torch.float16 if dtype == "auto" else torch.float32

    def cast(tensors):
        tensors.update({n: t.to(stored) for n, t in tensors.items()})

    loaded, _ = load_checkpoint(damaged(cast), dtype=dtype)
    wanted = torch.float32 if dtype == "auto" else dtype
    assert {p.dtype for p in loaded.parameters()} == {wanted}
    filled = decode(loaded)
    assert ((filled >= 0) & (filled < 112)).all()


def shorten(name):
    def change(tensors):
        tensors[name] = tensors[name][1:].clone()

    return change


def setting(name, value, part="text_config"):
    def config(raw):
        raw[part][name] = value

    return config


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        (shorten(EMBEDDINGS), None, rf"{EMBEDDINGS} has shape \(111, 32\), .* \(112, 32\)"),
        (shorten("model.decoder.self_conditioning.up_proj.weight"), None, "self_conditioning"),
        (lambda t: t.pop(EMBEDDINGS), None, f"1 tensor missing: {EMBEDDINGS}"),
        (lambda t: t.update(a=torch.ones(1)), None, "1 unknown tensor: a"),
        (lambda t: t.update({HEAD: torch.ones(3, 3)}), None, rf"{HEAD} has shape \(3, 3\)"),
        (lambda t: t[EMBEDDINGS].fill_(torch.nan), None, "holds NaN"),
        (None, setting("hidden_size", 40), "has shape"),
        (None, setting("num_hidden_layers", "two"), "num_hidden_layers"),
        (None, lambda raw: raw.update(tie_word_embeddings=False), "tensors missing"),
    ],
)
def test_what_is_wrong_is_said(damaged, change, config, says):
    directory = damaged(change, config)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_checkpoint(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_denoiser_reads_the_text_model(model, published):
    found = Denoiser.of(model)
    assert (found.mask_token_id, found.traits.noise) == (BLANK, "uniform")
    assert (found.eos_token_ids, found.pad_token_id) == ((0,), 0)
    assert (found.vocab_size, found.context_length) == (112, 64)
    assert (found.block_length, found.traits.shift) == (None, False)
    assert unwrap(model) is model
    assert base_model(model) is model.model
    loaded, tokenizer = load_checkpoint(published)
    assert Denoiser.of(loaded).vocab_size == len(tokenizer) < 112


@pytest.mark.parametrize(
    ("configured", "generation", "eos", "ends"),
    [
        (0, None, (0,), (0, 7)),
        (0, [0, 5], (0,), (0, 5, 7)),
        ([3, 0], 5, (3, 0), (3, 0, 5, 7)),
        (None, [4], (), (4, 7)),
    ],
)
def test_the_denoiser_knows_every_end(configured, generation, eos, ends):
    """The turn of an instruction-tuned checkpoint ends a text, and what its generation names."""
    model = tiny_gemma(eos_token_id=configured)
    model.generation_config.eos_token_id = generation
    tokenizer = character_tokenizer()
    vocabulary = {**tokenizer.get_vocab(), "<turn|>": 7}
    tokenizer.get_vocab = lambda: vocabulary
    found = Denoiser.of(model, tokenizer)
    assert (found.eos_token_ids, found.end_ids) == (eos, ends)


def test_text_in_and_text_out(published):
    """A batch of ragged prompts; whatever the head has behind the tokenizer's last token stays."""
    model, tokenizer = whet.load(published)
    options = DiffusionGemma(max_steps=3, t_max=2.0, eos="early_stop")
    prompts = ["sort 31", "sort 3", "a"]
    done = list(generate_texts(model, tokenizer, prompts, options=options, gen_length=12))
    for row, found in enumerate(done):
        assert found.prompt == prompts[row]
        assert all(0 <= t < len(tokenizer) for t in found.tokens)
        until = found.tokens.index(0) if 0 in found.tokens else len(found.tokens)
        assert found.text == tokenizer.decode(found.tokens[:until])
        [alone] = generate_texts(
            model, tokenizer, [prompts[row]], options=options, gen_length=12, requests=[row]
        )
        assert (alone.tokens, alone.steps) == (found.tokens, found.steps)
