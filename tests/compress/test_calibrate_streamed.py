"""Weights from a folder, runs that are stopped, and the memory that they take."""

import copy
import json
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.compress.calibration import Halving, Keeping, batches_of, ids, same
from tests.models.test_roles_models import BASE, plain
from whet.compress.calibrate import calibrate, empty_model, open_model, restore_block, watch_inputs
from whet.errors import OptionError
from whet.measure.memory import run_isolated


def checkpoint(tmp_path, name, **options):
    """A float32 model and the folder it is saved in."""
    model = plain(name)
    model.save_pretrained(tmp_path / "source", **options)
    return model, tmp_path / "source"


def shards(folder):
    found = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        found |= load_file(path)
    return found


STREAMED = ["llama-tied", "gemma3", "gpt2", "bert", "llada", "olmoe", "mixtral"]


def equal(one, two):
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", STREAMED)
def test_streamed_weights_give_what_weights_in_memory_give(tmp_path, name):
    model, source = checkpoint(tmp_path, name)
    batches = batches_of(name)
    whole = Keeping()
    calibrate(model, batches, whole)
    empty = empty_model(type(model), model.config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    streamed = Keeping()
    calibrate(empty, batches, streamed, source=source, folder=tmp_path / "out")
    assert set(streamed.statistics) == set(whole.statistics)
    for layer, statistics in whole.statistics.items():
        if hasattr(statistics, "inputs"):
            assert streamed.statistics[layer].counts == statistics.counts
        else:
            same(streamed.statistics[layer], statistics)
    assert all(parameter.is_meta for parameter in empty.parameters())
    again = type(model).from_pretrained(tmp_path / "out")
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


def test_the_folder_becomes_a_checkpoint_of_the_edited_model(tmp_path):
    model, source = checkpoint(tmp_path, "llama", max_shard_size="4KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    batches = batches_of("llama")
    calibrate(model, batches, Halving())
    result = calibrate(
        open_model(source), batches, Halving(), source=source, folder=tmp_path / "out"
    )
    assert [report["halved"] for report in result.reports] == [True, True]
    assert [path.name for path in result.shards] == [
        "model-block-00000.safetensors",
        "model-block-00001.safetensors",
    ]
    again = type(model).from_pretrained(tmp_path / "out")
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    assert not (tmp_path / "out" / "calibration" / "activations").exists()

    # The folder is a source in its turn.
    second, third = tmp_path / "out", tmp_path / "third"
    calibrate(open_model(second), batches, Halving(), source=second, folder=third)
    calibrate(model, batches, Halving())
    assert equal(type(model).from_pretrained(third), model)


def test_the_head_is_never_read(tmp_path, monkeypatch):
    from whet.compress.calibrate.source import Checkpoint

    read = []
    original = Checkpoint._tensors
    monkeypatch.setattr(Checkpoint, "_tensors", lambda s, k: read.extend(k) or original(s, k))
    monkeypatch.setattr(Checkpoint, "finish", lambda *a: None)
    _, source = checkpoint(tmp_path, "llama")
    calibrate(
        open_model(source), batches_of("llama"), Keeping(), source=source, folder=tmp_path / "out"
    )
    assert "model.embed_tokens.weight" in read
    assert not {"lm_head.weight", "model.norm.weight"} & set(read)
    inside = [key for key in read if ".layers." in key]
    assert len(inside) == len(set(inside))


def test_weights_can_take_another_type_on_the_way(tmp_path):
    model, source = checkpoint(tmp_path, "llama")
    whole, streamed = Keeping(), Keeping()
    calibrate(model.bfloat16(), batches_of("llama"), whole)
    calibrate(
        open_model(source),
        batches_of("llama"),
        streamed,
        source=source,
        folder=tmp_path / "out",
        dtype=torch.bfloat16,
    )
    for layer, statistics in whole.statistics.items():
        same(streamed.statistics[layer], statistics)
    assert {t.dtype for t in shards(tmp_path / "out").values()} == {torch.bfloat16}


def tight(*given, **options):
    """The least max_memory that is allowed, with which three batches do not stay in memory."""
    with pytest.raises(OptionError) as found:
        calibrate(*given, max_memory=1, **options)
    return int(found.value.args[0].rpartition(" ")[2].replace(",", ""))


def killed(run, stop):
    """Call run(on_progress) in a process that ends without a word at this point."""

    def on_progress(p):
        if (p.block, p.phase, p.done) == stop:
            os._exit(9)

    child = os.fork()
    if not child:
        try:
            run(on_progress)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize(
    ("streamed", "off_loaded", "stop"),
    [
        (True, False, (0, "capture", 2)),
        (True, True, (1, "observe", 2)),
        (True, False, (0, "propagate", 1)),
        (False, True, (1, "edit", 1)),
        (False, False, (0, "save", 1)),
        (True, True, (1, "save", 1)),
    ],
)
@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="stops a copy of this process")
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, streamed, off_loaded, stop, propagate):
    model, source = checkpoint(tmp_path, "llama")
    if stop[1] == "propagate" and not propagate:
        stop = (0, "edit", 1)
    straight_folder, killed_folder = tmp_path / "straight", tmp_path / "killed"
    batches = batches_of("llama")
    options = {"source": source if streamed else None, "propagate_error": propagate}

    def start():
        return open_model(source) if streamed else copy.deepcopy(model)

    if off_loaded:
        options["max_memory"] = tight(
            start(), batches, Keeping(), folder=tmp_path / "other", **options
        )
    straight, again = start(), start()
    whole = calibrate(straight, batches, Halving(), folder=straight_folder, **options)
    assert whole.off_loaded == off_loaded
    killed(
        lambda on_progress: calibrate(
            start(), batches, Halving(), folder=killed_folder, on_progress=on_progress, **options
        ),
        stop,
    )
    edit = Halving()
    result = calibrate(again, batches, edit, folder=killed_folder, **options)
    assert {int(layer.split(".")[2]) for layer in edit.statistics} == set(range(stop[0], 2))
    assert (result.reports, result.tokens) == (whole.reports, whole.tokens)
    names = sorted(path.relative_to(straight_folder) for path in straight_folder.rglob("*"))
    assert names == sorted(path.relative_to(killed_folder) for path in killed_folder.rglob("*"))
    for path in whole.shards:
        assert path.read_bytes() == (killed_folder / path.name).read_bytes()
    if not streamed:
        assert equal(again, straight)


def test_a_finished_run_is_not_done_again(tmp_path):
    model, _ = checkpoint(tmp_path, "llama")
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    result = calibrate(first, batches_of("llama"), Halving(), folder=tmp_path / "out")
    edit = Halving()
    again = calibrate(second, batches_of("llama"), edit, folder=tmp_path / "out")
    assert not edit.statistics
    assert again.reports == result.reports
    assert equal(first, second)


def test_an_edit_of_other_shapes_goes_on_with_its_own_restore(tmp_path):
    model, _ = checkpoint(tmp_path, "llama")

    class Stop(Exception):
        pass

    def narrow(module, units):
        mlp = module.mlp
        for layer in (mlp.gate_proj, mlp.up_proj):
            layer.weight.data, layer.bias.data = layer.weight[:units], layer.bias[:units]
        mlp.down_proj.weight.data = mlp.down_proj.weight[:, :units].contiguous()

    def edit(run, last=1):
        if run.block.index > last:
            raise Stop
        narrow(run.module, 7)

    def restore(module, block, tensors):
        narrow(module, 7)
        restore_block(module, block, tensors)

    whole = copy.deepcopy(model)
    calibrate(whole, batches_of("llama"), edit)
    out, batches = tmp_path / "out", batches_of("llama")
    with pytest.raises(Stop):
        calibrate(copy.deepcopy(model), batches, lambda run: edit(run, 0), folder=out)
    with pytest.raises(OptionError, match=r"block 0 cannot be put back.*\(16, 7\).*`restore`"):
        calibrate(copy.deepcopy(model), batches, edit, folder=out)
    again = copy.deepcopy(model)
    calibrate(again, batches, edit, folder=out, restore=restore)
    assert equal(again, whole)


BIG = BASE | {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "initializer_range": 0.02,
}


def write_big(folder):
    """A checkpoint of random blocks of 42 MB, a tensor per file."""
    import transformers
    from safetensors.torch import save_file

    config = transformers.LlamaConfig(**BIG, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    model = empty_model(transformers.LlamaForCausalLM, config)
    values = torch.randn(2048 * 1024) * 0.02
    places = {}
    for number, (name, parameter) in enumerate(model.named_parameters()):
        places[name] = f"part-{number}.safetensors"
        tensor = values[: parameter.numel()].view(parameter.shape)
        save_file({name: tensor.clone()}, folder / places[name])
    index = json.dumps({"weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index)


def stream_big(source, out):
    """How far streaming raises the anonymous memory of a fresh process, in bytes."""
    torch.set_num_threads(1)
    batches = [{"input_ids": ids(2, 16, n)} for n in range(3)]
    model = open_model(source)
    # What the libraries take on their first use is not the engine's.
    calibrate(plain("llama"), batches[:1], lambda run: None)

    def edit(run):
        with torch.no_grad():
            for name, part in run.module.named_modules():
                if name.endswith("_proj"):
                    part.weight.mul_(0.9)

    def anonymous():
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024

    def sample():
        while not done.wait(0.002):
            samples.append(anonymous())

    samples, done = [anonymous()], threading.Event()
    thread = threading.Thread(target=sample)
    thread.start()
    calibrate(
        model,
        batches,
        edit,
        watch=lambda m, b: watch_inputs(m, b, gram=False),
        source=source,
        folder=out,
        max_memory=60_000_000,
    )
    done.set()
    thread.join()
    block = sum(p.numel() for p in model.model.layers[0].parameters()) * 4
    return {"added": max(samples) - samples[0], "block": block, "samples": len(samples)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is Linux's")
def test_streaming_takes_the_memory_of_a_few_blocks(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_big(source)
    found = run_isolated(
        "tests.compress.test_calibrate_streamed:stream_big",
        {"source": str(source), "out": str(tmp_path / "out")},
    )
    batch = 2 * 16 * 1024 * 4 * 8
    assert found["block"] > 40e6
    assert found["samples"] > 100
    assert found["added"] < 3 * found["block"] + batch, found
