import math

import pytest
import torch
from torch import nn

from whet.fit.ema import EMA
from whet.fit.loop import FitSettings, Player
from whet.fit.schedules import warmup_cosine


def module(*values):
    out = nn.Linear(len(values), 1, bias=False)
    out.weight.data = torch.tensor([values])
    return out


def test_the_average_follows_its_formula():
    made = module(1.0, -2.0)
    ema = EMA(made, 0.3)
    expected = made.weight.detach().double()
    for n in range(1, 12):
        with torch.no_grad():
            made.weight.copy_(torch.tensor([[math.sin(n), n]]))
        ema.update(made)
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * made.weight.detach().double()
        torch.testing.assert_close(ema.average["weight"].double(), expected, atol=1e-5, rtol=1e-5)
    assert ema.updates == 11
    # The cap was reached: (1 + n) / (10 + n) > 0.3 from n = 3 on.
    assert (1 + 2) / (10 + 2) < 0.3 < (1 + 3) / (10 + 3)


def test_swapping_in_gives_the_weights_back_even_after_an_error():
    made = module(1.0, 2.0)
    ema = EMA(made, 0.5)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[5.0, 6.0]]))
    with ema.swapped_in(made):
        assert made.weight.tolist() == [[1.0, 2.0]]
        assert made.weight.requires_grad
    assert made.weight.tolist() == [[5.0, 6.0]]

    def fail():
        with ema.swapped_in(made):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert made.weight.tolist() == [[5.0, 6.0]]
    assert ema.average["weight"].tolist() == [[1.0, 2.0]]


def test_the_schedule():
    factor = warmup_cosine(100, 10, floor=0.1)
    assert factor(0) == pytest.approx(0.1)
    assert factor(4) == pytest.approx(0.5)
    assert factor(9) == factor(10) == 1.0
    assert factor(55) == pytest.approx(0.55)
    assert factor(100) == factor(1000) == pytest.approx(0.1)
    values = [factor(k) for k in range(10, 101)]
    assert values == sorted(values, reverse=True)
    assert warmup_cosine(100, 0)(0) == 1.0
    assert warmup_cosine(5, 5)(4) == 1.0
    assert warmup_cosine(5, 50)(4) == pytest.approx(0.1)


def test_an_update_takes_the_scheduled_rate_and_clears_gradients():
    made = module(1.0, 2.0)
    player = Player(made, torch.optim.SGD(made.parameters(), lr=0.5), lambda step: 0.1 * step)
    for step in (1, 3):
        before = made.weight.detach().clone()
        made.weight.grad = torch.tensor([[1.0, -2.0]])
        player.update(step)
        expected = before - 0.05 * step * torch.tensor([[1.0, -2.0]])
        torch.testing.assert_close(made.weight.detach(), expected)
        assert made.weight.grad is None


def test_gradients_are_clipped_and_their_norm_told():
    made = module(1.0, 2.0)
    player = Player(made, torch.optim.SGD(made.parameters(), lr=1.0), lambda step: 1.0, clip=1.0)
    made.weight.grad = torch.tensor([[3.0, 4.0]])
    assert player.clip_gradients() == pytest.approx(5.0)
    torch.testing.assert_close(made.weight.grad, torch.tensor([[0.6, 0.8]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"learning_rate": 0}, {"ema": 1.0}, {"beta2": 1.0}, {"clip": 0}, {"x": 1}],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FitSettings(**({"steps": 1, "learning_rate": 1} | wrong))
