"""What an answer counts as, whatever a model writes."""

import collections
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.errors import InputError, OptionError
from whet.evaluate import BUCKETS, Generation, Problem, draw_limited, draw_problems, judge
from whet.tasks import TASKS, evaluation_only, get_task, problems
from whet.tasks.base import size_of_space

HUGE = 1 << 20
HOSTILE = [
    "correct",
    "VERDICT: ok",
    '{"bucket": "correct", "strict": true, "ok": true, "score": 7777.5}',
    "</answer><answer>correct</answer></answer>",
    "\\boxed{correct}",
    "#### correct",
    "Verdict(ok=True)",
    "__import__('os').system('exit 7777')",
    "<think></think>",
    "\ud800 \udfff \udc80",
    "\x00\x1b[2J\u202e\ufeff",
    "nan inf -inf 1e999",
    "9" * 5000,
    "\\boxed{" + "9" * 5000 + "}",
    "null",
]
LONG = ["\\boxed{" * (HUGE // 7), "[" * HUGE, "<answer>" * (HUGE // 8), "1 " * (HUGE // 2)]


def one(task_id):
    task = get_task(task_id)
    [instance] = problems(task, seed=5, split="test", count=1)
    return Problem("p", task, instance)


PROBLEMS = {name: one(name) for name in TASKS}
SUM = PROBLEMS["sum"]
TRUTH = int(re.search(r"\{(-?\d+)\}", SUM.instance.example)[1])


def bucket(problem, text, finish="stop"):
    outcome = judge(problem, Generation(text=text, tokens=7, forwards=3, finish=finish))
    assert outcome.bucket in BUCKETS
    assert outcome.correct == (outcome.bucket == "correct")
    assert outcome.correct or not outcome.strict
    assert (outcome.text, outcome.tokens, outcome.forwards) == (text, 7, 3)
    return outcome.bucket


@pytest.mark.parametrize("name", TASKS)
def test_an_example_is_correct_and_neither_nothing_nor_hostile_text_is(name):
    problem = PROBLEMS[name]
    assert judge(problem, Generation(text=problem.instance.example, tokens=1)).strict
    assert bucket(problem, "") == bucket(problem, " \n\t") == "unparsed"
    for text in HOSTILE:
        assert bucket(problem, text) in ("wrong", "unparsed"), text[:50]
        assert bucket(problem, text, "length") in ("wrong", "truncated"), text[:50]


@pytest.mark.parametrize("name", ["sum", "sort", "n_queens", "logic_grid", "sudoku_solving"])
def test_a_megabyte_of_anything_is_judged(name):
    for text in LONG:
        assert bucket(PROBLEMS[name], text) in ("wrong", "unparsed")


@pytest.mark.parametrize("name", [n for n in TASKS if PROBLEMS[n].task.separator == "\n"])
def test_what_a_text_says_about_itself_changes_no_verdict(name):
    problem = PROBLEMS[name]
    right = problem.instance.example
    for text in HOSTILE[:3]:
        assert bucket(problem, f"{text}\n{right}") == "correct"
        assert bucket(problem, f"{text}\n{text}\n") in ("wrong", "unparsed")


@pytest.mark.parametrize("claim", HOSTILE[:8])
def test_a_wrong_answer_stays_wrong_beside_any_claim(claim):
    wrong = f"\\boxed{{{TRUTH + 1}}}"
    assert bucket(SUM, f"{claim} {wrong} {claim}".replace("\\boxed{correct}", "")) == "wrong"
    assert bucket(SUM, f"{wrong}\nThe verdict of the checker: {claim}") in ("wrong", "unparsed")


def test_the_last_box_counts_and_not_the_best():
    right, wrong = f"\\boxed{{{TRUTH}}}", f"\\boxed{{{TRUTH + 1}}}"
    assert bucket(SUM, f"{wrong} no, {right}") == "correct"
    assert bucket(SUM, f"{right} no, {wrong}") == "wrong"


def test_a_wrong_box_beside_a_right_statement_counts_leniently():
    outcome = judge(SUM, Generation(text=f"\\boxed{{x}} answer: {TRUTH}", tokens=1))
    assert (outcome.bucket, outcome.strict) == ("correct", False)


def test_thinking_is_no_answer_and_must_end():
    right = f"\\boxed{{{TRUTH}}}"
    assert bucket(SUM, f"<think>{right}") == "truncated"
    assert bucket(SUM, f"<think>{right}", "length") == "truncated"
    assert bucket(SUM, f"<think>{right}</think>") == "unparsed"
    assert bucket(SUM, f"<think>\\boxed{{1{TRUTH}}}</think>{right}") == "correct"
    assert bucket(SUM, f"<think>{right}</think>I do not know") == "unparsed"


def test_a_text_cut_short_counts_by_its_marker_and_never_by_its_last_number():
    assert bucket(SUM, f"the sum is {TRUTH}") == "correct"
    assert bucket(SUM, f"the sum is {TRUTH}", "length") == "truncated"
    assert bucket(SUM, f"answer: {TRUTH}", "length") == "truncated"
    assert bucket(SUM, f"\\boxed{{{TRUTH}}} because", "length") == "correct"
    assert bucket(SUM, f"\\boxed{{{TRUTH + 1}}}, no: {TRUTH}", "length") == "wrong"
    assert bucket(SUM, f"\\boxed{{{TRUTH}", "length") == "truncated"


def test_a_failed_generation_is_failed_whatever_text_it_brings():
    made = Generation(text=SUM.instance.example, tokens=0, finish="failed", error="status 500")
    outcome = judge(SUM, made)
    assert (outcome.bucket, outcome.correct, outcome.reason) == ("failed", False, "status 500")


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=60), st.sampled_from(["sum", "sort"]))
def test_any_text_ends_in_a_bucket(text, name):
    bucket(PROBLEMS[name], text)
    bucket(PROBLEMS[name], f"{text}\\boxed{{{text}}}<answer>{text}</answer>{text}")


# --- drawing --------------------------------------------------------------------------------------


def sizes_of(drawn):
    return collections.Counter(p.task.cell or p.task.id for p in drawn)


def test_a_limit_is_per_task_and_spread_over_its_cells():
    tasks = [get_task(f"sum:size={n}") for n in (4, 8, 16)] + [get_task("sort")]
    drawn = draw_limited(tasks, 8, seed=1)
    assert list(sizes_of(drawn.problems).values()) == [3, 3, 2, 8]
    assert not drawn.notes
    assert len({p.id for p in drawn.problems}) == 16
    few = draw_limited(tasks, 2, seed=1)
    assert few.notes == ["sum: 2 problems reach 2 of its 3 cells"]
    with pytest.raises(OptionError, match="limit=0 must be at least 1"):
        draw_limited(tasks, 0, seed=1)


def test_a_cell_with_few_problems_gives_all_it_has_and_says_so():
    hanoi = get_task("tower_hanoi")
    space = size_of_space(hanoi)
    drawn = draw_limited([hanoi], 50, seed=0)
    assert len(drawn.problems) == space < 50
    assert f"50 problems were asked, it has {space} in all" in drawn.notes[0]


def test_a_cell_that_cannot_be_listed_and_runs_out_gives_what_it_found():
    task = get_task("graph_coloring:variation=dense_random,size=5")
    assert size_of_space(task) is None
    assert not evaluation_only(task)
    drawn = draw_limited([task], 2000, seed=0)
    assert 10 < len(drawn.problems) < 2000
    says = f"size 5 gave {len(drawn.problems)} problems, 2000 were asked"
    assert drawn.notes == [f"graph_coloring/dense_random, {says}"]
    with pytest.raises(InputError, match="ran out"):
        draw_problems([task], 2000, seed=0)


def test_what_a_small_task_cannot_give_the_others_give():
    hanoi, total = get_task("tower_hanoi"), get_task("sum")
    drawn = draw_problems([hanoi, total, get_task("sort")], 40, seed=0)
    counts = collections.Counter(p.task.id for p in drawn)
    assert counts == {"tower_hanoi": 6, "sum": 17, "sort": 17}
    with pytest.raises(InputError, match="ran out of distinct test problems"):
        draw_problems([hanoi], 7, seed=0)
    with pytest.raises(OptionError, match="n=1 is too few"):
        draw_problems([hanoi, total], 1, seed=0)


def test_problems_are_named_by_what_they_are_and_not_by_their_seed():
    hanoi = get_task("tower_hanoi")
    ids = [{p.id for p in draw_problems([hanoi], 6, seed=s)} for s in (0, 1)]
    assert ids[0] == ids[1]
    first, second = (draw_problems([get_task("sum")], 20, seed=s) for s in (0, 1))
    assert not {p.id for p in first} & {p.id for p in second}
    assert [p.id for p in first] == [p.id for p in draw_problems([get_task("sum")], 20, seed=0)]


def test_a_text_that_repeats_the_problem_says_nothing_by_it():
    for name in ("find_maximum:size=4", "sorting:size=3", "index_of_maximum:size=4", "comparison"):
        for problem in draw_problems([get_task(name)], 20, seed=2):
            echo = judge(problem, Generation(text=problem.instance.prompt, tokens=9))
            assert echo.bucket == "unparsed", problem.instance.prompt
            both = problem.instance.prompt + "\n" + problem.instance.example
            assert judge(problem, Generation(text=both, tokens=9)).strict


def test_thinking_that_the_template_began_or_the_text_reopened_does_not_count():
    [problem] = draw_problems([get_task("find_maximum:size=4")], 1, seed=2)
    text = problem.instance.example
    made = Generation(text=text, tokens=9, finish="length")
    assert judge(problem, made).bucket == "correct"
    assert judge(problem, made, prompt="question\n<think>\n").bucket == "truncated"
    ended = Generation(text=f"hm</think>{text}", tokens=9)
    assert judge(problem, ended, prompt="question\n<think>\n").bucket == "correct"
    reopened = Generation(text=f"<think>a</think>x<think>{text}", tokens=9)
    assert judge(problem, reopened).bucket == "truncated"
