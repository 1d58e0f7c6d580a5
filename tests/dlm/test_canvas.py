"""The canvas loop: exact properties of every decoder on tiny float64 models."""

import dataclasses
import itertools

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from tests.conftest import EOS, MASK
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.dlm.low_confidence import LowConfidence
from whet.dlm.provider import GuidedProvider, PlainProvider
from whet.dlm.schedule import Windows, quota
from whet.dlm.threshold import Threshold, ThresholdSelector
from whet.errors import InputError, OptionError
from whet.measure.count import count_forwards
from whet.models.denoiser import Denoiser, Traits

G = 12
# One rule of each kind; tests/dlm/test_combinations.py has every rule.
DECODERS = ["low-confidence", "random", "threshold", "factor", "credit", "pbs", "soar"]
SETTINGS = [
    {},
    {"block_length": "4"},
    {"temperature": "0.7", "seed": "3"},
    {"block_length": "3", "cfg_scale": "0.5"},
    {"confidence": "margin"},
    {"eos": "early_stop", "block_length": "4"},
    {"eos": "defer"},
    {"temperature": "0.9", "top_p": "0.8", "top_k": "7", "confidence_of": "sampled"},
    {"block_length": "4", "cache": "dual"},
    {"block_length": "4", "cache": "prefix", "refresh_interval": "2"},
    {"block_length": "3", "cache": "dual", "vicinity": "2", "cfg_scale": "0.5"},
    {"block_length": "6", "smooth": "0.3", "cache": "prefix"},
]


def options_for(decoder, settings):
    settings = {"softmax": "float64", **settings}
    if decoder in ("threshold", "soar"):
        # Random models are unsure of everything: a low threshold exercises both branches.
        settings.setdefault("threshold", "0.3")
    return decoder_options(decoder, settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: ",".join(s) or "plain")
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
def test_batch_of_ragged_prompts_equals_each_alone(request, canvases, family, decoder, settings):
    model = request.getfixturevalue(family)
    options = options_for(decoder, settings)
    lengths = [5, 2, 7, 3]
    canvas, mask = canvases(lengths, G)
    together, trace = denoise(model, canvas, mask, options=options, start=7)
    for i, length in enumerate(lengths):
        alone_canvas = canvas[i : i + 1, 7 - length :]
        alone, single = denoise(model, alone_canvas, options=options, start=length, requests=[i])
        assert alone[0].tolist() == together[i, 7 - length :].tolist()
        assert single.commit_step[0].tolist() == trace.commit_step[i].tolist()
        assert int(single.steps[0]) == int(trace.steps[i])
        assert int(single.prompt_rows[0]) == int(trace.prompt_rows[i])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("block_length", [None, 4, 1])
def test_canvas_is_filled_prompt_kept_windows_left_to_right(
    tiny_llada, canvases, decoder, block_length
):
    settings = {} if block_length is None else {"block_length": str(block_length)}
    options = options_for(decoder, settings)
    canvas, mask = canvases([4, 6], G)
    tokens, trace = denoise(tiny_llada, canvas, mask, options=options, start=6)
    assert torch.equal(tokens[:, :6], canvas[:, :6])
    assert not (tokens == MASK).any()
    assert (trace.commit_step >= 0).all()
    assert int(trace.steps.max()) <= G
    # Every step of a live prompt commits something to its winner.
    for row in range(2):
        assert set(trace.commit_step[row].tolist()) == set(range(int(trace.steps[row])))
    block = block_length or G
    windows = trace.commit_step.unflatten(1, (-1, block))
    for left, right in itertools.pairwise(range(windows.shape[1])):
        assert (windows[:, left].max(-1).values < windows[:, right].min(-1).values).all()


@pytest.mark.parametrize("decoder", DECODERS)
def test_trace_counts_what_the_model_saw(tiny_llada, canvases, decoder):
    canvas, mask = canvases([4, 6, 3], G)
    with count_forwards(tiny_llada.model) as seen:
        _, trace = denoise(tiny_llada, canvas, mask, options=options_for(decoder, {}), start=6)
    assert (seen.calls, seen.rows) == (trace.forwards, trace.rows)
    assert trace.rows == int(trace.rows_per_step.sum())
    assert trace.forwards == len(trace.rows_per_step) == int(trace.steps.max())


def test_only_masked_positions_of_the_window_reach_the_head(tiny_llada, canvases):
    seen = []
    head = tiny_llada.model.transformer["ff_out"]
    head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    canvas, _ = canvases([3], 8)
    denoise(tiny_llada, canvas, options=LowConfidence(block_length=4), start=3)
    assert seen == [4, 3, 2, 1, 4, 3, 2, 1]


def test_a_shifted_model_gives_the_tokens_of_the_unshifted(tiny_llada, canvases):
    class Base(torch.nn.Module):
        """State i is the unshifted model's state i + 1."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, **inputs):
            states = self.inner(**inputs).last_hidden_state
            return BaseModelOutput(last_hidden_state=states.roll(-1, 1))

    class Shifted(torch.nn.Module):
        """logits[i] predict token i + 1."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.base_model, self.config = inner, Base(inner.model), inner.config

        def head(self, hidden):
            return self.inner.head(hidden)

    plain = Denoiser.of(tiny_llada)
    shifted = dataclasses.replace(plain, model=Shifted(tiny_llada), traits=Traits(shift=True))
    canvas, mask = canvases([5, 3], G)
    for decoder in DECODERS:
        options = options_for(decoder, {"block_length": "4"})
        a, _ = denoise(plain, canvas, mask, options=options, start=5)
        b, _ = denoise(shifted, canvas, mask, options=options, start=5)
        assert torch.equal(a, b), decoder


class _Above(LowConfidence):
    """A threshold above every confidence, which options do not allow."""

    def selector(self, denoiser):
        return ThresholdSelector(1.1)


def test_threshold_above_all_is_greedy_and_at_the_bottom_one_forward_per_window(
    tiny_llada, canvases
):
    canvas, mask = canvases([5, 3], G)
    for block_length in (None, 4):
        greedy, greedy_trace = denoise(
            tiny_llada, canvas, mask, options=LowConfidence(block_length=block_length), start=5
        )
        above, above_trace = denoise(
            tiny_llada, canvas, mask, options=_Above(block_length=block_length), start=5
        )
        assert torch.equal(greedy, above)
        assert above_trace.forwards == greedy_trace.forwards == G
        _, bottom = denoise(
            tiny_llada,
            canvas,
            mask,
            options=Threshold(threshold=0.0, block_length=block_length),
            start=5,
        )
        assert bottom.forwards == (1 if block_length is None else G // block_length)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 12])
def test_low_confidence_commits_its_quota(tiny_llada, canvases, steps):
    canvas, _ = canvases([4], G)
    _, trace = denoise(tiny_llada, canvas, options=LowConfidence(steps=steps), start=4)
    per_step = torch.bincount(trace.commit_step[0])
    assert per_step.tolist() == [G // steps] * steps


@pytest.mark.parametrize(("n", "s"), [(7, 3), (5, 8), (32, 32), (10, 4), (1, 1)])
def test_quotas_sum_to_the_masks(n, s):
    taken = [int(quota(torch.tensor([n]), torch.tensor([k]), torch.tensor([s]))) for k in range(s)]
    assert sum(taken) == n
    assert taken == sorted(taken, reverse=True)


def test_guidance_of_scale_zero_is_no_guidance_and_above_matches_the_formula(tiny_llada, canvases):
    canvas, mask = canvases([5, 3], G)
    options = LowConfidence(softmax="float64")
    plain, _ = denoise(tiny_llada, canvas, mask, options=options, start=5)

    def zero(denoiser, forward):
        return GuidedProvider(denoiser, forward, 0.0)

    same, trace = denoise(tiny_llada, canvas, mask, options=options, start=5, make_provider=zero)
    assert torch.equal(plain, same)
    assert trace.rows == int(trace.rows_per_step.sum()) == 2 * 2 * G

    # One forward of a guided step, against l_u + (s + 1)(l_c - l_u) computed by hand.
    _, guided = denoise(
        tiny_llada,
        canvas[:1],
        mask[:1],
        options=LowConfidence(softmax="float64", cfg_scale=1.5, steps=1),
        start=5,
    )
    blind = canvas[:1].clone()
    blind[:, :5] = MASK
    l_c, l_u = (tiny_llada(c).logits[0, 5:] for c in (canvas[:1], blind))
    by_hand = l_u + 2.5 * (l_c - l_u)
    by_hand[:, MASK] = -torch.inf
    expected = by_hand.softmax(-1).max(-1).values
    assert torch.allclose(guided.confidence[0], expected, atol=1e-12)


def test_right_padding_and_a_late_start_are_refused(tiny_llada, canvases):
    canvas, _ = canvases([4, 4], G)
    mask = torch.ones(canvas.shape, dtype=torch.bool)
    mask[1, -1] = False
    with pytest.raises(InputError, match="padding must be on the left"):
        denoise(tiny_llada, canvas, mask, options=LowConfidence())
    with pytest.raises(InputError, match="column 4 holds a mask, before start=6"):
        denoise(tiny_llada, canvas, options=LowConfidence(), start=6)


def _favour_eos(model, bias):
    """Make EOS likely everywhere."""
    model.model.transformer["ff_out"].weight.data[EOS] = 0
    original = model.head

    def head(hidden):
        logits = original(hidden)
        logits[..., EOS] += bias
        return logits

    model.head = head
    return model


def test_eos_suppressed_is_never_predicted(tiny_llada, canvases):
    model = _favour_eos(tiny_llada, 5.0)
    canvas, _ = canvases([4], G)
    plain, _ = denoise(model, canvas, options=LowConfidence(), start=4)
    assert (plain[0, 4:] == EOS).any()
    tokens, _ = denoise(model, canvas, options=LowConfidence(eos="suppress"), start=4)
    assert not (tokens[0, 4:] == EOS).any()


def test_eos_deferred_is_committed_last(tiny_llada, canvases):
    class EosAtOdd(PlainProvider):
        def __call__(self, rows, index, position):
            logits = super().__call__(rows, index, position)
            logits[:, EOS] += torch.where(position % 2 == 1, 50.0, -50.0)
            return logits

    def run(options):
        return denoise(tiny_llada, canvas, options=options, start=4, make_provider=EosAtOdd)

    canvas, _ = canvases([4], G)
    odd = torch.arange(G) % 2 == 1
    _, plain = run(LowConfidence())
    assert plain.commit_step[0][odd].max() < plain.commit_step[0][~odd].min()
    tokens, trace = run(LowConfidence(eos="defer"))
    assert (tokens[0, 4:] == EOS).tolist() == odd.tolist()
    assert trace.commit_step[0][~odd].max() < trace.commit_step[0][odd].min()
    # Deferred tokens are above no threshold, and their true confidence stays in the trace.
    _, trace = run(Threshold(eos="defer", threshold=0.0, block_length=6))
    assert torch.bincount(trace.commit_step[0]).tolist() == [3, 1, 1, 1, 3, 1, 1, 1]
    assert (trace.confidence[0] > 0).all()


def test_the_end_of_a_turn_ends_a_text(tiny_llada, canvases):
    """What instruction-tuned checkpoints put at the end counts as an end, beside EOS."""
    turn = 7
    denoiser = dataclasses.replace(Denoiser.of(tiny_llada), end_of_turn_ids=(turn,))
    head = tiny_llada.head

    def favour(hidden):
        logits = head(hidden)
        logits[..., turn] += 50
        return logits

    tiny_llada.head = favour
    canvas, _ = canvases([4], G)
    options = LowConfidence(block_length=4, eos="early_stop")
    tokens, trace = denoise(denoiser, canvas, options=options, start=4)
    assert trace.forwards == 4
    assert (tokens[0, 8:] == EOS).all()


def test_early_stop_fills_the_rest_with_eos_and_saves_forwards(tiny_llada, canvases):
    model = _favour_eos(tiny_llada, 3.0)
    canvas, _ = canvases([4], G)
    full, full_trace = denoise(model, canvas, options=LowConfidence(block_length=4), start=4)
    assert (full[0, 4:8] == EOS).any()
    tokens, trace = denoise(
        model, canvas, options=LowConfidence(block_length=4, eos="early_stop"), start=4
    )
    first = int((tokens[0, 4:] == EOS).nonzero()[0])
    assert (tokens[0, 4 + max(first, 4) :] == EOS).all()
    assert torch.equal(tokens[0, :8], full[0, :8])
    assert trace.forwards == 4 < full_trace.forwards


def test_infill_keeps_every_given_token(tiny_llada):
    canvas = torch.tensor([[3, MASK, 5, MASK, MASK, 8, MASK, 2]])
    for decoder in DECODERS:
        tokens, trace = denoise(tiny_llada, canvas, options=options_for(decoder, {}))
        given = canvas != MASK
        assert torch.equal(tokens[given], canvas[given])
        assert not (tokens == MASK).any()
        assert trace.commit_step.shape == (1, 7)  # from the first mask on
        assert (trace.commit_step[0][given[0, 1:]] == -1).all()


def test_random_order_differs_by_seed_and_repeats(tiny_llada, canvases):
    canvas, _ = canvases([4], G)

    def run(seed):
        options = decoder_options("random", {"seed": str(seed)})
        return denoise(tiny_llada, canvas, options=options, start=4)[1].commit_step

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_on_commit_shows_every_step(tiny_llada, canvases):
    canvas, mask = canvases([4, 2], G)
    left = []

    def watch(step, rows):
        assert step == len(left)
        left.append((rows.tokens == MASK).sum(-1).tolist())

    denoise(tiny_llada, canvas, mask, options=LowConfidence(steps=6), start=4, on_commit=watch)
    assert left == [[10, 10], [8, 8], [6, 6], [4, 4], [2, 2], [0, 0]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (LowConfidence(block_length=5), "block_length=5 does not divide the 12 positions"),
        (LowConfidence(block_length=4, steps=7), "steps=7 must be a multiple of the number"),
    ],
)
def test_options_that_do_not_fit_the_canvas(tiny_llada, canvases, options, says):
    canvas, _ = canvases([4], G)
    with pytest.raises(OptionError, match=says):
        denoise(tiny_llada, canvas, options=options, start=4)


def test_canvas_errors(tiny_llada):
    with pytest.raises(InputError, match="no mask token"):
        denoise(tiny_llada, torch.tensor([[1, 2, 3]]), options=LowConfidence())
    with pytest.raises(InputError, match="context 64"):
        denoise(tiny_llada, torch.full((1, 65), MASK), options=LowConfidence())


@pytest.mark.parametrize(
    ("decoder", "settings", "says"),
    [
        ("threshold", {"threshold": "1.5"}, "between 0 and 1"),
        ("threshold", {"threshold": "0.5", "confidence": "neg_entropy"}, "at most 0"),
        ("soar", {"threshold": "-0.1"}, "between 0 and 1"),
        ("soar", {"beam_width": "0"}, "beam_width=0"),
        ("soar", {"min_parallel": "6"}, "must not exceed"),
        ("soar", {"variant": "lada"}, "variant"),
        ("soar", {"beam": "3"}, "did you mean 'beam_width'"),
        ("low-confidence", {"steps": "0"}, "steps=0"),
        ("low-confidence", {"steps": "two"}, "whole number"),
        ("low-confidence", {"temperature": "-1"}, "temperature"),
        ("low-confidence", {"eos": "never"}, "none, suppress"),
        ("low-confidence", {"block_length": "0"}, "at least 1"),
    ],
)
def test_bad_options(decoder, settings, says):
    with pytest.raises(OptionError, match=says):
        decoder_options(decoder, settings)


def test_unknown_decoder_offers_the_nearest():
    with pytest.raises(OptionError, match="did you mean 'soar'"):
        decoder_options("sora")


def test_windows_are_counted_with_what_lies_before_them():
    assert Windows.cut(8, 4).count == 2
    assert Windows.cut(8, None).count == 1
    # Two positions of the first block are the prompt's.
    aligned = Windows.aligned(8, 4, before=6)
    assert (aligned.offset, aligned.count) == (2, 3)
