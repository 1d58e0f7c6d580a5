import copy

import pytest
import torch
from torch import nn

from whet.errors import OptionError
from whet.fit.lora import LoraSettings, add_lora, lora_targets, merge_lora
from whet.models.denoiser import Denoiser, unwrap

IDS = torch.tensor([[3, 5, 7, 39, 39, 39]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trained(model, settings=None, steps=3):
    """A wrapped model whose updates are no longer 0."""
    torch.manual_seed(1)
    wrapped = add_lora(model, settings or LoraSettings(rank=4, alpha=8))
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        wrapped(input_ids=IDS).logits.log_softmax(-1)[..., 5].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    return wrapped


@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
def test_it_starts_as_the_model_it_was_added_to(family, request):
    model = request.getfixturevalue(family)
    before = logits(model)
    assert torch.equal(logits(add_lora(model, LoraSettings(rank=4))), before)


@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
def test_merged_is_the_plain_class_with_the_logits_of_the_unmerged(family, request):
    model = request.getfixturevalue(family)
    kind, names = type(model), set(model.state_dict())
    before = logits(model)
    wrapped = trained(model).float()
    after = logits(wrapped)
    assert (after - before).abs().max() > 1e-2, "the test must not be empty"
    merged = merge_lora(wrapped)
    assert type(merged) is kind
    assert set(merged.state_dict()) == names
    torch.testing.assert_close(logits(merged), after, atol=1e-5, rtol=0)


def test_the_update_is_alpha_over_rank_times_the_product(tiny_llada):
    model = copy.deepcopy(tiny_llada)
    wrapped = trained(tiny_llada, LoraSettings(rank=2, alpha=6, targets=["q_proj"]))
    layer = unwrap(wrapped).model.transformer["blocks"][1].q_proj
    update = 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    old = model.model.transformer["blocks"][1].q_proj.weight
    new = merge_lora(wrapped).model.transformer["blocks"][1].q_proj.weight
    torch.testing.assert_close(new, old + update)


def test_only_the_updates_need_gradients(tiny_llada):
    before = copy.deepcopy(tiny_llada.state_dict())
    wrapped = trained(tiny_llada)
    names = [n for n, p in wrapped.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in n for n in names)
    kept = {n: t for n, t in wrapped.named_parameters() if "lora_" not in n}
    for name, tensor in kept.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        assert torch.equal(tensor, before[plain])


def test_a_wrapped_model_is_still_a_denoiser(tiny_dream):
    facts = Denoiser.of(tiny_dream)
    wrapped = Denoiser.of(trained(tiny_dream))
    assert wrapped.mask_token_id == facts.mask_token_id
    rows, positions = torch.tensor([0, 0]), torch.tensor([3, 5])
    found = wrapped.logits(IDS, None, rows, positions)
    torch.testing.assert_close(found[:, :39], logits(wrapped.model)[0, [2, 4], :39])


# --- where it goes ------------------------------------------------------------------------------


def test_all_linear_is_every_linear_layer_but_the_head(tiny_llada, tiny_dream):
    kinds = {name.rpartition(".")[2] for name in lora_targets(tiny_llada, "all-linear")}
    assert kinds == {"q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"}
    names = lora_targets(tiny_llada, "all-linear")
    assert len(names) == 2 * 7  # the head is called ff_out as well
    assert "model.transformer.ff_out" not in names
    assert len(lora_targets(tiny_dream, "all-linear")) == 2 * 7
    assert not any("lm_head" in name for name in lora_targets(tiny_dream, "all-linear"))


def test_endings_choose_layers(tiny_llada):
    assert lora_targets(tiny_llada, ["blocks.1.q_proj"]) == ["model.transformer.blocks.1.q_proj"]
    found = lora_targets(tiny_llada, ["q_proj", "k_proj"])
    assert [n.rpartition(".")[2] for n in found] == ["q_proj", "k_proj"] * 2
    found = lora_targets(tiny_llada, ["ff_out"])
    assert len(found) == 2, "a layer's ending must not reach the head"


def test_the_papers_list_of_names_is_refused_where_half_of_it_fits(tiny_llada, tiny_dream):
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert len(lora_targets(tiny_dream, names)) == 2 * 7
    with pytest.raises(OptionError) as caught:
        add_lora(tiny_llada, LoraSettings(targets=names))
    assert str(caught.value) == (
        "targets: no linear layer of LLaDAModelLM ends with 'o_proj': "
        "there are attn_out, ff_out, ff_proj, k_proj, q_proj, up_proj, v_proj"
    )


@pytest.mark.parametrize("ending", ["proj", "_proj", "wte", "lm_head", "ln_f", ""])
def test_part_of_a_name_or_what_is_not_linear_is_no_target(tiny_llada, ending):
    with pytest.raises(OptionError, match="no linear layer of"):
        lora_targets(tiny_llada, [ending])
    with pytest.raises(OptionError, match="targets is empty"):
        lora_targets(tiny_llada, [])


def test_any_module_will_do():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert lora_targets(model, "all-linear") == ["0", "2"]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"rank": 0}, {"alpha": 0}, {"alpha": float("inf")}, {"dropout": 1}, {"dropout": -0.1}),
        *({"targets": "all"}, {"targets": 3}, {"ranks": 4}),
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LoraSettings.model_validate(wrong)
