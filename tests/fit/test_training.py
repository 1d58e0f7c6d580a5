import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from whet.errors import CheckpointError, InputError, NonFiniteError
from whet.fit import checkpoint as checkpoint_
from whet.fit import fit

TIMES = {"tokens_per_second", "seconds_left"}


def run(training, folder):
    identity = training.recipe.model_dump(mode="json")
    fit(training, training.recipe.fit, run=folder, identity=identity)


def state(training):
    player = training.players["model"]
    out = {f"model.{n}": t.clone() for n, t in training.model.state_dict().items()}
    if player.ema is not None:
        out |= {f"ema.{n}": t.clone() for n, t in player.ema.average.items()}
        out["ema.updates"] = torch.tensor(player.ema.updates)
    for index, slots in player.optimizer.state_dict()["state"].items():
        out |= {f"optimizer.{index}.{n}": torch.as_tensor(t).clone() for n, t in slots.items()}
    return out


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(t, two[n]) for n, t in one.items())


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def stop_before(training, step, error=KeyboardInterrupt):
    """Make the run die when it asks for the batch of `step`."""
    batch = training.batch

    def dying(k):
        if k == step:
            raise error
        return batch(k)

    training.batch = dying


def test_the_loss_falls(training, tmp_path):
    made = training(fit__steps=40, fit__learning_rate=0.02, fit__log_every=1, data__groups=1)
    run(made, tmp_path)
    losses = [m["loss"] for m in metrics(tmp_path)]
    assert len(losses) == 40
    assert losses[0] == pytest.approx(math.log(101), rel=0.35)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert all(m["gradient_norm"] > 0 for m in metrics(tmp_path))


def test_dream_trains_through_the_same_adapter(training, tmp_path, recipe):
    from whet.dlm.masked import MaskedTraining
    from whet.zoo.training import TaskRecipe

    raw = recipe(fit__steps=30, fit__learning_rate=0.02, fit__log_every=1)
    raw["model"] = {"model_type": "Dream", "hidden_size": 32, "num_attention_heads": 2}
    raw["model"] |= {"num_key_value_heads": 1, "num_hidden_layers": 1, "intermediate_size": 64}
    raw["model"] |= {"vocab_size": 104, "tie_word_embeddings": True}
    made = MaskedTraining(TaskRecipe.model_validate(raw))
    assert made.denoiser.traits.shift
    run(made, tmp_path)
    losses = [m["loss"] for m in metrics(tmp_path)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    # A tied head shares memory; the checkpoint holds it all the same.
    again = MaskedTraining(TaskRecipe.model_validate(raw))
    run(again, tmp_path)
    assert equal(state(again), state(made))


def test_every_step_takes_its_own_rate(training, tmp_path):
    made = training()
    player, rates = made.players["model"], []
    step = player.optimizer.step
    player.optimizer.step = lambda: rates.append(player.optimizer.param_groups[0]["lr"]) or step()
    run(made, tmp_path)
    falling = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates == pytest.approx([0.01 * f for f in (0.5, 1.0, *falling)])


@pytest.mark.parametrize("stopped_at", [3, 4])
def test_a_resumed_run_is_bit_equal(training, tmp_path, stopped_at):
    straight = training()
    run(straight, tmp_path / "one")
    first = training()
    stop_before(first, stopped_at)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "two")
    torch.rand(17)  # nothing may depend on torch's global stream
    second = training()
    seen = []
    batch = second.batch
    second.batch = lambda step: seen.append(step) or batch(step)
    run(second, tmp_path / "two")
    assert seen == [3, 4, 5]
    assert equal(state(second), state(straight))
    assert metrics(tmp_path / "two") == metrics(tmp_path / "one")
    assert [m["step"] for m in metrics(tmp_path / "one")] == [2, 4, 6]
    files = [load_file(tmp_path / n / "checkpoint" / "tensors.safetensors") for n in ("one", "two")]
    assert equal(*files)


def test_a_run_resumed_in_another_process_is_bit_equal(training, recipe, tmp_path):
    straight = training()
    run(straight, tmp_path / "one")
    code = (
        "import sys, json; from pathlib import Path\n"
        "import torch; torch.set_num_threads(1)\n"
        "from whet.dlm.masked import MaskedTraining\nfrom whet.zoo.training import TaskRecipe\n"
        "from whet.fit import fit\n"
        "t = MaskedTraining(TaskRecipe.read(Path(sys.argv[1])))\n"
        "batch = t.batch\n"
        "def dying(k):\n"
        "    if k == 4: sys.exit(7)\n"
        "    return batch(k)\n"
        "t.batch = dying\n"
        "identity = t.recipe.model_dump(mode='json')\n"
        "fit(t, t.recipe.fit, run=Path(sys.argv[2]), identity=identity)\n"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe()))  # JSON is YAML; its text keys become numbers again
    done = subprocess.run([sys.executable, "-c", code, path, tmp_path / "two"], check=False)
    assert done.returncode == 7
    second = training()
    run(second, tmp_path / "two")
    assert equal(state(second), state(straight))
    assert metrics(tmp_path / "two") == metrics(tmp_path / "one")


def test_a_finished_run_is_left_alone(training, tmp_path):
    made = training()
    run(made, tmp_path)
    again = training()
    stop_before(again, 0, AssertionError)
    run(again, tmp_path)
    assert equal(state(again), state(made))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fit__learning_rate": 0.5}, "different: fit.learning_rate)"),
        ({"model__n_heads": 4, "fit__seed": 1}, "different: fit.seed, model.n_heads)"),
        ({"data__gen_lengths": {8: 1.0}}, "different: data.gen_lengths.6, data.gen_lengths.8)"),
        ({"model__n_kv_heads": 1}, "different: model.n_kv_heads)"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(training, tmp_path, changes, named):
    run(training(), tmp_path)
    other = training(**changes)
    before = state(other)
    with pytest.raises(CheckpointError) as caught:
        run(other, tmp_path)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert equal(state(other), before)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "state.json").write_text("{"),
        lambda folder: (folder / "state.json").write_text("[]"),
        lambda folder: (folder / "state.json").write_text('{"step": 3}'),
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: (folder / "tensors.safetensors").unlink(),
        lambda folder: (folder / "tensors.safetensors").write_bytes(
            (folder / "tensors.safetensors").read_bytes()[:-50]
        ),
        lambda folder: drop(folder, "model/model/model.transformer.ln_f.weight"),
        lambda folder: drop(folder, "model/ema/model.transformer.ln_f.weight", torch.ones(3)),
        lambda folder: drop(folder, "model/optimizer/0/exp_avg", torch.ones(3)),
        lambda folder: drop(folder, "model/optimizer/0/exp_avg"),
        lambda folder: drop(folder, "model/ema/model.transformer.ln_f.weight"),
    ],
)
def test_a_damaged_checkpoint_is_refused(training, tmp_path, damage):
    run(training(), tmp_path)
    damage(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="checkpoint") as caught:
        run(training(), tmp_path)
    assert "\n" not in str(caught.value)


def drop(folder, name, instead=None):
    path = folder / "tensors.safetensors"
    tensors = load_file(path)
    del tensors[name]
    if instead is not None:
        tensors[name] = instead
    save_file(tensors, path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_kill_during_a_save_keeps_the_last_good_checkpoint(
    training, tmp_path, monkeypatch, error
):
    straight = training()
    run(straight, tmp_path / "one")
    first = training()
    write_text = checkpoint_.write_text

    def failing(path, text):
        if json.loads(text)["step"] == 6:
            raise error
        write_text(path, text)

    monkeypatch.setattr(checkpoint_, "write_text", failing)
    with pytest.raises(error):
        run(first, tmp_path / "two")
    monkeypatch.undo()
    folder = tmp_path / "two"
    assert json.loads((folder / "checkpoint" / "state.json").read_text())["step"] == 3
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint", "metrics.jsonl"]
    second = training()
    run(second, folder)
    assert equal(state(second), state(straight))
    assert metrics(folder) == metrics(tmp_path / "one")


def test_a_kill_in_the_middle_of_the_swap_loses_nothing(training, tmp_path):
    run(training(), tmp_path)
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint.old")
    made = training()
    stop_before(made, 0, AssertionError)
    run(made, tmp_path)
    assert (tmp_path / "checkpoint").is_dir()


def test_a_line_of_metrics_that_was_cut_short_is_dropped(training, tmp_path):
    straight = training()
    run(straight, tmp_path / "one")
    first = training()
    stop_before(first, 4)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "two")
    with (tmp_path / "two" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run(training(), tmp_path / "two")
    assert metrics(tmp_path / "two") == metrics(tmp_path / "one")


@pytest.mark.parametrize("where", ["loss", "gradient", "batch"])
def test_a_loss_that_is_not_finite_stops_before_the_update(training, tmp_path, where):
    made = training()
    loss, batch, kept = made.loss, made.batch, {}
    calls = []

    def broken(parts, turn):
        value, numbers = loss(parts, turn)
        calls.append(turn)
        if len(calls) == 5:
            kept.update(state(made))
            if where == "gradient":
                # The value is finite, its derivative is not.
                zero = made.model.model.transformer["ln_f"].weight.sum() * 0
                value = value + zero.sqrt()
            else:
                value = value * float("nan")
        return value, numbers

    made.loss = broken
    if where == "batch":
        made.batch = lambda step: [*batch(step), torch.tensor([math.nan, math.inf])]
        made.tokens = lambda parts: 1
        made.loss = lambda parts, turn: broken(parts[:-1], turn)
    with pytest.raises(NonFiniteError, match=r"in step 5: .*nonfinite\.json") as caught:
        run(made, tmp_path)
    assert "\n" not in str(caught.value)
    assert equal(state(made), kept)
    stored = json.loads((tmp_path / "nonfinite.json").read_text())
    assert stored["step"] == 5
    assert ("gradient norm" if where == "gradient" else "loss") in stored["why"]
    part, levels, mask = batch(4)[0]
    assert stored["batch"][0][0]["tokens"] == part.tokens.tolist()
    assert stored["batch"][0][1] == levels.tolist()
    assert stored["batch"][0][2] == mask.tolist()
    if where == "batch":
        assert stored["batch"][-1] == ["nan", "inf"]
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 3


def test_the_prompt_is_never_masked_and_the_loss_is_the_mean_bound(training):
    made = training(data__groups=1)
    ((part, levels, mask),) = made.batch(0)
    assert not (mask & ~part.response).any()
    assert mask.any()
    loss, _ = made.loss([(part, levels, mask)], "model")
    total = 0.0
    for row in range(len(part.tokens)):
        kept = part.attention_mask[row]
        tokens, hidden = part.tokens[row][kept], mask[row][kept]
        if not hidden.any():
            continue
        noisy = tokens.masked_fill(hidden, made.tokenizer.mask_token_id)
        logits = made.model(noisy[None]).logits[0].clone()
        logits[:, [made.tokenizer.mask_token_id]] = -torch.inf
        logits[:, len(made.tokenizer) :] = -torch.inf
        nats = -logits.log_softmax(-1)[hidden, tokens[hidden]].sum()
        total += nats.item() / float(levels[row]) / int(part.response[row].sum())
    assert loss.item() == pytest.approx(total / len(part.tokens), rel=1e-5)


def test_export_is_a_checkpoint_of_averages_in_float16(training, tmp_path):
    from whet.models.loading import load_checkpoint

    made = training()
    made.run(tmp_path)
    before = state(made)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    averages = made.players["model"].ema.average
    assert stored.keys() == averages.keys()
    assert all(torch.equal(t, averages[n].half()) for n, t in stored.items())
    assert equal(state(made), before)
    model, tokenizer = load_checkpoint(tmp_path / "model")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(tokenizer) == len(made.tokenizer)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float16"


def test_export_without_averages(training, tmp_path):
    made = training(fit__ema=0, fit__steps=2)
    assert made.players["model"].ema is None
    made.run(tmp_path)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(t, stored[n].float().half()) for n, t in stored.items())
    assert torch.equal(
        stored["model.transformer.wte.weight"],
        made.model.model.transformer["wte"].weight.detach().half(),
    )


def test_a_response_that_does_not_fit_the_canvas_is_an_error(training, tmp_path):
    made = training(data__gen_lengths={3: 1.0})
    with pytest.raises(InputError, match="response of 4 tokens does not fit gen_length=3"):
        run(made, tmp_path)


def test_the_first_weights_depend_on_the_seed_alone(training):
    one = state(training())
    torch.rand(3)
    assert equal(one, state(training()))
    assert not equal(one, state(training(fit__seed=1)))
