"""Statistics, whatever lies where: those of hooks on the whole model."""

import copy

import pytest
import torch
import transformers

from tests.compress.calibration import Halving, Keeping, by_hooks, ids, model_of, same
from tests.models.test_roles_models import BASE, NAMES, widen
from whet.compress.calibrate import calibrate, watch_experts, watch_stream
from whet.compress.statistics import InputStatistics
from whet.models.roles import blocks


def statistics_of(model, batches, **options):
    edit = Keeping()
    calibrate(model, batches, edit, **options)
    return edit.statistics


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_hooks_on_the_whole_model(name):
    model, batches = model_of(name)
    expected = by_hooks(model, batches)
    found = statistics_of(model, batches)
    experts = {block.experts.module for block in blocks(model) if block.experts}
    assert set(found) == set(expected) | experts
    for layer, statistics in expected.items():
        # DiT calls its first block's embedding of the time step once more after all blocks.
        if not layer.startswith("transformer_blocks.0.norm1.emb"):
            same(found[layer], statistics)


@pytest.mark.parametrize("propagate", [True, False])
def test_off_loading_and_order_of_batches_change_nothing(tmp_path, propagate):
    model, batches = model_of("gemma3")
    expected = by_hooks(model, batches)
    for order, memory in (((2, 0, 1), None), ((1, 2, 0), 19_000)):
        edit = Keeping()
        result = calibrate(
            model,
            [batches[n] for n in order],
            edit,
            folder=tmp_path / str(order[0]),
            max_memory=memory,
            propagate_error=propagate,
        )
        assert result.off_loaded == (memory is not None)
        assert result.tokens == sum(int(b["attention_mask"].sum()) for b in batches)
        for layer, statistics in expected.items():
            same(edit.statistics[layer], statistics)


def test_layers_of_different_kinds_get_their_own_masks_and_positions():
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}
    config = transformers.Gemma3TextConfig(**BASE | {"head_dim": 6} | kinds)
    torch.manual_seed(0)
    model = widen(transformers.Gemma3ForCausalLM(config).double().eval())
    batches = model_of("gemma3")[1]
    expected, found = by_hooks(model, batches), statistics_of(model, batches)
    for layer, statistics in expected.items():
        same(found[layer], statistics)


def test_the_model_is_left_as_it_was():
    model, batches = model_of("llama")
    before = copy.deepcopy(model.state_dict())
    model.train()
    calibrate(model, batches, Keeping())
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())


def test_a_passed_on_error_is_what_the_edited_blocks_give():
    model, batches = model_of("llama")
    original = by_hooks(model, batches)
    edited = copy.deepcopy(model)
    first = Halving()
    calibrate(edited, batches, first)
    # By hand: a block's statistics come before its own edit, and after those of earlier blocks.
    by_hand = copy.deepcopy(model)
    by_hand.model.layers[0] = edited.model.layers[0]
    expected = by_hooks(by_hand, batches)
    for layer, statistics in first.statistics.items():
        same(statistics, (original if ".layers.0." in layer else expected)[layer])
    second = Halving()
    calibrate(model, batches, second, propagate_error=False)
    for layer, statistics in second.statistics.items():
        same(statistics, original[layer])
    last = "model.layers.1.self_attn.q_proj"
    assert (first.statistics[last].gram - second.statistics[last].gram).abs().max() > 1e-3
    pairs = zip(model.parameters(), edited.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["llama", "phi3", "bert", "qwen2_moe", "llada"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_counts_for_nothing(name, side):
    model, _ = model_of(name)
    real = ids(2, 6, 4)
    positions = torch.arange(6).expand(2, 6)
    pad = torch.full((2, 3), 5)
    parts = [(pad, real), (pad * 0, positions), (pad * 0, torch.ones(2, 6).long())]
    joined = [torch.cat(p if side == "left" else p[::-1], 1) for p in parts]
    plain = statistics_of(model, [{"input_ids": real, "position_ids": positions}])
    batch = dict(zip(("input_ids", "position_ids", "attention_mask"), joined, strict=True))
    padded = statistics_of(model, [batch])
    for layer, statistics in plain.items():
        if isinstance(statistics, InputStatistics):
            same(padded[layer], statistics, 1e-9)
        else:
            assert padded[layer].counts == statistics.counts
            assert torch.equal(padded[layer].pairs, statistics.pairs)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"])
def test_experts_see_the_tokens_that_were_sent_to_them(name):
    model, batches = model_of(name)
    seen = {}

    def note(module, args, output):
        mask = batches[len(seen)]["attention_mask"].reshape(-1).bool()
        x, chosen = args[0][mask], args[1][mask]
        for e in range(4):
            rows = x[(chosen == e).any(1)]
            inner = []
            for row in rows:  # one token at a time, through the fused call itself
                own = copy.deepcopy(module)
                own.down_proj.data = torch.eye(own.down_proj.shape[2]).double().repeat(4, 1, 1)
                own.hidden_dim = own.down_proj.shape[2]
                gate_up = torch.nn.functional.linear(row, module.gate_up_proj[e])
                gate, up = gate_up.chunk(2)
                inner.append(torch.nn.functional.silu(gate) * up)
            seen.setdefault(len(seen) if e == 0 else len(seen) - 1, []).append((rows, inner))

    experts = blocks(model)[0].experts.module
    handle = model.get_submodule(experts).register_forward_hook(note)
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    found = statistics_of(
        model, batches, watch=lambda m, b: watch_experts(m, b, gram=True, min_tokens=20)
    )[experts]
    for e in range(4):
        rows = torch.cat([seen[b][e][0] for b in range(3)])
        inner = torch.stack([row for b in range(3) for row in seen[b][e][1]])
        same(found.inputs[e], InputStatistics.of(rows))
        same(found.inner[e], InputStatistics.of(inner))
    tokens = sum(int(b["attention_mask"].sum()) for b in batches)
    assert sum(found.counts) == 2 * tokens
    assert found.pairs.diagonal().tolist() == list(found.counts)
    assert int(found.pairs.sum()) == 4 * tokens
    assert found.below == tuple(e for e in range(4) if found.counts[e] < 20)


def test_experts_with_too_few_tokens_are_in_the_report():
    model, batches = model_of("mixtral")
    edit = Keeping()
    result = calibrate(model, batches, edit)
    for block, report in zip(blocks(model), result.reports, strict=True):
        found = edit.statistics[block.experts.module]
        assert report["observed"][block.experts.module] == {
            "min_tokens": 128,
            "fewest": min(found.counts),
            "below": [0, 1, 2, 3],
        }


def test_the_stream_of_a_block_is_compared_with_itself():
    model, batches = model_of("gpt2")
    states = []
    with torch.no_grad():
        for batch in batches:
            hidden = model(**batch, output_hidden_states=True).hidden_states
            states.append([h[batch["attention_mask"].bool()] for h in hidden])
    x, y = (torch.cat([s[n] for s in states]) for n in (0, 1))
    found = statistics_of(model, batches, watch=watch_stream)["transformer.h.0"]
    cosine = torch.nn.functional.cosine_similarity(x, y, dim=1)
    assert found.count == len(x)
    assert found.cosine_sum == pytest.approx(float(cosine.sum()))
    assert found.angle_sum == pytest.approx(float(cosine.arccos().sum() / torch.pi))
    assert found.change_square == pytest.approx(float((y - x).square().sum()))
    same(found.inputs, InputStatistics.of(x, gram=False))
    same(found.outputs, InputStatistics.of(y, gram=False))


def test_layers_with_one_input_share_their_sums():
    model, batches = model_of("llama")
    found = statistics_of(model, batches)
    layer = "model.layers.0."
    assert found[layer + "self_attn.q_proj"] is found[layer + "self_attn.v_proj"]
    assert found[layer + "mlp.gate_proj"] is found[layer + "mlp.up_proj"]


def test_an_edit_can_run_its_block_and_train_it():
    model, batches = model_of("llama")
    moved = []

    def edit(run):
        before = [run.run(n).detach() for n in range(run.batches)]
        optimizer = torch.optim.SGD(run.module.parameters(), lr=0.01)
        loss = sum(
            run.run(n)[run.mask(n)].square().sum() if run.mask(n) is not None else 0
            for n in range(run.batches)
        )
        loss.backward()
        optimizer.step()
        assert torch.equal(run.arguments(0)[0][0], run.arguments(0)[0][0])
        moved.append(float((run.run(1).detach() - before[1]).abs().max()))

    calibrate(model, batches, edit)
    assert min(moved) > 1e-4
