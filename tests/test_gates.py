"""What gates of every estimator share: how often they open, seeds, precision, noise replayed."""

import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from whet.errors import OptionError
from whet.layers.estimators import (
    ESTIMATORS,
    gate_noise,
    gate_probability,
    sparsity_penalty,
    stochastic_binary,
)

STEPS = ("st", "st_sigmoid", "reinforce")


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("a", [-3.0, -0.4, 0.0, 1.7])
def test_gates_are_on_with_the_probability_that_is_said(estimator, a):
    n = 20_000
    noise = (torch.arange(n, dtype=torch.double) + 0.5) / n
    gates = stochastic_binary(torch.full_like(noise, a), estimator, noise=noise)
    on = gates > 0.5 if estimator == "concrete" else gates != 0
    said = float(gate_probability(torch.tensor(a, dtype=torch.double), estimator))
    assert abs(float(on.double().mean()) - said) <= 1 / n
    assert (gates >= 0).all()
    if estimator in STEPS:
        assert set(gates.tolist()) <= {0.0, 1.0}
    if estimator == "hard_concrete":
        assert gates.max() == 1


def test_temperature_counts_for_the_concrete_gates():
    a = torch.linspace(-2, 2, 9, dtype=torch.double)
    noise = torch.full_like(a, 0.3)
    for estimator in ("concrete", "hard_concrete"):
        warm, cold = (
            stochastic_binary(a, estimator, noise=noise, temperature=t) for t in (1.0, 0.01)
        )
        assert not torch.equal(warm, cold)
        step = stochastic_binary(a, "st", noise=noise)
        assert torch.allclose(cold, step, atol=1e-6)
    assert gate_probability(a, "hard_concrete", temperature=1.0).gt(a.sigmoid()).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_seeds_draw_equal_gates_and_evaluation_draws_nothing(estimator):
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(9))
    draws = [
        stochastic_binary(logits, estimator, generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    noise = gate_noise(logits, torch.Generator().manual_seed(1))
    assert torch.equal(draws[0], stochastic_binary(logits, estimator, noise=noise))
    before = torch.random.get_rng_state()
    still = stochastic_binary(logits, estimator, sample=False)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(
        still, stochastic_binary(logits, estimator, noise=torch.full_like(logits, 0.5))
    )


def test_without_noise_a_gate_opens_from_zero_on():
    a = torch.tensor([-1.0, -1e-30, -0.0, 0.0, 1e-30, 2.0], requires_grad=True)
    for estimator in STEPS:
        gates = stochastic_binary(a, estimator, sample=False)
        assert gates.tolist() == [0, 0, 1, 1, 1, 1]
    assert torch.equal(stochastic_binary(a, "noisy_relu", sample=False), a.relu())
    quarter = torch.tensor([0.2499, 0.2501]).logit()
    assert (stochastic_binary(quarter, "sts", sample=False) > 0).tolist() == [False, True]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_low_precision_gates_open_as_often_as_the_logits_say(estimator):
    # P(on) = 1/1000, which 8 bits of uniform noise could not give.
    logits = torch.full((200_000,), -6.9, dtype=torch.bfloat16)
    said = float(gate_probability(logits.double(), estimator)[0])
    gates = stochastic_binary(logits, estimator, generator=torch.Generator().manual_seed(0))
    on = gates > 0.5 if estimator == "concrete" else gates != 0
    assert abs(float(on.double().mean()) - said) < 5 * (said / 200_000) ** 0.5
    assert gates.dtype == torch.bfloat16


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_logit_that_is_nan_does_not_become_a_gate_that_is_off(estimator):
    assert stochastic_binary(torch.tensor([torch.nan]), estimator).isnan().all()


def test_gradients_can_be_scaled_and_wrong_options_are_refused():
    logits = torch.randn(6, requires_grad=True)
    noise = torch.rand(6)
    for estimator in ("st", "noisy_relu", "concrete"):
        one, three = (
            stochastic_binary(logits, estimator, noise=noise, gradient_scale=s) for s in (1.0, 3.0)
        )
        assert torch.equal(one, three)
        (g,), (k,) = (torch.autograd.grad(h.sum(), logits) for h in (one, three))
        assert torch.allclose(3 * g, k)
    plain = stochastic_binary.__wrapped__
    with pytest.raises(OptionError, match="did you mean 'sts'"):
        plain(logits, "stss")
    with pytest.raises(OptionError, match="temperature=0"):
        plain(logits, "concrete", temperature=0)
    with pytest.raises(OptionError, match="noise has shape"):
        plain(logits, noise=torch.rand(5))
    for wrong in ({"sample": False}, {"generator": torch.Generator()}):
        with pytest.raises(OptionError, match="takes the place"):
            plain(logits, noise=noise, **wrong)


def checkpointed(run, logits):
    logits = logits.clone().requires_grad_()
    torch.manual_seed(5)
    checkpoint(run, logits, use_reentrant=False).backward()
    return logits.grad


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_noise_is_replayed_under_activation_checkpointing(estimator):
    logits = torch.randn(64, generator=torch.Generator().manual_seed(2))

    def cost(gates):
        return (gates * logits).sum().sin() + gates.square().sum()

    def plain(run):
        a = logits.clone().requires_grad_()
        torch.manual_seed(5)
        run(a).backward()
        return a.grad

    noise = gate_noise(logits)
    for run in (
        lambda a: cost(stochastic_binary(a, estimator)),
        lambda a: cost(stochastic_binary(a, estimator, noise=noise)),
    ):
        expected = plain(run) if estimator != "reinforce" else None
        if expected is not None:
            assert torch.equal(checkpointed(run, logits), expected)


def test_a_generator_of_ones_own_is_not_replayed():
    # Why `noise` exists: the second forward draws on, and its gates are other ones.
    logits = torch.zeros(64)
    seen = []

    def run(a, generator):
        gates = stochastic_binary(a, "st", generator=generator)
        seen.append(gates.detach())
        return gates.square().sum()

    generator = torch.Generator().manual_seed(0)
    checkpointed(lambda a: run(a, generator), logits)
    assert len(seen) == 2
    assert not torch.equal(*seen)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_saturated_logits_keep_values_and_gradients_finite(estimator, dtype):
    logits = torch.tensor([-3e4, -200, -90, 0, 90, 200, 3e4], dtype=dtype, requires_grad=True)
    gates = stochastic_binary(logits, estimator, noise=torch.full((7,), 0.5))
    (gates.sum() + sparsity_penalty(logits[None], 0.1, estimator=estimator)).backward()
    assert gates.dtype == dtype
    assert gates.isfinite().all()
    assert logits.grad.isfinite().all()
    assert gates[0] == 0
    assert gates[-1] >= 1


def test_gates_are_captured_as_one_graph():
    # In a process of its own: the checks of annotations that tests install cannot be traced.
    code = """
import torch
from whet.layers.estimators import stochastic_binary

a = torch.linspace(-2, 2, 9, requires_grad=True)
for estimator in ("st_sigmoid", "sts"):
    def cost(x):
        return stochastic_binary(x, estimator, noise=torch.full_like(x, 0.3)).sin().sum()
    run = torch.compile(cost, backend="aot_eager", fullgraph=True)
    (found,), (expected,) = (torch.autograd.grad(f(a), a) for f in (run, cost))
    assert torch.equal(found, expected), estimator
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
