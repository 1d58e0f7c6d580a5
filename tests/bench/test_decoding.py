"""Decoders side by side on a tiny random model: order, pairing and what the record says."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from whet.bench import decoding
from whet.bench.decoding import DecoderArm, compare, examples, item_columns, record_arm, run_arms
from whet.errors import OptionError
from whet.evaluate import Problem
from whet.models.llada import LLaDAConfig, LLaDAModelLM
from whet.tasks import Instance, Task, Verdict
from whet.zoo.tokenizer import character_tokenizer

GEN = 6
ARMS = ["low-confidence", "low-confidence:steps=3", "threshold:threshold=0.05", "soar"]


@dataclass(frozen=True)
class Parity(Task):
    """Right by the parity of the text's characters, so that a random model is sometimes right."""

    id: ClassVar[str] = "parity"
    summary: ClassVar[str] = "parity"
    many_answers: ClassVar[bool] = True
    rest: int = 0

    def generate(self, rng):
        raise NotImplementedError

    def parse(self, text, mode="lenient"):
        return text

    def check(self, instance, answer):
        return Verdict(sum(map(ord, instance.prompt + answer)) % 2 == self.rest)

    def solve(self, instance):
        raise NotImplementedError

    def log10_space(self):
        return 1.0


@dataclass(frozen=True)
class Odd(Parity):
    """The same under another name."""

    id: ClassVar[str] = "odd"
    rest: int = 1


@pytest.fixture(scope="module")
def loaded():
    tokenizer = character_tokenizer(["parity"])
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=32,
        n_heads=4,
        n_layers=2,
        mlp_hidden_size=48,
        vocab_size=len(tokenizer) + 6,
        max_sequence_length=64,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        init_std=0.2,
    )
    return LLaDAModelLM(config).eval(), tokenizer


@pytest.fixture(scope="module")
def asked():
    """Seven problems of two tasks, with prompts of many lengths."""
    texts = ["12+3", "parity 7", "abc", "x", "hello world", "90210", "(()"]
    tasks = [Parity(), Odd()]
    problems = []
    for i, text in enumerate(texts):
        task = tasks[i % 2]
        instance = Instance(task=task.id, prompt=text, data=(), example="")
        problems.append(Problem(f"{task.id}-{i}", task, instance))
    return problems


@pytest.fixture(scope="module")
def seen():
    """Problems done, as `on_batch` reported them."""
    return []


@pytest.fixture(scope="module")
def results(loaded, asked, seen):
    arms = [DecoderArm.parse(text) for text in ARMS]
    return run_arms(*loaded, asked, arms, gen_length=GEN, batch_size=3, on_batch=seen.append)


def test_problems_keep_their_order_in_every_arm(results, asked, seen):
    assert list(results) == ARMS
    assert seen == [3, 6, 7]
    for result in results.values():
        assert [c.prompt for c in result.completions] == [p.instance.prompt for p in asked]
        assert [o.problem for o in result.outcomes] == asked
        assert [o.text for o in result.outcomes] == [c.text for c in result.completions]
        assert len(result.seconds) == 3
        assert min(result.seconds) > 0
        assert all(len(c.tokens) == GEN for c in result.completions)
        assert all(c.trace is None for c in result.completions)
        for outcome in result.outcomes:
            problem = outcome.problem
            assert outcome.correct == problem.task.correct(problem.instance, outcome.text)


def test_results_do_not_depend_on_the_order_of_arms(loaded, asked, results):
    arms = [DecoderArm.parse(text) for text in reversed(ARMS)]
    again = run_arms(*loaded, asked, arms, gen_length=GEN, batch_size=3)
    for name in ARMS:
        assert [c.tokens for c in again[name].completions] == [
            c.tokens for c in results[name].completions
        ]
        assert (again[name].column("answer_rows") == results[name].column("answer_rows")).all()


def test_sampling_depends_on_neither_order_nor_batch_size(loaded, asked):
    arms = [DecoderArm.parse("low-confidence:temperature=0.8", "warm"), DecoderArm.parse("soar")]
    one = run_arms(*loaded, asked, arms, gen_length=GEN, batch_size=2)
    other = run_arms(*loaded, asked, arms[::-1], gen_length=GEN, batch_size=7)
    tokens = [[c.tokens for c in r["warm"].completions] for r in (one, other)]
    assert tokens[0] == tokens[1]


def test_arms_take_turns(loaded, asked, monkeypatch):
    calls = []

    def spy(model, tokenizer, prompts, *, options, **settings):
        calls.append((options, list(prompts)))
        return real(model, tokenizer, prompts, options=options, **settings)

    real = decoding.generate_texts
    monkeypatch.setattr(decoding, "generate_texts", spy)
    arms = [DecoderArm.parse(text) for text in ARMS[:3]]
    run_arms(*loaded, asked, arms, gen_length=GEN, batch_size=3)
    a, b, c = (arm.options for arm in arms)
    measured = calls[-9:]
    assert [options for options, _ in measured] == [a, b, c, b, c, a, c, a, b]
    prompts = [p.instance.prompt for p in asked]
    expected = [prompts[0:3]] * 3 + [prompts[3:6]] * 3 + [prompts[6:7]] * 3
    assert [part for _, part in measured] == expected


@pytest.mark.parametrize("chain", ["soar", "low-confidence:temperature=0.7"])
def test_fewer_problems_than_a_batch(loaded, asked, chain):
    arm = DecoderArm.parse(chain)
    [result] = run_arms(*loaded, asked[:2], [arm], gen_length=GEN, batch_size=5).values()
    assert [c.prompt for c in result.completions] == [p.instance.prompt for p in asked[:2]]
    assert len(result.seconds) == 1


def test_two_arms_of_one_name_are_refused(loaded, asked):
    arms = [DecoderArm.parse("soar", "same"), DecoderArm.parse("threshold", "same")]
    with pytest.raises(OptionError, match="share a name"):
        run_arms(*loaded, asked, arms, gen_length=GEN, batch_size=3)


def test_record_holds_the_means_of_the_items(results, asked):
    # The parity tasks are there to make this a number between 0 and 1.
    assert 0 < np.mean([r.correct.mean() for r in results.values()]) < 1
    for name, result in results.items():
        arm = record_arm(result)
        assert (arm.name, arm.chain) == (name, name)
        metrics = arm.metrics
        assert metrics["accuracy"].value == pytest.approx(result.correct.mean())
        for task in ("parity", "odd"):
            correct = [o.correct for o in result.outcomes if o.problem.task.id == task]
            assert metrics[f"accuracy/{task}"].value == pytest.approx(np.mean(correct))
            assert metrics[f"accuracy/{task}"].n == len(correct)
        steps = [c.answer_steps for c in result.completions]
        rows = [c.answer_rows for c in result.completions]
        tokens = [c.answer_tokens for c in result.completions]
        assert metrics["forwards"].value == pytest.approx(np.mean(steps))
        assert metrics["rows"].value == pytest.approx(np.mean(rows))
        assert metrics["tokens_per_forward"].value == pytest.approx(sum(tokens) / sum(steps))
        for metric in ("accuracy", "forwards", "rows"):
            low, high = metrics[metric].ci
            assert low <= metrics[metric].value <= high
            assert metrics[metric].n == len(asked)
        assert arm.cost["seconds"] == pytest.approx(sum(result.seconds))
        assert arm.cost["forwards"] == sum(c.steps for c in result.completions)
        assert arm.cost["rows"] == sum(c.rows for c in result.completions)
    assert record_arm(results[ARMS[0]]).metrics["rows"].value <= GEN


def test_record_of_one_task_has_the_pooled_name_too(loaded, asked):
    arms = [DecoderArm.parse("low-confidence", "greedy")]
    run = run_arms(*loaded, asked[::2], arms, gen_length=GEN, batch_size=4)
    metrics = record_arm(run["greedy"]).metrics
    assert metrics["accuracy"] == metrics["accuracy/parity"]
    assert metrics["accuracy"].value == pytest.approx(run["greedy"].correct.mean())


def test_an_arm_against_itself(results):
    for result in results.values():
        found = {c.metric: c for c in compare(result, result)}
        assert list(found) == ["accuracy", "forwards", "rows", "seconds"]
        assert found["accuracy"].value == 0
        assert found["accuracy"].p == 1
        assert found["accuracy"].ci == (0, 0)
        for metric in ("forwards", "rows", "seconds"):
            assert found[metric].value == pytest.approx(1)
            assert found[metric].ci == pytest.approx((1, 1))
        assert all((c.a, c.b) == (result.arm.name, result.arm.name) for c in found.values())


def test_comparisons_are_a_against_b(results):
    fixed, greedy = results["low-confidence:steps=3"], results["low-confidence"]
    found = {c.metric: c for c in compare(fixed, greedy)}
    assert {(c.a, c.b) for c in found.values()} == {(fixed.arm.name, greedy.arm.name)}
    difference = fixed.correct.mean() - greedy.correct.mean()
    assert found["accuracy"].value == pytest.approx(difference)
    ratio = fixed.column("answer_steps").sum() / greedy.column("answer_steps").sum()
    assert found["forwards"].value == pytest.approx(ratio)
    assert ratio < 1


def test_item_columns(results, asked):
    data = item_columns(asked, results)
    assert data["ids"] == [p.id for p in asked]
    assert list(data["arms"]) == ARMS
    for name, columns in data["arms"].items():
        result = results[name]
        assert columns == {
            "correct": [int(o.correct) for o in result.outcomes],
            "steps": [c.answer_steps for c in result.completions],
            "rows": [c.answer_rows for c in result.completions],
        }


def test_examples_agree_with_the_run_and_keep_traces(loaded, asked, results):
    arms = [DecoderArm.parse(text) for text in ARMS]
    shown = list(examples(*loaded, asked[:3], arms, gen_length=GEN))
    assert [e.problem for e in shown] == asked[:3]
    for index, example in enumerate(shown):
        assert [arm for arm, _, _ in example.runs] == arms
        for arm, done, correct in example.runs:
            batched = results[arm.name]
            assert done.tokens == batched.completions[index].tokens
            assert correct == batched.outcomes[index].correct
            assert int(done.trace.steps[done.index]) == done.steps


def test_an_arm_may_decode_another_model(loaded, asked):
    torch.manual_seed(1)
    other = LLaDAModelLM(loaded[0].config).eval()
    texts = ["threshold", "threshold:model=other", "threshold:threshold=0.9,model=other"]
    arms = [DecoderArm.parse(text) for text in texts]
    assert [a.model for a in arms] == [None, "other", "other"]
    assert arms[0].options == arms[1].options == arms[2].options
    found = run_arms(
        *loaded,
        asked,
        arms,
        gen_length=GEN,
        batch_size=3,
        others={"other": (other, loaded[1])},
    )
    alone = run_arms(other, loaded[1], asked, arms[:1], gen_length=GEN, batch_size=3)
    tokens = {name: [c.tokens for c in r.completions] for name, r in found.items()}
    assert tokens[texts[0]] != tokens[texts[1]] == tokens[texts[2]]
    assert tokens[texts[1]] == [c.tokens for c in alone["threshold"].completions]
    assert record_arm(found[texts[1]]).settings["model"] == "other"
    assert "model" not in record_arm(found[texts[0]]).settings
