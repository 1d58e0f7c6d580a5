"""A stream with a width of its own at every site: structure, and everything models are used for."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.models.test_roles_models import PRE, inputs, make, output, plain
from whet.errors import OptionError
from whet.layers.norm import RMSNorm
from whet.models.edits.rotated import (
    RotateSkip,
    check_rotatable,
    find_rotation,
    stream_sites,
    tensor_widths,
)
from whet.models.roles import axes, axis, blocks, fold_norms, keep, rotate

ROTATABLE = [name for name in PRE if name not in ("gemma2", "gemma3")]
GENERATING = ["llama", "qwen3", "gemma", "phi", "phi3", "opt", "gpt2", "mixtral"]


def widths_of(model):
    """Widths that differ from site to site, in multiples of 4."""
    full, count = axis(model, "residual").units, len(blocks(model))
    sites = count * (1 if blocks(model)[0].flow == "parallel" else 2) + 1
    found = [full - 4 * (1 + index % 3) for index in range(sites)]
    found[-1] = found[0]
    return found, full


def rotated(name, *, wide=True):
    """A model with random weights of these shapes."""
    model = make(name) if wide else plain(name)
    widths, full = widths_of(model)
    RotateSkip(widths, full).build(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if key.endswith("skip.weight"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return model


def unpadded(name):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, 37, (2, 6), generator=generator)


@pytest.mark.parametrize("name", ROTATABLE)
def test_an_empty_model_gets_the_shapes_that_a_full_one_has(name):
    model = make(name)
    widths, full = widths_of(model)
    empty = copy.deepcopy(model).to("meta")
    edit = RotateSkip(widths, full)
    edit.build(model)
    edit.build(empty)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in empty.state_dict().items()}
    assert all(tensor.is_meta for tensor in empty.parameters())
    assert find_rotation(model) == find_rotation(empty) == RotateSkip(tuple(widths), full)
    assert output(model, name).shape[-1] == 37


@pytest.mark.parametrize("name", ROTATABLE)
def test_every_reader_and_writer_of_the_stream_belongs_to_one_site(name):
    model = make(name)
    fold_norms(model)
    found = [role for site in stream_sites(model) for role in (*site.readers, *site.writers)]
    roles = [role for role in axis(model, "residual").roles if role.side in ("read", "write")]
    assert sorted(map(str, found)) == sorted(map(str, roles))


def test_a_sliced_norm_is_the_whole_norm_over_zeros():
    x = torch.randn(5, 12, dtype=torch.float64)
    x[:, 8:] = 0
    whole = RMSNorm(12, 1e-3).double()(x)[:, :8]
    sliced = RMSNorm(8, 1e-3, full_dim=12, affine=False)
    assert torch.allclose(sliced(x[:, :8]), whole, rtol=0, atol=1e-15)
    assert not list(sliced.parameters())
    again = RMSNorm(**sliced.settings())
    assert (again.dim, again.full_dim, again.affine) == (8, 12, False)
    with pytest.raises(OptionError, match="full_dim=8 must be at least dim=12"):
        RMSNorm(12, 1e-3, full_dim=8)


@pytest.mark.parametrize("name", GENERATING)
def test_generating_with_a_cache_gives_what_whole_forwards_give(name):
    model = rotated(name)
    ids = unpadded(name)
    given = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cached = model.generate(ids, use_cache=True, **given)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **given))
    with torch.no_grad():
        for _ in range(5):
            logits = model(input_ids=ids).logits[:, -1]
            logits[:, 2] = -torch.inf  # the end, which may not come yet
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(cached, ids)


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
def test_a_padded_row_is_that_row_alone(name):
    model = rotated(name)
    ids = unpadded(name)
    ids[0, :2] = 0
    mask = (torch.arange(6) >= torch.tensor([[2], [0]])).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = {} if name == "opt" else {"position_ids": positions}
    with torch.no_grad():
        both = model(input_ids=ids, attention_mask=mask, **given).logits[0, 2:]
        alone = model(input_ids=ids[:1, 2:]).logits[0]
    assert (both - alone).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "mixtral", "llada"])
def test_copies_and_pickles_are_models_of_their_own(name):
    model = rotated(name)
    before = output(model, name)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        assert torch.equal(output(other, name), before)
        with torch.no_grad():
            for parameter, kept in zip(model.parameters(), other.parameters(), strict=True):
                parameter.copy_(kept)


def test_hidden_states_are_recorded_with_their_own_widths():
    model = rotated("llama")
    found = model(**inputs("llama"), output_hidden_states=True).hidden_states
    assert [h.shape[-1] for h in found] == [12, 4, 12]
    widths, _ = widths_of(make("llama"))
    assert [widths[0], widths[2], widths[4]] == [12, 4, 12]


def test_other_precisions_compute_in_them():
    model = rotated("llama", wide=False)
    full = output(model, "llama")
    half = output(copy.deepcopy(model).half(), "llama")
    brain = output(copy.deepcopy(model).bfloat16(), "llama")
    assert (half.dtype, brain.dtype) == (torch.float16, torch.bfloat16)
    assert (half - full).abs().max() < 0.02 * full.abs().max()
    assert (brain - full).abs().max() < 0.2 * full.abs().max()


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "phi", "llada"])
def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_less(name):
    def gradients(model):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            loss = model(**inputs(name)).logits.square().sum()
        loss.backward()
        return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}, kept

    model = rotated(name).train()
    for part in model.modules():  # chance would differ between the two
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    (plainly, all_kept), (again, few_kept) = gradients(model), gradients(other)
    assert len(few_kept) < len(all_kept) / 2
    assert {"attention_skip"} <= {key.split(".")[-2] for key in plainly}
    for key, gradient in plainly.items():
        assert torch.allclose(gradient, again[key], rtol=0, atol=1e-9), key


@pytest.mark.parametrize("name", ["opt", "phi", "phi3"])
def test_dropout_of_branches_is_kept_in_training(name):
    model = rotated(name).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0
    before = output(model, name)
    assert torch.equal(output(model, name), before)
    for part in [model.get_submodule(block.name) for block in blocks(model)]:
        for child in part.children():
            if isinstance(child, nn.Dropout):
                child.p = 0.5
        if hasattr(part, "dropout"):
            part.dropout = 0.5
    assert not torch.equal(output(model, name), before)
    assert torch.equal(output(model.eval(), name), before)


def test_lora_reaches_the_skips_and_merges_away():
    from whet.fit.lora import LoraSettings, add_lora, merge_lora

    model = rotated("llama")
    before, names = output(model, "llama"), [key for key, _ in model.named_parameters()]
    wrapped = add_lora(model, LoraSettings(rank=2, targets=["attention_skip", "mlp_skip"]))
    trained = [key for key, p in wrapped.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2
    assert torch.equal(wrapped(**inputs("llama")).logits, before)
    loss = wrapped(**inputs("llama")).logits.square().mean()
    loss.backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0
        for key, p in wrapped.named_parameters()
        if "lora_B" in key
    )
    with torch.no_grad():
        for key, p in wrapped.named_parameters():
            if "lora_B" in key:
                p.normal_(0, 0.1)
    changed = wrapped(**inputs("llama")).logits
    assert (changed - before).abs().max() > 1e-3
    merged = merge_lora(wrapped)
    assert [key for key, _ in merged.named_parameters()] == names
    assert (output(merged, "llama") - changed).abs().max() < 1e-9


@pytest.mark.parametrize("widths", [[12, 12, 8, 16, 8, 12, 12], [12, 12, 16, 8, 16, 12, 12]])
def test_experts_between_unequal_widths_are_filled_with_zeros(widths):
    model = make("mixtral")
    RotateSkip(widths[:5], 16).build(model)
    sites = [site.sparse for site in stream_sites(make("mixtral"))]
    assert sites == [False, True, False, True, False]
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
    for layer, site in ((first, 1), (second, 3)):
        wide = max(widths[site], widths[site + 1])
        assert layer.experts.gate_up_proj.shape[2] == layer.experts.down_proj.shape[1] == wide
        assert layer.gate.weight.shape[1] == layer.gate.hidden_dim == wide
    before = output(model, "mixtral")
    with torch.no_grad():  # what the fill meets changes nothing
        for layer, site in ((first, 1), (second, 3)):
            layer.experts.gate_up_proj[:, :, widths[site] :] = 3.0
            layer.gate.weight[:, widths[site] :] = 3.0
            layer.experts.down_proj[:, widths[site + 1] :] = 3.0
    assert torch.equal(output(model, "mixtral"), before)


def test_widths_of_experts_are_the_wider_of_their_sites():
    sites = stream_sites(make("mixtral"))
    assert tensor_widths(sites, [8, 8, 12, 16, 4]) == ([8, 12, 12, 16, 4], [8, 8, 12, 16, 16])


def test_a_rotated_model_can_be_cut_elsewhere_but_not_rotated_again():
    model = rotated("llama")
    residual = axis(model, "residual")
    for operation in (lambda: rotate(model, residual, torch.eye(12)), lambda: fold_norms(model)):
        with pytest.raises(OptionError, match="a basis and a width of its own"):
            operation()
    with pytest.raises(OptionError, match="cannot be cut: its stream has a basis"):
        keep(model, residual, range(4))
    with pytest.raises(OptionError, match="has a rotated stream already"):
        check_rotatable(model)
    for ffn in axes(model, "ffn"):
        keep(model, ffn, range(8))
    assert output(model, "llama").isfinite().all()
    assert find_rotation(model) is not None
    assert find_rotation(make("llama")) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [("bert", "post-norm"), ("opt-post", "post-norm"), ("gemma2", "output"), ("dit", "adaptive")],
)
def test_other_flows_are_refused_in_one_sentence(name, words):
    with pytest.raises(OptionError, match=f"SliceGPT needs pre-norm blocks: .* has {words}"):
        RotateSkip([16] * 5, 16).build(make(name))


def test_widths_that_do_not_fit_are_refused():
    for widths, full, words in (
        ([8] * 4, 16, "widths has 4 entries: the stream has 5 sites"),
        ([8, 8, 20, 8, 8], 16, "widths has 20: from 1 to 16"),
        ([8] * 5, 20, "full_dim=20: the stream has 16"),
    ):
        with pytest.raises(OptionError, match=words):
            RotateSkip(widths, full).build(make("llama"))
    with pytest.raises(OptionError, match="begins with 8 and ends with 16: a gpt2 model"):
        RotateSkip([8, 8, 8, 8, 16], 16).build(make("gpt2"))
    with pytest.raises(OptionError, match="has no head"):
        RotateSkip([8] * 5, 16).build(make("llama").model)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_compiles_in_one_graph(name):
    model = rotated(name, wide=False)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(**inputs(name)).logits, output(model, name))
