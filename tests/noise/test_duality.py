"""Keep probabilities of the Gaussian latent, and masks that lie on one trajectory."""

import math

import numpy as np
import pytest
import torch

from whet.errors import InputError, OptionError
from whet.noise.duality import (
    coupled_masks,
    gaussian_margin,
    keep_probability,
    keep_schedule,
    keep_table,
)
from whet.rng import keyed

# With two degrees of freedom it lies above this once in a thousand times.
CHI_SQUARE = 13.82


def contingency(a, b):
    """The chi-square statistic of two rows of counts having one law."""
    table = np.array([a, b], dtype=float)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    return ((table - expected) ** 2 / expected).sum()


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def full(rows, length):
    return torch.ones(rows, length, dtype=torch.bool)


@pytest.mark.parametrize("vocab", [2, 10, 1000, 50257, 1_000_000])
def test_without_signal_a_token_is_kept_once_in_k_and_with_much_always(vocab):
    at_zero, strong = keep_probability(column(0.0, 11.0), vocab).tolist()
    assert at_zero == pytest.approx(1 / vocab, rel=1e-9)
    assert strong == pytest.approx(1, abs=1e-6)
    alpha = keep_probability(torch.linspace(0, 8, 400, dtype=torch.float64), vocab)
    assert bool((alpha.diff() > 0).all())


def test_two_tokens_have_a_closed_form():
    rho = torch.linspace(-4, 8, 49, dtype=torch.float64)
    expected = torch.special.ndtr(rho / math.sqrt(2))
    torch.testing.assert_close(keep_probability(rho, 2), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize(("vocab", "rho"), [(10, 1.3), (1000, 3.0), (50257, 4.5)])
def test_the_quadrature_agrees_with_gauss_legendre(vocab, rho):
    nodes, weights = np.polynomial.legendre.leggauss(400)
    e = 10 * torch.from_numpy(nodes)
    density = torch.exp(-(e**2) / 2) / math.sqrt(2 * math.pi)
    values = density * torch.special.ndtr(e + rho) ** (vocab - 1)
    expected = 10 * float(torch.from_numpy(weights) @ values)
    assert float(keep_probability(column(rho), vocab)) == pytest.approx(expected, abs=1e-9)


def test_known_values():
    found = keep_probability(column(2, 3, 4, 5), 1000)
    torch.testing.assert_close(found, column(0.120, 0.412, 0.764, 0.951), atol=5e-4, rtol=0)
    assert float(keep_probability(column(7.4), 50257)) > 0.998


@pytest.mark.parametrize("vocab", [2, 33, 50257])
def test_the_table_is_the_function_and_its_inverse(vocab):
    table = keep_table(vocab)
    assert bool((table.alpha.diff() > 0).all())
    rho = torch.linspace(0.01, 6.9, 77, dtype=torch.float64)
    torch.testing.assert_close(table.alpha_of(rho), keep_probability(rho, vocab), atol=1e-5, rtol=0)
    torch.testing.assert_close(table.rho_of(table.alpha_of(rho)), rho, atol=1e-9, rtol=0)
    assert table.rho_of(column(0, 1)).tolist() == [-math.inf, math.inf]
    with pytest.raises(OptionError, match="alpha must lie between 0 and 1"):
        table.rho_of(column(1.1))


@pytest.mark.parametrize("vocab", [2, 10, 100])
def test_tokens_are_kept_as_often_as_the_integral_says(vocab):
    draws = 40_000
    tokens = torch.from_numpy(keyed(0, "tokens").integers(0, vocab, (1, draws)))
    margin = gaussian_margin(keyed(0, "margin", vocab), tokens, vocab)
    for rho in (0.0, 1.0, 2.5):
        alpha = float(keep_probability(column(rho), vocab))
        kept = float((margin < rho).double().mean())
        assert abs(kept - alpha) < 3 * math.sqrt(alpha * (1 - alpha) / draws)


def test_the_margin_is_where_the_latent_stops_being_largest_at_the_token():
    """The definition: w = rho x + eps, kept while its largest entry is the token's."""
    vocab, tokens = 7, torch.tensor([[0, 3, 6, 3]])
    noise = torch.from_numpy(keyed(1, "noise").standard_normal((1, 4, vocab)))
    margin = gaussian_margin(keyed(1, "noise"), tokens, vocab)
    for rho in (0.0, 0.5, 1.5, 3.0):
        latent = noise + rho * torch.nn.functional.one_hot(tokens, vocab)
        assert torch.equal(latent.argmax(-1) == tokens, margin < rho)


@pytest.mark.parametrize("mode", ["uniform", "gaussian"])
def test_masks_are_nested_and_keep_what_is_not_eligible(mode):
    """A million pairs of positions in all; no violation."""
    rows, length, vocab = 100, 200, 4
    tokens = torch.from_numpy(keyed(2).integers(0, vocab, (rows, length)))
    eligible = torch.rand(rows, length, generator=torch.Generator().manual_seed(0)) < 0.9
    for k in range(50):
        rng = keyed(3, mode, k)
        alpha = np.sort(rng.random((2, rows)), axis=0)
        low, high = torch.from_numpy(alpha)
        at_s, at_t = coupled_masks(rng, tokens, eligible, high, low, mode=mode, vocab_size=vocab)
        assert not bool((at_s & ~at_t).any())
        assert not bool((at_t & ~eligible).any())


def test_both_couplings_and_plain_masking_have_one_law():
    """The table (kept at s, kept at t) of either coupling is that of nested absorbing noise."""
    alpha_s, alpha_t, draws, vocab = 0.7, 0.45, 40_000, 12
    tokens = torch.from_numpy(keyed(4).integers(0, vocab, (1, draws)))
    counts = {}
    for mode in ("uniform", "gaussian"):
        at_s, at_t = coupled_masks(
            keyed(5, mode), tokens, full(1, draws), column(alpha_s), column(alpha_t),
            mode=mode, vocab_size=vocab,
        )  # fmt: skip
        counts[mode] = [int((~at_t).sum()), int((at_t & ~at_s).sum()), int(at_s.sum())]
    expected = np.array([alpha_t, alpha_s - alpha_t, 1 - alpha_s]) * draws
    for found in counts.values():
        assert ((found - expected) ** 2 / expected).sum() < CHI_SQUARE
    assert contingency(counts["uniform"], counts["gaussian"]) < CHI_SQUARE
    # Absorbing noise in two stages: masked by s, and then what is left by t.
    rng = keyed(6)
    first = rng.random(draws) >= alpha_s
    second = first | (rng.random(draws) >= alpha_t / alpha_s)
    absorbed = [(~second).sum(), (second & ~first).sum(), first.sum()]
    assert contingency(counts["uniform"], absorbed) < CHI_SQUARE


@pytest.mark.parametrize("mode", ["uniform", "gaussian"])
def test_at_the_ends_everything_and_nothing_is_masked(mode):
    tokens, every = torch.zeros(2, 50, dtype=torch.long), full(2, 50)
    at_s, at_t = coupled_masks(
        keyed(7), tokens, every, column(1, 1), column(0, 1), mode=mode, vocab_size=5
    )
    assert not bool(at_s.any())
    assert torch.equal(at_t, torch.tensor([[True], [False]]).expand(2, 50))


def test_schedules_grow_to_one_and_the_gaussian_one_is_the_latents():
    for kind in ("linear", "gaussian"):
        alpha = keep_schedule(16, kind=kind, vocab_size=33)
        assert alpha.shape == (16,)
        assert bool((alpha.diff() > 0).all())
        assert alpha[0] > 0
        assert alpha[-1] == 1
    assert torch.equal(keep_schedule(4), column(0.25, 0.5, 0.75, 1.0))
    # Half way gamma is -2.5, hence rho = exp(1.25).
    half = keep_schedule(8, kind="gaussian", vocab_size=33)[3]
    assert float(half) == pytest.approx(float(keep_probability(column(math.exp(1.25)), 33)))
    assert keep_schedule(1, kind="gaussian", vocab_size=33).tolist() == [1.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: keep_probability(column(1.0), 1), OptionError, "vocab_size=1 must be at least 2"),
        (lambda: keep_schedule(0), OptionError, "steps=0 must be at least 1"),
        (lambda: keep_schedule(2, kind="gaussian"), OptionError, "needs vocab_size"),
        (lambda: couple(0.5, 0.6), OptionError, "alpha_s must be at least alpha_t"),
        (lambda: couple(1.5, 0.5), OptionError, "alpha_s must lie between 0 and 1"),
        (lambda: couple(0.5, 0.5, mode="gaussian"), OptionError, "needs vocab_size"),
        (
            lambda: couple(0.5, 0.5, mode="gaussian", vocab_size=3),
            InputError,
            "the vocabulary ends at 2",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def couple(alpha_s, alpha_t, **more):
    tokens = torch.full((1, 3), 5)
    return coupled_masks(keyed(0), tokens, full(1, 3), column(alpha_s), column(alpha_t), **more)
