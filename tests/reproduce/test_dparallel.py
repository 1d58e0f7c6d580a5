"""The dParallel proof on a handful of problems, and how forwards at equal accuracy are read."""

import dataclasses

import numpy as np
import pytest

from whet.measure import record as records
from whet.measure.items import load_items
from whet.reproduce.dparallel import DPARALLEL, _shortened, forwards_at, forwards_ratio

TINY = dataclasses.replace(DPARALLEL, thresholds=(0.1, 0.5), batch_size=7, gen_length=8)
COUNT = 7
ONE = "one token per step"
ARMS = [
    *("teacher at 0.1", "teacher at 0.5", f"teacher, {ONE}"),
    *("student at 0.1", "student at 0.5", f"student, {ONE}"),
    *("forced at 0.1", "forced at 0.5"),
    *("control at 0.1", "control at 0.5"),
]
MODELS = ("teacher", "student", "forced", "control")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, record, progress) of one run in which tiny-dlm stands in for all four models."""
    folder, progress = tmp_path_factory.mktemp("proof"), []
    proof = dataclasses.replace(TINY, problems=COUNT, validation=COUNT)
    models = dict.fromkeys(MODELS, "tiny-dlm")
    record = proof._judged(models, folder, "smoke", progress.append)
    records.save(record, folder / "dparallel.json")
    return folder, record, progress


def test_arms_and_settings(made):
    _, record, progress = made
    assert (record.method, record.level) == ("dparallel", "smoke")
    assert [arm.name for arm in record.arms] == ARMS
    assert record.settings["chosen_threshold"] in TINY.thresholds
    arms = {arm.name: arm.metrics for arm in record.arms}
    assert all(metrics["accuracy"].n == COUNT for metrics in arms.values())
    assert arms["teacher at 0.5"]["forwards"].value < arms["teacher at 0.1"]["forwards"].value
    assert arms["teacher at 0.1"]["forwards"].value < arms[f"teacher, {ONE}"]["forwards"].value
    assert progress == sorted(progress)
    assert progress[-1] == pytest.approx(1.0)


def test_equal_models_are_equal(made):
    _, record, _ = made
    arms = {arm.name: arm.metrics for arm in record.arms}
    for threshold in ("at 0.1", "at 0.5"):
        for name in ("accuracy", "forwards"):
            values = {arms[f"{m} {threshold}"][name].value for m in MODELS}
            assert len(values) == 1
    claims = {c.name: c for c in record.claims}
    assert claims["same threshold"].value == 1
    assert claims["certainty"].value == 1
    assert not claims["same threshold"].ok
    assert not claims["certainty"].ok


def test_claims_follow_from_comparisons(made):
    folder, record, _ = made
    compared = {(c.a, c.b, c.metric): (c.value, c.ci) for c in record.comparisons}
    assert [c.name for c in record.claims] == [
        "quality",
        "forwards",
        "goal",
        "same threshold",
        "certainty",
    ]
    for claim in record.claims:
        assert claim.text
        assert (claim.value, claim.ci) == compared[claim.a, claim.b, claim.metric]
        assert claim.ok == records.judge(claim.value, claim.ci, claim.op, claim.target)
    assert record.verdict == records.verdict(record.claims)
    path = folder / "dparallel.json"
    assert records.load(path) == record
    items = load_items(path, record)
    assert len(set(items["ids"])) == COUNT
    for arm in record.arms:
        assert np.mean(items["arms"][arm.name]["correct"]) == pytest.approx(
            arm.metrics["accuracy"].value
        )
        assert np.mean(items["arms"][arm.name]["steps"]) == pytest.approx(
            arm.metrics["forwards"].value
        )


def test_both_arms_of_the_term_are_trained_alike_but_for_it(tmp_path, monkeypatch):
    trained = []

    class Training:
        def __init__(self, recipe):
            trained.append(recipe)

        def run(self, out):
            trained.append(out)

    from whet.reproduce import dparallel

    monkeypatch.setattr(dparallel, "DParallelTraining", Training)
    monkeypatch.setattr(dparallel.DParallelProof, "_judged", lambda self, *given: given)
    models, _, level, _ = DPARALLEL.run(quick=True, out=tmp_path, on_progress=lambda share: None)
    forced, one, control, other = trained
    assert (forced.beta > 0, control.beta) == (True, 0)
    assert forced.model_dump(exclude={"beta"}) == control.model_dump(exclude={"beta"})
    assert (forced.fit.steps, forced.rounds) <= (10, 1)
    assert level == "smoke"
    assert (models["forced"], models["control"]) == (one / "model", other / "model")
    trained.clear()
    DPARALLEL.run(quick=False, out=tmp_path, on_progress=lambda share: None)
    whole, again = trained[2:]
    assert (whole.beta, whole.rounds) == (0, DPARALLEL.rounds)
    assert whole.fit.steps > 100
    assert _shortened(whole).model_dump(exclude={"data", "fit"}) == whole.model_dump(
        exclude={"data", "fit"}
    )
    assert again != other, "a checkpoint of another length is refused"


# --- forwards at equal accuracy -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "forwards"),
    [(0.9, 8.0), (0.85, 6.0), (0.8, 4.0), (0.7, 3.0), (0.6, 2.0), (0.5, 2.0), (0.95, 8.0)],
)
def test_a_curve_is_read_between_its_thresholds(goal, forwards):
    accuracy, steps = np.array([0.9, 0.8, 0.6]), np.array([8.0, 4.0, 2.0])
    assert forwards_at(accuracy, steps, goal) == pytest.approx(forwards)


def test_of_a_curve_that_turns_the_first_piece_from_the_loose_end_counts():
    accuracy, steps = np.array([0.9, 0.7, 0.8, 0.5]), np.array([8.0, 6.0, 4.0, 2.0])
    assert forwards_at(accuracy, steps, 0.75) == pytest.approx(2 + 2 * 0.25 / 0.3)
    assert forwards_at(accuracy, steps, 0.85) == pytest.approx(6 + 2 * 0.75)


def test_the_ratio_of_two_curves_and_its_interval():
    rng = np.random.default_rng(0)
    correct = (rng.random(400) < np.array([0.9, 0.8, 0.6])[:, None]).astype(float)
    steps = np.array([8.0, 4.0, 2.0])[:, None] + rng.integers(0, 2, 400)
    same = forwards_ratio((correct, steps), (correct, steps), 0.8, resamples=50)
    assert same == (1, 1, 1)
    value, low, high = forwards_ratio((correct, steps), (correct, 2 * steps), 0.8, resamples=200)
    assert (value, low, high) == pytest.approx((0.5, 0.5, 0.5))
    fewer = (correct, steps - rng.integers(0, 2, steps.shape))
    value, low, high = forwards_ratio(fewer, (correct, steps), 0.8, resamples=200)
    assert low <= value <= high < 1
