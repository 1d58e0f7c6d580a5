import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from whet.errors import OptionError
from whet.layers.rounding import round_linears, round_to_nearest

quick = settings(max_examples=40, deadline=None)  # timing is not under test
weights = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(0, 10**6)).map(
    lambda t: torch.randn(*t[:2], generator=torch.Generator().manual_seed(t[2]), dtype=torch.double)
)


@quick
@given(weights, st.integers(2, 8))
def test_every_weight_goes_to_the_nearest_point_of_its_rows_grid(weight, bits):
    top = 2 ** (bits - 1) - 1
    found = round_to_nearest(weight, bits)
    for row, rounded in zip(weight, found, strict=True):
        grid = row.abs().max() / top * torch.arange(-top, top + 1, dtype=torch.double)
        best = (row[:, None] - grid).abs().min(-1).values
        assert torch.allclose((row - rounded).abs(), best, atol=1e-12)
        assert (rounded[:, None] - grid).abs().min(-1).values.max() < 1e-12


@quick
@given(weights, st.integers(2, 16), st.floats(0.01, 100))
def test_the_grid_follows_the_scale_the_sign_and_its_own_points(weight, bits, factor):
    found = round_to_nearest(weight, bits)
    assert torch.allclose(round_to_nearest(found, bits), found, atol=1e-12)
    assert torch.allclose(round_to_nearest(-weight, bits), -found)
    assert torch.allclose(round_to_nearest(weight * factor, bits), found * factor)
    largest = weight.abs().argmax(-1, keepdim=True)
    assert torch.allclose(found.gather(-1, largest), weight.gather(-1, largest))


def test_rows_have_their_own_scale_and_zeros_stay():
    weight = torch.tensor([[1.0, 0.4, -0.6], [100.0, 40.0, -60.0], [0.0, 0.0, 0.0]])
    found = round_to_nearest(weight, 2)
    assert found.tolist() == [[1.0, 0.0, -1.0], [100.0, 0.0, -100.0], [0.0, 0.0, 0.0]]


def test_more_bits_lose_less():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    lost = [float((round_to_nearest(weight, b) - weight).square().mean()) for b in range(2, 12)]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 1e-5 < lost[0]


@pytest.mark.parametrize("bits", [-1, 0, 1, 17])
def test_impossible_widths_are_refused(bits):
    with pytest.raises(OptionError, match=f"bits={bits} must be between 2 and 16"):
        round_to_nearest(torch.ones(1, 1), bits)


def test_linears_are_rounded_in_place_and_nothing_else():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 7))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert round_linears(model, 3) == 2
    for name, t in model.state_dict().items():
        rounded = name in ("1.weight", "3.weight")
        assert torch.equal(t, round_to_nearest(before[name], 3) if rounded else before[name]), name
    assert all(p.requires_grad for p in model.parameters())


def test_a_head_tied_to_the_embedding_stays():
    from tests.evaluate.tiny import tiny_llama

    model = tiny_llama(40)
    layers = sum(isinstance(m, nn.Linear) for m in model.modules())
    assert round_linears(model, 4) == layers
    model = tiny_llama(40)
    model.lm_head.weight = model.model.embed_tokens.weight
    head = model.lm_head.weight.clone()
    assert round_linears(model, 4) == layers - 1
    assert torch.equal(model.lm_head.weight, head)
