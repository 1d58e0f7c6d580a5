import pytest
import torch

from tests.models.test_roles_models import inputs, make, output, same
from whet.compress.baselines.width import Channels
from whet.compress.method import Job
from whet.errors import OptionError
from whet.models.edits import edits_of, empty_stock
from whet.models.roles import axes, magnitudes, zero

NAMES = ["llama", "gpt2", "opt", "bert", "gemma2", "qwen2_moe-dense"]


def job(model):
    return Job(model=model, batches=())


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_channels_leave_as_if_they_had_been_zero(name):
    model, zeroed = make(name), make(name)
    for axis in axes(zeroed, "ffn"):
        left = int(0.75 * axis.units) // 2 * 2
        size = magnitudes(zeroed, axis)
        zero(zeroed, axis, size.argsort()[: axis.units - left])
    report = Channels(0.75, round_interval=2).apply(job(model))
    assert all(axis.units == report["channels"][str(axis)] for axis in axes(model, "ffn"))
    assert max(axis.units for axis in axes(model, "ffn")) < 12
    same(output(model, name), output(zeroed, name), name)


def test_the_plan_has_the_shapes_of_the_result_which_is_stock():
    from tests.models.test_roles_models import plain

    model = plain("llama")
    planned = empty_stock(model)
    method = Channels(0.5, round_interval=3)
    method.shape(planned)
    method.apply(job(model))
    shapes = {n: p.shape for n, p in model.named_parameters()}
    assert shapes == {n: p.shape for n, p in planned.named_parameters()}
    assert (model.config.intermediate_size, edits_of(model)) == (6, [])
    assert bool(torch.isfinite(model(**inputs("llama")).logits).all())


@pytest.mark.parametrize(
    ("options", "why"),
    [({"keep": 1.0}, "keep=1 must be between"), ({"round_interval": 0}, "round_interval=0 must")],
)
def test_options_out_of_range_are_refused(options, why):
    with pytest.raises(OptionError, match=why):
        Channels(**options)


def test_models_it_cannot_have_are_refused():
    with pytest.raises(OptionError, match=r"keep=0\.1 leaves none of the 12 channels of ffn"):
        Channels(0.1).check(make("llama"))
    with pytest.raises(OptionError, match="no roles of kind 'ffn'"):
        Channels().check(make("mixtral"))
