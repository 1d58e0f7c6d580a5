import json

import pytest
import yaml

from whet import catalogue
from whet.dlm.masked import MaskedTraining
from whet.errors import InputError, OptionError
from whet.zoo.training import TaskRecipe


def refused(tmp_path, text):
    path = tmp_path / "r.yaml"
    if isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    with pytest.raises(InputError) as caught:
        TaskRecipe.read(path, method="masked")
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message.partition(f"{path}")[2].lstrip(": ")


def test_a_recipe_is_read(tmp_path, recipe):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe()))
    made = TaskRecipe.read(path)
    assert made.data.gen_lengths == {6: 0.5, 8: 0.5}
    assert made.fit.beta2 == 0.98
    assert TaskRecipe.model_validate(json.loads(made.model_dump_json())) == made


def test_the_shipped_recipes_are_valid():
    from whet.zoo import recipes

    known = recipes()
    assert known
    for name, path in known.items():
        method = catalogue.resolve(yaml.safe_load(path.read_text())["method"], "train")
        recipe = method.recipe_type.read(path, method=method.method)
        training = method(recipe)
        assert sum(p.numel() for p in training.model.parameters()) < 2e6, name
        if isinstance(recipe, TaskRecipe):
            longest = max(recipe.data.gen_lengths or {0: 1.0})
            assert longest + 40 <= training.model.config.max_position_embeddings


@pytest.mark.parametrize(
    ("section", "key", "why"),
    [
        (None, "modell", "unknown key 'modell': did you mean 'model'?"),
        ("fit", "learning_rat", "unknown key 'fit.learning_rat': did you mean 'learning_rate'?"),
        ("data", "batchsize", "unknown key 'data.batchsize': did you mean 'batch_size'?"),
        ("model", "n_layer", "unknown key 'model.n_layer': did you mean 'n_layers'?"),
        ("model", "mask_token_id", "unknown key 'model.mask_token_id': "),
        ("model", "kwargs", "unknown key 'model.kwargs': "),
    ],
)
def test_an_unknown_key_is_located_with_its_nearest_match(tmp_path, recipe, section, key, why):
    raw = recipe()
    (raw if section is None else raw[section])[key] = 3
    assert refused(tmp_path, raw).startswith(why)


def test_a_misspelt_required_key_is_called_unknown_rather_than_missing(tmp_path, recipe):
    raw = recipe()
    raw["fit"]["step"] = raw["fit"].pop("steps")
    assert refused(tmp_path, raw) == "unknown key 'fit.step': did you mean 'steps'?"
    raw = recipe()
    raw["dat"] = raw.pop("data")
    assert refused(tmp_path, raw) == "unknown key 'dat': did you mean 'data'?"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"fit__steps": "many"}, "fit.steps: "),
        ({"fit__learning_rate": -1}, "fit.learning_rate: "),
        ({"data__batch_size": 0}, "data.batch_size: "),
        ({"data__tasks": {}}, "data.tasks: "),
        ({"data__tasks": ["sort"]}, "data.tasks: "),
        ({"data__tasks": {"sort": "much"}}, "data.tasks.sort: "),
        ({"data__tasks": {"sort": 0}}, "data.tasks.sort: "),
        ({"data__tasks": {"sort": float("nan")}}, "data.tasks.sort: "),
        ({"data__gen_lengths": {"x": 1.0}}, "data.gen_lengths.x"),
        ({"data__gen_lengths": {0: 1.0}}, "data.gen_lengths.0"),
        ({"data__gen_lengths": {8: -1.0}}, "data.gen_lengths.8: "),
        ({"model__n_layers": "two"}, "model: LLaDA configuration has n_layers='two'"),
        ({"model__n_heads": 5}, "model: LLaDA configuration has n_heads=5"),
    ],
)
def test_a_wrong_value_is_located(tmp_path, recipe, changes, where):
    assert refused(tmp_path, recipe(**changes)).startswith(where)


def test_an_unknown_task_or_model_gets_its_nearest_match(tmp_path, recipe):
    found = refused(tmp_path, recipe(data__tasks={"sortt": 1.0}))
    assert found == "data.tasks: unknown task 'sortt': did you mean 'sort'?"
    found = refused(tmp_path, recipe(model__model_type="lada"))
    assert found == "model_type 'lada' is unknown: did you mean 'llada'?"
    raw = recipe()
    del raw["model"]["model_type"]
    assert refused(tmp_path, raw).startswith("model_type '' is unknown")


@pytest.mark.parametrize("text", ["a: [1, 2", "\t- x: }", b"\xff\xfe\x00", b"a: \x00"])
def test_what_is_not_yaml(tmp_path, text):
    assert refused(tmp_path, text).startswith("is not YAML: ")


@pytest.mark.parametrize("text", ["", "[]", "just text", "3"])
def test_yaml_that_is_no_mapping(tmp_path, text):
    assert refused(tmp_path, text).startswith("recipe: ")


def test_a_missing_file_or_section(tmp_path, recipe):
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(InputError, match=f"cannot read recipe {path}: "):
            TaskRecipe.read(path)
    raw = recipe()
    del raw["fit"]
    assert refused(tmp_path, raw).startswith("fit: ")
    raw = recipe()
    raw["method"] = "soar"
    assert refused(tmp_path, raw).startswith("method: ")


def test_a_vocabulary_that_is_too_small(recipe):
    made = TaskRecipe.model_validate(recipe(model__vocab_size=90))
    with pytest.raises(OptionError, match="vocab_size must be at least the tokenizer's 10"):
        MaskedTraining(made)


def test_task_names_are_one_token_with_or_without_settings(training):
    made = training()
    for name in ("sort", "permutation"):
        (token,) = made.tokenizer(name, add_special_tokens=False)["input_ids"]
        assert made.tokenizer.decode([token]) == name
    assert len(made.tokenizer) == 98 + 2
