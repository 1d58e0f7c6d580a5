"""How left-to-right a decoding was, and how sequential a text is: exact values."""

import inspect
import itertools
import math

import pytest
import torch

from whet.dlm.canvas import denoise
from whet.dlm.low_confidence import LowConfidence, RandomOrder
from whet.dlm.order import global_arness, sequential_dependence
from whet.errors import OptionError


def of(steps, confidence=None, **settings):
    """global_arness of one prompt."""
    steps = torch.tensor([steps])
    sure = torch.zeros(steps.shape) if confidence is None else torch.tensor([confidence])
    return float(global_arness(steps, sure, **settings)[0])


def brute(steps, confidence, k, within_step):
    """The sum by its definition, one micro-step at a time, over the shrinking set of masks."""
    masks = {p for p, s in enumerate(steps) if s >= 0}

    def turn(p):
        return (steps[p], -confidence[p] if within_step == "confidence" else 0, p)

    hits, total = 0, len(masks)
    for p in sorted(masks, key=turn):
        hits += p in sorted(masks)[:k]
        masks.remove(p)
    return hits / total if total else math.nan


@pytest.mark.parametrize("within_step", ["confidence", "position"])
@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_it_is_the_sum_over_micro_steps(k, within_step):
    g = torch.Generator().manual_seed(k)
    steps = torch.randint(-1, 5, (200, 12), generator=g)  # several in a step, some given
    confidence = torch.randint(0, 4, (200, 12), generator=g) / 4  # many equally sure
    steps[0] = -1
    found = global_arness(steps, confidence, k=k, within_step=within_step).tolist()
    for row, value in enumerate(found):
        expected = brute(steps[row].tolist(), confidence[row].tolist(), k, within_step)
        assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert math.isnan(found[0])


@pytest.mark.parametrize("length", [1, 2, 7, 32])
def test_known_orders(length):
    forward = list(range(length))
    assert of(forward) == 1.0
    assert of(forward[::-1]) == pytest.approx(1 / length)
    for k in (1, 2, length):
        assert of(forward[::-1], k=k) == pytest.approx(min(k, length) / length)
    g = torch.Generator().manual_seed(length)
    assert of(torch.randperm(length, generator=g).tolist(), k=length) == 1.0


def test_ties_within_a_step():
    # All in one step: by confidence 2, 0, 1 (only 0 and 1 are leftmost in their turn).
    assert of([0, 0, 0], [0.5, 0.1, 0.9]) == pytest.approx(2 / 3)
    assert of([0, 0, 0], [0.1, 0.5, 0.9]) == pytest.approx(1 / 3)
    assert of([0, 0, 0], [0.5, 0.5, 0.5]) == 1.0
    assert of([0, 0, 0], [0.1, 0.5, 0.9], within_step="position") == 1.0
    # Confidence never outweighs the step.
    assert of([1, 0], [0.9, 0.1]) == pytest.approx(1 / 2)
    assert of([0, 1], [0.1, 0.9]) == 1.0


def test_given_positions_do_not_count():
    assert of([-1, 1, -1, 0, -1]) == of([1, 0]) == pytest.approx(1 / 2)
    assert of([0, -1, 1, -1, 2]) == 1.0


@pytest.mark.parametrize("length", [3, 5])
def test_a_random_order_has_the_harmonic_expectation(length):
    orders = torch.tensor(list(itertools.permutations(range(length))))
    values = global_arness(orders, torch.zeros(orders.shape))
    harmonic = sum(1 / n for n in range(1, length + 1))
    assert float(values.mean()) == pytest.approx(harmonic / length, abs=1e-12)


@pytest.mark.parametrize("paths", [2, 3, 5])
def test_paths_in_lock_step_tend_to_one_over_their_number(paths):
    for length, within in ((10, 0.1), (200, 0.006)):
        rounds = torch.arange(length).repeat(paths)
        one_by_one = rounds * paths + torch.arange(paths).repeat_interleave(length)
        for steps in (rounds, one_by_one):  # a token of every path in one step, or in turn
            found = of(steps.tolist())
            assert abs(found - 1 / paths) < within
            # Only the first path leads, until the others' last round.
            assert found == pytest.approx((length + paths - 1) / (length * paths))


def test_of_a_trace(tiny_llada, canvases):
    canvas, mask = canvases([5, 3], 12)

    def arness(options):
        _, trace = denoise(tiny_llada, canvas, mask, options=options, start=5)
        return global_arness(trace.commit_step, trace.confidence)

    assert arness(LowConfidence(block_length=1)).tolist() == [1.0, 1.0]
    blocks, free = arness(LowConfidence(block_length=2)), arness(RandomOrder(seed=1))
    assert (blocks >= 1 / 2).all()
    assert (free < blocks).all()


def test_bad_settings():
    with pytest.raises(OptionError, match="k=0 must be at least 1"):
        of([0, 1], k=0)
    # The tests' own check of types stands before the function's.
    bare = inspect.unwrap(global_arness)
    with pytest.raises(OptionError, match="within_step='time' is not one of confidence, position"):
        bare(torch.zeros(1, 2).long(), torch.zeros(1, 2), within_step="time")


WORDS = [(a, b) for a in range(3) for b in range(2)]


def test_independent_segments_depend_on_nothing():
    def log_prob(context, continuation):
        return len(continuation) * math.log(1 / 7)  # the true model of i.i.d. tokens

    assert sequential_dependence(log_prob, [1], [[2, 3], [4], [5, 6, 0]]) == pytest.approx(0)


def test_copied_segments_gain_their_entropy():
    """Segment 1 is drawn from WORDS, each later one repeats the one before."""

    def log_prob(context, continuation):
        read = tuple(context[1:])  # behind the prompt
        if not read:
            return -math.log(len(WORDS))
        return 0.0 if tuple(continuation) == read[-2:] else -math.inf

    gains = [sequential_dependence(log_prob, [9], [word] * 4) for word in WORDS]
    assert sum(gains) / len(gains) == pytest.approx(math.log(len(WORDS)))


def test_each_segment_is_scored_after_those_before_and_after_the_prompt_alone():
    asked = []

    def log_prob(context, continuation):
        asked.append((list(context), list(continuation)))
        return float(len(context) * sum(continuation))

    prompt, segments = (1, 2), [[3], (4, 5), [6]]
    found = sequential_dependence(log_prob, prompt, segments)
    assert asked == [
        ([1, 2, 3], [4, 5]),
        ([1, 2], [4, 5]),
        ([1, 2, 3, 4, 5], [6]),
        ([1, 2], [6]),
    ]
    assert found == ((3 - 2) * 9 + (5 - 2) * 6) / 2
    assert (prompt, segments) == ((1, 2), [[3], (4, 5), [6]])


@pytest.mark.parametrize("count", [0, 1])
def test_one_segment_depends_on_nothing_before(count):
    with pytest.raises(OptionError, match=rf"^{count} segment\(s\): .* at least 2"):
        sequential_dependence(lambda context, continuation: 0.0, [1], [[2]] * count)
