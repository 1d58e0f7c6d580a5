import json
import math

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy, silu
from transformers import DynamicCache

from whet.errors import CheckpointError
from whet.models.denoiser import base_model
from whet.models.llada2 import LLaDA2MoeConfig, LLaDA2MoeModelLM, block_causal_mask
from whet.models.loading import load_checkpoint
from whet.zoo.tokenizer import character_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rotary_dim": 6,
    "vocab_size": 112,
    "max_position_embeddings": 64,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}
IDS = {"mask_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
# What the published LLaDA2.1-mini configuration holds; it names neither the mask token, EOS nor
# the block.
PUBLISHED = {
    "architectures": ["LLaDA2MoeModelLM"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig",
        "AutoModel": "modeling_llada2_moe.LLaDA2MoeModel",
        "AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM",
    },
    "dtype": "bfloat16",
    "embedding_dropout": 0.0,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "llada2_moe",
    "moe_intermediate_size": 512,
    "moe_router_enable_expert_bias": True,
    "n_group": 8,
    "norm_head": False,
    "norm_softmax": False,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "num_shared_experts": 1,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "pad_token_id": 156892,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 600000,
    "rotary_dim": 64,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "transformers_version": "4.57.1",
    "use_bias": False,
    "use_cache": True,
    "use_qkv_bias": False,
    "use_sliding_window": False,
    "vocab_size": 157184,
}
BLOCK = 4
TOKENS = torch.randint(3, 100, (2, 11), generator=torch.Generator().manual_seed(0))


def make(dtype=torch.float64, **settings):
    torch.manual_seed(1)
    small = {"initializer_range": 0.2, "rope_theta": 1e4, "block_length": BLOCK}
    model = LLaDA2MoeModelLM(LLaDA2MoeConfig(**(SIZES | IDS | small | settings))).double().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" in name or name.endswith("bias"):
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return model.to(dtype)


def seen(length, block, columns=None):
    """Row i, column j: may the query at position i attend to the key at position j?"""
    columns = length if columns is None else columns
    rows = [[j // block <= i // block for j in range(columns)] for i in range(length)]
    return torch.tensor(rows)[None, None]


def rms(x, weight, eps=1e-6):
    return weight * x / math.sqrt(float((x * x).mean()) + eps)


def mlp(w, name, x):
    gate, up = w[f"{name}.gate_proj.weight"] @ x, w[f"{name}.up_proj.weight"] @ x
    return w[f"{name}.down_proj.weight"] @ (silu(gate) * up)


def route(logits, bias, config):
    """Experts and weights of one token, in words: Python lists and sorting only."""
    scores = [1 / (1 + math.exp(-float(z))) for z in logits]
    biased = [s + float(b) for s, b in zip(scores, bias, strict=True)]
    size = config.num_experts // config.n_group
    groups = [list(range(g * size, (g + 1) * size)) for g in range(config.n_group)]
    groups.sort(key=lambda g: -sum(sorted((biased[e] for e in g), reverse=True)[:2]))
    eligible = [e for g in groups[: config.topk_group] for e in g]
    chosen = sorted(eligible, key=lambda e: -biased[e])[: config.num_experts_per_tok]
    total = sum(scores[e] for e in chosen) if len(chosen) > 1 else 1.0
    return {e: scores[e] / total * config.routed_scaling_factor for e in chosen}


def moe(w, name, x, config):
    routed = route(w[f"{name}.gate.weight"] @ x, w[f"{name}.gate.expert_bias"], config)
    out = sum(share * mlp(w, f"{name}.experts.{e}", x) for e, share in routed.items())
    if config.num_shared_experts:
        out = out + mlp(w, f"{name}.shared_experts", x)
    return out


def turn(x, position, config):
    """Rotary embedding of one head: dimension i is paired with i + half, the rest is left."""
    out, half = x.clone(), int(config.head_dim * config.partial_rotary_factor) // 2
    for i in range(half):
        angle = position * config.rope_theta ** (-i / half)
        a, b = float(x[i]), float(x[i + half])
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(w, name, states, config):
    heads, keys, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    rows = []
    for position, x in enumerate(states):
        fused = w[f"{name}.query_key_value.weight"] @ x
        fused = fused + w.get(f"{name}.query_key_value.bias", 0)
        row = fused.view(heads + 2 * keys, d)
        queries, rest = row[:heads], row[heads:]
        norms = [w[f"{name}.{n}_layernorm.weight"] for n in ("query", "key")]
        rows.append(
            (
                [turn(rms(q, norms[0]), position, config) for q in queries],
                [turn(rms(k, norms[1]), position, config) for k in rest[:keys]],
                list(rest[keys:]),
            )
        )
    outputs = []
    for i, (queries, _, _) in enumerate(rows):
        allowed = [j for j in range(len(rows)) if j // BLOCK <= i // BLOCK]
        mixed = []
        for h, query in enumerate(queries):
            group = h // (heads // keys)
            scores = torch.stack([query @ rows[j][1][group] for j in allowed]) / math.sqrt(d)
            shares = scores.softmax(-1)
            mixed.append(sum(s * rows[j][2][group] for s, j in zip(shares, allowed, strict=True)))
        out = w[f"{name}.dense.weight"] @ torch.cat(mixed) + w.get(f"{name}.dense.bias", 0)
        outputs.append(out)
    return outputs


def reference(model, ids):
    """Logits of one text, token by token: the published equations without a batched tensor."""
    config, w = model.config, dict(model.state_dict())
    states = [w["model.word_embeddings.weight"][i] for i in ids]
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        normed = [rms(x, w[f"{name}.input_layernorm.weight"]) for x in states]
        attended = attention(w, f"{name}.attention", normed, config)
        states = [x + y for x, y in zip(states, attended, strict=True)]
        normed = [rms(x, w[f"{name}.post_attention_layernorm.weight"]) for x in states]
        dense = layer < config.first_k_dense_replace
        through = [
            mlp(w, f"{name}.mlp", x) if dense else moe(w, f"{name}.mlp", x, config) for x in normed
        ]
        states = [x + y for x, y in zip(states, through, strict=True)]
    return torch.stack([w["lm_head.weight"] @ rms(x, w["model.norm.weight"]) for x in states])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"first_k_dense_replace": 0},
        {"first_k_dense_replace": 3},
        {"num_key_value_heads": 4, "use_qkv_bias": True, "use_bias": True},
        {"num_key_value_heads": 1, "num_shared_experts": 2},
        {"num_shared_experts": None, "num_experts_per_tok": 1},
        {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0},
        {"n_group": 8, "topk_group": 8},
        {"partial_rotary_factor": 1.0, "rotary_dim": None},
        {"partial_rotary_factor": 0.5, "head_dim": None, "rotary_dim": 4, "rope_theta": 100.0},
        {"tie_word_embeddings": True},
    ],
    ids=lambda s: ",".join(s) or "plain",
)
@torch.no_grad()
def test_logits_equal_a_reference_that_goes_token_by_token(settings):
    model = make(**settings)
    torch.testing.assert_close(
        model(TOKENS).logits,
        torch.stack([reference(model, ids) for ids in TOKENS]),
        atol=1e-11,
        rtol=0,
    )


@torch.no_grad()
def test_the_router_is_limited_to_groups_and_biased_in_its_choice_only():
    model = make()
    gate = model.model.layers[1].mlp.gate
    x = torch.randn(64, 32, dtype=torch.float64)
    experts, weights = gate(x)
    logits = x @ gate.weight.T
    for row in range(64):
        expected = route(logits[row], gate.expert_bias, model.config)
        found = dict(zip(experts[row].tolist(), weights[row].tolist(), strict=True))
        assert found == pytest.approx(expected, abs=1e-13)
    torch.testing.assert_close(weights.sum(-1), torch.full((64,), 2.5, dtype=torch.float64))
    # Both rules make a difference here: without them other experts would be chosen.
    scores = logits.sigmoid()
    free = (scores + gate.expert_bias).topk(3).indices.sort().values
    assert (free != experts.sort().values).any()
    gate.expert_bias.zero_()
    assert (gate(x)[0].sort().values != experts.sort().values).any()


@torch.no_grad()
def test_only_the_first_dimensions_of_a_head_are_turned():
    """Without positions in the rest, its share of the scores does not see distances."""
    model = make(partial_rotary_factor=0.5)
    attention = model.model.layers[0].attention
    seen_keys = []

    class Spy:
        def update(self, keys, values, layer, *args, **kwargs):
            seen_keys.append(keys)
            return keys, values

    ids = TOKENS[:1]
    for shift in (0, 5):
        model.model(ids, position_ids=torch.arange(11)[None] + shift, past_key_values=Spy())
    first, moved = seen_keys[0], seen_keys[3]
    assert first.shape == (1, 2, 11, 12)
    assert torch.equal(first[..., 6:], moved[..., 6:])
    assert (first[..., :6] - moved[..., :6]).abs().amax((0, 1, 3)).min() > 1e-3
    norm = attention.key_layernorm
    plain = attention.query_key_value(
        model.model.layers[0].input_layernorm(model.get_input_embeddings()(ids))
    ).unflatten(-1, (8, 12))[:, :, 4:6]
    torch.testing.assert_close(
        norm(plain)[..., 6:].transpose(1, 2), first[..., 6:], atol=1e-14, rtol=0
    )


@torch.no_grad()
def test_attention_is_block_causal():
    model = make()
    base = base_model(model)
    before = base(TOKENS).last_hidden_state
    for place in range(11):
        changed = TOKENS.clone()
        changed[:, place] = (changed[:, place] + 1) % 100
        difference = (base(changed).last_hidden_state - before).abs().amax(-1)
        start = place // BLOCK * BLOCK
        # Other tokens share an expert's matrix product, which may round differently.
        assert (difference[:, :start] < 1e-13).all()
        assert (difference[:, start:] > 1e-9).all()


@torch.no_grad()
def test_the_block_length_can_be_set_after_loading():
    model, other = make(), make(block_length=8)
    assert (model(TOKENS).logits - other(TOKENS).logits).abs().max() > 1e-3
    model.config.block_length = 8
    assert torch.equal(model(TOKENS).logits, other(TOKENS).logits)


@pytest.mark.parametrize("pad", [1, 4, 6])
@pytest.mark.parametrize("clamped", [False, True])
@torch.no_grad()
def test_left_padding_changes_nothing(pad, clamped):
    model = make()
    long, short = TOKENS[:1], TOKENS[1:, pad:]
    padded = torch.cat((torch.zeros(1, pad, dtype=torch.long), short), -1)
    batch, mask = torch.cat((long, padded)), torch.ones(2, 11, dtype=torch.long)
    mask[1, :pad] = 0
    positions = mask.cumsum(-1) - 1
    if clamped:
        positions = positions.clamp_min(0)
    states = model.model(batch, mask, positions).last_hidden_state
    assert states.isfinite().all()
    torch.testing.assert_close(states[:1], model.model(long)[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(states[1:, pad:], model.model(short)[0], atol=1e-12, rtol=0)
    again = model.model(batch, mask.bool(), positions).last_hidden_state
    assert torch.equal(again, states)


@torch.no_grad()
def test_keys_masked_anywhere_are_not_attended():
    model = make()
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[:, 9:] = 0
    logits = model(TOKENS, attention_mask=mask).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:, :9], model(TOKENS[:, :9]).logits, atol=1e-12, rtol=0)
    mask[:, 2] = 0
    masked = model(TOKENS, attention_mask=mask).logits
    changed = TOKENS.clone()
    changed[:, 2] += 1
    again = model(changed, attention_mask=mask).logits
    others = [c for c in range(11) if c != 2]
    torch.testing.assert_close(again[:, others], masked[:, others], atol=1e-12, rtol=0)
    nothing = model(TOKENS, attention_mask=torch.zeros_like(mask)).logits
    assert nothing.isfinite().all()


def test_the_mask_follows_positions_and_leaves_no_query_without_a_key():
    """Attention kernels may answer NaN where a row of the mask is empty."""
    positions = torch.tensor([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]])
    kept = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    mask = block_causal_mask(positions, kept, 2)[:, 0].int().tolist()
    assert mask[0] == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    assert mask[1] == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
    ]
    assert block_causal_mask(positions[1:], None, 3).int()[0, 0, :, 3].tolist() == [0, 0, 0, 1, 1]


@torch.no_grad()
def test_a_four_dimensional_mask_is_used_as_it_is():
    model = make()
    causal = torch.ones(11, 11, dtype=torch.bool).tril()[None, None].expand(2, 1, 11, 11)
    one = make(block_length=1)
    expected = one(TOKENS).logits
    torch.testing.assert_close(model(TOKENS, attention_mask=causal).logits, expected)
    for bad in (causal.double(), causal[:, 0], causal[:, 0, 0, :5]):
        with pytest.raises(ValueError, match="attention_mask is torch"):
            model(TOKENS, attention_mask=bad)


class Store:
    """Keys and values by column, and nothing else of transformers' cache classes."""

    def __init__(self, length):
        self.length, self.columns, self.kept, self.calls = length, None, {}, []

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.calls.append((layer_idx, tuple(key_states.shape), tuple(value_states.shape)))
        if layer_idx not in self.kept:
            rows, heads, _, width = key_states.shape
            self.kept[layer_idx] = [
                torch.full((rows, heads, self.length, width), torch.nan, dtype=key_states.dtype)
                for _ in range(2)
            ]
        for held, fed in zip(self.kept[layer_idx], (key_states, value_states), strict=True):
            held[:, :, self.columns] = fed
        return tuple(held.nan_to_num(nan=0.0) for held in self.kept[layer_idx])


def through(model, store, ids, columns):
    """States of some columns, the keys of the others taken from the store."""
    store.columns = columns
    return model.model(
        ids[:, columns],
        attention_mask=seen(11, BLOCK)[:, :, columns].expand(2, 1, -1, -1),
        position_ids=torch.tensor(columns)[None],
        past_key_values=store,
    ).last_hidden_state


@torch.no_grad()
def test_forwards_of_parts_with_stored_keys_equal_the_whole():
    model = make()
    whole = model.model(TOKENS).last_hidden_state
    store = Store(11)
    for begin in (0, 4, 8):
        columns = list(range(begin, min(begin + 4, 11)))
        unfinished = TOKENS.index_fill(1, torch.tensor(columns[1:]), 1)
        through(model, store, unfinished, columns)  # a step on masks, overwritten by the next
        states = through(model, store, TOKENS, columns)
        torch.testing.assert_close(states, whole[:, columns], atol=1e-12, rtol=0)
    # Once everything is stored, any columns can be fed again, in any order.
    for columns in ([2], [9, 3, 6], list(range(11))):
        states = through(model, store, TOKENS, columns)
        torch.testing.assert_close(states, whole[:, columns], atol=1e-12, rtol=0)
    assert store.calls[0] == (0, (2, 2, 4, 12), (2, 2, 4, 12))
    assert [layer for layer, *_ in store.calls[:6]] == [0, 1, 2, 0, 1, 2]


@torch.no_grad()
def test_transformers_own_cache_works_too():
    model = make()
    whole, cache = model(TOKENS).logits, DynamicCache()
    for columns in (range(4), range(4, 8), range(8, 11)):
        part = model(
            TOKENS[:, columns],
            attention_mask=seen(11, BLOCK)[:, :, columns, : columns[-1] + 1].expand(2, 1, -1, -1),
            position_ids=torch.tensor([*columns])[None],
            past_key_values=cache,
        )
        torch.testing.assert_close(part.logits, whole[:, columns], atol=1e-12, rtol=0)


@torch.no_grad()
def test_embeddings_in_place_of_tokens():
    model = make()
    embeds = model.get_input_embeddings()(TOKENS)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(TOKENS).logits)


@torch.no_grad()
def test_float64_stays_float64():
    model = make()
    assert {t.dtype for t in model.state_dict().values()} == {torch.float64}
    dtypes = []
    for module in model.modules():
        module.register_forward_hook(lambda _, __, out: dtypes.append(out))
    model(TOKENS)
    floats = [
        t.dtype
        for out in dtypes
        for t in (out if isinstance(out, tuple) else [out])
        if isinstance(t, torch.Tensor) and t.is_floating_point()
    ]
    assert len(floats) > 50
    assert set(floats) == {torch.float64}
    # In float32 anywhere inside, a shift of all positions would show up at 1e-7.
    for shift in (4, 32):
        shifted = model(TOKENS, position_ids=torch.arange(11)[None] + shift).logits
        torch.testing.assert_close(shifted, model(TOKENS).logits, atol=1e-11, rtol=0)


@torch.no_grad()
def test_half_precision_runs_and_is_near():
    # All experts run, so that rounding cannot choose others.
    model = make(topk_group=4, num_experts_per_tok=8)
    exact = model(TOKENS).logits
    rough = model.bfloat16()(TOKENS).logits
    assert rough.dtype == torch.bfloat16
    assert 0 < (rough.double() - exact).abs().max() < 0.1 * exact.abs().max()
    weights = model.model.layers[1].mlp.gate(torch.randn(5, 32, dtype=torch.bfloat16))[1]
    assert weights.dtype == torch.float32


@torch.no_grad()
def test_logits_to_keep_and_labels():
    model = make()
    full = model(TOKENS).logits
    torch.testing.assert_close(model(TOKENS, logits_to_keep=2).logits, full[:, -2:])
    index = torch.tensor([0, 4])
    torch.testing.assert_close(model(TOKENS, logits_to_keep=index).logits, full[:, index])
    labels = TOKENS.masked_fill(TOKENS < 50, -100)
    expected = cross_entropy(full[labels >= 0], labels[labels >= 0])  # not shifted
    torch.testing.assert_close(model(TOKENS, labels=labels).loss, expected)
    torch.testing.assert_close(model.head(model.model(TOKENS).last_hidden_state), full)


def test_gradients_reach_every_weight_and_survive_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        model = make().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(TOKENS, labels=TOKENS).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    idle = {name for name, grad in gradients[0].items() if grad is None}
    assert all(".experts." in name for name in idle)  # of experts that no token chose
    for name, grad in gradients[0].items():
        if name not in idle:
            assert grad.abs().sum() > 0
            torch.testing.assert_close(grad, gradients[1][name])


def test_gradients_equal_finite_differences():
    model = make()
    gate = model.model.layers[1].mlp.gate.weight
    loss = model(TOKENS, labels=TOKENS).loss
    (gradient,) = torch.autograd.grad(loss, gate)
    direction, step = torch.randn_like(gate), 1e-6
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            gate.add_(sign * step * direction)
            values.append(model(TOKENS, labels=TOKENS).loss)
            gate.sub_(sign * step * direction)
    numeric = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numeric, atol=1e-7, rtol=1e-5)


def test_defaults_are_the_published_models():
    config = LLaDA2MoeConfig.from_dict(dict(PUBLISHED))
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (
        156895,
        156892,
        156892,
    )
    assert (config.block_length, config.rotary_dim, config.head_dim) == (32, 64, 128)
    assert config.use_cache is False
    stored = config.to_dict()
    dropped = {"auto_map", "rope_scaling", "transformers_version", "use_cache"}
    assert {k: stored[k] for k in PUBLISHED.keys() - dropped} == {
        k: v for k, v in PUBLISHED.items() if k not in dropped
    }
    again = LLaDA2MoeConfig.from_dict(dict(stored))
    assert again.to_dict() | {"_name_or_path": ""} == stored | {"_name_or_path": ""}
    defaults = LLaDA2MoeConfig().to_dict()
    sizes = [k for k in defaults if isinstance(defaults[k], (int, float)) and k != "use_cache"]
    assert len(sizes) > 30
    assert {k: defaults[k] for k in sizes} == {k: stored[k] for k in sizes}


def test_the_newer_way_to_write_rotary_settings_is_read():
    """As in the published LLaDA2.0-Uni configuration."""
    rope = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25}
    config = LLaDA2MoeConfig(rope_parameters=rope)
    assert (config.rope_theta, config.partial_rotary_factor, config.rotary_dim) == (5e3, 0.25, 32)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("score_function", "softmax"),
        ("norm_topk_prob", False),
        ("moe_router_enable_expert_bias", False),
        ("use_qk_norm", False),
        ("use_sliding_window", True),
        ("norm_head", True),
        ("norm_softmax", True),
        ("rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("rope_parameters", {"rope_type": "linear", "factor": 4.0}),
        ("vocab_size", 0),
        ("hidden_size", "32"),
        ("num_hidden_layers", 0),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("num_experts", 0),
        ("num_experts_per_tok", 5),
        ("num_shared_experts", -1),
        ("first_k_dense_replace", -1),
        ("n_group", 3),
        ("topk_group", 5),
        ("partial_rotary_factor", 0.0),
        ("partial_rotary_factor", 0.25),
        ("rotary_dim", 8),
        ("block_length", 0),
    ],
)
def test_what_llada2_never_shipped_is_refused_by_name(key, value):
    settings = SIZES | IDS | {key: value}
    if key == "partial_rotary_factor":
        settings["rotary_dim"] = None
    with pytest.raises(CheckpointError) as caught:
        LLaDA2MoeConfig(**settings)
    message = str(caught.value)
    assert f"{key}={value!r}" in message
    assert "\n" not in message


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A directory as on the hub: sharded, remote code named, the published configuration keys."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = tmp_path_factory.mktemp("llada2")
    model = make(torch.float32, rope_theta=600000)
    model.save_pretrained(directory, max_shard_size="20KB")
    character_tokenizer(["sort"]).save_pretrained(directory)
    raw = PUBLISHED | SIZES | IDS | {"dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(raw))
    for name in ("modeling_llada2_moe.py", "configuration_llada2_moe.py"):
        (directory / name).write_text("raise SystemExit('remote code ran')")
    model.config.block_length = 32  # the published length, which the files do not say
    return directory, model


@torch.no_grad()
def test_a_published_directory_loads(published):
    directory, model = published
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    loaded, tokenizer = load_checkpoint(directory)
    assert type(loaded) is LLaDA2MoeModelLM
    assert not loaded.training
    assert loaded.config.block_length == 32
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_the_bias_of_the_router_is_not_rounded_to_half_precision(published, dtype):
    directory, model = published
    loaded, _ = load_checkpoint(directory, dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    for layer in (1, 2):
        bias = loaded.model.layers[layer].mlp.gate.expert_bias
        assert bias.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(bias.float(), model.model.layers[layer].mlp.gate.expert_bias)
    assert loaded(TOKENS).logits.dtype == dtype


@pytest.mark.parametrize("trust", [None, False, True])
@torch.no_grad()
def test_the_auto_classes_load_the_same_without_remote_code(published, trust):
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    import whet.auto  # noqa: F401

    directory, model = published
    config = AutoConfig.from_pretrained(directory, trust_remote_code=trust)
    assert type(config) is LLaDA2MoeConfig
    for factory in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
        loaded = factory.from_pretrained(directory, trust_remote_code=trust).eval()
        assert type(loaded) is LLaDA2MoeModelLM
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_saving_and_loading_are_inverse_under_the_published_names(tied, tmp_path):
    model = make(torch.float32, tie_word_embeddings=tied, block_length=8)
    model.save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    attention = ["query_key_value", "query_layernorm", "key_layernorm", "dense"]
    parts = ["input_layernorm", "post_attention_layernorm", *(f"attention.{a}" for a in attention)]
    expected = {f"model.layers.{i}.{part}.weight" for i in range(3) for part in parts}
    for i in range(3):
        mlps = ["mlp"] if i == 0 else [f"mlp.experts.{e}" for e in range(8)]
        mlps += ["mlp.shared_experts"] if i else []
        expected |= {
            f"model.layers.{i}.{m}.{p}_proj.weight" for m in mlps for p in ("gate", "up", "down")
        }
    expected |= {
        f"model.layers.{i}.mlp.gate.{n}" for i in (1, 2) for n in ("weight", "expert_bias")
    }
    expected |= {"model.word_embeddings.weight", "model.norm.weight"}
    assert names == expected | (set() if tied else {"lm_head.weight"})
    assert model.state_dict()["model.layers.0.attention.query_key_value.weight"].shape == (96, 32)
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded.config.block_length == 8
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert (loaded.lm_head.weight is loaded.model.word_embeddings.weight) == tied
    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {
        "_name_or_path": ""
    }


def test_a_bad_configuration_is_refused_when_loading(published, tmp_path):
    directory, _ = published
    raw = json.loads((directory / "config.json").read_text())
    for key, value in {"topk_group": 9, "score_function": "softmax", "num_experts": "8"}.items():
        (tmp_path / "config.json").write_text(json.dumps(raw | {key: value}))
        with pytest.raises(CheckpointError, match=key) as caught:
            load_checkpoint(tmp_path)
        assert "\n" not in str(caught.value)


def test_new_embeddings_and_a_new_head_can_be_set():
    model = make()
    embedding, head = torch.nn.Embedding(112, 32), torch.nn.Linear(32, 112, bias=False)
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(head)
    assert model.get_input_embeddings() is model.model.word_embeddings is embedding
    assert model.get_output_embeddings() is model.lm_head is head


def fill(model, canvas, prompt, block):
    """One token per forward, the most confident of the leftmost unfinished block."""
    canvas = canvas.clone()
    for begin in range(prompt // block * block, canvas.shape[1], block):
        window = slice(begin, begin + block)
        while (canvas[:, window] == 1).any():
            states = model(canvas[:, : begin + block]).logits[:, window]
            confidence, token = states.softmax(-1).max(-1)
            best = confidence.masked_fill(canvas[:, window] != 1, -1).argmax(-1)
            for row in range(len(canvas)):
                if (canvas[row, window] == 1).any():
                    canvas[row, begin + best[row]] = token[row, best[row]]
    return canvas


@pytest.mark.parametrize(("prompt", "length"), [(5, 9), (4, 8), (7, 2)])
@torch.no_grad()
def test_diffusers_pipeline_runs_on_it(prompt, length):
    """Its canvas ends in masked-out columns; ours in the test does not have them."""
    diffusers = pytest.importorskip("diffusers", minversion="0.39")
    model = make()
    model.lm_head.weight[:2] = 0  # neither EOS nor the mask token is ever the best
    pipeline = diffusers.LLaDA2Pipeline(
        model=model, scheduler=diffusers.BlockRefinementScheduler(block_length=BLOCK)
    )
    pipeline.set_progress_bar_config(disable=True)
    settings = {"gen_length": length, "mask_token_id": 1, "eos_token_id": 0}
    settings |= {"output_type": "seq", "sampling_method": "greedy", "num_inference_steps": BLOCK}
    ids = TOKENS[:, :prompt]
    found = pipeline(input_ids=ids, threshold=2.0, editing_threshold=None, **settings).sequences
    canvas = torch.cat((ids, torch.ones(2, length, dtype=torch.long)), -1)
    if length >= BLOCK:  # with fewer steps than that it fills several positions at once
        assert torch.equal(found, fill(model, canvas, prompt, BLOCK)[:, prompt:])
    assert found.shape == (2, length)
    assert (found > 1).all()
    edited = pipeline(input_ids=ids, threshold=0.05, editing_threshold=0.02, **settings).sequences
    assert edited.shape == (2, length)
    assert (edited > 1).all()
