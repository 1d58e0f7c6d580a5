from __future__ import annotations

import itertools

import pytest
import torch

from whet.errors import InputError
from whet.layers.packing24 import (
    break_even_columns,
    faster_here,
    pack24,
    sparse_product,
    unpack24,
)
from whet.layers.sparsify24 import groups, keep24, magnitude24

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [4, 8, 12, 64])
def test_packing_and_unpacking_changes_no_bit(dtype, width):
    x = random(3, 17, width, dtype=dtype)
    x[0] = x[0].relu()
    assert torch.equal(unpack24(pack24(x)), magnitude24(x))


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.5625), (torch.float32, 0.53125)])
def test_it_takes_little_more_than_half_the_bytes(dtype, share):
    x = random(128, 64, dtype=dtype)
    assert pack24(x).nbytes == share * x.nbytes


def test_every_pair_of_places_is_stored():
    x = torch.arange(1.0, 9.0)
    for pair in itertools.combinations(range(4), 2):
        keep = torch.zeros(8, dtype=torch.bool)
        keep[list(pair)] = True
        keep[4:6] = True
        assert torch.equal(unpack24(pack24(x, keep)), torch.where(keep, x, 0))


def test_not_a_number_is_dropped_where_it_is_not_kept_and_stored_where_it_is():
    nan = float("nan")
    x = torch.tensor([nan, 1.0, 2.0, nan])
    keep = torch.tensor([False, True, True, False])
    assert unpack24(pack24(x, keep)).tolist() == [0, 1, 2, 0]
    assert unpack24(pack24(x, ~keep)).isnan().tolist() == [True, False, False, True]


def test_a_mask_that_does_not_keep_two_of_four_is_refused():
    with pytest.raises(InputError, match="exactly two of every four"):
        pack24(torch.ones(8), torch.tensor([1, 1, 0, 0, 1, 1, 1, 0]).bool())
    with pytest.raises(InputError, match="4 divides"):
        pack24(torch.ones(6))


def test_the_values_are_those_of_torchs_own_packing():
    # Its CPU reference packs float16 for CUTLASS kernels; places are stored in an order of theirs.
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass,
        sparse_semi_structured_to_dense_cutlass,
    )

    x = magnitude24(random(64, 128, dtype=torch.float16))
    assert (groups(x != 0).sum(-1) == 2).all()
    packed = pack24(x)
    values, places = sparse_semi_structured_from_dense_cutlass(x)
    assert torch.equal(packed.values, values)
    assert packed.places.nbytes == places.nbytes
    assert torch.equal(unpack24(packed), sparse_semi_structured_to_dense_cutlass(values, places))


def test_without_the_kernels_the_answer_is_no():
    probe = faster_here(1024, 512, 128, torch.bfloat16, "cpu")
    assert not probe.faster
    assert probe.why == "there are no 2:4 kernels for a cpu"


def test_the_break_even_is_where_time_saved_is_time_spent():
    flops, bandwidth = 312e12, 2.04e12
    columns = break_even_columns(flops, bandwidth)
    m = 2048  # per row: the products' time halves, packing reads 2 m bytes and writes 9/8 m
    saved = 2 * m * columns / flops / 2
    assert saved == pytest.approx((2 + 9 / 8) * m / bandwidth)
    assert 450 < columns < 500


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sparse_product_is_the_dense_one(dtype):
    y = magnitude24(random(256, 512, dtype=dtype).cuda())
    weight = random(128, 512, dtype=dtype, seed=1).cuda() / 512**0.5
    exact = y.double() @ weight.double().t()
    assert (sparse_product(y, weight).double() - exact).abs().max() < 2e-2
    probe = faster_here(256, 512, 128, dtype, "cuda")
    assert probe.dense is not None
    assert keep24(y).any()
