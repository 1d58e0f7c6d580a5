from dataclasses import replace

import pytest
import torch

from tests.compress.inputs import correlated, damped, loss_of, random, statistics, textbook, white
from whet.compress.gptq import gptq
from whet.compress.rtn import rtn
from whet.compress.statistics import output_error
from whet.errors import InputError, NonFiniteError, OptionError
from whet.layers.quantizer import Grid, Search, find_scales, quantize_nearest

CHANNEL = Grid(3, True, "channel")
GRIDS = [
    CHANNEL,
    Grid(4, False, "channel"),
    Grid(4, True, "tensor"),
    Grid(3, True, "group", 8),
    Grid(4, False, "group", 8),
]


def nearest(column, low, high, grid):
    """Plain rounding of one column, each entry with its own range; all in float64."""
    span = grid.highest - grid.lowest
    if grid.symmetric:
        scale, zero = 2 * torch.maximum(-low, high) / span, torch.zeros_like(low)
    else:
        scale = (high.clamp(min=0) - low.clamp(max=0)) / span
        zero = (grid.lowest - low.clamp(max=0) / scale).round()
    q = (column / scale + zero).round().clamp(grid.lowest, grid.highest)
    return (q - zero) * scale


def textbook_gptq(weight, hessian, grid, *, order=None, static=False):
    """In the order given; scales of groups from the current weights unless static."""
    width, size = weight.shape[1], grid.group_size or weight.shape[1]
    order = list(range(width)) if order is None else order
    ranges = {}

    def of(part):
        if grid.granularity == "tensor":
            low, high = part.min(), part.max()
            return low.expand(len(part)), high.expand(len(part))
        return part.amin(1), part.amax(1)

    def choose(place, current):
        if static or grid.group_size is None:
            group = order[place] // size
            ranges[group] = of(weight[:, group * size : (group + 1) * size])
        else:
            group = place // size
            if place % size == 0:
                ranges[group] = of(current[:, place : place + size])
        return nearest(current[:, place], *ranges[group], grid)

    found = textbook(weight[:, order], hessian[order][:, order], choose)
    result = torch.empty_like(found)
    result[:, order] = found
    return result


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("block", [12, 128])
def test_it_is_optimal_brain_quantization_column_by_column(grid, act_order, static, block):
    weight, stats = random(6, 32), statistics(correlated(80, 32))
    found = gptq(weight, stats, grid, act_order=act_order, static_groups=static, block_size=block)
    h = damped(stats)
    order = sorted(range(32), key=lambda j: -float(h[j, j])) if act_order else None
    expected = textbook_gptq(weight, h, grid, order=order, static=static)
    assert torch.allclose(found.weight, expected, rtol=1e-9, atol=1e-11)
    assert found.report.method == "gptq"
    assert found.report.loss == pytest.approx(loss_of(weight, expected, h), rel=1e-8)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"search": Search(steps=10)}])
def test_without_correlation_it_is_round_to_nearest(grid, options):
    weight = random(6, 160)
    found = gptq(weight, white(160), grid, **options)
    plain = rtn(weight, grid, search=options.get("search"))
    assert torch.equal(found.quantized.values, plain.quantized.values)
    assert torch.equal(found.weight, plain.weight)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_outputs_change_less_than_by_rounding_to_nearest(grid, seed):
    weight = random(16, 64, seed=seed)
    stats = statistics(correlated(200, 64, seed=seed + 1))
    plain = output_error(weight, rtn(weight, grid).weight, stats)
    for options in ({}, {"act_order": True}, {"static_groups": True}):
        assert output_error(weight, gptq(weight, stats, grid, **options).weight, stats) < plain


def test_the_reported_loss_is_the_damped_error_of_what_is_written():
    weight = random(8, 64, dtype=torch.float32)
    stats = statistics(correlated(200, 64))
    found = gptq(weight, stats, Grid(4, True, "group", 16))
    assert found.report.loss == pytest.approx(loss_of(weight, found.weight, damped(stats)), 1e-4)


def test_group_indices_say_which_scale_a_column_has():
    weight, stats = random(6, 32), statistics(correlated(80, 32))
    grid = Grid(4, True, "group", 8)
    found = gptq(weight, stats, grid, act_order=True, static_groups=False).quantized
    order = stats.gram.diagonal().argsort(descending=True)
    assert found.group_index[order].tolist() == [i // 8 for i in range(32)]
    scale = found.scales.scale
    for j in range(32):
        column = found.values[:, j] * scale[:, found.group_index[j]]
        assert torch.equal(found.dequantized()[:, j], column)


@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"static_groups": True}])
def test_other_options_need_no_group_indices(options):
    weight, stats = random(6, 32), statistics(correlated(80, 32))
    assert gptq(weight, stats, Grid(4, True, "group", 8), **options).quantized.group_index is None
    assert gptq(weight, stats, CHANNEL, **options).quantized.group_index is None


def test_static_groups_have_the_scales_of_the_weights_as_they_were():
    weight, stats = random(6, 32), statistics(correlated(80, 32))
    grid = Grid(4, False, "group", 8)
    found = gptq(weight, stats, grid, act_order=True).quantized.scales
    before = find_scales(weight, grid)
    assert torch.equal(found.scale, before.scale)
    assert torch.equal(found.zero_point, before.zero_point)


def test_groups_wider_than_a_block_change_nothing():
    weight, stats = random(6, 64), statistics(correlated(120, 64))
    grid = Grid(4, True, "group", 32)
    one, two = (gptq(weight, stats, grid, block_size=b) for b in (4, 128))
    assert torch.equal(one.quantized.values, two.quantized.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_made_up_for_is_the_error_of_the_stored_numbers(dtype, grid):
    weight = random(8, 64, dtype=dtype)
    stats = statistics(correlated(200, 64))
    found = gptq(weight, stats, grid)
    assert found.quantized.scales.scale.dtype == dtype
    assert found.weight.dtype == dtype
    # The identity loss = error holds for the numbers as they are loaded, bits and all.
    assert found.report.loss == pytest.approx(loss_of(weight, found.weight, damped(stats)), 1e-3)


@pytest.mark.parametrize("grid", [CHANNEL, Grid(3, False, "group", 16)], ids=str)
def test_searched_ranges_lose_less_on_weights_with_outliers(grid):
    weight = random(32, 64) + 8 * (random(32, 64, seed=5) > 2.3)
    stats = statistics(correlated(200, 64))
    errors = [
        output_error(weight, gptq(weight, stats, grid, search=s).weight, stats)
        for s in (None, Search())
    ]
    assert errors[1] < errors[0]


def test_dead_channels_are_zeroed_or_rounded():
    weight, x = random(5, 16), correlated(60, 16)
    x[:, [3, 7]] = 0
    found = gptq(weight, statistics(x), CHANNEL)
    assert found.report.dead == 2
    assert (found.weight[:, [3, 7]] == 0).all()
    kept = gptq(weight, statistics(x), CHANNEL, zero_dead=False)
    plain = rtn(weight, CHANNEL)
    assert torch.equal(kept.weight[:, [3, 7]], plain.weight[:, [3, 7]])


def test_fewer_tokens_than_channels_are_enough():
    weight, stats = random(5, 32), statistics(correlated(3, 32))
    found = gptq(weight, stats, CHANNEL)
    assert not found.report.notes
    assert output_error(weight, found.weight, stats) < output_error(
        weight, rtn(weight, CHANNEL).weight, stats
    )


def test_a_singular_matrix_without_damping_raises_it_and_says_so():
    found = gptq(random(5, 32), statistics(correlated(3, 32)), CHANNEL, damp=0.0)
    assert found.report.method == "gptq"
    assert found.report.damp > 0
    assert found.report.notes[0].startswith("damp was raised from 0 to 1e-")


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_without_a_factor_or_inputs_it_rounds_to_nearest_and_says_so(grid):
    weight, stats = random(4, 16), statistics(correlated(60, 16))
    broken = stats.gram.clone()
    broken[0, 1] = broken[1, 0] = 1e6 * broken[0, 0]
    for bad, why in (
        (replace(stats, gram=broken), "H has no Cholesky factor"),
        (statistics(torch.zeros(7, 16).double()), "no input was seen"),
        (statistics(torch.zeros(0, 16).double()), "no input was seen"),
    ):
        found = gptq(weight, bad, grid)
        assert torch.equal(found.weight, rtn(weight, grid).weight)
        assert found.report.method == "rtn"
        assert found.report.notes == (f"{why}: rounded to nearest",)


def test_weights_that_are_not_finite_are_never_written():
    # Channels nearly alike hand all errors on, until a group's scale leaves float16.
    weight = torch.full((2, 64), 65000.0, dtype=torch.float16)
    stats = statistics(torch.ones(99, 64).double() + 1e-7 * random(99, 64))
    grid = Grid(2, True, "group", 2)
    found = gptq(weight, stats, grid, damp=1e-12)
    assert torch.equal(found.weight, rtn(weight, grid).weight)
    assert found.report.notes == ("weights that are not finite came out: rounded to nearest",)
    assert gptq(weight, stats, grid, damp=1e-12, static_groups=True).report.method == "gptq"


def test_weights_of_zeros_stay_zeros():
    weight = torch.zeros(3, 16).double()
    for grid in GRIDS:
        assert (gptq(weight, statistics(correlated(60, 16)), grid).weight == 0).all()


def test_what_makes_no_sense_is_refused():
    weight, stats = random(4, 8), statistics(correlated(20, 8))
    with pytest.raises(InputError, match="group_size=3 does not divide 8 columns"):
        gptq(weight, stats, Grid(4, True, "group", 3))
    with pytest.raises(OptionError, match="granularity='token' is for activations"):
        gptq(weight, stats, Grid(8, True, "token"))
    with pytest.raises(OptionError, match="damp=nan"):
        gptq(weight, stats, CHANNEL, damp=float("nan"))
    with pytest.raises(InputError, match="gram is missing"):
        gptq(weight, statistics(correlated(20, 8), gram=False), CHANNEL)
    with pytest.raises(NonFiniteError, match="statistics"):
        gptq(weight, replace(stats, gram=stats.gram * float("nan")), CHANNEL)
    with pytest.raises(NonFiniteError, match="a weight to be compressed"):
        gptq(weight * float("inf"), stats, CHANNEL)


def test_rounding_to_nearest_is_that_of_the_grid():
    weight = random(4, 16)
    for grid in GRIDS:
        found = rtn(weight, grid)
        assert torch.equal(found.weight, quantize_nearest(weight, grid).dequantized())
        assert found.report.method == "rtn"
    with pytest.raises(OptionError, match="token"):
        rtn(weight, Grid(8, True, "token"))
