"""The proof of layer pruning in miniature: it runs to the end and its record holds together."""

import dataclasses

import numpy as np
import pytest
import torch

from whet.measure import record as records
from whet.measure.items import load_items
from whet.reproduce.layer_pruning import (
    _CONTROLS,
    _FIVE,
    _HEALINGS,
    _OWN,
    LAYER_PRUNING,
    _Means,
)
from whet.reproduce.three_tasks import (
    CHOICE,
    TASKS,
    Answers,
    ThreeTasks,
    problems,
    repetition,
    split_of,
)

TINY = dataclasses.replace(
    LAYER_PRUNING,
    tasks=ThreeTasks(layers=4, width=16, intermediate=16, steps=4, batch_size=6),
    removed=(1, 2),
    healed=1,
    test=12,
    validation=6,
    calibration=6,
    prompts=4,
    heal={"steps": 3, "warmup": 1, "max_new_tokens": 8, "keep_truncated": True, "batch_size": 2},
    rounds=3,
    decoded=3,
    batch_size=2,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, record, progress) of one run."""
    folder, progress = tmp_path_factory.mktemp("layer-pruning"), []
    return folder, TINY._run(folder, "smoke", progress.append), progress


def test_the_record_holds_together(made):
    folder, record, progress = made
    assert (record.method, record.level) == ("layer-pruning", "smoke")
    arms = {arm.name: arm for arm in record.arms}
    plain = [f"{c}, {n}" for n in (1, 2) for c in (*_FIVE, *_CONTROLS)]
    healed = [f"{c}, 1, {how}" for c in _FIVE for how in _HEALINGS]
    assert list(arms) == ["whole", *plain, *healed]
    for name in plain:
        dropped = arms[name].settings["dropped"]
        assert len(dropped) == int(name[-1])
        assert 0 not in dropped
        assert arms[name].settings["parameters"] < arms["whole"].settings["parameters"]
    assert arms["reverse, 2"].settings["dropped"] == [2, 3]
    assert arms["simple, 2"].settings["dropped"] == [1, 2]
    assert {c.name for c in record.claims} >= {
        "writing suffers first",
        "above chance",
        "iterative",
        "speed, at least",
        "speed, at most",
    }
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    records.save(record, folder / "layer-pruning.json")
    assert records.load(folder / "layer-pruning.json") == record


def test_items_say_who_was_right(made):
    folder, record, _ = made
    items = load_items(folder / "layer-pruning.json", record)
    assert len(items["ids"]) == len(set(items["ids"])) == 12 * len(TASKS)
    for arm in record.arms:
        right = items["arms"][arm.name]["correct"]
        means = [np.mean(right[place : place + 12]) for place in (0, 12, 24)]
        found = [arm.metrics[f"accuracy/{task}"].value for task in TASKS]
        assert means == pytest.approx(found)


def test_a_second_run_trains_nothing_again(made):
    folder, record, _ = made
    again = TINY._run(folder, "smoke", lambda share: None)
    by_name = {arm.name: arm for arm in record.arms}
    for arm in again.arms:
        assert arm.metrics == by_name[arm.name].metrics


# --- statistics


def answers(membership, addition, brackets):
    columns = {"membership": membership, "addition": addition, "brackets": brackets}
    return {task: Answers(np.array(x, dtype=float), 0.0, 1.0) for task, x in columns.items()}


def test_retention_is_accuracy_over_the_whole_models():
    half, all_, none = [1, 0] * 20, [1] * 40, [0] * 40
    asked = {
        "whole": answers(all_, all_, half),
        "cosine, 1": answers(half, half, none),
        f"cosine, 1, {_OWN}": answers([1, 1, 1, 0] * 10, half, none),
    }
    means = _Means(asked, 0)
    assert means.retention("cosine, 1", CHOICE)[0] == pytest.approx(0.5)
    assert means.retention("cosine, 1", CHOICE, True)[0] == pytest.approx(0.25 / 0.75)
    value, low, high = means.gap("cosine, 1", False)
    assert value == pytest.approx(0.25 / 0.75 - 0.5)
    assert low < value < high
    closed, (low, high) = means.closed(["cosine, 1"], CHOICE)
    assert closed == pytest.approx(0.5)
    assert 0 < low < closed < high
    less, _ = means.closed_less(["cosine, 1"])
    assert less == pytest.approx(0.0 - 0.5)
    assert means.better("cosine", "cosine", (1,)) == (0.0, (0.0, 0.0))


def test_where_nothing_was_lost_nothing_can_be_closed():
    asked = {name: answers([1, 1], [1, 1], [1, 1]) for name in ("whole", "a", f"a, {_OWN}")}
    assert _Means(asked, 0).closed(["a"], CHOICE) is None


# --- the tasks


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_problem_and_answers_are_right(task):
    found = {s: problems(task, s, 60, seed=3) for s in ("train", "validation", "test")}
    prompts = [p for own in found.values() for p, _ in own]
    assert len(set(prompts)) == 180
    for split, own in found.items():
        assert {split_of(prompt) for prompt, _ in own} == {split}
        for prompt, answer in own:
            assert check(task, prompt, answer), (prompt, answer)


def check(task, prompt, answer):
    """By another way than the one they were made in."""
    text = prompt[1:-1]
    if task == "membership":
        text, choices = text.split("?")
        return [letter for letter in choices if letter in text] == [answer] and len(choices) == 4
    if task == "addition":
        *work, total = answer.split(";")
        steps = [part.split("=") for part in work]
        return int(total) == sum(map(int, text.split("+"))) and all(
            sum(map(int, left.split("+"))) == int(right) for left, right in steps
        )
    whole = text + answer
    while (smaller := whole.replace("()", "").replace("[]", "").replace("{}", "")) != whole:
        whole = smaller
    return whole == "" and 3 <= len(answer) <= 6


def test_every_place_is_right_as_often():
    drawn = problems("membership", "test", 400, seed=0)
    places = [prompt.split("?")[1].index(answer) for prompt, answer in drawn]
    assert all(60 < places.count(place) < 140 for place in range(4))


def test_repetition_counts_what_came_before():
    assert repetition(["abcdefgh"]) == 0
    assert repetition(["aaaaaaa"]) == pytest.approx(3 / 4)
    assert repetition(["ab"]) == 0


def test_equal_seeds_start_from_equal_weights():
    one, two = ThreeTasks(width=16, layers=1).model(), ThreeTasks(width=16, layers=1).model()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
