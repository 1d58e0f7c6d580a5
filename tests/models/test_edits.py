"""Saved models with changed shapes: what is read off them, and what loads again."""

import copy
import json
import pickle

import pytest
import torch
import transformers
from torch import nn

import whet
from tests.models.test_roles_models import NAMES, output
from tests.models.test_roles_models import plain as make
from whet.errors import CheckpointError, InputError, OptionError
from whet.layers.low_rank_linear import LowRankLinear
from whet.models.edits import (
    Replace,
    Resize,
    build,
    drop_blocks,
    edits_of,
    empty_stock,
    replace,
    save_model,
)
from whet.models.edits.classes import auto_class, edited_class, stock_class
from whet.models.edits.structure import from_json, to_json
from whet.models.registry import register
from whet.models.roles import axes, blocks, fold_norms, keep
from whet.models.roles.structure import View
from whet.zoo import load

TEXT_MODELS = [name for name in NAMES if not name.startswith("dit")]
CUTTABLE = ("ffn", "shared_ffn", "experts", "expert_ffn", "kv_groups")
register()


def cut_some(model):
    """Every cuttable axis of the first block loses units; those of others stay."""
    for kind in CUTTABLE:
        for axis in axes(model):
            if (axis.kind, axis.block) == (kind, 0) and axis.units > 2 and not axis.uncuttable:
                keep(model, axis, range(axis.units - (4 if kind == "expert_ffn" else 1)))
    return model


def factor(model, rank=3):
    """The output of block 0's attention becomes low-rank."""
    name = blocks(model)[0].attention.output
    old = model.get_submodule(name)
    weight = old.weight.T if type(old).__name__ == "Conv1D" else old.weight
    g = torch.Generator().manual_seed(0)
    up = torch.randn(weight.shape[0], rank, generator=g).to(weight.dtype)
    down = torch.randn(rank, weight.shape[1], generator=g).to(weight.dtype)
    replace(model, name, LowRankLinear.of(up, down, old.bias))
    return name


def eager(model):
    """The grouped kernel of experts wants widths of a multiple of 16 bytes."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_an_unchanged_model_has_no_edits(name):
    assert edits_of(make(name)) == []


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_edits_rebuild_every_name_and_shape_on_an_empty_model(name):
    model = cut_some(make(name))
    factor(model)
    edits = edits_of(model)
    assert any(isinstance(e, Replace) and e.layer == "low_rank" for e in edits)
    empty = empty_stock(model)
    build(empty, from_json(json.loads(json.dumps(to_json(edits)))))
    assert all(p.is_meta for p in empty.parameters())
    assert {n: p.shape for n, p in empty.state_dict().items()} == {
        n: p.shape for n, p in model.state_dict().items()
    }


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_changed_model_loads_again_bit_equal(name, tmp_path):
    model = cut_some(make(name))
    factor(model)
    expected = output(eager(model), name)
    saved = save_model(model, None, tmp_path / "m", verify=False)
    assert saved.model_type == f"whet_{model.config.model_type}"
    auto = getattr(transformers, auto_class(stock_class(type(model)).__name__))
    found = auto.from_pretrained(tmp_path / "m").eval()
    assert type(found) is edited_class(stock_class(type(model)))
    for key, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[key], tensor), key
    torch.testing.assert_close(output(eager(found), name), expected, atol=1e-6, rtol=0)
    assert edits_of(found) == list(saved.edits)
    assert type(model) is stock_class(type(model))  # saving leaves it as it was


@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_folded_layer_norms_are_saved_as_replacements(name, tmp_path):
    model = make(name)
    fold_norms(model)
    expected = output(model, name)
    save_model(model, None, tmp_path / "m", verify=False)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(output(found, name), expected)


def test_what_a_stock_class_can_build_is_saved_stock(tmp_path):
    model, tokenizer = load("tiny-ar", dtype=torch.float32)
    for axis in axes(model, "ffn"):
        keep(model, axis, range(axis.units - 16))
    drop_blocks(model, [1])
    saved = save_model(model, tokenizer, tmp_path / "m")
    assert (saved.model_type, saved.edits, saved.difference) == ("llama", (), 0.0)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "edits" not in config
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "m")
    assert len(plain.model.layers) == len(model.model.layers)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    """tiny-ar with uneven feed-forward widths and a low-rank layer, saved and checked."""
    model, tokenizer = load("tiny-ar", dtype=torch.float32)
    cut_some(model)
    factor(model, rank=16)
    folder = tmp_path_factory.mktemp("edits") / "m"
    saved = save_model(model, tokenizer, folder, max_shard_size="400KB")
    assert saved.difference == 0
    assert saved.model_type == "whet_llama"
    return folder


def test_shards_load_through_every_door(smaller):
    assert len(list(smaller.glob("*.safetensors"))) > 1
    model, tokenizer = whet.load(smaller)
    auto = transformers.AutoModelForCausalLM.from_pretrained(smaller, dtype="auto").eval()
    ids = tokenizer("12+34=", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, auto(ids).logits)
    trunk = transformers.AutoModel.from_pretrained(smaller)
    assert type(trunk).__name__ == "WhetLlamaModel"


def test_generation_with_and_without_a_cache_agrees(smaller):
    model, tokenizer = whet.load(smaller, dtype=torch.float64)
    ids = tokenizer("12+34=", return_tensors="pt").input_ids
    cached, plain = (
        model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)


def test_it_copies_pickles_and_trains_on(smaller):
    model, tokenizer = whet.load(smaller)
    ids = tokenizer("12+34=46", return_tensors="pt").input_ids
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            assert torch.equal(other(ids).logits, model(ids).logits)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_peft_aims_at_the_layers_inside(smaller):
    import peft

    model, _ = whet.load(smaller)
    settings = peft.LoraConfig(r=2, target_modules=["down", "up", "q_proj"])
    adapted = peft.get_peft_model(model, settings)
    names = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert any("o_proj.down" in n for n in names)


def test_half_precision_is_checked_as_it_is_stored(smaller, tmp_path):
    model, tokenizer = whet.load(smaller)
    saved = save_model(model, tokenizer, tmp_path / "half", dtype=torch.float16)
    assert saved.difference == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    assert transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "half", dtype="auto"
    ).dtype == (torch.float16)


def text_of(model, tokenizer):
    from whet.dlm.low_confidence import LowConfidence
    from whet.dlm.texts import generate_texts

    options = LowConfidence()
    [found] = generate_texts(model, tokenizer, ["sort 312="], options=options, gen_length=8)
    return found.text


def test_masked_diffusion_models_decode_after_a_cut(tmp_path):
    model, tokenizer = load("tiny-dlm", dtype=torch.float32)
    keep(model, axes(model, "ffn")[0], range(axes(model, "ffn")[0].units - 8))
    saved = save_model(model, tokenizer, tmp_path / "m")
    assert (saved.model_type, saved.difference) == ("whet_llada", 0.0)
    again, words = whet.load(tmp_path / "m")
    assert text_of(again, words) == text_of(model, tokenizer)


def test_a_diffusion_transformer_with_edits_loads_as_a_class_of_its_own(tmp_path):
    from whet.models.edits.classes import WhetDiTTransformer2DModel

    model = make("dit")
    plain = save_model(model, None, tmp_path / "stock")
    assert (plain.model_type, plain.edits, plain.difference) == ("DiTTransformer2DModel", (), 0)
    for kind in ("ffn", "kv_groups", "conditioning"):
        axis = axes(model, kind)[0]
        keep(model, axis, range(axis.units - 1))
    expected = output(model, "dit")
    saved = save_model(model, None, tmp_path / "m")
    assert saved.model_type == "WhetDiTTransformer2DModel"
    assert saved.difference == 0
    found = WhetDiTTransformer2DModel.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(output(found, "dit"), expected)
    assert edits_of(found) == list(saved.edits)
    assert type(model).__name__ == "DiTTransformer2DModel"
    pickle.loads(pickle.dumps(found))
    half = save_model(found, None, tmp_path / "half", dtype=torch.float16)
    assert half.difference == 0


def test_packed_masked_diffusion_models_load_too(tmp_path):
    from whet.layers.packed_linear import PackedLinear
    from whet.layers.quantizer import Grid, quantize_nearest
    from whet.models.edits import set_submodule

    model, tokenizer = load("tiny-dlm", dtype=torch.float32)
    grid = Grid(4, granularity="group", group_size=32)
    for name in (blocks(model)[0].attention.output, blocks(model)[1].mlp.output):
        linear = model.get_submodule(name)
        packed = PackedLinear.of(linear, quantize_nearest(linear.weight.detach(), grid))
        set_submodule(model, name, packed)
    saved = save_model(model, tokenizer, tmp_path / "m")
    assert (saved.model_type, saved.packed, saved.difference) == ("llada", True, 0.0)
    again, words = whet.load(tmp_path / "m")
    assert text_of(again, words) == text_of(model, tokenizer)


# --- bad input ----------------------------------------------------------------------------------


def test_without_whet_it_fails_loudly(smaller):
    import subprocess
    import sys

    code = f"import transformers as t; t.AutoModelForCausalLM.from_pretrained({str(smaller)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "whet_llama" in done.stderr


def test_an_existing_folder_is_kept(smaller):
    model, tokenizer = load("tiny-ar", dtype=torch.float32)
    with pytest.raises(InputError, match="exists: choose another folder"):
        save_model(model, tokenizer, smaller)


def test_a_layer_that_cannot_be_saved_is_refused():
    model = make("llama")
    with pytest.raises(OptionError, match="a Tanh cannot replace"):
        replace(model, "model.layers.0.mlp.up_proj", nn.Tanh())
    with pytest.raises(OptionError, match="has no module 'nothing'"):
        replace(model, "nothing", nn.Linear(1, 1))
    model.model.layers[0].mlp.act_fn = nn.Sequential(nn.Tanh())
    with pytest.raises(OptionError, match="only linear, low_rank"):
        edits_of(model)
    model = make("llama")
    model.model.layers[0].extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(OptionError, match=r"layers\.0\.extra is in the model only"):
        edits_of(model)


def test_a_model_that_computes_something_else_after_loading_is_not_kept(tmp_path):
    model, tokenizer = load("tiny-ar", dtype=torch.float32)
    model.model.layers[0].register_forward_hook(lambda module, args, out: out + 1)
    with pytest.raises(CheckpointError, match="its logits differ by"):
        save_model(model, tokenizer, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ([{"kind": "shrink"}], "kind 'shrink' is unknown"),
        ([{"kind": "resize", "axis": "ffn"}], "edits of the configuration are not read"),
        ([{"kind": "resize", "axis": "ffn", "block": 0, "units": 10**6}], "edits of the config"),
        ([{"kind": "resize", "axis": "fnn", "block": 0, "units": 1}], "no fnn axis in block 0"),
        (7, "edits of the configuration are not read"),
        ([{"kind": "replace", "module": "x", "layer": "odd", "settings": {}}], "layer='odd'"),
    ],
)
def test_damaged_edits_are_one_sentence(smaller, tmp_path, edits, says):
    import shutil

    shutil.copytree(smaller, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    config["edits"] = edits
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=says):
        whet.load(tmp_path / "m")


def test_blocks_that_the_configuration_does_not_count_are_refused():
    model = make("llama")
    model.model.layers = model.model.layers[:1]
    with pytest.raises(OptionError, match="drop blocks with drop_blocks"):
        edits_of(model)


def test_resize_and_view_agree():
    model = make("llama")
    axis = axes(model, "ffn")[0]
    keep(model, axis, range(axis.units - 2))
    assert edits_of(model) == [Resize("ffn", 0, axis.units - 2)]
    assert View.of(model).in_width(blocks(model)[0].mlp.output) == axis.units - 2
