"""The SOAR proof on a handful of problems: it runs to the end and its record holds together."""

import dataclasses

import pytest

from whet.measure import record as records
from whet.measure.items import align, load_items
from whet.reproduce.soar import SOAR

COUNT = 14


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, record, progress) of one quick run."""
    folder, progress = tmp_path_factory.mktemp("soar"), []
    proof = dataclasses.replace(SOAR, quick_problems=COUNT, gen_length=4, batch_size=7)
    return folder, proof.run(quick=True, out=folder, on_progress=progress.append), progress


def test_level_arms_and_settings(made):
    _, record, _ = made
    assert (record.method, record.level) == ("soar", "smoke")
    names = [arm.name for arm in record.arms]
    assert sorted(names) == ["fixed-2", "greedy", "pbs", "soar", "threshold"]
    assert record.settings["problems"] == COUNT
    assert record.seeds == {"problems": SOAR.seed}
    for arm in record.arms:
        assert arm.metrics["accuracy"].n == COUNT
        assert 0 <= arm.metrics["accuracy"].value <= 1
        assert 1 <= arm.metrics["forwards"].value <= arm.metrics["rows"].value
    arms = {arm.name: arm.metrics for arm in record.arms}
    # One row per step without a beam; two tokens per step need fewer steps.
    for name in ("greedy", "fixed-2", "threshold"):
        assert arms[name]["forwards"].value == arms[name]["rows"].value
    assert arms["fixed-2"]["forwards"].value < arms["greedy"]["forwards"].value


def test_claims_follow_from_comparisons_between_arms(made):
    _, record, _ = made
    names = {arm.name for arm in record.arms}
    compared = {(c.a, c.b, c.metric): (c.value, c.ci) for c in record.comparisons}
    assert len(record.claims) >= 6
    assert len({c.name for c in record.claims}) == len(record.claims)
    for claim in record.claims:
        assert {claim.a, claim.b} <= names
        assert claim.text
        assert (claim.value, claim.ci) == compared[claim.a, claim.b, claim.metric]
    assert record.verdict == records.verdict(record.claims)


def test_progress_rises_to_the_end(made):
    _, _, progress = made
    assert progress == sorted(progress)
    assert progress[0] > 0
    assert progress[-1] == pytest.approx(1.0)


def test_items_load_beside_the_saved_record(made):
    folder, record, _ = made
    path = folder / "soar.json"
    records.save(record, path)
    loaded = records.load(path)
    assert loaded == record
    items = load_items(path, loaded)
    assert len(set(items["ids"])) == COUNT
    for arm in record.arms:
        columns = items["arms"][arm.name]
        assert sum(columns["correct"]) / COUNT == pytest.approx(arm.metrics["accuracy"].value)
        assert sum(columns["steps"]) / COUNT == pytest.approx(arm.metrics["forwards"].value)
        assert sum(columns["rows"]) / COUNT == pytest.approx(arm.metrics["rows"].value)
    ours, theirs = align(items, "soar", items, "greedy", "correct")
    found = next(c for c in record.comparisons if (c.a, c.b) == ("soar", "greedy"))
    assert (sum(ours) - sum(theirs)) / COUNT == pytest.approx(found.value)
