"""Logic grids against a reader of the printed clues and a search written here."""

import dataclasses
import itertools
import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from whet import rng
from whet.errors import OptionError
from whet.tasks.beyondbench.hard import logic_clues
from whet.tasks.beyondbench.hard.logic_grid import LogicGrid

MODES = ("faithful", "wide")
CELLS = list(itertools.product(LogicGrid.variations, MODES))


def draw(task, count, seed=0):
    return [task.generate(rng.keyed(seed, "draw", i)) for i in range(count)]


# --- what the printed text says, and what the clue data says -------------------------------------


def printed(prompt):
    """(people, values by category, clue sentences) of a prompt."""
    head, values, clues, _ = prompt.split("\n\n")
    people = re.split(r", | and ", head.partition(" each have")[0])
    lines = (line[2:].split(": ") for line in values.splitlines())
    pools = {name: listed.split(", ") for name, listed in lines}
    return people, pools, [line.partition(". ")[2] for line in clues.splitlines()[1:]]


def sentence_holds(sentence, grid, pools):
    """A clue read from its words alone; any value names its category, as none is in two."""
    of = {value: name for name, listed in pools.items() for value in listed}

    def values(text):
        return [(of[w], w) for w in re.findall(r"\w+", text) if w in of]

    person = sentence.split()[0]
    if sentence.startswith("Exactly one person"):
        low, high = map(int, re.findall(r"than (\d+)", sentence))
        said = values(sentence.partition("that person")[2])
        inside = [row for row in grid.values() if low < int(row["age"]) < high]
        return len(inside) == 1 and all(inside[0][c] == v for c, v in said)
    if sentence.startswith("The person who"):
        (a, v), (b, w) = values(sentence)
        return [row[b] for row in grid.values() if row[a] == v] == [w]
    if "older than" in sentence:
        other = sentence.rstrip(".").split()[-1]
        return int(grid[person]["age"]) > int(grid[other]["age"])
    ((category, value),) = values(sentence)
    return (grid[person][category] == value) is (" not " not in sentence)


def clue_holds(clue, grid):
    """A clue read from its data."""
    kind, *rest = clue
    if kind == "older":
        a, b = (int(grid[p]["age"]) for p in rest)
        return a > b
    if kind == "if":
        return any((r[rest[0]], r[rest[2]]) == (rest[1], rest[3]) for r in grid.values())
    if kind == "between":
        ages = {int(r["age"]): r for r in grid.values()}
        between = [a for a in ages if int(rest[0]) < a < int(rest[1])]
        return len(between) == 1 and ages[between[0]][rest[2]] == rest[3]
    found = grid[rest[0]][rest[1]] == rest[2]
    return found if kind == "is" else not found


def all_grids(people, pools, keep):
    """Every grid, one category after the other; `keep(grid, names)` prunes unfinished ones."""
    grids = [{p: {} for p in people}]
    names = []
    for name, listed in pools.items():
        names.append(name)
        grids = [
            {p: {**g[p], name: v} for p, v in zip(people, order, strict=True)}
            for g in grids
            for order in itertools.permutations(listed)
        ]
        grids = [g for g in grids if keep(g, set(names))]
    return grids


def grids_of_clues(instance):
    people, categories, clues = instance.data
    about = [
        {"age"} if c[0] == "older"
        else {c[1], c[3]} if c[0] == "if"
        else {"age", c[3]} if c[0] == "between"
        else {c[2]}
        for c in clues
    ]  # fmt: skip

    def keep(grid, names):
        ready = (c for c, a in zip(clues, about, strict=True) if a <= names)
        return all(clue_holds(c, grid) for c in ready)

    return all_grids(people, dict(categories), keep)


# --- the contract -------------------------------------------------------------------------------


@pytest.mark.parametrize(("variation", "mode"), CELLS)
def test_solutions_pass_and_are_read_back_from_their_text(variation, mode):
    task = LogicGrid(variation=variation, mode=mode)
    for i in range(50):
        instance = task.generate(rng.keyed(0, "oracle", i))
        answer = task.solve(dataclasses.replace(instance, example="", prompt="", public=""))
        verdict = task.check(instance, answer)
        assert verdict, verdict.reason
        for reading in ("strict", "lenient"):
            assert task.parse(f"{instance.prompt}\nSo:\n{task.render(answer)}", reading) == answer
        assert instance.example == task.render(answer)


@pytest.mark.parametrize(("variation", "mode"), CELLS)
def test_exactly_one_grid_obeys_the_clues(variation, mode):
    task = LogicGrid(variation=variation, mode=mode)
    for instance in draw(task, 20 if task.size == 3 else 4 if task.size == 4 else 1, seed=1):
        assert grids_of_clues(instance) == [task.solve(instance)]
        puzzle = logic_clues.Puzzle(*instance.data)
        assert len(logic_clues.solutions(puzzle, limit=3)) == 1


@pytest.mark.parametrize(("variation", "mode"), CELLS)
def test_the_words_of_every_clue_mean_what_is_encoded(variation, mode):
    task = LogicGrid(variation=variation, mode=mode)
    for n, instance in enumerate(draw(task, 6, seed=2)):
        people, pools, sentences = printed(instance.prompt)
        assert (tuple(people), tuple((c, tuple(v)) for c, v in pools.items())) == instance.data[:2]
        assert len(sentences) == len(instance.data[2]) == len(set(sentences))
        source = random.Random(n)
        for _ in range(60):
            orders = {c: source.sample(v, len(v)) for c, v in pools.items()}
            grid = {p: {c: orders[c][i] for c in pools} for i, p in enumerate(people)}
            for sentence, clue in zip(sentences, instance.data[2], strict=True):
                said = sentence_holds(sentence, grid, pools)
                assert said is clue_holds(clue, grid) is logic_clues.holds(clue, grid), sentence
        truth = task.solve(instance)
        assert all(sentence_holds(s, truth, pools) for s in sentences)


@pytest.mark.parametrize("variation", LogicGrid.variations[:2])
def test_of_all_grids_of_three_people_only_the_solution_is_accepted(variation):
    for mode in MODES:
        task = LogicGrid(variation=variation, mode=mode)
        for instance in draw(task, 10, seed=3):
            people, pools, sentences = printed(instance.prompt)
            grids = all_grids(people, pools, lambda *_: True)
            assert len(grids) == 36
            right = [all(sentence_holds(s, g, pools) for s in sentences) for g in grids]
            assert [task.check(instance, g).ok for g in grids] == right
            assert sum(right) == 1


@pytest.mark.parametrize("variation", LogicGrid.variations[2:])
def test_any_changed_cell_is_wrong(variation):
    task = LogicGrid(variation=variation)
    for instance in draw(task, 2, seed=4):
        truth = task.solve(instance)
        people, categories, _ = instance.data
        for (category, values), p in itertools.product(categories, people):
            for value in (*values, "", "cat", "21"):
                changed = {**truth, p: {**truth[p], category: value}}
                assert task.check(instance, changed).ok is (changed == truth)
            for q in people:
                swapped = {
                    **truth,
                    p: {**truth[p], category: truth[q][category]},
                    q: {**truth[q], category: truth[p][category]},
                }
                assert task.check(instance, swapped).ok is (p == q)


def test_chain_clues_speak_of_exactly_one_person_and_are_checked_as_they_read():
    instances = draw(LogicGrid(variation="size5_extreme"), 30)
    chains = [c for i in instances for c in i.data[2] if c[0] == "between"]
    assert len(chains) > 10
    for instance in instances:
        for _, low, high, category, value in (c for c in instance.data[2] if c[0] == "between"):
            ages = dict(instance.data[1])["age"]
            assert sum(int(low) < int(a) < int(high) for a in ages) == 1
            assert category != "age"
            assert value in dict(instance.data[1])[category]
    grid = {"P": {"age": "20", "pet": "cat"}, "Q": {"age": "30", "pet": "dog"}}
    grid["R"] = {"age": "40", "pet": "pony"}
    assert logic_clues.holds(("between", "20", "40", "pet", "dog"), grid)
    assert not logic_clues.holds(("between", "20", "40", "pet", "cat"), grid)
    assert not logic_clues.holds(("between", "19", "40", "pet", "dog"), grid)
    assert not logic_clues.holds(("between", "30", "40", "pet", "dog"), grid)


@pytest.mark.parametrize(("variation", "mode"), CELLS)
def test_clues_are_as_many_as_needed_and_one_is_direct(variation, mode):
    beyond, least = {"easy": (0, 4), "medium": (1, 5), "hard": (2, 6), "extreme": (3, 7)}[
        variation.partition("_")[2]
    ]
    task = LogicGrid(variation=variation, mode=mode)
    for instance in draw(task, 10, seed=5):
        people, categories, clues = instance.data
        wanted = max(len(people) + beyond, least)
        assert len(people) == task.size == len(categories) + 1
        assert len(clues) >= wanted
        assert any(c[0] == "is" for c in clues)
        kinds = {c[0] for c in clues}
        assert not kinds & {"older", "between"} or "age" in dict(categories)
        if len(clues) == wanted:
            continue
        for clue in clues:
            rest = tuple(c for c in clues if c != clue)
            if any(c[0] == "is" for c in rest):
                found = logic_clues.solutions(logic_clues.Puzzle(people, categories, rest))
                assert len(found) == 2, "a clue that can be missed was kept"


def test_puzzles_of_four_people_are_all_different():
    for variation in LogicGrid.variations[2:5]:
        made = draw(LogicGrid(variation=variation), 60)
        assert len({i.prompt for i in made}) == 60
        assert len({i.key for i in made}) == 60


def test_values_belong_to_one_category_and_names_are_no_values():
    values = [v for c in logic_clues.CATEGORIES.values() for v in c.values]
    assert len({v.casefold() for v in values}) == len(values) == 90
    for mode in MODES:
        for instance in draw(LogicGrid(variation="size5_hard", mode=mode), 40):
            people = instance.data[0]
            assert len(set(people)) == 5
            assert not {p.casefold() for p in people} & {v.casefold() for v in values}


def test_the_printed_order_does_not_give_the_solution_away():
    hits = cells = 0
    for instance in draw(LogicGrid(variation="size5_medium"), 60):
        truth = LogicGrid(variation="size5_medium").solve(instance)
        people, categories, _ = instance.data
        for name, values in categories:
            hits += sum(truth[p][name] == v for p, v in zip(people, values, strict=True))
            cells += 5
    assert 0.14 < hits / cells < 0.26


def test_other_names_have_the_same_solution():
    for variation in LogicGrid.variations:
        task = LogicGrid(variation=variation)
        instance = draw(task, 1, seed=7)[0]
        people, categories, clues = instance.data
        names = dict(zip(people, ("Ulla", "Vera", "Walt", "Xeno", "Yuri"), strict=False))
        renamed = dataclasses.replace(
            instance,
            data=(
                tuple(names[p] for p in people)[::-1],
                tuple((c, v[::-1]) for c, v in categories[::-1]),
                tuple(tuple(names.get(x, x) for x in clue) for clue in clues[::-1]),
            ),
        )
        expected = {names[p]: row for p, row in task.solve(instance).items()}
        assert task.solve(renamed) == expected
        assert task.check(renamed, expected)
        assert not task.check(renamed, task.solve(instance))


def test_answers_of_other_types_are_wrong_and_raise_nothing():
    for variation in LogicGrid.variations:
        task = LogicGrid(variation=variation)
        instance = draw(task, 1)[0]
        truth = task.solve(instance)
        first = next(iter(truth))
        whole = [
            dict.fromkeys(truth),
            {p: list(r) for p, r in truth.items()},
            {p: dict.fromkeys(r) for p, r in truth.items()},
            {p: {c: [v] for c, v in r.items()} for p, r in truth.items()},
            {p: dict(enumerate(r.values())) for p, r in truth.items()},
            {p: {**r, "more": "1"} for p, r in truth.items()},
            {p: r for p, r in truth.items() if p != first},
            {**truth, "More": truth[first]},
            {**truth, first.upper(): truth[first]},
        ]
        single = [None, True, 3, 1.5, "", "Alice", [], {}, {1: 2}, {first: None}, object()]
        strange = [*whole, *single, list(truth), [truth], set(truth), task.render(truth)]
        for answer in strange:
            verdict = task.check(instance, answer)
            assert not verdict
            assert verdict.reason
        loud = {p.upper(): {c.upper(): v.upper() for c, v in r.items()} for p, r in truth.items()}
        assert task.check(instance, loud)


def test_problems_come_from_their_key_in_any_process_and_leave_global_randomness_alone():
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), str(np.random.get_state())
    here = prompts()
    assert before == (random.getstate(), str(np.random.get_state()))
    assert here == prompts()
    there = subprocess.run(
        [sys.executable, "-c", f"import json; from {__name__} import prompts; "
         "print(json.dumps(prompts()))"],
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONHASHSEED": "7"},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert json.loads(there.stdout) == here


def prompts():
    """The prompt, data and example of index 7 of every cell, made alone."""
    made = (LogicGrid(variation=v, mode=m).generate(rng.keyed(3, "k", 7)) for v, m in CELLS)
    return [[i.prompt, i.public, i.example] for i in made]


def test_settings_and_spaces():
    assert LogicGrid(variation="size5_extreme").size == 5
    with pytest.raises(OptionError, match="size=4 is impossible, it must be 3"):
        LogicGrid(variation="size3_easy", size=4)
    for variation, mode in CELLS:
        space = LogicGrid(variation=variation, mode=mode).log10_space()
        assert space > (20 if mode == "wide" else 9)


def test_contradicting_clues_have_no_grid():
    instance = draw(LogicGrid(), 1)[0]
    people, categories, _ = instance.data
    name, values = categories[0]
    clues = tuple(("is", p, name, values[0]) for p in people[:2])
    assert logic_clues.solutions(logic_clues.Puzzle(people, categories, clues)) == []
    ages = (("age", ("20", "30", "40")),)
    wide = (("between", "10", "50", "age", "30"),)
    assert logic_clues.solutions(logic_clues.Puzzle(people, ages, wide)) == []
    free = logic_clues.solutions(logic_clues.Puzzle(people, ages, ()), limit=10)
    assert len(free) == 6


def test_a_missing_solver_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysat.solvers", None)
    with pytest.raises(OptionError, match=r"needs python-sat, from the extra whet\[solvers\]"):
        draw(LogicGrid(), 1)


# --- reading ------------------------------------------------------------------------------------

GRID = {"Anna": {"pet": "cat", "age": "21"}, "Ben": {"pet": "dog", "age": "26"}}
LINES = "Anna: [pet: cat, age: 21]\nBen: [pet: dog, age: 26]"
TABLE = "| Name | pet | age |\n|---|:-:|---|\n| Anna | cat | 21 |\n| **Ben** | dog | 26 |"


@pytest.mark.parametrize(
    "text",
    [
        f"\\boxed{{\n{LINES}\n}}",
        f"$\\boxed{{{LINES}}}$ and that is all",
        "\\boxed{Anna: [pet: cat, age: 21], Ben: [pet: dog, age: 26]}",
        "\\boxed{Anna: [pet: cat, age: 21] \\\\ Ben: [pet: dog, age: 26]}",
        "\\boxed{\\text{Anna: [pet: cat, age: 21]}\\\\\n\\text{Ben: [pet: dog, age: 26]}}",
        "\\boxed{\n1. **Anna**: [pet: cat, age: 21]\n2. **Ben:** [pet: dog, age: 26]\n}",
        f"\\boxed{{Zoe: [a: b]}} sorry: \\boxed{{{LINES}}}",
        f"\\boxed{{\n{TABLE}\n}}",
    ],
)
def test_boxed_grids_are_read(text):
    for reading in ("strict", "lenient"):
        assert LogicGrid().parse(text, reading) == GRID


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        f"My work: [see above]\n{LINES}\nThat is it.",
        f"Anna: [pet: dog, age: 21]\nBen: [pet: cat, age: 26]\nNo, rather\n{LINES}",
        f"Here:\n\n{TABLE}\n\nDone.",
        f"\\boxed{{I found {LINES}}}",
        f"**Answer:**\n{LINES}",
    ],
)
def test_grids_in_running_text_are_read_leniently_only(text):
    assert LogicGrid().parse(text, "strict") is None
    assert LogicGrid().parse(text) == GRID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Anna has a cat",
        "[1, 2]",
        "\\boxed{Anna}",
        "Anna: [cat, 21]",
        "Anna: [pet: cat, pet: dog]",
        "| a |",
        "| a | b |",
        "| Name | pet | pet |\n| Anna | cat | dog |",
        "| Name | pet |\n| Anna | cat | dog |",
    ],
)
def test_texts_without_a_grid_are_unread(text):
    assert LogicGrid().parse(text) is None


@pytest.mark.parametrize(
    "part",
    ["[", "]", "a: [b: c]\n", "a: [b: c] ", "|", "| a ", "|a|b|\n", "\n", "\\boxed{", "x: ["],
)
def test_endless_texts_are_read_without_raising(part):
    text = part * ((1 << 20) // len(part))
    LogicGrid().parse(text)
    LogicGrid().parse(f"\\boxed{{{text}}}", "strict")
