"""Names of tasks and suites, with sizes and modes: what is selected, left out or refused."""

import pytest

from whet.errors import OptionError
from whet.tasks import SUITES, TASKS, expand, get_task
from whet.tasks.beyondbench.base import BeyondTask
from whet.tasks.registry import select

BEYOND = SUITES["beyondbench"]


def cells(*names, **settings):
    """(id, variation, size) of everything selected."""
    return [
        (t.id, t.variation, t.size) if isinstance(t, BeyondTask) else (t.id, "", None)
        for t in select(names, **settings).tasks
    ]


# --- names --------------------------------------------------------------------------------------


def test_a_suite_stands_for_every_cell_of_its_tasks():
    for suite, classes in SUITES.items():
        expected = [
            task
            for cls in classes
            for task in cls.cells({})
            if not isinstance(task, BeyondTask) or not task.empty_because()
        ]
        assert select([suite]).tasks == expected
        assert {t.id for t in expected} == {cls.id for cls in classes}


def test_every_task_is_found_by_its_name_alone_with_its_suite_and_below_it():
    for name, cls in TASKS.items():
        assert type(get_task(name)) is cls
    for cls in BEYOND:
        alone = select([cls.id]).tasks
        assert {type(t) for t in alone} == {cls}
        for other in (f"beyondbench:{cls.id}", f"{cls.id}@beyondbench", f" {cls.id}: "):
            assert select([other]).tasks == alone
        assert get_task(f"beyondbench:{cls.id}") == get_task(cls.id)


def test_a_task_without_settings_is_its_first_variation_at_its_smallest_default_size():
    for cls in BEYOND:
        task = get_task(cls.id)
        assert task == cls()
        assert task.variation == (cls.variations or ("",))[0]
        assert task.size == min(cls.default_sizes(task.variation, task.mode))


def test_settings_reach_every_task_of_a_suite():
    tasks = select(["beyondbench:hard:mode=wide"]).tasks
    assert {t.mode for t in tasks} == {"wide"}
    assert {t.level for t in tasks} == {"hard"}
    assert {t.mode for t in select(["beyondbench:mode=wide"]).tasks} == {"wide"}
    assert {t.high for t in select(["beyondbench:easy:low=-5000,high=5000"]).tasks} == {5000}
    assert [t.id for t in select(["beyondbench:sum:size=4,mode=wide"]).tasks] == ["sum"]


def test_a_variation_and_a_size_are_chosen_by_name():
    (task,) = select(["n_queens:variation=n5,mode=wide,size=11"]).tasks
    assert (task.variation, task.size, task.mode) == ("n5", 11, "wide")
    assert get_task("n_queens:variation=n5,mode=wide,size=11") == task
    assert cells("tower_hanoi:variation=n4") == [("tower_hanoi", "n4", 4)]


def test_names_keep_their_order_and_what_is_named_twice_is_there_once():
    assert cells("sum:size=8", "sort", "sum:size=4") == [
        ("sum", "", 8),
        ("sort", "", None),
        ("sum", "", 4),
    ]
    assert cells("sum:size=4", "sum:size=4", "sum:size=5") == [("sum", "", 4), ("sum", "", 5)]
    first = select(["sum", "beyondbench"]).tasks
    assert len(first) == len(set(first)) == len(select(["beyondbench"]).tasks)
    assert first[0].id == "sum"
    assert expand(["sum"]) == select(["sum"]).tasks


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("beyondbench:hrad", r"unknown suite 'beyondbench:hrad': did you mean 'beyondbench:hard'"),
        ("beyondbench:summ", r"unknown suite 'beyondbench:summ': did you mean 'beyondbench:sum'"),
        ("beyondbnch", r"unknown task 'beyondbnch': did you mean 'beyondbench'"),
        ("summ", r"unknown task 'summ': did you mean 'sum'"),
        ("sum@scratchpad", r"unknown task 'sum'"),
        ("sum:variation=x", r"task 'sum' has no variation 'x': it has none"),
        ("n_queens:variation=n9", r"task 'n_queens' has no variation 'n9': did you mean 'n\d'"),
        ("sum:size=300", r"size=300 is impossible, it must be from 2 to 256"),
        ("sum:size=0", r"size=0 is impossible"),
        ("sum:size=-3", r"size='-3' must be a whole number"),
        ("sum:size=²", r"size='²' must be a whole number"),
        ("sum:size=four", r"size='four' must be a whole number"),
        ("sum:mode=wider", r"mode='wider' is not one of faithful, wide"),
        ("beyondbench:mode=wider", r"mode='wider' is not one of faithful, wide"),
        ("beyondbench:length=4", r"task '\w+' has no option 'length'"),
        ("sum:size=4,size=5", r"'size' is set twice"),
    ],
)
def test_wrong_names_and_settings_say_what_is_right(name, why):
    with pytest.raises(OptionError, match=why) as caught:
        select([name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["beyondbench", "beyondbench:", "beyondbench:easy:mode=wide"])
def test_a_suite_is_not_one_task(name):
    with pytest.raises(OptionError, match=r"is a suite of \d+ tasks: name one of them"):
        get_task(name)


# --- sizes and modes ----------------------------------------------------------------------------


def test_sizes_replace_the_default_ones_where_there_is_a_choice():
    assert [c[2] for c in cells("sum", sizes=(4, 9))] == [4, 9]
    assert [c[2] for c in cells("sum", sizes=(4, 4, 9))] == [4, 9]
    assert [c[2] for c in cells("sum:size=5", sizes=(4, 9))] == [5]
    assert cells("comparison", sizes=(9,)) == cells("comparison")  # two numbers are always two
    assert cells("tower_hanoi", sizes=(3,)) == cells("tower_hanoi")
    assert cells("scratchpad", sizes=(4,)) == cells("scratchpad")
    assert not select(["comparison", "tower_hanoi"], sizes=(9,)).notes


def test_the_mode_is_for_tasks_that_do_not_say_theirs():
    tasks = select(["sum", "mean:mode=faithful"], mode="wide")
    assert {(t.id, t.mode) for t in tasks.tasks} == {("sum", "wide"), ("mean", "faithful")}
    assert cells("scratchpad", mode="wide") == cells("scratchpad")
    with pytest.raises(OptionError, match="mode='wied'"):
        select(["sum"], mode="wied")


def test_an_impossible_size_is_an_error_where_the_task_is_named():
    with pytest.raises(OptionError, match=r"^sum: sizes 300, 400 are impossible, .* 2 to 256$"):
        select(["sum"], sizes=(4, 300, 400))
    with pytest.raises(OptionError, match="sizes: 0 is impossible"):
        select(["sum"], sizes=(0,))


def test_in_a_suite_impossible_sizes_are_left_out_and_noted():
    found = select(["beyondbench:easy"], sizes=(4, 300))
    assert {t.size for t in found.tasks} == {2, 4}
    assert "sum: sizes 300 are impossible, they go from 2 to 256" in found.notes
    gone = select(["beyondbench:medium", "sum:size=2"], sizes=(2,))
    assert {t.id for t in gone.tasks} == {"sum"}
    assert len(gone.notes) == 5
    assert all(note.endswith("to 32: left out") for note in gone.notes)


def test_variations_without_the_sizes_asked_for_are_noted_or_refused():
    """Wide boards: n4 has 8 or 9 queens, n5 10 or 11, n6 12 or 13, and n8 always 14."""
    found = select(["n_queens"], sizes=(8,), mode="wide")
    assert [(t.variation, t.size) for t in found.tasks] == [("n4", 8), ("n8", 14)]
    assert found.notes == ["n_queens: n5, n6 cannot have the sizes 8: left out"]
    found = select(["beyondbench:hard"], sizes=(8,), mode="wide")
    assert "n_queens: n5, n6 cannot have the sizes 8: left out" in found.notes
    with pytest.raises(OptionError, match=r"^n_queens: sizes 10 are impossible, .* 8 to 9$"):
        select(["n_queens:variation=n4"], sizes=(10,), mode="wide")
    found = select(["complex_pattern"], sizes=(5,), mode="wide")
    assert "multi_recursive" not in {t.variation for t in found.tasks}
    assert found.notes == ["complex_pattern: multi_recursive cannot have the sizes 5: left out"]


def test_cells_without_problems_are_noted_or_refused():
    empty = "algebraic_sequence:variation=transcendental_floor"
    found = select(["beyondbench:medium"])
    assert all(not t.empty_because() for t in found.tasks)
    assert any(
        n.startswith("algebraic_sequence/transcendental_floor, size 5: the paper's filter")
        for n in found.notes
    )
    with pytest.raises(OptionError, match="transcendental_floor, size 5: the paper's filter"):
        select([empty])
    assert select([empty], mode="wide").tasks


def test_nothing_selected_lists_what_there_is():
    with pytest.raises(OptionError, match="no task named: known are scratchpad, beyondbench:easy"):
        select([])
