import json
import math
from itertools import pairwise

import pytest
import torch

from tests.fit.toy import SETTINGS, Regression, at_step, equal, state_of
from whet import catalogue
from whet.errors import InputError, NonFiniteError, OptionError
from whet.fit import FitSettings, fit
from whet.zoo.training import TaskRecipe


def train(folder, method, **changes):
    settings = SETTINGS.model_copy(update=changes)
    fit(method, settings, run=folder, identity={"toy": 5})
    return method


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_close(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-10, atol=1e-12)


class Watched(Regression):
    """Notes how many rows each loss sees and in which type its model works."""

    def __init__(self, dtype=torch.float64, scale=None):
        super().__init__()
        player = self.players["model"]
        player.module.to(dtype)
        player.ema = None
        player.scaler = scale and torch.amp.GradScaler("cpu", init_scale=scale)
        self.dtype, self.rows_seen, self.types, self.factors = dtype, [], set(), {}
        self.calls = 0

    def batch(self, step):
        self.factor = self.factors.get(step, 1.0)
        return [part.to(self.dtype) for part in super().batch(step)]

    def loss(self, batch, turn):
        inputs, targets = batch
        self.rows_seen.append(len(inputs))
        said = self.players[turn].module(inputs)
        self.types.add(said.dtype)
        return ((said.to(targets.dtype) - targets) ** 2).mean() * self.factor, {
            "first": float(inputs.mean())
        }


def test_settings_that_came_later_are_no_part_of_older_recipes():
    plain = FitSettings(steps=3, learning_rate=1.0)
    older = "steps learning_rate warmup weight_decay beta2 clip ema seed checkpoint_every log_every"
    assert list(plain.model_dump(mode="json")) == older.split()
    changed = plain.model_copy(update={"mixed_precision": "bf16", "accumulation": 2})
    assert changed.model_dump() == plain.model_dump() | {
        "mixed_precision": "bf16",
        "accumulation": 2,
    }
    for settings in (plain, changed):
        assert FitSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    "wrong",
    [{"accumulation": 0}, {"mixed_precision": "int8"}, {"activation_checkpointing": "perhaps"}],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FitSettings(steps=1, learning_rate=1, **wrong)


@pytest.mark.parametrize(("parts", "rows"), [(2, [3, 3]), (4, [2, 2, 1, 1]), (6, [1] * 6)])
def test_accumulation_takes_the_same_steps_in_parts(tmp_path, parts, rows):
    whole = train(tmp_path / "whole", Watched())
    cut = train(tmp_path / "cut", Watched(), accumulation=parts)
    assert cut.rows_seen == rows * 12
    assert_close(state_of(cut), state_of(whole))
    for one, two in zip(metrics(tmp_path / "cut"), metrics(tmp_path / "whole"), strict=True):
        for name in ("loss", "gradient_norm", "first"):
            assert one[name] == pytest.approx(two[name], rel=1e-10)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("family", ["masked", "causal"])
def test_accumulation_of_a_language_model(tmp_path, recipe, family, parts):
    made = []
    for changes in ({}, {"fit__accumulation": parts}):
        raw = recipe(fit__ema=0, **changes)
        if family == "causal":
            raw["method"] = "causal"
            raw["model"] = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 2}
            raw["model"] |= {"num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 104}
            raw["data"]["gen_lengths"] = None
        training = catalogue.resolve(family, "train")(TaskRecipe.model_validate(raw))
        training.model.double()
        identity = training.recipe.model_dump(mode="json")
        fit(training, training.recipe.fit, run=tmp_path / str(len(made)), identity=identity)
        made.append(state_of(training))
    assert_close(*made)


class Whole(Regression):
    """A method that cannot cut its batches."""

    split = None


def test_a_method_that_cannot_cut_its_batches_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"Whole has no `split`: .*accumulation must be"):
        train(tmp_path / "run", Whole(), accumulation=2)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_batch_smaller_than_its_parts_is_refused(tmp_path):
    with pytest.raises(InputError, match="cut into 6 parts instead of 7"):
        train(tmp_path, Regression(), accumulation=7)


def test_a_part_that_is_not_finite_stops_before_the_update(tmp_path):
    method = Regression()
    before, loss = {}, method.loss

    def broken(batch, turn):
        value, numbers = loss(batch, turn)
        return value * (math.nan if len(batch[0]) == 2 else 1.0), numbers

    method.loss = broken
    at_step(method, 4, lambda: (before.update(state_of(method)), setattr(method, "rows", 5)))
    with pytest.raises(NonFiniteError, match="the loss of 'model' is nan in step 5"):
        train(tmp_path, method, accumulation=2)
    assert before
    assert equal(state_of(method), before)


def test_activation_checkpointing_changes_time_and_memory_only(tmp_path, training):
    states, calls = [], []
    for switch in (False, True):
        made = training(fit__activation_checkpointing=switch)
        block = made.model.model.transformer["blocks"][0]
        block.ff_proj.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        identity = made.recipe.model_dump(mode="json")
        fit(made, made.recipe.fit, run=tmp_path / str(switch), identity=identity)
        states.append(state_of(made))
        assert not any(getattr(m, "gradient_checkpointing", 0) for m in made.model.modules())
        calls.append(None)
    first = calls.index(None)
    assert len(calls) - 2 - first == 2 * first
    assert equal(*states)


def test_a_module_without_activation_checkpointing_is_refused(tmp_path):
    with pytest.raises(OptionError, match="player 'model' is a Sequential, which does not support"):
        train(tmp_path, Regression(), activation_checkpointing=True)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_mixed_precision_is_that_of_products_alone(tmp_path, precision, dtype):
    scale = 1024.0 if precision == "fp16" else None
    method = train(tmp_path, Watched(torch.float32, scale), mixed_precision=precision)
    assert method.types == {dtype}
    assert {p.dtype for p in method.players["model"].module.parameters()} == {torch.float32}
    train(tmp_path / "reference", Watched(torch.float64))
    for one, two in zip(metrics(tmp_path), metrics(tmp_path / "reference"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=0.05)
        assert ("loss_scale" in one) == (precision == "fp16")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_resumes_bit_equal(tmp_path, precision):
    def made():
        method = Watched(torch.float32, 1024.0 if precision == "fp16" else None)
        method.factors = {1: 1e36, 3: 1e36, 8: 1e36} if precision == "fp16" else {}
        return method

    straight = train(tmp_path / "one", made(), mixed_precision=precision)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "two", at_step(made(), 7, lambda: 1 / 0), mixed_precision=precision)
    resumed = train(tmp_path / "two", made(), mixed_precision=precision)
    assert equal(state_of(resumed), state_of(straight))
    if precision == "fp16":
        scales = [m.players["model"].scaler.state_dict() for m in (straight, resumed)]
        assert scales[0] == scales[1]
        assert scales[0]["scale"] == 128.0


def test_a_step_whose_scaled_gradients_overflow_is_left_out(tmp_path):
    method, states = Watched(torch.float32, 1024.0), []
    method.factors = {2: 1e36}
    method.after_step = lambda step: states.append(state_of(method))
    train(tmp_path, method, mixed_precision="fp16", log_every=1)
    moved = [not equal(one, two) for one, two in pairwise(states)]
    assert moved == [True, False] + [True] * 9
    lines = metrics(tmp_path)
    assert [line["loss_scale"] for line in lines] == [1024.0] * 2 + [512.0] * 10
    assert ["gradient_norm" in line for line in lines] == [True, True, False] + [True] * 9


def test_gradients_that_overflow_at_any_scale_stop_the_run(tmp_path):
    method = Watched(torch.float32, 2.0**-9)
    head = method.players["model"].module[2].weight
    loss = method.loss

    def broken(batch, turn):
        value, numbers = loss(batch, turn)
        return value + (head.sum() * 0).sqrt(), numbers

    method.loss = broken
    with pytest.raises(NonFiniteError, match="gradient norm of 'model' is nan in step 2"):
        train(tmp_path, method, mixed_precision="fp16")
