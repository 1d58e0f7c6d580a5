"""The few-step sampler: what it reveals when, the law of its tokens, what it is a function of."""

import itertools
import math

import pytest
import torch

from tests.conftest import MASK, VOCAB
from whet.dlm.ancestral import Ancestral, reveal_steps
from whet.dlm.canvas import denoise
from whet.errors import OptionError
from whet.models.denoiser import Denoiser
from whet.noise.duality import keep_schedule

G = 12


def sample(model, canvas, mask=None, **options):
    options = {"softmax": "float64", **options}
    start = canvas.shape[1] - G
    requests = options.pop("requests", None)
    return denoise(
        model, canvas, mask, options=Ancestral(**options), start=start, requests=requests
    )


def masks(rows, length=G, prompt=3):
    canvas = torch.full((rows, prompt + length), MASK)
    canvas[:, :prompt] = 5
    return canvas


def test_a_position_is_revealed_when_the_keep_probability_first_passes_its_number():
    uniform = torch.tensor([[0.0, 0.2499, 0.25, 0.4999, 0.9999]], dtype=torch.float64)
    assert reveal_steps(uniform, keep_schedule(4)).tolist() == [[0, 0, 1, 1, 3]]


@pytest.mark.parametrize("schedule", ["linear", "gaussian"])
def test_as_many_are_revealed_in_each_step_as_the_schedule_says(schedule):
    """(alpha_s - alpha_t) / (1 - alpha_t) of what is masked, in every step."""
    alpha = keep_schedule(6, kind=schedule, vocab_size=33)
    uniform = torch.rand(1, 60_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    when = reveal_steps(uniform, alpha)
    before = 0.0
    for step, after in enumerate(alpha.tolist()):
        masked = when >= step
        share = (after - before) / (1 - before)
        found = float((when == step).sum() / masked.sum())
        error = 4 * math.sqrt(share * (1 - share) / int(masked.sum())) + 1e-12
        assert abs(found - share) < error
        before = after


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_every_mask_goes_within_the_steps_and_no_forward_is_idle(tiny_llada, canvases, steps):
    canvas, mask = canvases([5, 3], G)
    tokens, trace = sample(tiny_llada, canvas, mask, steps=steps)
    assert not bool((tokens == MASK).any())
    assert int(trace.steps.max()) <= steps
    for row in range(2):
        used = trace.commit_step[row]
        assert sorted(set(used.tolist())) == list(range(int(trace.steps[row])))


def test_one_step_takes_all_tokens_from_one_forward(tiny_llada):
    _, trace = sample(tiny_llada, masks(1), steps=1)
    assert trace.forwards == 1
    assert bool((trace.commit_step == 0).all())


def test_the_text_is_a_function_of_seed_and_request_not_of_the_batch(tiny_llada, canvases):
    canvas, mask = canvases([5, 3, 4], G)
    tokens, trace = sample(tiny_llada, canvas, mask, steps=4, requests=[7, 8, 9])
    again, _ = sample(tiny_llada, canvas, mask, steps=4, requests=[7, 8, 9])
    assert torch.equal(tokens, again)
    for row, length in enumerate((5, 3, 4)):
        alone, single = sample(
            tiny_llada, canvas[row : row + 1, 5 - length :], steps=4, requests=[7 + row]
        )
        assert alone[0].tolist() == tokens[row, 5 - length :].tolist()
        assert single.commit_step[0].tolist() == trace.commit_step[row].tolist()
    others = [
        sample(tiny_llada, canvas, mask, steps=4, requests=[7, 8, 9], seed=1),
        sample(tiny_llada, canvas, mask, steps=4, requests=[1, 2, 3]),
    ]
    for other, found in others:
        assert not torch.equal(other, tokens)
        assert not torch.equal(found.commit_step, trace.commit_step)


def test_fewer_steps_reveal_in_the_same_order(tiny_llada):
    """Steps of 12 lie within those of 4: one trajectory, seen more or less often."""
    _, fine = sample(tiny_llada, masks(4), steps=12)
    _, coarse = sample(tiny_llada, masks(4), steps=4)
    for row in range(4):
        steps = (trace.commit_step[row].tolist() for trace in (fine, coarse))
        pairs = sorted(zip(*steps, strict=True))
        assert [b for _, b in pairs] == sorted(b for _, b in pairs)


def test_a_position_that_nothing_else_touches_keeps_its_token(tiny_llada):
    """With one mask left the text does not depend on the number of steps: the noise is fixed."""
    canvas = masks(6)
    canvas[:, 4:] = torch.randint(1, MASK, (6, 11), generator=torch.Generator().manual_seed(0))
    found = [
        denoise(tiny_llada, canvas, options=Ancestral(steps=n), start=3)[0] for n in (1, 4, 12)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert len(set(found[0][:, 3].tolist())) > 1


def test_tokens_have_the_law_of_random_ancestral_sampling(tiny_llada):
    """Two positions, two steps, enumerated: half the texts are drawn at once, half in turns."""
    model, rows, kept = tiny_llada, 8_000, 3
    canvas = torch.tensor([[5, 6, 7, MASK, MASK]])
    denoiser = Denoiser.of(model)

    def law(filled):
        z = canvas.clone()
        for position, token in filled.items():
            z[0, position] = token
        at = torch.tensor([p for p in (3, 4) if p not in filled])
        return denoiser.logits(z, None, torch.zeros_like(at), at).double().softmax(-1)

    with torch.inference_mode():
        first, second = law({})
        together = first[:, None] * second[None]
        left = torch.stack([law({3: v})[0] for v in range(VOCAB)])
        right = torch.stack([law({4: v})[0] for v in range(VOCAB)])
        turns = (first[:, None] * left + (second[:, None] * right).T) / 2
        tokens, _ = denoise(model, canvas.repeat(rows, 1), options=Ancestral(steps=2), start=3)
    expected = (together + turns) / 2
    assert float((together - turns).abs().sum()) > 0.05
    # The most likely cells, where the two laws differ, against their counts.
    for a, b in itertools.product(first.topk(kept).indices.tolist(), second.topk(kept).indices):
        p = float(expected[a, int(b)])
        found = float(((tokens[:, 3] == a) & (tokens[:, 4] == int(b))).double().mean())
        assert abs(found - p) < 4 * math.sqrt(p * (1 - p) / rows)


def test_temperature_zero_fills_in_the_likeliest(tiny_llada):
    canvas = masks(2)
    tokens, _ = sample(tiny_llada, canvas, steps=1, temperature=0.0)
    rows, positions = (canvas == MASK).nonzero(as_tuple=True)
    logits = Denoiser.of(tiny_llada).logits(canvas, None, rows, positions)
    assert tokens[canvas == MASK].tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"schedule": "cosine"}, "schedule='cosine' is not one of linear, gaussian"),
        ({"steps": 5, "block_length": 4}, "steps=5 must be a multiple of the number of windows"),
    ],
)
def test_bad_options_are_refused(tiny_llada, options, message):
    from whet.dlm.decoders import decoder_options

    with pytest.raises(OptionError, match=message):
        denoise(
            tiny_llada,
            masks(1),
            options=decoder_options("ancestral", {k: str(v) for k, v in options.items()}),
            start=3,
        )
