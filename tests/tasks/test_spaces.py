"""Problems of tasks whose spaces are small: listed, shuffled by the seed, for evaluation only."""

import itertools
import math

import pytest

from whet import rng
from whet.errors import InputError
from whet.evaluate.runner import draw_limited, draw_problems
from whet.tasks import evaluation_only, get_task, problems, split_of
from whet.tasks.base import EVALUATION_ONLY, size_of_space
from whet.tasks.registry import select
from whet.zoo.training import TaskRecipe

SMALL = "fibonacci_sequence:variation=tribonacci"  # 27 problems
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def faithful():
    """Every cell of the suite as the paper has it."""
    return select(["beyondbench"]).tasks


def keys(task, **settings):
    return [i.key for i in problems(task, split="test", **{"seed": 0, **settings})]


def test_a_space_is_small_under_a_thousand_problems(faithful):
    assert 10**EVALUATION_ONLY == 1000
    small = [t for t in faithful if evaluation_only(t)]
    assert 50 < len(small) < len(faithful)
    for task in small:
        assert task.log10_space() < 3
        space = size_of_space(task)
        assert space is None or 1 <= space < 1000
    assert all(size_of_space(t) is None for t in faithful if t not in small)


def test_listed_spaces_are_as_large_as_said_and_hold_every_problem_that_is_drawn(faithful):
    listed = [t for t in faithful if size_of_space(t) is not None]
    assert len(listed) > 50
    for task in listed:
        space = {i.key for i in task.all_instances()}
        assert len(space) == size_of_space(task)
        assert abs(10 ** task.log10_space() - len(space)) < 0.01 * len(space) + 1e-6
        drawn = {task.generate(rng.keyed(0, "draw", i)).key for i in range(30)}
        assert drawn <= space
        for instance in itertools.islice(task.all_instances(), 5):
            assert task.check(instance, task.parse(instance.example, "strict"))


def test_all_problems_of_a_small_space_come_in_an_order_of_the_seed():
    task = get_task(SMALL)
    space = {i.key for i in task.all_instances()}
    one, two = keys(task), keys(task, seed=1)
    assert sorted(one) == sorted(two) == sorted(space)
    assert len(one) == 27 == size_of_space(task)
    assert one != two
    assert one not in ([i.key for i in task.all_instances()], two)
    assert keys(task) == one
    for count in (0, 1, 10, 27):
        assert keys(task, count=count) == one[:count]


def test_every_place_of_the_order_is_equally_likely():
    task = get_task("fibonacci_sequence:variation=lucas")  # 3 problems
    orders = [tuple(keys(task, seed=seed)) for seed in range(300)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 25  # 50 expected, sd 6.5


def test_cells_of_one_space_have_orders_of_their_own():
    a, b = (get_task(f"{SMALL},size={size}") for size in (5, 6))
    order = [[i.data[1] for i in problems(t, seed=0, split="test")] for t in (a, b)]
    assert sorted(order[0]) == sorted(order[1])
    assert order[0] != order[1]


def test_asking_for_more_than_there_are_says_how_many_there_are():
    with pytest.raises(InputError, match="ran out of distinct test problems after 27: ask for"):
        list(problems(get_task(SMALL), seed=0, split="test", count=28))
    repeated = [
        i.key for i in problems(get_task(SMALL), seed=0, split="test", count=90, distinct=False)
    ]
    assert len(repeated) == 90
    assert len(set(repeated)) <= 27


@pytest.mark.parametrize("split", ["train", "validation"])
def test_small_spaces_are_never_trained_on(split):
    with pytest.raises(InputError, match="has 27 problems in these settings, under 1,000"):
        next(problems(get_task(SMALL), seed=0, split=split))


def test_recipes_refuse_tasks_that_are_for_evaluation_only():
    data = {"method": "causal", "model": {"model_type": "llama"}, "fit": {"steps": 1}}
    data["fit"]["learning_rate"] = 0.1
    TaskRecipe.model_validate(data | {"data": {"tasks": {"sum": 1.0}}})
    for name in (SMALL, "sort:length=2"):
        assert evaluation_only(get_task(name))
        with pytest.raises(ValueError, match=f"{name} has under 1,000 problems: it is for eval"):
            TaskRecipe.model_validate(data | {"data": {"tasks": {"sum": 1.0, name: 1.0}}})
    with pytest.raises(ValueError, match="unknown task 'summ': did you mean 'sum'"):
        TaskRecipe.model_validate(data | {"data": {"tasks": {"summ": 1.0}}})


def test_large_spaces_are_split_by_what_makes_a_problem():
    task = get_task("find_maximum:size=4")
    assert size_of_space(task) is None
    found = {s: {i.key for i in problems(task, seed=0, split=s, count=80)} for s in SPLITS}
    for split, made in found.items():
        assert len(made) == 80
        assert {split_of(key) for key in made} == {split}
    endless = problems(task, seed=0, split="test")
    assert len(list(itertools.islice(endless, 100))) == 100
    assert math.isclose(task.log10_space(), math.log10(math.perm(201, 4)))  # no number twice


def test_small_cells_give_what_they_have_and_say_so():
    tasks = [get_task(SMALL), get_task("sum:size=4")]
    drawn = draw_limited(tasks, 40, seed=0)
    ids = [p.id for p in drawn.problems]
    assert len(set(ids)) == len(ids) == 27 + 40
    assert drawn.notes == [
        "fibonacci_sequence/tribonacci, size 5: 40 problems were asked, it has 27 in all"
    ]
    evened = [p.task.id for p in draw_problems(tasks, 80, seed=0)]
    assert (evened.count("fibonacci_sequence"), evened.count("sum")) == (27, 53)
    with pytest.raises(InputError, match="after 27"):
        draw_problems(tasks[:1], 80, seed=0)
