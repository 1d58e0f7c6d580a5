"""The proof of SliceGPT in miniature: it runs to the end and its record holds together."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.models.test_roles_models import make, output
from whet.measure import record as records
from whet.measure.items import load_items
from whet.models.roles import axis, zero
from whet.reproduce import slicegpt
from whet.reproduce.slicegpt import SLICEGPT, increases, without_channels

TINY = dataclasses.replace(
    SLICEGPT,
    characters=30_000,
    runs=2,
    steps=4,
    layers=2,
    width=32,
    intermediate=48,
    length=32,
    batch_size=4,
    calibration=6,
    windows=8,
    sparsities=(0.25, 0.5),
    healed=0.5,
    healing_steps=2,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, record, progress) of one run."""
    folder, progress = tmp_path_factory.mktemp("slicegpt"), []
    return folder, TINY._run(folder, "smoke", progress.append), progress


def test_the_record_holds_together(made):
    folder, record, progress = made
    assert (record.method, record.level) == ("slicegpt", "smoke")
    arms = {arm.name: arm for arm in record.arms}
    assert len(arms) == 1 + 4 * len(TINY.sparsities) + 3
    for arm in arms.values():
        low, high = arm.metrics["perplexity"].ci
        assert 1 < low <= arm.metrics["perplexity"].value <= high
    assert progress == sorted(progress)
    assert progress[-1] == 1
    assert record.verdict == records.verdict(record.claims)
    assert len(record.claims) == 3 * len(TINY.sparsities) + 1
    for found in record.claims:
        a, b = (arms[x].metrics["perplexity"].value for x in (found.a, found.b))
        dense = arms["dense"].metrics["perplexity"].value
        added = found.metric == "perplexity added"
        expected = (a - dense) / (b - dense) if added else a / b
        assert found.value == pytest.approx(expected)
    records.save(record, folder / "record.json")
    items = load_items(folder / "record.json", records.load(folder / "record.json"))
    for name, arm in arms.items():
        mean = np.mean(items["arms"][name]["nats"])
        assert mean == pytest.approx(arm.metrics["nats"].value)


def test_arms_are_compared_at_equal_bytes(made):
    _, record, _ = made
    size = {arm.name: arm.settings["parameters"] for arm in record.arms}
    for sparsity in TINY.sparsities:
        sliced, energy, random, deleted = (
            size[slicegpt._arm(kind, sparsity)] for kind in slicegpt._KINDS
        )
        assert energy <= sliced == random <= deleted < size["dense"]
        assert deleted - sliced < size["dense"] / TINY.width
        healed = f"{slicegpt._arm('SliceGPT', TINY.healed)}, healed"
    assert size[healed] == size[slicegpt._arm("SliceGPT", TINY.healed)]


def test_a_run_that_was_stopped_goes_on_to_the_same_record(made):
    folder, record, _ = made
    again = TINY._run(folder, "smoke", lambda share: None)
    assert [c.value for c in again.claims] == [c.value for c in record.claims]


def test_calibration_windows_are_not_those_of_training_steps(made, tmp_path):
    windows = slicegpt.TextWindows(
        slicegpt.byte_tokenizer(), ["Words and words. " * 900], length=32, batch_size=4, seed=0
    )
    found = TINY._batches(windows)
    assert [len(batch["input_ids"]) for batch in found] == [4, 2]
    assert torch.equal(found[0]["input_ids"], windows.batch(TINY.steps))


def test_deleted_channels_are_the_weakest_and_leave_as_many_parameters():
    model = make("mistral")
    before = copy.deepcopy(model.state_dict())
    total = sum(p.numel() for p in model.parameters())
    cut = without_channels(model, 3 * total // 4)
    assert axis(cut, "residual").units == 12
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    weak = torch.tensor([2, 5, 7, 11])
    with torch.no_grad():
        zero(model, axis(model, "residual"), weak)
        for norm in (n for n, _ in model.named_modules() if "norm" in n):
            model.get_submodule(norm).weight[weak] = 1.0
    expected = output(model, "mistral")
    cut = without_channels(model, 3 * total // 4)
    assert (output(cut, "mistral") - expected).abs().max() < 1e-9


def test_added_perplexity_is_relative_to_dense():
    dense = np.full((2, 5), 1.0)
    a, b = dense + 0.1, dense + 0.3
    value, low, high = increases(a, b, dense)
    expected = (math.exp(1.1) - math.e) / (math.exp(1.3) - math.e)
    assert value == pytest.approx(expected)
    assert (low, high) == pytest.approx((expected, expected))
    noise = np.random.default_rng(0).normal(0, 0.05, (2, 5))
    value, low, high = increases(a + noise, b, dense)
    assert low < value < high
