from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import whet
from whet.errors import CheckpointError, InputError, OptionError
from whet.fit import fit
from whet.fit.losses import window_losses
from whet.train.elas import ElasRecipe, ElasTraining
from whet.zoo import recipes
from whet.zoo.tokenizer import byte_tokenizer

RECIPE: dict[str, Any] = {
    "method": "elas",
    "model": {
        "model_type": "whet_elas_llama",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 40,
        "vocab_size": 264,
        "max_position_embeddings": 32,
        "tie_word_embeddings": True,
        "rank": 8,
        "dense_steps": 3,
    },
    "data": {"synthetic": 20_000, "length": 32, "batch_size": 4},
    "fit": {
        "steps": 6,
        "learning_rate": 0.01,
        "warmup": 2,
        "ema": 0,
        "log_every": 2,
        "checkpoint_every": 2,
    },
}


def recipe(**changes: dict[str, Any]) -> ElasRecipe:
    return ElasRecipe.model_validate(
        {k: v | changes.get(k, {}) if isinstance(v, dict) else v for k, v in RECIPE.items()}
    )


def weights(training: ElasTraining) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


def trained(run: Path, made: ElasRecipe) -> ElasTraining:
    training = ElasTraining(made)
    fit(training, made.fit, run=run, identity=made.model_dump(mode="json"))
    return training


def test_the_shipped_recipe_is_read_and_builds() -> None:
    made = ElasRecipe.read(recipes()["elas-tiny"], method="elas")
    assert made.model["sparsify"] == "magnitude"
    small = made.model_copy(
        update={"data": made.data.model_copy(update={"synthetic": 30_000, "length": 32})}
    )
    assert ElasTraining(small).model.config.ffn_width == 576


def test_a_run_ends_in_a_model_that_loads_and_continues_text(tmp_path: Path) -> None:
    made = recipe()
    training = ElasTraining(made)
    training.run(tmp_path)
    model, tokenizer = whet.load(tmp_path / "model")
    assert model.config.dense_steps == 0
    tokens = training.windows.windows("test", 2)
    with torch.no_grad():
        ours = window_losses(training.model.eval(), tokens)
        assert torch.allclose(window_losses(model, tokens), ours, atol=0.01)  # stored in float16
    ids = tokenizer("stain", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] <= 9
    # The folder belongs to this text now.
    with pytest.raises(CheckpointError, match="belongs to another"):
        ElasTraining(recipe(data={"synthetic": 25_000})).run(tmp_path)


def test_the_loss_falls_and_zeros_are_logged_by_layer(tmp_path: Path) -> None:
    made = recipe(fit={"steps": 30, "log_every": 10})
    trained(tmp_path, made)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] < 5.6
    for name in ("zeros", "dropped"):
        layers = [lines[-1][f"{name}.{i}"] for i in range(2)]
        assert lines[-1][name] == pytest.approx(sum(layers) / 2)
        assert all(0 <= value <= 1 for value in layers)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"sparsify": "mvue", "gradient": "ste"},
        {"sparsify": "soft", "gradient": "ste", "soft_refresh": 2},
        {"factors": "sltrain"},
    ],
)
def test_a_resumed_run_ends_bit_equal(tmp_path: Path, model: dict[str, Any]) -> None:
    made = recipe(model=model)
    through = trained(tmp_path / "through", made)

    class StoppedError(Exception):
        pass

    first = ElasTraining(made)
    batch = first.batch

    def fail(step: int) -> Any:
        if step == 5:
            raise StoppedError
        return batch(step)

    first.batch = fail  # type: ignore[method-assign]
    identity = made.model_dump(mode="json")
    with pytest.raises(StoppedError):
        fit(first, made.fit, run=tmp_path / "cut", identity=identity)
    resumed = trained(tmp_path / "cut", made)
    assert torch.equal(weights(through), weights(resumed))
    assert torch.equal(through.model.counters(), resumed.model.counters())


def test_accumulating_parts_of_a_batch_is_the_batch() -> None:
    training = ElasTraining(recipe())
    training.model.double()
    batch = training.batch(1)
    assert batch.observed
    whole, _ = training.loss(batch, "model")
    parts = training.split(batch, "model", 3)
    assert sum(share for _, share in parts) == pytest.approx(1)
    total = sum(share * float(training.loss(part, "model")[0].detach()) for part, share in parts)
    assert total == pytest.approx(float(whole.detach()), rel=1e-12)


def test_dense_steps_are_counted_by_steps_of_training(tmp_path: Path) -> None:
    rules: list[str] = []
    made = recipe(fit={"accumulation": 2})
    training = ElasTraining(made)
    batch = training.batch

    def watch(step: int) -> Any:
        rules.append(training.model.feed_forwards()[0].present_rule)
        return batch(step)

    training.batch = watch  # type: ignore[method-assign]
    fit(training, made.fit, run=tmp_path, identity=made.model_dump(mode="json"))
    assert rules == ["none"] * 3 + ["magnitude"] * 3


def test_arms_of_one_seed_begin_equal_and_see_equal_windows() -> None:
    dense, sparse = (
        ElasTraining(recipe(model={"sparsify": s, "dense_steps": 0})) for s in ("none", "magnitude")
    )
    assert torch.equal(weights(dense), weights(sparse))
    assert torch.equal(dense.batch(3).tokens, sparse.batch(3).tokens)
    other = ElasTraining(recipe(fit={"seed": 1}))
    assert not torch.equal(weights(sparse), weights(other))


def test_window_losses_are_those_of_the_model() -> None:
    training = ElasTraining(recipe())
    training.model.eval()
    tokens = training.windows.windows("test", 3)
    with torch.no_grad():
        expected = [
            float(training.model(input_ids=row[None], labels=row[None]).loss) for row in tokens
        ]
        assert window_losses(training.model, tokens).tolist() == pytest.approx(expected, rel=1e-5)


def test_text_comes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Ähnliche Wörter, überall. " * 200, encoding="utf-8")
    training = ElasTraining(recipe(data={"synthetic": None, "text": str(path)}))
    assert "Wörter" in training.tokenizer.decode(training.batch(0).tokens.flatten())
    with pytest.raises(InputError, match="cannot read text"):
        ElasTraining(recipe(data={"synthetic": None, "text": str(tmp_path / "none.txt")}))


def test_bytes_of_any_text_are_tokens() -> None:
    tokenizer = byte_tokenizer()
    text = "Ünïcödé\n\t漢字 🙂  two  spaces "
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert max(ids) < 256 < len(tokenizer)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"sparsify": "magnitud"}}, "sparsify='magnitud' is unknown: did you mean"),
        ({"model": {"ranks": 3}}, r"unknown key 'model\.ranks': did you mean 'rank'"),
        ({"model": {"model_type": "llama"}}, "model_type must be 'whet_elas_llama'"),
        ({"data": {"text": "x.txt"}}, "either text: FILE or synthetic"),
        ({"data": {"synthetic": None}}, "either text: FILE or synthetic"),
        ({"data": {"lenght": 3}}, r"unknown key 'data\.lenght': did you mean 'length'"),
    ],
)
def test_mistakes_in_a_recipe_are_named(
    tmp_path: Path, changes: dict[str, dict[str, Any]], message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    raw = {k: v | changes.get(k, {}) if isinstance(v, dict) else v for k, v in RECIPE.items()}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        ElasRecipe.read(path, method="elas")


def test_another_methods_recipe_is_refused() -> None:
    with pytest.raises(OptionError, match="is for method 'causal'"):
        ElasTraining(recipe().model_copy(update={"method": "causal"}))
