"""The proof of consistency distillation in miniature, and its source's exact numbers."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from whet.measure import record as records
from whet.measure.items import load_items
from whet.reproduce.markov import Chain, exact
from whet.reproduce.mcd import MCD, entropies
from whet.rng import keyed

TINY = dataclasses.replace(
    MCD,
    width=16,
    layers=1,
    steps=4,
    rounds=2,
    round_steps=2,
    batch_size=4,
    samples=24,
    validation=8,
    temperatures=(1.0, 0.5),
    resamples=20,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, record, progress) of one run."""
    folder, progress = tmp_path_factory.mktemp("mcd"), []
    return folder, TINY._run(folder, "smoke", progress.append), progress


def test_the_chains_likelihood_is_a_law_and_its_entropy_the_expected_nll():
    """Enumerated: every sequence of five symbols of a chain of three."""
    chain = Chain.drawn(0, symbols=3)
    every = torch.tensor(list(itertools.product(range(3), repeat=5)))
    probability = np.exp(-5 * chain.nll(every))
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    entropy = -(probability * np.log(probability)).sum() / 5
    assert chain.entropy(5) == pytest.approx(entropy, abs=1e-12)
    # Stationary: what two symbols in a row are does not depend on where they stand.
    for start in range(4):
        pairs = np.zeros((3, 3))
        np.add.at(pairs, (every[:, start].numpy(), every[:, start + 1].numpy()), probability)
        np.testing.assert_allclose(pairs, chain.pairs, atol=1e-12)


def test_samples_of_the_chain_follow_it():
    chain = Chain.drawn(1, symbols=3)
    tokens = chain.sample(keyed(2), 20_000, 6)
    gap = chain.nll(tokens) - chain.entropy(6)
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5
    last = tokens[:, 3:].numpy()
    for a, b in ((0, 1), (2, 2)):
        follows = last[(last[:, 0] == a) & (last[:, 1] == b), 2]
        share = np.bincount(follows, minlength=3) / len(follows)
        error = np.sqrt(chain.transition[a, b] * (1 - chain.transition[a, b]) / len(follows))
        assert (np.abs(share - chain.transition[a, b]) < 4 * error + 1e-9).all()


def test_entropies_count_sequences_by_weight():
    tokens = torch.tensor([[0, 1, 0, 1], [2, 2, 2, 2]])
    both = entropies(tokens, np.array([1.0, 1.0]), symbols=3)
    assert both.entropy == pytest.approx(1.5 * np.log(2))
    assert both.pair_entropy == pytest.approx(-(2 / 6 * np.log(2 / 6) + 1 / 6 * np.log(1 / 6)
                                              + 0.5 * np.log(0.5)))  # fmt: skip
    first = entropies(tokens, np.array([1.0, 0.0]), symbols=3)
    assert first.entropy == pytest.approx(np.log(2))
    assert first.conditional_entropy == pytest.approx(np.log(2) - first.pair_entropy)
    twice = entropies(tokens.repeat(3, 1)[:5], np.array([2.0, 1, 0, 2, 0]), symbols=3)
    assert twice.entropy == pytest.approx(
        entropies(tokens, np.array([2.0, 3.0]), symbols=3).entropy
    )


def test_every_arm_is_measured_and_no_step_is_idle(made):
    _, record, progress = made
    assert (record.method, record.level) == ("mcd", "smoke")
    names = [arm.name for arm in record.arms]
    assert {f"teacher@{n}" for n in (4, 8, 16, 32, 64)} < set(names)
    assert {"source", "mcd@8", "mcd@4", "sdtt@8", "continued@8", "cold teacher@8"} < set(names)
    assert sum(name.startswith("mcd ") for name in names) == 2  # the divergence not chosen
    for arm in record.arms:
        for metric in arm.metrics.values():
            assert metric.ci[0] <= metric.value <= metric.ci[1]
            assert metric.n == TINY.samples
        if arm.name != "source":
            assert 0 < arm.cost["forwards"] <= int(arm.name.rpartition("@")[2])
    assert progress == sorted(progress)
    assert progress[-1] == 1


def test_claims_follow_from_the_arms(made):
    folder, record, _ = made
    arms = {arm.name: arm.metrics for arm in record.arms}
    assert len({c.name for c in record.claims}) == len(record.claims) >= 8
    for claim in record.claims:
        a, b = (arms[x][claim.metric].value for x in (claim.a, claim.b))
        assert claim.value == pytest.approx(a / b)
    assert record.verdict == records.verdict(record.claims)
    records.save(record, folder / "record.json")
    items = load_items(folder / "record.json", records.load(folder / "record.json"))
    for name, columns in items["arms"].items():
        assert np.mean(columns["gap"]) == pytest.approx(arms[name]["gap"].value, abs=1e-6)


def test_a_second_run_finds_the_trained_models(made):
    folder, record, _ = made
    again = TINY._run(folder, "smoke", lambda share: None)
    assert [a.metrics for a in again.arms] == [a.metrics for a in record.arms]


@pytest.mark.parametrize(
    "row", [[3, 1, 3, 3, 2], [3, 3, 3, 3, 3], [0, 3, 3, 1, 3], [0, 1, 2, 0, 1], [3, 3, 0, 3, 3]]
)
def test_the_exact_conditionals_are_those_of_enumeration(row):
    chain = Chain.drawn(1, symbols=3)
    every = torch.tensor(list(itertools.product(range(3), repeat=len(row))))
    law = torch.from_numpy(np.exp(-len(row) * chain.nll(every)))
    known = torch.tensor(row)
    law[((every != known) & (known != 3)).any(-1)] = 0
    wanted = torch.stack([(law[:, None] * (every == s)).sum(0) for s in range(3)], -1)
    found = chain.posterior(known[None], mask_token_id=3)[0]
    torch.testing.assert_close(found, wanted / law.sum(), rtol=0, atol=1e-12)


def test_a_chain_of_no_memory_leaves_nothing_to_lose(made):
    """Then few steps are as good as many, and the exact sampler's gap is noise around 0."""
    chain = Chain.drawn(2, near=0.0, far=0.0)
    many = dataclasses.replace(TINY, samples=64)
    found = many._sampled(chain, TINY._fresh().eval(), 4, 1.0, make_provider=exact(chain))
    assert abs(found.value["gap"]) < 1e-9  # all texts are equally likely


def test_the_exact_sampler_gains_from_steps(made):
    gaps = {a.name: a.metrics["gap"].value for a in made[1].arms if a.name.startswith("exact")}
    assert gaps["exact@4"] > gaps["exact@8"] > gaps["exact@64"]
