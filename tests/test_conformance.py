"""What every method of the catalogue must do, whatever it is."""

import dataclasses
import inspect
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import MASK
from whet import catalogue
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.dlm.options import DecodeOptions
from whet.errors import CheckpointError, OptionError

METHODS = list(catalogue.methods().values())
DECODERS = [m for m in METHODS if "decode" in m.parts]
MASK_DECODERS = [m for m in DECODERS if set(m.applies_to) & {"llada", "dream"}]
SHIMS = [m for m in METHODS if "generate" in m.parts]


def by_id(methods):
    return pytest.mark.parametrize("method", methods, ids=lambda m: m.id)


@by_id(METHODS)
def test_every_part_can_be_imported(method):
    for verb in method.parts:
        assert catalogue.resolve(method.id, verb) is not None


@by_id(METHODS)
def test_every_module_names_its_source(method):
    for verb in method.parts:
        part = catalogue.resolve(method.id, verb)
        module = inspect.getmodule(part if hasattr(part, "__module__") else type(part))
        if verb in ("decode", "train"):
            assert (method.arxiv or "Source") in (module.__doc__ or ""), module.__name__


@by_id(DECODERS)
def test_options_survive_being_written_out(method):
    options = decoder_options(method.id)
    assert isinstance(options, DecodeOptions)
    text = {key: str(value) for key, value in dataclasses.asdict(options).items()}
    assert decoder_options(method.id, text) == options
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 1


@by_id(SHIMS)
def test_the_shim_names_every_option(method):
    shim = catalogue.resolve(method.id, "generate")
    named = set(inspect.signature(shim).parameters)
    options = {f.name for f in dataclasses.fields(catalogue.resolve(method.id, "decode"))}
    # transformers keeps these for itself.
    assert options - named == {"temperature", "top_p", "top_k"}


@by_id(MASK_DECODERS)
@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_decoding_twice_gives_the_same(method, tiny_llada, temperature):
    canvas = torch.cat((torch.arange(1, 6)[None], torch.full((1, 8), MASK)), 1)
    options = decoder_options(method.id, {"temperature": temperature})
    a, a_trace = denoise(tiny_llada, canvas, options=options)
    b, b_trace = denoise(tiny_llada, canvas, options=options)
    assert torch.equal(a, b)
    assert torch.equal(a_trace.commit_step, b_trace.commit_step)


@by_id(MASK_DECODERS)
def test_reloading_a_model_changes_no_token(method, tiny_dream, tmp_path):
    from whet.models.dream import DreamModel

    tiny_dream.save_pretrained(tmp_path)
    again = DreamModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    canvas = torch.cat((torch.arange(1, 6)[None], torch.full((1, 8), MASK)), 1)
    options = decoder_options(method.id)
    assert torch.equal(
        denoise(tiny_dream, canvas, options=options)[0], denoise(again, canvas, options=options)[0]
    )


@by_id(DECODERS)
def test_models_that_are_no_masked_lms_are_refused(method):
    other = SimpleNamespace(config=SimpleNamespace(model_type="gpt2"))
    with pytest.raises(CheckpointError, match="gpt2"):
        denoise(other, torch.full((1, 4), MASK), options=decoder_options(method.id))


@by_id(DECODERS)
def test_unknown_options_are_refused(method):
    with pytest.raises(OptionError, match="no option 'thresholdd'"):
        decoder_options(method.id, {"thresholdd": "1"})
