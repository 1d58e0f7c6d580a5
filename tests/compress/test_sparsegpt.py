import pytest
import torch

from tests.compress.inputs import (
    correlated,
    damped,
    loss_of,
    random,
    statistics,
    textbook,
    unchecked,
    white,
)
from whet.compress.masks import Pattern
from whet.compress.sparsegpt import sparsegpt
from whet.compress.statistics import InputStatistics, output_error
from whet.compress.wanda import wanda
from whet.errors import InputError, NonFiniteError, OptionError


def pivots(hessian):
    """Of every column the diagonal entry of the inverse for it and those after it."""
    return torch.stack([torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(len(hessian))])


def lowest(scores, count):
    """Indices of the lowest scores, in plain python."""
    return sorted(range(len(scores)), key=scores.__getitem__)[:count]


def textbook_sparsegpt(weight, hessian, sparsity, block):
    pivot, state = pivots(hessian), {}

    def choose(j, current):
        if isinstance(sparsity, Pattern):
            if j % sparsity.of == 0:
                part = slice(j, j + sparsity.of)
                scores = current[:, part].square() / pivot[part]
                state["zero"] = torch.zeros_like(scores, dtype=torch.bool)
                for row, gone in zip(scores.tolist(), state["zero"], strict=True):
                    gone[lowest(row, sparsity.of - sparsity.kept)] = True
                state["start"] = j
        elif j % block == 0:
            part = slice(j, j + block)
            scores = current[:, part].square() / pivot[part]
            gone = torch.zeros(scores.numel(), dtype=torch.bool)
            count = int(scores.numel() * sparsity + 1e-9)
            gone[lowest(scores.flatten().tolist(), count)] = True
            state["zero"], state["start"] = gone.view_as(scores), j
        return torch.where(state["zero"][:, j - state["start"]], 0, current[:, j])

    return textbook(weight, hessian, choose)


@pytest.mark.parametrize("sparsity", [0.5, 0.3, Pattern(2, 4), Pattern(1, 4), Pattern(4, 8)])
@pytest.mark.parametrize("block", [16, 64])
def test_it_is_optimal_brain_surgery_column_by_column(sparsity, block):
    weight, stats = random(7, 40), statistics(correlated(100, 40))
    found = sparsegpt(weight, stats, sparsity, block_size=block)
    expected = textbook_sparsegpt(weight, damped(stats), sparsity, block)
    assert torch.equal(found.keep, expected != 0)
    assert torch.allclose(found.weight, expected, rtol=1e-9, atol=1e-11)
    assert found.report.method == "sparsegpt"
    assert not found.report.notes


def test_the_reported_loss_is_the_damped_error():
    weight, stats = random(7, 40), statistics(correlated(100, 40))
    found = sparsegpt(weight, stats, 0.5, block_size=16)
    expected = loss_of(weight, found.weight, damped(stats))
    assert found.report.loss == pytest.approx(expected, rel=1e-9)
    assert output_error(weight, found.weight, stats) < found.report.loss


@pytest.mark.parametrize("columns", [256, 300])
def test_without_correlation_it_is_magnitude_per_block_and_nothing_else_changes(columns):
    weight = random(6, columns)
    found = sparsegpt(weight, white(columns), 0.5)
    for start in range(0, columns, 128):
        part = weight[:, start : start + 128].abs()
        gone = torch.zeros(part.numel(), dtype=torch.bool)
        gone[lowest(part.flatten().tolist(), part.numel() // 2)] = True
        assert torch.equal(found.keep[:, start : start + 128], ~gone.view_as(part))
    assert torch.equal(found.weight, torch.where(found.keep, weight, 0))


def test_without_correlation_a_pattern_is_magnitude_by_group():
    weight = random(6, 64)
    found = sparsegpt(weight, white(64), Pattern(2, 4))
    assert torch.equal(found.weight, wanda(weight, white(64), Pattern(2, 4)).weight)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, Pattern(2, 4)])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_outputs_change_less_than_with_wandas_mask(sparsity, seed):
    weight = random(16, 48, seed=seed)
    stats = statistics(correlated(200, 48, seed=seed + 1))
    ours = sparsegpt(weight, stats, sparsity)
    theirs = wanda(weight, stats, sparsity)
    assert ours.sparsity >= theirs.sparsity
    error = output_error(weight, ours.weight, stats)
    assert error < output_error(weight, theirs.weight, stats)


def test_a_patterns_result_does_not_depend_on_the_blocks():
    weight, stats = random(7, 40), statistics(correlated(100, 40))
    one, two = (sparsegpt(weight, stats, Pattern(2, 4), block_size=b) for b in (4, 128))
    assert torch.equal(one.keep, two.keep)
    assert torch.allclose(one.weight, two.weight, rtol=1e-9, atol=1e-12)


def test_nothing_goes_at_sparsity_0():
    weight = random(4, 8)
    found = sparsegpt(weight, statistics(correlated(30, 8)), 0.0)
    assert torch.equal(found.weight, weight)
    assert found.report.loss == 0


def test_dead_channels_are_zeroed_and_counted_and_disturb_nothing():
    weight, x = random(5, 12), correlated(60, 12)
    x[:, [3, 7]] = 0
    found = sparsegpt(weight, statistics(x), Pattern(1, 2))
    assert found.report.dead == 2
    assert (found.weight[:, [3, 7]] == 0).all()
    assert found.weight.isfinite().all()
    scaled = sparsegpt(weight, statistics(x * 1e-6), Pattern(1, 2))
    assert torch.allclose(scaled.weight, found.weight, rtol=1e-9)


def test_fewer_tokens_than_channels_are_enough():
    weight, x = random(5, 32), correlated(3, 32)
    found = sparsegpt(weight, statistics(x), 0.5)
    assert not found.report.notes
    assert output_error(weight, found.weight, statistics(x)) < output_error(
        weight, wanda(weight, statistics(x), 0.5).weight, statistics(x)
    )


def test_a_singular_matrix_without_damping_raises_it_and_says_so():
    weight, x = random(5, 32), correlated(3, 32)
    found = sparsegpt(weight, statistics(x), 0.5, damp=0.0)
    assert found.report.method == "sparsegpt"
    assert found.report.damp > 0
    assert found.report.notes[0].startswith("damp was raised from 0 to 1e-")
    assert found.weight.isfinite().all()


def test_a_matrix_that_is_no_gram_matrix_falls_back_to_wanda_and_says_so():
    stats = statistics(correlated(60, 8))
    broken = stats.gram.clone()
    broken[0, 1] = broken[1, 0] = 1e6 * broken[0, 0]
    stats = InputStatistics(stats.count, stats.square_sum, stats.abs_sum, stats.abs_max, broken)
    weight = random(4, 8)
    found = sparsegpt(weight, stats, 0.5)
    assert torch.equal(found.weight, wanda(weight, stats, 0.5).weight)
    assert found.report.method == "wanda"
    assert found.report.notes == ("H has no Cholesky factor: weights that stay were not changed",)


def test_a_layer_that_no_token_reached_is_not_emptied():
    weight = random(4, 8)
    found = sparsegpt(weight, statistics(torch.zeros(0, 8).double()), 0.5)
    assert found.sparsity == 0.5
    assert found.report.method == "magnitude"
    assert "no input was seen" in found.report.notes[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types_are_worked_in_float32_and_come_back(dtype):
    weight = random(8, 64, dtype=dtype)
    stats = statistics(correlated(200, 64))
    found = sparsegpt(weight, stats, 0.5)
    exact = sparsegpt(weight.double(), stats, 0.5)
    assert found.weight.dtype == dtype
    assert (found.keep == exact.keep).double().mean() > 0.99
    same = found.keep & exact.keep
    tolerance = 8 * torch.finfo(dtype).eps
    assert torch.allclose(
        found.weight[same].double(), exact.weight[same], rtol=tolerance, atol=1e-2
    )
    assert (found.weight[~found.keep] == 0).all()


def test_weights_that_their_type_cannot_hold_are_never_written():
    weight = torch.full((2, 4), 60000.0, dtype=torch.float16)
    # Channels nearly alike: two of the four weights would have to carry the sum of all.
    x = torch.ones(50, 4).double() + 1e-4 * random(50, 4)
    found = sparsegpt(weight, statistics(x), Pattern(1, 2), damp=1e-6)
    assert found.weight.isfinite().all()
    assert found.report.notes[0].startswith("weights outside torch.float16 came out")


def test_what_makes_no_sense_is_refused():
    weight, stats = random(4, 8), statistics(correlated(20, 8))
    with pytest.raises(OptionError, match="sparsity=1 "):
        sparsegpt(weight, stats, 1.0)
    with pytest.raises(OptionError, match="damp=-1"):
        sparsegpt(weight, stats, damp=-1)
    with pytest.raises(OptionError, match="block_size=0"):
        sparsegpt(weight, stats, block_size=0)
    with pytest.raises(OptionError, match="block_size=6 must be a multiple of 4"):
        sparsegpt(weight, stats, Pattern(2, 4), block_size=6)
    with pytest.raises(InputError, match="gram is missing"):
        sparsegpt(weight, statistics(correlated(20, 8), gram=False))
    with pytest.raises(InputError, match="pattern 1:3"):
        sparsegpt(weight, stats, Pattern(1, 3))
    with pytest.raises(InputError, match="floats"):
        unchecked(sparsegpt)(weight[0], stats)
    weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="a weight to be compressed"):
        sparsegpt(weight, stats)
