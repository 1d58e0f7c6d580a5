"""The proof of gated estimators in miniature: it runs to the end and its record holds together."""

import dataclasses

import numpy as np
import pytest
import torch

from whet.measure import record as records
from whet.measure.items import load_items
from whet.measure.stats import two_level
from whet.reproduce import straight_through
from whet.reproduce.straight_through import STRAIGHT_THROUGH

TINY = dataclasses.replace(
    STRAIGHT_THROUGH,
    train=512,
    validation=60,
    test=50,
    experts=4,
    width=8,
    clusters=16,
    steps=8,
    batch_size=32,
    learning_rates=(0.01, 0.03),
    penalties=(0.3,),
    runs=2,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, record, progress) of one run."""
    folder, progress = tmp_path_factory.mktemp("straight"), []
    return folder, TINY._run(folder, "smoke", progress.append), progress


def test_every_arm_is_measured_and_the_dense_one_does_all_the_work(made):
    _, record, progress = made
    assert (record.method, record.level) == ("straight-through", "smoke")
    assert [arm.name for arm in record.arms] == list(straight_through._ARMS)
    for arm in record.arms:
        for name in ("accuracy", "off", "work", "still_accuracy", "sampled_off"):
            metric = arm.metrics[name]
            low, high = metric.ci
            assert 0 <= low <= metric.value <= high <= 1 + 1e-12
            assert metric.n == TINY.test
        assert arm.settings["learning_rate"] in TINY.learning_rates
    dense = record.arms[0]
    assert (dense.metrics["off"].value, dense.metrics["work"].value) == (0, 1)
    assert progress == sorted(progress)
    assert progress[-1] == 1


def test_counted_operations_are_the_work_that_is_stated(made):
    _, record, _ = made
    dense = record.arms[0].cost["flops"]
    for arm in record.arms:
        assert arm.cost["flops"] / dense == pytest.approx(arm.metrics["work"].value)
    assert any(arm.metrics["work"].value < 1 for arm in record.arms)
    assert dense == 2 * TINY.test * (16 * 8 + 8 * 4 + 4 * 8 * (16 + 8))


def test_claims_name_arms_and_follow_from_their_numbers(made):
    folder, record, _ = made
    compared = {(c.a, c.b, c.metric): (c.value, c.ci) for c in record.comparisons}
    arms = {arm.name: arm.metrics for arm in record.arms}
    assert len({c.name for c in record.claims}) == len(record.claims) >= 6
    for claim in record.claims:
        if claim.metric != "squared gradient":
            assert (claim.value, claim.ci) == compared[claim.a, claim.b, claim.metric]
            a, b = (arms[x][claim.metric].value for x in (claim.a, claim.b))
            assert claim.value == pytest.approx(a - b if claim.kind == "difference" else a / b)
    assert record.verdict == records.verdict(record.claims)
    records.save(record, folder / "record.json")
    items = load_items(folder / "record.json", records.load(folder / "record.json"))
    for arm in record.arms:
        columns = items["arms"][arm.name]
        assert np.mean(columns["correct"]) == pytest.approx(arm.metrics["accuracy"].value)
        assert 1 - np.mean(columns["on"]) == pytest.approx(arm.metrics["off"].value)


def test_equal_seeds_give_equal_nets_and_splits_do_not_overlap():
    gates, choice = straight_through._ARMS["st"], straight_through._Choice(0.01, 0.3, False)
    data = {n: TINY._draw(n, 50) for n in ("train", "validation", "test")}
    before = torch.random.get_rng_state()
    first, again, other = (TINY._train(gates, data["train"], choice, s) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    a, b, c = (
        torch.cat([p.flatten() for p in n.layer.parameters()]) for n in (first, again, other)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    rows = torch.cat([split.x for split in data.values()])
    assert len(rows.unique(dim=0)) == 150


def test_a_choice_over_the_budget_wins_only_where_none_keeps_it():
    # No gates are as rarely on as that, so the choice falls to the least work.
    data = {n: TINY._draw(n, getattr(TINY, n)) for n in ("train", "validation", "test")}
    gates = straight_through._ARMS["reinforce, no baseline"]
    strict = dataclasses.replace(TINY, budget=0.0, runs=1)
    chosen = strict._arm(gates, data).choice
    works = {}
    for rate in strict.learning_rates:
        net = strict._train(gates, data["train"], straight_through._Choice(rate, 0.3, False), 0)
        for sampled in (False, True):
            noise = straight_through.keyed_torch(strict.seed, "choice") if sampled else None
            _, on = straight_through._outcomes(net, gates, data["validation"], noise)
            works[rate, 0.3, sampled] = on.mean()
    assert works[tuple(chosen)] == min(works.values())


def test_intervals_over_runs_and_items_see_both():
    rng = np.random.default_rng(0)
    items, runs = rng.normal(size=(1, 400)), rng.normal(size=(5, 1))
    flat = np.zeros((5, 400))
    spread = {
        name: np.subtract(*two_level(x, None, "difference")[:0:-1])
        for name, x in {"items": flat + items, "runs": flat + runs, "both": items + runs}.items()
    }
    assert spread["items"] == pytest.approx(2 * 1.96 * items.std() / 20, rel=0.1)
    assert spread["runs"] == pytest.approx(2 * 1.96 * runs.std() / 5**0.5, rel=0.15)
    assert spread["both"] > spread["runs"]
    # Paired: what both arms share cancels, exactly.
    assert two_level(items + runs + 1, items + runs, "difference")[1:] == pytest.approx((1, 1))
    assert two_level(3 * (flat + 1 + runs**2), flat + 1 + runs**2, "ratio") == pytest.approx(
        (3, 3, 3)
    )
