"""A replay makes the very model calls of the generation; footprints are measured."""

import dataclasses

import pytest
import torch

from whet.bench.footprint import forward_peak, generation_peak
from whet.bench.overhead import RecordingDenoiser, engine_overhead, random_canvas, random_llada
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.measure.count import count_forwards

PROMPT, GEN, BATCH = 3, 8, 2
DECODERS = [
    "low-confidence",
    "low-confidence:steps=3",
    "threshold:threshold=0.2",
    "pbs",
    "soar",
    "soar:cache=dual,block_length=4",
    "threshold:cache=prefix,block_length=4,threshold=0.2",
    "low-confidence:cfg_scale=1.0",
]


@pytest.fixture(scope="module")
def denoiser():
    return random_llada(layers=1, width=32, vocab=50, context=PROMPT + GEN, sharpness=20.0)


@pytest.fixture
def canvas(denoiser):
    return random_canvas(denoiser, BATCH, PROMPT, GEN)


def test_random_canvas(denoiser, canvas):
    assert canvas.shape == (BATCH, PROMPT + GEN)
    assert bool((canvas[:, PROMPT:] == denoiser.mask_token_id).all())
    prompts = canvas[:, :PROMPT]
    assert bool(((prompts > 0) & (prompts < denoiser.mask_token_id)).all())
    assert torch.equal(canvas, random_canvas(denoiser, BATCH, PROMPT, GEN))


def test_random_llada_is_drawn_from_its_seed():
    size = {"layers": 1, "width": 32, "vocab": 50, "context": 8}
    weights = [random_llada(**size, seed=s).model.state_dict() for s in (0, 0, 1)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert any(not torch.equal(weights[0][k], weights[2][k]) for k in weights[0])


@pytest.mark.parametrize("decoder", DECODERS)
def test_recorder_and_replay_make_the_calls_of_the_generation(denoiser, canvas, decoder):
    options = decoder_options(decoder)
    with count_forwards(denoiser.model.model) as made:
        expected, plain = denoise(denoiser, canvas, options=options, start=PROMPT)
    recorder = RecordingDenoiser(**vars(denoiser))
    tokens, trace = denoise(recorder, canvas, options=options, start=PROMPT)
    assert torch.equal(tokens, expected)
    assert trace.forwards == plain.forwards == made.calls
    assert trace.rows == made.rows
    with count_forwards(denoiser.model.model) as replayed, torch.inference_mode():
        outputs = [call() for call in recorder.calls]
    assert dataclasses.astuple(replayed) == dataclasses.astuple(made)
    # Copies were kept: the first call saw the canvas as it was before anything was committed.
    first = denoiser.hidden(canvas)
    assert outputs[0].shape[1:] == first.shape[1:]
    assert torch.equal(outputs[0][:BATCH], first)


def test_overhead_times_generation_and_replay_in_turns(denoiser, canvas):
    options = decoder_options("soar")
    with count_forwards(denoiser.model.model) as once:
        denoise(denoiser, canvas, options=options, start=PROMPT)
    with count_forwards(denoiser.model.model) as total:
        found = engine_overhead(denoiser, canvas, options, start=PROMPT, repeats=3, warmup=1)
    assert (found.forwards, found.rows) == (once.calls, once.rows)
    # One to record, then a warm-up and three rounds of each side.
    assert total.calls == once.calls * (1 + 2 * (1 + 3))
    assert total.rows == once.rows * (1 + 2 * (1 + 3))
    assert len(found.generation) == len(found.replay) == 3
    assert min(found.generation + found.replay) > 0
    assert 0 < found.low <= found.ratio <= found.high


def test_footprints_are_bytes():
    size = {"vocab": 40, "prompt": 4, "gen_length": 8, "block_length": 4, "threads": 1}
    for peak in (
        generation_peak(decoder="low-confidence", **size),
        generation_peak(decoder="soar", **size),
        forward_peak(rows=2, **size),
    ):
        assert isinstance(peak, int)
        assert peak > 0
