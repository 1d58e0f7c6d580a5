"""Block-causal models: every cache is exact, whatever the rule; windows are the text's blocks."""

import dataclasses
import itertools

import pytest
import torch

from tests.conftest import BLOCK, EOS, MASK
from tests.dlm.families import (
    CAUSAL,
    assert_each_alone,
    assert_same,
    favour,
    fed_shapes,
    options_for,
    ragged,
    window_ends,
)
from tests.models.test_denoiser import Shifted
from whet.dlm.canvas import denoise
from whet.models.denoiser import Denoiser, Traits

CACHES = [
    {"cache": "prefix", "refresh_interval": 2},
    {"cache": "dual", "vicinity": 3},
    {"cache": "block"},
]
# Prompts that end on a border, one before and one behind it; the last block is not whole.
LENGTHS, G = [5, 8, 3, 1, 4], 7
RULES = [
    ("low-confidence", {}),
    ("low-confidence", {"cfg_scale": 0.7}),
    ("random", {"temperature": 0.8, "top_p": 0.9}),
    ("threshold", {"smooth": 0.3}),
    ("threshold", {"eos": "early_stop"}),
    ("credit", {}),
    ("dream", {"alg": "origin", "temperature": 0.7}),
    ("sdar", {"eos": "defer"}),
    ("llada2.1", {}),
    ("llada2.1", {"cfg_scale": 0.5}),
    ("soar", {}),
    ("soar", {"variant": "llada", "beam_width": 4, "temperature": 0.6}),
    ("pbs", {"beam_width": 3, "cfg_scale": 0.5}),
]


def run(model, decoder, settings, canvas, real=None, start=None, **more):
    options = options_for(decoder, **settings)
    return denoise(model, canvas, real, options=options, start=start, **more)


def causal_models(test):
    return pytest.mark.parametrize("family", CAUSAL)(test)


@causal_models
@pytest.mark.parametrize(
    ("decoder", "settings"), RULES, ids=lambda v: v if isinstance(v, str) else ",".join(v)
)
def test_every_cache_is_exact(request, family, decoder, settings):
    model = request.getfixturevalue(family)
    if "eos" in settings:
        model = favour(model, EOS, 2.0)
    canvas, real = ragged(LENGTHS, G)
    plain = run(model, decoder, settings, canvas, real, 8)
    if settings.get("eos") == "early_stop":
        whole = run(model, decoder, {}, canvas, real, 8)
        assert (plain[1].steps < whole[1].steps).any()  # it did stop early
    if "temperature" in settings:
        greedy = run(model, decoder, settings | {"temperature": 0}, canvas, real, 8)
        assert not torch.equal(greedy[0], plain[0])
    for cache in CACHES:
        assert_same(plain, run(model, decoder, settings | cache, canvas, real, 8))


@causal_models
def test_tokens_are_edited_in_these_tests(request, family):
    """Otherwise the rule with edits would prove nothing about caches."""
    canvas, real = ragged(LENGTHS, G)
    last, edits = None, 0

    def watch(step, rows):
        nonlocal last, edits
        filled = rows.tokens[:, rows.start :].clone()
        if last is not None and len(filled) == len(last):
            edits += int(((filled != last) & (last != MASK)).sum())
        last = filled

    model = request.getfixturevalue(family)
    for cache in ({}, {"cache": "block"}):
        last = None
        run(model, "llada2.1", cache, canvas[:1, 3:], real[:1, 3:], 5, on_commit=watch)
        assert edits > 0
        edits = 0


@causal_models
@pytest.mark.parametrize("block_length", [1, 3, 7, 32])
def test_blocks_of_other_lengths(request, family, block_length):
    model = request.getfixturevalue(family)
    model.config.block_length = block_length
    canvas, real = ragged(LENGTHS, G)
    plain = run(model, "threshold", {}, canvas, real, 8)
    for cache in CACHES:
        assert_same(plain, run(model, "threshold", cache, canvas, real, 8))
    assert_each_alone(model, canvas, real, options_for("threshold", cache="block"), plain)


# Blocks 2 and 4 of the first text hold no gap; the second is shorter and has others.
GAPS = [{3, 6, 7, 14, 20, 23}, {5, 9, 10, 11, 12, 22}]
PADDING = [0, 3]


def texts_with_gaps():
    canvas = torch.randint(1, MASK, (2, 24), generator=torch.Generator().manual_seed(2))
    real = torch.ones(2, 24, dtype=torch.bool)
    for row, (gaps, padding) in enumerate(zip(GAPS, PADDING, strict=True)):
        canvas[row, [g for g in gaps if g >= padding]] = MASK
        canvas[row, :padding], real[row, :padding] = EOS, False
    return canvas, real


@causal_models
@pytest.mark.parametrize("decoder", ["low-confidence", "threshold", "llada2.1", "pbs"])
def test_infill_skips_blocks_without_gaps(request, family, decoder):
    model = request.getfixturevalue(family)
    canvas, real = texts_with_gaps()
    plain = tokens, trace = run(model, decoder, {}, canvas, real, 3)
    given = canvas != MASK
    assert torch.equal(tokens[given], canvas[given])
    assert not (tokens == MASK).any()
    assert (trace.commit_step[given[:, 3:]] == -1).all()
    for row, padding in enumerate(PADDING):
        steps = {}
        for gap in GAPS[row]:
            block = (gap - padding) // BLOCK
            steps.setdefault(block, []).append(int(trace.commit_step[row, gap - 3]))
        for left, right in itertools.pairwise(sorted(steps)):
            assert max(steps[left]) < min(steps[right])
        if decoder == "low-confidence":
            assert int(trace.steps[row]) == len(GAPS[row])  # no step in a block without gaps
    for cache in CACHES:
        assert_same(plain, run(model, decoder, cache, canvas, real, 3))
    assert_each_alone(model, canvas, real, options_for(decoder, cache="block"), plain)


@causal_models
def test_what_the_block_cache_feeds_where_blocks_are_skipped(request, family):
    """Everything since the last window, once; then the window alone."""
    model = request.getfixturevalue(family)
    canvas, _ = texts_with_gaps()
    with fed_shapes(model) as shapes:
        run(model, "low-confidence", {"cache": "block"}, canvas[:1], start=3)
    # Gaps 3 | 6 7 | 14 | 20 23 in the blocks that end at 4, 8, 16 and 24.
    assert [width for _, width in shapes] == [4, 8, 4, 12, 12, 4]


@causal_models
@pytest.mark.parametrize("decoder", ["low-confidence", "threshold", "llada2.1", "soar"])
@pytest.mark.parametrize("before", [5, 8])
def test_no_forward_sees_more_than_it_must(request, family, decoder, before):
    model = request.getfixturevalue(family)
    canvas, _ = ragged([before], G)
    high = []

    def watch(step, rows):
        high.append(int(rows.bounds()[1].max()))  # of the window that comes next

    for cache in ({}, {"cache": "block"}):
        high.clear()
        with fed_shapes(model) as shapes:
            run(model, decoder, cache, canvas, start=before, on_commit=watch)
        first = window_ends(family, before, G)[0][1]
        widths = [width for _, width in shapes]
        assert widths[0] == first
        if cache:
            assert max(widths[1:]) <= 2 * BLOCK
        else:
            assert widths[1:] == high[:-1]


@causal_models
@pytest.mark.parametrize("decoder", ["low-confidence", "threshold", "llada2.1", "soar"])
def test_a_shifted_block_causal_model_gives_the_tokens_of_the_unshifted(request, family, decoder):
    """The column before the window is fed too, from every cache."""
    model = request.getfixturevalue(family)
    plain = Denoiser.of(model)
    traits = Traits(shift=True, attention="block_causal")
    shifted = dataclasses.replace(plain, model=Shifted(model), traits=traits)
    canvas, real = ragged(LENGTHS, G)
    expected = run(plain, decoder, {}, canvas, real, 8)
    for cache in ({}, *CACHES):
        assert_same(expected, run(shifted, decoder, cache, canvas, real, 8))
