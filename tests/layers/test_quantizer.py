import inspect
import math

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import (
    dequantize as theirs_dequantize,
)
from compressed_tensors.quantization.lifecycle.forward import (
    fake_quantize as theirs_fake_quantize,
)
from compressed_tensors.quantization.lifecycle.forward import (
    quantize as theirs_quantize,
)
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp

from whet.errors import InputError, NonFiniteError, OptionError
from whet.layers.quantizer import (
    Grid,
    Search,
    dequantize,
    fake_quantize,
    find_scales,
    quantize,
    quantize_nearest,
    range_scales,
)
from whet.layers.rounding import round_to_nearest

GRIDS = [
    Grid(bits, symmetric, granularity, 8 if granularity == "group" else None)
    for bits in (4, 8)
    for symmetric in (True, False)
    for granularity in ("tensor", "channel", "group")
]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def arguments(grid):
    return QuantizationArgs(
        num_bits=grid.bits,
        symmetric=grid.symmetric,
        strategy=grid.granularity,
        group_size=grid.group_size,
    )


def theirs(x, grid):
    """Scales and zero points of the compressed-tensors package."""
    parts = x.reshape(1, 1, -1) if grid.granularity == "tensor" else x
    if grid.granularity != "tensor":
        parts = x.reshape(len(x), -1, grid.group_size or x.shape[1])
    return calculate_qparams(parts.amin(-1), parts.amax(-1), arguments(grid))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_are_those_of_compressed_tensors(grid, dtype):
    x = random(12, 32, dtype=dtype) + 0.3
    x[0] = x[0].abs()  # nothing below 0
    x[1] = -x[1].abs()  # nothing above
    scale, zero = theirs(x, grid)
    found = find_scales(x, grid)
    assert torch.equal(found.scale, scale)
    assert found.scale.dtype == dtype
    if grid.symmetric:
        assert found.zero_point is None
    else:
        assert torch.equal(found.zero_point, zero)
        assert found.zero_point.dtype == torch.int8


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.symmetric], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_symmetric_scales_of_narrow_types_are_theirs_too(grid, dtype):
    x = random(12, 32, dtype=dtype)
    assert torch.equal(find_scales(x, grid).scale, theirs(x, grid)[0])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_integers_and_numbers_are_those_of_compressed_tensors(grid):
    x = random(12, 32) + 0.3
    found = quantize_nearest(x, grid)
    scale, zero = theirs(x, grid)
    zero = None if grid.symmetric else zero
    values = theirs_quantize(x, scale, zero, arguments(grid), dtype=torch.int8)
    assert torch.equal(found.values, values)
    expected = theirs_dequantize(values, scale, zero, arguments(grid))
    assert torch.equal(found.dequantized(), expected)
    assert torch.equal(
        fake_quantize(x, grid), theirs_fake_quantize(x, scale, zero, arguments(grid))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_numbers_of_narrow_types_are_theirs_bit_for_bit(grid, dtype):
    found = quantize_nearest(random(12, 32, dtype=dtype) + 0.3, grid)
    expected = theirs_dequantize(
        found.values, found.scales.scale, found.scales.zero_point, arguments(grid)
    )
    assert found.dequantized().dtype == dtype
    assert torch.equal(found.dequantized(), expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_tokens_have_scales_of_their_own_as_there(symmetric):
    x = random(2, 5, 16)
    x[0, 0] *= 100
    args = QuantizationArgs(num_bits=8, symmetric=symmetric, strategy="token", dynamic=True)
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Linear(1, 1))
    expected = theirs_fake_quantize(x, scale, None if symmetric else zero, args)
    assert torch.equal(fake_quantize(x, Grid(8, symmetric, "token")), expected)


@pytest.mark.parametrize("grid", [*GRIDS, Grid(3, False, "channel"), Grid(4, narrow=True)], ids=str)
def test_every_number_goes_to_the_nearest_point_of_its_grid(grid):
    x = random(5, 16, dtype=torch.float64)
    found = quantize_nearest(x, grid)
    spread = found.scales.columns(16)
    for i in range(5):
        for j in range(16):
            row = min(i, len(spread.scale) - 1)
            column = min(j, spread.scale.shape[1] - 1)
            zero = 0 if spread.zero_point is None else int(spread.zero_point[row, column])
            points = [
                float(spread.scale[row, column]) * (q - zero)
                for q in range(grid.lowest, grid.highest + 1)
            ]
            best = min(abs(float(x[i, j]) - p) for p in points)
            assert abs(float(x[i, j] - found.dequantized()[i, j])) == pytest.approx(best, abs=1e-12)


def test_the_worked_case():
    found = find_scales(torch.tensor([[-1.0, 0.5]]), Grid(4, False, "channel"))
    assert float(found.scale) == pytest.approx(0.1)
    assert int(found.zero_point) == 2
    assert float(find_scales(torch.tensor([[-3.0, 1]]), Grid(4)).scale) == pytest.approx(3 / 7.5)
    assert float(find_scales(torch.tensor([[-3.0, 1]]), Grid(8)).scale) == pytest.approx(3 / 127.5)


def test_the_narrow_grid_is_plain_rounding():
    weight = random(9, 33, dtype=torch.float64)
    for bits in (2, 3, 4, 8, 12, 16):
        found = quantize_nearest(weight, Grid(bits, narrow=True))
        assert torch.equal(found.dequantized(), round_to_nearest(weight, bits))
    token = torch.tensor([[1.0, -2, 3.5, 0.1]])
    assert fake_quantize(token, Grid(4, narrow=True, granularity="token")).tolist() == [
        [1.0, -2, 3.5, 0]
    ]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_zeros_stay_zeros_and_zero_is_always_on_the_grid(grid, dtype):
    x = random(4, 16, dtype=dtype).abs() + 1
    x[1] = 0
    x[2, 3] = 0
    found = quantize_nearest(x, grid).dequantized()
    assert found.isfinite().all()
    assert (found[1] == 0).all()
    assert found[2, 3] == 0


def test_numbers_too_small_for_their_type_become_zeros():
    x = torch.full((2, 8), 1e-7, dtype=torch.float16)
    assert (fake_quantize(x, Grid(4)) == 0).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rounding_twice_changes_nothing(grid):
    once = quantize_nearest(random(6, 16, dtype=torch.float64), grid)
    again = quantize(once.dequantized(), once.scales, grid)
    assert torch.equal(again, once.values)


def test_groups_may_be_any_columns():
    x = random(3, 8, dtype=torch.float64)
    order = torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])
    index = torch.empty_like(order)
    index[order] = torch.arange(8) // 4
    grid = Grid(4, False, "group", 4)
    sorted_ = quantize_nearest(x[:, order], grid)
    values = quantize(x, sorted_.scales, grid, index)
    assert torch.equal(values[:, order], sorted_.values)
    found = dequantize(values, sorted_.scales, index)
    assert torch.equal(found[:, order], sorted_.dequantized())


@pytest.mark.parametrize(
    "grid", [Grid(3), Grid(4, False, "group", 8), Grid(4, True, "tensor")], ids=str
)
def test_the_search_takes_the_range_of_least_error(grid):
    x = random(6, 16, dtype=torch.float64)
    x[:, 0] *= 6
    search = Search(power=2.4, steps=20, smallest=0.3)
    assert search.factors() == pytest.approx([1 - i / 20 for i in range(14)])
    found = find_scales(x, grid, search=search)

    def errors(scales):
        error = (dequantize(quantize(x, scales, grid), scales) - x).abs() ** 2.4
        if grid.granularity == "tensor":
            return error.sum().view(1, 1)
        return error.view(6, -1, grid.group_size or 16).sum(-1)

    parts = (
        x.view(1, 1, -1) if grid.granularity == "tensor" else x.view(6, -1, grid.group_size or 16)
    )
    tried = [range_scales(parts.amin(-1) * f, parts.amax(-1) * f, grid) for f in search.factors()]
    best = torch.stack([errors(s) for s in tried]).amin(0)
    assert torch.allclose(errors(found), best)
    assert (errors(found) <= errors(find_scales(x, grid)) + 1e-12).all()
    assert errors(found).sum() < errors(find_scales(x, grid)).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "bits=1 must be between 2 and 16"),
        ({"granularity": "group"}, "group_size=None does not fit granularity='group'"),
        ({"group_size": 8}, "group_size=8 does not fit granularity='channel'"),
        ({"granularity": "group", "group_size": 0}, "group_size=0 must be at least 1"),
        ({"narrow": True, "symmetric": False}, "narrow=True needs symmetric=True"),
    ],
)
def test_grids_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Grid(**options)


def test_a_granularity_that_is_not_known_is_refused():
    # As users have it: the suite's type checker would refuse the argument first.
    with pytest.raises(OptionError, match="granularity='row' is unknown: "):
        inspect.unwrap(Grid.__init__)(object.__new__(Grid), granularity="row")


@pytest.mark.parametrize(
    "options", [{"power": 0}, {"steps": 0}, {"smallest": 1.0}, {"smallest": math.nan}]
)
def test_searches_that_make_no_sense_are_refused(options):
    with pytest.raises(OptionError, match="must be"):
        Search(**options)


def test_what_cannot_be_rounded_is_refused():
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        find_scales(torch.tensor([[1.0, math.nan]]), Grid(4))
    with pytest.raises(InputError, match="group_size=3 does not divide 8 columns"):
        find_scales(random(2, 8), Grid(4, True, "group", 3))
    with pytest.raises(InputError, match=r"got shape \[0, 8\]"):
        find_scales(random(0, 8), Grid(4))
