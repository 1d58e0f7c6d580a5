"""The models that ship: they load, they solve problems they have never seen, they are small."""

import pytest
import torch
from safetensors import safe_open

import whet
from whet import catalogue, zoo
from whet.bench.eval_models import eval_model
from whet.bench.evaluation import Draw, answer
from whet.dlm.low_confidence import LowConfidence
from whet.dlm.texts import generate_texts
from whet.evaluate import accuracy_rows, draw_problems, judge_texts, outcome_metrics
from whet.evaluate.run import Budget
from whet.tasks import expand
from whet.zoo.recipe import recipe_method

DIFFUSION = ["tiny-dlm", "tiny-dlm-dparallel", "tiny-dream"]


@pytest.mark.parametrize("name", zoo.names())
def test_weights_are_small_and_float16(name):
    path = zoo._HERE / name / "model.safetensors"
    assert path.stat().st_size <= 4 * 2**20
    with safe_open(path, framework="pt") as file:
        assert {file.get_slice(k).get_dtype() for k in file.keys()} == {"F16"}  # noqa: SIM118


def test_the_zoo_is_what_it_should_be():
    assert zoo.names() == ["tiny-ar", *DIFFUSION]
    for name in zoo.names():
        assert name in zoo.recipes(), "the recipe that made it ships with it"


@pytest.mark.parametrize("name", zoo.recipes())
def test_every_recipe_in_the_package_can_be_read(name):
    path = zoo.recipes()[name]
    method = recipe_method(path)
    training = catalogue.resolve(method, "train")
    assert training.recipe_type.read(path, method=method).method == method


def test_the_autoregressive_model_works_out_fresh_problems():
    """A coarse check that the shipped weights work; the figures are in records."""
    model = eval_model("tiny-ar", batch_size=70)
    draw = Draw(tasks=("scratchpad", "find_maximum", "count_negative"), sizes=(8,), n=90, seed=77)
    answered = answer(model, draw.problems()[0], chain="autoregressive", budget=Budget(reasoning=0))
    thoughts = [o.text for o in answered.outcomes if o.problem.task.id == "queens"]
    assert all(text.startswith("<think>") for text in thoughts)
    assert len(set(map(len, thoughts))) > 1, "workings differ in length"
    metrics = outcome_metrics(answered.outcomes)
    assert metrics["accuracy"].ci[0] > 0.5
    assert metrics["accuracy/find_maximum"].value > 0.5


@pytest.mark.parametrize("name", DIFFUSION)
def test_greedy_solves_fresh_problems(name):
    """A coarse check that the shipped weights work; the figures are in records."""
    model, tokenizer = whet.load(name)
    assert next(model.parameters()).dtype == torch.float32
    asked = draw_problems(expand(["scratchpad"]), 140, seed=77)
    texts = generate_texts(
        model,
        tokenizer,
        [p.instance.prompt for p in asked],
        options=LowConfidence(),
        gen_length=16,
        batch_size=70,
    )
    rows = {r["task"]: r for r in accuracy_rows(judge_texts(asked, (c.text for c in texts)))}
    assert rows["pooled"]["low"] > 0.5
    assert all(row["high"] > 0.3 for row in rows.values())


def test_auto_classes_load_the_zoo():
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    import whet.auto  # noqa: F401
    from whet.dlm.soar import soar

    folder = zoo._HERE / "tiny-dlm"
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("sort 3120456789=", return_tensors="pt").input_ids
    out = model.generate(ids, custom_generate=soar, max_new_tokens=16)
    text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert text == "0123456789"
