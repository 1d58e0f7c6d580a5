from dataclasses import replace

import pytest
import torch

from tests.compress.inputs import correlated, random, statistics
from whet.compress.awq import awq, awq_limits, awq_scale, clip_to
from whet.compress.rtn import rtn
from whet.compress.statistics import output_error
from whet.errors import InputError, OptionError
from whet.layers.quantizer import Grid, fake_quantize

# Symmetric ones are narrow: else max|w| lies half-way between two points, and the last bit of its
# sum decides.
GRIDS = [
    Grid(3, True, "group", 8, narrow=True),
    Grid(4, False, "group", 8),
    Grid(3, False, "channel"),
]


def scales(x, steps=20):
    """The candidates, from the inputs themselves."""
    size = x.abs().mean(0)
    for i in range(steps):
        power = size ** (i / steps)
        yield power / (power.max() * power.min()) ** 0.5


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_scale_is_the_candidate_whose_outputs_change_least(grid):
    x, weights = correlated(100, 24), [random(6, 24), random(4, 24, seed=9)]
    x[:, :3] *= 10
    errors = []
    for s in scales(x):
        outputs = [(fake_quantize(w * s, grid) / s - w) @ x.t() for w in weights]
        errors.append(sum(float(y.square().sum()) for y in outputs) / len(x))
    found = awq_scale(weights, statistics(x), grid)
    assert found.errors == pytest.approx(errors)
    best = min(range(20), key=errors.__getitem__)
    assert found.alpha == best / 20 > 0
    assert torch.allclose(found.scale, list(scales(x))[best])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_limits_are_those_whose_part_of_the_output_changes_least(grid):
    x, weight = correlated(60, 16), random(3, 16)
    weight[:, ::5] *= 3
    size = grid.group_size or 16
    found = awq_limits(weight, statistics(x), grid, steps=10)
    assert found.shape == (3, 16 // size)
    for row in range(3):
        for group in range(16 // size):
            part = slice(group * size, (group + 1) * size)
            w, errors = weight[row : row + 1, part], []
            limits = [float(w.abs().max()) * (1 - i / 10) for i in range(5)]
            alone = replace(grid, granularity="channel", group_size=None)
            for limit in limits:
                rounded = fake_quantize(w.clamp(-limit, limit), alone)
                errors.append(float(((rounded - w) @ x[:, part].t()).square().sum()))
            best = min(range(5), key=errors.__getitem__)
            assert float(found[row, group]) == pytest.approx(limits[best])


def test_clipping_is_by_row_and_group():
    weight = torch.tensor([[-4.0, 1, 2, 3], [5, -6, 7, -8]])
    limit = torch.tensor([[2.0, 2.5], [9, 1]])
    assert clip_to(weight, limit).tolist() == [[-2, 1, 2, 2.5], [5, -6, 1, -1]]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seed", [0, 10])
def test_outputs_change_less_than_by_rounding_to_nearest(grid, seed):
    x = correlated(200, 32, seed=seed + 1)
    x[:, :2] *= 8
    weights = [random(16, 32, seed=seed), random(8, 32, seed=seed + 5)]
    stats = statistics(x)
    plain = sum(output_error(w, rtn(w, grid).weight, stats) for w in weights)
    for clip in (False, True, [False, True]):
        found = awq(weights, stats, grid, clip=clip)
        s = found.choice.scale
        errors = [
            output_error(w, q.weight / s, stats)
            for w, q in zip(weights, found.linears, strict=True)
        ]
        assert sum(errors) < plain
        assert [q.report.loss for q in found.linears] == pytest.approx(errors)


def test_without_clipping_the_choice_is_what_comes_out():
    x, weight = correlated(100, 24), random(6, 24)
    found = awq([weight], statistics(x), GRIDS[0], clip=False)
    expected = fake_quantize(weight * found.choice.scale, GRIDS[0])
    assert torch.allclose(found.linears[0].weight, expected)
    assert found.linears[0].report.loss == pytest.approx(min(found.choice.errors))


def test_units_of_the_inputs_and_dead_channels_do_no_harm():
    x, weight = correlated(100, 24), random(6, 24)
    x[:, 5] = 0
    found = awq([weight], statistics(x), GRIDS[0])
    assert found.linears[0].report.dead == 1
    assert found.choice.scale[5] == found.choice.scale.min()
    small = awq([weight], statistics(x * 1e-7), GRIDS[0])
    assert torch.allclose(small.choice.scale, found.choice.scale)
    assert torch.equal(small.linears[0].weight, found.linears[0].weight)


def test_layers_that_no_token_reached_are_rounded_to_nearest_and_say_so():
    weight = random(6, 24)
    found = awq([weight], statistics(torch.zeros(3, 24).double()), GRIDS[0])
    assert (found.choice.scale == 1).all()
    assert torch.equal(found.linears[0].weight, rtn(weight, GRIDS[0]).weight)
    assert found.linears[0].report.notes == ("no input was seen: rounded to nearest",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types_come_back_as_they_were(dtype):
    x, weight = correlated(100, 24), random(6, 24, dtype=dtype)
    found = awq([weight], statistics(x), GRIDS[0])
    assert found.linears[0].weight.dtype == dtype
    assert min(found.choice.errors) < found.choice.errors[0]


def test_scales_that_do_not_fit_the_type_are_not_taken():
    x = random(50, 8)
    x[:, 0] *= 1e4
    weight = torch.full((2, 8), 60000.0, dtype=torch.float16)
    found = awq_scale([weight], statistics(x), Grid(4))
    assert found.alpha == 0
    assert found.errors[-1] == float("inf")


def test_what_makes_no_sense_is_refused():
    stats, weight = statistics(correlated(9, 8)), random(4, 8)
    with pytest.raises(InputError, match="clip has 2 entries for 1 weights"):
        awq([weight], stats, Grid(4), clip=[True, False])
    with pytest.raises(InputError, match="weights are empty"):
        awq([], stats, Grid(4))
    with pytest.raises(OptionError, match="steps=0"):
        awq([weight], stats, Grid(4), steps=0)
    with pytest.raises(OptionError, match="most=2"):
        awq_limits(weight, stats, Grid(4), most=2)
    with pytest.raises(OptionError, match="token"):
        awq([weight], stats, Grid(8, True, "token"))
    with pytest.raises(OptionError, match="'tensor' has one range"):
        awq_limits(weight, stats, Grid(4, True, "tensor"))
    with pytest.raises(InputError, match="group_size=3"):
        awq([weight], stats, Grid(4, True, "group", 3))
