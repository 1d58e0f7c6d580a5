"""Word sums, matrix chains, congruences and project choice against predicates written here."""

import dataclasses
import fractions
import functools
import itertools
import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import sympy

from whet import rng
from whet.errors import OptionError
from whet.tasks.beyondbench.hard import modular, optimization
from whet.tasks.beyondbench.hard.cryptarithmetic import COUNTED, Cryptarithmetic, solutions
from whet.tasks.beyondbench.hard.matrix_chain import MatrixChain, cheapest
from whet.tasks.beyondbench.hard.modular import ModularSystems
from whet.tasks.beyondbench.hard.optimization import ConstraintOptimization

TASKS = (Cryptarithmetic, MatrixChain, ModularSystems, ConstraintOptimization)
MODES = ("faithful", "wide")
CELLS = [(cls, v, mode) for cls in TASKS for v in cls.variations for mode in MODES]
IDS = [f"{cls.id}-{v}-{mode}" for cls, v, mode in CELLS]


def draw(task, count, seed=0):
    return [task.generate(rng.keyed(seed, "draw", i)) for i in range(count)]


def with_data(task, data):
    """An instance with chosen data."""
    return dataclasses.replace(draw(task, 1)[0], data=data)


# --- the contract -------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "variation", "mode"), CELLS, ids=IDS)
def test_solutions_pass_and_are_read_back_from_their_text(cls, variation, mode):
    sizes = cls.default_sizes(variation, mode)
    tasks = [cls(variation=variation, size=size, mode=mode) for size in sizes]
    for i in range(50):
        task = tasks[i % len(tasks)]
        instance = task.generate(rng.keyed(0, "oracle", i))
        answer = task.solve(dataclasses.replace(instance, example="", prompt="", public=""))
        verdict = task.check(instance, answer)
        assert verdict, verdict.reason
        for reading in ("strict", "lenient"):
            assert task.parse(f"So it is\n{task.render(answer)}\nDone.", reading) == answer
        assert i >= 5 or task.correct(instance, instance.example)
        assert instance.data == to_tuples(json.loads(json.dumps(instance.data)))


def to_tuples(value):
    return tuple(map(to_tuples, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("cls", TASKS[1:], ids=lambda cls: cls.id)
def test_the_largest_sizes_work(cls):
    for mode, variation in itertools.product(MODES, cls.variations):
        size = cls.allowed_sizes(variation, mode)[-1]
        task = cls(variation=variation, mode=mode, size=size)
        instance = draw(task, 1)[0]
        assert task.check(instance, task.solve(instance))
        assert 8 < task.log10_space() < 1000


@pytest.mark.parametrize("cls", TASKS, ids=lambda cls: cls.id)
def test_answers_of_other_types_are_wrong_and_raise_nothing(cls):
    strange = [None, True, 1.5, "", "3", b"3", [], [None], [[0]], ["0"], [True], [0, 0], {}, set(),
               {"A": "1"}, {1: 2}, object(), math.nan, -1, 10**5000, -(10**5000), [10**5000], [-1],
               {"A": 10**5000}, (x for x in ()), float, fractions.Fraction(1, 2)]  # fmt: skip
    for variation in cls.variations:
        task = cls(variation=variation)
        for instance in draw(task, 2):
            right = task.solve(instance)
            wrapped = [
                [right],
                {"answer": right},
                str(right),
                float(right) if cls in TASKS[1:3] else 0,
            ]
            for answer in (*strange, *wrapped):
                verdict = task.check(instance, answer)
                assert not verdict
                assert verdict.reason


def test_problems_come_from_their_key_in_any_process_and_leave_global_randomness_alone():
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()
    here = prompts()
    after = random.getstate(), np.random.get_state()
    assert before[0] == after[0]
    assert str(before[1]) == str(after[1])
    assert here == prompts()
    code = f"from {__name__} import prompts; import json; print(json.dumps(prompts()))"
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(there.stdout) == here


def prompts():
    """The prompt, data and example of index 7 of every cell, made alone."""
    made = (cls(variation=v, mode=m).generate(rng.keyed(3, "k", 7)) for cls, v, m in CELLS)
    return [[i.prompt, i.public, i.example] for i in made]


def test_every_cell_has_more_problems_than_can_be_published_in_wide_mode():
    for cls, variation, mode in CELLS:
        for size in cls.default_sizes(variation, mode):
            space = cls(variation=variation, mode=mode, size=size).log10_space()
            assert space > (15 if mode == "wide" else 3), (variation, mode, size)


def test_problems_of_wide_mode_do_not_repeat():
    for cls, variation, mode in CELLS:
        if cls in (MatrixChain, ModularSystems) and mode == "wide":
            made = draw(cls(variation=variation, mode=mode), 200)
            assert len({i.key for i in made}) == 200


@pytest.mark.parametrize(
    ("cls", "setting", "why"),
    [
        (Cryptarithmetic, {"size": 4}, "size=4 is impossible, it must be 3"),
        (MatrixChain, {"size": 2}, "from 3 to 20"),
        (ModularSystems, {"size": 6}, "from 2 to 5"),
        (ModularSystems, {"size": 13, "mode": "wide"}, "from 2 to 12"),
        (ConstraintOptimization, {"size": 21}, "from 3 to 20"),
        (MatrixChain, {"variation": "rising"}, "has no variation 'rising'"),
    ],
)
def test_impossible_settings_are_refused(cls, setting, why):
    with pytest.raises(OptionError, match=why):
        cls(**setting)


@pytest.mark.parametrize("cls", TASKS, ids=lambda cls: cls.id)
@pytest.mark.parametrize(
    "part",
    ["{", "[", "<answer>", "answer: ", "1,", "A=1 ", '{"A": 1,', "{}"],
)
def test_endless_texts_are_read_without_raising(cls, part):
    text = part * ((1 << 20) // len(part))
    cls().parse(text)
    cls().parse(f"<answer>{text}</answer>", "strict")


# --- word sums ----------------------------------------------------------------------------------


def valid_word_sum(sign, words, digits):
    """By the meaning of the printed equation, in exact fractions."""
    letters = set("".join(words)) - {"-"}
    if set(digits) != letters or len(set(digits.values())) < len(letters):
        return False
    if any(digits[w.lstrip("-")[0]] == 0 for w in words):
        return False
    table = {ord(c): str(d) for c, d in digits.items()}
    p, q, r = (fractions.Fraction(int(w.translate(table))) for w in words)
    return {"+": p + q, "-": p - q, "*": p * q, "/": p / q}[sign] == r


SMALL_SUMS = [
    ("+", "AB", "BA", "CBC"),
    ("+", "AB", "CD", "EA"),
    ("+", "A", "B", "CD"),
    ("+", "ABC", "ABC", "DBE"),
    ("+", "AB", "A", "BBB"),
    ("-", "ABA", "CC", "DB"),
    ("-", "AB", "CD", "-DE"),
    ("-", "ABC", "CBA", "DBE"),
    ("*", "AB", "C", "DE"),
    ("*", "AB", "AC", "DEB"),
    ("*", "AA", "B", "CCD"),
    ("/", "ABCD", "BA", "EB"),
    ("/", "ABC", "D", "AE"),
    ("/", "AB", "CDE", "A"),
]


@pytest.mark.parametrize(("sign", "left", "right", "result"), SMALL_SUMS)
def test_the_accepted_assignments_are_all_valid_ones(sign, left, right, result):
    name = next(k for k in ("addition", "subtraction", "multiplication", "division")
                if Cryptarithmetic(variation=f"{k}_medium").sign == sign)  # fmt: skip
    task = Cryptarithmetic(variation=f"{name}_medium")
    words = (left, right, result)
    instance = with_data(task, (sign, *words, 1))
    letters = sorted(set("".join(words)) - {"-"})
    valid = []
    for values in itertools.product(range(10), repeat=len(letters)) if len(letters) < 5 else (
        itertools.permutations(range(10), len(letters))
    ):  # fmt: skip
        digits = dict(zip(letters, values, strict=True))
        expected = valid_word_sum(sign, words, digits)
        if expected or hash(values) % 8 == 0:
            assert task.check(instance, digits).ok is expected, digits
        valid += [digits] * expected
    found = list(solutions(sign, *words))
    assert len(found) == len(valid)
    assert all(digits in valid for digits in found)


@pytest.mark.parametrize("variation", Cryptarithmetic.variations)
def test_changed_assignments_are_right_exactly_when_they_solve_the_printed_equation(variation):
    refused = 0
    for mode in MODES:
        task = Cryptarithmetic(variation=variation, mode=mode)
        for instance in draw(task, 4, seed=2):
            line = instance.prompt.split("\n\n")[1]
            left, sign, right, _, result = line.split()
            assert sign == task.sign
            truth = task.parse(instance.example)
            assert valid_word_sum(sign, (left, right, result), truth)
            free = sorted(set(range(10)) - set(truth.values()))
            changed = [
                {**truth, a: truth[b], b: truth[a]} for a, b in itertools.combinations(truth, 2)
            ]
            changed += [{**truth, a: d} for a in truth for d in (*free, (truth[a] + 1) % 10)]
            changed += [{k: v for k, v in truth.items() if k != a} for a in truth]
            changed += [{**truth, "?": 1}, {k.lower(): v for k, v in truth.items()}]
            for digits in changed:
                ok = task.check(instance, digits).ok
                assert ok is valid_word_sum(sign, (left, right, result), digits)
                refused += not ok
    assert refused > 100


def test_words_have_the_lengths_of_their_level_and_the_recorded_ambiguity():
    for variation in Cryptarithmetic.variations:
        operation, _, level = variation.partition("_")
        n = {"medium": 3, "hard": 4, "extreme": 5}[level]
        for instance in draw(Cryptarithmetic(variation=variation), 5):
            sign, left, right, result, count = instance.data
            words = (right, result) if operation == "division" else (left, right)
            assert [len(w) for w in words] == [n, n - (operation == "division")]
            assert set("".join(instance.data[1:4])) <= set("ABCDEFGHIJ")
            found = list(itertools.islice(solutions(sign, left, right, result), COUNTED))
            assert count == len(found) == len({tuple(sorted(s.items())) for s in found})


def test_a_difference_is_signed_as_printed():
    task = Cryptarithmetic(variation="subtraction_medium")
    instance = with_data(task, ("-", "AB", "CD", "EF", 1))
    truth = {"A": 3, "B": 5, "C": 1, "D": 2, "E": 2, "F": 3}
    assert not task.check(instance, truth)  # two letters share a digit
    right = next(solutions("-", "AB", "CD", "EF"))
    assert task.check(instance, right)
    swapped = {**right, "A": right["C"], "B": right["D"], "C": right["A"], "D": right["B"]}
    assert not task.check(instance, swapped)
    negative = with_data(task, ("-", "AB", "CD", "-EF", 1))
    assert task.check(negative, swapped)
    assert not task.check(negative, right)
    wide = draw(dataclasses.replace(task, mode="wide"), 30)
    signs = {i.data[3].startswith("-") for i in wide}
    assert signs == {True, False}


def test_other_letters_have_the_same_solutions():
    for variation in Cryptarithmetic.variations[::3]:
        task = Cryptarithmetic(variation=variation)
        instance = draw(task, 1, seed=5)[0]
        names = dict(zip("ABCDEFGHIJ", "QWERTYUIOP", strict=True))
        renamed = with_data(
            task, (task.sign, *("".join(names.get(c, c) for c in w) for w in instance.data[1:4]), 0)
        )
        for digits in itertools.islice(solutions(*instance.data[:4]), 50):
            assert task.check(renamed, {names[k]: v for k, v in digits.items()})
        assert (
            sum(1 for _ in itertools.islice(solutions(*renamed.data[:4]), COUNTED))
            == (instance.data[4])
        )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<answer>{"A": 1, "B": 2}</answer>', {"A": 1, "B": 2}),
        ("<answer>A=1, b=2</answer>", {"A": 1, "B": 2}),
        ("<answer>A: 1\nB: 2</answer>", {"A": 1, "B": 2}),
        ('<answer>{"A": "1"}</answer> no: <answer>{"A": 2}</answer>', {"A": 2}),
        ("<answer>{'A': 12}</answer>", None),
        ("<answer>{'AB': 1}</answer>", None),
        ("<answer>{'A': 1, 'a': 2}</answer>", None),
        ("<answer>{'A': -1}</answer>", None),
        ("", None),
    ],
)
def test_assignments_are_read_strictly(text, found):
    assert Cryptarithmetic().parse(text, "strict") == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I get {A: 1, B: 2} then {A: 3, B: 4}.", {"A": 3, "B": 4}),
        ("First A = 5. But no: A = 1 and B = 2", {"A": 1, "B": 2}),
        ('Answer: {"A": 7}', {"A": 7}),
        ("no idea", None),
    ],
)
def test_assignments_are_read_from_running_text(text, found):
    assert Cryptarithmetic().parse(text) == found
    assert Cryptarithmetic().parse(text, "strict") is None


# --- matrix chains ------------------------------------------------------------------------------


def cheapest_by_recursion(dims):
    @functools.cache
    def cost(i, j):
        if j - i == 1:
            return 0
        return min(cost(i, k) + cost(k, j) + dims[i] * dims[k] * dims[j] for k in range(i + 1, j))

    return cost(0, len(dims) - 1)


def cheapest_of_all_orders(dims):
    """Remove inner dimensions in every order: each removal is one product."""
    if len(dims) == 2:
        return 0
    return min(
        dims[i - 1] * dims[i] * dims[i + 1] + cheapest_of_all_orders(dims[:i] + dims[i + 1 :])
        for i in range(1, len(dims) - 1)
    )


@pytest.mark.parametrize("variation", MatrixChain.variations)
def test_the_cheapest_product_is_that_of_a_recursion_and_of_all_orders(variation):
    for mode, size in itertools.product(MODES, (3, 4, 6, 12, 20)):
        task = MatrixChain(variation=variation, size=size, mode=mode)
        for instance in draw(task, 4):
            (dims,) = instance.data
            best = cheapest_by_recursion(dims)
            if size <= 6:
                assert best == cheapest_of_all_orders(dims)
            assert [task.check(instance, best + d).ok for d in (-1, 0, 1)] == [False, True, False]
            assert not task.check(instance, best / 1)
            # What a prompt shows is what is computed.
            shown = [line.split() for line in instance.prompt.split("\n\n")[1].splitlines()]
            assert [int(w[2]) for w in shown] == list(dims[:-1])
            assert [int(w[4]) for w in shown] == list(dims[1:])


def test_known_matrix_chain():
    # The example of Cormen et al., section 15.2.
    assert cheapest((30, 35, 15, 5, 10, 20, 25)) == 15125


def test_a_reversed_chain_costs_the_same():
    for instance in draw(MatrixChain(size=9, mode="wide"), 20):
        (dims,) = instance.data
        assert cheapest(dims) == cheapest(dims[::-1])


def test_dimensions_follow_their_pattern():
    for size in (3, 8):
        for mode in MODES:
            for i in draw(MatrixChain(variation="increasing", size=size, mode=mode), 20):
                assert list(i.data[0]) == sorted(set(i.data[0]))
            for i in draw(MatrixChain(variation="decreasing", size=size, mode=mode), 20):
                assert list(i.data[0]) == sorted(i.data[0], reverse=True)
        for i in draw(MatrixChain(variation="sparse", size=size), 20):
            assert sum(80 <= d <= 120 for d in i.data[0]) == 2
            assert sum(1 <= d <= 15 for d in i.data[0]) == size - 1
        for i in draw(MatrixChain(variation="mixed", size=size), 20):
            assert sum(d >= 50 for d in i.data[0]) == (size + 2) // 2
            assert all(d <= 10 or 50 <= d <= 100 for d in i.data[0])
        assert all(
            min(i.data[0]) >= 1 for i in draw(MatrixChain(variation="decreasing", size=20), 9)
        )


def test_chain_spaces_are_counted():
    falls = {
        tuple(itertools.accumulate(steps, lambda v, s: max(1, v - s), initial=start))
        for start in range(5, 21)
        for steps in itertools.product(range(3, 9), repeat=4)
    }
    from whet.tasks.beyondbench.hard.matrix_chain import _falling

    assert _falling((5, 20), (3, 8), 4) == len(falls)
    task = MatrixChain(variation="decreasing", size=3)
    assert task.log10_space() == pytest.approx(math.log10(51 * 6**3))
    assert MatrixChain(variation="decreasing", size=20).log10_space() < math.log10(51 * 6.0**20)
    assert MatrixChain(variation="random").log10_space() == pytest.approx(math.log10(96**4))
    mixed = math.comb(4, 2) * 10**2 * 51**2
    assert MatrixChain(variation="mixed").log10_space() == pytest.approx(math.log10(mixed))


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("<answer>1,234</answer>", 1234, 1234),
        ("<answer>12345678901234567891</answer>", 12345678901234567891, 12345678901234567891),
        ("5 x 4 gives 20, so the least is 60.", None, 60),  # fewer than four digits
        ("<answer>about 700</answer>", None, 700),
        ("<answer>5</answer> wait <answer>6</answer>", 6, 6),
        ("none", None, None),
    ],
)
def test_numbers_are_read(text, strict, lenient):
    for task in (MatrixChain(), ModularSystems()):
        assert task.parse(text, "strict") == strict
        assert task.parse(text) == lenient


# --- congruences --------------------------------------------------------------------------------


def satisfies(data, x):
    moduli, remainders, conditions = data
    if any((x - r) % m for m, r in zip(moduli, remainders, strict=True)):
        return False
    for name, *values in conditions:
        if name == "prime" and not sympy.isprime(x):
            return False
        if name == "multiple" and x % values[0]:
            return False
        if name == "between" and (x <= values[0] or x >= values[1]):
            return False
    return x > 0


@pytest.mark.parametrize("variation", ModularSystems.variations)
def test_the_accepted_number_is_the_first_of_a_scan(variation):
    task = ModularSystems(variation=variation)
    for instance in draw(task, 25):
        first = next(x for x in itertools.count(1) if satisfies(instance.data, x))
        assert task.solve(instance) == first
        for x in (*range(max(1, first - 60), first + 60), first + math.prod(instance.data[0])):
            assert task.check(instance, x).ok is (x == first)
        assert not task.check(instance, -first)
        assert not task.check(instance, first - math.prod(instance.data[0]))


@pytest.mark.parametrize("variation", ModularSystems.variations)
@pytest.mark.parametrize("size", [2, 5, 12])
def test_in_wide_mode_nothing_smaller_satisfies_the_system(variation, size):
    task = ModularSystems(variation=variation, size=size, mode="wide")
    for instance in draw(task, 6):
        moduli, _, conditions = instance.data
        assert len(set(moduli)) == size
        assert all(map(sympy.isprime, moduli))
        x = task.solve(instance)
        assert satisfies(instance.data, x)
        step = math.prod(moduli)
        # Everything with these remainders below x fails another condition.
        assert not any(satisfies(instance.data, y) for y in range(x - step, 0, -step)[:3000])
        assert not task.check(instance, x + step)
        assert any(c[0] == "between" for c in conditions) is (variation in ("range", "mixed"))


def test_the_order_of_equations_does_not_matter():
    for variation in ModularSystems.variations:
        task = ModularSystems(variation=variation, size=4)
        for instance in draw(task, 10):
            moduli, remainders, conditions = instance.data
            turned = with_data(task, (moduli[::-1], remainders[::-1], conditions[::-1]))
            assert task.solve(turned) == task.solve(instance)
            assert task.check(turned, task.solve(instance))


def test_an_answer_that_is_printed_in_the_problem_counts():
    task = ModularSystems()
    instance = with_data(task, ((5, 7), (3, 3), ()))
    assert task.correct(instance, "<answer>3</answer>")
    assert task.correct(instance, "x is 3")
    assert not task.correct(instance, "<answer>38</answer>")
    assert task.correct(with_data(task, ((5, 7), (0, 5), ())), "5")


def test_systems_without_solution_are_seen():
    assert modular.smallest((4, 6), (1, 2), ()) is None
    assert modular.smallest((4, 6), (1, 3), ()) == 9
    assert modular.smallest((5, 7), (0, 3), (("prime",),)) is None
    assert modular.smallest((5, 7), (0, 5), (("prime",),)) == 5
    assert modular.smallest((5, 7), (1, 3), (("between", 40, 66),)) is None
    assert modular.smallest((5, 7), (1, 3), (("between", 31, 67),)) == 66
    assert modular.smallest((3,), (1,), (("multiple", 6),)) is None
    assert modular.smallest((3, 5), (0, 0), ()) == 15
    assert modular.smallest((2, 3), (1, 2), (("prime",), ("between", 5, 12))) == 11


def test_primes_are_proven():
    assert [n for n in range(-5, 10_000) if modular.is_prime(n)] == list(sympy.primerange(10_000))
    assert modular.primes_below(1000) == tuple(sympy.primerange(1000))
    # Strong pseudoprimes to the first 9, 11 and 12 prime bases.
    for n in (3825123056546413051, 318665857834031151167461):
        assert not modular.is_prime(n)
    assert modular.is_prime(2**61 - 1)
    assert not modular.is_prime((2**31 - 1) * (2**41 - 21))


def test_systems_are_counted():
    task = ModularSystems(variation="basic", size=2)
    primes = list(sympy.primerange(50))
    count = sum(p * q for p, q in itertools.combinations(primes, 2))
    assert task.log10_space() == pytest.approx(math.log10(count))
    assert ModularSystems(variation="range").log10_space() <= math.log10(count)


# --- choosing projects --------------------------------------------------------------------------


def allowed(data, chosen):
    """The rules, in fractions."""
    limits, projects, min_quality, max_risk, min_count, needs = data
    picked = [projects[i] for i in chosen]
    if not picked or len(picked) < min_count:
        return False
    if any(sum(p[c] for p in picked) > limits[c] for c in range(3)):
        return False
    quality = fractions.Fraction(sum(p[4] for p in picked), len(picked))
    risk = fractions.Fraction(sum(p[5] for p in picked), len(picked))
    if min_quality is not None and quality < fractions.Fraction(min_quality, 10):
        return False
    if max_risk is not None and risk > fractions.Fraction(max_risk, 10):
        return False
    return all(j in chosen for i, j in needs if i in chosen)


def subsets(n):
    return [list(c) for k in range(n + 1) for c in itertools.combinations(range(n), k)]


def profits(data):
    """Profit of every allowed selection."""
    return {
        tuple(c): sum(data[1][i][3] for i in c) for c in subsets(len(data[1])) if allowed(data, c)
    }


@pytest.mark.parametrize("variation", ConstraintOptimization.variations)
@pytest.mark.parametrize("mode", MODES)
def test_every_best_selection_is_accepted_and_no_other(variation, mode):
    for size in (3, 4):
        task = ConstraintOptimization(variation=variation, size=size, mode=mode)
        for instance in draw(task, 2):
            reached = profits(instance.data)
            most = max(reached.values())
            for chosen in subsets(size):
                verdict = task.check(instance, chosen[::-1])
                profit = reached.get(tuple(chosen))
                assert verdict.ok is (profit == most)
                near = None if profit is None else float(profit >= 0.95 * most)
                assert verdict.extra.get("near_optimal") == near


@pytest.mark.parametrize("variation", ConstraintOptimization.variations)
@pytest.mark.parametrize("mode", MODES)
def test_the_optimum_is_that_of_all_selections(variation, mode):
    for size in (5, 7, 9, 10):
        task = ConstraintOptimization(variation=variation, size=size, mode=mode)
        for instance in draw(task, 3 if size < 10 else 1, seed=4):
            chosen = task.solve(instance)
            reached = profits(instance.data)
            assert reached[tuple(chosen)] == max(reached.values())


def test_ties_are_all_right_and_nearly_best_is_wrong_but_noted():
    task = ConstraintOptimization()
    project = (100, 10, 5, 400, 8, 2)
    data = ((150, 50, 50), (project, project, (100, 10, 5, 381, 8, 2), (1, 1, 1, 10, 6, 1)),
            None, None, 1, ())  # fmt: skip
    instance = with_data(task, data)
    assert task.check(instance, [0, 3])
    assert task.check(instance, [3, 1])
    near = task.check(instance, [2, 3])
    assert not near
    assert near.extra == {"near_optimal": 1.0}
    assert task.check(instance, [3]).extra == {"near_optimal": 0.0}
    assert not task.check(instance, [3]).ok


@pytest.mark.parametrize("answer", [[], [0, 99], [-1], [0, 0], [4], [0, 1.0], ["0"]])
def test_unknown_numbers_are_not_dropped_and_nothing_is_not_a_choice(answer):
    task = ConstraintOptimization(size=4)
    data = (
        (9999, 999, 99),
        ((1, 1, 1, 5, 9, 1), *((10**5, 1, 1, 9, 9, 1),) * 3),
        None,
        None,
        1,
        (),
    )
    instance = with_data(task, data)
    assert task.check(instance, [0])
    verdict = task.check(instance, answer)
    assert not verdict
    assert not verdict.extra


def test_rules_are_printed_once_and_mean_what_is_checked():
    for mode, variation in itertools.product(MODES, ConstraintOptimization.variations):
        for size in (3, 4, 7):
            task = ConstraintOptimization(variation=variation, size=size, mode=mode)
            instance = draw(task, 1)[0]
            limits, projects, min_quality, max_risk, min_count, needs = instance.data
            lines = [line for line in instance.prompt.splitlines() if line]
            assert len(set(lines)) == len(lines)
            rules = [line for line in lines if line.startswith("- ")]
            numbers = [[float(w) for w in r.split() if w[0].isdigit()] for r in rules]
            expected = [[x] for x in limits] + [[]]
            expected += [[q / 10] for q in (min_quality, max_risk) if q is not None]
            expected += [list(pair) for pair in needs]
            assert numbers == expected
            assert ("at least two" in rules[3]) is (min_count == 2)
            assert len(set(needs)) == len(needs)
            assert all(i != j and max(i, j) < size for i, j in needs)
            assert ("quality" in instance.prompt.split("rules")[1]) is (min_quality is not None)
            assert ("risk" in instance.prompt.split("rules")[1]) is (max_risk is not None)
            shown = [line.split(":")[1] for line in lines if line.startswith("Project ")]
            assert [[int(p.split()[-1]) for p in s.split(",")] for s in shown] == [
                list(p) for p in projects
            ]


def test_dependencies_are_those_of_the_suite():
    needs = {n: draw(ConstraintOptimization(variation="dependency", size=n), 1)[0].data[5]
             for n in (3, 4, 5)}  # fmt: skip
    assert needs == {
        3: ((1, 0), (2, 0)),
        4: ((1, 0), (3, 0), (3, 2)),
        5: ((1, 0), (3, 2), (4, 0), (4, 2)),
    }


def test_renumbered_projects_have_renumbered_answers():
    for variation in ConstraintOptimization.variations:
        task = ConstraintOptimization(variation=variation, size=4, mode="wide")
        instance = draw(task, 1, seed=6)[0]
        limits, projects, *bounds, needs = instance.data
        new = [2, 0, 3, 1]  # the new number of each project
        moved = tuple(projects[new.index(i)] for i in range(4))
        renamed = tuple((new[i], new[j]) for i, j in needs)
        other = with_data(task, (limits, moved, *bounds, renamed))
        for chosen in subsets(4):
            there = task.check(other, [new[i] for i in chosen])
            assert there.ok is task.check(instance, chosen).ok


def test_no_allowed_selection_is_seen():
    rules = optimization.Rules((10, 10, 10), ((11, 1, 1, 1, 1, 1),) * 3)
    assert optimization.best(rules) is None


def test_a_missing_solver_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(OptionError, match=r"needs highspy, from the extra whet\[solvers\]"):
        draw(ConstraintOptimization(), 1)


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("<answer>[0, 2]</answer>", [0, 2], [0, 2]),
        ("<answer>0, 2</answer>", [0, 2], [0, 2]),
        ("<answer>[0, 2]</answer> or <answer>[1]</answer>", [1], [1]),
        ("I choose [0, 1], no, [1, 2].", None, [1, 2]),
        ("<answer>none</answer>", None, None),
    ],
)
def test_selections_are_read(text, strict, lenient):
    task = ConstraintOptimization()
    assert task.parse(text, "strict") == strict
    assert task.parse(text) == lenient
