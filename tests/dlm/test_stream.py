"""First done, first out: every text is the one decoded alone, and the batch stays full."""

import itertools

import pytest
import torch

import whet
from tests.conftest import EOS, MASK
from tests.dlm.families import CAUSAL, FAMILIES, FULL, favour, fed_shapes, options_for
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.dlm.stream import DenoiseStream, Job
from whet.dlm.texts import TextRequest, generate_texts, infill, stream_texts
from whet.errors import InputError, OptionError

# Lengths of prompt and text; requests are names, not places.
SHAPES = [(5, 4), (2, 12), (9, 8), (3, 4), (1, 12), (8, 4), (4, 8)]


def jobs(shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for k, (before, length) in enumerate(shapes):
        tokens = torch.full((before + length,), MASK)
        tokens[:before] = torch.randint(1, MASK, (before,), generator=generator)
        made.append(Job(tokens, before, 40 - 3 * k))
    return made


def alone(model, job, options):
    return denoise(
        model, job.tokens[None], options=options, start=job.start, requests=[job.request]
    )


def assert_same_text(done, single):
    tokens, trace = single
    assert torch.equal(done.tokens, tokens[0])
    assert torch.equal(done.trace.commit_step, trace.commit_step)
    assert torch.equal(done.trace.rows_per_step, trace.rows_per_step)
    assert done.trace.forwards == int(trace.steps[0])
    assert done.trace.rows == int(trace.prompt_rows[0])
    torch.testing.assert_close(done.trace.confidence, trace.confidence, atol=1e-9, rtol=0)


RUNS = [
    ("threshold", {}, FAMILIES),
    ("threshold", {"cache": "prefix"}, FULL),
    ("credit", {"cache": "dual", "refresh_interval": 3}, FULL),
    ("soar", {"cache": "dual", "vicinity": 2}, FAMILIES),
    ("random", {"temperature": 0.8, "cfg_scale": 0.5, "cache": "dual"}, FULL),
    ("dinfer-threshold", {"smooth": 0.3, "cache": "prefix"}, FULL),
    ("soar", {"variant": "llada", "temperature": 0.6, "cache": "block"}, CAUSAL),
    ("llada2.1", {"cache": "block"}, CAUSAL),
    ("credit", {"cfg_scale": 0.5, "cache": "block"}, CAUSAL),
    ("threshold", {"smooth": 0.3, "eos": "early_stop", "cache": "block"}, CAUSAL),
]


CASES = [(f, d, s) for d, s, families in RUNS for f in families]


@pytest.mark.parametrize(
    ("family", "decoder", "settings", "sizes"),
    [(*case, [(3,), (1, 20), (2,)][k % 3]) for k, case in enumerate(CASES)],
)
def test_every_text_is_the_one_decoded_alone(request, family, decoder, settings, sizes):
    model = request.getfixturevalue(family)
    if "eos" in settings:
        favour(model, EOS, 2.0)
    options, waiting = options_for(decoder, block_length=4, **settings), jobs()
    singles = [alone(model, job, options) for job in waiting]
    for size in sizes:
        with fed_shapes(model) as shapes:
            stream = DenoiseStream(model, iter(waiting), options=options, batch_size=size)
            found = list(stream)
        forward = stream.loop.forward
        assert forward.forwards == len(shapes)
        assert forward.rows == sum(rows for rows, _ in shapes) == sum(d.trace.rows for d in found)
        assert forward.positions == sum(rows * width for rows, width in shapes)
        assert sorted(d.index for d in found) == list(range(len(waiting)))
        for done in found:
            assert_same_text(done, singles[done.index])


def schedule(steps, batch_size):
    """(index, step at which it comes out) in order, and live texts at each step; jobs of known
    steps take the lowest free place as soon as there is one."""
    waiting, places, out, live = list(enumerate(steps)), {}, [], []
    while waiting or places:
        for place in range(batch_size):
            if place not in places and waiting:
                places[place] = waiting.pop(0)
        live.append(len(places))
        for place in sorted(places):
            index, left = places.pop(place)
            if left > 1:
                places[place] = (index, left - 1)
            else:
                out.append((index, len(live)))
    return out, live


@pytest.mark.parametrize("decoder", ["low-confidence", "threshold", "soar"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 50])
def test_first_done_first_out_from_a_full_batch(tiny_llada, decoder, batch_size):
    options, waiting = options_for(decoder), jobs()
    steps = [int(alone(tiny_llada, job, options)[1].steps[0]) for job in waiting]
    live = []

    def watch(step, rows):
        assert step == len(live)
        live.append(len(rows))
        assert int(rows.owner.max()) < batch_size  # places are used again
        assert rows.owner.tolist() == sorted(set(rows.owner.tolist()))
        # No wider than the longest that is being decoded, the region neither.
        now = [SHAPES[(40 - name) // 3] for name in rows.request.tolist()]
        assert rows.tokens.shape[1] == max(map(sum, now))
        assert rows.pending.shape[1] == max(length for _, length in now)

    stream = DenoiseStream(
        tiny_llada, waiting, options=options, batch_size=batch_size, on_commit=watch
    )
    found = [(done.index, len(live)) for done in stream]
    order, expected_live = schedule(steps, batch_size)
    assert found == order
    assert live == expected_live
    assert len(live) == stream.loop.steps < sum(steps) + (batch_size == 1)
    for step, count in enumerate(live):
        finished = sum(at <= step for _, at in found)
        assert count == min(batch_size, len(waiting) - finished)


def test_jobs_are_drawn_when_a_place_is_free(tiny_llada):
    drawn = []

    def queue():
        for job in jobs():
            drawn.append(len(drawn))
            yield job

    stream = DenoiseStream(tiny_llada, queue(), options=options_for("low-confidence"), batch_size=2)
    assert drawn == []
    given = 0
    for _ in stream:
        given += 1
        # Texts that came out in the same step free their places together, after the last of them.
        assert len(drawn) - given < 2
        assert len(drawn) <= 1 + given
    assert (len(drawn), given) == (len(SHAPES), len(SHAPES))


def test_a_long_stream_keeps_nothing(tiny_sdar):
    """Places, lengths and cached canvases are those of the texts that are being decoded."""
    many = jobs([SHAPES[k % len(SHAPES)] for k in range(40)])
    options = options_for("threshold", cfg_scale=0.5, cache="block")
    stream = DenoiseStream(tiny_sdar, many, options=options, batch_size=3)
    widths = set()
    for _ in stream:
        loop, cache = stream.loop, stream.loop.forward.cache
        assert len(stream.places) < 3
        assert set(loop._lengths) == set(loop._sent) <= set(stream.places)
        assert cache.rows <= 6
        assert all(len(layer) <= 6 for layer in (*cache.keys, *cache.values))
        widths.add(cache.length)
    assert len(widths) >= 3  # canvases grew and shrank
    assert not stream.loop.live
    assert stream.loop.rows is None
    assert (stream.loop._lengths, stream.loop._sent, stream.places) == ({}, {}, {})


def test_gaps_stream_like_prompts(tiny_sdar):
    tokens = torch.randint(1, MASK, (3, 14), generator=torch.Generator().manual_seed(6))
    starts = [2, 5, 1]
    for row, gaps in zip(tokens, [(2, 3, 11), (5, 13), (1, 6, 7, 8)], strict=True):
        row[list(gaps)] = MASK
    waiting = [Job(t[: 14 - i], s, i) for i, (t, s) in enumerate(zip(tokens, starts, strict=True))]
    waiting[2] = Job(tokens[2], 1, 2)
    options = options_for("threshold", cache="block")
    for done in DenoiseStream(tiny_sdar, waiting, options=options, batch_size=2):
        assert_same_text(done, alone(tiny_sdar, waiting[done.index], options))


BAD = [
    (Job(torch.tensor([3, 4, 5]), 2, 0), "job 3 has no mask token to fill"),
    (Job(torch.full((65,), MASK), 0, 0), "job 3: 65 positions exceed the model's context of 64"),
    (
        Job(torch.tensor([3, MASK, 5, MASK]), 2, 0),
        "job 3: column 1 holds a mask, before start=2",
    ),
    (Job(torch.tensor([3, MASK]), -1, 0), "job 3: start=-1 must be 0 or more"),
]


@pytest.mark.parametrize(("bad", "says"), BAD)
def test_a_job_that_cannot_be_done_is_named(tiny_llada, bad, says):
    good = jobs()[:2]
    options = options_for("threshold")
    stream = iter(DenoiseStream(tiny_llada, [*good, bad], options=options, batch_size=1))
    assert {next(stream).index, next(stream).index} == {0, 1}  # those before it are done
    with pytest.raises(InputError, match=says):
        next(stream)
    with pytest.raises(InputError, match=says):
        list(DenoiseStream(tiny_llada, [*good, bad], options=options, batch_size=9))


def test_errors_of_options_and_of_the_queue_reach_the_caller(tiny_llada):
    with pytest.raises(OptionError, match="batch_size=0 must be at least 1"):
        DenoiseStream(tiny_llada, [], options=options_for("threshold"), batch_size=0)
    options = options_for("threshold", block_length=8)
    with pytest.raises(OptionError, match="block_length=8 does not divide the 4 positions"):
        list(DenoiseStream(tiny_llada, jobs(), options=options, batch_size=2))

    def broken():
        yield jobs()[0]
        raise RuntimeError("the queue is down")

    with pytest.raises(RuntimeError, match="the queue is down"):
        list(DenoiseStream(tiny_llada, broken(), options=options_for("threshold"), batch_size=2))


def test_nothing_comes_of_nothing(tiny_llada):
    stream = DenoiseStream(tiny_llada, [], options=options_for("threshold"), batch_size=3)
    assert list(stream) == []
    assert stream.loop.forward.forwards == 0


@pytest.fixture(scope="module")
def zoo_model():
    model, tokenizer = whet.load("tiny-dlm")
    return model.double(), tokenizer


PROMPTS = ["sort 3120456789=", "12+34=", "add 5 and 17=", "max 3 9 4="]


@pytest.mark.parametrize("decoder", ["threshold", "soar:beam_width=3"])
def test_texts_in_a_stream_are_the_texts_alone(zoo_model, decoder):
    model, tokenizer = zoo_model
    options = decoder_options(decoder, {"softmax": "float64"})
    known = [p for p in PROMPTS if _encodes(tokenizer, p)]
    assert len(known) >= 2
    hole = known[0][:4] + tokenizer.mask_token * 3 + known[0][7:] + tokenizer.mask_token
    asked = [
        TextRequest(prompt, length, request=9 + k)
        for k, (prompt, length) in enumerate(zip(known, itertools.cycle([16, 8]), strict=False))
    ]
    asked.insert(1, TextRequest(hole, 0, request=2, gap_text=True))
    for size in (1, 2, 9):
        found = dict(stream_texts(model, tokenizer, asked, options=options, batch_size=size))
        assert sorted(found) == list(range(len(asked)))
        for index, request in enumerate(asked):
            if request.gap_text:
                single = infill(model, tokenizer, hole, options=options, request=2)
                assert found[index].text.startswith(known[0][:4])
            else:
                [single] = generate_texts(
                    model,
                    tokenizer,
                    [request.prompt],
                    options=options,
                    gen_length=request.gen_length,
                    requests=[request.request],
                )
            for name in ("prompt", "text", "tokens", "steps", "rows", "answer_steps",
                         "answer_rows", "answer_tokens"):  # fmt: skip
                assert getattr(found[index], name) == getattr(single, name), name


def _encodes(tokenizer, text):
    unknown = tokenizer.unk_token_id
    return unknown is None or unknown not in tokenizer(text)["input_ids"]


def test_texts_that_cannot_be_decoded_stop_the_stream(zoo_model):
    model, tokenizer = zoo_model
    options = decoder_options("threshold")

    def run(*requests):
        return list(stream_texts(model, tokenizer, requests, options=options, batch_size=2))

    assert run() == []
    good = TextRequest("sort 312=", 8, 0)
    with pytest.raises(OptionError, match="gen_length=0 must be at least 1"):
        run(good, TextRequest("sort 312=", 0, 1))
    with pytest.raises(InputError, match="no gap"):
        run(TextRequest("sort 312=", 0, 1, gap_text=True))
    with pytest.raises(InputError, match="is empty"):
        run(good, TextRequest("", 4, 1))
    with pytest.raises(InputError, match="use infill for text with gaps"):
        run(TextRequest("sort " + tokenizer.mask_token, 4, 1))
    with pytest.raises(InputError, match="exceed the model's context"):
        run(good, TextRequest("sort 312=", 4000, 1))
    with pytest.raises(OptionError, match="batch_size=0"):
        list(stream_texts(model, tokenizer, [good], options=options, batch_size=0))
