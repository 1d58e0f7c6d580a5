"""The BeyondBench proof on tiny models: who sees what, and how its record holds together."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from whet.measure import record as records
from whet.measure.items import load_items
from whet.measure.stats import newcombe
from whet.reproduce.beyondbench import BeyondBenchProof, _kept
from whet.tasks import problems, split_of

TINY = BeyondBenchProof(
    fixed=6, fresh=40, longer=12, steps=70, batch_size=16, width=32, sizes=(2, 5), bits=(8, 2)
)
ARMS = [
    *("memoriser, its problems", "memoriser, fresh", "learner, its problems", "learner, fresh"),
    *("learner, 2 numbers", "learner, 5 numbers", "learner, 8 bits", "learner, 2 bits"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, record, progress, pairs drawn by memoriser, learner and `seen`) of one run."""
    folder, progress, drawn = tmp_path_factory.mktemp("proof"), [], []
    training = BeyondBenchProof._training

    def watched(self, source):
        pairs = []
        drawn.append(pairs)

        def draw(generator):
            pairs.append(source(generator))
            return pairs[-1]

        return training(self, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BeyondBenchProof, "_training", watched)
        record = TINY.run(quick=False, out=folder, on_progress=progress.append)
    records.save(record, folder / "beyondbench.json")
    return folder, record, progress, drawn


def prompts(instances):
    return {i.prompt for i in instances}


@pytest.fixture(scope="module")
def asked():
    """Prompts of the fixed and of the fresh problems."""
    task = TINY._task(TINY.size)
    fixed = problems(task, seed=TINY.seed, split="train", count=TINY.fixed)
    fresh = problems(task, seed=TINY.seed, split="test", count=TINY.fresh)
    return prompts(fixed), prompts(fresh)


# --- who sees what ------------------------------------------------------------------------------


def test_the_memoriser_sees_its_fixed_problems_alone_and_all_of_them(run, asked):
    memoriser = run[3][0]
    assert len(memoriser) == TINY.steps * TINY.batch_size
    assert {prompt for prompt, _ in memoriser} == asked[0]
    assert len(set(memoriser)) == TINY.fixed  # one answer each


def test_the_learner_hardly_sees_a_problem_twice(run):
    learner = [prompt for prompt, _ in run[3][1]]
    assert len(learner) == TINY.steps * TINY.batch_size
    assert len(set(learner)) > 0.99 * len(learner)


def test_fresh_problems_are_in_no_training_set(run, asked):
    _, fresh = asked
    trained = {prompt for pairs in run[3] for prompt, _ in pairs}
    assert len(fresh) == TINY.fresh
    assert fresh.isdisjoint(trained)
    task = TINY._task(TINY.size)
    assert all(split_of(i.key) == "test" for i in problems(task, seed=9, split="test", count=20))


def test_the_learners_own_problems_are_those_it_was_trained_on_first(run):
    seen = TINY._seen(TINY._task(TINY.size))
    learner = list(dict.fromkeys(prompt for prompt, _ in run[3][1]))
    assert [i.prompt for i in seen] == learner[: TINY.fresh]
    few = dataclasses.replace(TINY, steps=2)
    assert len(few._seen(few._task(4))) <= 2 * TINY.batch_size


def test_both_begin_with_the_same_weights():
    one, two = (TINY._training(lambda _: ("a", "b")).model.state_dict() for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)


# --- the record ---------------------------------------------------------------------------------


def test_arms_levels_and_progress(run):
    _, record, progress, _ = run
    assert (record.method, record.level) == ("beyondbench", "cpu")
    assert [arm.name for arm in record.arms] == ARMS
    counts = [6, 40, 40, 40, 12, 12, 40, 40]
    assert [arm.metrics["accuracy"].n for arm in record.arms] == counts
    assert all(0 <= arm.metrics["accuracy"].value <= 1 for arm in record.arms)
    assert progress == sorted(progress)
    assert progress[0] > 0
    assert progress[-1] == 1.0


def test_claims_follow_from_arms_and_comparisons(run):
    record = run[1]
    metrics = {arm.name: arm.metrics["accuracy"] for arm in record.arms}
    compared = {(c.a, c.b): c for c in record.comparisons}
    assert set(compared) == {(f"learner, {b} bits", "learner, fresh") for b in (8, 2)}
    claims = {c.name: c for c in record.claims}
    assert list(claims) == ["memory", "learning", "difficulty", "8 bits", "2 bits"]
    for name in ("memory", "learning", "difficulty"):
        made = claims[name]
        a, b = metrics[made.a], metrics[made.b]
        k, j = round(a.value * a.n), round(b.value * b.n)
        assert (made.value, *made.ci) == pytest.approx(newcombe(k, a.n, j, b.n))
    lost = compared["learner, 2 bits", "learner, fresh"]
    assert (claims["2 bits"].value, claims["2 bits"].ci) == (lost.value, lost.ci)
    for made in record.claims:
        assert made.ok == records.judge(made.value, made.ci, made.op, made.target)
        assert made.text
    assert record.verdict == records.verdict(record.claims)


def test_items_load_and_give_the_metrics_again(run):
    folder, record, _, _ = run
    path = folder / "beyondbench.json"
    loaded = records.load(path)
    assert loaded == record
    items = load_items(path, loaded)
    assert set(items["arms"]) >= {"memoriser, fresh", "learner, fresh", "learner, 2 bits"}
    assert not {"learner, its problems", "learner, 2 numbers"} & set(items["arms"])
    metrics = {arm.name: arm.metrics["accuracy"].value for arm in record.arms}
    for name, columns in items["arms"].items():
        assert len(columns["correct"]) == TINY.fresh == len(set(items["ids"]))
        assert np.mean(columns["correct"]) == pytest.approx(metrics[name])


def test_a_kept_share_is_open_where_nothing_is_right():
    none, some = np.zeros(50), np.ones(50)
    assert _kept(none, none) == (0.0, 0.0, 1.0)
    assert _kept(some, some) == (1.0, 1.0, 1.0)
    one = np.eye(50)[0]
    assert _kept(one, one) == (1.0, 0.0, 1.0)


# --- stopping and going on ----------------------------------------------------------------------


def test_a_run_stopped_between_the_trainings_gives_the_same_numbers(run, tmp_path):
    _, record, _, _ = run

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TINY.run(quick=False, out=tmp_path, on_progress=stop)
    (checkpoint,) = Path(tmp_path).rglob("memoriser/checkpoint/state.json")
    written = checkpoint.stat().st_mtime_ns
    assert not list(Path(tmp_path).rglob("learner"))
    again = TINY.run(quick=False, out=tmp_path, on_progress=lambda share: None)
    assert checkpoint.stat().st_mtime_ns == written  # not trained again
    assert again.arms == record.arms
    assert again.comparisons == record.comparisons
    assert again.claims == record.claims
    assert again.items == record.items  # by their SHA-256


def test_a_quick_run_and_a_whole_one_share_a_folder(tmp_path):
    """Their trainings differ in length, and a checkpoint of another length is refused."""
    small = dataclasses.replace(TINY, steps=40, fixed=3, fresh=4, longer=2, sizes=(2,), bits=(2,))
    quick = small.run(quick=True, out=tmp_path, on_progress=lambda share: None)
    assert quick.level == "smoke"
    assert quick.settings["steps"] == 2
    assert small.run(quick=False, out=tmp_path, on_progress=lambda share: None).level == "cpu"
