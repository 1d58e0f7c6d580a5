import math

import pytest
import torch

from whet.errors import OptionError
from whet.layers import sampling
from whet.layers.sampling import CONFIDENCES, check_threshold, propose


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


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("values", [1, 50, 3 * 97, 5000])
def test_chunks_are_invisible(monkeypatch, confidence, temperature, values):
    logits = logits_of(23, 97)
    uniform = torch.rand(23, 97, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    settings = {"confidence": confidence, "dtype": torch.float64, "temperature": temperature}
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
    uniform = torch.rand(200, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens, found = propose(logits, dtype=torch.float64, temperature=2.0, uniform=uniform)
    assert (tokens != logits.argmax(-1)).any()
    expected = logits.softmax(-1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_sampling_has_the_frequencies_of_the_tempered_softmax(temperature):
    row = torch.tensor([1.0, 0.2, -0.5, 0.9, -2.0, -torch.inf], dtype=torch.float64)
    n = 40_000
    generator = torch.Generator().manual_seed(7)
    uniform = torch.rand(n, len(row), dtype=torch.float64, generator=generator)
    tokens, _ = propose(row.expand(n, -1), temperature=temperature, uniform=uniform)
    expected = (row / temperature).softmax(-1) * n
    counts = torch.bincount(tokens, minlength=len(row)).double()
    assert counts[-1] == 0
    chi = ((counts - expected)[:-1] ** 2 / expected[:-1]).sum()
    assert chi < 18.5  # 4 degrees of freedom, 1 in 1000
    # The rule itself, as LLaDA writes it.
    rule = (row.exp() / (-uniform.log()) ** temperature).argmax(-1)
    assert torch.equal(tokens, rule)


def test_noise_that_is_exactly_zero_does_no_harm():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    for u in (0.0, 0.5):
        uniform = torch.full((1, 3), u, dtype=torch.float64)
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
