"""Decoders through `model.generate(custom_generate=...)`."""

from functools import partial

import pytest
import torch

from tests.conftest import MASK
from whet.dlm.canvas import denoise
from whet.dlm.low_confidence import LowConfidence, low_confidence, random_order
from whet.dlm.shim import DenoiseOutput
from whet.dlm.soar import Soar, position_beam_search, soar
from whet.dlm.threshold import threshold
from whet.errors import InputError, OptionError

ALL = [low_confidence, random_order, threshold, position_beam_search, soar]


@pytest.fixture(params=["tiny_llada", "tiny_dream"])
def model(request):
    return request.getfixturevalue(request.param)


def ids(rows=1, length=5):
    return torch.randint(1, MASK, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("decoder", ALL, ids=lambda d: d.__name__)
def test_generate_fills_max_new_tokens(model, decoder):
    prompt = ids()
    out = model.generate(prompt, custom_generate=decoder, max_new_tokens=8)
    assert out.shape == (1, 13)
    assert torch.equal(out[:, :5], prompt)
    assert not (out == MASK).any()


def test_options_reach_the_decoder_and_equal_the_core(model):
    prompt = ids()
    options = Soar(threshold=0.3, beam_width=3, block_length=4)
    canvas = torch.cat((prompt, torch.full((1, 8), MASK)), 1)
    expected, trace = denoise(model, canvas, options=options, start=5)
    out = model.generate(
        prompt,
        custom_generate=soar,
        threshold=0.3,
        beam_width=3,
        block_length=4,
        max_new_tokens=8,
        return_dict_in_generate=True,
    )
    assert isinstance(out, DenoiseOutput)
    assert torch.equal(out.sequences, expected)
    assert torch.equal(out.trace.rows_per_step, trace.rows_per_step)


def test_left_padded_batch_equals_each_alone(model):
    prompt = ids(2)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    padded = prompt.clone()
    padded[0, :2] = 0
    call = {"custom_generate": soar, "threshold": 0.3, "max_new_tokens": 8}
    together = model.generate(padded, attention_mask=mask, **call)
    alone = model.generate(prompt[:1, 2:], **call)
    assert torch.equal(together[0, 2:], alone[0])
    assert torch.equal(together[1], model.generate(prompt[1:], **call)[0])


def test_plain_generate_is_low_confidence(model):
    prompt = ids()
    plain = model.generate(prompt, max_new_tokens=8)
    canvas = torch.cat((prompt, torch.full((1, 8), MASK)), 1)
    assert torch.equal(plain, denoise(model, canvas, options=LowConfidence(), start=5)[0])


def test_decoders_go_by_name_too(model):
    prompt = ids()
    by_name = model.generate(prompt, custom_generate="threshold", max_new_tokens=8, threshold=0.3)
    call = {"max_new_tokens": 8, "threshold": 0.3}
    assert torch.equal(by_name, model.generate(prompt, custom_generate=threshold, **call))


def test_partial_and_callback(model):
    steps = []
    decoder = partial(soar, on_commit=lambda step, rows: steps.append(step))
    model.generate(ids(), custom_generate=decoder, max_new_tokens=8, threshold=0.3)
    assert steps == list(range(len(steps)))
    assert steps


def test_sampling_uses_the_hosts_temperature(model):
    prompt = ids()
    call = {"custom_generate": low_confidence, "max_new_tokens": 8, "do_sample": True}
    a = model.generate(prompt, temperature=0.9, seed=1, **call)
    b = model.generate(prompt, temperature=0.9, seed=1, **call)
    c = model.generate(prompt, temperature=0.9, seed=2, **call)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_sampling_uses_the_hosts_top_p_and_top_k(model):
    prompt = ids()
    canvas = torch.cat((prompt, torch.full((1, 8), MASK)), 1)
    call = {"custom_generate": low_confidence, "max_new_tokens": 8, "do_sample": True, "seed": 1}
    # 50 is transformers' default, which means none unless it is asked for.
    for given, own in (
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_k": 3}, {"top_k": 3}),
        ({"top_k": 50}, {"top_k": 50}),
        ({}, {}),
    ):
        out = model.generate(prompt, temperature=0.9, **given, **call)
        options = LowConfidence(temperature=0.9, seed=1, **own)
        assert torch.equal(out, denoise(model, canvas, options=options, start=5)[0])


def test_a_streamer_gets_prompt_and_text_once(model):
    class Recorder:
        def __init__(self):
            self.put_, self.ends = [], 0

        def put(self, value):
            self.put_.extend(value.flatten().tolist())

        def end(self):
            self.ends += 1

    for decoder in (low_confidence, soar):
        recorder, steps = Recorder(), []
        call = {"custom_generate": decoder, "max_new_tokens": 8, "streamer": recorder}
        out = model.generate(ids(), on_commit=lambda step, rows: steps.append(step), **call)  # noqa: B023
        text = out[0].tolist()
        stop = text.index(0, 5) + 1 if 0 in text[5:] else len(text)
        assert recorder.put_ == text[:stop]
        assert recorder.ends == 1
        assert steps


def test_guidance_scale_is_cfg_scale_plus_one(model):
    prompt = ids()
    host = model.generate(
        prompt, custom_generate=threshold, max_new_tokens=8, guidance_scale=1.7, threshold=0.3
    )
    own = model.generate(
        prompt, custom_generate=threshold, max_new_tokens=8, cfg_scale=0.7, threshold=0.3
    )
    assert torch.equal(host, own)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"custom_generate": soar, "thresold": 0.5}, ValueError, "thresold"),
        ({"custom_generate": soar, "threshold": 2.0}, OptionError, "between 0 and 1"),
        ({"custom_generate": soar, "num_beams": 2}, OptionError, "beam_width"),
        ({"custom_generate": len, "streamer": object()}, OptionError, "own decoders only"),
        ({"custom_generate": len, "top_k": 5}, OptionError, "own decoders only"),
        ({"custom_generate": "sora"}, OptionError, "did you mean 'soar'"),
        ({"custom_generate": soar, "bad_words_ids": [[3]]}, OptionError, "NoBadWords"),
        ({"custom_generate": soar, "max_time": 1.0}, OptionError, "MaxTimeCriteria"),
        ({"custom_generate": soar, "repetition_penalty": 1.2}, OptionError, "repetition_penalty"),
        ({"custom_generate": low_confidence, "steps": 3}, OptionError, "steps=3"),
    ],
)
def test_wrong_calls_are_refused(model, call, error, says):
    call = {"block_length": 4, **call}
    with pytest.raises(error, match=says):
        model.generate(ids(), max_new_tokens=8, **call)


def test_prompts_are_checked(model):
    prompt = ids()
    prompt[0, 2] = MASK
    with pytest.raises(InputError, match="mask token"):
        model.generate(prompt, max_new_tokens=8, custom_generate=soar)
