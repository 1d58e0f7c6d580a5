"""What holds for all of BeyondBench: 44 tasks, 117 variations, both modes, one process or two."""

import hashlib
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from whet import rng
from whet.tasks import SUITES, problems, split_of
from whet.tasks.base import size_of_space
from whet.tasks.beyondbench import easy, hard, medium

TASKS = SUITES["beyondbench"]
MODES = ("faithful", "wide")


def plain(value):
    """What JSON makes of plain data."""
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    assert value is None or type(value) in (bool, int, float, str), value
    return value


def smallest(mode):
    """Every variation of every task at its smallest default size, where it has a problem."""
    made = [cls(variation=v, mode=mode) for cls in TASKS for v in cls.variations or ("",)]
    return [task for task in made if not task.empty_because()]


def name(task):
    return f"{task.label}-{task.mode}-{task.size}"


def draw(task, index=0):
    return task.generate(rng.keyed(11, "suite", *task.cell, index))


@pytest.fixture(scope="module")
def tasks():
    return [task for mode in MODES for task in smallest(mode)]


@pytest.fixture(scope="module")
def made(tasks):
    """One problem of each; the global generators are seen to be left alone."""
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), str(np.random.get_state())
    found = [draw(task) for task in tasks]
    assert (random.getstate(), str(np.random.get_state())) == before
    return found


# --- the suite as a whole -----------------------------------------------------------------------


def test_the_suite_has_the_tasks_and_variations_of_the_paper():
    assert [len(suite.TASKS) for suite in (easy, medium, hard)] == [29, 5, 10]
    assert (*easy.TASKS, *medium.TASKS, *hard.TASKS) == TASKS
    assert sum(len(cls.variations) for cls in medium.TASKS) == 49
    assert sum(len(cls.variations) for cls in hard.TASKS) == 68
    assert not any(cls.variations for cls in easy.TASKS)
    for suite in (easy, medium, hard):
        level = suite.__name__.rpartition(".")[2]
        assert {cls.level for cls in suite.TASKS} == {level}


def test_no_two_tasks_of_any_suite_share_an_id():
    classes = dict.fromkeys(cls for suite in SUITES.values() for cls in suite)
    ids = [cls.id for cls in classes]
    assert len(set(ids)) == len(ids)
    for cls in classes:
        assert cls.id == cls.id.lower().replace(" ", "_")
        assert cls.summary
        assert len(set(cls.variations)) == len(cls.variations)


def test_every_cell_names_its_own_streams_and_survives_pickling():
    cells = [task for mode in MODES for cls in TASKS for task in cls.cells({"mode": mode})]
    keys = [(task.id, *task.cell) for task in cells]
    assert len(set(keys)) == len(keys) > 600
    for task in cells:
        again = pickle.loads(pickle.dumps(task))
        assert again == task
        assert again.cell == task.cell
        assert hash(again) == hash(task)


def test_sizes_are_ascending_and_the_default_ones_possible():
    for mode, cls in itertools.product(MODES, TASKS):
        for variation in cls.variations or ("",):
            allowed = list(cls.allowed_sizes(variation, mode))
            default = list(cls.default_sizes(variation, mode))
            assert allowed == sorted(set(allowed))
            assert default == sorted(set(default))
            assert default
            assert set(default) <= set(allowed)


# --- one problem of every variation in both modes ------------------------------------------------


def test_problems_say_their_cell_and_hold_plain_data(tasks, made):
    for task, instance in zip(tasks, made, strict=True):
        assert (instance.task, instance.variation, instance.size) == (
            task.id,
            task.variation,
            task.size,
        )
        assert instance.prompt == instance.prompt.strip()
        assert instance.prompt.isascii()
        assert json.loads(json.dumps(instance.data)) == plain(instance.data)
        assert pickle.loads(pickle.dumps(instance)) == instance
        assert instance.key == instance.public != instance.prompt


def test_examples_and_solutions_are_in_the_form_asked_for_and_pass(tasks, made):
    for task, instance in zip(tasks, made, strict=True):
        for text in (instance.example, task.render(task.solve(instance))):
            answer = task.parse(text, "strict")
            assert answer is not None, (name(task), text)
            verdict = task.check(instance, answer)
            assert verdict.ok, (name(task), verdict.reason)
            assert task.correct(instance, f"So the answer is:\n{text}")
        assert not task.correct(instance, "")


def test_repeating_the_prompt_is_right_by_chance_alone(tasks, made):
    found = [task.correct(i, i.prompt) for task, i in zip(tasks, made, strict=True)]
    assert sum(found) < 0.02 * len(found)


def test_data_read_back_from_json_is_judged_alike(tasks, made):
    """Problems are stored and judged again: lists in place of tuples must not matter."""
    from dataclasses import replace

    for task, instance in zip(tasks, made, strict=True):
        stored = replace(instance, data=tuple(json.loads(json.dumps(instance.data))))
        answer = task.parse(instance.example, "strict")
        assert task.check(stored, answer).ok, name(task)


def test_the_same_key_gives_the_same_bytes_in_a_fresh_process(tasks, made):
    lines = [digest(task, instance) for task, instance in zip(tasks, made, strict=True)]
    code = f"import {__name__} as m\nfor mode in m.MODES:\n    for task in m.smallest(mode):\n"
    code += "        print(m.digest(task, m.draw(task)))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert out.stdout.splitlines() == lines


def digest(task, instance):
    text = "\0".join((instance.prompt, instance.public, instance.example, repr(instance.data)))
    return f"{name(task)} {hashlib.sha256(text.encode()).hexdigest()}"


def test_a_problem_is_the_same_alone_and_in_a_batch(tasks):
    """Where the space is large, index i is drawn from its own key whatever was drawn before."""
    large = [task for task in tasks if task.log10_space() > 12]
    assert len(large) > 100
    for task in large[::5]:
        whole = [draw(task, i) for i in range(8)]
        assert draw(task, 7) == whole[7]
        stream = list(problems(task, seed=2, split="test", count=2))
        keys = (task.generate(rng.keyed(2, "problem", task.id, *task.cell, i)) for i in range(400))
        alone = list(itertools.islice((p for p in keys if split_of(p.key) == "test"), 2))
        assert stream == alone, name(task)


def test_training_validation_and_test_problems_are_disjoint(tasks):
    for task in tasks[::9]:
        if task.log10_space() < 5:
            continue
        found = {
            split: {
                i.key for seed in (0, 1) for i in problems(task, seed=seed, split=split, count=2)
            }
            for split in ("train", "validation", "test")
        }
        assert all(found.values())
        assert all(a.isdisjoint(b) for a, b in itertools.combinations(found.values(), 2))


def test_wide_problems_were_never_published_and_only_the_smallest_tower_is_a_small_space():
    for cls in TASKS:
        for task in cls.cells({"mode": "wide"}):
            small = size_of_space(task) is not None or task.log10_space() < 3
            assert small == (task.label == "tower_hanoi/n3"), name(task)


def test_the_benchmark_of_the_suite_runs(tmp_path):
    from whet.measure.record import load

    script = Path(__file__).parents[3] / "benchmarks" / "beyondbench.py"
    subprocess.run(
        [sys.executable, script, "--count", "1", "--rounds", "1", "--out", tmp_path],
        capture_output=True,
        check=True,
        timeout=300,
    )
    record = load(tmp_path / "beyondbench.json")
    assert [arm.name for arm in record.arms] == ["wide", "faithful"]
    assert record.arms[0].metrics["problems"].value == 117
    assert all(arm.metrics["valid"].value == 1 for arm in record.arms)
