"""Estimators of gradients through gates, against exact enumeration of every state in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import softplus

from whet.errors import InputError, OptionError
from whet.layers.estimators import (
    RunningBaseline,
    gate_noise,
    leave_one_out_baseline,
    score_function_loss,
    stochastic_binary,
    straight_through,
)

A = torch.tensor([0.3, -0.7, 1.2], dtype=torch.double)
C = torch.tensor([1.0, -2.0, 0.5], dtype=torch.double)
Q = torch.tensor([[0, 1, -0.3], [1, 0, 0.8], [-0.3, 0.8, 0]], dtype=torch.double)
STEPS = ("st", "st_sigmoid", "reinforce")
quick = settings(max_examples=25, deadline=None)  # timing is not under test
logit_lists = st.lists(st.floats(-4, 4), min_size=2, max_size=4)
seeds = st.integers(0, 10**6)


def double(values):
    return torch.tensor(values, dtype=torch.double)


def loss_of(h):
    """L(h) per row: linear, pairwise and squared terms."""
    linear = h @ C
    return linear + ((h @ Q) * h).sum(-1) + linear**2


def random_loss(units, seed):
    """A loss of every interaction: one number per product of units."""
    subsets = double(list(itertools.product([0, 1], repeat=units)))
    weights = torch.randn(
        len(subsets), generator=torch.Generator().manual_seed(seed), dtype=torch.double
    )
    return lambda h: (torch.where(subsets > 0, h[..., None, :], 1.0).prod(-1) * weights).sum(-1)


def enumerated(on):
    """(states [2^n, n], their probabilities, noise that gives them), gates on with P = on."""
    states = double(list(itertools.product([0, 1], repeat=len(on))))
    probability = torch.where(states > 0, on, 1 - on).prod(-1)
    return states, probability, torch.where(states > 0, on / 2, (1 + on) / 2)


def true_gradient(a, loss, open_probability=torch.sigmoid, value=None):
    """d/da of the sum over states of P(state) L(values of the gates)."""
    a = a.detach().clone().requires_grad_()
    on = open_probability(a)
    states, probability, _ = enumerated(on)
    gates = states if value is None else states * value(a)
    (probability * loss(gates)).sum().backward()
    return a.grad


def expected_gradient(a, loss, estimator, **options):
    """The estimator's gradient, averaged over every state by its probability."""
    on = a.sigmoid().sqrt() if estimator == "sts" else a.sigmoid()
    states, probability, noise = enumerated(on)
    logits = a.expand(len(states), -1).clone().requires_grad_()
    gates = stochastic_binary(logits, estimator, noise=noise, **options)
    assert torch.equal(gates.detach() > 0, states > 0)
    (probability * loss(gates)).sum().backward()
    return logits.grad.sum(0)


def score_gradients(a, loss, baseline=0.0):
    """(states, probabilities, the score-function gradient in each state)."""
    states, probability, noise = enumerated(a.sigmoid())
    logits = a.expand(len(states), -1).clone().requires_grad_()
    gates = stochastic_binary(logits, "reinforce", noise=noise)
    score_function_loss(logits, gates, loss(gates), baseline).backward()
    return states, probability, logits.grad * len(states)  # it is a mean over rows


# the score function


@quick
@given(logit_lists, seeds)
def test_the_score_function_is_unbiased_with_any_constant_baseline(a, seed):
    a, loss = double(a), random_loss(len(a), seed)
    baseline = torch.randn(
        1, len(a), generator=torch.Generator().manual_seed(seed + 1), dtype=torch.double
    )
    for b in (0.0, 7.0, 10 * baseline):
        _, probability, gradients = score_gradients(a, loss, b)
        assert torch.allclose(
            probability @ gradients, true_gradient(a, loss), rtol=1e-11, atol=1e-11
        )


def test_the_known_case_of_three_units():
    # Figures of a separate enumeration, not of this code.
    assert torch.allclose(true_gradient(A, loss_of), double([0.4018, 0.1205, 0.1507]), atol=5e-5)
    _, probability, gradients = score_gradients(A, loss_of)
    assert torch.allclose(probability @ gradients, true_gradient(A, loss_of), atol=1e-12)


def optimal_baseline(a, loss):
    states, probability, _ = enumerated(a.sigmoid())
    weight = probability[:, None] * (states - a.sigmoid()) ** 2
    return (weight * loss(states)[:, None]).sum(0, keepdim=True) / weight.sum(0)


def variance(a, loss, baseline):
    _, probability, gradients = score_gradients(a, loss, baseline)
    return probability @ gradients**2 - (probability @ gradients) ** 2


def test_the_weighted_mean_of_the_loss_has_the_least_variance_of_all_baselines():
    best = optimal_baseline(A, loss_of)
    least = variance(A, loss_of, best)
    states, probability, _ = enumerated(A.sigmoid())
    mean = float(probability @ loss_of(states))
    assert torch.allclose(least, double([0.1216, 0.1221, 0.1524]), atol=5e-5)
    assert torch.allclose(variance(A, loss_of, mean), double([0.1362, 0.1296, 0.1892]), atol=5e-5)
    assert torch.allclose(variance(A, loss_of, 0.0), double([0.947, 1.260, 0.623]), atol=1e-3)
    for step in (-1.0, -1e-3, 1e-3, 1.0):
        # A parabola in each unit's baseline, with E[(h - p)^2] = p (1 - p) as its curvature.
        p = A.sigmoid()
        found = variance(A, loss_of, best + step) - least
        assert torch.allclose(found, p * (1 - p) * step**2, rtol=1e-6)


@quick
@given(logit_lists, seeds)
def test_no_other_constant_beats_the_optimal_baseline(a, seed):
    a, loss = double(a), random_loss(len(a), seed)
    best = optimal_baseline(a, loss)
    least = variance(a, loss, best)
    for other in (0.0, best + 0.1, best - 0.1, float(loss(torch.zeros_like(a)))):
        assert (variance(a, loss, other) >= least - 1e-10).all()


def test_a_baseline_from_the_batch_before_is_unbiased():
    a, loss = double([0.4, -1.1]), random_loss(2, 3)
    states, probability, _ = enumerated(a.sigmoid())
    total = torch.zeros_like(a)
    for earlier, chance in zip(states, probability, strict=True):
        running = RunningBaseline(2, momentum=0.5).double()
        running(a[None], earlier[None], loss(earlier[None]))
        now = running(a.expand_as(states), states, loss(states))
        assert torch.equal(now, now[:1].expand_as(now))  # what is drawn now changes nothing
        total += chance * (probability @ score_gradients(a, loss, now)[2])
    assert torch.allclose(total, true_gradient(a, loss), atol=1e-12)


@pytest.mark.parametrize(("own_row", "unbiased"), [(False, True), (True, False)])
def test_a_baseline_from_the_same_batch_is_unbiased_only_without_the_row_itself(own_row, unbiased):
    a, loss = double([0.4, -1.1]), random_loss(2, 3)
    states, probability, _ = enumerated(a.sigmoid())
    total = torch.zeros_like(a)
    for i, j in itertools.product(range(4), repeat=2):
        gates = states[[i, j]]
        logits = a.expand(2, -1).clone().requires_grad_()
        baseline = leave_one_out_baseline(logits, gates, loss(gates))
        if own_row:
            weight = (gates - a.sigmoid()) ** 2
            baseline = (weight * loss(gates)[:, None]).sum(0, keepdim=True) / weight.sum(0)
        score_function_loss(logits, gates, loss(gates), baseline).backward()
        total += probability[i] * probability[j] * logits.grad.sum(0)
    assert torch.allclose(total, true_gradient(a, loss), atol=1e-12) == unbiased


def test_running_averages_start_at_the_first_batch_and_reach_the_optimum():
    # Eight rows whose shares of states are exactly those of p = 1/4 and 1/2.
    a = double([1 / 4, 1 / 2]).logit()
    gates = double([[1, 0], [1, 1], *3 * [[0, 0]], *3 * [[0, 1]]])
    loss, logits = random_loss(2, 5), a.expand(8, -1)
    running = RunningBaseline(2, momentum=0.9).double()
    first = running(logits, gates, loss(gates))
    assert torch.equal(first, leave_one_out_baseline(logits, gates, loss(gates)))
    best = optimal_baseline(a, loss).expand_as(first)
    assert torch.allclose(running(logits, gates, loss(gates)), best)
    # The ratio of averages, not the average of ratios.
    running(logits, 1 - gates, 2 * loss(gates))
    p = a.sigmoid()
    w, v = (gates - p) ** 2, (1 - gates - p) ** 2
    numerator = 0.9 * (w * loss(gates)[:, None]).mean(0) + 0.2 * (v * loss(gates)[:, None]).mean(0)
    expected = numerator / (0.9 * w.mean(0) + 0.1 * v.mean(0))
    state = {name: t.clone() for name, t in running.state_dict().items()}
    assert torch.allclose(running.eval()(logits, gates, loss(gates)), expected.expand_as(first))
    assert all(torch.equal(t, state[name]) for name, t in running.state_dict().items())
    resumed = RunningBaseline(2).double().eval()
    resumed.load_state_dict(state)
    assert torch.equal(resumed(logits, gates, loss(gates)), running(logits, gates, loss(gates)))


def test_leave_one_out_is_the_weighted_mean_of_the_other_rows():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.double)
    gates = stochastic_binary(logits, "reinforce", generator=generator)
    loss = torch.randn(5, generator=generator, dtype=torch.double)
    found = leave_one_out_baseline(logits, gates, loss)
    weight = (gates - logits.sigmoid()) ** 2
    for row in range(5):
        rest = [r for r in range(5) if r != row]
        expected = (weight[rest] * loss[rest, None]).sum(0) / weight[rest].sum(0)
        assert torch.allclose(found[row], expected)
    assert torch.equal(leave_one_out_baseline(logits[:1], gates[:1], loss[:1]), 0 * found[:1])


def test_the_surrogate_leaves_other_gradients_alone_and_takes_one_loss_per_row():
    logits = torch.randn(4, 3, requires_grad=True)
    gates = stochastic_binary(logits, "reinforce")
    weight = torch.ones(3, requires_grad=True)
    loss = (gates * weight).sum(1)
    (loss.mean() + score_function_loss(logits, gates, loss)).backward()
    assert torch.allclose(weight.grad, gates.mean(0))
    assert torch.allclose(
        logits.grad, (gates - logits.sigmoid()).detach() * loss.detach()[:, None] / 4
    )
    for wrong in (loss.mean(), loss[:2]):
        with pytest.raises((InputError, TypeError)):
            score_function_loss.__wrapped__(logits, gates, wrong)
    with pytest.raises(OptionError, match="units=0"):
        RunningBaseline(0)
    with pytest.raises(OptionError, match=r"momentum=1\.0"):
        RunningBaseline(2, momentum=1.0)


# stochastic times smooth


@quick
@given(logit_lists, seeds)
def test_smooth_gates_give_half_of_a_linear_losss_gradient_and_all_of_it_when_doubled(a, seed):
    a = double(a)
    c = torch.randn(len(a), generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    p = a.sigmoid()
    true = true_gradient(
        a, lambda h: h @ c, lambda x: x.sigmoid().sqrt(), lambda x: x.sigmoid().sqrt()
    )
    assert torch.allclose(true, c * p * (1 - p), atol=1e-13)
    assert torch.allclose(expected_gradient(a, lambda h: h @ c, "sts"), true / 2, atol=1e-13)
    doubled = expected_gradient(a, lambda h: h @ c, "sts", gradient_scale=2.0)
    assert torch.allclose(doubled, true, atol=1e-13)


def test_smooth_gates_have_mean_p_and_are_off_with_one_minus_its_root():
    p = A.sigmoid()
    states, probability, noise = enumerated(p.sqrt())
    gates = stochastic_binary(A.expand(8, -1), "sts", noise=noise)
    assert torch.allclose(probability @ gates, p, atol=1e-15)
    assert torch.allclose(probability @ (gates == 0).double(), 1 - p.sqrt(), atol=1e-15)
    assert torch.allclose(gates[-1], p.sqrt())
    assert torch.equal(gates == 0, states == 0)
    # Only the smooth factor of a gate that is on has a derivative: p (1 - p) / (2 sqrt(p)).
    logits = A.expand(8, -1).clone().requires_grad_()
    stochastic_binary(logits, "sts", noise=noise).sum().backward()
    assert torch.allclose(logits.grad, states * p * (1 - p) / (2 * p.sqrt()), atol=1e-15)


def test_smooth_gates_are_biased_where_units_interact():
    root = lambda x: x.sigmoid().sqrt()  # noqa: E731
    true = true_gradient(A, loss_of, root, root)
    assert not torch.allclose(expected_gradient(A, loss_of, "sts"), true, rtol=0.1)
    assert not torch.allclose(expected_gradient(A, loss_of, "sts"), true / 2, rtol=0.1)


# straight-through


def test_straight_through_has_the_wrong_sign_where_units_interact():
    identity = expected_gradient(A, loss_of, "st")
    assert torch.allclose(identity, double([1.793, -0.802, 0.981]), atol=5e-4)
    assert (identity.sign() == true_gradient(A, loss_of).sign()).tolist() == [True, False, True]
    # In expectation it is E[dL/dh]; the sigmoid variant multiplies by p (1 - p).
    p = A.sigmoid()
    states, probability, _ = enumerated(p)
    h = states.clone().requires_grad_()
    loss_of(h).sum().backward()
    assert torch.allclose(identity, probability @ h.grad, atol=1e-12)
    assert torch.allclose(
        expected_gradient(A, loss_of, "st_sigmoid"), p * (1 - p) * identity, atol=1e-12
    )


@quick
@given(logit_lists, seeds)
def test_sigmoid_straight_through_is_exact_for_losses_linear_in_each_unit(a, seed):
    # There dL/dh_i is the difference that flipping the gate makes, and the gates are independent.
    a, loss = double(a), random_loss(len(a), seed)
    found = expected_gradient(a, loss, "st_sigmoid")
    assert torch.allclose(found, true_gradient(a, loss), rtol=1e-10, atol=1e-12)


@quick
@given(st.floats(-4, 4), st.floats(0.01, 3) | st.floats(-3, -0.01), st.floats(-3, 3))
def test_straight_through_of_one_unit_has_the_right_sign_if_the_loss_is_linear(a, c, d):
    a = double([a])
    true = true_gradient(a, lambda h: c * h[:, 0] + d)
    found = expected_gradient(a, lambda h: c * h[:, 0] + d, "st")
    assert torch.equal(found.sign(), true.sign())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_are_exact_in_low_precision_where_the_usual_trick_rounds(dtype):
    x = torch.tensor([-0.3, 0.3, 300.0, -300.0, 5e3, 3e4], dtype=dtype)
    hard = (x >= 0).to(dtype)
    x.requires_grad_()
    upstream = torch.tensor([0.1, -7, 3, 2, 5, -0.3], dtype=dtype)
    gates = straight_through(hard, x)
    gates.backward(upstream)
    assert torch.equal(gates, hard)
    assert torch.equal(x.grad, upstream)
    trick = x + (hard - x).detach()
    assert torch.equal(trick, hard) == (dtype == torch.float32)
    if dtype == torch.bfloat16:
        assert trick[2] == 0  # 300 + (1 - 300) is 0 there
        moved = torch.tensor([-0.3], dtype=dtype)
        assert round(float(moved + (1 - moved)), 3) == 0.996


SOFT = {
    "identity": lambda x: x,
    "clip": lambda x: x.clamp(-1, 1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda x: x.softmax(-1),
}


@pytest.mark.parametrize("soft", SOFT)
def test_any_rounding_takes_the_gradient_of_its_soft_form(soft):
    generator = torch.Generator().manual_seed(1)
    x, up = (torch.randn(4, 5, generator=generator, dtype=torch.double) for _ in range(2))
    hard = torch.nn.functional.one_hot(x.argmax(-1), 5).double()
    x.requires_grad_()
    found = straight_through(hard, SOFT[soft](x))
    assert torch.equal(found, hard)
    (grad,) = torch.autograd.grad(found, x, up, retain_graph=True)
    (expected,) = torch.autograd.grad(SOFT[soft](x), x, up)
    assert torch.equal(grad, expected)
    # With equal values it is the identity, in first and second derivatives.
    assert gradcheck(lambda t: straight_through(SOFT[soft](t).detach(), SOFT[soft](t)), x)
    assert gradgradcheck(lambda t: straight_through(SOFT[soft](t).detach(), SOFT[soft](t)), x)


def test_straight_through_does_not_share_memory_and_rejects_other_shapes():
    hard, soft = torch.ones(3), torch.zeros(3, requires_grad=True)
    straight_through(hard, soft).detach().zero_()
    assert torch.equal(hard, torch.ones(3))
    hard.requires_grad_()
    grads = torch.autograd.grad(straight_through(hard, soft).sum(), (hard, soft), allow_unused=True)
    assert grads[0] is None
    assert torch.equal(grads[1], torch.ones(3))
    with pytest.raises(OptionError, match="shape"):
        straight_through.__wrapped__(torch.ones(2), soft)


def test_straight_through_works_under_vmap_and_grad():
    x = torch.randn(4, 3, dtype=torch.double)

    def total(row):
        return (straight_through((row >= 0).double(), row.sigmoid()) * C).sum()

    found = torch.func.vmap(torch.func.grad(total))(x)
    assert torch.allclose(found, C * x.sigmoid() * (1 - x.sigmoid()))


# noise injection


def quadrature(kink, width=40.0, step=0.01):
    """(noise u, weights) for E over u: midpoints of a grid of logit(u) with an edge at the kink."""
    t = torch.arange(-width, width, step, dtype=torch.double) + kink + step / 2
    t = t[t.abs() < 34]  # beyond, u rounds to 0 or 1
    return t.sigmoid(), t.sigmoid() * (-t).sigmoid() * step


def test_the_noisy_rectifier_has_the_mean_softplus_and_its_gradient_is_exact():
    a = double([0.6, -0.9])
    (u, v), (w, z) = zip(*(quadrature(float(x)) for x in a), strict=True)
    for x, noise, weights in ((a[0], u, w), (a[1], v, z)):
        h = stochastic_binary(x.expand_as(noise), "noisy_relu", noise=noise)
        assert torch.allclose(weights @ h, softplus(x), atol=1e-5)
        assert torch.allclose(weights @ (h > 0).double(), x.sigmoid(), atol=1e-5)
    # E[h0 h1 + h0^2], d/da E[h^2] = 2 E[h]: every pair of noises on a coarser grid.
    (u, w), (v, z) = (quadrature(float(x), step=0.1) for x in a)
    noise = torch.cartesian_prod(u, v)
    weights = torch.cartesian_prod(w, z).prod(-1)
    logits = a.expand_as(noise).clone().requires_grad_()
    h = stochastic_binary(logits, "noisy_relu", noise=noise)
    (weights * (h[:, 0] * h[:, 1] + h[:, 0] ** 2)).sum().backward()
    s, p = softplus(a), a.sigmoid()
    assert torch.allclose(
        logits.grad.sum(0), torch.stack([p[0] * s[1] + 2 * s[0], p[1] * s[0]]), atol=2e-3
    )


def test_the_noisy_rectifier_by_sampling():
    generator = torch.Generator().manual_seed(0)
    n = 200_000
    for a in (-1.5, 0.0, 2.0):
        h = stochastic_binary(torch.full((n,), a), "noisy_relu", generator=generator)
        p = torch.tensor(a).sigmoid()
        assert abs((h > 0).float().mean() - p) < 4 * (p * (1 - p) / n).sqrt()
        assert abs(h.mean() - softplus(torch.tensor(a))) < 4 * h.std() / n**0.5


def test_the_concrete_gate_at_temperature_one_has_its_closed_mean_and_gradient():
    for a in (-2.0, -0.5, 1.3):
        x = double(a).requires_grad_()
        u, weights = quadrature(0.0)
        h = stochastic_binary(x.expand_as(u), "concrete", noise=u, temperature=1.0)
        k = (-x).exp()
        mean = (k * k.log() - k + 1) / (k - 1) ** 2  # integral of (1-u) / ((1-u) + ku)
        assert torch.allclose(weights @ h, mean, atol=1e-12)
        (found,) = torch.autograd.grad(weights @ h, x, retain_graph=True)
        (expected,) = torch.autograd.grad(mean, x)
        assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("estimator", ["sts", "noisy_relu", "concrete", "hard_concrete"])
def test_graphs_with_noise_are_differentiated_exactly(estimator):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.double, requires_grad=True)
    noise = gate_noise(logits, generator)
    assert gradcheck(lambda a: stochastic_binary(a, estimator, noise=noise), logits)
    assert gradgradcheck(lambda a: stochastic_binary(a, estimator, noise=noise), logits)
