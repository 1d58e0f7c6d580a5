import math

import pytest
import torch

from tests.models.test_roles_models import (
    CONFIGS,
    LAYER_NORM,
    NAMES,
    POST,
    PRE,
    every_axis,
    inputs,
    make,
    output,
    plain,
    same,
)
from whet.errors import OptionError
from whet.models.roles import (
    axes,
    axis,
    blocks,
    find_family,
    fold_norms,
    keep,
    magnitudes,
    permute,
    units_of,
    zero,
)


def shuffled(a, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(a.units, generator=generator) for _ in range(a.copies)]
    if all(torch.equal(row, row.sort().values) for row in rows):
        rows[0] = rows[0].flip(0)
    return torch.stack(rows) if a.copies > 1 else rows[0]


def chosen(a, count, seed=0):
    """(kept, dropped): `count` units of each copy, kept ones in ascending order."""
    order = shuffled(a, seed).reshape(a.copies, -1)
    kept, dropped = order[:, :count].sort(1).values, order[:, count:]
    return (kept, dropped) if a.copies > 1 else (kept[0], dropped[0])


def sizes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_permuting_any_axis_leaves_outputs_alone(name):
    model = make(name)
    before = output(model, name)
    for a in every_axis(model):
        values = {key: value.clone() for key, value in model.state_dict().items()}
        permute(model, a, shuffled(a))
        changed = [k for k, v in model.state_dict().items() if not torch.equal(v, values[k])]
        assert changed or a.units == 1, a
        same(output(model, name), before, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_order_of_one_role_changes_outputs(name):
    """The models are sensitive enough for the test above to mean something."""
    model = make(name)
    before = output(model, name)
    for a in every_axis(model):
        if a.units == 1 or a.kind == "rotary":
            continue
        tensors = dict(model.named_parameters())
        role = next(
            r
            for r in a.roles
            if (r.side == "write" and r.tensor.endswith("weight"))
            or r.tensor.endswith("gate_up_proj")
        )
        value = tensors[role.tensor].detach().clone()
        with torch.no_grad():
            tensors[role.tensor].copy_(value.roll(a.units // 2 * role.unit or 1, role.dim))
        assert (output(model, name) - before).abs().max() > 1e-6, a
        with torch.no_grad():
            tensors[role.tensor].copy_(value)


@pytest.mark.parametrize("name", NAMES)
def test_permuting_twice_composes_and_the_inverse_restores_every_bit(name):
    model = make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for a in every_axis(model):
        order = shuffled(a)
        permute(model, a, order)
        permute(model, a, order.argsort(-1))
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_keeping_all_units_is_bit_equal_and_replaces_nothing(name):
    model = make(name)
    before = output(model, name)
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    for a in axes(model):
        if not a.uncuttable:
            keep(model, a, range(a.units))
    assert pointers == [parameter.data_ptr() for parameter in model.parameters()]
    assert torch.equal(output(model, name), before)


@pytest.mark.parametrize("name", NAMES)
def test_cutting_equals_zeroing(name):
    """Every kind of axis with an exact cut (experts: below), one after another in one model."""
    cut, zeroed = make(name), make(name)
    if name in PRE:
        fold_norms(cut)
        fold_norms(zeroed)
    before = output(cut, name)
    kinds = [a.kind for a in every_axis(cut) if not a.uncuttable and a.kind != "experts"]
    assert {"kv_groups"} < set(kinds)
    whole = {a.kind: a for a in every_axis(cut)}
    left = {kind: axis(cut, kind, whole[kind].block) for kind in kinds if kind != "heads"}
    for kind, a in left.items():
        kept, dropped = chosen(a, math.ceil(a.units * 0.6) - (a.units == 2))
        keep(cut, axis(cut, kind, a.block), kept)
        zero(zeroed, a, dropped)
        assert axis(cut, kind, a.block).units == kept.shape[-1] < a.units
        after = output(zeroed, name)
        assert (after - before).abs().max() > 1e-4
        same(output(cut, name), after, name)
        before = after


GROUPED = [name for name in PRE if "num_key_value_heads" in CONFIGS[name][1] or "llada" in name]


@pytest.mark.parametrize("name", GROUPED)
def test_cutting_query_heads_within_groups_equals_zeroing(name):
    cut, zeroed = make(name), make(name)
    a = axis(cut, "heads", 1)
    keep(cut, a, [[1], [0]])
    zero(zeroed, a, [[0], [1]])
    same(output(cut, name), output(zeroed, name), name)


RMS = [name for name in NAMES if name not in LAYER_NORM]


@pytest.mark.parametrize("name", RMS)
def test_cutting_the_stream_of_unfolded_rms_models_equals_zeroing(name):
    cut, zeroed = make(name), make(name)
    a = axis(cut, "residual")
    kept, dropped = chosen(a, 10)
    keep(cut, a, kept)
    zero(zeroed, a, dropped)
    same(output(cut, name), output(zeroed, name), name)


@pytest.mark.parametrize("name", sorted(LAYER_NORM))
def test_cutting_the_stream_of_layer_norm_models_is_refused(name):
    model = make(name)
    a = axis(model, "residual")
    with pytest.raises(OptionError, match="is a LayerNorm, which takes mean and variance") as told:
        keep(model, a, range(8))
    assert ("call fold_norms first" in str(told.value)) == (name not in {*POST, "dit"})


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"])
def test_cutting_experts_equals_masking_them_in_the_router(name):
    cut, masked = make(name), make(name)
    a = axis(cut, "experts", 1)
    before = output(cut, name)
    kept, dropped = chosen(a, 3)
    keep(cut, a, kept)
    assert axis(cut, "experts", 1).units == 3
    gate = masked.get_submodule(blocks(masked)[1].experts.router_module)
    weight, width = gate.weight.detach(), gate.weight.shape[1]

    def forward(x):
        scores = x.reshape(-1, width) @ weight.T
        scores[:, dropped] = -torch.inf
        shares = scores.float().softmax(-1)
        top, index = shares.topk(gate.top_k, -1)
        if getattr(gate, "norm_topk_prob", name == "mixtral"):
            top = top / top.sum(-1, keepdim=True)
        return scores, top.to(x.dtype), index

    gate.forward = forward
    expected = output(masked, name)
    assert (expected - before).abs().max() > 1e-3
    same(output(cut, name), expected, name)


def test_cutting_experts_below_what_a_token_needs_is_refused():
    model = make("mixtral")
    with pytest.raises(OptionError, match="leaves 1 experts: each token is sent to 2"):
        keep(model, axis(model, "experts", 0), [0])


def test_experts_may_each_keep_other_channels():
    cut, zeroed = make("mixtral"), make("mixtral")
    a = axis(cut, "expert_ffn", 0)
    assert a.copies == 4
    kept, dropped = chosen(a, 5)
    assert len({tuple(row) for row in kept.tolist()}) > 1
    keep(cut, a, kept)
    zero(zeroed, a, dropped)
    same(output(cut, "mixtral"), output(zeroed, "mixtral"), "mixtral")
    assert cut.model.layers[0].mlp.experts.down_proj.shape == (4, 16, 5)


def test_cut_units_come_in_the_order_given():
    straight, turned = make("llama"), make("llama")
    keep(straight, axis(straight, "ffn", 0), [1, 4, 7])
    keep(turned, axis(turned, "ffn", 0), [7, 1, 4])
    a, b = (m.model.layers[0].mlp.down_proj.weight for m in (straight, turned))
    assert torch.equal(b, a[:, [2, 0, 1]])


def test_tied_tensors_stay_tied_through_a_cut():
    for name in ("llama-tied", "gemma2"):
        model = make(name)
        keep(model, axis(model, "residual"), range(0, 16, 2))
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.lm_head.in_features == model.model.embed_tokens.embedding_dim == 8


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dit"])
def test_uniform_cuts_that_the_configuration_can_say_make_a_stock_checkpoint(name, tmp_path):
    """In float32: what was saved reloads into the stock class, to the same function."""
    model = plain(name)
    said = {what for _, what in find_family(model.config.model_type).config}
    said -= {"heads", "kv_heads"} if name == "phi" else set()  # its norms of queries and keys
    said |= {"kv_groups", "heads"} if "kv_heads" in said else set()
    assert ("residual" in said) == (name in RMS and name not in {"olmoe", "llada", "llada-tied"})
    for a in every_axis(model):
        for block in range(2) if a.block is not None else [None]:
            found = [b for b in axes(model) if (b.kind, b.block) == (a.kind, block)]
            if found and a.kind in said - {"rotary"}:
                left = math.ceil(found[0].units * 0.6) - (found[0].units == 2)
                keep(model, found[0], torch.arange(found[0].units)[-left:])
    if "residual" in said:
        c = model.config
        assert (c.hidden_size, c.num_key_value_heads, c.num_attention_heads) == (10, 1, 1)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    weights = again.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    if "experts" in said:  # the grouped kernel wants rows of a multiple of 16 bytes
        model.set_experts_implementation("eager")
        again.set_experts_implementation("eager")
    # Weights lie elsewhere in memory, which float32 kernels may answer with another last bit.
    same(output(again, name), output(model, name), "", scale=1e3)


def apply(model, a, roles, order):
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    rows = order.reshape(a.copies, -1)
    for role in roles:
        entries = units_of(tensors[role.tensor].data, role, a)
        entries.copy_(entries[torch.arange(a.copies)[:, None], rows])


def inert(model, role):
    """Entries that cannot show: a bias that moves all scores of a query alike, unused copies."""
    keys = {f"{block.attention.key}.bias" for block in blocks(model)}
    fused = role.start > 0 or role.repeat > 1
    return "original_inv_freq" in role.tensor or (
        role.tensor in keys and ("c_attn" not in role.tensor or fused)
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_role_can_be_forgotten(name):
    """Permuting all roles but one changes the outputs: each role is needed, and is seen."""
    model = make(name)
    before = output(model, name)
    for a in every_axis(model):
        order = shuffled(a)
        roles = a.roles if a.kind != "rotary" else a.roles[:: max(1, len(a.roles) // 12)]
        for role in roles:
            if inert(model, role):
                continue
            others = [r for r in a.roles if r is not role]
            apply(model, a, others, order)
            assert (output(model, name) - before).abs().max() > 1e-7, (a, role)
            apply(model, a, others, order.argsort(-1))
    assert torch.equal(output(model, name), before)


def test_the_configuration_waits_until_all_blocks_agree():
    model = make("llama")
    keep(model, axis(model, "ffn", 0), range(6))
    assert model.config.intermediate_size == 12
    keep(model, axis(model, "ffn", 1), range(6))
    assert model.config.intermediate_size == 6


def test_a_fused_projection_is_split_right_while_blocks_differ():
    """Phi-3 reads the number of heads from its configuration in the forward pass."""
    cut, zeroed = make("phi3"), make("phi3")
    keep(cut, axis(cut, "kv_groups", 0), [1])
    zero(zeroed, axis(zeroed, "kv_groups", 0), [0])
    same(output(cut, "phi3"), output(zeroed, "phi3"), "phi3")
    first, second = (layer.self_attn for layer in cut.model.layers)
    assert (first.config.num_attention_heads, cut.config.num_attention_heads) == (2, 4)
    keep(cut, axis(cut, "kv_groups", 1), [0])
    assert first.config is second.config is cut.config
    assert cut.config.num_attention_heads == 2


def test_attributes_follow_the_shapes():
    model = make("gpt2")
    keep(model, axis(model, "kv_groups", 0), [0, 2])
    keep(model, axis(model, "ffn", 0), range(5))
    attention, mlp = model.transformer.h[0].attn, model.transformer.h[0].mlp
    assert (attention.num_heads, attention.split_size, attention.head_dim) == (2, 8, 4)
    assert (attention.c_attn.nx, attention.c_attn.nf) == (16, 24)
    assert (mlp.c_fc.nf, mlp.c_proj.nx) == (5, 5)
    assert model.config.n_head == 4  # GPT-2's configuration cannot say it
    model = make("llama")
    keep(model, axis(model, "heads", 0), [[1], [0]])
    attention = model.model.layers[0].self_attn
    assert attention.num_key_value_groups == 1
    assert (attention.q_proj.out_features, attention.o_proj.in_features) == (8, 8)
    assert not [a for a in axes(model, "heads") if a.block == 0]


CACHED = ["llama", "qwen3", "gemma3", "phi", "phi3", "opt", "gpt2", "mixtral", "olmoe"]


@pytest.mark.parametrize("name", CACHED)
def test_generation_with_a_cache_equals_generation_without_after_uneven_cuts(name):
    model = make(name)
    for kind, index, units in (
        ("kv_groups", 0, [1]),
        ("expert_ffn", 1, range(4)),
        ("ffn", 1, range(7)),
        ("experts", 0, [0, 2, 3]),
    ):
        found = [a for a in axes(model) if a.kind == kind and a.block == index]
        if found:
            keep(model, found[0], units)
    ids = inputs(name)["input_ids"]
    written = [
        model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert written[0].shape == (2, 17)
    assert torch.equal(*written)


def test_magnitudes_are_the_norms_of_each_units_weights():
    model = make("phi3")
    a = axis(model, "ffn", 0)
    mlp = model.model.layers[0].mlp
    parts = torch.cat(
        [
            mlp.gate_up_proj.weight.view(2, 12, 16).transpose(0, 1).flatten(1),
            mlp.down_proj.weight.T,
        ],
        1,
    )
    torch.testing.assert_close(magnitudes(model, a), parts.norm(dim=1))
    sparse = make("mixtral")
    e = axis(sparse, "expert_ffn", 0)
    down = sparse.model.layers[0].mlp.experts.down_proj
    assert magnitudes(sparse, e).shape == (4, 12)
    torch.testing.assert_close(magnitudes(sparse, e, sides=["read"]), down.norm(dim=1))


def test_zeroed_units_have_no_magnitude_and_permuting_carries_it_along():
    model = make("qwen2")
    for a in every_axis(model):
        before = magnitudes(model, a)
        order = shuffled(a)
        permute(model, a, order)
        expected = before.gather(-1, order) if a.copies > 1 else before[order]
        torch.testing.assert_close(magnitudes(model, a), expected)
        zero(model, a, [0])
        assert (magnitudes(model, a)[..., 0] == 0).all()


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ([0, 0], "names a unit of ffn of block 0 twice"),
        ([12], "must name units 0 to 11"),
        ([-1], "must name units 0 to 11"),
        ([], "give indices"),
        (torch.tensor([], dtype=torch.long), "at least one"),
        (torch.tensor([0.5]), "give indices"),
        (torch.ones(12, dtype=torch.bool), "give indices"),
        ([[0], [1]], "has 2 rows: ffn of block 0 has 1 copies"),
        ([[0], [1, 2]], "rows of one length"),
    ],
)
def test_bad_units_are_refused(units, words):
    model = make("llama")
    with pytest.raises(OptionError, match=words):
        keep(model, axis(model, "ffn", 0), units)


def test_an_order_must_name_every_unit():
    model = make("llama")
    with pytest.raises(OptionError, match="order has 2 units: ffn of block 0 has 12"):
        permute(model, axis(model, "ffn", 0), [0, 1])


def test_an_axis_of_before_a_cut_is_refused():
    model = make("llama")
    old = axis(model, "ffn", 0)
    keep(model, old, range(6))
    for operation in (permute, keep, zero):
        with pytest.raises(OptionError, match="does not fit the model"):
            operation(model, old, range(6))
    with pytest.raises(OptionError, match="does not fit the model"):
        magnitudes(model, old)


def test_axes_that_stock_attention_cannot_cut_are_refused():
    model = make("llama")
    for a in (axis(model, "values", 0), axis(model, "rotary")):
        with pytest.raises(OptionError, match="one width for queries, keys and values"):
            keep(model, a, [0])
