"""What must hold in all four families, whatever the rule: prompts, windows, quotas, noise."""

import itertools
import math

import pytest
import torch

from tests.conftest import EOS, MASK
from tests.dlm.families import (
    CAUSAL,
    DECODERS,
    FAMILIES,
    FULL,
    assert_same,
    favour,
    options_for,
    ragged,
    window_ends,
)
from tests.models.test_denoiser import Shifted
from whet import catalogue, rng
from whet.dlm.canvas import denoise
from whet.dlm.low_confidence import LowConfidence
from whet.dlm.provider import GuidedProvider
from whet.dlm.threshold import ThresholdSelector
from whet.models.denoiser import Denoiser

LENGTHS, G = [5, 8, 2], 12
KINDS = {"tiny_llada": "llada", "tiny_dream": "dream", "tiny_sdar": "sdar",
         "tiny_llada2": "llada2_moe"}  # fmt: skip
PAIRS = [(f, d) for f in FAMILIES for d in DECODERS if KINDS[f] in catalogue.get(d).applies_to]


def on_all_families(test):
    return pytest.mark.parametrize("family", FAMILIES)(test)


def windows_of(family, decoder, length, gen_length=G):
    """Region positions of each window of a prompt of this length."""
    if decoder == "nap":
        return [list(range(gen_length))]  # one window
    ends = window_ends(family, length, gen_length)
    return [list(range(max(lo - length, 0), hi - length)) for lo, hi in ends]


@pytest.mark.parametrize(("family", "decoder"), PAIRS)
def test_prompts_stay_masks_go_windows_fill_left_to_right(request, family, decoder):
    canvas, real = ragged(LENGTHS, G)
    settings = {} if decoder == "nap" else {"block_length": 4}
    options = options_for(decoder, **settings)
    model = request.getfixturevalue(family)
    tokens, trace = denoise(model, canvas, real, options=options, start=8)
    assert torch.equal(tokens[:, :8], canvas[:, :8])
    assert not (tokens == MASK).any()
    assert (trace.commit_step >= 0).all()
    for row, length in enumerate(LENGTHS):
        steps = trace.commit_step[row]
        windows = windows_of(family, decoder, length)
        assert sorted(itertools.chain(*windows)) == list(range(G))
        for left, right in itertools.pairwise(windows):
            assert steps[left].max() < steps[right].min()
        assert int(trace.steps[row]) <= G * (1 + 3 * options.edits)
        if not options.edits:  # every step commits something to the winner
            assert steps.unique().tolist() == list(range(int(trace.steps[row])))


@on_all_families
@pytest.mark.parametrize("per_window", [1, 2, 3, 4])
def test_every_window_commits_its_quotas(request, family, per_window):
    """n // s tokens a step, one more in the first n mod s; short windows end early."""
    model = request.getfixturevalue(family)
    for length in LENGTHS:
        canvas, _ = ragged([length], G)
        windows = windows_of(family, "low-confidence", length)
        options = LowConfidence(steps=per_window * len(windows), block_length=4)
        _, trace = denoise(model, canvas, options=options, start=length)
        expected = []
        for window in windows:
            n = len(window)
            quotas = [n // per_window + (k < n % per_window) for k in range(per_window)]
            assert sum(quotas) == n
            expected += [q for q in quotas if q]
        assert torch.bincount(trace.commit_step[0]).tolist() == expected


class Above(LowConfidence):
    """A threshold above every confidence, which options do not allow."""

    def selector(self, denoiser):
        return ThresholdSelector(1.1)


@on_all_families
def test_rules_at_their_strictest_are_greedy_decoding(request, family):
    model = request.getfixturevalue(family)
    canvas, real = ragged(LENGTHS, G)

    def run(options):
        return denoise(model, canvas, real, options=options, start=8)

    greedy = run(options_for("low-confidence", block_length=4))
    assert greedy[1].steps.tolist() == [G] * len(LENGTHS)
    for options in (
        Above(block_length=4, softmax="float64"),
        options_for("factor", block_length=4, factor=0),
        options_for("sdar", block_length=4, threshold=1),
        options_for("llada2", block_length=4, threshold=1),
        options_for("dinfer-threshold", block_length=4, threshold=1),
        options_for("hierarchy", block_length=4, threshold=1, low_threshold=1),
        options_for("pbs", block_length=4, beam_width=1),
        options_for("soar", block_length=4, threshold=1, beam_width=1),
    ):
        assert_same(greedy, run(options))
    surest = run(options_for("low-confidence", block_length=4, confidence="neg_entropy"))
    for options in (
        options_for("entropy-bound", block_length=4, entropy_bound=0),
        options_for("entropy-threshold", block_length=4, entropy_threshold=0),
    ):
        assert_same(surest, run(options))


@on_all_families
def test_rules_at_their_loosest_fill_a_window_at_once(request, family):
    model = request.getfixturevalue(family)
    for length in LENGTHS:
        canvas, _ = ragged([length], G)
        windows = windows_of(family, "threshold", length)
        for decoder, loose in (
            ("threshold", {"threshold": 0}),
            ("factor", {"factor": 1000}),
            ("entropy-threshold", {"entropy_threshold": 50}),
            ("entropy-bound", {"entropy_bound": 500}),
            ("dinfer-threshold", {"threshold": 0}),
            ("sdar", {"threshold": 0}),
            ("dream", {"alg": "origin", "steps": len(windows)}),
        ):
            options = options_for(decoder, block_length=4, **loose)
            _, trace = denoise(model, canvas, options=options, start=length)
            assert trace.forwards == len(windows), decoder
            for k, window in enumerate(windows):
                assert (trace.commit_step[0, window] == k).all()


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("decoder", ["low-confidence", "threshold", "credit", "soar", "llada2.1"])
def test_a_shifted_model_gives_the_tokens_of_the_unshifted_from_a_cache_too(
    tiny_llada, decoder, cache
):
    canvas, real = ragged(LENGTHS, G)
    options = options_for(decoder, block_length=4, cache=cache, refresh_interval=1)
    plain = denoise(tiny_llada, canvas, real, options=options, start=8)
    shifted = denoise(Shifted(tiny_llada), canvas, real, options=options, start=8)
    assert_same(plain, shifted)


@on_all_families
@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "block"])
def test_guidance_of_scale_zero_is_no_guidance(request, family, cache):
    if family in FULL and cache == "block":
        cache = "none"
    model = request.getfixturevalue(family)
    canvas, real = ragged(LENGTHS, G)
    for decoder in ("threshold", "soar"):
        options = options_for(decoder, block_length=4, cache=cache)
        plain, trace = denoise(model, canvas, real, options=options, start=8)
        same, twice = denoise(
            model,
            canvas,
            real,
            options=options,
            start=8,
            make_provider=lambda denoiser, forward: GuidedProvider(denoiser, forward, 0.0),
        )
        assert torch.equal(plain, same)
        assert torch.equal(trace.commit_step, twice.commit_step)
        assert torch.equal(twice.rows_per_step, 2 * trace.rows_per_step)


@on_all_families
def test_edits_that_never_happen_leave_the_rule_without_edits(request, family):
    model = request.getfixturevalue(family)
    canvas, real = ragged(LENGTHS, G)

    def run(decoder, **settings):
        options = options_for(decoder, block_length=4, **settings)
        return denoise(model, canvas, real, options=options, start=8)

    plain = run("llada2")
    assert_same(plain, run("llada2.1", edit_threshold=1, max_post_steps=0))
    read_again, trace = run("llada2.1", edit_threshold=1)
    assert torch.equal(plain[0], read_again)
    windows = [len(windows_of(family, "llada2", length)) for length in LENGTHS]
    assert (trace.steps - plain[1].steps).tolist() == windows  # one reading of each full block


def one_block(model, prompts=1, length=8, gen_length=4):
    """The same canvas `prompts` times, and softmax(l / T) of its masked positions as a function."""
    canvas, _ = ragged([length], gen_length, seed=5)
    rows = torch.zeros(gen_length, dtype=torch.long)
    logits = Denoiser.of(model).logits(canvas, None, rows, torch.arange(gen_length) + length)
    return canvas.repeat(prompts, 1), logits


@on_all_families
@torch.no_grad()
def test_one_step_samples_the_tempered_softmax(request, family):
    """Chi-square of each position's tokens over many prompts; no two positions go together."""
    model, n, heat = request.getfixturevalue(family), 3000, 0.7
    canvas, logits = one_block(model, n)
    options = LowConfidence(steps=1, temperature=heat, seed=11)
    tokens = denoise(model, canvas, options=options, start=8)[0][:, 8:]
    probability = (logits / heat).softmax(-1)
    for place in range(4):
        expected = n * probability[place]
        seen = torch.bincount(tokens[:, place], minlength=len(expected)).double()
        assert seen[MASK] == 0
        rare = expected < 8
        pairs = [(seen[~rare], expected[~rare]), (seen[rare].sum(), expected[rare].sum())]
        chi = sum(float(((s - e) ** 2 / e).sum()) for s, e in pairs if float(e.sum()) > 0)
        freedom = int((~rare).sum())  # classes less one, the rare together being one
        assert chi < freedom + 4 * math.sqrt(2 * freedom)
    favourite = (tokens == probability.argmax(-1)).double()
    correlation = torch.corrcoef(favourite.T) - torch.eye(4)
    assert correlation.abs().max() < 4 / math.sqrt(n)


@on_all_families
@torch.no_grad()
def test_one_step_draws_from_the_nucleus(request, family):
    """Of the likeliest tokens with 60 % of the mass, at most five; confidences are theirs."""
    model, n, heat = request.getfixturevalue(family), 400, 0.8
    canvas, logits = one_block(model, n)
    options = LowConfidence(
        steps=1, temperature=heat, top_p=0.6, top_k=5, confidence_of="sampled", softmax="float64"
    )
    tokens, trace = denoise(model, canvas, options=options, start=8)
    for place, row in enumerate((logits / heat).softmax(-1).tolist()):
        kept, mass = {}, 0.0
        for token in sorted(range(len(row)), key=lambda t: -row[t]):
            if mass > 0.6 or len(kept) == 5:
                break
            kept[token], mass = row[token], mass + row[token]
        drawn = tokens[:, 8 + place].tolist()
        assert set(drawn) == set(kept)  # the least likely of five has 400 chances
        expected = torch.tensor([kept[token] / mass for token in drawn], dtype=torch.float64)
        torch.testing.assert_close(trace.confidence[:, place], expected, atol=1e-12, rtol=0)


@on_all_families
@torch.no_grad()
def test_guidance_is_blind_to_every_given_token(request, family):
    """The unconditional half sees a mask for the prompt, and for tokens given between gaps."""
    model, canvas = request.getfixturevalue(family), ragged([12], 0)[0]
    canvas[0, [9, 11]] = MASK
    options = LowConfidence(steps=1, cfg_scale=1.5, softmax="float64")
    _, trace = denoise(model, canvas, options=options, start=9)
    at = (torch.tensor([0, 0]), torch.tensor([9, 11]))
    seeing, blind = (
        Denoiser.of(model).logits(c, None, *at) for c in (canvas, torch.full_like(canvas, MASK))
    )
    seeing[:, MASK] = blind[:, MASK] = -1e9  # instead of -inf, which has no difference
    expected = (blind + 2.5 * (seeing - blind)).softmax(-1).amax(-1)
    torch.testing.assert_close(trace.confidence[0, [0, 2]], expected, atol=1e-12, rtol=0)


@on_all_families
@torch.no_grad()
def test_origin_in_one_step_draws_all_positions_at_once(request, family):
    model, heat = request.getfixturevalue(family), 0.8
    canvas, logits = one_block(model)
    options = options_for("dream", alg="origin", steps=1, temperature=heat, seed=4)
    tokens, trace = denoise(model, canvas, options=options, start=8, requests=[9])
    assert trace.forwards == 1
    generator = rng.keyed_torch(4, "token", 9, 0, 0)  # request, hypothesis, step
    noise = torch.rand(4, generator=generator, dtype=torch.float64)
    cumulated = (logits / heat).softmax(-1).cumsum(-1)
    drawn = (cumulated <= noise[:, None]).sum(-1)
    assert tokens[0, 8:].tolist() == drawn.tolist()
    assert drawn.tolist() != logits.argmax(-1).tolist()


@on_all_families
def test_a_finished_window_with_an_end_ends_the_text(request, family):
    """Whatever is to the right becomes EOS, without a forward; the windows before are as ever."""
    model = favour(request.getfixturevalue(family), EOS, 2.5)
    stopped = 0
    for length in (5, 8, 2, 3):
        canvas, _ = ragged([length], G)
        windows = windows_of(family, "threshold", length)

        def run(eos, canvas=canvas, length=length):
            options = options_for("threshold", block_length=4, eos=eos)
            tokens, trace = denoise(model, canvas, options=options, start=length)
            return tokens[0, length:], trace

        (full, _), (tokens, trace) = run("none"), run("early_stop")
        ends = [w for w in windows if (full[w] == EOS).any()]
        last = ends[0][-1] + 1 if ends else G
        assert torch.equal(tokens[:last], full[:last])
        assert (tokens[last:] == EOS).all()
        assert (trace.confidence[0, last:] == 1).all()
        assert (trace.commit_step[0, last:] == trace.commit_step[0, :last].max()).all()
        stopped += last < G
    assert stopped


@pytest.mark.parametrize("family", CAUSAL)
def test_what_comes_after_a_block_changes_nothing_in_it(request, family):
    """The rest of the canvas, its length included, is unseen."""
    model = request.getfixturevalue(family)
    canvas, _ = ragged([5], G)
    options = options_for("threshold")
    whole, trace = denoise(model, canvas, options=options, start=5)
    for length in (3, 7):
        part, shorter = denoise(model, canvas[:, : 5 + length], options=options, start=5)
        assert torch.equal(part, whole[:, : 5 + length])
        assert torch.equal(shorter.commit_step, trace.commit_step[:, :length])
    # A text behind the gap: it is given, and not seen either.
    given = canvas.clone()
    given[:, 8:] = 7
    infilled, _ = denoise(model, given, options=options, start=5)
    assert torch.equal(infilled[:, :8], whole[:, :8])
