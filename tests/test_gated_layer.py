"""Gated layers: what skipping computes, what it counts, and the penalty that keeps gates off."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from whet.errors import InputError, OptionError
from whet.layers.estimators import (
    ESTIMATORS,
    GatedLayer,
    gate_probability,
    gated_sum,
    score_function_loss,
    sparsity_penalty,
    stochastic_binary,
)

quick = settings(max_examples=25, deadline=None)  # timing is not under test
seeds = st.integers(0, 10**6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_penalty_is_the_divergence_of_the_mean_activity_and_zero_at_the_target(estimator):
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    q = gate_probability(logits, estimator).mean(0)
    rho = 0.1
    expected = rho * (rho / q).log() + (1 - rho) * ((1 - rho) / (1 - q)).log()
    assert torch.allclose(sparsity_penalty(logits, rho, estimator=estimator), expected.sum())
    logits.requires_grad_()
    assert gradcheck(lambda a: sparsity_penalty(a, rho, estimator=estimator), logits)
    same = logits.detach()[:1].expand(4, 2, 3)[..., :1]
    on = float(gate_probability(same, estimator)[0, 0, 0])
    assert abs(float(sparsity_penalty(same, on, estimator=estimator))) < 1e-12


def test_the_penalty_is_finite_where_every_gate_saturates_and_checks_its_target():
    for a in (-1e4, 1e4):
        logits = torch.full((5, 2), a, requires_grad=True)
        penalty = sparsity_penalty(logits, 0.1)
        penalty.backward()
        assert penalty.isfinite()
        assert (logits.grad.sign() == (1 if a > 0 else -1)).all()  # towards the target
    for target in (0.0, 1.0, -0.1):
        with pytest.raises(OptionError, match="target"):
            sparsity_penalty(logits, target)
    with pytest.raises(InputError, match="no rows"):
        sparsity_penalty(torch.zeros(0, 3), 0.5)


def make_experts(count=4, width=5, out=3, seed=0):
    torch.manual_seed(seed)
    return nn.ModuleList(
        nn.Sequential(nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, out)) for _ in range(count)
    ).double()


def gradients(x, gates, experts, skip):
    x, gates = x.clone().requires_grad_(), gates.clone().requires_grad_()
    experts.zero_grad(set_to_none=True)
    y = gated_sum(x, gates, experts, skip=skip)
    (y.sin() * torch.arange(1.0, 4.0, dtype=torch.double)).sum().backward()
    zero = torch.zeros((), dtype=torch.double)
    weights = [zero if p.grad is None else p.grad for p in experts.parameters()]
    return y.detach(), x.grad, gates.grad, weights


@quick
@given(seeds, st.floats(0, 1))
def test_skipping_equals_the_dense_computation_in_outputs_and_gradients(seed, share):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(7, 5, generator=generator, dtype=torch.double)
    gates = torch.rand(7, 4, generator=generator, dtype=torch.double)
    gates = gates * (torch.rand(7, 4, generator=generator) < share)
    experts = make_experts()
    y, dx, dgates, dw = gradients(x, gates, experts, skip=False)
    y2, dx2, dgates2, dw2 = gradients(x, gates, experts, skip=True)
    assert torch.allclose(y, y2, atol=1e-12)
    assert torch.allclose(dx, dx2, atol=1e-12)
    assert torch.allclose(dgates * (gates != 0), dgates2, atol=1e-12)
    for a, b in zip(dw, dw2, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_skipping_is_bitwise_where_sums_are_exact():
    # Integers in float64: every order of summation gives the same bits.
    generator = torch.Generator().manual_seed(0)
    experts = nn.ModuleList(
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in "ab"
    )
    experts = experts.double()
    with torch.no_grad():
        for p in experts.parameters():
            p.copy_(torch.randint(-9, 10, p.shape, generator=generator))
    x = torch.randint(-9, 10, (11, 5), generator=generator).double()
    gates = torch.randint(0, 3, (11, 2), generator=generator).double()
    dense, fast = (gated_sum(x, gates, experts, skip=s) for s in (False, True))
    assert torch.equal(dense, fast)
    assert not torch.equal(dense, gated_sum(x, gates.flip(1), experts))


def test_experts_see_only_the_rows_that_use_them():
    experts, seen = make_experts(), {}
    for e, expert in enumerate(experts):
        expert.register_forward_pre_hook(lambda _, args, e=e: seen.update({e: args[0]}))
    x = torch.randn(6, 5, dtype=torch.double)
    gates = torch.zeros(6, 4, dtype=torch.double)
    gates[[1, 4], 0], gates[:, 3], gates[2, 2] = 1.0, 0.5, -2.0
    y = gated_sum(x, gates, experts)
    assert sorted(seen) == [0, 2, 3]
    assert torch.equal(seen[0], x[[1, 4]])
    assert torch.equal(seen[2], x[[2]])
    assert y.shape == (6, 3)
    off = gated_sum(x, gates * 0, experts)
    assert torch.equal(off, torch.zeros(6, 3, dtype=torch.double))
    assert gated_sum(x[:0], gates[:0], experts).shape == (0, 3)


def test_counted_work_falls_with_the_share_of_gates_that_are_off():
    experts = make_experts()
    x = torch.randn(8, 5, dtype=torch.double)
    gates = torch.zeros(8, 4, dtype=torch.double)
    gates[:2, 0], gates[5:, 2] = 1.0, 1.0

    def flops(skip):
        with FlopCounterMode(display=False) as counter:
            gated_sum(x, gates, experts, skip=skip)
        return counter.get_total_flops()

    assert flops(True) * 32 == flops(False) * 5
    assert flops(False) == 8 * 4 * 2 * (5 * 6 + 6 * 3)


def test_gated_sums_name_what_does_not_fit():
    x = torch.randn(2, 5, dtype=torch.double)
    with pytest.raises(InputError, match=r"\(rows, experts\), \(2, 4\)"):
        gated_sum(x, x[:, :3], make_experts())
    with pytest.raises(InputError, match="empty"):
        gated_sum(x, x[:, :0], [])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_gated_layer_trains_its_gater_as_the_dense_layer_would(estimator):
    torch.manual_seed(0)
    layer = GatedLayer(nn.Linear(5, 4), make_experts(), estimator=estimator).double()
    layer.gater.bias.data -= 0.5
    x = torch.randn(2, 6, 5, dtype=torch.double)
    noise = torch.rand(2, 6, 4, dtype=torch.double)
    calls = []
    for expert in layer.experts:
        expert.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    found = layer(x, noise=noise)
    every_row = calls == [12] * 4
    assert every_row == (estimator in ("st", "st_sigmoid", "concrete"))
    if estimator != "concrete":
        assert (found.gates == 0).any()
    logits = layer.gater(x)
    gates = stochastic_binary(logits, estimator, noise=noise)
    dense = gated_sum(x.flatten(0, 1), gates.flatten(0, 1), layer.experts, skip=False)
    assert torch.allclose(found.output, dense.view(2, 6, 3), atol=1e-12)
    assert torch.equal(found.gates, gates)
    assert torch.equal(found.logits, logits)
    gater = list(layer.gater.parameters())
    if estimator == "reinforce":
        loss = found.output.square().sum(-1).flatten()
        term = score_function_loss(
            found.logits.flatten(0, 1), found.gates.flatten(0, 1), loss, loss.mean().item()
        )
        ours = torch.autograd.grad(term, gater)
        assert all(g.abs().sum() > 0 for g in ours)
        return
    ours = torch.autograd.grad(found.output.square().sum(), gater)
    theirs = torch.autograd.grad(dense.square().sum(), gater)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_gated_layer_in_evaluation_is_deterministic_and_skips(estimator):
    torch.manual_seed(0)
    layer = GatedLayer(nn.Linear(5, 4), make_experts(), estimator=estimator).double().eval()
    layer.gater.bias.data -= 0.5
    x = torch.randn(9, 5, dtype=torch.double)
    calls = []
    for expert in layer.experts:
        expert.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    with torch.no_grad():
        first, again = layer(x), layer(x)
        sampled = layer(x, sample=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.output, again.output)
    assert not torch.equal(first.gates, sampled.gates)
    used = int((first.gates != 0).sum() * 2 + (sampled.gates != 0).sum())
    assert sum(calls) == used
    dense = gated_sum(x, first.gates, layer.experts, skip=False)
    assert torch.allclose(first.output, dense, atol=1e-12)
    assert layer(x[0]).output.shape == (3,)
