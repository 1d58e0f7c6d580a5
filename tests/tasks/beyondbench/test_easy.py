"""The easy suite, against results computed here in another way from the prompt alone."""

import itertools
import json
import math
import pickle
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from whet import rng
from whet.errors import OptionError
from whet.tasks.answers import Rounded
from whet.tasks.base import problems
from whet.tasks.beyondbench.easy import TASKS

CLASSES = {cls.id: cls for cls in TASKS}
IDS = list(CLASSES)
PAIRS = ("comparison", "subtraction", "division", "absolute_difference")
CASES = [(name, mode) for name in IDS for mode in ("faithful", "wide")]


def is_palindrome(v):
    digits = list(str(v))
    return all(digits[i] == digits[-1 - i] for i in range(len(digits)))


def longest_chain(x):
    best = []
    for i, v in enumerate(x):
        best.append(1 + max((best[j] for j in range(i) if x[j] < v), default=0))
    return max(best)


def product(x):
    total = 1
    for v in x:
        total *= v
    return total


def alternating(x):
    total = 0
    for i, v in enumerate(x):
        total = total + v if i in range(0, len(x), 2) else total - v
    return total


# Whole-number results, each written anew.
WHOLE = {
    "sum": lambda x: int(np.array(x, dtype=object).sum()),
    "subtraction": lambda x: -x[0] + x[1],
    "multiplication": product,
    "absolute_difference": lambda x: max(x) - min(x),
    "odd_count": lambda x: len([v for v in x if abs(v) & 1]),
    "even_count": lambda x: len([v for v in x if str(v)[-1] in "02468"]),
    "find_maximum": lambda x: sorted(x)[-1],
    "find_minimum": lambda x: sorted(x)[0],
    "second_maximum": lambda x: max(v for v in x if v != max(x)),
    "range": lambda x: int(np.ptp(x)),
    "index_of_maximum": lambda x: int(np.argmax(x)),
    "count_negative": lambda x: str(x).count("-"),
    "count_unique": lambda x: len(Counter(x)),
    "max_adjacent_difference": lambda x: int(np.abs(np.diff(x)).max()),
    "count_greater_than_previous": lambda x: int((np.diff(x) > 0).sum()),
    "sum_of_max_indices": lambda x: int(np.flatnonzero(np.array(x) == np.max(x)).sum()),
    "count_palindromic": lambda x: Counter(map(is_palindrome, x))[True],
    "longest_increasing_subsequence": longest_chain,
    "sum_of_digits": lambda x: sum(map(int, re.findall(r"\d", str(x)))),
    "count_perfect_squares": lambda x: len([v for v in x if round(v**0.5) ** 2 == v]),
    "alternating_sum": alternating,
    "count_multiples": lambda x: len([v for v in x if sum(map(int, str(abs(v)))) % 3 == 0]),
    "local_maxima_count": lambda x: len(
        [i for i in range(1, len(x) - 1) if x[i] > max(x[i - 1], x[i + 1])]
    ),
}


def half_up(q):
    """Two decimals by long division of the digits."""
    scaled = abs(q.numerator) * 1000 // q.denominator
    return math.copysign(1, q) * ((scaled + 5) // 10)


def right(name, x, answer):
    """Whether an answer of the right type is right."""
    if name in WHOLE:
        return answer == WHOLE[name](x)
    if name == "sorting":
        return Counter(answer) == Counter(x) and all(a <= b for a, b in itertools.pairwise(answer))
    if name == "mode":
        return sorted(set(answer)) == sorted(statistics.multimode(x))
    if name == "comparison":
        return {"greater than": x[0] > x[1], "less than": x[0] < x[1], "equal to": x[0] == x[1]}[
            answer
        ]
    if name == "division":
        return half_up(Fraction(answer)) == half_up(Fraction(x[0], x[1]))
    middle = {"mean": statistics.mean, "median": statistics.median}[name]
    return abs(answer - middle(map(Fraction, x))) <= Fraction(1, 10**6)


def numbers(instance):
    """The numbers of a problem, from its prompt."""
    question = instance.prompt.partition("End with")[0]
    if instance.task in PAIRS:
        return [int(v) for v in re.findall(r"-?\d+", question)]
    return json.loads(re.search(r"\[.*?\]", question).group())


def bare(task, x):
    """The right answer as it stands in its box."""
    text = task.render(task.row.answer(x))
    return text.removeprefix(r"\boxed{").removesuffix("}")


def draw(task, count, seed=0):
    return [task.generate(rng.keyed(seed, "draw", i)) for i in range(count)]


def perturbed(name, answer):
    """Answers near to a right one, of its type."""
    if name == "comparison":
        return ["greater than", "less than", "equal to"]
    if name == "sorting":
        swapped = [answer[1], answer[0], *answer[2:]]
        return [
            swapped,
            answer[::-1],
            answer[:-1],
            [*answer, answer[-1]],
            [answer[0] + 1, *answer[1:]],
        ]
    if name == "mode":
        return [list(answer)[:-1], [*answer, 10**7], [*answer, *answer], [next(iter(answer)) + 1]]
    if name in WHOLE:
        return [answer + 1, answer - 1, -answer, 2 * answer, 0, answer + 10**30]
    steps = (Fraction(1, 100), Fraction(1, 10**5), Fraction(1, 10**8))
    return [answer + sign * step for step in steps for sign in (1, -1)] + [-answer, Fraction(0)]


def test_the_tasks_are_the_papers_in_its_order():
    assert len(IDS) == 29
    assert IDS[:6] == ["sorting", "comparison", "sum", "subtraction", "multiplication", "division"]
    assert IDS[-2:] == ["count_multiples", "local_maxima_count"]
    assert set(IDS) == {*WHOLE, "sorting", "mode", "comparison", "division", "mean", "median"}
    assert all(cls.level == "easy" and not cls.variations and cls.summary for cls in TASKS)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_the_oracle_is_right_and_survives_writing_and_reading(name, mode):
    cls = CLASSES[name]
    sizes = cls.allowed_sizes("", mode)
    for size in {sizes[0], 8 if 8 in sizes else 2}:
        task = cls(mode=mode, size=size)
        for instance in draw(task, 50):
            x = numbers(instance)
            assert tuple(x) == instance.data[0]
            assert len(x) == size
            assert all(task.low <= v <= task.high for v in x) or name == "count_palindromic"
            solution = task.solve(instance)
            assert right(name, x, solution), (instance.prompt, solution)
            assert task.check(instance, solution)
            for text in (task.render(solution), instance.example):
                assert task.check(instance, task.parse(text, "strict"))
                assert task.check(instance, task.parse(text, "lenient"))
                echoed = f"{instance.prompt}\nFirst \\boxed{{1}}, rather {text}"
                assert task.correct(instance, echoed)
            question = instance.prompt.partition("End with")[0]
            for echo in (instance.prompt, question, f"{question}\n{question.upper()}"):
                assert task.parse(echo, "strict") is None
                assert task.parse(echo, "lenient") is None
            assert task.correct(
                instance, f"{question} It is, after all,\n\nAnswer: {bare(task, x)}"
            )


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_the_checker_agrees_with_an_independent_one_near_the_answer(name, mode):
    task = CLASSES[name](mode=mode)
    refused = 0
    for instance in draw(task, 25, seed=1):
        x = numbers(instance)
        for answer in perturbed(name, task.solve(instance)):
            found = task.check(instance, answer)
            assert found.ok is right(name, x, answer), (instance.prompt, answer)
            assert found.ok or found.reason
            refused += not found.ok
    assert refused > 20


@pytest.mark.parametrize("name", IDS)
def test_other_types_are_wrong_and_break_nothing(name):
    task = CLASSES[name]()
    for instance in draw(task, 3):
        solution = task.solve(instance)
        strange = [None, True, False, "", str(solution), 1j, b"1", [], [None], [[]], {}, {1: 2}]
        strange += [float("nan"), float("inf"), 1.0, [1.0], [True], object(), range(3), ("a",)]
        if name in WHOLE:
            strange += [float(WHOLE[name]([*instance.data[0]])), [solution], Fraction(1, 3)]
        if name == "comparison":
            strange = [v for v in strange if v != solution]
        for answer in strange:
            assert not task.check(instance, answer), answer
        for answer in (10**5000, -(10**5000), Fraction(10**5000, 7), [10**5000] * 8):
            assert not task.check(instance, answer)


@pytest.mark.parametrize("name", IDS)
def test_without_a_box_only_lenient_reading_finds_the_answer(name):
    task = CLASSES[name]()
    for instance in draw(task, 10, seed=2):
        answer = bare(task, instance.data[0])
        for text in (f"The final answer is: {answer}", f"Some work.\n**Answer:** {answer}\n"):
            assert task.parse(text, "strict") is None
            assert task.check(instance, task.parse(text, "lenient")), text


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_the_stated_space_is_what_can_be_drawn(name, mode):
    # Ranges so small that every list comes up.
    low, high, size = {
        "sum_of_max_indices": (0, 12, 2),
        "count_palindromic": (10, 12, 2),
        "sum_of_digits": (9, 12, 3),
        "count_perfect_squares": (1, 6, 3),
        "count_multiples": (-2, 2, 3),
        "mode": (-1, 1, 4),
        "count_unique": (0, 2, 3),
    }.get(name, (-1, 2, 2 if name in PAIRS else 3))
    task = CLASSES[name](mode=mode, low=low, high=high, size=size)
    if name == "count_palindromic" and mode == "faithful":
        assert 10 ** task.log10_space() == pytest.approx(2 * 48 * 2)
    found = {instance.key for instance in draw(task, 2500)}
    assert len(found) == round(10 ** task.log10_space())
    assert 10 ** task.log10_space() == pytest.approx(len(found))


def test_large_spaces_are_counted_exactly():
    assert CLASSES["sum"](size=8).log10_space() == pytest.approx(18.36, abs=0.005)
    ordered = sum(math.log10(v) for v in range(201, 201 - 8, -1))
    assert CLASSES["sum"](size=8).log10_space() == pytest.approx(ordered, rel=1e-12)
    assert CLASSES["sum"](size=256).log10_space() == pytest.approx(256 * math.log10(201))
    assert all(cls(mode="wide").log10_space() > 15 for cls in TASKS)
    # The sum over the maximum, where it is exact and where it is an expansion.
    for low, high in ((-100, 100), (-400_000, 600_100)):
        last = high - low
        for size in (2, 3, 5):
            exact = sum(
                math.comb(size, c) * sum(j ** (size - c) for j in range(10, last + 1))
                for c in range(1, min(3, size) + 1)
            )
            task = CLASSES["sum_of_max_indices"](size=size, low=low, high=high)
            assert task.log10_space() == pytest.approx(math.log10(exact), abs=1e-9)


def test_ten_thousand_sums_are_all_different():
    task = CLASSES["sum"](size=8)
    assert len({instance.key for instance in draw(task, 10_000)}) == 10_000


@pytest.mark.parametrize(
    ("name", "settings", "part"),
    [
        ("sum", {"low": 5, "high": 3}, "low=5"),
        ("sum", {"low": -(10**10)}, "low=-10000000000"),
        ("sum", {"size": 1}, "size=1"),
        ("sum", {"size": 257}, "size=257"),
        ("sum", {"mode": "huge"}, "mode='huge'"),
        ("mode", {"size": 2}, "size=2"),
        ("local_maxima_count", {"size": 2}, "size=2"),
        ("subtraction", {"size": 8}, "size=8"),
        ("comparison", {"low": 4, "high": 4}, "two distinct"),
        ("second_maximum", {"low": 4, "high": 4}, "two distinct"),
        ("division", {"low": 0, "high": 0}, "other than 0"),
        ("count_negative", {"low": 0}, "negative"),
        ("count_negative", {"high": 0}, "positive"),
        ("count_negative", {"low": 0, "mode": "wide"}, "negative"),
        ("sum_of_max_indices", {"low": 0, "high": 9}, "11 numbers"),
        ("count_palindromic", {"high": 9}, "palindrome"),
        ("count_palindromic", {"low": 11, "high": 11}, "palindrome"),
        ("sum_of_digits", {"high": 9}, "two digits"),
        ("count_perfect_squares", {"high": 1}, "squares"),
        ("count_perfect_squares", {"low": 2, "high": 3}, "squares"),
        ("count_multiples", {"low": 1, "high": 2}, "multiples"),
        ("count_multiples", {"low": 3, "high": 3}, "multiples"),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(name, settings, part):
    with pytest.raises(OptionError, match=f"task '{name}'.*{re.escape(part)}"):
        CLASSES[name](**settings)


@pytest.mark.parametrize("name", IDS)
def test_cells_follow_the_sizes_asked_for(name):
    cls = CLASSES[name]
    assert [t.size for t in cls.cells({})] == ([2] if name in PAIRS else [8, 16, 32])
    assert [t.size for t in cls.cells({}, (64, 1))] == ([2] if name in PAIRS else [64])
    assert cls.cells({"low": "1", "high": "50", "mode": "wide"} if name != "count_negative" else {})


def test_negative_counts_are_no_foregone_conclusion_in_wide():
    faithful, wide = (CLASSES["count_negative"](mode=m) for m in ("faithful", "wide"))
    assert {faithful.solve(i) for i in draw(faithful, 50)} == {4}
    assert len({wide.solve(i) for i in draw(wide, 50)}) > 3


def test_faithful_palindromes_are_the_papers_and_wide_ones_have_any_length():
    faithful, wide = (CLASSES["count_palindromic"](mode=m, size=32) for m in ("faithful", "wide"))
    assert max(v for i in draw(faithful, 50) for v in i.data[0]) <= 393
    assert max(v for i in draw(wide, 50) for v in i.data[0] if is_palindrome(v)) > 10_000


def test_every_relation_is_drawn_equally_often():
    task = CLASSES["comparison"]()
    counts = Counter(task.solve(instance) for instance in draw(task, 600))
    assert all(150 < count < 250 for count in counts.values())
    assert len(counts) == 3


def test_distinct_faithful_comparisons_run_out_of_equal_pairs_and_wide_ones_do_not():
    def equal(mode):
        task = CLASSES["comparison"](mode=mode)
        drawn = problems(task, seed=0, split="test", count=600)
        return [i.data for i in drawn if task.solve(i) == "equal to"]

    assert len(equal("faithful")) < 50  # about 201 / 8 exist in the split
    assert 150 < len(equal("wide")) < 250


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (r"\boxed{greater than}", "greater than", "greater than"),
        (r"\boxed{\text{Less than}.}", "less than", "less than"),
        (r"\boxed{greater}", None, "greater than"),
        (r"\boxed{larger than}", None, "greater than"),
        (r"\boxed{>}", None, "greater than"),
        (r"\boxed{$<$}", None, "less than"),
        (r"\boxed{\lt}", None, "less than"),
        (r"\boxed{=}", None, "equal to"),
        (r"\boxed{Equal}", None, "equal to"),
        (r"\boxed{>=}", None, None),
        (r"\boxed{3 < 5}", None, None),
        (r"\boxed{5 is greater than 3}", None, "greater than"),
        (r"\boxed{not less than}", None, None),
        ("Answer: =", None, "equal to"),
        ("I cannot tell whether it is greater than, less than or equal to.", None, None),
        ("It is greater than or equal to 3.", None, None),
        ("Greater than\nless than\nequal to", None, None),
        ("It is not greater than 3.", None, None),
        ("It isn't less than 3.", None, None),
        ("It is no less than 3.", None, None),
        ("Is it less than 3?", None, None),
        ("Is it less than 3? No, it is greater\nthan 3.", None, "greater than"),
        ("3 is less than 5. So 5 is larger than 3.", None, "greater than"),
        ("5 is greater than 3, as 3 is less than 5.", None, None),
        ("5 equals 5.", None, "equal to"),
        (r"5 is less than 7. As \boxed{phrase}.", None, None),
        ("lesser thanks", None, None),
    ],
)
def test_ways_to_state_a_relation(text, strict, lenient):
    task = CLASSES["comparison"]()
    assert task.parse(text, "strict") == strict
    assert task.parse(text, "lenient") == lenient


def test_long_products_keep_every_digit():
    task = CLASSES["multiplication"](size=64, low=90, high=100)
    for instance in draw(task, 5):
        exact = product(numbers(instance))
        assert exact > 2**400
        assert task.correct(instance, rf"\boxed{{{exact}}}")
        assert task.correct(instance, rf"\boxed{{{exact:,}}}")
        assert not task.correct(instance, rf"\boxed{{{exact + 1}}}")
        assert not task.correct(instance, rf"\boxed{{{int(float(exact))}}}")
        assert not task.correct(instance, rf"\boxed{{{float(exact)}}}")


def of(name, *x):
    """A problem about given numbers, and its task."""
    task = CLASSES[name](size=len(x))
    return task, task.instance("", (x,), task.row.answer(x))


def test_quotients_agree_after_rounding_halves_away_from_zero():
    for a, text in ((1, "0.13"), (-1, "-0.13")):
        task, instance = of("division", a, 8)
        assert instance.example == rf"\boxed{{{text}}}"
        for right_one in (text, f"{text}0", str(a * 0.125), f"{a}/8", rf"\frac{{{a}}}{{8}}"):
            assert task.correct(instance, rf"\boxed{{{right_one}}}"), right_one
        for wrong_one in (text.replace("13", "12"), text.replace("13", "124999"), "0"):
            assert not task.correct(instance, rf"\boxed{{{wrong_one}}}")
    task, instance = of("division", 1, -1000)
    assert task.correct(instance, r"\boxed{0}")
    assert task.correct(instance, r"\boxed{-0.00}")


def test_lenient_reading_of_a_mean_takes_a_rounded_one():
    task, instance = of("mean", 1, 1, 2)
    for text in ("4/3", r"\frac{4}{3}", "1.3333333", "1 1/3"):
        assert task.check(instance, task.parse(rf"\boxed{{{text}}}", "strict")), text
    for text in ("1.33", "1.333", "1.3333"):
        assert not task.check(instance, task.parse(rf"\boxed{{{text}}}", "strict"))
        assert task.check(instance, task.parse(rf"\boxed{{{text}}}", "lenient")), text
    for text in ("1.3", "1", "1.34", "1.332", "133e-2"):
        assert not task.correct(instance, rf"\boxed{{{text}}}"), text
    assert not task.check(instance, Rounded(Fraction(10**5000), 2))
    assert not task.check(instance, Rounded("4/3", None))


def test_all_modes_are_needed_in_any_order():
    task, instance = of("mode", 3, 1, 3, 1, 2)
    for text in ("1, 3", "3,1", "{1, 3}", "[3, 1]"):
        assert task.check(instance, task.parse(rf"\boxed{{{text}}}", "strict"))
    for text in ("1", "3", "1, 2, 3", ""):
        assert not task.check(instance, task.parse(rf"\boxed{{{text}}}", "strict"))
    task, instance = of("mode", 3, 3, 2)
    assert task.check(instance, task.parse(r"\boxed{3}", "strict"))
    assert task.correct(instance, "The answer is: 3")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{-98 and -5}", {-98, -5}),
        (r"\boxed{1, 2, and 3}", {1, 2, 3}),
        (r"\boxed{-98 \& -5}", {-98, -5}),
        (r"\boxed{-98 \text{ and } -5}", {-98, -5}),
        (r"\boxed{The modes are 999 and -53}", {999, -53}),
        ("The modes are 999 and -53.", {999, -53}),
        ("The answer is: 999 and -53", {999, -53}),
        ("I looked at all 8. The modes are [999, -53].", {999, -53}),
        ("The modes are\n- 999\n- -53\n", {999, -53}),
        ("The modes are\n\n* 999 (often)\n\n* -53 (often)\n\nDone.", {999, -53}),
        ("It is 999. It stands there twice.", {999}),
        ("It is 999? Or so.", None),
        ("It is 999 or 2.5.", None),
        ("The mode of [4, 4, 7] is 4.", {4}),
        ("The numbers [4, 4, 7].", None),
        ("none", None),
    ],
)
def test_a_mode_is_never_read_alone_where_several_numbers_stand(text, found):
    task = CLASSES["mode"]()
    parsed = task.parse(text, "lenient")
    assert (None if parsed is None else set(parsed)) == found
    strict = task.parse(text, "strict")
    assert strict is None or set(strict) == found
    assert (strict is not None) is (text.startswith("\\") and "modes" not in text)


def test_expressions_and_lists_are_no_whole_number():
    task, instance = of("sum", 1, 2)
    for text in (r"\boxed{x = 3}", r"\boxed{3 apples}", "1 + 2 = 3", r"\boxed{\text{it is }3}"):
        assert task.correct(instance, text)
    for text in ("9/3", r"\frac{9}{3}", "1, 3", "1,3", "2^3", r"1 \times 3", "1 + 2, so 3"):
        assert task.parse(rf"\boxed{{{text}}}", "lenient") is None
        assert task.parse(f"The answer is: {text}", "lenient") is None


def test_fractions_without_braces_are_numbers():
    task, instance = of("mean", 1, 0)
    for text in (r"\frac12", r"\dfrac12", r"\frac 12", r"\frac{1}2"):
        assert task.check(instance, task.parse(rf"\boxed{{{text}}}", "strict")), text


@pytest.mark.parametrize("name", ["sum", "sorting", "mode", "mean", "comparison", "division"])
def test_hostile_texts_are_read_without_error(name):
    task = CLASSES[name]()
    head = task.row.question.partition("{")[0]
    pieces = ["greater than ", "less than. ", "1\n", "- 1\n", "1 and ", "[1, ", "[1,1]", "1? "]
    pieces += [head + "[", head + "1 ", "\\boxed{", "\\frac1", "\n", "answer: 1, 2\n", "\0", "²"]
    for piece in pieces:
        text = piece * ((1 << 16) // len(piece))
        for whole in (text + "\ud800", rf"\boxed{{{text}}}"):
            begin = time.monotonic()
            task.parse(whole, "lenient")
            # Quadratic scans of so much text take a minute.
            assert time.monotonic() - begin < 10, piece
    every = "".join(pieces)
    task.parse(every * ((1 << 20) // len(every)), "lenient")


def test_subtraction_is_the_second_less_the_first():
    task, instance = of("subtraction", 3, 10)
    assert task.correct(instance, r"\boxed{7}")
    assert not task.correct(instance, r"\boxed{-7}")


def test_problems_come_from_their_key_and_touch_no_global_generator():
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    for cls in TASKS:
        for mode in ("faithful", "wide"):
            task = cls(mode=mode)
            assert draw(task, 3) == draw(task, 3)
            assert draw(task, 3) != draw(task, 3, seed=1)
            assert draw(task, 3)[2] == task.generate(rng.keyed(0, "draw", 2))
            assert pickle.loads(pickle.dumps(task)) == task
            assert json.loads(json.dumps(draw(task, 1)[0].data))
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


def test_another_process_draws_the_same_problems():
    code = (
        "from whet import rng\n"
        "from whet.tasks.beyondbench import easy, medium\n"
        "for cls in (*easy.TASKS, *medium.TASKS):\n"
        "    for mode in ('faithful', 'wide'):\n"
        "        print(cls(mode=mode).generate(rng.keyed(0, 'draw', 0)))\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    from whet.tasks.beyondbench import medium

    here = [
        str(cls(mode=mode).generate(rng.keyed(0, "draw", 0)))
        for cls in (*TASKS, *medium.TASKS)
        for mode in ("faithful", "wide")
    ]
    assert other.splitlines() == here
