"""Every task under the contract, against checkers written here from the prompt text alone."""

import dataclasses
import itertools
import math
import string

import numpy as np
import pytest

from whet import rng
from whet.errors import InputError, OptionError
from whet.tasks import SUITES, expand, get_task, problems, split_of
from whet.zoo.tokenizer import CHARACTERS

# --- independent verification: prompt text in, truth out ---------------------------------------


def fits(given, answer):
    return len(given) == len(answer) and all(
        a == g for g, a in zip(given, answer, strict=True) if g != "."
    )


def valid_sudoku(given, answer):
    if not fits(given, answer):
        return False
    grid = [list(answer[4 * r : 4 * r + 4]) for r in range(4)]
    boxes = [
        [grid[2 * a + i][2 * b + j] for i in (0, 1) for j in (0, 1)] for a in (0, 1) for b in (0, 1)
    ]
    return all(set(u) == set("1234") for u in [*grid, *map(list, zip(*grid, strict=True)), *boxes])


def valid_queens(given, answer):
    n = len(given)
    if not fits(given, answer) or any(c not in "123456789"[:n] for c in answer):
        return False
    places = [(r, "0123456789".index(c)) for r, c in enumerate(answer)]
    lines = (lambda r, c: c, lambda r, c: r + c, lambda r, c: r - c)
    return all(len({line(*p) for p in places}) == n for line in lines)


def valid_brackets(given, answer):
    if not fits(given, answer) or set(answer) - set("()[]"):
        return False
    while "()" in answer or "[]" in answer:
        answer = answer.replace("()", "").replace("[]", "")
    return not answer


def valid_ladder(given, answer):
    letters = all(c in string.ascii_lowercase for c in answer)
    return fits(given, answer) and letters and answer == "".join(sorted(set(answer)))


def valid_colouring(given, answer):
    if not fits(given, answer) or any(c not in "rgb" for c in answer):
        return False
    at = {(r, c): answer[4 * r + c] for r in range(4) for c in range(4)}
    return all(
        at[r, c] != at.get((r + down, c + right)) for r, c in at for down, right in ((0, 1), (1, 0))
    )


def valid_permutation(given, answer):
    n = len(given)
    return fits(given, answer) and set(answer) == set("123456789"[:n]) and len(answer) == n


def valid_sort(given, answer):
    ordered = all(a <= b for a, b in itertools.pairwise(answer))
    return ordered and all(answer.count(d) == given.count(d) for d in {*given, *answer})


VALID = {
    "sudoku": valid_sudoku,
    "queens": valid_queens,
    "brackets": valid_brackets,
    "ladder": valid_ladder,
    "colouring": valid_colouring,
    "permutation": valid_permutation,
    "sort": valid_sort,
}
# Settings small enough to try every answer and to draw every problem, and the answer alphabet.
SMALL = {
    "sudoku": ("sudoku:min_blanks=3,max_blanks=5", "1234"),
    "queens": ("queens:min_size=4,max_size=6,max_placed=2", "123456"),
    "brackets": ("brackets:length=6", "()[]"),
    "ladder": ("ladder:length=3", string.ascii_lowercase),
    "colouring": ("colouring:min_given=10,max_given=13", "rgb"),
    "permutation": ("permutation:size=5", "12345"),
    "sort": ("sort:length=4", "0123456789"),
}
# Settings whose distinct problems can all be drawn.
COUNTABLE = {
    "sudoku": ("sudoku:min_blanks=1,max_blanks=1", 20000),
    "queens": ("queens:min_size=4,max_size=6,max_placed=2", 4000),
    "brackets": ("brackets:length=4,shown=0.5", 4000),
    "ladder": ("ladder:length=2,shown=0.6", 12000),
    "colouring": ("colouring:min_given=1,max_given=2", 10000),
    "permutation": ("permutation:size=4,shown=0.5", 4000),
    "sort": ("sort:length=3", 10000),
}
TASKS = {cls.id: cls for cls in SUITES["scratchpad"]}
NAMES = sorted(TASKS)


def given(instance):
    task, _, rest = instance.prompt.partition(" ")
    assert task == instance.task
    assert rest.endswith("=")
    return rest[:-1]


def draw(task, count, seed=0):
    return [task.generate(rng.keyed(seed, "draw", i)) for i in range(count)]


def every_answer(task, instance, alphabet):
    """All texts of the right length that keep what is shown (anything else is no answer)."""
    shown = given(instance) if task.id != "sort" else ""
    places = [
        [shown[i]] if shown and shown[i] != "." else alphabet for i in range(len(instance.example))
    ]
    return map("".join, itertools.product(*places))


# --- the contract -------------------------------------------------------------------------------


def test_every_task_is_verified_here_and_most_have_many_answers():
    assert set(VALID) == set(SMALL) == set(COUNTABLE) == set(TASKS)
    assert len(TASKS) >= 6
    assert sum(cls.many_answers for cls in TASKS.values()) * 2 >= len(TASKS)


@pytest.mark.parametrize("name", NAMES)
def test_examples_and_solutions_are_valid(name):
    task = get_task(name)
    for instance in draw(task, 200):
        assert VALID[name](given(instance), instance.example)
        assert task.check(instance, instance.example)
        solution = task.solve(dataclasses.replace(instance, example=""))
        assert VALID[name](given(instance), solution)
        assert task.check(instance, solution)
        assert task.correct(instance, f" {solution} \nmore")
        assert instance.task == name
        assert len(instance.example) <= 16
        assert set(instance.prompt + instance.example) <= set(CHARACTERS)
        assert instance.prompt == instance.prompt.strip()


@pytest.mark.parametrize("name", NAMES)
def test_the_checker_agrees_with_an_independent_one_on_changed_answers(name):
    task = get_task(name)
    strange = "0123456789abcrgdz()[].#-+= ²١½\x00"
    accepted = refused = 0
    for instance in draw(task, 40, seed=1):
        text = instance.example
        changed = [
            text[:i] + c + text[i + 1 :] for i in range(len(text)) for c in strange if c != text[i]
        ]
        swapped = [
            text[:i] + text[j] + text[i + 1 : j] + text[i] + text[j + 1 :]
            for i, j in itertools.combinations(range(len(text)), 2)
        ]
        for answer in (*changed, *swapped, "", text[:-1], text + text[-1], text[1:], text * 2):
            found = task.check(instance, answer)
            assert found.ok is VALID[name](given(instance), answer), (instance.prompt, answer)
            accepted, refused = accepted + found.ok, refused + (not found)
    assert refused > 1000
    assert accepted or not task.many_answers


@pytest.mark.parametrize("name", NAMES)
def test_the_checker_agrees_on_every_answer_and_many_answers_is_true(name):
    spec, alphabet = SMALL[name]
    task = get_task(spec)
    most = 0
    for instance in draw(task, 25):
        count = 0
        for answer in every_answer(task, instance, alphabet):
            found = task.check(instance, answer)
            assert found.ok is VALID[name](given(instance), answer), (instance.prompt, answer)
            count += found.ok
        assert count >= 1
        most = max(most, count)
    assert (most > 1) is task.many_answers


@pytest.mark.parametrize("name", NAMES)
def test_problems_come_from_their_key(name):
    task = get_task(name)
    one, two = ([task.generate(rng.keyed(s, "k", i)) for i in range(5)] for s in (0, 0))
    other = [task.generate(rng.keyed(1, "k", i)) for i in range(5)]
    assert one == two
    assert one != other


@pytest.mark.parametrize("name", NAMES)
def test_the_space_is_as_large_as_said(name):
    spec, draws = COUNTABLE[name]
    task = get_task(spec)
    seen = {i.prompt for i in draw(task, draws)}
    late = {i.prompt for i in draw(task, draws // 10, seed=1)} - seen
    assert len(late) < 0.2 * draws // 10, "not all problems have been drawn"
    assert abs(task.log10_space() - math.log10(len(seen))) < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_space_of_the_defaults_is_large_enough_for_fresh_problems(name):
    assert TASKS[name]().log10_space() > 4
    prompts = [i.prompt for i in draw(TASKS[name](), 1000)]
    # Draws are not uniform over the space; this bounds what that costs.
    assert len(set(prompts)) > 700


# --- splits and streams of problems -------------------------------------------------------------


def test_splits_are_pinned_and_of_the_said_sizes():
    splits = [split_of(f"sort {i:010d}=") for i in range(16000)]
    assert splits[:4] == ["train", "train", "train", "test"]
    assert abs(splits.count("test") / 16000 - 1 / 8) < 0.01
    assert abs(splits.count("validation") / 16000 - 1 / 16) < 0.01
    assert set(splits) == {"train", "validation", "test"}


def test_splits_are_disjoint_whatever_the_seeds():
    task = get_task("queens")
    prompts = {
        split: {
            p.prompt for seed in (0, 1) for p in problems(task, seed=seed, split=split, count=60)
        }
        for split in ("train", "validation", "test")
    }
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(prompts.values(), 2))


@pytest.mark.parametrize("name", NAMES)
def test_problems_are_distinct_and_a_longer_list_starts_with_the_shorter(name):
    task = get_task(name)
    made = list(problems(task, seed=4, split="test", count=50))
    assert len({p.prompt for p in made}) == 50
    assert all(split_of(p.prompt) == "test" for p in made)
    assert list(problems(task, seed=4, split="test", count=20)) == made[:20]
    assert list(itertools.islice(problems(task, seed=4, split="test"), 20)) == made[:20]
    assert list(problems(task, seed=5, split="test", count=20)) != made[:20]


def test_running_out_of_problems_says_so():
    task = get_task("sort:length=3")
    with pytest.raises(
        InputError, match=r"task 'sort' ran out of distinct test problems after \d+"
    ):
        list(problems(task, seed=0, split="test", count=200))
    repeated = list(problems(task, seed=0, split="test", count=200, distinct=False))
    assert len({p.prompt for p in repeated}) < 200


# --- names and settings -------------------------------------------------------------------------


def test_names_settings_and_suites():
    assert get_task("sort:length=4").length == 4
    assert get_task("sort@scratchpad").id == "sort"
    assert [t.id for t in expand(["scratchpad"])] == [c.id for c in SUITES["scratchpad"]]
    assert [t.id for t in expand(["sort", "scratchpad"])].count("sort") == 1


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["sudoko"], r"unknown task 'sudoko': did you mean 'sudoku'\?"),
        (["scratchpd"], r"unknown task 'scratchpd': did you mean 'scratchpad'\?"),
        (["sort@scratchpat"], r"unknown suite 'scratchpat': did you mean 'scratchpad'\?"),
        (["sudoko@scratchpad"], r"did you mean 'sudoku'\?"),
        (["sort:lenght=4"], r"task 'sort' has no option 'lenght': did you mean 'length'\?"),
        (["sort:length=four"], "task 'sort': length='four' must be a whole number"),
        (["scratchpad:length=4"], "task .sudoku. has no option .length."),
        ([], "no task named"),
        ([""], "names nothing"),
    ],
)
def test_wrong_names_say_what_is_right(names, why):
    with pytest.raises(OptionError, match=why):
        expand(names)


def test_a_suite_is_not_one_task():
    with pytest.raises(OptionError, match="'scratchpad' is a suite of 7 tasks"):
        get_task("scratchpad")


@pytest.mark.parametrize(
    "spec",
    [
        "sudoku:min_blanks=0",
        "sudoku:max_blanks=17",
        "sudoku:min_blanks=13",
        "queens:max_size=10",
        "queens:min_size=3",
        "queens:max_placed=6",
        "brackets:length=7",
        "brackets:length=0",
        "brackets:shown=1.5",
        "ladder:length=27",
        "ladder:shown=nan",
        "colouring:max_given=17",
        "colouring:min_given=7",
        "permutation:size=10",
        "permutation:shown=-1",
        "sort:length=0",
    ],
)
def test_settings_without_problems_are_refused_by_name(spec):
    setting = spec.partition(":")[2].partition("=")[0]
    with pytest.raises(OptionError, match=r"^task '\w+': \w+=\S+ must be ") as caught:
        get_task(spec)
    assert setting.partition("_")[2] in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        "sudoku:min_blanks=16,max_blanks=16",
        "queens:min_size=4,max_size=4,max_placed=4",
        "brackets:length=2,shown=1",
        "brackets:shown=0",
        "ladder:length=26",
        "ladder:length=1,shown=0",
        "colouring:min_given=0,max_given=0",
        "colouring:min_given=16,max_given=16",
        "permutation:size=1",
        "permutation:shown=1",
        "sort:length=1",
    ],
)
def test_extreme_settings_still_make_solvable_problems(spec):
    task = get_task(spec)
    for instance in draw(task, 20):
        assert task.check(instance, instance.example)
        assert task.check(instance, task.solve(instance))
    assert task.log10_space() >= 0


def test_uniform_brackets():
    """The random balanced strings behind the bracket task are uniform."""
    from whet.tasks.scratchpad.sequences import _random_balanced

    counts = {}
    for i in range(4000):
        text = _random_balanced(rng.keyed(0, "b", i), 6)
        counts[text] = counts.get(text, 0) + 1
    assert len(counts) == 5 * 8
    # 40 cells of 100 expected: chi-square with 39 degrees of freedom, mean 39, sd 8.8.
    chi = sum((np.array(list(counts.values())) - 100) ** 2) / 100
    assert chi < 75


def test_an_answer_is_the_first_line():
    task = get_task("sort")
    assert task.parse("  12 \n34") == "12"
    assert task.parse("\n") is None
    assert task.parse("") is None
    instance = draw(task, 1)[0]
    assert not task.correct(instance, "")
