"""What calibration refuses, each with one sentence; and what it says while it works."""

import shutil

import pytest
import torch
from torch import nn

from tests.compress.calibration import Keeping, batches_of, ids, model_of
from tests.models.test_roles_models import make, plain
from whet.compress.calibrate import InputCollector, calibrate, open_model, watch_inputs
from whet.errors import CheckpointError, InputError, NonFiniteError, OptionError


def refused(error, match, model=None, batches=None, edit=None, **options):
    model = make("llama") if model is None else model
    batches = batches_of("llama") if batches is None else batches
    with pytest.raises(error, match=match):
        calibrate(model, batches, edit or Keeping(), **options)


@pytest.fixture
def source(tmp_path):
    plain("llama").save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def test_batches_that_cannot_be_used_are_named():
    refused(InputError, "no batches were given", batches=[])
    refused(InputError, "batch 0 holds no tensor", batches=[{}])
    tokens, mask = ids(2, 4, 0), torch.ones(2, 4).long()
    good = {"input_ids": tokens}
    square = good | {"attention_mask": torch.ones(2, 1, 4, 4)}
    refused(InputError, r"attention_mask of batch 1 is \[2, 1, 4, 4\]", batches=[good, square])
    refused(
        InputError,
        "batch 0 is nothing but padding",
        batches=[good | {"attention_mask": mask * 0}],
    )


def test_options_that_do_not_go_together_are_named(tmp_path, source):
    refused(OptionError, r"dtype=torch.bfloat16 is for weights", dtype=torch.bfloat16)
    refused(OptionError, "the model has no weights", model=open_model(source))
    refused(OptionError, "must be an empty one", source=source, folder=tmp_path / "out")
    empty = open_model(source)
    refused(OptionError, "a folder is needed", model=empty, source=source)
    refused(OptionError, "is the source itself", model=empty, source=source, folder=source)


def test_too_little_memory_says_what_is_needed(tmp_path, source):
    refused(
        OptionError,
        r"max_memory=10 bytes is too little: one block \(0\), its statistics \([\d,]+\) and one "
        r"batch \([\d,]+\) need [\d,]+$",
        max_memory=10,
    )
    refused(
        OptionError,
        r"one block \([\d,]{5,}\), its statistics",
        model=open_model(source),
        source=source,
        folder=tmp_path / "out",
        max_memory=10,
    )
    with pytest.raises(OptionError) as found:
        calibrate(make("llama"), batches_of("llama"), Keeping(), max_memory=10)
    least = int(found.value.args[0].rpartition(" ")[2].replace(",", ""))
    refused(OptionError, "give a folder to off-load them to", max_memory=least)
    refused(OptionError, "is too little", max_memory=least - 1, folder=tmp_path / "other")
    calibrate(
        make("llama"), batches_of("llama"), Keeping(), max_memory=least, folder=tmp_path / "last"
    )


def test_too_little_disk_is_found_before_work_begins(tmp_path, monkeypatch):
    class Full:
        free = 100

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Full)
    edit = Keeping()
    refused(
        InputError,
        r"the disk has room for [\d,]+ bytes, activations and edited blocks need [\d,]+",
        edit=edit,
        folder=tmp_path / "out",
    )
    assert not edit.statistics


@pytest.mark.parametrize("gram", [True, False])
def test_nan_is_named_with_block_module_and_batch(gram):
    model, batches = model_of("llama")
    batches[1]["input_ids"][1, 3] = 36  # a token of its own
    for batch in (batches[0], batches[2]):
        batch["input_ids"].clamp_(max=35)

    def trip(module, args, output):
        return torch.where((args[0][..., :1] > 1e3), torch.nan, output)

    with torch.no_grad():
        model.model.embed_tokens.weight[36] = 1e6
    norm = model.model.layers[0].input_layernorm
    norm.register_forward_hook(trip)
    refused(
        NonFiniteError,
        "block 0 has NaN or infinity in batch 1, first in what model.layers.0.input_layernorm",
        model=model,
        batches=batches,
        watch=lambda m, b: watch_inputs(m, b, gram=gram),
    )


def test_nan_that_an_edit_makes_is_named_as_such():
    model, batches = model_of("llama")

    def edit(run):
        run.module.mlp.up_proj.weight.data[0, 0] = torch.inf

    refused(
        NonFiniteError,
        r"block 0 after its edit has NaN or infinity in batch 0, first in what "
        r"model\.layers\.0\.mlp\.up_proj gives",
        model=model,
        batches=batches,
        edit=edit,
    )


def test_nan_that_a_layer_swallows_is_found_in_its_input():
    model, batches = model_of("opt")
    block = model.model.decoder.layers[1]
    block.activation_fn = nn.Identity()
    block.fc1.bias.data[0] = torch.inf
    block.fc2.register_forward_hook(lambda m, a, o: torch.nan_to_num(o, 0, 0, 0))
    refused(
        NonFiniteError,
        r"block 1 has NaN or infinity in batch 0, first in what model\.decoder\.layers\.1\.fc1",
        model=model,
        batches=batches,
    )


def test_nan_in_the_embedding_is_named_with_its_batch():
    model = make("llama")
    model.model.embed_tokens.weight.data[:] = torch.nan
    refused(NonFiniteError, "the embedding gives NaN or infinity in batch 0", model=model)


def test_nan_in_padding_does_not_count():
    model, batches = model_of("phi3")
    batch = batches[2]
    batch["input_ids"][1, 4:] = 36
    batch["input_ids"][:, :4].clamp_(max=35)
    batch["input_ids"][0].clamp_(max=35)
    model.model.embed_tokens.weight.data[36] = torch.nan
    # Values of padded tokens are multiplied by 0 in attention, so only a block without it passes.
    for block in model.model.layers:
        block.self_attn.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    edit = Keeping()
    calibrate(model, [batch], edit)
    statistics = edit.statistics["model.layers.1.mlp.down_proj"]
    assert statistics.count == 11
    assert statistics.gram.isfinite().all()


def test_collectors_hang_on_modules_of_their_block():
    def watch(model, block):
        return {"model.layers.1.mlp.up_proj": InputCollector(16)}

    refused(
        OptionError,
        r"watch names 'model\.layers\.1\.mlp\.up_proj', which is no module of model\.layers\.0",
        watch=watch,
    )


def test_layers_on_anything_but_tokens_cannot_be_told_from_padding():
    class Pooled(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.mlp, self.pool = mlp, nn.Linear(16, 16).double()

        def forward(self, x):
            return self.mlp(x) + self.pool(x.mean(1))[:, None]

    def watch(model, block):
        return {f"{block.name}.mlp.pool": InputCollector(16)}

    model, batches = model_of("gpt2")
    for block in model.transformer.h:
        block.mlp = Pooled(block.mlp)
    refused(
        InputError,
        r"h\.0\.mlp\.pool works on 3 rows where the batch has 21 tokens",
        model=model,
        batches=batches,
        watch=watch,
    )
    edit = Keeping()
    calibrate(model, batches[:1], edit, watch=watch)  # nothing is padded there
    assert edit.statistics["transformer.h.0.mlp.pool"].count == 2


def test_an_edit_may_not_drop_blocks():
    def edit(run):
        del run.model.model.layers[1]

    refused(OptionError, "edit of block 0 changed the number of blocks", edit=edit)


def test_a_report_is_json():
    refused(
        OptionError,
        "report of block 0 is not JSON.*type Tensor",
        edit=lambda run: {"x": run.run(0)},
    )
    refused(OptionError, "report of block 0 is not JSON", edit=lambda run: {"x": float("nan")})


def test_a_model_that_works_between_its_blocks_is_refused():
    model = make("llama")
    layers = model.model.layers
    forward = type(layers[0]).__call__

    class Between(type(layers[0])):
        def __call__(self, hidden_states, **kwargs):
            return forward(self, hidden_states + 1, **kwargs)

    layers[1].__class__ = Between
    refused(OptionError, "does not hand each block's output to the next", model=model)


def test_blocks_that_give_tuples_are_run_too():
    model, batches = model_of("llama")
    plain_edit, edit = Keeping(), Keeping()
    calibrate(model, batches, plain_edit)
    forward = type(model.model).forward

    class Tuples(type(model.model.layers[0])):
        def forward(self, *args, **kwargs):
            return (super().forward(*args, **kwargs), None)

    class Taking(nn.ModuleList):
        """Stands for a trunk that takes the first of what each block gives."""

        def __getitem__(self, index):
            found = super().__getitem__(index)
            return (
                [lambda *a, m=m, **k: m(*a, **k)[0] for m in found]
                if isinstance(index, slice)
                else found
            )

    layers = list(model.model.layers)
    for layer in layers:
        layer.__class__ = Tuples
    model.model.layers = Taking(layers)
    assert type(model.model).forward is forward
    calibrate(model, batches, edit)
    for layer, statistics in plain_edit.statistics.items():
        assert torch.equal(edit.statistics[layer].gram, statistics.gram)


def test_a_cache_is_refused():
    from transformers import DynamicCache

    batch = {"input_ids": ids(1, 4, 0), "past_key_values": DynamicCache()}
    refused(OptionError, "given a DynamicCache: calibrate without a cache", batches=[batch])


def test_a_folder_serves_one_model_method_and_set_of_batches(tmp_path):
    model, batches, out = make("llama"), batches_of("llama"), tmp_path / "out"
    calibrate(model, batches, Keeping(), folder=out, identity={"method": "none", "seed": 0})
    same = {"folder": out, "identity": {"method": "none", "seed": 0}}
    calibrate(model, batches, Keeping(), **same)
    refused(CheckpointError, r"different: batches\)", batches=batches[:2], **same)
    other = {"folder": out, "identity": {"method": "none", "seed": 1}}
    refused(CheckpointError, r"different: identity\.seed\)", **other)
    refused(CheckpointError, r"different: propagate_error\)", propagate_error=False, **same)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    refused(CheckpointError, r"different: weights\)", model=model, **same)
    (out / "calibration" / "state.json").write_text("{")
    refused(CheckpointError, "state.json: damaged", **same)


def test_a_source_that_lacks_a_tensor_is_refused(tmp_path, source):
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors")
    refused(
        CheckpointError,
        r"tensor model\.layers\.1\.mlp\.up_proj\.weight missing",
        model=open_model(source),
        source=source,
        folder=tmp_path / "out",
    )
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 16)
    save_file(tensors, source / "model.safetensors")
    refused(
        CheckpointError,
        r"up_proj\.weight has shape \(3, 16\), the model's \(12, 16\)",
        model=open_model(source),
        source=source,
        folder=tmp_path / "out",
    )
    (source / "model.safetensors").write_bytes(b"short")
    refused(
        CheckpointError,
        "damaged or truncated",
        model=open_model(source),
        source=source,
        folder=tmp_path / "out",
    )


def test_progress_counts_every_phase(tmp_path):
    seen = []
    calibrate(
        make("llama"),
        batches_of("llama"),
        Keeping(),
        folder=tmp_path / "out",
        on_progress=lambda p: seen.append((p.block, p.phase, p.done, p.total)),
    )
    each = [(1, 3), (2, 3), (3, 3)]
    expected = [(0, "capture", *n) for n in each] + [(0, "observe", *n) for n in each]
    expected += [(0, "edit", 1, 1), *((0, "propagate", *n) for n in each), (0, "save", 1, 1)]
    expected += [*((1, "observe", *n) for n in each), (1, "edit", 1, 1), (1, "save", 1, 1)]
    assert seen == expected


def test_an_unknown_architecture_is_refused():
    refused(OptionError, "no roles are known for models of type", model=Unknown())


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


def test_statistics_of_what_was_never_called_are_empty():
    found = InputCollector(3).result()
    assert found.count == 0
    assert not found.seen
