"""What tests of decoders on all four tiny models share."""

import contextlib

import torch

from tests.conftest import BLOCK, MASK
from whet import catalogue
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.models.denoiser import base_model

FULL, CAUSAL = ("tiny_llada", "tiny_dream"), ("tiny_sdar", "tiny_llada2")
FAMILIES = FULL + CAUSAL
DECODERS = [m.id for m in catalogue.methods().values() if "decode" in m.parts]
# Random models are unsure of everything: low thresholds make rules commit one token at some steps
# and several at others.
TUNED = {
    "threshold": {"threshold": 0.2},
    "factor": {"factor": 2.6},
    "entropy-threshold": {"entropy_threshold": 2.9},
    "entropy-bound": {"entropy_bound": 3.1},
    "dinfer-threshold": {"threshold": 0.2},
    "credit": {"threshold": 0.2},
    "hierarchy": {"threshold": 0.2, "low_threshold": 0.14},
    "sdar": {"threshold": 0.2},
    "llada2": {"threshold": 0.2},
    "llada2.1": {"threshold": 0.2, "edit_threshold": 0.12, "max_post_steps": 3},
    "nap": {"threshold": 0.2},
    "soar": {"threshold": 0.2, "beam_width": 3},
}


def options_for(decoder, **settings):
    """Options of a decoder that suits the tiny models, with exact confidences."""
    return decoder_options(decoder, {"softmax": "float64", **TUNED.get(decoder, {}), **settings})


def ragged(lengths, gen_length, seed=0):
    """Canvases [P, L] and masks: random prompts, padded on the left, `gen_length` to fill."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    canvas = torch.full((len(lengths), longest + gen_length), MASK)
    real = torch.ones(canvas.shape, dtype=torch.bool)
    for row, length in enumerate(lengths):
        canvas[row, : longest - length] = 0
        real[row, : longest - length] = False
        prompt = torch.randint(1, MASK, (length,), generator=generator)
        canvas[row, longest - length : longest] = prompt
    return canvas, real


def assert_same(a, b, tolerance=1e-10):
    """Two (tokens, trace) of the same canvases: everything but the cost is equal."""
    assert torch.equal(a[0], b[0])
    for name in ("commit_step", "rows_per_step"):
        assert torch.equal(getattr(a[1], name), getattr(b[1], name)), name
    torch.testing.assert_close(a[1].confidence, b[1].confidence, atol=tolerance, rtol=0)


def assert_each_alone(model, canvas, real, options, together, tolerance=1e-9):
    """Every canvas of a batch that gave `together` gives the same when it is decoded alone."""
    tokens, trace = together
    width = trace.commit_step.shape[1]
    for i, first in enumerate((~real).sum(-1).tolist()):
        start = canvas.shape[1] - width - first
        found, single = denoise(
            model, canvas[i : i + 1, first:], options=options, start=start, requests=[i]
        )
        assert found[0].tolist() == tokens[i, first:].tolist()
        assert single.commit_step[0].tolist() == trace.commit_step[i].tolist()
        assert int(single.steps[0]) == int(trace.steps[i])
        assert int(single.prompt_rows[0]) == int(trace.prompt_rows[i])
        torch.testing.assert_close(
            single.confidence[0], trace.confidence[i], atol=tolerance, rtol=0
        )


def favour(model, token, bias):
    """Make a token likelier by `bias` everywhere (in place)."""
    original = model.head

    def head(hidden):
        logits = original(hidden)
        logits[..., token] += bias
        return logits

    model.head = head
    return model


def window_ends(family, before, length, block_length=BLOCK):
    """[lo, hi) of every window of `length` positions behind `before` tokens."""
    begin = before - before % BLOCK if family in CAUSAL else before
    block = BLOCK if family in CAUSAL else block_length
    end = before + length
    return [(lo, min(lo + block, end)) for lo in range(begin, end, block)]


@contextlib.contextmanager
def fed_shapes(model):
    """(canvases, columns) of every forward inside the block."""
    shapes = []

    def hook(module, args, kwargs):
        given = kwargs.get("input_ids")
        shapes.append(tuple((given if given is not None else kwargs["inputs_embeds"]).shape[:2]))

    handle = base_model(model).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()
