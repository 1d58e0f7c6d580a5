"""ADJUST: its invariants against the base alone, enumerations and a layer written out plainly."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import EOS, MASK
from tests.dlm.families import FULL, assert_each_alone, assert_same, favour, ragged
from whet.data.trajectories import Trajectory
from whet.dlm.adjust import Adjust, AdjustConfig, AdjustProvider, AdjustSampler, adjust
from whet.dlm.adjust.decoding import light_pass, oracle
from whet.dlm.adjust.sampler import full_states, load_sampler
from whet.dlm.adjust.training import (
    AdjustRecipe,
    AdjustTraining,
    WindowBatch,
    depth_law,
    divergences,
    draw_windows,
    start_law,
    unroll,
)
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.dlm.low_confidence import LowConfidence
from whet.dlm.stream import DenoiseStream, Job
from whet.dlm.trace import Trace
from whet.errors import CheckpointError, InputError, OptionError
from whet.models.denoiser import Denoiser

LENGTHS, G = [5, 2, 8], 8
EXACT = {"softmax": "float64"}
both = pytest.mark.parametrize("family", FULL)


@pytest.fixture
def model(request, family):
    return request.getfixturevalue(family)


def make_sampler(model, *, trained=True, seed=1):
    """A layer in float64; `trained`: with random weights everywhere, so that it does something."""
    torch.manual_seed(seed)
    sampler = AdjustSampler(AdjustConfig.of(Denoiser.of(model), tokens_per_forward=4))
    sampler = sampler.double().eval()
    if trained:
        with torch.no_grad():
            for parameter in sampler.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return sampler.requires_grad_(False)


def run(model, options, lengths=LENGTHS, **more):
    canvas, real = ragged(lengths, G)
    return denoise(model, canvas, real, options=options, start=max(lengths), **more)


# The layer


def plain_layer(sampler, embeds, hidden):
    """The layer equation for one unpadded canvas, head by head."""
    config, w = sampler.config, sampler.state_dict()
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads

    def norm(x, name):
        return w[name] * x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()

    def linear(x, name):
        out = x @ w[f"{name}.weight"].T
        return out + w[f"{name}.bias"] if f"{name}.bias" in w else out

    def turn(x):
        theta = config.rope_parameters["rope_theta"]
        angle = torch.arange(len(x))[:, None] * theta ** (-torch.arange(0, size, 2) / size)
        angle = angle.double()
        a, b = x[:, : size // 2], x[:, size // 2 :]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), 1)

    u = torch.cat((norm(embeds, "embed_norm.weight"), norm(hidden, "hidden_norm.weight")), -1)
    u = linear(u, "merge")
    y = norm(u, "layer.input_layernorm.weight")
    q, k, v = (linear(y, f"layer.self_attn.{n}_proj") for n in "qkv")
    out = []
    for head in range(heads):
        shared = head // (heads // kv_heads)
        mine, theirs = (
            slice(head * size, (head + 1) * size),
            slice(shared * size, shared * size + size),
        )
        scores = turn(q[:, mine]) @ turn(k[:, theirs]).T / size**0.5
        out.append(scores.softmax(-1) @ v[:, theirs])
    u = u + linear(torch.cat(out, -1), "layer.self_attn.o_proj")
    y = norm(u, "layer.post_attention_layernorm.weight")
    gate = F.silu(linear(y, "layer.mlp.gate_proj")) * linear(y, "layer.mlp.up_proj")
    return norm(u + linear(gate, "layer.mlp.down_proj"), "out_norm.weight") + hidden


@both
def test_the_layer_is_its_equation(model):
    sampler = make_sampler(model)
    embeds, hidden = torch.randn(2, 3, 9, 32, dtype=torch.float64)
    found = sampler(embeds, hidden)
    for row in range(3):
        expected = plain_layer(sampler, embeds[row], hidden[row])
        torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=0)
    assert (found - hidden).abs().max() > 0.1


@both
def test_padding_is_not_read_and_rows_do_not_see_each_other(model):
    sampler = make_sampler(model)
    embeds, hidden = torch.randn(2, 3, 9, 32, dtype=torch.float64)
    mask = torch.arange(9) >= torch.tensor([0, 4, 2])[:, None]
    found = sampler(embeds, hidden, mask)
    for row, first in enumerate((0, 4, 2)):
        alone = sampler(embeds[row : row + 1, first:], hidden[row : row + 1, first:])
        torch.testing.assert_close(found[row, first:], alone[0], atol=1e-6, rtol=0)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        sampler(embeds[order], hidden[order], mask[order]), found[order], atol=1e-12, rtol=0
    )


@both
def test_a_fresh_layer_is_the_identity(model):
    sampler = make_sampler(model, trained=False)
    embeds, hidden = torch.randn(2, 3, 9, 32, dtype=torch.float64)
    assert torch.equal(sampler(embeds, hidden), hidden)


@both
def test_full_states_give_the_predictions_of_the_model(model):
    denoiser = Denoiser.of(model)
    canvas, real = ragged(LENGTHS, G)
    rows, positions = ((canvas == MASK) & real).nonzero(as_tuple=True)
    with torch.no_grad():
        states = full_states(denoiser, canvas, real)
        expected = denoiser.logits(canvas, real, rows, positions)
        found = denoiser.suppress(denoiser.project(states[rows, positions]))
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@both
def test_states_of_padded_rows_are_those_of_the_row_alone(model):
    """The first real column of a shifted model is predicted by itself, not by the padding."""
    denoiser = Denoiser.of(model)
    canvas, real = ragged(LENGTHS, G)
    with torch.no_grad():
        states = full_states(denoiser, canvas, real)
        for row, first in enumerate((~real).sum(-1).tolist()):
            alone = full_states(denoiser, canvas[row : row + 1, first:])
            torch.testing.assert_close(states[row, first:], alone[0], atol=1e-6, rtol=0)


# The decoder


@both
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_one_token_per_forward_is_decoding_by_entropy(model, temperature):
    heat = {"temperature": temperature, "top_p": 0.9, **EXACT}
    sampler = make_sampler(model)
    sampler.forward = None  # would fail if it were called
    plain = LowConfidence(confidence="neg_entropy", confidence_of="sampled", **heat)
    found = run(model, Adjust(sampler=sampler, tokens_per_forward=1, **heat))
    assert_same(found, run(model, plain), tolerance=0)
    assert found[1].light_per_step is None


@both
@pytest.mark.parametrize("k", [2, 3, 8])
def test_a_fresh_layer_samples_from_the_marginals(model, k):
    settings = {"tokens_per_forward": k, "temperature": 0.9, **EXACT}
    fresh = run(model, Adjust(sampler=make_sampler(model, trained=False), **settings))
    assert_same(fresh, run(model, Adjust(**settings)), tolerance=0)


@both
def test_greedy_marginals_are_the_best_of_one_forward(model):
    canvas, real = ragged(LENGTHS, G)
    k = 3
    found, trace = run(model, Adjust(tokens_per_forward=k, **EXACT))
    with torch.no_grad():
        for row in range(len(canvas)):
            masks = (canvas[row] == MASK).nonzero()[:, 0]
            logits = Denoiser.of(model).logits(canvas, real, torch.full_like(masks, row), masks)
            p = logits.softmax(-1)
            order = torch.special.entr(p).sum(-1).argsort(stable=True)[:k]
            assert (trace.commit_step[row] < k).nonzero()[:, 0].tolist() == sorted(order.tolist())
            assert found[row, masks[order]].tolist() == p.argmax(-1)[order].tolist()


@both
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9}, {"block_length": 4}])
def test_an_oracle_for_the_layer_is_exact_sampling(model, settings):
    def make_provider(denoiser, forward):
        return AdjustProvider(denoiser, forward, oracle(denoiser), 3)

    exact = run(model, Adjust(tokens_per_forward=1, **EXACT, **settings))
    found = run(model, Adjust(**EXACT, **settings), make_provider=make_provider)
    assert torch.equal(found[0], exact[0])
    assert torch.equal(found[1].commit_step, exact[1].commit_step)
    torch.testing.assert_close(found[1].confidence, exact[1].confidence, atol=1e-6, rtol=0)
    assert int(found[1].prompt_rows.sum()) < int(exact[1].prompt_rows.sum())


@both
@pytest.mark.parametrize(("k", "block_length", "full"), [(3, None, 3), (4, None, 2), (3, 4, 4)])
def test_full_forwards_and_light_passes_are_counted_apart(model, k, block_length, full):
    made = []

    def make_provider(denoiser, forward):
        made.append(AdjustProvider(denoiser, forward, light_pass(make_sampler(model), denoiser), k))
        return made[0]

    options = Adjust(tokens_per_forward=k, block_length=block_length)
    _, trace = run(model, options, make_provider=make_provider)
    assert trace.forwards == full
    assert trace.prompt_rows.tolist() == [full] * 3
    assert trace.rows == 3 * full
    assert trace.light_per_step.sum(0).tolist() == [G - full] * 3
    assert (made[0].light_calls, made[0].light_rows) == (G - full, 3 * (G - full))
    assert trace.steps.tolist() == [G] * 3
    assert trace.as_json(0, list(range(G)), ["x"] * G)["forwards"] == full
    assert sorted(trace.commit_step[0].tolist()) == list(range(G))


def test_a_forward_is_useful_if_a_light_pass_after_it_was():
    trace = Trace(
        commit_step=torch.tensor([[0, 1, 2, 3]]),
        confidence=torch.ones(1, 4),
        rows_per_step=torch.tensor([[1], [0], [1], [0]]),
        light_per_step=torch.tensor([[0], [1], [0], [1]]),
    )
    assert trace.steps.tolist() == [4]
    for useful, forwards in (
        ([0, 1, 0, 0], 1),
        ([1, 0, 0, 0], 1),
        ([0, 0, 0, 1], 1),
        ([1, 0, 0, 1], 2),
    ):
        found = trace.spent_on(torch.tensor([useful]).bool())
        assert [t.tolist() for t in found] == [[forwards], [forwards]]


@both
@pytest.mark.parametrize("settings", [{}, {"block_length": 4}, {"temperature": 0.7, "seed": 3}])
@pytest.mark.parametrize("entropy_stop", [None, 2.9])
def test_a_ragged_batch_equals_each_alone(model, settings, entropy_stop):
    options = Adjust(
        sampler=make_sampler(model), tokens_per_forward=3, entropy_stop=entropy_stop, **settings,
        **EXACT,
    )  # fmt: skip
    canvas, real = ragged(LENGTHS, G)
    together = run(model, options)
    # Rotary angles are float32 in transformers, and padding moves no position.
    assert_each_alone(model, canvas, real, options, together, tolerance=1e-6)


@both
def test_rows_keep_their_states_while_others_come_and_go(model):
    """Prompts of several lengths, admitted between steps, decode as they do alone."""
    options = Adjust(sampler=make_sampler(model), tokens_per_forward=3, **EXACT)
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 8), (7, 3), (2, 6), (3, 5), (6, 8), (5, 2)]
    jobs = []
    for request, (prompt, length) in enumerate(shapes):
        ids = torch.randint(1, MASK, (prompt,), generator=generator)
        jobs.append(Job(torch.cat((ids, torch.full((length,), MASK))), prompt, request))
    denoiser = Denoiser.of(model)
    done = {d.index: d for d in DenoiseStream(denoiser, iter(jobs), options=options, batch_size=3)}
    for index, job in enumerate(jobs):
        alone, trace = denoise(
            model, job.tokens[None], options=options, start=job.start, requests=[job.request]
        )
        assert done[index].tokens.tolist() == alone[0].tolist()
        assert torch.equal(done[index].trace.light_per_step, trace.light_per_step)
        assert done[index].trace.forwards == trace.forwards


@both
def test_the_layer_changes_what_is_sampled(model):
    settings = {"tokens_per_forward": 4, **EXACT}
    with_layer = run(model, Adjust(sampler=make_sampler(model), **settings))
    assert not torch.equal(with_layer[0], run(model, Adjust(**settings))[0])


@both
def test_what_may_not_be_predicted_is_suppressed_after_light_passes(model):
    favour(model, MASK, 50.0)
    favour(model, EOS, 20.0)
    options = Adjust(sampler=make_sampler(model), eos="suppress", temperature=1.0)
    tokens, _ = run(model, options)
    assert not ((tokens == MASK) | (tokens == EOS))[:, max(LENGTHS) :].any()


@both
def test_entropy_stop_at_zero_never_trusts_a_light_pass(model):
    sampler = make_sampler(model)
    heat = {"temperature": 0.8, **EXACT}
    stopped = run(model, Adjust(sampler=sampler, entropy_stop=0.0, **heat))
    exact = run(model, Adjust(tokens_per_forward=1, **heat))
    assert torch.equal(stopped[0], exact[0])
    assert stopped[1].forwards == G
    assert int(stopped[1].light_per_step.sum()) == 3 * (G - 1)
    assert_same(
        run(model, Adjust(sampler=sampler, entropy_stop=99.0, **heat)),
        run(model, Adjust(sampler=sampler, **heat)),
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tokens_per_forward": 0}, "tokens_per_forward=0"),
        ({"entropy_stop": -1.0}, "entropy_stop=-1"),
        ({"entropy_stop": float("nan")}, "entropy_stop=nan"),
        ({"cfg_scale": 1.0}, "cfg_scale=1 with light passes"),
        ({"smooth": 0.3}, "smooth=0.3 with light passes"),
        ({"cache": "dual"}, "cache=dual with light passes"),
    ],
)
def test_bad_options_are_refused(settings, says):
    with pytest.raises(OptionError, match=says):
        Adjust(**settings)


def test_block_causal_models_are_refused(tiny_sdar):
    canvas, real = ragged([4], G)
    with pytest.raises(OptionError, match="attends to the whole canvas"):
        denoise(tiny_sdar, canvas, real, options=Adjust())
    with pytest.raises(CheckpointError, match="sdar"):
        AdjustConfig.of(Denoiser.of(tiny_sdar), tokens_per_forward=4)


# Folders


@both
def test_a_saved_layer_decodes_the_same(model, tmp_path):
    sampler = make_sampler(model)
    sampler.save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    options = decoder_options(f"adjust:sampler={tmp_path},tokens_per_forward=3,softmax=float64")
    expected = Adjust(sampler=sampler, tokens_per_forward=3, **EXACT)
    assert_same(run(model, options), run(model, expected), tolerance=0)
    prompt = torch.tensor([[3, 4, 5]])
    generated = model.generate(
        prompt, custom_generate=adjust, sampler=str(tmp_path), max_new_tokens=G
    )
    assert torch.equal(
        generated,
        model.generate(prompt, custom_generate="adjust", sampler=sampler, max_new_tokens=G),
    )
    # Written anew, it is read anew.
    other = make_sampler(model, seed=2)
    other.save_pretrained(tmp_path)
    assert_same(
        run(model, options), run(model, dataclasses.replace(expected, sampler=other)), tolerance=0
    )


def test_folders_without_a_fitting_layer_are_refused(tiny_llada, tiny_dream, tmp_path):
    with pytest.raises(CheckpointError, match="holds no sampler layer"):
        run(tiny_llada, Adjust(sampler=str(tmp_path)))
    make_sampler(tiny_dream).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="model_type='Dream', this model has 'llada'"):
        run(tiny_llada, Adjust(sampler=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load_sampler(tmp_path, dtype=torch.float64)
    tiny_llada.save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="model_type is 'llada'"):
        load_sampler(tmp_path / "base", dtype=torch.float64)


# Training


def trajectory(prompt, length, seed):
    """One token per step in random order."""
    rng = np.random.default_rng(seed)
    return Trajectory(
        request=seed,
        source="t",
        prompt="",
        prompt_ids=rng.integers(1, MASK, prompt).tolist(),
        tokens=rng.integers(0, MASK, length).tolist(),
        commit_step=rng.permutation(length).tolist(),
        confidence=[0.0] * length,
        text="",
        correct=None,
    )


FOUND = [trajectory(p, n, i) for i, (p, n) in enumerate([(4, 6), (2, 9), (7, 2), (3, 5)])]


def windows(found=FOUND, passes=3, seed=0):
    rng = np.random.default_rng(seed)
    return draw_windows(rng, found, passes=passes, decay=0.5, mask_token_id=MASK, pad_token_id=EOS)


def test_depths_fall_geometrically():
    torch.testing.assert_close(
        depth_law(3, 0.5), torch.tensor([4.0, 2.0, 1.0]).double() / 7, atol=1e-12, rtol=0
    )
    assert depth_law(4, 1.0).tolist() == [0.25] * 4


@pytest.mark.parametrize("seed", range(5))
def test_windows_are_successive_canvases_with_a_mask_left(seed):
    batch = windows(seed=seed)
    assert int(batch.depth.max()) <= 3
    for row, t in enumerate(FOUND):
        first = int((~batch.mask[row]).sum())
        canvases = batch.canvases[:, row, first:].tolist()
        left = [c.count(MASK) for c in canvases]
        depth = int(batch.depth[row])
        assert left[: depth + 1] == list(range(left[0], left[0] - depth - 1, -1))
        assert left[depth] >= 1
        assert set(left[depth:]) == {left[depth]}
        for canvas, masks in zip(canvases, left, strict=True):
            assert canvas[: len(t.prompt_ids)] == t.prompt_ids
            region = zip(canvas[len(t.prompt_ids) :], t.tokens, t.commit_step, strict=True)
            known = len(t.tokens) - masks
            assert all(c == (token if step < known else MASK) for c, token, step in region)


def test_all_windows_are_drawn():
    seen = set()
    for seed in range(300):
        batch = windows([FOUND[3]], seed=seed)
        seen.add((int((batch.canvases[0] == MASK).sum()), int(batch.depth[0])))
    assert seen == {(left, depth) for depth in (1, 2, 3) for left in range(depth + 1, 6)}


def test_focus_draws_windows_that_begin_with_an_unsure_token():
    sure = dataclasses.replace(
        FOUND[3], commit_step=[3, 1, -1, 0, 2], confidence=[-9.0, -3.0, 0.0, -1.0, 0.0]
    )
    assert start_law(sure, 3, 0.0).tolist() == [1 / 3] * 3
    np.testing.assert_allclose(start_law(sure, 3, 1.0), [0.25, 0.75, 0.0])
    np.testing.assert_allclose(start_law(sure, 2, 0.5), [0.25 + 0.125, 0.25 + 0.375])
    certain = dataclasses.replace(sure, confidence=[0.0] * 5)
    assert start_law(certain, 2, 1.0).tolist() == [0.5, 0.5]
    with pytest.raises(InputError, match=r"confidence 0\.5: focus needs entropies"):
        start_law(dataclasses.replace(sure, confidence=[0.5] * 5), 2, 0.5)


def test_trajectories_with_several_tokens_in_a_step_are_refused():
    several = dataclasses.replace(FOUND[0], commit_step=[0, 0, 1, 2, 3, 4])
    with pytest.raises(InputError, match="several tokens in a step"):
        windows([several])
    with pytest.raises(InputError, match="1 step: 2 are needed"):
        windows([dataclasses.replace(FOUND[2], commit_step=[0, -1])])


@both
def test_unrolling_in_a_batch_equals_one_row_at_a_time(model):
    denoiser, sampler = Denoiser.of(model), make_sampler(model)
    batch = windows(seed=3)
    assert batch.depth.unique().numel() > 1
    start = full_states(denoiser, batch.canvases[0], batch.mask)
    found = unroll(denoiser, sampler, batch, start)
    for row in range(len(batch.depth)):
        first = int((~batch.mask[row]).sum())
        hidden = full_states(denoiser, batch.canvases[0, row : row + 1, first:])
        for j in range(1, int(batch.depth[row]) + 1):
            tokens = batch.canvases[j, row : row + 1, first:]
            hidden = sampler(F.embedding(tokens, denoiser.embedding()), hidden)
        torch.testing.assert_close(found[row, first:], hidden[0], atol=1e-6, rtol=0)


@both
def test_an_identity_at_depth_zero_has_no_loss(model):
    denoiser, sampler = Denoiser.of(model), make_sampler(model)
    batch = windows()
    still = WindowBatch(batch.canvases, torch.zeros_like(batch.depth), batch.mask)
    with torch.no_grad():
        ours, marginal, _ = divergences(denoiser, sampler, still)
    assert float(ours.abs().max()) < 1e-12
    assert float(marginal.abs().max()) < 1e-12


@both
def test_the_loss_is_the_divergence_at_the_last_canvases_masks(model):
    denoiser, sampler = Denoiser.of(model), make_sampler(model)
    batch = windows(seed=1)
    ours, marginal, rows = divergences(denoiser, sampler, batch)
    expected, stale = [], []
    for row in range(len(batch.depth)):
        first = int((~batch.mask[row]).sum())
        one = WindowBatch(
            batch.canvases[:, row : row + 1, first:],
            batch.depth[row : row + 1],
            batch.mask[row : row + 1, first:],
        )
        last = one.last()
        at = (last[0] == MASK).nonzero()[:, 0]
        zero = torch.zeros_like(at)
        teacher = denoiser.logits(last, None, zero, at).log_softmax(-1)
        before = denoiser.logits(one.canvases[0], None, zero, at).log_softmax(-1)
        start = full_states(denoiser, one.canvases[0])
        hidden = unroll(denoiser, sampler, one, start)
        student = denoiser.suppress(denoiser.project(hidden[zero, at])).log_softmax(-1)
        for q, out in ((student, expected), (before, stale)):
            out.append(torch.nan_to_num(teacher.exp() * (teacher - q)).sum(-1))
        assert int((rows == row).sum()) == len(at)
    # Committed positions and padding are no part of it.
    torch.testing.assert_close(ours, torch.cat(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(marginal, torch.cat(stale), atol=1e-6, rtol=0)


def test_a_fresh_layers_divergence_is_the_marginals(tiny_llada):
    sampler = make_sampler(tiny_llada, trained=False)
    ours, marginal, _ = divergences(Denoiser.of(tiny_llada), sampler, windows())
    torch.testing.assert_close(ours, marginal, atol=1e-12, rtol=0)
    assert float(marginal.min()) > 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training on the zoo's model, which records its own trajectories."""
    recipe = AdjustRecipe.model_validate(
        {
            "method": "adjust",
            "init": "tiny-dlm",
            "tokens_per_forward": 3,
            "data": {
                "tasks": ["scratchpad"],
                "count": 24,
                "gen_length": 6,
                "batch_size": 12,
            },
            "fit": {"steps": 12, "learning_rate": 0.003, "warmup": 2, "ema": 0.0},
        }
    )
    training = AdjustTraining(recipe)
    folder = tmp_path_factory.mktemp("adjust")
    before = {n: t.clone() for n, t in training.base.state_dict().items()}
    training.run(folder)
    return training, folder, before


def test_training_leaves_the_base_alone(trained):
    training, _, before = trained
    held = {id(p) for g in training.players["model"].optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in training.model.parameters()}
    loss, numbers = training.loss(training.batch(0), "model")
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in training.base.parameters())
    assert all(p.grad is not None for p in training.model.parameters())
    training.model.zero_grad()
    assert all(torch.equal(t, before[n]) for n, t in training.base.state_dict().items())
    assert float(loss.detach()) < numbers["marginal"]


def test_training_ends_with_a_layer_that_decodes(trained):
    training, folder, _ = trained
    options = decoder_options(f"adjust:sampler={folder / 'model'}")
    denoiser = training.denoiser
    canvas = torch.full((2, 9), denoiser.mask_token_id)
    canvas[:, 0] = 5
    _, trace = denoise(denoiser, canvas, options=options)
    assert trace.forwards == 2
    saved = load_sampler(folder / "model", dtype=torch.float32)
    assert saved.config.tokens_per_forward == 3
    for name, value in training.model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], value), name
    assert float(saved.out_norm.weight.detach().abs().max()) > 0


def test_batches_come_from_the_step(trained):
    training, _, _ = trained
    one, two = training.batch(4), training.batch(4)
    assert torch.equal(one.canvases, two.canvases)
    assert not torch.equal(one.canvases[0, :, -6:], training.batch(5).canvases[0, :, -6:])


def test_parts_of_a_batch_add_up(trained):
    training, _, _ = trained
    batch = training.batch(1)
    with torch.no_grad():
        whole = float(training.loss(batch, "model")[0])
        parts = training.split(batch, "model", 3)
        assert sum(share for _, share in parts) == pytest.approx(1)
        total = sum(share * float(training.loss(part, "model")[0]) for part, share in parts)
    assert total == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "either trajectories"),
        ({"tasks": ["scratchpad"], "trajectories": "x"}, "either trajectories"),
    ],
)
def test_recipes_name_one_source_of_data(data, says):
    recipe = AdjustRecipe.model_validate(
        {"method": "adjust", "init": "x", "data": data, "fit": {"steps": 1, "learning_rate": 1}}
    )
    with pytest.raises(OptionError, match=says):
        recipe.check()
