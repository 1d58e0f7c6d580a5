import json
import math
from dataclasses import replace

import pytest
import torch

from tests.fit.toy import SETTINGS, Regression, at_step, equal, make_player, state_of
from whet.errors import CheckpointError, NonFiniteError, OptionError
from whet.fit import fit
from whet.fit.losses import entropy


class Duel(Regression):
    """A generator moves every step and a critic every second; every loss reaches both."""

    def __init__(self, settings=SETTINGS):
        super().__init__(settings)
        self.players = {name: make_player(name, settings) for name in ("generator", "critic")}
        self.seen = []

    def turns(self, step):
        return ("critic", "generator") if step % 2 else ("generator",)

    def loss(self, batch, turn):
        modules = {name: player.module for name, player in self.players.items()}
        for name, module in modules.items():
            assert all(p.grad is None for p in module.parameters()), name
        inputs, targets = batch
        gap = modules["generator"](inputs) - targets
        score = (gap * modules["critic"](inputs)).mean()
        values = {"generator": (gap**2).mean() + score, "critic": -score + score**2}
        return values[turn], {f"{turn}_extra": 1.0}


def train(folder, method, settings=SETTINGS):
    fit(method, settings, run=folder, identity={"toy": 2})
    return method


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_players_move_in_their_turns_only(tmp_path):
    method = Duel()
    before, moved = state_of(method), []

    def note(step):
        nonlocal before
        now = state_of(method)
        moved.append({n.split(".")[0] for n, t in now.items() if not torch.equal(t, before[n])})
        before = now

    train(tmp_path / "warm", method, SETTINGS.model_copy(update={"steps": 2}))
    before = state_of(method)
    method.after_step = note
    train(tmp_path / "run", method)
    assert moved == [{"generator"}, {"generator", "critic"}] * 6


def test_turns_are_those_of_an_own_loop(tmp_path):
    """The same game written out by hand: autograd.grad for the mover's parameters alone."""
    settings = SETTINGS.model_copy(update={"clip": 1e9})
    method, other = train(tmp_path, Duel(settings), settings), Duel(settings)
    for step in range(settings.steps):
        for turn in other.turns(step):
            player = other.players[turn]
            parameters = list(player.module.parameters())
            loss, _ = other.loss(other.batch(step), turn)
            for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.grad = gradient
            player.update(step)
    one, two = state_of(method), state_of(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-12, atol=1e-14)


def test_each_turn_is_logged_under_its_player(tmp_path):
    train(tmp_path, Duel())
    for line in metrics(tmp_path):
        assert line["loss"] == line["generator.loss"]
        assert line["critic.gradient_norm"] > 0
        assert line["critic_extra"] == line["generator_extra"] == 1
    train(tmp_path / "one", Regression())
    assert set(metrics(tmp_path / "one")[0]) == {
        *("step", "loss", "gradient_norm", "tokens_per_second", "seconds_left")
    }


def test_several_players_resume_bit_equal(tmp_path):
    straight = train(tmp_path / "one", Duel())
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "two", at_step(Duel(), 7, lambda: 1 / 0))
    assert equal(state_of(train(tmp_path / "two", Duel())), state_of(straight))


def test_a_parameter_that_no_optimizer_holds_starts_every_turn_without_gradient(tmp_path):
    """Left alone, its gradient would pile up and shrink every clipped step."""
    method, seen = Duel(), []
    player = method.players["critic"]
    *held, head = player.module.parameters()
    player.optimizer = torch.optim.SGD(held, lr=0.1)
    head.register_hook(seen.append)
    train(tmp_path, method)  # `loss` looks at every gradient
    assert len(seen) == 18


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ((), "step 1 has no turns: at least one player must move"),
        (("critik",), "turn of 'critik', which is no player: did you mean 'critic'"),
    ],
)
def test_wrong_turns_are_refused(tmp_path, turns, why):
    method = Duel()
    method.turns = lambda step: turns
    with pytest.raises(OptionError, match=why):
        train(tmp_path, method)


class Hooked(Regression):
    """Keeps a running number that its loss uses: exact only if a checkpoint keeps it too."""

    steps_per_epoch = 5

    def __init__(self, settings=SETTINGS):
        super().__init__(settings)
        self.calls, self.weight = [], torch.ones((), dtype=torch.float64)

    def loss(self, batch, turn):
        loss, _ = super().loss(batch, turn)
        return loss * self.weight, {}

    def after_step(self, step):
        self.calls.append(("step", step))
        self.weight = self.weight * 0.9

    def after_epoch(self, epoch):
        self.calls.append(("epoch", epoch))
        self.weight = self.weight + 1

    def state(self):
        return {"weight": self.weight}

    def load_state(self, state):
        self.weight = state["weight"]


def test_hooks_come_after_their_steps_and_epochs(tmp_path):
    method = train(tmp_path, Hooked())
    expected = [("step", k) for k in range(12)]
    expected.insert(5, ("epoch", 0))
    expected.insert(11, ("epoch", 1))
    assert method.calls == expected


@pytest.mark.parametrize("died_at", [5, 7, 10])  # 5 and 10 lie where epochs and checkpoints meet
def test_hooks_run_once_and_their_state_resumes(tmp_path, died_at):
    straight = train(tmp_path / "one", Hooked())
    first = at_step(Hooked(), died_at, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "two", first)
    second = train(tmp_path / "two", Hooked())
    assert equal(state_of(second), state_of(straight))
    assert torch.equal(second.weight, straight.weight)
    kept = 5 * (died_at // 5)
    before = [c for c in first.calls if c[1] < (kept if c[0] == "step" else kept // 5)]
    assert before + second.calls == straight.calls


def test_a_checkpoint_without_the_methods_state_is_refused(tmp_path):
    train(tmp_path, Regression())
    with pytest.raises(CheckpointError, match=r"does not fit the model .*weight"):
        train(tmp_path, Hooked())


@pytest.mark.parametrize("length", [0, -1, 2.5, None])
def test_an_epoch_needs_a_length(tmp_path, length):
    method = Hooked()
    method.steps_per_epoch = length
    with pytest.raises(OptionError, match=f"Hooked.steps_per_epoch={length} must be a whole"):
        train(tmp_path, method)
    assert not any(tmp_path.iterdir())


def test_a_method_without_players_is_refused(tmp_path):
    method = Regression()
    method.players = {}
    with pytest.raises(OptionError, match=r"Regression\.players is empty"):
        train(tmp_path, method)


def test_a_loss_that_names_its_row_keeps_step_and_batch_too(tmp_path):
    method = Regression()

    def loss(batch, turn):
        gap = method.players[turn].module(batch[0]) - batch[1]
        return entropy(torch.cat([gap, gap * math.nan if len(gap) == 2 else gap], 1)).mean(), {}

    method.loss = loss
    at_step(method, 3, lambda: setattr(method, "rows", 2))
    before = {}
    method.after_step = lambda step: before.update(state_of(method))
    with pytest.raises(NonFiniteError, match=r"row 0 is nan.* in step 4: stopped before"):
        train(tmp_path, method)
    assert equal(state_of(method), before)
    stored = json.loads((tmp_path / "nonfinite.json").read_text())
    assert stored["step"] == 4
    assert stored["batch"] == [part.tolist() for part in method.batch(3)]


def test_players_are_plain_values():
    player = make_player("model", SETTINGS)
    assert replace(player, clip=2.0).clip == 2.0
