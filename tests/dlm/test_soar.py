"""SOAR's invariants, and its row-wise code against a plain one-hypothesis-at-a-time oracle."""

import pytest
import torch

from tests.conftest import MASK
from tests.dlm import reference
from whet.dlm.beam import duplicates, place_in_group, rank_within
from whet.dlm.canvas import denoise
from whet.dlm.low_confidence import LowConfidence
from whet.dlm.soar import PositionBeamSearch, Soar
from whet.dlm.threshold import Threshold
from whet.models.denoiser import Denoiser

G = 12
VARIANTS = {
    "paper": {"score": "mean", "collapse": "best_parallel", "stop": "best"},
    "llada": {"score": "sum", "collapse": None, "stop": "all"},
    "dream": {"score": "mean", "collapse": 2, "stop": "best"},
}


def run(model, canvas, options, mask=None):
    start = int((canvas == MASK).any(0).nonzero()[0])
    return denoise(model, canvas, mask, options=options, start=start)


@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("beam_width", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.12, 0.3, 0.6])
@pytest.mark.parametrize(("max_parallel", "min_parallel"), [(5, 1), (3, 2)])
def test_rows_equal_the_plain_statement(
    request, canvases, family, variant, beam_width, threshold, max_parallel, min_parallel
):
    rules = VARIANTS[variant]
    if rules["collapse"] is None:
        rules = {**rules, "collapse": min_parallel}
    model = request.getfixturevalue(family)
    denoiser = Denoiser.of(model)
    for block_length in (12, 4):
        canvas, mask = canvases([5, 2, 4], G, seed=beam_width)
        options = Soar(
            beam_width=beam_width,
            threshold=threshold,
            max_parallel=max_parallel,
            min_parallel=min_parallel,
            variant=variant,
            block_length=block_length,
            softmax="float64",
        )
        tokens, trace = run(model, canvas, options, mask)
        for row in range(len(canvas)):
            with torch.inference_mode():
                expected, steps, rows = reference.soar(
                    denoiser,
                    canvas[row][mask[row]],
                    int(mask[row].sum()) - G,
                    beam_width=beam_width,
                    threshold=threshold,
                    max_parallel=max_parallel,
                    min_parallel=min_parallel,
                    block_length=block_length,
                    **rules,
                )
            assert tokens[row][mask[row]].tolist() == expected.tolist()
            assert int(trace.steps[row]) == steps
            assert int(trace.prompt_rows[row]) == rows


def test_the_oracle_takes_both_branches(tiny_llada, canvases):
    """Otherwise the comparison above would prove little."""
    canvas, _ = canvases([5], G, seed=2)
    _, low = run(tiny_llada, canvas, Soar(threshold=0.12, softmax="float64"))
    _, high = run(tiny_llada, canvas, Soar(threshold=0.6, softmax="float64"))
    assert int(low.steps[0]) < G
    assert int(high.prompt_rows[0]) > int(high.steps[0])
    _, mixed = run(tiny_llada, canvas, Soar(threshold=0.3, softmax="float64"))
    assert 1 < mixed.rows_per_step[:, 0].max() <= 2


def test_width_one_without_parallel_is_greedy(tiny_llada, canvases):
    canvas, mask = canvases([5, 2, 4], G)
    for block_length in (None, 4):
        greedy, _ = run(tiny_llada, canvas, LowConfidence(block_length=block_length), mask)
        soar = Soar(
            beam_width=1,
            threshold=0.0,
            min_parallel=G + 1,
            max_parallel=G + 1,
            block_length=block_length,
        )
        tokens, trace = run(tiny_llada, canvas, soar, mask)
        assert torch.equal(tokens, greedy)
        assert trace.steps.tolist() == [G] * 3


@pytest.mark.parametrize("tau", [0.1, 0.3, 0.6, 0.95])
def test_width_one_is_threshold_decoding(tiny_llada, canvases, tau):
    canvas, mask = canvases([5, 2, 4], G)
    for block_length in (None, 4):
        a, a_trace = run(
            tiny_llada, canvas, Threshold(threshold=tau, block_length=block_length), mask
        )
        soar = Soar(beam_width=1, threshold=tau, max_parallel=G, block_length=block_length)
        b, b_trace = run(tiny_llada, canvas, soar, mask)
        assert torch.equal(a, b)
        assert a_trace.steps.tolist() == b_trace.steps.tolist()


@pytest.mark.parametrize("beam_width", [1, 2, 4])
@pytest.mark.parametrize("block_length", [None, 4])
@pytest.mark.parametrize("score", ["mean", "sum"])
def test_threshold_one_is_position_beam_search(
    tiny_llada, canvases, beam_width, block_length, score
):
    canvas, mask = canvases([5, 2, 4], G)
    shared = {"beam_width": beam_width, "block_length": block_length, "score": score}
    a, a_trace = run(tiny_llada, canvas, Soar(threshold=1.0, **shared), mask)
    b, b_trace = run(tiny_llada, canvas, PositionBeamSearch(**shared), mask)
    assert torch.equal(a, b)
    assert torch.equal(a_trace.rows_per_step, b_trace.rows_per_step)
    assert int(a_trace.prompt_rows.max()) <= 1 + beam_width * (G - 1)


def test_threshold_zero_fills_a_window_at_once(tiny_llada, canvases):
    canvas, mask = canvases([5, 2], G)
    options = Soar(beam_width=3, threshold=0.0, max_parallel=G, block_length=4)
    _, trace = run(tiny_llada, canvas, options, mask)
    assert trace.forwards == 3
    assert int(trace.rows_per_step.max()) == 1


def test_hypotheses_of_pure_search_are_distinct_and_in_step(tiny_llada, canvases):
    canvas, mask = canvases([5, 2], G)
    options = PositionBeamSearch(beam_width=4)
    loop_rows = []
    from whet.dlm import soar as module

    original = module.BeamSelector.keep

    def spy(self, before, successors, after, masks):
        kept = original(self, before, successors, after, masks)
        loop_rows.append(after.take(kept))
        return kept

    module.BeamSelector.keep = spy
    try:
        run(tiny_llada, canvas, options, mask)
    finally:
        module.BeamSelector.keep = original
    for rows in loop_rows:
        left = (rows.tokens == MASK).sum(-1)
        for prompt in rows.owner.unique():
            mine = rows.owner == prompt
            assert left[mine].unique().numel() == 1
            assert len(rows.tokens[mine].unique(dim=0)) == int(mine.sum())
    assert max(len(r) for r in loop_rows) == 8


def test_beam_helpers():
    owner = torch.tensor([0, 0, 0, 1, 1])
    score = torch.tensor([0.2, 0.9, 0.9, 0.1, 0.5], dtype=torch.float64)
    assert rank_within(owner, score).tolist() == [1, 2, 0, 4, 3]
    tokens = torch.tensor([[1, 2], [3, 4], [1, 2], [1, 2], [1, 2]])
    assert duplicates(owner, tokens).tolist() == [False, False, True, False, True]
    assert place_in_group(owner).tolist() == [0, 1, 2, 0, 1]
