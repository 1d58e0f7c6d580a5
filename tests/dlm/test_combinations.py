"""Every decoder x every family x settings: a batch equals each of its prompts alone, or a refusal.

Refusals are listed; what is not listed must work, and what is listed must be refused.
"""

from collections import Counter

import pytest
import torch

from tests.conftest import BLOCK, EOS
from tests.dlm.families import (
    CAUSAL,
    DECODERS,
    FAMILIES,
    FULL,
    assert_each_alone,
    favour,
    options_for,
    ragged,
)
from whet import catalogue
from whet.dlm.canvas import denoise
from whet.dlm.loop import CanvasLoop
from whet.errors import OptionError
from whet.models.denoiser import Denoiser

# One prompt ends on a border of blocks; the longest is not the first.
LENGTHS, G = [5, 2, 8], 8
WINDOWS = {"block_length": BLOCK}
MARGIN = {"confidence": "margin"}
SETTINGS = {
    "plain": {},
    "small-windows": {"block_length": 2},
    "prefix-refreshed": {**WINDOWS, "cache": "prefix", "refresh_interval": 2},
    "dual": {**WINDOWS, "cache": "dual"},
    "dual-vicinity": {**WINDOWS, "cache": "dual", "vicinity": 2, "refresh_interval": 3},
    "dual-one-window": {"cache": "dual"},
    "block": {"cache": "block"},
    "guided": {"cfg_scale": 0.6},
    "guided-dual": {**WINDOWS, "cfg_scale": 0.6, "cache": "dual"},
    "guided-block": {"cfg_scale": 0.6, "cache": "block"},
    "smooth": {**WINDOWS, "smooth": 0.3},
    "smooth-prefix": {**WINDOWS, "smooth": 0.3, "cache": "prefix"},
    "smooth-block": {"smooth": 0.3, "cache": "block"},
    "nucleus": {"temperature": 0.9, "top_p": 0.8, "top_k": 7, "confidence_of": "sampled"},
    "hot-dual": {**WINDOWS, "temperature": 0.7, "seed": 3, "cache": "dual"},
    "hot-block": {"temperature": 0.7, "seed": 3, "cache": "block"},
    "margin": MARGIN,
    "entropy": {"confidence": "neg_entropy"},
    "stopped": {**WINDOWS, "eos": "early_stop"},
    "stopped-block": {"eos": "early_stop", "cache": "block"},
    "deferred": {**WINDOWS, "eos": "defer"},
    "suppressed": {"eos": "suppress"},
}
MORE = {"nap": {"regions": "3+3+2"}, "dream": {"alg_temp": 0.5}}
THRESHOLDS = {
    "threshold", "dinfer-threshold", "credit", "hierarchy", "sdar", "llada2", "llada2.1", "nap",
    "soar",
}  # fmt: skip
ENTROPIES = {"entropy-threshold", "entropy-bound", "dparallel"}
# (what it says, which decoders, families and settings it refuses); the first that fits counts.
REFUSALS = [
    (
        "has its own temperatures",
        lambda d, f, s: (
            d == "diffusion-gemma"
            and (s.keys() & {"temperature", "cfg_scale", "smooth", "cache"} or s == MARGIN)
        ),
    ),
    (
        "eos=defer orders commitments",
        lambda d, f, s: d == "diffusion-gemma" and s.get("eos") == "defer",
    ),
    ("canvases of random tokens", lambda d, f, s: d == "diffusion-gemma"),
    (
        "this rule reads entropies",
        lambda d, f, s: d in ENTROPIES and s.get("confidence", "neg_entropy") != "neg_entropy",
    ),
    (
        "contradicts alg=entropy",
        lambda d, f, s: d == "dream" and s.get("confidence") == "margin",
    ),
    (
        "the factor rule compares with 1",
        lambda d, f, s: d == "factor" and s.get("confidence") == "neg_entropy",
    ),
    (
        "windows filled left to right defeat paths",
        lambda d, f, s: d == "nap" and "block_length" in s,
    ),
    ("freezes what lies on the left", lambda d, f, s: d == "nap" and s.get("cache") == "block"),
    (
        "it must be at most 0",
        lambda d, f, s: d in THRESHOLDS and s.get("confidence") == "neg_entropy",
    ),
    ("need a model that attends to the whole canvas", lambda d, f, s: d == "nap" and f in CAUSAL),
    (
        "with light passes",
        lambda d, f, s: d == "adjust" and s.keys() & {"cfg_scale", "smooth", "cache"},
    ),
    ("light passes need a model", lambda d, f, s: d == "adjust" and f in CAUSAL),
    (
        "cache=block is for block-causal models",
        lambda d, f, s: f in FULL and s.get("cache") == "block",
    ),
    (
        "this model was trained with blocks of 4",
        lambda d, f, s: f in CAUSAL and s.get("block_length") == 2,
    ),
]


def refusal(decoder, family, name):
    """What a combination is refused with, or None."""
    fits = (says for says, refuses in REFUSALS if refuses(decoder, family, SETTINGS[name]))
    return next(fits, None)


def options_of(decoder, name):
    return options_for(decoder, **MORE.get(decoder, {}), **SETTINGS[name])


# So many that every decoder meets three settings at least.
EACH = 4


def run_cases():
    """For each family and setting some decoders that are not refused, the least used first."""
    cases, used = [], Counter()
    for k, name in enumerate(SETTINGS):
        for family in FAMILIES:
            able = [d for d in DECODERS if refusal(d, family, name) is None]
            turn = k % max(1, len(able))
            able = sorted(able[turn:] + able[:turn], key=lambda d, f=family: used[d, f])
            cases += [(family, d, name) for d in able[:EACH]]
            used.update((d, family) for d in able[:EACH])
    return cases


CASES = run_cases()


def test_the_cases_cover_every_decoder_family_and_setting():
    for family in FAMILIES:
        for name in SETTINGS:
            able = [d for d in DECODERS if refusal(d, family, name) is None]
            seen = {d for f, d, n in CASES if (f, n) == (family, name)}
            assert len(seen) == min(EACH, len(able)), (family, name)
        for decoder in DECODERS:
            able = [n for n in SETTINGS if refusal(decoder, family, n) is None]
            seen = {n for f, d, n in CASES if (f, d) == (family, decoder)}
            assert len(seen) >= min(3, len(able)), (family, decoder)
    never = {d for d in DECODERS if all(refusal(d, f, n) for f in FAMILIES for n in SETTINGS)}
    assert never == {"diffusion-gemma"}  # it has a family of its own
    for decoder in set(DECODERS) - never:
        fits = catalogue.get(decoder).applies_to
        for family, kind in zip(FAMILIES, ("llada", "dream", "sdar", "llada2_moe"), strict=True):
            works = any(refusal(decoder, family, name) is None for name in SETTINGS)
            assert works == (kind in fits), (decoder, family)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_what_is_listed_is_refused(request, family, name):
    denoiser = Denoiser.of(request.getfixturevalue(family))
    canvas, real = ragged(LENGTHS, G)
    for decoder in DECODERS:
        says, said = refusal(decoder, family, name), None
        try:
            loop = CanvasLoop(denoiser, options_of(decoder, name))
            loop.admit(canvas, (~real).sum(-1), start=8, requests=[0, 1, 2], places=[0, 1, 2])
        except OptionError as error:
            said = str(error)
        if says is None:
            assert said is None, (decoder, said)
        else:
            assert said is not None, (decoder, says)
            assert says in said, (decoder, said)


@pytest.mark.parametrize(("family", "decoder", "name"), CASES)
def test_a_ragged_batch_equals_each_alone(request, family, decoder, name):
    model, options = request.getfixturevalue(family), options_of(decoder, name)
    if options.eos != "none":
        model = favour(model, EOS, 2.0)
    canvas, real = ragged(LENGTHS, G)
    together = denoise(model, canvas, real, options=options, start=8)
    assert torch.equal(together[0][:, :8], canvas[:, :8])
    assert not (together[0] == model.config.mask_token_id).any()
    assert_each_alone(model, canvas, real, options, together)
