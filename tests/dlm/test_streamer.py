"""Committed text for streamers: left to right, once, and never taken back."""

import threading

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import TextDiffusionStreamer

import whet
from tests.conftest import EOS, MASK
from tests.dlm.families import CAUSAL, FAMILIES, FULL, favour, options_for, ragged
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.dlm.streamer import CommittedText
from whet.errors import OptionError

G = 12


class Recorder:
    """Every call as transformers' streamers get it."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append(("put", value.clone()))

    def end(self):
        self.calls.append(("end", None))

    def puts(self):
        return [value for name, value in self.calls if name == "put"]


class Drafts(Recorder):
    def put_draft(self, value):
        self.calls.append(("draft", value.clone()))


def until_end(tokens):
    """The tokens up to and with the first EOS."""
    ends = (tokens == EOS).nonzero()[:, 0]
    return tokens[: int(ends[0]) + 1] if len(ends) else tokens


def stream(model, canvas, options, recorder, start, real=None, watch=lambda rows: None):
    """Decode with a streamer; `watch` sees the rows of each step after the streamer did."""
    text = CommittedText(recorder, end_ids=[EOS], revises=options.revises)

    def on_commit(step, rows):
        text(step, rows)
        watch(rows)

    return denoise(model, canvas, real, options=options, start=start, on_commit=on_commit)


STEADY = [
    ("low-confidence", {}, FAMILIES),
    ("random", {"block_length": 4}, FULL),
    ("threshold", {"block_length": 4, "cache": "dual"}, FAMILIES),
    ("threshold", {"block_length": 4, "eos": "early_stop"}, FAMILIES),
    ("random", {"temperature": 0.8, "cache": "block"}, CAUSAL),
]
REVISING = [
    ("soar", {"block_length": 4}, FAMILIES),
    ("pbs", {"beam_width": 3}, FULL),
    ("llada2.1", {"cache": "block"}, CAUSAL),
    ("llada2", {"edit_threshold": 0.12, "block_length": 4}, FULL),
]


def spread(rules):
    return pytest.mark.parametrize(
        ("family", "decoder", "settings"), [(f, d, s) for d, s, families in rules for f in families]
    )


@pytest.mark.parametrize("bias", [0.0, 2.0])
@spread(STEADY)
def test_what_is_put_is_the_committed_run_from_the_left(request, family, decoder, settings, bias):
    """After every step: the prompt, then all up to the first gap or the first end, once."""
    model = favour(request.getfixturevalue(family), EOS, bias)
    canvas, _ = ragged([5], G)
    recorder, options = Recorder(), options_for(decoder, **settings)

    def watch(rows):
        region = rows.tokens[0, 5:]
        gaps = (region == MASK).nonzero()[:, 0]
        run = region[: int(gaps[0])] if len(gaps) else region
        first, *others = recorder.puts()
        assert torch.equal(first, canvas[:, :5])
        assert all(value.dim() == 1 and len(value) for value in others)
        assert torch.equal(torch.cat([run[:0], *others]), until_end(run))
        over = not len(gaps) or bool((run == EOS).any())
        assert [name for name, _ in recorder.calls].count("end") == over

    tokens, trace = stream(model, canvas, options, recorder, 5, watch=watch)
    assert recorder.calls[-1][0] == "end"
    _, *texts = recorder.puts()
    assert torch.cat(texts).tolist() == until_end(tokens[0, 5:]).tolist()
    if not bias and "block_length" in settings and trace.forwards > 6:
        assert len(texts) > 1  # it came in pieces


@pytest.mark.parametrize("kind", [Recorder, Drafts])
@spread(REVISING)
def test_rules_that_take_back_put_nothing_before_the_end(request, family, decoder, settings, kind):
    model = favour(request.getfixturevalue(family), EOS, 1.0)
    canvas, _ = ragged([5], G)
    recorder, options = kind(), options_for(decoder, **settings)
    assert options.revises
    changed, shown = 0, []

    def watch(rows):
        nonlocal changed
        now = rows.tokens[0, 5:].clone()
        if shown:
            was = shown[-1]
            changed += int(((was != MASK) & (was != now)).sum())
        shown.append(now)

    tokens, trace = stream(model, canvas, options, recorder, 5, watch=watch)
    calls = [name for name, _ in recorder.calls if name != "draft"]
    assert calls == ["put", "put", "end"]
    assert [name for name, _ in recorder.calls][-2:] == ["put", "end"]
    assert torch.equal(recorder.puts()[0], canvas[:, :5])
    assert torch.equal(recorder.puts()[1], until_end(tokens[0, 5:]))
    if kind is Drafts:
        drafts = [value for name, value in recorder.calls if name == "draft"]
        assert len(drafts) == len(shown) - 1 == trace.forwards - 1
        assert all(torch.equal(d, s) for d, s in zip(drafts, shown, strict=False))
    if decoder == "llada2.1":
        assert changed > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_are_what_is_not_put_yet(request, family):
    canvas, _ = ragged([5], G)
    recorder, shown = Drafts(), []
    stream(
        request.getfixturevalue(family),
        canvas,
        options_for("threshold", block_length=4),
        recorder,
        5,
        watch=lambda rows: shown.append(rows.tokens[0, 5:].clone()),
    )
    sent, step = 0, 0
    for name, value in recorder.calls[1:]:
        if name == "put":
            assert torch.equal(value, shown[step][sent : sent + len(value)])
            sent += len(value)
        elif name == "draft":
            assert torch.equal(value, shown[step][sent:])
            step += 1
    assert (recorder.calls[-1][0], sent, step) == ("end", G, len(shown) - 1)


def test_padding_is_no_part_of_the_prompt_and_given_tokens_are_part_of_the_text(tiny_sdar):
    canvas, real = ragged([3, 9], G)
    recorder = Recorder()
    canvas, real = canvas[:1], real[:1]
    canvas[0, 13:15] = torch.tensor([21, 22])
    tokens, _ = stream(tiny_sdar, canvas, options_for("threshold"), recorder, 9, real)
    prompt, *texts = recorder.puts()
    assert torch.equal(prompt, canvas[:, 6:9])
    assert torch.cat(texts).tolist() == until_end(tokens[0, 9:]).tolist()
    # A region that begins with given tokens: they are put with the prompt.
    recorder = Recorder()
    stream(tiny_sdar, canvas[:, 6:], options_for("threshold"), recorder, 1)
    assert torch.equal(recorder.puts()[0], canvas[:, 6:9])


def test_one_text_at_a_time(tiny_llada):
    canvas, real = ragged([3, 3], G)
    with pytest.raises(OptionError, match="a streamer shows one text, the batch has 2"):
        stream(tiny_llada, canvas, options_for("threshold"), Recorder(), 3, real)


@pytest.fixture(scope="module")
def zoo_model():
    return whet.load("tiny-dlm")


DECODERS = ["threshold:block_length=4", "low-confidence", "soar:threshold=0.9"]


def zoo_stream(zoo_model, decoder, streamer):
    """(prompt, text up to and with its end) of a decoding that feeds a streamer."""
    model, tokenizer = zoo_model
    ids = tokenizer("sort 3120456789=", return_tensors="pt").input_ids
    masks = torch.full((1, 16), model.config.mask_token_id)
    options = decoder_options(decoder)
    ends = [model.config.eos_token_id]
    text = CommittedText(streamer, end_ids=ends, revises=options.revises)
    start = ids.shape[1]
    tokens, _ = denoise(
        model, torch.cat((ids, masks), 1), options=options, start=start, on_commit=text
    )
    found = tokens[0, start:]
    return tokenizer.decode(ids[0]), found[: int((found == ends[0]).nonzero()[0]) + 1]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", [TextStreamer, TextDiffusionStreamer])
@pytest.mark.parametrize("skip_prompt", [True, False])
def test_transformers_streamers_print_the_text(zoo_model, capsys, decoder, kind, skip_prompt):
    tokenizer = zoo_model[1]
    prompt, text = zoo_stream(zoo_model, decoder, kind(tokenizer, skip_prompt=skip_prompt))
    printed = capsys.readouterr().out
    expected = ("" if skip_prompt else prompt) + tokenizer.decode(text) + "\n"
    if kind is TextStreamer:
        assert printed == expected
        return
    kept, drafts = [], 0
    # A draft goes from "save the cursor" to "back to it and clear".
    for k, part in enumerate(printed.split("\0337")):
        draft, clear, rest = part.partition("\0338\033[J") if k else ("", "", part)
        drafts += bool(draft)
        assert bool(clear) == bool(k)
        kept.append(rest)
    assert "".join(kept) == expected
    assert drafts > 0


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_iterator_of_another_thread_gets_the_text(zoo_model, decoder):
    tokenizer, found = zoo_model[1], []
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    reader = threading.Thread(target=lambda: found.extend(streamer))
    reader.start()
    _, text = zoo_stream(zoo_model, decoder, streamer)
    reader.join(60)
    assert not reader.is_alive()
    assert "".join(found) == tokenizer.decode(text)
