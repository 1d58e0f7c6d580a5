"""NAP's masks, weights and shuffled paths: exact properties, against plain loops."""

import math

import numpy as np
import pytest
import torch

from whet.dlm.nap.layout import Layout
from whet.dlm.nap.objective import (
    Focal,
    StructuredMasks,
    cart_weights,
    draw,
    focal_factor,
    mask_probability,
    place_in_block,
    shuffle_blocks,
    time_weights,
    weighted_loss,
)
from whet.errors import OptionError

PROMPT, PATHS = 4, 3
TAGS = list(range(50, 58))


def rows(levels, layout=None):
    """Responses of one layout behind a prompt: response, block, tag [B, L], and levels."""
    layout = layout or Layout(PATHS, 5, 3)
    made = layout.response([[1, 2, 3], [4, 5], [6], [7]], TAGS, 0)
    tail = 2
    block = torch.tensor([0] * PROMPT + made.block + [0] * tail).repeat(len(levels), 1)
    tag = torch.tensor([False] * PROMPT + made.tag + [False] * tail).repeat(len(levels), 1)
    response = torch.zeros_like(tag)
    response[:, PROMPT:] = True
    return response, block, tag, torch.tensor(levels)


# --- masks --------------------------------------------------------------------------------------


def test_plain_masks_have_the_level_of_their_row_on_the_response_alone():
    response, block, tag, levels = rows([0.2, 0.7])
    found = mask_probability(response, block, tag, levels, paths=PATHS)
    assert torch.equal(found, levels[:, None] * response)


def test_at_level_one_the_whole_response_is_masked_and_never_the_prompt():
    response, block, tag, levels = rows([1.0] * 50)
    probability = mask_probability(response, block, tag, levels, paths=PATHS)
    assert torch.equal(draw(np.random.default_rng(0), probability), response)
    probability = mask_probability(
        response, block, tag, torch.full((50,), 0.5), paths=PATHS, structured=StructuredMasks()
    )
    assert not (draw(np.random.default_rng(0), probability) & ~response).any()


@pytest.mark.parametrize("t", [0.001, 0.15, 0.19999, 0.20001, 0.5, 1.0])
@pytest.mark.parametrize(
    "settings", [{}, {"kappa_think": 0.5, "r_max": 0.6}, {"alpha": 0.3, "kappa_summary": 3.0}]
)
def test_structured_masks_are_the_formula_token_by_token(t, settings):
    s = StructuredMasks(**settings)
    layout = Layout(PATHS, None, None)
    response, block, tag, levels = rows([t], layout)
    found = mask_probability(response, block, tag, levels, paths=PATHS, structured=s)[0].tolist()
    r, g = s.r_max * t, 1 - t
    for k in range(1, PATHS + 2):
        places = [i for i in range(len(found)) if block[0, i] == k and not tag[0, i]]
        for rank, i in enumerate(places):
            z = rank / max(1, len(places) - 1)
            if k <= PATHS:
                expected = r * (1 + s.kappa_think * z)
            else:
                expected = 1.0 if g < s.alpha else r * (1 + s.kappa_summary * z)
            assert found[i] == pytest.approx(min(1, expected), abs=1e-6)
    for i in range(len(found)):
        if tag[0, i] or not response[0, i]:
            assert found[i] == 0
        elif block[0, i] == 0:
            assert found[i] == pytest.approx(r)


def test_structured_masks_hide_the_whole_summary_until_the_paths_are_there():
    response, block, tag, levels = rows([0.21, 0.4, 1.0])
    found = mask_probability(
        response, block, tag, levels, paths=PATHS, structured=StructuredMasks()
    )
    summary = (block == PATHS + 1) & ~tag
    assert (found[summary] == 1).all()
    assert (found[tag] == 0).all()


def test_places_run_from_zero_to_one():
    block = torch.tensor([[0, 1, 1, 1, 1, 1, 2, 2, 2, 0]])
    inside = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 1, 0, 0]]).bool()
    assert place_in_block(block, inside)[0].tolist() == [0, 0, 0, 0.5, 1, 0, 0, 0, 0, 0]


def test_draws_have_their_probability():
    probability = torch.tensor([[0.0, 0.1, 0.5, 1.0]]).repeat(20000, 1)
    share = draw(np.random.default_rng(0), probability).float().mean(0)
    assert torch.allclose(share, probability[0], atol=0.02)
    assert share[0] == 0
    assert share[3] == 1


# --- weights ------------------------------------------------------------------------------------


def loop_cart(mask, real, p):
    out = [0.0] * len(mask)
    for i, masked in enumerate(mask):
        if masked:
            out[i] = sum(
                0.5 * p * (1 - p) ** (abs(i - j) - 1)
                for j in range(len(mask))
                if j != i and not mask[j] and real[j]
            )
    return out


@pytest.mark.parametrize("p", [0.1, 0.8, 1.0])
def test_cart_is_the_sum_over_what_is_seen(p):
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(40, 17, generator=g) < torch.rand(40, 1, generator=g)
    real = torch.ones_like(mask)
    real[:, :3] = False
    mask &= real
    found = cart_weights(mask, real, p)
    for row in range(40):
        expected = loop_cart(mask[row].tolist(), real[row].tolist(), p)
        assert found[row].tolist() == pytest.approx(expected, abs=1e-6)
    assert (found >= 0).all()
    assert (found[~mask] == 0).all()


def test_cart_grows_with_nearer_tokens_and_vanishes_where_nothing_is_seen():
    real = torch.ones(1, 9, dtype=torch.bool)
    mask = torch.ones_like(real)
    assert (cart_weights(mask, real, 0.1) == 0).all()
    found = []
    for seen in (0, 1, 2, 3):
        one = mask.clone()
        one[0, seen] = False
        found.append(float(cart_weights(one, real, 0.1)[0, 4]))
    assert found == sorted(found)
    assert found[0] > 0
    one[0, 5] = False
    assert float(cart_weights(one, real, 0.1)[0, 4]) > found[-1]


def test_the_other_weights():
    mask = torch.tensor([[True, False, True], [False, True, True]])
    real, levels = torch.ones_like(mask), torch.tensor([0.25, 0.5])
    for kind, factor in (("original", [4.0, 2.0]), ("linear", [0.75, 0.5]), ("none", [1.0, 1.0])):
        found = time_weights(kind, levels, mask, real)
        assert torch.equal(found, torch.tensor(factor)[:, None] * mask)
    found = time_weights("cart", levels, mask, real, cart_p=0.3)
    assert torch.equal(found, cart_weights(mask, real, 0.3))


@pytest.mark.parametrize("p", [0, -0.1, 1.1, math.nan])
def test_a_rate_out_of_range_is_refused(p):
    x = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(OptionError, match="cart_p="):
        cart_weights(x, x, p)


# --- the loss -----------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_over_the_number_of_masks():
    nats = torch.tensor([1.0, 2.0, 4.0])
    weights = torch.tensor([1.0, 0.5, 0.0])
    assert float(weighted_loss(nats, weights)) == pytest.approx(2 / 3)
    focal = Focal(alpha=0.25, gamma=2.0)
    by_hand = sum(
        w * c * 0.25 * (1 - math.exp(-c)) ** 2
        for c, w in zip(nats.tolist(), weights.tolist(), strict=True)
    )
    assert float(weighted_loss(nats, weights, focal)) == pytest.approx(by_hand / 3)
    assert float(focal_factor(torch.zeros(1), focal)) == 0


def test_nothing_masked_is_a_loss_of_zero():
    nothing = torch.zeros(0)
    assert float(weighted_loss(nothing, nothing)) == 0
    assert float(weighted_loss(nothing, nothing, Focal())) == 0


# --- shuffled paths -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 1, 2], [2, 1, 3], [3, 2, 1]])
@pytest.mark.parametrize("slots", [True, False])
def test_shuffled_paths_keep_everything_else(order, slots):
    layout = Layout(PATHS, 5, 3) if slots else Layout(PATHS, None, None)
    made = layout.response([[1, 2, 3], [4, 5], [6], [7]], TAGS, 0)
    tokens = torch.tensor([90] * PROMPT + made.tokens + [0, 0])
    block = torch.tensor([0] * PROMPT + made.block + [0, 0])
    column = shuffle_blocks(tokens, block, order)
    assert sorted(column.tolist()) == list(range(len(tokens)))
    moved, blocks = tokens[column], block[column]
    end = PROMPT + sum(b <= PATHS for b in made.block)
    assert torch.equal(moved[:PROMPT], tokens[:PROMPT])
    assert torch.equal(moved[end:], tokens[end:])
    assert list(dict.fromkeys(blocks[PROMPT:end].tolist())) == order
    for k in range(1, PATHS + 1):  # a block's tags move with it
        assert torch.equal(moved[blocks == k], tokens[block == k])


@pytest.mark.parametrize("order", [[1, 2], [0, 1], [1, 1, 2], [1, 2, 3, 4]])
def test_an_order_of_other_paths_is_refused(order):
    block = torch.tensor([1, 1, 3, 3]) if order == [1, 2] else torch.tensor([1, 1, 2, 2])
    with pytest.raises(OptionError, match="is no order of the paths"):
        shuffle_blocks(torch.zeros(4).long(), block, order)
