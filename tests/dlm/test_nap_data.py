"""Path sets: where paths come from, what is kept of them, and how they become rows."""

import pytest

from whet.dlm.nap.data import (
    PathSet,
    PathSets,
    SampledPaths,
    SolverPaths,
    build_path_sets,
    path_set,
)
from whet.errors import CheckpointError, InputError, OptionError
from whet.evaluate import Generation, draw_problems
from whet.tasks import get_task, split_of

TASK = get_task("modsum:count=4,modulus=10")


class Scripted:
    """Writes "N K" for its N-th request's K-th token budget; notes what it was asked."""

    def __init__(self, text=lambda r: f"so {r.request}", failing=lambda r: False):
        self.text, self.failing, self.asked = text, failing, []

    def __call__(self, requests):
        self.asked.append(list(requests))
        for place in reversed(range(len(requests))):  # out of order, as servers answer
            r = requests[place]
            if self.failing(r):
                yield place, Generation(text="", tokens=0, finish="failed", error="busy")
            else:
                yield place, Generation(text=self.text(r), tokens=3)


def sampled(generate, **settings):
    return SampledPaths(generate, name="scripted", **{"max_new_tokens": 9, **settings})


def build(folder, write, **settings):
    build_path_sets(folder, [TASK], write, **{"count": 10, "shard_size": 4, **settings})


def test_solver_paths_are_right_and_their_problems_for_training(tmp_path):
    build(tmp_path, SolverPaths([TASK], seed=3))
    sets = PathSets(tmp_path, least_right=3)
    assert len(sets) == 10
    assert sets.paths == 3
    for one in sets:
        assert split_of(one.prompt) == "train"
        assert one.right == [True] * 3
        assert all(TASK.parse(p) == one.summary for p in one.paths)
    assert [s.request for s in sets] == list(range(10))
    assert sets[-1] == sets[9] == sets[8:10][1]
    assert len({p for s in sets for p in s.paths}) > 20


def test_what_is_made_in_shards_or_parts_is_the_same(tmp_path):
    build(tmp_path / "a", SolverPaths([TASK], seed=3))
    build(tmp_path / "b", SolverPaths([TASK], seed=3), shard_size=10)
    for k in (1, 0):
        build(tmp_path / "c", SolverPaths([TASK], seed=3), part=(k, 2))
    a, b, c = (list(PathSets(tmp_path / x)) for x in "abc")
    assert a == b == c


def test_an_interrupted_build_goes_on_with_what_is_missing(tmp_path):
    generate = Scripted()
    done = []
    build(tmp_path, sampled(generate), on_progress=done.append)
    assert done == [4, 8, 10]
    assert [len(a) for a in generate.asked] == [12, 12, 6]
    before = list(PathSets(tmp_path, least_right=0))
    (tmp_path / "part-00001.arrow").unlink()
    with pytest.raises(InputError, match="1 of 3 shards are missing"):
        PathSets(tmp_path)
    again = Scripted()
    build(tmp_path, sampled(again))
    assert [r.request for r in again.asked[0]] == [r.request for r in generate.asked[1]]
    assert len(again.asked) == 1
    assert list(PathSets(tmp_path, least_right=0)) == before


def test_sampled_paths_are_requests_of_their_own_at_temperature_one(tmp_path):
    generate = Scripted()
    build(tmp_path, sampled(generate, stop=("\n\n",)), paths=2)
    asked = [r for shard in generate.asked for r in shard]
    assert len({r.request for r in asked}) == 20
    assert {(r.temperature, r.max_new_tokens, r.stop) for r in asked} == {(1.0, 9, ("\n\n",))}
    for number, one in enumerate(PathSets(tmp_path, least_right=0)):
        assert one.paths == [f"so {r.request}" for r in asked[2 * number : 2 * number + 2]]
        assert one.prompt == asked[2 * number].prompt


def test_wrong_paths_are_kept_and_said_to_be_wrong():
    [problem] = draw_problems([TASK], 1, seed=0)
    answer = problem.instance.example
    wrong = str((int(answer) + 1) % 10)
    texts = [Generation(text=f" it is {x} ", tokens=1) for x in (answer, wrong, "x")]
    made = path_set(5, problem, texts)
    assert made == PathSet(
        request=5,
        source="modsum",
        prompt=problem.instance.prompt,
        paths=[f"it is {answer}", f"it is {wrong}", "it is x"],
        right=[True, False, False],
        summary=answer,
    )


def test_sets_with_too_few_right_paths_or_an_empty_one_are_left_out(tmp_path):
    solved = {
        p.instance.prompt: p.instance.example
        for p in draw_problems([TASK], 10, seed=0, split="train")
    }

    def text(r):
        number, k = divmod(r.request, 6)
        if number == 3 and k == 1:
            return "  "
        return solved[r.prompt] if k < number % 4 else "x"

    build(tmp_path, sampled(Scripted(text)))
    kept = {n: [s.request for s in PathSets(tmp_path, least_right=n)] for n in (0, 1, 3)}
    assert kept[0] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert kept[1] == [1, 2, 5, 6, 7, 9]
    assert kept[3] == [7]
    with pytest.raises(InputError, match="none of 10 problems has 4 right paths"):
        PathSets(tmp_path, least_right=4)


def test_a_server_that_has_gone_stops_the_build_and_a_few_failures_do_not(tmp_path):
    with pytest.raises(InputError, match=r"12 of 12 texts failed \(busy\)"):
        build(tmp_path, sampled(Scripted(failing=lambda r: True)))
    build(tmp_path, sampled(Scripted(failing=lambda r: r.request == 0)))
    sets = PathSets(tmp_path, least_right=0)
    assert [s.request for s in sets] == list(range(1, 10))


def test_a_folder_is_for_one_source_and_one_seed(tmp_path):
    build(tmp_path, SolverPaths([TASK], seed=3))
    for write, more in (
        (sampled(Scripted()), {}),
        (SolverPaths([TASK], seed=4), {}),
        (SolverPaths([TASK], seed=3), {"seed": 4}),
        (SolverPaths([TASK], seed=3), {"paths": 2}),
    ):
        with pytest.raises(CheckpointError, match="belongs to another recipe"):
            build(tmp_path, write, **more)


def test_refusals(tmp_path):
    with pytest.raises(OptionError, match="task 'sort' has no workings of its own"):
        SolverPaths([get_task("sort")], seed=0)
    with pytest.raises(OptionError, match="temperature=0 must be above 0"):
        sampled(Scripted(), temperature=0)
    with pytest.raises(OptionError, match="max_new_tokens=0"):
        sampled(Scripted(), max_new_tokens=0)
    with pytest.raises(OptionError, match="paths=7 must be between 1 and 6"):
        build(tmp_path, sampled(Scripted()), paths=7)
