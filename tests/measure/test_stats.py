import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.errors import InputError, OptionError
from whet.measure.stats import (
    _resampled,
    bootstrap_mean,
    mcnemar,
    newcombe,
    paired_bootstrap,
    wilson,
)

quick = settings(max_examples=50, deadline=None)  # timing is not under test
counts = st.integers(0, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60)
values = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=2, max_size=20)


@quick
@given(counts, st.floats(0.01, 0.999))
def test_wilson_holds_the_share_and_stays_in_range(kn, level):
    k, n = kn
    low, high = wilson(k, n, level)
    assert 0 <= low <= high <= 1
    if n:
        assert low <= k / n <= high


@quick
@given(counts)
def test_wilson_is_symmetric(kn):
    k, n = kn
    low, high = wilson(k, n)
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@quick
@given(counts)
def test_wilson_widens_with_the_level(kn):
    narrow, wide = wilson(*kn, 0.8), wilson(*kn, 0.99)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


def test_wilson_known_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263 and 0/20, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [(-1, 3, 0.95), (4, 3, 0.95), (1, 3, 0.0), (1, 3, 1.0)])
def test_wilson_refuses_nonsense(bad):
    with pytest.raises(OptionError):
        wilson(*bad)


@pytest.mark.parametrize(
    ("samples", "interval"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
    ],
)
def test_newcombe_known_values(samples, interval):
    # Newcombe, Statistics in Medicine 17 (1998) 873, table II, method 10.
    k, n, j, m = samples
    value, low, high = newcombe(*samples)
    assert value == pytest.approx(k / n - j / m)
    assert (low, high) == pytest.approx(interval, abs=5.1e-5)


@quick
@given(counts, counts, st.floats(0.5, 0.99))
def test_newcombe_is_antisymmetric_and_stays_in_range(first, second, level):
    if 0 in (first[1], second[1]):
        with pytest.raises(OptionError, match="items in both samples"):
            newcombe(*first, *second)
        return
    value, low, high = newcombe(*first, *second, level)
    assert -1 - 1e-12 <= low <= value <= high <= 1 + 1e-12
    back = newcombe(*second, *first, level)
    assert back == pytest.approx((-value, -high, -low), abs=1e-12)
    wide = newcombe(*first, *second, 0.995)
    assert wide[1] <= low
    assert high <= wide[2]


def test_newcombe_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        _, low, high = newcombe(rng.binomial(40, 0.8), 40, rng.binomial(60, 0.5), 60, 0.9)
        hits += low <= 0.3 <= high
    assert 0.86 <= hits / 400 <= 0.97


@quick
@given(pairs)
def test_mcnemar_is_a_symmetric_probability(both):
    a, b = [x for x, _ in both], [y for _, y in both]
    p = mcnemar(a, b)
    assert 0 < p <= 1
    assert p == mcnemar(b, a)
    assert mcnemar(a, a) == 1.0


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(5, 0, 0.0625), (0, 1, 1.0), (1, 9, 22 / 1024), (10, 10, 1.0), (6, 16, 0.0524788)],
)
def test_mcnemar_known_values(only_a, only_b, p):
    a = [1] * only_a + [0] * only_b + [1, 0]
    b = [0] * only_a + [1] * only_b + [1, 0]
    assert mcnemar(a, b) == pytest.approx(p, rel=1e-6)


def test_mcnemar_is_exact_for_many_items():
    n = 4000
    assert mcnemar([1] * n + [0], [0] * n + [1]) == pytest.approx(0.0, abs=1e-300)
    assert mcnemar([1, 0] * n, [0, 1] * n) == 1.0


def test_mcnemar_refuses_shares():
    with pytest.raises(InputError, match="0 or 1"):
        mcnemar([0.5], [1])


@quick
@given(values)
def test_the_difference_is_antisymmetric_and_its_interval_ordered(both):
    a, b = [x for x, _ in both], [y for _, y in both]
    value, low, high = paired_bootstrap(a, b, resamples=200)
    assert low <= high
    assert value == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)
    back = paired_bootstrap(b, a, resamples=200)
    assert back == pytest.approx((-value, -high, -low), abs=1e-9)


@quick
@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=20))
def test_identical_arms_differ_by_nothing(a):
    assert paired_bootstrap(a, a, resamples=50) == (0.0, 0.0, 0.0)
    assert paired_bootstrap(a, a, "ratio", resamples=50) == (1.0, 1.0, 1.0)


@quick
@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=20), st.floats(0.5, 4))
def test_a_constant_factor_is_found_exactly(b, factor):
    value, low, high = paired_bootstrap(np.asarray(b) * factor, b, "ratio", resamples=50)
    assert (value, low, high) == pytest.approx((factor, factor, factor))


def test_pairing_matters():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 200)
    a, b = hard + 1, hard + rng.normal(0, 0.1, 200)
    _, low, high = paired_bootstrap(a, b, resamples=500)
    assert 0.95 < low < 1.0 < high < 1.05
    _, low, high = paired_bootstrap(a, rng.permutation(b), resamples=500)
    assert high - low > 1


def test_the_interval_agrees_with_theory_and_the_seed_fixes_it():
    x = np.random.default_rng(1).normal(5, 2, 400)
    value, low, high = bootstrap_mean(x)
    half = 1.96 * x.std() / math.sqrt(len(x))
    assert value == pytest.approx(x.mean())
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.1 * half)
    assert bootstrap_mean(x) == (value, low, high)
    assert bootstrap_mean(x, seed=1) != (value, low, high)
    wide = bootstrap_mean(x, level=0.99)
    assert wide[1] < low < high < wide[2]


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        x = rng.exponential(1.0, 60)
        _, low, high = bootstrap_mean(x, resamples=300, level=0.9, seed=seed)
        hits += low <= 1.0 <= high
    assert 0.82 <= hits / 200 <= 0.96


def test_resampling_in_chunks_gives_every_row(monkeypatch):
    monkeypatch.setattr("whet.measure.stats._CHUNK", 64)
    chunks = list(_resampled(10, 100, seed=0))
    assert len(chunks) > 1
    assert sum(len(c) for c in chunks) == 100
    drawn = np.concatenate(chunks)
    assert drawn.min() == 0
    assert drawn.max() == 9


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: paired_bootstrap([1, 2], [1]), "equal lengths"),
        (lambda: paired_bootstrap([1], [1]), "at least 2"),
        (lambda: paired_bootstrap([1, math.nan], [1, 2]), "finite"),
        (lambda: paired_bootstrap([1, 2], [0, 0], "ratio"), "not 0"),
        (lambda: paired_bootstrap([1] * 9, [1] + [0] * 8, "ratio"), "divide by zero"),
        (lambda: paired_bootstrap([1, 2], [1, 2], "median"), "'median'"),
        (lambda: paired_bootstrap([1, 2], [1, 2], resamples=0), "resamples"),
        (lambda: bootstrap_mean([[1, 2]]), "flat"),
        (lambda: bootstrap_mean([1, 2], level=95), "level is 95"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(call, says):
    with pytest.raises((InputError, OptionError), match=says):
        call()
