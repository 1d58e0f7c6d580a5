import dataclasses

import pytest
import torch

from tests.gemma import BLOCK, Tape, official, tiny_gemma
from whet import catalogue
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.dlm.gemma import DiffusionGemma
from whet.dlm.stream import DenoiseStream, Job
from whet.dlm.texts import left_pad
from whet.errors import InputError, OptionError
from whet.models.denoiser import BLANK, Denoiser

# Under these some blocks of the tiny model end early and others do not.
MIXED = {"t_min": 0.01, "t_max": 0.02, "entropy_bound": 0.05, "confidence_threshold": 0.3}
MIXED |= {"max_steps": 10}


@pytest.fixture(scope="module")
def model():
    return tiny_gemma()


def prompts_of(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, 60, (n,), generator=generator) for n in lengths]


def blanks(prompt, length):
    """[1, L]: a prompt and positions to fill."""
    return torch.cat((prompt, torch.full((length,), BLANK)))[None]


def block_steps(trace, block=BLOCK):
    """[P, blocks]: how many steps each block took; all of it is committed in its last one."""
    blocks = trace.commit_step.split(block, -1)
    assert all(bool((b == b[:, :1]).all()) for b in blocks)
    last = torch.stack([b[:, 0] for b in blocks], -1)
    return last.diff(prepend=last.new_full((len(last), 1), -1))


SETTINGS = [
    # Whether some blocks become stable and sure before their last step.
    ({"max_steps": 5}, False),
    ({"max_steps": 5, "entropy_bound": 5.0, "t_min": 0.1, "t_max": 1.5}, False),
    ({"max_steps": 5, "entropy_bound": 1e-4, "t_min": 0.05, "t_max": 0.1}, False),
    ({"max_steps": 1}, False),
    (MIXED, True),
    (MIXED | {"stability": 0, "confidence_threshold": 5.0}, True),
    (MIXED | {"stability": 0, "confidence_threshold": 1e-4}, True),
    (MIXED | {"stability": 2, "max_steps": 12}, True),
    (MIXED | {"confidence_threshold": 5.0}, True),
    (MIXED | {"entropy_bound": 1.0, "confidence_threshold": 0.02}, True),
    (MIXED | {"block_length": 4}, True),
]


@pytest.mark.parametrize(("settings", "early"), SETTINGS, ids=str)
def test_transformers_generates_the_same(model, monkeypatch, settings, early):
    """Same randomness, same texts in as many forwards; prompts shorter and longer than windows."""
    tape, ended = Tape(monkeypatch), []
    for seed, prompt in enumerate(prompts_of(2, 13)):
        options = DiffusionGemma(seed=seed, **settings)
        block = options.block_length or BLOCK
        ours, trace = denoise(model, blanks(prompt, 3 * block), options=options)
        theirs, forwards = official(model, prompt, 3 * block, options, tape, canvas_length=block)
        assert torch.equal(ours, theirs)
        assert trace.forwards == int(trace.steps) == forwards
        assert tape.seeds == []
        ended.append(bool((block_steps(trace, block) < options.max_steps).any()))
    assert any(ended) == early


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [(torch.float64, {"max_steps": 3, "entropy_bound": 1.0}), (torch.bfloat16, MIXED)],
)
def test_it_does_in_other_precisions(monkeypatch, dtype, settings):
    """In float64 transformers rounds its logits to float32, hence few steps."""
    model = tiny_gemma(dtype)
    [prompt] = prompts_of(9)
    options = DiffusionGemma(**settings)
    tape = Tape(monkeypatch)
    ours, trace = denoise(model, blanks(prompt, 2 * BLOCK), options=options)
    theirs, forwards = official(model, prompt, 2 * BLOCK, options, tape)
    assert torch.equal(ours, theirs)
    assert trace.forwards == forwards


def test_a_last_block_that_is_shorter(model, monkeypatch):
    """transformers has no such blocks: there it is a canvas of that length behind a longer text."""
    [prompt] = prompts_of(4)
    options = DiffusionGemma(**MIXED)
    tape = Tape(monkeypatch)
    ours, trace = denoise(model, blanks(prompt, 2 * BLOCK + 5), options=options)
    most, before = official(model, prompt, 2 * BLOCK, options, tape)
    theirs, after = official(model, most[0], 5, options, tape, canvas_length=5)
    assert torch.equal(ours, theirs)
    assert trace.forwards == before + after
    assert block_steps(trace).shape == (1, 3)
    assert tape.seeds == []


def test_the_end_of_a_text(model, monkeypatch):
    """Blocks behind one that holds EOS are not decoded, and filled with EOS."""
    [prompt] = prompts_of(5)
    options = DiffusionGemma(**MIXED, eos="early_stop")
    whole, _ = denoise(model, blanks(prompt, 4 * BLOCK), options=options)
    second = whole[0, 5 + BLOCK : 5 + 2 * BLOCK].tolist()
    end = next(t for t in second if t not in whole[0, 5 : 5 + BLOCK])
    denoiser = dataclasses.replace(Denoiser.of(model), eos_token_ids=(end,))
    tape = Tape(monkeypatch)
    ours, trace = denoise(denoiser, blanks(prompt, 4 * BLOCK), options=options)
    theirs, forwards = official(model, prompt, 4 * BLOCK, options, tape, eos=[end])
    upto = 5 + BLOCK + second.index(end) + 1
    assert torch.equal(ours[:, :upto], theirs[:, :upto])
    assert torch.equal(ours[:, : 5 + 2 * BLOCK], whole[:, : 5 + 2 * BLOCK])
    assert (ours[0, 5 + 2 * BLOCK :] == end).all()
    assert trace.forwards == forwards == int(trace.commit_step.max()) + 1


@pytest.mark.parametrize("stability", [0, 1, 2, 3])
def test_every_block_has_to_become_stable_anew(monkeypatch, stability):
    """A model that always says the same: only the steps that are waited for are left."""
    model = tiny_gemma()
    with torch.no_grad():
        model.model.decoder.norm.weight.zero_()
    [prompt] = prompts_of(5)
    options = DiffusionGemma(stability=stability, confidence_threshold=5.0, max_steps=9)
    tape = Tape(monkeypatch)
    _, trace = denoise(model, blanks(prompt, 3 * BLOCK), options=options)
    assert block_steps(trace).tolist() == [[stability + 1] * 3]
    assert official(model, prompt, 3 * BLOCK, options, tape)[1] == trace.forwards


class Settling:
    """In place of the model: every request's blocks change for as many steps as it says."""

    forward, copies = None, 1

    def __call__(self, rows, index, position):
        request, step = rows.request[index], rows.window_step[index]
        token = position - rows.first[index] + request + (request % 3 - step).clamp_min(0)
        return 50.0 * torch.nn.functional.one_hot(token % 60, 60)


def test_a_blocks_history_is_its_own(model):
    """Whatever comes, goes and is longer beside it."""
    jobs = [
        Job(blanks(prompt, length)[0], len(prompt), request)
        for request, (prompt, length) in enumerate(
            zip(prompts_of(3, 11, 7, 2, 15, 4), (5, 16, 9, 24, 13, 21), strict=True)
        )
    ]
    options = DiffusionGemma(stability=2, max_steps=20)
    stream = DenoiseStream(model, jobs, options=options, batch_size=3)
    stream.loop.provider = Settling()
    for done in stream:
        start = jobs[done.index].start
        steps = block_steps(done.trace)
        assert (steps == done.index % 3 + 3).all()
        expected = torch.arange(start, len(done.tokens)) + done.index
        assert torch.equal(done.tokens[start:], expected % 60)


def test_temperatures(model):
    """From t_max at the first step of a block down to t_min after its last."""
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
        LinearTemperatureScheduleLogitsProcessor,
    )

    options = DiffusionGemma(max_steps=4, t_max=0.9, t_min=0.1)
    seen = []

    def watch(step, rows):
        seen.extend(options.temperatures(rows).tolist())

    [prompt] = prompts_of(5)
    denoise(model, blanks(prompt, 2 * BLOCK), options=options, on_commit=watch)
    expected = [0.7, 0.5, 0.3, 0.9, 0.7, 0.5, 0.3, 0.1]
    assert seen == pytest.approx(expected, abs=1e-6)
    theirs = LinearTemperatureScheduleLogitsProcessor(0.1, 0.9, 4)
    steps = [theirs(None, torch.ones(()), torch.tensor(n)) for n in (4, 3, 2, 1)]
    assert [1 / float(s) for s in steps] == pytest.approx([0.9, *seen[:3]], abs=1e-6)


@pytest.fixture(scope="module")
def exact():
    """In float64, where the company in a batch rounds nothing over an edge."""
    return tiny_gemma(torch.float64)


def test_a_batch_equals_its_parts(exact):
    prompts = prompts_of(3, 11, 6, 19, 6)
    canvas, mask = left_pad(prompts, Denoiser.of(exact), 2 * BLOCK)
    options = DiffusionGemma(**(MIXED | {"stability": 2, "max_steps": 14}), seed=1)
    together, trace = denoise(exact, canvas, mask, options=options)
    for row, prompt in enumerate(prompts):
        alone, single = denoise(exact, blanks(prompt, 2 * BLOCK), options=options, requests=[row])
        assert torch.equal(together[row, mask[row]], alone[0])
        assert torch.equal(trace.commit_step[row], single.commit_step[0])
        assert torch.allclose(trace.confidence[row], single.confidence[0], atol=1e-6)
        assert int(trace.steps[row]) == int(single.steps[0])
    # The rows left their blocks apart from each other, and some went through the model together.
    assert len(set(block_steps(trace)[:, 0].tolist())) > 1
    assert trace.steps.max() < trace.forwards < trace.rows


def test_a_stream_equals_its_parts(exact):
    """Places change hands, regions differ in length, blocks are not in step."""
    prompts = prompts_of(3, 11, 7, 2, 15)
    lengths = [16, 3, 21, 8, 12]
    options = DiffusionGemma(**MIXED, stability=2, seed=4)
    jobs = [
        Job(blanks(p, n)[0], len(p), 10 + i)
        for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    stream = DenoiseStream(exact, jobs, options=options, batch_size=2)
    done = list(stream)
    assert sorted(d.index for d in done) == list(range(5))
    for d in done:
        job = jobs[d.index]
        alone, trace = denoise(exact, job.tokens[None], options=options, requests=[job.request])
        assert torch.equal(d.tokens, alone[0])
        assert torch.equal(d.trace.commit_step, trace.commit_step)
        assert d.trace.rows == trace.rows
    assert stream.loop.forward.rows == sum(d.trace.rows for d in done)


@pytest.mark.parametrize("lengths", [(5,), (3, 11, 6, 11)])
def test_the_trace_counts_what_the_model_saw(model, lengths):
    read, drafted = [], []

    def encoder(module, args, inputs):
        read.append(inputs["input_ids"].shape)

    def decoder(module, args, inputs):
        drafted.append(inputs["decoder_input_ids"].shape)
        position = inputs["decoder_position_ids"]
        assert torch.equal(position[:, 1:], position[:, :-1] + 1)

    hooks = [
        model.model.encoder.register_forward_pre_hook(encoder, with_kwargs=True),
        model.model.decoder.register_forward_pre_hook(decoder, with_kwargs=True),
    ]
    canvas, mask = left_pad(prompts_of(*lengths), Denoiser.of(model), 2 * BLOCK + 3)
    _, trace = denoise(model, canvas, mask, options=DiffusionGemma(**MIXED))
    for hook in hooks:
        hook.remove()
    assert trace.forwards == len(drafted)
    assert trace.rows == sum(rows for rows, _ in drafted) == int(trace.rows_per_step.sum())
    tokens = sum(shape.numel() for shape in read)
    assert trace.positions == tokens + sum(shape.numel() for shape in drafted)
    # Everything is read once, but for the last block, which nothing follows.
    assert tokens == sum(lengths) + len(lengths) * 2 * BLOCK


def test_only_gaps_are_filled(model):
    """One of the blocks has none."""
    [prompt] = prompts_of(6)
    canvas = blanks(prompt, 4 * BLOCK)
    canvas[0, [8, *range(14, 22), 25]] = torch.arange(20, 30)
    given = canvas != BLANK
    tokens, trace = denoise(model, canvas, options=DiffusionGemma(**MIXED))
    assert torch.equal(tokens[given], canvas[given])
    assert ((tokens >= 0) & (tokens < 60)).all()
    assert torch.equal(trace.commit_step >= 0, ~given[:, 6:])


def test_nothing_beyond_the_tokenizer_is_written(model):
    """A head may have more rows than the tokenizer has tokens."""
    denoiser = dataclasses.replace(Denoiser.of(model), vocab_size=20)
    [prompt] = prompts_of(5)
    hot = DiffusionGemma(max_steps=4, t_max=3.0)
    drafts = []
    denoise(
        denoiser,
        blanks(prompt, 2 * BLOCK),
        options=hot,
        on_commit=lambda _, rows: drafts.append(rows.tokens[:, 5:]),
    )
    assert torch.cat(drafts).max() < 20


def test_seeds(model):
    [prompt] = prompts_of(5)

    def run(seed, **requests):
        options = decoder_options("diffusion-gemma:max_steps=4", {"seed": seed})
        return denoise(model, blanks(prompt, 2 * BLOCK), options=options, **requests)[0]

    assert torch.equal(run("1"), run("1"))
    assert not torch.equal(run("1"), run("2"))
    assert not torch.equal(run("1"), run("1", requests=[1]))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("temperature=0.5", "temperature=0.5: DiffusionGemma's rule has its own temperatures"),
        ("cfg_scale=1", "cfg_scale=1"),
        ("smooth=0.3", "smooth=0.3"),
        ("cache=dual", "cache=dual: .* exact cache; leave it out"),
        ("confidence=prob", "confidence=prob"),
        ("confidence_of=model", "confidence_of=model"),
        ("eos=defer", "eos=defer orders commitments"),
        ("max_steps=0", "max_steps=0 must be at least 1"),
        ("entropy_bound=-1", "entropy_bound=-1 must be 0 or more"),
        ("t_min=0.8", "t_min=0.8 must be above 0 and below t_max=0.8"),
        ("t_min=0", "t_min=0 must be above 0"),
        ("stability=-1", "stability=-1 must be 0 or more"),
        ("confidence_threshold=0", "confidence_threshold=0 must be above 0"),
        ("block_length=0", "block_length=0 must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(setting, says):
    with pytest.raises(OptionError, match=says):
        decoder_options(f"diffusion-gemma:{setting}")


OTHERS = [m.id for m in catalogue.methods().values() if "decode" in m.parts]
OTHERS.remove("diffusion-gemma")


@pytest.mark.parametrize("decoder", OTHERS)
def test_other_decoders_are_refused(model, decoder):
    [prompt] = prompts_of(5)
    with pytest.raises(OptionError, match=r"canvases of masks; .*'diffusion_gemma'"):
        denoise(model, blanks(prompt, BLOCK), options=decoder_options(decoder))


def test_other_models_are_refused(tiny_llada, canvases):
    canvas, mask = canvases([4], BLOCK)
    with pytest.raises(OptionError, match=r"DiffusionGemma .* random tokens; .*'llada'"):
        denoise(tiny_llada, canvas, mask, options=DiffusionGemma())


def test_canvas_errors(model):
    [prompt] = prompts_of(5)
    with pytest.raises(InputError, match="no mask token"):
        denoise(model, prompt[None], options=DiffusionGemma())
    with pytest.raises(InputError, match="65 positions, the model's context 64"):
        denoise(model, blanks(prompt, 60), options=DiffusionGemma())
    with pytest.raises(InputError, match="mask token"):
        Denoiser.of(model).check_prompt(blanks(prompt, 1)[0])
