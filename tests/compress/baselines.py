"""What the tests of the baselines as steps share."""

import copy
import os

import torch

from tests.compress.calibration import batches_of, by_hooks
from tests.compress.test_calibrate_streamed import checkpoint, killed
from tests.models.test_roles_models import make, plain
from whet.compress.baselines.matrices import matrices
from whet.compress.calibrate import open_model
from whet.compress.method import Job
from whet.models.roles import blocks

MOES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"]
FAMILIES = ["llama-tied", "gemma3", "phi", "phi3", "opt", "gpt2", "bert", "llada", "dit", *MOES]


def run(method, name, model=None, **options):
    """(model, report) of a method on a tiny model of a family, in float64."""
    model = make(name) if model is None else model
    batches = batches_of(name) if method.calibrates else ()
    return model, method.apply(Job(model=model, batches=batches, **options))


def first_block(model, name):
    """The matrices of block 0 of a model with the statistics of their inputs, of the model as it
    is; experts left out."""
    seen = by_hooks(model, batches_of(name))
    found = matrices(model, blocks(model)[0])
    return {m: (m.read(model).clone(), seen[m.module]) for m in found if m.expert is None}


def untouched(model, other):
    """Whether everything but the matrices is bit-equal."""
    known = {f"{m.module}.{m.tensor}" for block in blocks(model) for m in matrices(model, block)}
    own, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(own[n], theirs[n]) for n in own if n not in known)


def equal_states(one, two):
    a, b = one.state_dict(), two.state_dict()
    assert sorted(a) == sorted(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


def streamed(method, name, tmp_path):
    """(the same in memory, the folder that streaming makes, its report)."""
    model, source = checkpoint(tmp_path, name)
    batches = batches_of(name) if method.calibrates else ()
    method.apply(Job(model=model, batches=batches))
    out = tmp_path / "out"
    job = Job(model=open_model(source), batches=batches, source=source, folder=out)
    return model, out, method.apply(job)


def resumed(method, name, tmp_path, *, source=False, stop=(1, "edit", 1)):
    """(model of a run that was not stopped, of one that was; folders of both)."""
    plain_model, folder = checkpoint(tmp_path, name)
    batches = batches_of(name) if method.calibrates else ()

    def go(out, on_progress=lambda p: None):
        model = open_model(folder) if source else copy.deepcopy(plain_model)
        job = Job(
            model=model,
            batches=batches,
            source=folder if source else None,
            folder=out,
            on_progress=on_progress,
        )
        return model, method.apply(job)

    whole, report = go(tmp_path / "whole")
    killed(lambda tell: go(tmp_path / "killed", tell), stop)
    again, second = go(tmp_path / "killed")
    assert second == report
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()
    return whole, again, tmp_path / "whole", tmp_path / "killed"


CAN_FORK = hasattr(os, "fork")

__all__ = ["copy", "plain"]
