"""Tasks with workings in several orders: every working is read here from its text alone."""

import itertools
import re

import numpy as np
import pytest

from tests.tasks.test_tasks import draw
from whet import rng
from whet.errors import OptionError
from whet.tasks import SUITES, get_task, problems
from whet.tasks.base import HasPaths
from whet.zoo.tokenizer import CHARACTERS


def read(prompt):
    """Numbers by letter, and the modulus, from the prompt's text."""
    body, modulus = re.fullmatch(r"modsum ((?:[a-z][0-9]+)+)%([0-9]+)=", prompt).groups()
    return {c: int(x) for c, x in re.findall(r"([a-z])([0-9]+)", body)}, int(modulus)


STEP = re.compile(r"((?:[a-z][0-9]+)+)=([0-9]+)(?:=([0-9]+))?")


def follow(prompt, working):
    """What a working comes to if each of its steps is right; the letters in their order."""
    numbers, modulus = read(prompt)
    steps = list(STEP.finditer(working))
    assert "".join(step[0] for step in steps) == working
    pairwise = any(step[3] for step in steps)
    total, letters = 0, ""
    for step in steps:
        group = re.findall(r"([a-z])([0-9]+)", step[1])
        assert all(numbers[c] == int(x) for c, x in group)
        part = sum(numbers[c] for c, _ in group)
        total = (total + part) % modulus
        letters += "".join(c for c, _ in group)
        assert int(step[2]) == (part % modulus if pairwise else total)
        assert int(step[3] or total) == total
    assert sorted(letters) == sorted(numbers)
    return total, letters


@pytest.mark.parametrize(
    "spec", ["modsum", "modsum:count=2,modulus=2", "modsum:modulus=10,leaps=0.4"]
)
@pytest.mark.parametrize("order", ["left", "right", "random", "pairwise"])
def test_every_working_is_a_way_to_the_answer(spec, order):
    task = get_task(spec)
    for k, instance in enumerate(draw(task, 60)):
        working = task.working(instance, rng.keyed(0, "w", k), order)
        total, letters = follow(instance.prompt, working)
        numbers, modulus = read(instance.prompt)
        assert str(total) == instance.example == task.solve(instance)
        assert total == sum(numbers.values()) % modulus
        assert task.correct(instance, working)
        forward = "".join(numbers)
        if order in ("left", "pairwise"):
            assert letters == forward
        if order == "right":
            assert letters == forward[::-1]
        assert set(working) <= set(CHARACTERS)


def test_paths_differ_in_order_and_come_from_their_key():
    task = get_task("modsum")
    assert isinstance(task, HasPaths)
    assert not isinstance(get_task("sort"), HasPaths)
    [instance] = draw(task, 1)
    one, same, other = (task.paths(instance, rng.keyed(s, "p"), 6) for s in (0, 0, 1))
    assert one == same != other
    assert len(one) == 6
    assert len(set(one)) > 2
    only = get_task("modsum:orders=left").paths(instance, rng.keyed(0, "p"), 3)
    assert len(set(only)) == 1


def test_leaps_leave_partial_sums_out():
    [instance] = draw(get_task("modsum"), 1)
    lengths = []
    for leaps in (0, 0.5, 1):
        task = get_task(f"modsum:leaps={leaps},orders=left")
        texts = [task.working(instance, rng.keyed(0, k), "left") for k in range(40)]
        groups = [[re.findall("[a-z]", s[1]) for s in STEP.finditer(text)] for text in texts]
        assert all([c for x in g for c in x] == list("abcdef") for g in groups)
        assert {len(x) for g in groups for x in g} <= {1, 2}
        lengths.append(np.mean([len(g) for g in groups]))
    assert lengths[0] == 6 > lengths[1] > lengths[2] == 3


def test_the_checker_takes_the_sum_and_nothing_else():
    task = get_task("modsum:count=3,modulus=12")
    for instance in draw(task, 30):
        numbers, modulus = read(instance.prompt)
        for answer in (*map(str, range(40)), "", "x", "01", "-1", "²"):
            assert task.check(instance, answer).ok is (
                answer == str(sum(numbers.values()) % modulus)
            )
        assert not task.check(instance, int(instance.example))


@pytest.mark.parametrize(
    ("text", "lenient", "strict"),
    [
        ("7", "7", "7"),
        (" 12 \n3", "12", "12"),
        ("a1b2=3c9=12", "12", None),
        ("a3b7=0c5d1=6=6", "6", None),
        ("so 4 it is", "4", None),
        ("", None, None),
        ("none", None, None),
        ("٣", None, None),
    ],
)
def test_the_answer_is_the_last_number(text, lenient, strict):
    task = get_task("modsum")
    assert task.parse(text) == lenient
    assert task.parse(text, "strict") == strict


def test_the_space_is_counted():
    task = get_task("modsum:count=3,modulus=4")
    every = {
        "".join(f"{c}{x}" for c, x in zip("abc", xs, strict=True))
        for xs in itertools.product(range(4), repeat=3)
    }
    seen = {i.prompt.removeprefix("modsum ").removesuffix("%4=") for i in draw(task, 2000)}
    assert seen == every
    assert 10 ** task.log10_space() == pytest.approx(len(every))
    assert get_task("modsum").log10_space() > 10


def test_they_are_in_a_suite_of_their_own():
    assert [cls.id for cls in SUITES["workings"]] == ["modsum", "drafts"]
    made = list(problems(get_task("modsum"), seed=0, split="test", count=20))
    assert len({m.prompt for m in made}) == 20


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("modsum:count=1", "count=1 must be between 2 and 26"),
        ("modsum:count=27", "count=27"),
        ("modsum:modulus=1", "modulus=1"),
        ("modsum:leaps=1.5", "leaps=1.5"),
        ("modsum:leaps=nan", "leaps=nan"),
        ("modsum:orders=lef", "holds 'lef': did you mean 'left'"),
        ("modsum:orders=", "orders='' holds ''"),
    ],
)
def test_settings_out_of_range_are_refused(spec, says):
    with pytest.raises(OptionError, match=says):
        get_task(spec)


def carried_out(text):
    """A draft with its changes of mind carried out, by rewriting rather than by a stack."""
    while "<" in text:
        text = re.sub(r"[^<]<|^<", "", text, count=1)
    return text


def test_every_draft_is_a_way_to_a_completion_and_the_first_to_the_answer():
    task = get_task("drafts")
    assert isinstance(task, HasPaths)
    for k, instance in enumerate(draw(task, 80)):
        drafts = task.paths(instance, rng.keyed(0, "d", k), 3)
        assert carried_out(drafts[0]) == instance.example
        for draft in drafts:
            answer = carried_out(draft)
            given = instance.data[0]
            assert sorted(answer) == list("123456789")
            assert all(g in (".", a) for g, a in zip(given, answer, strict=True))
            assert task.parse(draft) == answer
            assert task.correct(instance, draft)
            assert len(draft) == 9 + 2 * draft.count("<") <= 13
            strict = task.parse(draft, "strict")
            assert strict == (None if "<" in draft else draft)


def test_drafts_are_independent_and_differ_in_length():
    task = get_task("drafts:shown=0")
    [instance] = draw(task, 1)
    drafts = [d for s in range(60) for d in task.paths(instance, rng.keyed(s), 3)[1:]]
    assert len({carried_out(d) for d in drafts}) == len(drafts)
    assert {len(d) for d in drafts} == {9, 11, 13}
    assert task.paths(instance, rng.keyed(1), 3) == task.paths(instance, rng.keyed(1), 3)
