"""Rules against published code: run where it is installed, re-enacted line by line where not."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import EOS, MASK, VOCAB
from tests.dlm.test_rules import options_of, rows_of
from whet.dlm.canvas import denoise
from whet.dlm.dream import DreamSelector
from whet.dlm.entropy import within_bound
from whet.dlm.provider import PlainProvider
from whet.dlm.state import Proposal
from whet.layers.sampling import propose
from whet.models.denoiser import Denoiser
from whet.rng import keyed_torch

G, B = 12, 4


def test_entropy_bound_accepts_what_transformers_does():
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
        EntropyBoundSampler,
        EntropyBoundSamplerConfig,
    )

    g = torch.Generator().manual_seed(0)
    spread = 8 * torch.rand(200, 10, 1, generator=g, dtype=torch.float64)
    logits = torch.randn(200, 10, 30, generator=g, dtype=torch.float64) * spread
    canvas = torch.zeros(200, 10, dtype=torch.long)
    _, sure = propose(logits.flatten(0, 1), confidence="neg_entropy", dtype=torch.float64)
    for bound in (1e-9, 0.1, 1.0, 4.0):
        sampler = EntropyBoundSampler(EntropyBoundSamplerConfig(bound), 10, 30, 48)
        accepted = sampler.accept_canvas(canvas, canvas + 1, logits, 0).bool()
        ours = within_bound(-sure.unflatten(0, (200, 10)), torch.ones_like(accepted), bound)
        assert torch.equal(ours, accepted)


class UpToTheWindow(PlainProvider):
    """A model that sees nothing behind the window, as block-causal ones."""

    def __call__(self, rows, index, position):
        _, high = rows.bounds()
        logits = torch.empty(len(index), VOCAB, dtype=torch.float64)
        for row in range(len(rows)):
            here = index == row
            seen = rows.tokens[row : row + 1, : int(high[row])]
            logits[here] = self.denoiser.logits(seen, None, index[here] * 0, position[here])
        return logits


class Model(torch.nn.Module):
    """What LLaDA2Pipeline wants of a model."""

    device = torch.device("cpu")

    def __init__(self, denoiser):
        super().__init__()
        self.inner, self.denoiser, self.calls = denoiser.model, denoiser, 0

    def forward(self, tokens, attention_mask, position_ids):
        self.calls += 1
        every = torch.arange(tokens.shape[1])
        logits = self.denoiser.logits(tokens, None, every * 0, every)
        return SimpleNamespace(logits=logits[None])


@pytest.mark.parametrize(
    ("prompt", "settings", "steps"),
    [
        (4, {"threshold": 0.2}, 2 * B),
        (4, {"threshold": 0.15}, B // 2),
        (7, {"threshold": 0.15}, 2 * B),
        *(
            (prompt, {"threshold": 0.3, "edit_threshold": edit, "max_post_steps": post}, 2 * B)
            for prompt, edit, post in (
                (4, 0.2, 16),
                (6, 0.05, 3),
                (4, 0.1, 1),
                (6, 0.1, 16),
                (6, 0.999, 16),
            )
        ),
    ],
)
def test_llada2_decodes_as_diffusers_does(tiny_llada, prompt, settings, steps):
    """The settings keep to what is common. diffusers plans for whole blocks, also where a prompt
    shares one (2 B steps: one token each, as ours), leaves a block unread when its last planned
    step filled it, and reads once more than `max_post_steps`, also where it makes no edits."""
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

    denoiser = dataclasses.replace(Denoiser.of(tiny_llada), block_length=B)
    edits = "edit_threshold" in settings
    blocks = 4 - prompt // B
    length = 4 * B - prompt
    generator = torch.Generator().manual_seed(prompt)
    edited = 0
    for _ in range(2):
        ids = torch.randint(1, MASK, (1, prompt), generator=generator)
        model = Model(denoiser)
        pipeline = LLaDA2Pipeline(model, BlockRefinementScheduler(block_length=B))
        pipeline.set_progress_bar_config(disable=True)
        expected = pipeline(
            input_ids=ids,
            gen_length=length,
            block_length=B,
            num_inference_steps=steps,
            threshold=settings["threshold"],
            editing_threshold=settings.get("edit_threshold"),
            max_post_steps=settings.get("max_post_steps", 1) - 1,
            eos_early_stop=False,
            mask_token_id=MASK,
            output_type="seq",
        ).sequences
        canvas = torch.cat((ids, torch.full((1, length), MASK)), 1)
        ours = {**settings, "steps": blocks * min(steps, B)}
        tokens, trace = denoise(
            denoiser,
            canvas,
            options=options_of("llada2", ours),
            make_provider=UpToTheWindow,
        )
        assert tokens[0, prompt:].tolist() == expected[0].tolist()
        if steps > B:
            assert int(trace.steps[0]) == model.calls - (0 if edits else blocks)
        bare, _ = denoise(
            denoiser,
            canvas,
            options=options_of("llada2", {**ours, "edit_threshold": "none"}),
            make_provider=UpToTheWindow,
        )
        edited += not torch.equal(bare, tokens)
    assert bool(edited) == (settings.get("edit_threshold", 1) < 0.9)


def keep_nucleus(row, top_p, top_k):
    """Dream's filters, one token at a time."""
    order = sorted(range(len(row)), key=lambda i: -row[i])
    p, mass, kept = row.softmax(-1), 0.0, []
    for i in order:
        if mass > top_p:
            break
        kept.append(i)
        mass += float(p[i])
    out = torch.full_like(row, -torch.inf)
    kept = kept[:top_k]
    out[kept] = row[kept]
    return out


def dream_official(model, canvas, steps, alg, top_p, top_k, eps=1e-3):
    """`diffusion_generate` of one row at temperature 0: canvas, step of each position."""
    x = canvas.clone()
    when = torch.full_like(x, -1)
    times = torch.linspace(1, eps, steps + 1)
    for i in range(steps):
        masks = (x == MASK).nonzero()[:, 0]
        logits = model(x[None]).logits[0]
        logits = torch.cat((logits[:1], logits[:-1]))[masks]
        logits[:, MASK] = -torch.inf
        p = torch.stack([keep_nucleus(row, top_p, top_k).softmax(-1) for row in logits])
        confidence, x0 = p.max(-1)
        if alg == "topk_margin":
            best = p.sort(-1, descending=True).values
            confidence = best[:, 0] - best[:, 1]
        elif alg == "entropy":
            confidence = (p * (p + 1e-10).log()).sum(-1)
        s_over_t = times[i + 1] / times[i]
        count = int(len(masks) * (1 - s_over_t)) if i < steps - 1 else len(masks)
        if count:
            chosen = confidence.topk(count).indices
            x[masks[chosen]] = x0[chosen]
            when[masks[chosen]] = i
        if not len(masks) - count:
            break
    return x, when


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, None), (0.8, None), (0.9, 3)])
@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize("steps", [G, 5])
def test_dream_official_repeats_the_published_counts(
    tiny_dream, canvases, steps, alg, top_p, top_k
):
    canvas, _ = canvases([4], G)
    settings = {"alg": alg, "steps": steps, "top_p": top_p}
    if top_k is not None:
        settings["top_k"] = top_k
    options = options_of("dream", settings, official=True)
    tokens, trace = denoise(tiny_dream, canvas, options=options, start=4)
    with torch.inference_mode():
        expected, when = dream_official(tiny_dream, canvas[0], steps, alg, top_p, top_k)
    assert tokens[0].tolist() == expected.tolist()
    assert trace.commit_step[0].tolist() == when[4:].tolist()
    assert trace.forwards == steps
    counts = torch.bincount(trace.commit_step[0], minlength=steps).tolist()
    even = options_of("dream", settings)
    _, trace = denoise(tiny_dream, canvas, options=even, start=4)
    spread = torch.bincount(trace.commit_step[0]).tolist()
    assert spread == ([1] * G if steps == G else [3, 3, 2, 2, 2])
    if steps == G:
        assert (counts[0], counts[-1]) == (0, 2)


def three_places(alg, alg_temp=0.0, *, count=4000, k=0, planned=2, seed=5):
    """What DreamSelector commits of three masks, over many requests."""
    confidence = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    pending = torch.ones(count, 3, dtype=torch.bool)
    zeros = torch.zeros(count, dtype=torch.long)
    rows = rows_of(pending, planned=zeros + planned, window_step=zeros + k)
    tokens = zeros[:, None].expand(-1, 3)
    sure = confidence.expand(count, -1)
    selector = DreamSelector(alg, alg_temp, 0.1, False, seed)
    return selector.select(rows, Proposal(tokens, sure, sure, pending)).commit, confidence


@pytest.mark.parametrize("alg_temp", [0.3, 1.0])
@pytest.mark.parametrize("taken", [1, 2])
def test_alg_temp_draws_without_replacement(alg_temp, taken):
    commit, confidence = three_places("maskgit_plus", alg_temp, planned=4 - taken, k=0)
    assert (commit.sum(-1) == taken).all()
    p = (confidence / alg_temp).softmax(-1).tolist()
    for a, b in itertools.combinations(range(3), 2):
        if taken == 2:
            chance = p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b]))
            hits = int((commit[:, a] & commit[:, b]).sum())
        else:
            chance, hits = p[a] + p[b], int((commit[:, a] | commit[:, b]).sum())
        sigma = math.sqrt(len(commit) * chance * (1 - chance))
        assert abs(hits - len(commit) * chance) < 4 * sigma


@pytest.mark.parametrize("k", range(4))
def test_origin_takes_each_place_on_its_own(k):
    commit, _ = three_places("origin", planned=4, k=k)
    t, s = 1 - 0.9 * k / 4, 1 - 0.9 * (k + 1) / 4
    chance = 1.0 if k == 3 else 1 - s / t
    for places in ([0], [1], [2], [0, 2]):
        both = chance ** len(places)
        sigma = math.sqrt(len(commit) * both * (1 - both))
        assert abs(int(commit[:, places].all(-1).sum()) - len(commit) * both) <= 4 * sigma


def test_origin_in_one_step_samples_every_position_at_once(tiny_dream, canvases):
    canvas, mask = canvases([4, 2], G)
    heat = {"temperature": 0.9, "seed": 4, "steps": 1}
    once = options_of("dream", {"alg": "origin", **heat})
    tokens, trace = denoise(tiny_dream, canvas, mask, options=once, start=4)
    expected, _ = denoise(
        tiny_dream, canvas, mask, options=options_of("low-confidence", heat), start=4
    )
    assert trace.forwards == 1
    assert torch.equal(tokens, expected)
    slow = options_of("dream", {"alg": "origin", **heat, "steps": 6})
    _, trace = denoise(tiny_dream, canvas, mask, options=slow, start=4)
    assert int(trace.steps.min()) > 1
    assert int(trace.steps.max()) <= 6


@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
def test_a_tiny_alg_temp_takes_the_best(tiny_dream, canvases, alg):
    canvas, mask = canvases([4, 2], G)
    runs = [
        denoise(
            tiny_dream,
            canvas,
            mask,
            options=options_of("dream", {"alg": alg, "alg_temp": heat, "steps": 4}),
            start=4,
        )
        for heat in (0.0, 1e-9, 5.0)
    ]
    steps = [trace.commit_step for _, trace in runs]
    assert torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[0], steps[2])


TURN = 7


class Ends(PlainProvider):
    """EOS is likely at every third position, the end of a turn at every third other."""

    def __call__(self, rows, index, position):
        return self.bias(super().__call__(rows, index, position), position)

    @staticmethod
    def bias(logits, position):
        logits[:, EOS] += torch.where(position % 3 == 1, 5.0, -5.0)
        logits[:, TURN] += torch.where(position % 3 == 2, 5.0, -5.0)
        return logits


def llada_official(model, canvas, start, block, temperature, seed):
    """`generate` with `confidence_eos_eot_inf`, one token per step; ties to the lowest position."""
    x = canvas.clone()
    when, step = [-1] * (len(x) - start), 0
    for low in range(start, len(x), block):
        for _ in range(block):
            masked = x == MASK
            logits = Ends.bias(model(x[None]).logits[0], torch.arange(len(x)))
            logits[:, MASK] = -torch.inf
            noisy, x0 = logits, logits.argmax(-1)
            if temperature:  # then `noisy` is another tensor, and hiding EOS in it hides nothing
                noisy = logits / temperature
                here = [p for p in range(low, low + block) if masked[p]]
                g = keyed_torch(seed, "token", 0, 0, step)
                u = torch.rand(len(here), generator=g, dtype=torch.float64)
                for p, target in zip(here, u, strict=True):
                    x0[p] = int((noisy[p].softmax(-1).cumsum(-1) <= target).sum())
            noisy[:, EOS] = logits[:, TURN] = -torch.inf
            confidence = logits.softmax(-1).gather(-1, x0[:, None])[:, 0]
            confidence[low + block :] = -torch.inf
            confidence[~masked] = -torch.inf
            best = int(confidence.argmax())
            x[best], when[best - start] = x0[best], step
            step += 1
    return x, when


@pytest.mark.parametrize("block", [G, B])
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_llada_official_deferral(tiny_llada, canvases, temperature, block):
    denoiser = dataclasses.replace(Denoiser.of(tiny_llada), end_of_turn_ids=(TURN,))
    canvas, _ = canvases([4], G)
    seen = {True: [], False: []}
    for official in (True, False):
        for seed in range(2):
            settings = {"eos": "defer", "temperature": temperature, "seed": seed}
            options = options_of("low-confidence", settings, official=official, block_length=block)
            tokens, trace = denoise(denoiser, canvas, options=options, start=4, make_provider=Ends)
            seen[official].append((tokens[0].tolist(), trace.commit_step[0].tolist()))
    for seed, found in enumerate(seen[True]):
        with torch.inference_mode():
            x, when = llada_official(tiny_llada, canvas[0], 4, block, temperature, seed)
        assert found == (x.tolist(), when)
    if temperature:
        assert seen[True] != seen[False]
    assert any({EOS, TURN} <= set(tokens[4:]) for tokens, _ in seen[True])
