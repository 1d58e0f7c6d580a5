"""The proof of NAP in miniature: it runs to the end and its record holds together."""

import dataclasses

import pytest

from whet.measure import record as records
from whet.measure.items import load_items
from whet.reproduce.nap import NAP
from whet.zoo import load

TINY = dataclasses.replace(
    NAP,
    sets=24,
    steps=3,
    batch_size=4,
    problems=6,
    per_step=(1, 4),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, record, progress) of one run."""
    folder, progress = tmp_path_factory.mktemp("nap"), []
    return folder, TINY._run(folder, "smoke", progress.append), progress


def test_every_model_is_asked_by_every_schedule(made):
    _, record, progress = made
    assert (record.method, record.level) == ("nap", "smoke")
    assert {arm.name for arm in record.arms} == {
        f"{model} {order}, {count}"
        for model in ("nap", "chain")
        for order in ("forced", "any order")
        for count in (1, 4)
    }
    arms = {arm.name: arm.metrics for arm in record.arms}
    for metrics in arms.values():
        assert metrics["accuracy"].n == 6
        assert 0 < metrics["arness"].value <= 1
    for model in ("nap", "chain"):
        forwards = [arms[f"{model} forced, {count}"]["forwards"].value for count in (1, 4)]
        assert forwards[1] < forwards[0]
    assert progress == sorted(progress)
    assert progress[-1] == pytest.approx(1)


def test_claims_follow_from_comparisons_between_arms(made):
    _, record, _ = made
    names = {arm.name for arm in record.arms}
    compared = {(c.a, c.b, c.metric): (c.value, c.ci) for c in record.comparisons}
    assert len({c.name for c in record.claims}) == len(record.claims) == 6
    for claim in record.claims:
        assert {claim.a, claim.b} <= names
        assert (claim.value, claim.ci) == compared[claim.a, claim.b, claim.metric]
    assert record.verdict == records.verdict(record.claims)


def test_items_give_the_metrics_back(made):
    folder, record, _ = made
    records.save(record, folder / "nap.json")
    items = load_items(folder / "nap.json", records.load(folder / "nap.json"))
    assert len(set(items["ids"])) == 6
    for arm in record.arms:
        columns = items["arms"][arm.name]
        for key, metric in (("correct", "accuracy"), ("steps", "forwards"), ("arness", "arness")):
            assert sum(columns[key]) / 6 == pytest.approx(arm.metrics[metric].value, abs=1e-5)
    lost = next(c for c in record.comparisons if c.metric == "lost accuracy")
    right = {n: sum(items["arms"][n]["correct"]) / 6 for n in items["arms"]}
    drops = [right[f"{n}, 1"] - right[f"{n}, 4"] for n in ("chain any order", "nap forced")]
    assert lost.value == pytest.approx(drops[0] - drops[1])


def test_both_models_saw_the_same_number_of_tokens(made):
    folder, _, _ = made
    runs = folder / "nap.runs" / "smoke"
    for arm in ("nap", "chain"):
        model, tokenizer = load(runs / arm / "model")
        assert "<think 3>" in tokenizer.get_vocab()
        assert model.config.n_layers == load(TINY.init)[0].config.n_layers
    batches = []
    for form in ("paths", "chain"):
        from whet.dlm.nap.training import NapTraining

        training = NapTraining(TINY._recipe(form, runs / "sets"))
        batches.append([training.tokens(training.batch(step)) for step in range(3)])
    assert batches[0] == batches[1]


def test_a_second_run_trains_nothing_again(made):
    folder, record, _ = made
    before = {p: p.stat().st_mtime_ns for p in (folder / "nap.runs").rglob("checkpoint/*")}
    assert before
    again = TINY._run(folder, "smoke", lambda share: None)
    assert {p: p.stat().st_mtime_ns for p in (folder / "nap.runs").rglob("checkpoint/*")} == before
    assert [a.metrics for a in again.arms] == [a.metrics for a in record.arms]
