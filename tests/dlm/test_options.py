"""What the options of every decoder refuse, in one sentence that names field, value and fix."""

import dataclasses
import math

import pytest
import torch

from tests.conftest import MASK
from tests.dlm.families import CAUSAL, DECODERS, FULL, ragged
from whet.dlm.block import LLaDA21
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.dlm.forward import CachedForward, FullForward
from whet.dlm.low_confidence import LowConfidence
from whet.dlm.provider import GuidedProvider, PlainProvider, SmoothProvider
from whet.dlm.soar import PositionBeamSearch
from whet.errors import InputError, OptionError, WhetError
from whet.models.denoiser import Denoiser

NAN, INF = math.nan, math.inf
REFUSED = [
    ({"block_length": 0}, "block_length=0 must be at least 1"),
    ({"block_length": -4}, "block_length=-4 must be at least 1"),
    ({"top_k": 0}, "top_k=0 must be at least 1"),
    ({"refresh_interval": 0, "cache": "dual"}, "refresh_interval=0 must be at least 1"),
    ({"vicinity": -1, "cache": "dual"}, "vicinity=-1 must be at least 0"),
    ({"temperature": -0.1}, "temperature=-0.1 must be 0 or more"),
    ({"temperature": INF}, "temperature=inf must be 0 or more"),
    ({"temperature": NAN}, "temperature=nan must be 0 or more"),
    ({"top_p": 0.0}, "top_p=0 must be above 0 and at most 1"),
    ({"top_p": 1.01}, "top_p=1.01 must be above 0 and at most 1"),
    ({"top_p": -0.5}, "top_p=-0.5 must be above 0"),
    ({"top_p": NAN}, "top_p=nan must be above 0"),
    ({"cfg_scale": -1.0}, r"cfg_scale=-1 must be 0 \(off\) or more"),
    ({"cfg_scale": INF}, "cfg_scale=inf must be 0"),
    ({"cfg_scale": NAN}, "cfg_scale=nan must be 0"),
    ({"smooth": -0.1}, r"smooth=-0.1 must be between 0 \(off\) and 1"),
    ({"smooth": 1.1}, "smooth=1.1 must be between 0"),
    ({"smooth": NAN}, "smooth=nan must be between 0"),
    ({"confidence": "max"}, "confidence='max' is not one of prob, margin, neg_entropy"),
    ({"confidence_of": "both"}, "confidence_of='both' is not one of model, sampled"),
    ({"eos": "stop"}, "eos='stop' is not one of none, suppress, defer, early_stop"),
    ({"cache": "full"}, "cache='full' is not one of none, prefix, dual, block"),
    ({"softmax": "float16"}, "softmax='float16' is not one of float32, float64"),
    ({"refresh_interval": 4}, "refresh_interval=4 needs cache=prefix or cache=dual"),
    (
        {"refresh_interval": 4, "cache": "block"},
        "refresh_interval=4 needs .* cache=block has nothing to refresh",
    ),
    ({"vicinity": 8}, "vicinity=8 needs cache=dual: cache=none feeds"),
    ({"vicinity": 8, "cache": "prefix"}, "vicinity=8 needs cache=dual: cache=prefix"),
    ({"vicinity": 8, "cache": "block"}, "vicinity=8 needs cache=dual: cache=block"),
    ({"smooth": 0.3, "cfg_scale": 0.5}, "smooth=0.3 with cfg_scale=0.5: .* use one"),
]
ALLOWED = [
    {"block_length": 1},
    {"top_k": 1, "top_p": 1.0},
    {"top_p": 1e-9},
    {"temperature": 0.0},
    {"cfg_scale": 0.0, "smooth": 1.0},
    {"cfg_scale": 7.5, "smooth": 0.0},
    {"cache": "prefix", "refresh_interval": 1},
    {"cache": "dual", "refresh_interval": 1, "vicinity": 0},
    {"cache": "prefix", "vicinity": 0},
    {"cache": "block"},
]


@pytest.mark.parametrize(("settings", "says"), REFUSED, ids=lambda v: str(v)[:40])
def test_settings_that_no_decoder_takes(settings, says):
    with pytest.raises(OptionError, match=says) as caught:
        LowConfidence(**settings)
    assert isinstance(caught.value, WhetError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_refuses_them(decoder):
    """A decoder that forgets to ask its base would take anything."""
    for settings, _ in REFUSED:
        with pytest.raises(OptionError):
            decoder_options(decoder, settings)


@pytest.mark.parametrize("settings", ALLOWED, ids=str)
def test_settings_at_the_edge_are_taken(tiny_sdar, settings):
    canvas, _ = ragged([4], 4)
    if settings.get("block_length"):
        tiny_sdar.config.block_length = settings["block_length"]
    tokens, _ = denoise(tiny_sdar, canvas, options=LowConfidence(**settings), start=4)
    assert not (tokens == MASK).any()


def test_settings_choose_the_provider_and_the_forward(tiny_llada, tiny_sdar):
    for settings, kind in (({}, PlainProvider), ({"cfg_scale": 0.5}, GuidedProvider),
                           ({"smooth": 0.3}, SmoothProvider)):  # fmt: skip
        options, denoiser = LowConfidence(**settings), Denoiser.of(tiny_llada)
        assert type(options.provider(denoiser, options.forward(denoiser))) is kind
    assert type(LowConfidence().forward(Denoiser.of(tiny_llada))) is FullForward
    cached = LowConfidence(cache="dual", refresh_interval=3, vicinity=2)
    forward = cached.forward(Denoiser.of(tiny_llada))
    assert isinstance(forward, CachedForward)
    assert (forward.kind, forward.refresh, forward.vicinity) == ("dual", 3, 2)
    assert LowConfidence(cache="block").forward(Denoiser.of(tiny_sdar)).kind == "block"


@pytest.mark.parametrize("family", FULL)
def test_the_block_cache_needs_blocks(request, family):
    model = request.getfixturevalue(family)
    says = "cache=block is for block-causal models: .* use cache=prefix or cache=dual"
    with pytest.raises(OptionError, match=says):
        denoise(model, ragged([4], 4)[0], options=LowConfidence(cache="block"), start=4)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("block_length", [1, 2, 8])
def test_blocks_are_those_the_model_was_trained_with(request, family, block_length):
    model, canvas = request.getfixturevalue(family), ragged([4], 8)[0]
    says = f"block_length={block_length}: .* blocks of 4, leave block_length out"
    with pytest.raises(OptionError, match=says):
        denoise(model, canvas, options=LowConfidence(block_length=block_length), start=4)
    same = [
        denoise(model, canvas, options=LowConfidence(block_length=b), start=4)[0] for b in (None, 4)
    ]
    assert torch.equal(*same)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"start": -4}, InputError, "start=-4 must be 0 or more"),
        ({"start": 6}, InputError, "column 5 holds a mask, before start=6"),
        ({"requests": [7]}, OptionError, "1 requests name 2 canvases: give one each"),
        ({"requests": [7, 8, 9]}, OptionError, "3 requests name 2 canvases: give one each"),
    ],
)
def test_calls_that_do_not_fit_the_canvases(tiny_sdar, call, error, says):
    canvas, real = ragged([5, 5], 4)
    with pytest.raises(error, match=says):
        denoise(tiny_sdar, canvas, real, options=LowConfidence(), **call)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditsInABeam(PositionBeamSearch):
    """What no decoder of the catalogue is."""

    @property
    def edits(self):
        return True


def test_rules_and_models_that_do_not_go_together(tiny_llada):
    canvas = ragged([4], 4)[0]
    with pytest.raises(OptionError, match=r"edits with beams: .* use one"):
        denoise(tiny_llada, canvas, options=EditsInABeam(), start=4)

    class Uniform(LowConfidence):
        uniform = True

    says = "Uniform decodes canvases of random tokens; a model of type 'llada' was trained"
    with pytest.raises(OptionError, match=says):
        denoise(tiny_llada, canvas, options=Uniform(), start=4)
    traits = dataclasses.replace(Denoiser.of(tiny_llada).traits, noise="uniform")
    other = dataclasses.replace(Denoiser.of(tiny_llada), traits=traits)
    with pytest.raises(OptionError, match="LowConfidence decodes canvases of masks"):
        denoise(other, canvas, options=LowConfidence(), start=4)


def test_which_rules_take_back_what_they_showed():
    revising = {d for d in DECODERS if decoder_options(d).revises}
    assert revising == {"llada2.1", "soar", "pbs", "diffusion-gemma"}
    assert LLaDA21(edit_threshold=None).revises is False
    assert decoder_options("llada2", {"edit_threshold": 0.5}).revises is True
