"""The ADJUST proof: its sources and its enumeration are exact, and a tiny run holds together."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from tests.conftest import MASK
from whet.dlm.adjust import Adjust, AdjustConfig, AdjustSampler
from whet.dlm.adjust.decoding import light_pass, marginals, oracle
from whet.dlm.canvas import denoise
from whet.measure import record as records
from whet.measure.items import load_items
from whet.models.denoiser import Denoiser
from whet.reproduce.adjust import ADJUST, dream_share
from whet.reproduce.strings import (
    LENGTH,
    PROMPTS,
    decode,
    divergence,
    draw_strings,
    encode,
    enumerated_joint,
    follows,
    gap_closed,
    hidden_window,
    log_likelihood,
)
from whet.zoo.tokenizer import character_tokenizer

LETTERS = torch.arange(3, 11)


@pytest.mark.parametrize(("source", "added"), [("copy", 0), ("shift", 1)])
def test_letters_follow_from_the_one_eight_before(source, added):
    strings = draw_strings(np.random.default_rng(0), source, 4000)
    odd = (strings[:, 8:] - strings[:, :-8] - added) % 8
    assert np.array_equal(odd == 0, follows(strings, source))
    share = np.bincount(odd.ravel(), minlength=8) / odd.size
    np.testing.assert_allclose(share, [0.95] + [0.05 / 7] * 7, atol=0.004)
    np.testing.assert_allclose(np.bincount(strings.ravel()) / strings.size, 1 / 8, atol=0.01)
    # The mean log-likelihood of its own strings is minus the entropy, which is known.
    p = 0.95
    entropy = 8 * math.log(8) - 24 * (p * math.log(p) + (1 - p) * math.log((1 - p) / 7))
    assert log_likelihood(strings, source).mean() == pytest.approx(-entropy, abs=0.2)


@pytest.mark.parametrize(("source", "added"), [("copy", 0), ("shift", 1)])
def test_the_likelihood_is_that_of_the_chain(source, added):
    strings = draw_strings(np.random.default_rng(1), source, 3)
    strings[0, 20] = -1
    for string, found in zip(strings, log_likelihood(strings, source), strict=True):
        expected = 8 * math.log(1 / 8)
        for before, letter in zip(string[:-8], string[8:], strict=True):
            right = -1 not in (before, letter) and letter == (before + added) % 8
            expected += math.log(0.95 if right else 0.05 / 7)
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("source", PROMPTS)
def test_strings_survive_being_encoded(source):
    tokenizer = character_tokenizer()
    strings = draw_strings(np.random.default_rng(0), source, 5)
    tokens = encode(tokenizer, source, strings)
    assert tokens.shape == (5, LENGTH + 1)
    assert tokenizer.decode(tokens[0]).startswith(PROMPTS[source])
    assert np.array_equal(decode(tokenizer, tokens), strings)
    tokens[0, 3] = tokenizer.mask_token_id
    assert decode(tokenizer, tokens)[0, 2] == -1


def test_hidden_windows_depend_on_each_other():
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(100):
        hidden = hidden_window(rng, 4).tolist()
        assert hidden == list(range(hidden[0], LENGTH, 8))
        starts.add(hidden[0])
    assert starts == set(range(8))


def random_sampler(model):
    torch.manual_seed(1)
    config = AdjustConfig.of(Denoiser.of(model), tokens_per_forward=3)
    sampler = AdjustSampler(config).double().eval()
    with torch.no_grad():
        for parameter in sampler.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        sampler.out_norm.weight.fill_(1.0)
    return sampler


def canvas_of(masks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.randint(1, MASK, (9,), generator=generator)
    canvas[torch.tensor(masks)] = MASK
    return canvas


@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
def test_the_exact_joint_is_the_product_of_one_token_forwards(request, family):
    denoiser = Denoiser.of(request.getfixturevalue(family))
    masks = [2, 5, 6]
    canvas = canvas_of(masks)
    found = enumerated_joint(denoiser, canvas, LETTERS, oracle(denoiser))
    assert found.sum() == pytest.approx(1)
    assert found[-1] > 0.1

    def probability(filling):
        current, out = canvas.clone(), 1.0
        while bool((current == MASK).any()):
            at = (current == MASK).nonzero()[:, 0]
            logits = denoiser.logits(current[None], None, torch.zeros_like(at), at)
            p = logits.softmax(-1)
            best = int(torch.special.entr(p).sum(-1).argmin())
            letter = LETTERS[filling[masks.index(int(at[best]))]]
            out *= float(p[best, letter])
            current[at[best]] = letter
        return out

    with torch.no_grad():
        for filling in [(0, 0, 0), (7, 7, 7), (1, 2, 3), (6, 0, 4)]:
            index = filling[0] * 64 + filling[1] * 8 + filling[2]
            assert found[index] == pytest.approx(probability(filling), rel=1e-6)


def test_marginals_enumerate_to_a_product(tiny_llada):
    denoiser = Denoiser.of(tiny_llada)
    masks = torch.tensor([2, 5, 6])
    canvas = canvas_of(masks.tolist())
    found = enumerated_joint(denoiser, canvas, LETTERS, marginals)
    with torch.no_grad():
        logits = denoiser.logits(canvas[None], None, torch.zeros_like(masks), masks)
    p = logits.softmax(-1)[:, LETTERS].numpy()
    expected = [a * b * c for a, b, c in itertools.product(*p)]
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-9)


def test_the_decoder_draws_from_the_enumerated_joint(tiny_llada):
    """2,000 samples against the enumeration of the same sampler, and against another."""
    denoiser, sampler = Denoiser.of(tiny_llada), random_sampler(tiny_llada)
    canvas = canvas_of([3, 7], seed=4)
    letters = torch.arange(39)  # all that can be drawn
    light = light_pass(sampler, denoiser)
    with torch.no_grad():
        p = enumerated_joint(denoiser, canvas, letters, light)[:-1]
        q = enumerated_joint(denoiser, canvas, letters, marginals)[:-1]
    options = Adjust(sampler=sampler, tokens_per_forward=2, temperature=1.0)
    count = 2000
    tokens, trace = denoise(tiny_llada, canvas.expand(count, -1), options=options)
    assert trace.forwards == 1
    code = (tokens[:, 3] * 39 + tokens[:, 7]).numpy()
    # The mean log-probability of samples from p is minus its entropy; under q it is lower.
    for law in (p, q):
        mean = (p * np.log(law)).sum()
        deviation = math.sqrt((p * np.log(law) ** 2).sum() - mean**2)
        assert abs(np.log(law)[code].mean() - mean) < 4 * deviation / math.sqrt(count)
    assert np.log(q)[code].mean() < np.log(p)[code].mean() - 0.05


def test_divergence_and_gap_by_hand():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25])
    assert divergence(p, q) == pytest.approx(0.5 * math.log(2))
    rng = np.random.default_rng(0)
    marginal, exact, ours = (rng.normal(m, 0.1, 500) for m in (1.0, 3.0, 2.5))
    value, low, high = gap_closed(ours, marginal, exact)
    assert low < value < high
    assert value == pytest.approx(0.75, abs=0.02)
    assert high - low < 0.05
    zeros = np.zeros(5)
    assert gap_closed(zeros, zeros, zeros) == (0.0, 0.0, 1.0)


def test_a_light_pass_is_a_small_part_of_a_large_model():
    """Dream-7B: a layer of 28 and a merge of two states; 233 M and 26 M parameters of 6.5 G."""
    assert dream_share() == pytest.approx(0.259 / 6.53, rel=0.02)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, record, progress) of a run with a handful of steps."""
    folder, progress = tmp_path_factory.mktemp("adjust"), []
    proof = dataclasses.replace(
        ADJUST, base_steps=120, steps=60, recorded=40, strings=200, canvases=60, held_out=40,
        batch_size=8, width=32, layers=2,
    )  # fmt: skip
    return folder, proof.run(quick=True, out=folder, on_progress=progress.append), progress


def test_the_record_holds_together(made):
    folder, record, progress = made
    assert (record.method, record.level) == ("adjust", "smoke")
    arms = {arm.name: arm for arm in record.arms}
    assert list(arms) == ["exact", "marginal-4", "adjust-4", "marginal-8", "adjust-8"]
    for name, full, light in (
        ("exact", 32, 0), ("marginal-4", 8, 0), ("adjust-4", 8, 24), ("marginal-8", 4, 0),
        ("adjust-8", 4, 28),
    ):  # fmt: skip
        assert arms[name].metrics["full_forwards"].value == full
        assert arms[name].metrics["light_passes"].value == light
    cost = {name: arm.metrics["flops_per_token"].value for name, arm in arms.items()}
    assert cost["marginal-8"] < cost["marginal-4"] < cost["adjust-4"] < cost["exact"]
    assert len({c.name for c in record.claims}) == len(record.claims) == 8
    assert record.verdict == records.verdict(record.claims)
    assert progress == sorted(progress)
    assert progress[-1] == pytest.approx(1.0)
    path = folder / "adjust.json"
    records.save(record, path)
    items = load_items(path, records.load(path))
    for name, arm in arms.items():
        for metric in (f"log_likelihood_{source}" for source in PROMPTS):
            column = items["arms"][name][metric]
            assert sum(column) / len(column) == pytest.approx(arm.metrics[metric].value)


def test_a_finished_run_is_not_trained_again(made):
    """Its checkpoints and trajectories are found, and the record is the same."""
    folder, record, _ = made
    proof = dataclasses.replace(
        ADJUST, base_steps=120, steps=60, recorded=40, strings=200, canvases=60, held_out=40,
        batch_size=8, width=32, layers=2,
    )  # fmt: skip
    again = proof.run(quick=True, out=folder, on_progress=lambda share: None)
    assert again.arms == record.arms
    assert again.claims == record.claims
