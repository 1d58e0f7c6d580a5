"""Weights and correlated inputs that the tests of the solvers share."""

import inspect

import torch

from whet.compress.statistics import InputStatistics


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def correlated(tokens, width, *, seed=1):
    """Inputs whose channels go together, some of them strong."""
    mixing = torch.eye(width).double() + 0.5 * random(width, width, seed=seed) / width**0.5
    strength = 1 + 4 * (random(width, seed=seed + 1).abs() > 1.5)
    return random(tokens, width, seed=seed + 2) @ mixing * strength


def statistics(x, **options):
    return InputStatistics.of(x, **options)


def white(width, strength=3.0, count=64):
    """Statistics of inputs without correlation, all channels alike: H is c times the identity."""
    total = torch.full((width,), strength * count).double()
    return InputStatistics(count, total, total, total.sqrt(), torch.diag(total))


def damped(stats, damp=0.01):
    """H as the solvers see it, for statistics without dead channels."""
    h = stats.gram / stats.count
    return h + damp * h.diagonal().mean() * torch.eye(len(h)).double()


def textbook(weight, hessian, choose):
    """Optimal Brain Surgeon in the given order of columns, with an explicit inverse each time.

    choose(j, current) gives the new column j of the current weights [out, in].
    """
    current, inverse = weight.clone(), torch.linalg.inv(hessian)
    for j in range(weight.shape[1]):
        value = choose(j, current)
        error = (current[:, j] - value) / inverse[0, 0]
        current[:, j:] -= error[:, None] * inverse[0]
        current[:, j] = value  # exactly, not up to rounding
        # The inverse for the columns that are left.
        inverse = torch.linalg.inv(hessian[j + 1 :, j + 1 :]) if j + 1 < len(hessian) else None
    return current


def loss_of(weight, new, hessian):
    difference = weight.double() - new.double()
    return float(((difference @ hessian) * difference).sum())


def unchecked(function):
    """The function as users have it: the suite's type checker would refuse bad input first."""
    return inspect.unwrap(function)
