"""A model is fitted, round by round, to what its predecessor says plus a nudge."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fit.toy import SETTINGS, Regression, equal
from whet import rng
from whet.errors import CheckpointError, InputError, OptionError
from whet.fit.rounds import run_rounds

SHORT = SETTINGS.model_copy(update={"steps": 6, "checkpoint_every": 2, "ema": 0.0})
PARTS = 3


class Taught(Regression):
    def __init__(self, promoted, data=None):
        super().__init__(SHORT)
        self.rows_of = data and [load_file(data / f"{k}.safetensors") for k in range(PARTS)]
        if promoted is not None:
            module = self.players["model"].module
            module.load_state_dict(load_file(promoted / "model.safetensors"))

    def batch(self, step):
        held = self.rows_of[step % PARTS]
        return held["inputs"], held["targets"]


class Ladder:
    """Collects in parts; `hook(place)` is called wherever a run may be stopped."""

    def __init__(self, hook=lambda place: None):
        self.hook, self.log = hook, []

    def at(self, *place):
        self.log.append(place)
        self.hook(place)

    def collect(self, number, promoted, data):
        module = Taught(promoted).players["model"].module
        for part in range(PARTS):
            path = data / f"{part}.safetensors"
            if not path.is_file():
                self.at("collect", number, part)
                drawn = rng.keyed_torch(3, "collect", number, part)
                inputs = torch.randn(5, 3, generator=drawn, dtype=torch.float64)
                save_file({"inputs": inputs, "targets": module(inputs).detach() + 0.1}, path)

    def training(self, number, promoted, data):
        method = Taught(promoted, data)
        batch = method.batch

        def noted(step):
            self.at("fit", number, step)
            return batch(step)

        method.batch = noted
        return method

    def promote(self, number, method, promoted):
        assert not any(promoted.iterdir())
        self.at("promote", number, 0)
        save_file(method.players["model"].module.state_dict(), promoted / "model.safetensors")
        self.at("promote", number, 1)


def climb(run, hook=lambda place: None, *, rounds=2, identity=None):
    ladder = Ladder(hook)
    identity = {"toy": 3} if identity is None else identity
    out = run_rounds(ladder, SHORT, rounds=rounds, run=run, identity=identity)
    return load_file(out / "model.safetensors"), ladder.log


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return climb(tmp_path_factory.mktemp("straight"))


def test_the_parts_come_in_order_and_rounds_build_on_each_other(straight, tmp_path):
    weights, log = straight
    one = [("collect", 0, k) for k in range(3)] + [("fit", 0, k) for k in range(6)]
    one += [("promote", 0, 0), ("promote", 0, 1)]
    assert log == one + [(what, 1, k) for what, _, k in one]
    first, _ = climb(tmp_path, rounds=1)
    assert not equal(weights, first)
    # More rounds later go on from there.
    more, log = climb(tmp_path)
    assert equal(more, weights)
    assert log == [(what, 1, k) for what, _, k in one]
    assert sorted(p.name for p in (tmp_path / "round-001").iterdir()) == ["data", "fit", "promoted"]


@pytest.mark.parametrize(
    ("place", "goes_on_at"),
    [
        (("collect", 0, 0), ("collect", 0, 0)),
        (("collect", 1, 2), ("collect", 1, 2)),
        (("fit", 0, 0), ("fit", 0, 0)),
        (("fit", 1, 3), ("fit", 1, 2)),  # the checkpoint before
        (("promote", 0, 0), ("promote", 0, 0)),
        (("promote", 1, 1), ("promote", 1, 0)),
    ],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_run_stopped_anywhere_ends_as_one_that_was_not(
    straight, tmp_path, place, goes_on_at, error
):
    def stop(where):
        if where == place:
            raise error

    with pytest.raises((error, InputError)):
        climb(tmp_path, stop)
    weights, log = climb(tmp_path)
    assert equal(weights, straight[0])
    assert log == straight[1][straight[1].index(goes_on_at) :]
    again, log = climb(tmp_path)
    assert equal(again, weights)
    assert log == []


def test_rounds_of_another_recipe_are_refused(tmp_path):
    climb(tmp_path, rounds=1)
    with pytest.raises(
        CheckpointError, match=r"belongs to another recipe \(different: identity.toy\)"
    ):
        climb(tmp_path, identity={"toy": 4})
    other = SHORT.model_copy(update={"steps": 7})
    with pytest.raises(
        CheckpointError, match=r"belongs to another recipe \(different: fit.steps\)"
    ):
        run_rounds(Ladder(), other, rounds=1, run=tmp_path, identity={"toy": 3})
    (tmp_path / "rounds.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"rounds\.json: damaged"):
        climb(tmp_path)


def test_an_identity_may_hold_what_json_writes_differently(tmp_path):
    identity = {"sizes": (1, 2), "shares": {3: 0.5}}
    with pytest.raises(ZeroDivisionError):
        climb(tmp_path, lambda where: 1 / (where != ("fit", 0, 3)), identity=identity)
    climb(tmp_path, rounds=1, identity=identity)
    assert json.loads((tmp_path / "rounds.json").read_text())["identity"]["shares"] == {"3": 0.5}


@pytest.mark.parametrize("rounds", [0, -3])
def test_there_is_at_least_one_round(tmp_path, rounds):
    with pytest.raises(OptionError, match=f"rounds={rounds} must be at least 1"):
        climb(tmp_path, rounds=rounds)
