import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.evaluate.tiny import MASK, table_denoiser
from whet.errors import OptionError
from whet.evaluate.encoding import TokenPair
from whet.evaluate.likelihood import (
    ESTIMATORS,
    Segment,
    draw_masks,
    every_mask,
    masked_likelihoods,
    masked_nats,
)
from whet.models.denoiser import Denoiser

FAMILIES = ["tiny_llada", "tiny_dream", "tiny_sdar", "tiny_llada2"]
CONTEXT, TARGET = (5, 6, 11), (7, 3, 30, 12, 1)


@pytest.fixture
def denoiser(request):
    return Denoiser.of(request.getfixturevalue(request.param))


def families(*names):
    return pytest.mark.parametrize("denoiser", names or FAMILIES, indirect=True)


def log_p(model, tokens, position, token, *, shift, hidden=()):
    """From the whole model's own forward: log p(token at position | the rest, some hidden)."""
    ids = torch.tensor(tokens)
    ids[list(hidden)] = MASK
    with torch.no_grad():
        logits = model(ids[None]).logits[0, position - 1 if shift else position]
    logits[MASK] = -torch.inf
    return float(logits.log_softmax(-1)[token])


def mean_over_orders(model, context, target, *, shift=False):
    """The mean over all orders of the chain-rule log-probability, order by order."""
    start, tokens = len(context), [*context, *target]
    places = range(start, len(tokens))
    known, chains = {}, []
    for order in itertools.permutations(places):
        total, hidden = 0.0, set(places)
        for place in order:
            case = (place, frozenset(hidden))
            if case not in known:
                known[case] = log_p(
                    model, tokens, place, tokens[place], shift=shift, hidden=sorted(hidden)
                )
            total += known[case]
            hidden.remove(place)
        chains.append(total)
    return np.mean(chains)


# --- the bound, exactly ------------------------------------------------------------------------


@families("tiny_llada", "tiny_dream")
@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_all_masks_give_the_mean_over_all_orders(denoiser, length):
    target = TARGET[:length]
    expected = mean_over_orders(denoiser.model, CONTEXT, target, shift=denoiser.traits.shift)
    [found] = masked_likelihoods(denoiser, [TokenPair(CONTEXT, target)], samples=31)
    assert found.value == pytest.approx(expected, abs=1e-8)
    assert (found.error, found.tokens, found.greedy) == (0.0, length, None)


@families("tiny_sdar", "tiny_llada2")
@pytest.mark.parametrize("start", [3, 4, 6])
def test_block_causal_models_chain_over_blocks_and_average_inside(denoiser, start):
    text = (5, 6, 11, 9, 22, 14, 7, 3, 30, 12, 1)
    expected, low = 0.0, start
    while low < len(text):
        high = min(low // 4 * 4 + 4, len(text))
        expected += mean_over_orders(denoiser.model, text[:low], text[low:high])
        low = high
    [found] = masked_likelihoods(denoiser, [TokenPair(text[:start], text[start:])], samples=15)
    assert found.value == pytest.approx(expected, abs=1e-8)
    assert found.error == 0.0


def test_with_blocks_of_one_token_probabilities_sum_to_one():
    from whet.models.sdar import SDARConfig, SDARForCausalLM

    torch.manual_seed(1)
    config = SDARConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_hidden_layers=1,
        intermediate_size=16,
        vocab_size=6,
        max_position_embeddings=16,
        initializer_range=0.5,
        block_length=1,
        mask_token_id=5,
        eos_token_id=0,
        pad_token_id=0,
    )
    denoiser = Denoiser.of(SDARForCausalLM(config).double().eval())
    texts = list(itertools.product(range(5), repeat=3))
    found = masked_likelihoods(denoiser, [TokenPair((2,), t) for t in texts], batch_size=200)
    assert sum(math.exp(f.value) for f in found) == pytest.approx(1.0, abs=1e-9)
    assert all(f.error == 0 for f in found)
    assert max(f.value for f in found) - min(f.value for f in found) > 1


@families("tiny_llada", "tiny_dream")
def test_the_bound_is_below_the_likelihood_of_random_orders(denoiser):
    """Over all texts of a length, exponentiated bounds sum to less than one."""
    small = replace(denoiser, vocab_size=5)
    texts = list(itertools.product(range(5), repeat=2))
    found = masked_likelihoods(small, [TokenPair(CONTEXT, t) for t in texts], batch_size=100)
    assert 0.5 < sum(math.exp(f.value) for f in found) < 1


@families()
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("samples", [2, 8, 128])
def test_one_token_is_exact_whatever_is_drawn(denoiser, estimator, samples):
    shift = denoiser.traits.shift
    expected = log_p(denoiser.model, [*CONTEXT, 7], 3, 7, shift=shift, hidden=[3])
    [found] = masked_likelihoods(
        denoiser, [TokenPair(CONTEXT, (7,))], samples=samples, estimator=estimator
    )
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.error == 0.0


# --- Monte Carlo -------------------------------------------------------------------------------


def table_of_nats(denoiser, pair):
    """Nats of every mask, by the mask."""
    length = len(pair.target)
    tokens = torch.tensor(pair.context + pair.target)
    part = Segment(tokens, len(pair.context), len(pair.context), ())
    masks = every_mask(length).hidden
    nats = masked_nats(denoiser, [(part, m) for m in masks])
    return {(False,) * length: 0.0} | {
        tuple(m.tolist()): n for m, n in zip(masks, nats, strict=True)
    }


def drawn(table, length, samples, estimator, seed, *key):
    masks = draw_masks(length, samples, estimator, seed, *key)
    return masks.estimate(np.array([table[tuple(m.tolist())] for m in masks.hidden]))


LONG = TokenPair(CONTEXT, (7, 3, 30, 12, 1, 25, 18, 9))


@families("tiny_llada")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("samples", [32, 96])
def test_estimates_are_unbiased_and_their_errors_calibrated(denoiser, estimator, samples):
    table = table_of_nats(denoiser, LONG)
    [exact] = masked_likelihoods(denoiser, [LONG], samples=255)
    assert exact.error == 0
    found = np.array([drawn(table, 8, samples, estimator, seed) for seed in range(400)])
    values, errors = found.T
    spread = values.std(ddof=1)
    assert abs(values.mean() - exact.value) < 4 * spread / 20 + 1e-3 * abs(exact.value)
    z = (values - exact.value) / errors
    assert 0.85 < z.std() < 1.3
    root_mean_square = math.sqrt((errors**2).mean())
    # Weights of 1/p have a heavy tail.
    assert root_mean_square == pytest.approx(spread, rel=0.3 if estimator == "bernoulli" else 0.1)
    # Within 4 errors, but for a few of Student's t with 15 degrees of freedom.
    assert (np.abs(z) < 4).mean() > 0.985


@families("tiny_llada")
def test_a_monte_carlo_bound_is_within_four_errors_of_the_exact_one(denoiser):
    [exact] = masked_likelihoods(denoiser, [LONG], samples=255)
    for estimator in ESTIMATORS:
        [found] = masked_likelihoods(denoiser, [LONG], samples=64, estimator=estimator, seed=3)
        assert found.error > 0
        assert abs(found.value - exact.value) < 4 * found.error
        assert found.value != exact.value


@families("tiny_sdar")
def test_errors_of_blocks_add_up_because_their_noise_is_their_own(denoiser):
    pair = TokenPair((5, 6, 11, 2), (7, 3, 30, 12, 1, 25, 18, 9))
    [exact] = masked_likelihoods(denoiser, [pair], samples=15)
    pairs = [replace(pair, key=(i,)) for i in range(150)]
    found = masked_likelihoods(denoiser, pairs, samples=8, batch_size=400)
    values, errors = np.array([(f.value, f.error) for f in found]).T
    spread = values.std(ddof=1)
    assert abs(values.mean() - exact.value) < 4 * spread / math.sqrt(150)
    assert math.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.2)


def test_strata_cut_the_error_where_the_number_of_masks_decides():
    """The mean nats of a hidden token grow with the number of hidden tokens."""

    def spread(samples):
        found = []
        for seed in range(200):
            masks = draw_masks(16, samples, "stratified", seed)
            count = masks.hidden.sum(1)
            found.append(masks.estimate(count * count / 16)[0])
        return np.std(found)

    # Groups of one draw and of eight: with independent draws both sides would be equal, with an
    # even grid of levels the left one is smaller by the square root of 8.
    assert spread(128) * math.sqrt(8) < 0.5 * spread(16)


@families("tiny_llada")
def test_antithetic_draws_are_surer_than_strata_alone(denoiser):
    table = table_of_nats(denoiser, LONG)

    def spread(estimator):
        return np.std([drawn(table, 8, 128, estimator, seed)[0] for seed in range(300)])

    assert spread("antithetic") < 0.95 * spread("stratified") < 0.5 * spread("bernoulli")


@pytest.mark.parametrize(("length", "samples"), [(4, 8), (8, 32), (8, 128), (13, 128)])
@pytest.mark.parametrize("estimator", ["stratified", "antithetic"])
def test_every_number_of_masks_is_as_likely_as_another(length, samples, estimator):
    seeds = 9600 // samples
    counts = [draw_masks(length, samples, estimator, seed).hidden.sum(1) for seed in range(seeds)]
    share = np.bincount(np.concatenate(counts), minlength=length + 1) / (seeds * samples)
    assert share[0] == 0
    np.testing.assert_allclose(share[1:], 1 / length, rtol=0.1)


@pytest.mark.parametrize("estimator", ["stratified", "antithetic"])
def test_where_every_target_has_the_same_probability_every_draw_is_exact(estimator):
    logits = torch.zeros(40, dtype=torch.float64)
    logits[[3, 7, 12]] = 2.0  # the targets; all others share the rest
    denoiser = table_denoiser(lambda t: logits.expand(*t.shape, 40).clone())
    nats = -float(logits[:39].log_softmax(-1)[3])
    target = (3, 7, 12, 3, 3, 7, 12, 12, 7)
    [found] = masked_likelihoods(
        denoiser, [TokenPair((1, 2), target)], samples=32, estimator=estimator
    )
    assert found.value == pytest.approx(-9 * nats, abs=1e-9)
    assert found.error == pytest.approx(0.0, abs=1e-9)


def test_one_sample_knows_no_error():
    logits = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoiser = table_denoiser(lambda t: logits.expand(*t.shape, 40).clone())
    [found] = masked_likelihoods(denoiser, [TokenPair((1,), (2, 3))], samples=1)
    assert math.isfinite(found.value)
    assert math.isnan(found.error)


# --- common random numbers ---------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_choices_of_a_question_share_levels_and_ranks(estimator):
    short, long, other = (
        draw_masks(n, 64, estimator, 0, key) for n, key in ((20, 1), (30, 1), (20, 2))
    )
    again = draw_masks(20, 64, estimator, 0, 1)
    assert (short.hidden == again.hidden).all()
    assert (short.hidden != other.hidden).any()
    # The first 20 of 30 targets are hidden in nearly the same pattern.
    alike = (short.hidden == long.hidden[:, :20]).mean()
    unlike = (other.hidden == long.hidden[:, :20]).mean()
    assert alike > 0.9 > unlike
    if estimator == "bernoulli":
        assert alike == 1
        np.testing.assert_array_equal(short.weight, long.weight)


@families("tiny_llada")
def test_common_noise_makes_differences_surer(denoiser):
    other = replace(LONG, target=(7, 3, 31, 12, 1, 25, 18, 9))
    first, second = table_of_nats(denoiser, LONG), table_of_nats(denoiser, other)

    def spread(key):
        return np.std(
            [
                drawn(first, 8, 16, "stratified", s, "a")[0]
                - drawn(second, 8, 16, "stratified", s, key)[0]
                for s in range(200)
            ]
        )

    assert spread("a") < 0.6 * spread("b")


# --- how it is computed ------------------------------------------------------------------------


def several():
    return [
        TokenPair((5, 6), (7,), (0,)),
        TokenPair((5, 6, 8, 9, 11), (7, 3, 30, 12, 1, 25, 18), (1,)),
        TokenPair((5,), (7, 3, 12, 12, 1, 25), (1,)),
        TokenPair((1, 2, 3, 4), (30, 12, 1), (2,)),
    ]


@families()
def test_neither_order_nor_batch_size_matters(denoiser):
    def run(pairs, batch_size):
        found = masked_likelihoods(denoiser, pairs, samples=16, batch_size=batch_size)
        return [(f.value, f.error, f.tokens) for f in found]

    alone = [run([pair], 1)[0] for pair in several()]
    for batch_size in (1, 5, 64):
        np.testing.assert_allclose(run(several(), batch_size), alone, atol=1e-9)
    np.testing.assert_allclose(run(several()[::-1], 7), alone[::-1], atol=1e-9)
    assert masked_likelihoods(denoiser, []) == []


@families("tiny_llada")
def test_long_vocabularies_are_worked_in_chunks(denoiser, monkeypatch):
    whole = masked_likelihoods(denoiser, several(), samples=16)
    monkeypatch.setattr("whet.evaluate.likelihood._CHUNK_VALUES", 120)
    parts = masked_likelihoods(denoiser, several(), samples=16)
    np.testing.assert_allclose([f.value for f in parts], [f.value for f in whole], atol=1e-9)


def test_a_model_with_shifted_logits_scores_the_same(tiny_llada):
    plain = Denoiser.of(tiny_llada)

    def logits_of(tokens):
        with torch.no_grad():
            return tiny_llada(tokens).logits

    def shifted_of(tokens):
        return logits_of(tokens).roll(-1, dims=1)

    pair = TokenPair(CONTEXT, TARGET)
    found = [
        masked_likelihoods(denoiser, [pair], samples=24)[0].value
        for denoiser in (
            plain,
            table_denoiser(logits_of),
            table_denoiser(shifted_of, shift=True),
            table_denoiser(shifted_of),
        )
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-9)
    assert found[2] == pytest.approx(found[0], abs=1e-9)
    assert abs(found[3] - found[0]) > 0.1


@families("tiny_llada", "tiny_dream")
def test_guidance_leans_away_from_what_is_likely_without_the_context(denoiser):
    model, shift, scale = denoiser.model, denoiser.traits.shift, 0.5
    tokens = torch.tensor([[*CONTEXT, MASK], [MASK] * 4])
    with torch.no_grad():
        seen, blind = model(tokens).logits[:, 2 if shift else 3]
    logits = blind + (1 + scale) * (seen - blind)
    logits[MASK] = -torch.inf
    expected = float(logits.log_softmax(-1)[7])
    pair = TokenPair(CONTEXT, (7,))
    [found] = masked_likelihoods(denoiser, [pair], cfg_scale=scale)
    assert found.value == pytest.approx(expected, abs=1e-9)
    [off] = masked_likelihoods(denoiser, [pair])
    assert abs(off.value - found.value) > 1e-3
    # Padded rows, and several targets of which some are seen.
    many = masked_likelihoods(denoiser, several(), samples=8, cfg_scale=scale, batch_size=9)
    alone = [
        masked_likelihoods(denoiser, [p], samples=8, cfg_scale=scale)[0].value for p in several()
    ]
    np.testing.assert_allclose([f.value for f in many], alone, atol=1e-9)


@families("tiny_sdar")
def test_guidance_hides_the_context_and_not_the_blocks_already_written(denoiser):
    model, text, scale = denoiser.model, [5, 6, 11, 9, 22, 14, 7, 3, 30], 0.5
    blind_text = [MASK, MASK, MASK, *text[3:]]
    expected = 0.0
    for start, end in ((3, 4), (8, 9)):  # a token of the first block, and of the last
        tokens = torch.tensor([[*t[: end - 1], MASK] for t in (text, blind_text)])
        with torch.no_grad():
            seen, blind = model(tokens).logits[:, start]
        logits = blind + (1 + scale) * (seen - blind)
        logits[MASK] = -torch.inf
        expected += float(logits.log_softmax(-1)[text[start]])
    pairs = [TokenPair(tuple(text[:3]), tuple(text[3:n])) for n in (8, 9)]
    without = masked_likelihoods(denoiser, pairs[:1], samples=15, cfg_scale=scale)[0].value
    found = masked_likelihoods(denoiser, pairs[1:], samples=15, cfg_scale=scale)[0].value
    first = masked_likelihoods(
        denoiser, [TokenPair(tuple(text[:3]), tuple(text[3:4]))], cfg_scale=scale
    )[0].value
    assert first + found - without == pytest.approx(expected, abs=1e-9)


@families("tiny_llada")
def test_a_mask_token_in_the_context_is_text_like_any_other(denoiser):
    context = (5, MASK, 11)
    expected = log_p(denoiser.model, [*context, 7], 3, 7, shift=False, hidden=[3])
    [found] = masked_likelihoods(denoiser, [TokenPair(context, (7,))])
    assert found.value == pytest.approx(expected, abs=1e-9)


def test_log_probabilities_of_half_precision_are_taken_in_float32():
    logits = torch.zeros(40, dtype=torch.bfloat16)
    denoiser = table_denoiser(lambda t: logits.expand(*t.shape, 40).clone())
    pairs = [TokenPair((1,), (2,) * 300)]
    [found] = masked_likelihoods(denoiser, pairs, samples=2)
    assert found.value == pytest.approx(-300 * math.log(39), rel=1e-5)


@pytest.mark.parametrize(
    ("estimator", "samples", "words"),
    [
        ("ordered", 8, "estimator='ordered'"),
        ("stratified", 0, "samples=0"),
        ("antithetic", 7, "samples=7 must be even"),
    ],
)
def test_what_cannot_be_drawn_is_refused(estimator, samples, words):
    with pytest.raises(OptionError, match=words):
        draw_masks(9, samples, estimator, 0)
