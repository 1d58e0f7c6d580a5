import itertools
import math

import numpy as np
import pytest
import torch

from whet import rng
from whet.noise.masked import draw_mask, mask_levels, masked_bound


@pytest.mark.parametrize("stratified", [False, True])
def test_levels_are_uniform_in_their_range(stratified):
    draws = torch.stack(
        [mask_levels(rng.keyed(0, i), 16, stratified=stratified, smallest=0.2) for i in range(500)]
    )
    assert draws.min() >= 0.2
    assert draws.max() <= 1
    assert draws.dtype == torch.float32
    # Every row on its own is uniform on [0.2, 1]: Kolmogorov distance of 500 draws.
    for row in draws.T:
        ranked = ((row.double().sort().values - 0.2) / 0.8).numpy()
        assert np.abs(ranked - (np.arange(500) + 0.5) / 500).max() < 1.95 / math.sqrt(500)


def test_stratified_levels_fall_one_in_each_slice_and_in_random_order():
    batches = [mask_levels(rng.keyed(1, i), 8, smallest=0.0) for i in range(50)]
    for levels in batches:
        assert sorted((levels * 8).floor().tolist()) == list(range(8))
    assert len({tuple((b * 8).floor().tolist()) for b in batches}) > 45
    loose = [mask_levels(rng.keyed(1, i), 8, stratified=False) for i in range(50)]
    assert torch.stack(batches).mean(1).std() < 0.5 * torch.stack(loose).mean(1).std()


def test_masks_lie_on_eligible_tokens_with_the_levels_frequency():
    eligible = torch.rand(5, 40, generator=rng.keyed_torch(0, "eligible")) < 0.5
    levels = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    masks = torch.stack([draw_mask(rng.keyed(0, "m", i), eligible, levels) for i in range(400)])
    assert masks.dtype == torch.bool
    assert not (masks & ~eligible).any()
    for row, level in enumerate(levels.tolist()):
        drawn = masks[:, row][:, eligible[row]].double()
        n = drawn.numel()
        assert abs(drawn.mean() - level) <= 4 * math.sqrt(level * (1 - level) / n)
    # Tokens are masked independently: the count in a row has the binomial variance.
    counts = masks[:, 2].sum(-1).double()
    assert counts.var() == pytest.approx(0.25 * int(eligible[2].sum()), rel=0.25)


def test_a_mask_comes_from_its_key():
    eligible, levels = torch.ones(2, 30, dtype=torch.bool), torch.tensor([0.5, 0.5])
    one, two = (draw_mask(rng.keyed(3, "m"), eligible, levels) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one[0], one[1])


def every_mask(positions):
    return [torch.tensor(m) for m in itertools.product((False, True), repeat=positions)]


def expected_bound(x, logits_of, *, points=6):
    """E_t E_mask of the bound, in nats: all masks, Gauss-Legendre over t (exact: polynomials)."""
    n = len(x)
    nodes, weights = np.polynomial.legendre.leggauss(points)
    total = 0.0
    for t, w in zip((nodes + 1) / 2, weights / 2, strict=True):
        for mask in every_mask(n):
            k = int(mask.sum())
            logits, targets = logits_of(mask)[mask], x[mask]
            value = masked_bound(
                logits,
                targets,
                torch.zeros(k, dtype=torch.long),
                torch.tensor([t], dtype=torch.float64),
                torch.tensor([n]),
            )
            assert value.dtype == torch.float64
            total += w * t**k * (1 - t) ** (n - k) * float(value) * n
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_tight_for_the_true_conditionals(seed):
    """With p(x_i | visible) of a known joint, the expectation is -log p(x) itself."""
    V, n = 3, 3
    generator = torch.Generator().manual_seed(seed)
    joint = torch.rand((V,) * n, generator=generator, dtype=torch.float64) ** 3
    joint /= joint.sum()

    def conditionals(x):
        def logits_of(mask):
            out = torch.zeros(n, V, dtype=torch.float64)
            seen = tuple(slice(None) if m else int(v) for m, v in zip(mask, x, strict=True))
            hidden = mask.nonzero()[:, 0].tolist()
            for axis, position in enumerate(hidden):
                others = [a for a in range(len(hidden)) if a != axis]
                out[position] = joint[seen].sum(others).log() if others else joint[seen].log()
            return out

        return logits_of

    for x in itertools.product(range(V), repeat=n):
        found = expected_bound(torch.tensor(x), conditionals(x))
        assert found == pytest.approx(-math.log(joint[x]), abs=1e-6)


def test_the_bound_of_any_network_is_the_mean_over_all_orders(tiny_llada):
    """E = mean over orders of -sum log q(x_i | what came before), hence at least -log p."""
    from whet.models.denoiser import Denoiser

    denoiser, n = Denoiser.of(tiny_llada), 3
    prompt, x = torch.tensor([5, 6]), torch.tensor([7, 3, 30])

    @torch.no_grad()
    def logits_of(mask):
        tokens = torch.cat((prompt, x.masked_fill(mask, 39)))[None]
        rows = torch.zeros(n, dtype=torch.long)
        return denoiser.logits(tokens, None, rows, torch.arange(2, 2 + n))

    chains = []
    for order in itertools.permutations(range(n)):
        mask, nats = torch.ones(n, dtype=torch.bool), 0.0
        for i in order:
            nats -= float(logits_of(mask).log_softmax(-1)[i, x[i]])
            mask[i] = False
        chains.append(nats)
    expected = expected_bound(x, logits_of)
    assert expected == pytest.approx(np.mean(chains), abs=1e-6)
    mixture = -math.log(np.mean(np.exp(-np.array(chains))))
    assert expected >= mixture
    assert max(chains) - min(chains) > 1e-3


def test_rows_are_kept_apart_and_empty_rows_count_nothing():
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 2, 3, 4, 5])
    rows = torch.tensor([2, 0, 2, 0, 2])
    levels = torch.tensor([0.5, 0.25, 1.0])
    lengths = torch.tensor([4, 3, 8])
    nats = -logits.log_softmax(-1)[torch.arange(5), targets]
    found = masked_bound(logits, targets, rows, levels, lengths)
    expected = [(nats[1] + nats[3]) / 0.5 / 4, 0.0, (nats[0] + nats[2] + nats[4]) / 8]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    none = masked_bound(logits[:0], targets[:0], rows[:0], levels, lengths)
    assert torch.equal(none, torch.zeros(3, dtype=torch.float64))
