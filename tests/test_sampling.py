import math

import pytest
import torch

from whet.errors import OptionError
from whet.layers import sampling
from whet.layers.sampling import CONFIDENCES, check_threshold, keep_top, propose


def logits_of(rows, vocab, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator, dtype=torch.float64).to(dtype) * 3


def test_ties_go_to_the_lowest_id():
    logits = torch.zeros(4, 1000)
    logits[1, [900, 30, 500]] = 2.0
    logits[2, :] = -torch.inf
    logits[2, [7, 999]] = 1.0
    logits[3, 999] = 1.0
    tokens, _ = propose(logits)
    assert tokens.tolist() == [0, 30, 7, 999]


def uniform_of(rows, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, torch.linspace(0, 2, 23).double()])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8, "top_k": 5, "of": "sampled"}], ids=str)
@pytest.mark.parametrize("values", [1, 50, 3 * 97, 5000])
def test_chunks_are_invisible(monkeypatch, confidence, temperature, filters, values):
    logits = logits_of(23, 97)
    uniform = uniform_of(23)
    settings = {"confidence": confidence, "dtype": torch.float64, "temperature": temperature}
    settings |= filters | {"ignored": (3,)}
    whole = propose(logits, uniform=uniform, **settings)
    monkeypatch.setattr(sampling, "_CHUNK_VALUES", values)
    parts = propose(logits, uniform=uniform, **settings)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_confidences_are_what_their_names_say():
    logits = logits_of(50, 11)
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    ranked = p.sort(-1, descending=True).values
    expected = {
        "prob": ranked[:, 0],
        "margin": ranked[:, 0] - ranked[:, 1],
        "neg_entropy": (p * p.log()).sum(-1),
    }
    assert set(expected) == set(CONFIDENCES)
    for kind, value in expected.items():
        tokens, found = propose(logits, confidence=kind, dtype=torch.float64)
        assert torch.equal(tokens, logits.argmax(-1))
        torch.testing.assert_close(found, value, atol=1e-12, rtol=0)
        low, high = sampling.CONFIDENCE_RANGE[kind]
        assert ((found >= low) & (found <= high)).all()


def test_confidence_of_a_sampled_token_is_untempered_and_its_own():
    logits = logits_of(200, 11)
    uniform = uniform_of(200)
    tokens, found = propose(logits, dtype=torch.float64, temperature=2.0, uniform=uniform)
    assert (tokens != logits.argmax(-1)).any()
    expected = logits.softmax(-1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_sampling_has_the_frequencies_of_the_tempered_softmax(temperature):
    row = torch.tensor([1.0, 0.2, -0.5, 0.9, -2.0, -torch.inf], dtype=torch.float64)
    n = 40_000
    uniform = uniform_of(n, seed=7)
    tokens, _ = propose(row.expand(n, -1), temperature=temperature, uniform=uniform)
    expected = (row / temperature).softmax(-1) * n
    counts = torch.bincount(tokens, minlength=len(row)).double()
    assert counts[-1] == 0
    chi = ((counts - expected)[:-1] ** 2 / expected[:-1]).sum()
    assert chi < 18.5  # 4 degrees of freedom, 1 in 1000
    # LLaDA writes the rule with a noise per token: the same frequencies.
    noise = torch.rand(n, len(row), dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    rule = (row.exp() / (-noise.log()) ** temperature).argmax(-1)
    theirs = torch.bincount(rule, minlength=len(row)).double()
    assert ((theirs - expected)[:-1] ** 2 / expected[:-1]).sum() < 18.5


def plain_top(row, top_p, top_k):
    """Ids that may be drawn from a list of logits, one at a time, the likeliest first."""
    weight = [math.exp(x) for x in row]
    kept, mass = [], 0.0
    for i in sorted(range(len(row)), key=lambda i: (-row[i], i)):
        if (top_p < 1 and mass > top_p) or len(kept) == top_k:
            break
        kept.append(i)
        mass += weight[i] / sum(weight)
    return kept


@pytest.mark.parametrize("top_p", [1e-9, 0.33, 0.77, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 8, 100])
def test_the_likeliest_are_kept_with_ties_to_the_lowest_id(top_p, top_k):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-3, 4, (100, 9), generator=generator).double()  # many tie
    kept = keep_top(logits, top_p, top_k)
    for row, found in zip(logits.tolist(), kept, strict=True):
        assert found.nonzero()[:, 0].tolist() == sorted(plain_top(row, top_p, top_k))
    if top_p == 1:
        assert (kept.sum(-1) == min(top_k or 9, 9)).all()
    assert kept.gather(-1, logits.argmax(-1, keepdim=True)).all()


def test_the_token_that_crosses_the_mass_is_kept():
    even = torch.zeros(1, 8)  # 1/8 each
    for top_p, count in ((0.1, 1), (0.125, 2), (0.3, 3), (0.5, 5), (0.51, 5), (0.99, 8)):
        assert keep_top(even, top_p, None)[0].tolist() == [True] * count + [False] * (8 - count)


@pytest.mark.parametrize("temperature", [0.6, 1.5])
@pytest.mark.parametrize(("top_p", "top_k"), [(0.8, None), (1.0, 3), (0.9, 2), (0.85, 4)])
def test_filtered_sampling_has_the_renormalised_frequencies(temperature, top_p, top_k):
    row = torch.tensor([1.0, 0.2, 0.9, 0.9, -0.5, -2.0], dtype=torch.float64)
    n = 20_000
    uniform = uniform_of(n, seed=7)
    settings = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    tokens, _ = propose(row.expand(n, -1), uniform=uniform, **settings)
    kept = plain_top((row / temperature).tolist(), top_p, top_k)
    assert 2 <= len(kept) < len(row)
    counts = torch.bincount(tokens, minlength=len(row)).double()
    assert counts.sum() == counts[kept].sum()
    expected = (row[kept] / temperature).softmax(-1) * n
    chi = ((counts[kept] - expected) ** 2 / expected).sum()
    assert chi < 18.5  # at most 4 degrees of freedom: 1 in 1000
    # The unfiltered frequencies would not pass.
    blunt = (row / temperature).softmax(-1)[kept] * n
    assert ((counts[kept] - blunt) ** 2 / blunt).sum() > 18.5


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, None), (0.8, None), (1.0, 3), (0.9, 4)])
@pytest.mark.parametrize("of", ["model", "sampled"])
def test_confidence_of_what_was_sampled_or_of_the_model(of, top_p, top_k, temperature, confidence):
    logits, uniform = logits_of(60, 8), uniform_of(60)
    settings = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "of": of}
    settings |= {"confidence": confidence, "dtype": torch.float64, "uniform": uniform}
    tokens, found = propose(logits, **settings)
    for row, token, value in zip(logits, tokens.tolist(), found.tolist(), strict=True):
        heated = row / (temperature or 1)
        kept = plain_top(heated.tolist(), top_p, top_k)
        assert token in kept
        if of == "model":
            p = row.softmax(-1)
        else:
            p = torch.zeros(8, dtype=torch.float64)
            p[kept] = heated[kept].softmax(-1)
        best = sorted(p.tolist(), reverse=True)
        expected = {
            "prob": float(p[token]),
            "margin": best[0] - best[1],
            "neg_entropy": sum(x * math.log(x) for x in best if x > 0),
        }[confidence]
        assert value == pytest.approx(expected, abs=1e-12)
    assert temperature == 0 or not torch.equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8}, {"top_k": 3}], ids=str)
@pytest.mark.parametrize("of", ["model", "sampled"])
def test_each_row_has_its_own_temperature(of, filters, confidence):
    """Rows at 0 among them: they take the argmax, and no noise, however extreme, matters."""
    logits, uniform = logits_of(40, 9), uniform_of(40)
    heat = torch.tensor([0.0, 0.3, 1.0, 2.5], dtype=torch.float64).repeat(10)
    uniform[::4] = 0.0
    settings = {"of": of, "confidence": confidence, "dtype": torch.float64, **filters}
    tokens, found = propose(logits, temperature=heat, uniform=uniform, **settings)
    assert torch.equal(tokens[::4], logits[::4].argmax(-1))
    assert not torch.equal(tokens, logits.argmax(-1))
    for row in range(40):
        own = slice(row, row + 1)
        token, value = propose(
            logits[own], temperature=float(heat[row]), uniform=uniform[own], **settings
        )
        assert token == tokens[row]
        torch.testing.assert_close(value[0], found[row], atol=1e-12, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ignored_ids_may_be_chosen_but_count_as_impossible(temperature):
    logits, uniform, ignored = logits_of(80, 6), uniform_of(80), (1, 4)
    before = logits.clone()
    settings = {"temperature": temperature, "uniform": uniform, "dtype": torch.float64}
    plain_tokens, _ = propose(logits, **settings)
    tokens, found = propose(logits, ignored=ignored, **settings)
    assert torch.equal(tokens, plain_tokens)
    assert torch.equal(logits, before)
    chosen = torch.isin(tokens, torch.tensor(ignored))
    assert 0 < int(chosen.sum()) < 80
    assert (found[chosen] == 0).all()
    rest = logits[:, [0, 2, 3, 5]].exp().sum(-1)
    expected = logits.gather(-1, tokens[:, None])[:, 0].exp() / rest
    torch.testing.assert_close(found[~chosen], expected[~chosen], atol=1e-12, rtol=0)


@pytest.mark.parametrize("confidence", ["prob", "margin"])
def test_where_only_ignored_ids_are_left_nothing_is_sure(confidence):
    """Not NaN, which would rank first."""
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    _, found = propose(logits, confidence=confidence, top_k=1, of="sampled", ignored=(0,))
    assert found.tolist() == [0.0, 1.0]


def test_noise_that_is_exactly_zero_does_no_harm():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    for u in (0.0, 0.5, 1 - 2**-53):
        uniform = torch.full((1,), u, dtype=torch.float64)
        tokens, confidence = propose(logits, temperature=1.0, uniform=uniform)
        assert tokens.item() in (0, 1)
        assert confidence.isfinite().all()


def test_temperature_without_noise_is_a_programming_error():
    with pytest.raises(ValueError, match="uniform"):
        propose(torch.zeros(1, 3), temperature=1.0)


def test_bfloat16_logits_are_compared_in_float32():
    logits = torch.tensor([[20.0, 12.0, 0.0], [20.0, 13.0, 0.0]], dtype=torch.bfloat16)
    for kind in CONFIDENCES:
        tokens, found = propose(logits, confidence=kind)
        assert tokens.tolist() == [0, 0]
        assert found.dtype == torch.float32
        # In bfloat16 both would be 1.0 (or 0.0) and tie.
        assert found[0] > found[1]
        exact = propose(logits.double(), confidence=kind, dtype=torch.float64)[1]
        torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_suppressed_ids_leave_confidences_finite(confidence):
    logits = logits_of(20, 9)
    bare = propose(logits[:, :6], confidence=confidence, dtype=torch.float64)
    logits[:, 6:] = -torch.inf
    tokens, found = propose(logits, confidence=confidence, dtype=torch.float64)
    assert found.isfinite().all()
    assert torch.equal(tokens, bare[0])
    torch.testing.assert_close(found, bare[1], atol=1e-12, rtol=0)
    logits[:, 1:] = -torch.inf
    _, certain = propose(logits, confidence=confidence, dtype=torch.float64)
    assert torch.equal(
        certain, torch.full((20,), 0.0 if confidence == "neg_entropy" else 1.0).double()
    )


def test_inputs_are_left_alone_and_no_rows_are_fine():
    logits = logits_of(4, 5)
    before = logits.clone()
    for kind in CONFIDENCES:
        propose(logits, confidence=kind, dtype=torch.float64)
        tokens, found = propose(logits[:0], confidence=kind)
        assert tokens.shape == found.shape == (0,)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("threshold", "confidence"),
    [(1.01, "prob"), (-0.1, "prob"), (2, "margin"), (0.5, "neg_entropy"), (math.nan, "prob")],
)
def test_thresholds_outside_their_range_are_refused(threshold, confidence):
    with pytest.raises(OptionError, match=f"^tau={threshold:g} .*confidence='{confidence}'"):
        check_threshold(threshold, confidence, "tau")


def test_thresholds_inside_their_range_pass():
    for threshold, confidence in ((0, "prob"), (1, "prob"), (0.9, "margin"), (-3, "neg_entropy")):
        check_threshold(threshold, confidence)
    with pytest.raises(OptionError, match="confidence='entropy' is not one of prob, margin"):
        check_threshold(0.5, "entropy")
