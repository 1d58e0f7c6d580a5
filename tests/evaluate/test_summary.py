"""Metrics of outcomes, against sums done here by hand."""

import math

import pytest

from whet.evaluate import (
    BUCKETS,
    Outcome,
    Problem,
    accuracy_rows,
    cell_rows,
    efficiency,
    outcome_metrics,
    paired_comparisons,
)
from whet.tasks import get_task, problems


def outcomes(task, buckets, *, tokens=10, forwards=2.0):
    drawn = problems(get_task(task), seed=0, split="test", count=len(buckets))
    return [
        Outcome(
            Problem(f"{task}-{i}", get_task(task), instance),
            "",
            bucket == "correct",
            bucket,
            bucket == "correct" and i % 2 == 0,
            "",
            None if bucket == "skipped_budget" else tokens,
            None if bucket == "skipped_budget" else forwards,
        )
        for i, (instance, bucket) in enumerate(zip(drawn, buckets, strict=True))
    ]


def values(found):
    return {name: metric.value for name, metric in found.items()}


def test_efficiency_is_ten_times_percent_over_tokens():
    assert efficiency(28.13, 7911.86) == pytest.approx(0.03555, abs=1e-5)
    assert efficiency(100, 10) == 100
    assert efficiency(50, 0) == 0


def test_only_skipped_problems_leave_the_denominator():
    counts = {"correct": 4, "wrong": 3, "unparsed": 2, "truncated": 1, "failed": 5}
    counts["skipped_budget"] = 6
    made = outcomes("sum", [b for b, n in counts.items() for _ in range(n)])
    found = outcome_metrics(made)
    assert found["accuracy"].value == 4 / 15
    assert found["accuracy"].n == found["strict_accuracy"].n == 15
    assert found["strict_accuracy"].value == 2 / 15
    named = {b: found[b].value for b in BUCKETS if b != "correct"}
    assert named == {b: n for b, n in counts.items() if b != "correct"}
    assert 4 + sum(named.values()) == len(made)
    assert found["skipped_budget"].n == 21
    [row] = cell_rows(made)
    assert {b: row[b] for b in BUCKETS} == counts
    assert (row["n"], row["accuracy"], row["strict"]) == (15, 4 / 15, 2 / 15)
    low, high = found["accuracy"].ci
    # Wilson, 95 %: the roots of (p - 4/15)^2 = z^2 p (1 - p) / 15.
    for root in (low, high):
        assert (root - 4 / 15) ** 2 == pytest.approx(1.959964**2 * root * (1 - root) / 15)


@pytest.mark.parametrize("bucket", ["unparsed", "truncated", "failed"])
def test_a_model_that_says_nothing_scores_zero_and_nothing_is_nan(bucket):
    found = outcome_metrics(outcomes("sum", [bucket] * 3, tokens=0, forwards=0.0))
    assert found["accuracy"].value == 0
    assert found[bucket].value == 3
    for metric in found.values():
        assert math.isfinite(metric.value)
        assert metric.ci is None or all(map(math.isfinite, metric.ci))


def test_a_model_that_is_asked_nothing_has_no_accuracy():
    skipped = outcomes("sum", ["skipped_budget"] * 3)
    assert values(outcome_metrics(skipped)) == {"skipped_budget": 3}
    assert accuracy_rows(skipped) == []
    [row] = cell_rows(skipped)
    assert row["skipped_budget"] == 3
    assert "accuracy" not in row


def test_empty_texts_count_as_no_tokens_in_the_mean():
    made = outcomes("sum", ["correct"] * 3, tokens=20) + outcomes("sort", ["unparsed"], tokens=0)
    found = values(outcome_metrics(made))
    assert found["tokens"] == 15
    assert found["efficiency"] == pytest.approx(10 * 75 / 15)
    assert found["forwards"] == 2
    unknown = outcomes("sum", ["correct"] * 3, tokens=None, forwards=None)
    assert not {"tokens", "efficiency", "forwards"} & set(outcome_metrics(unknown))
    mixed = outcome_metrics(made + unknown)
    assert not {"tokens", "efficiency", "forwards"} & set(mixed)


def test_suites_are_means_over_tasks_of_means_over_sizes():
    right, wrong = ["correct"], ["wrong"]
    made = [
        *outcomes("sum:size=4", right * 9 + wrong),  # 0.9
        *outcomes("sum:size=8", wrong * 2),  # 0.0 -> sum 0.45
        *outcomes("mean:size=8", right * 3 + wrong),  # 0.75 -> easy 0.6
        *outcomes("fibonacci_sequence", right + wrong),  # medium 0.5
        *outcomes("n_queens:variation=n4", right),
        *outcomes("modular_systems", wrong * 3 + ["skipped_budget"]),  # hard 0.5
        *outcomes("sort", right * 5),  # of no suite
    ]
    found = values(outcome_metrics(made))
    assert found["suite accuracy/easy"] == pytest.approx(0.6)
    assert found["suite accuracy/medium"] == 0.5
    assert found["suite accuracy/hard"] == 0.5
    assert found["mean of suites"] == pytest.approx((0.6 + 0.5 + 0.5) / 3)
    assert found["accuracy/sum"] == 0.75
    assert found["accuracy by size/sum 04"] == 0.9
    assert found["accuracy by size/sum 08"] == 0.0
    assert found["accuracy"] == 19 / 27
    without = values(outcome_metrics(made[:16]))
    assert "mean of suites" not in without
    assert "suite accuracy/hard" not in without


def test_paired_comparisons_are_of_the_same_problems():
    a = [1, 1, 1, 1, 1, 1, 0, 0, 0, 1]
    b = [0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    [found] = paired_comparisons("a", "b", a, b)
    assert (found.a, found.b, found.metric) == ("a", "b", "accuracy")
    assert found.value == pytest.approx(0.3)
    low, high = found.ci
    assert -0.2 < low < 0.3 < high <= 0.8
    # Exact McNemar: 4 against 1 of 5 discordant pairs.
    assert found.p == pytest.approx(2 * sum(math.comb(5, k) for k in (0, 1)) / 2**5)
    assert "10 problems, 50.0 % agree" in found.test
    [same] = paired_comparisons("a", "b", a, a)
    assert (same.value, same.p) == (0, 1)
