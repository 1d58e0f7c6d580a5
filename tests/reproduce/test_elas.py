"""The proof of ELAS in miniature: it runs to the end and its record holds together."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from whet.errors import CheckpointError
from whet.measure import record as records
from whet.measure.items import load_items
from whet.models.elas_llama import ElasLlamaConfig, SparseFeedForward
from whet.reproduce import elas
from whet.reproduce.elas import ELAS, kept_bytes

TINY = dataclasses.replace(
    ELAS,
    characters=30_000,
    runs=2,
    steps=4,
    layers=2,
    width=32,
    intermediate=64,
    rank=8,
    length=32,
    batch_size=4,
    windows=8,
)


@pytest.fixture(scope="module", autouse=True)
def no_processes():
    """Peak memory is measured in processes of their own, which take seconds to start."""
    sizes = {True: 300, False: 200}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elas, "run_isolated", lambda _, asked: sizes[asked["plain"]])
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, no_processes):
    """(folder, record, progress) of one run."""
    folder, progress = tmp_path_factory.mktemp("elas"), []
    return folder, TINY._run(folder, "smoke", progress.append), progress


def test_the_record_holds_together(made):
    folder, record, progress = made
    assert (record.method, record.level) == ("elas", "smoke")
    names = [arm.name for arm in record.arms]
    assert names == [*elas._ARMS, elas._DEFAULT]
    arms = {arm.name: arm for arm in record.arms}
    for name in elas._ARMS:
        low, high = arms[name].metrics["nats"].ci
        assert 0 < low <= arms[name].metrics["nats"].value <= high
    assert {arms[n].settings["parameters"] for n in names[1:4]} == {
        arms["relu², dense"].settings["parameters"]
    }
    assert progress == sorted(progress)
    assert progress[-1] == 1
    assert record.verdict == records.verdict(record.claims)
    for claim in record.claims:
        if claim.kind == "ratio":
            a, b = (arms[x].metrics[claim.metric].value for x in (claim.a, claim.b))
            assert claim.value == pytest.approx(a / b)
    records.save(record, folder / "record.json")
    items = load_items(folder / "record.json", records.load(folder / "record.json"))
    for name in elas._ARMS:
        mean = np.mean(items["arms"][name]["nats"])
        assert mean == pytest.approx(arms[name].metrics["nats"].value)


def test_bytes_are_those_of_the_stored_tensors(made):
    _, record, _ = made
    width, rank, m = TINY.width, TINY.rank, 128
    kept = {
        arm.name: arm.metrics["kept_bytes"].value for arm in record.arms if arm.name != "SwiGLU"
    }
    assert kept == {
        "relu², dense": 4 * m,
        "relu², dense, autograd": 8 * m,
        "relu², 2:4": 2 * m + m / 8,
        "relu², 2:4, ste": 4 * m,
    }
    whole = {arm.name: arm.metrics["ffn_bytes"].value for arm in record.arms}
    for name, wide in kept.items():
        assert whole[name] == wide + 4 * (width + 2 * rank)


def test_what_is_counted_is_what_autograd_keeps():
    x = torch.randn(16, 8)
    layer = torch.nn.Sequential(torch.nn.Linear(8, 32, bias=False), torch.nn.ReLU())
    assert kept_bytes(layer, x) == x.nbytes + 16 * 32 * 4


def test_a_run_that_was_stopped_goes_on_and_other_text_is_refused(made):
    folder, record, _ = made
    again = TINY._run(folder, "smoke", lambda share: None)
    assert [c.value for c in again.claims] == [c.value for c in record.claims]
    other = dataclasses.replace(TINY, characters=29_000)
    with pytest.raises(CheckpointError, match="belongs to another recipe"):
        other._run(folder, "smoke", lambda share: None)


def test_text_of_ones_own_is_named_by_its_name_and_hash(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("One line after the other.\n" * 800, encoding="utf-8")
    proof = dataclasses.replace(TINY, data=path, runs=2, steps=2)
    record = proof._run(tmp_path / "out", "smoke", lambda share: None)
    assert record.settings["text"] == "own.txt"
    assert record.settings["text_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_equal_seeds_see_the_same_windows_and_test_windows_are_shared():
    text = ["Words and words and more. " * 1200]
    arms = [TINY._training(text, options, 0) for options in elas._ARMS.values()]
    assert all(torch.equal(a.batch(1).tokens, arms[0].batch(1).tokens) for a in arms)
    other = TINY._training(text, elas._ARMS["SwiGLU"], 1)
    assert not torch.equal(other.batch(1).tokens, arms[0].batch(1).tokens)
    assert torch.equal(other.windows.windows("test", 8), arms[0].windows.windows("test", 8))


def test_a_training_step_is_measured_in_its_own_process():
    model = TINY._model(elas._ARMS["relu², 2:4"]) | {"dense_steps": 0}
    assert elas.step_peak(model, 8, False) > 0


def test_the_plain_layer_is_the_dense_one():
    torch.manual_seed(0)
    config = ElasLlamaConfig(
        hidden_size=16, intermediate_size=32, num_attention_heads=2, rank=4, sparsify="none"
    )
    ffn = SparseFeedForward(config, 0)
    for parameter in ffn.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 16)
    assert torch.equal(elas._Plain(ffn)(x), ffn(x))
