"""Which arms a sweep has, and which it leaves out with which reason."""

import pytest

from whet.bench.overhead import random_llada, random_sdar
from whet.bench.sweep import fitting, parse_axes, sweep_arms
from whet.errors import OptionError
from whet.measure.record import Arm, Metric, new_record
from whet.report.pages import frontier_of, pareto_sets
from whet.report.tables import sweep_table


def test_axes_are_keys_with_values():
    assert parse_axes(["threshold=0.7, 0.9", "block-length=4,8,4"]) == {
        "threshold": ["0.7", "0.9"],
        "block_length": ["4", "8"],
    }
    for texts, says in (
        (["threshold"], "no axis"),
        (["=1"], "no axis"),
        (["threshold="], "no axis"),
        (["threshold=1", "threshold=2"], "swept twice"),
    ):
        with pytest.raises(OptionError, match=says):
            parse_axes(texts)


def test_every_combination_of_the_axes_a_decoder_has():
    axes = parse_axes(["threshold=0.7,0.9", "block_length=4,8"])
    arms, refused = sweep_arms(["greedy", "threshold", "soar:threshold=0.5"], axes)
    assert refused == {}
    assert [a.name for a in arms] == [
        "greedy",
        "greedy:block_length=4",
        "greedy:block_length=8",
        "threshold",
        "threshold:threshold=0.7,block_length=4",
        "threshold:threshold=0.7,block_length=8",
        "threshold:threshold=0.9,block_length=4",
        "threshold:threshold=0.9,block_length=8",
        # What a decoder is written with is not swept.
        "soar:threshold=0.5",
        "soar:threshold=0.5,block_length=4",
        "soar:threshold=0.5,block_length=8",
    ]
    assert arms[6].options.threshold == 0.9


def test_arms_that_do_the_same_come_once():
    arms, _ = sweep_arms(["threshold"], {"threshold": ["0.9"], "cache": ["none"]})
    assert [a.name for a in arms] == ["threshold"]


def test_refused_combinations_come_with_the_reason():
    arms, refused = sweep_arms(["threshold"], {"threshold": ["0.5", "1.5"], "cache": ["none"]})
    assert [a.name for a in arms] == ["threshold", "threshold:threshold=0.5,cache=none"]
    assert "threshold=1.5 is outside" in refused["threshold:threshold=1.5,cache=none"]
    with pytest.raises(OptionError, match="no decoder of this sweep has 'beam_width'"):
        sweep_arms(["greedy", "threshold"], {"beam_width": ["2"]})


def test_what_does_not_fit_the_model_is_left_out():
    size = {"layers": 1, "width": 32, "vocab": 40, "context": 64}
    arms, _ = sweep_arms(["greedy"], {"cache": ["none", "dual", "block"], "block_length": ["4"]})
    kept, refused = fitting(arms, random_llada(**size), 8)
    assert [a.name for a in kept] == [
        "greedy",
        "greedy:cache=none,block_length=4",
        "greedy:cache=dual,block_length=4",
    ]
    assert "block-causal" in refused["greedy:cache=block,block_length=4"]
    kept, refused = fitting(arms, random_sdar(**size, block_length=4), 8)
    assert len(kept) == 4
    assert refused == {}
    with pytest.raises(OptionError, match=r"nothing is left of the sweep: block_length=4"):
        fitting(arms[1:], random_sdar(**size, block_length=8), 8)


def test_pareto_sets_pictures_and_marks():
    def arm(name, accuracy, forwards, seconds):
        metrics = {
            "accuracy": Metric(value=accuracy, n=10, unit="fraction"),
            "forwards": Metric(value=forwards, n=10),
            "seconds": Metric(value=seconds, n=10, unit="s"),
        }
        return Arm(name=name, chain=name, metrics=metrics)

    record = new_record(
        "sweep",
        level="cpu",
        seeds={},
        arms=[arm("slow", 0.9, 8, 2.0), arm("quick", 0.8, 4, 1.0), arm("poor", 0.7, 5, 0.5)],
    )
    sets = pareto_sets(record, ("forwards", "seconds"))
    assert sets == {"forwards": ["quick", "slow"], "seconds": ["poor", "quick", "slow"]}
    table = sweep_table(record, sets)
    cells = [list(column.cells) for column in table.columns]
    assert [str(c) for c in cells[2]] == ["8 ★", "4 ★", "5  "]
    assert [str(c).rstrip("★ ") for c in cells[3]] == ["2.00 s", "1.00 s", "500 ms"]
    for cost, axis in (("forwards", "forwards per item"), ("seconds", "time per item (s)")):
        svg = frontier_of(record, cost)
        assert svg is not None
        assert axis in svg
    assert frontier_of(record, "rows") is None
