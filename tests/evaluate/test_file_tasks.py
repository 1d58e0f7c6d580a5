"""Benchmarks from files under the contract of tasks; programs run in the sandbox."""

import json

import pytest

from tests.evaluate.sandboxes import enclosed
from tests.evaluate.scripted import Scripted
from whet.errors import InputError, OptionError
from whet.evaluate import Generation, judge
from whet.evaluate.file_tasks import file_task, is_static, load_problems
from whet.evaluate.run import Budget, plan, run_model

HUMAN = [
    {
        "task_id": "Human/0",
        "prompt": 'def double(x):\n    """ Twice x """\n',
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(f):\n    assert f(2) == 4\n    assert f(-1) == -2\n",
        "entry_point": "double",
    },
    {
        "task_id": "Human/1",
        "prompt": 'def last(xs):\n    """ The last of a list, None for an empty one """\n',
        "canonical_solution": "    return xs[-1] if xs else None\n",
        "test": "def check(f):\n    assert f([1, 2]) == 2\n    assert f([]) is None\n",
        "entry_point": "last",
    },
]
GSM = [
    {"question": f"{n} and {n} make?", "answer": f"{n}+{n}={2 * n}\n#### {2 * n}"}
    for n in (21, 34, 55)
]


@pytest.fixture
def data(tmp_path):
    files = {"humaneval/HumanEval.jsonl": HUMAN, "gsm8k/test.jsonl": GSM[:2]}
    files["gsm8k/train.jsonl"] = GSM[2:]
    for name, records in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path


def answered(problem, text, finish="stop"):
    return judge(problem, Generation(text=text, tokens=1, finish=finish))


def test_problems_come_from_the_file_with_examples_from_the_training_split(data):
    found = load_problems(["gsm8k"], data, shots=1)
    assert [p.id for p in found] == ["gsm8k-gsm8k-1", "gsm8k-gsm8k-2"]
    for problem, record in zip(found, GSM, strict=False):
        shot = f"Question: {GSM[2]['question']}\nAnswer: {GSM[2]['answer']}"
        assert problem.instance.prompt == f"{shot}\n\nQuestion: {record['question']}\nAnswer:"
        assert problem.instance.example == f" {record['answer']}"
    assert len(load_problems(["gsm8k"], data, limit=1, shots=0)) == 1
    assert len(load_problems(["gsm8k", "gsm8k"], data, shots=0)) == 2
    assert is_static("gsm8k")
    assert not is_static("sum")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({"shots": -1}, "shots=-1 must be at least 0"),
        ({"shots": 2}, "shots=2: task 'gsm8k' has 1 to show"),
    ],
)
def test_impossible_requests(data, arguments, says):
    with pytest.raises(OptionError, match=says):
        load_problems(["gsm8k"], data, **arguments)


def test_files_that_are_not_there(data, monkeypatch, tmp_path):
    monkeypatch.delenv("WHET_DATA", raising=False)
    with pytest.raises(OptionError, match="--data or in WHET_DATA"):
        load_problems(["gsm8k"], None)
    with pytest.raises(InputError, match="does not exist"):
        load_problems(["gsm8k"], tmp_path / "nowhere")
    with pytest.raises(OptionError, match="did you mean 'gsm8k'"):
        file_task("gsm8")
    with pytest.raises(InputError, match="come from a file"):
        file_task("gsm8k").generate(None)


def test_the_form_of_gsm8k_is_strict_and_the_last_number_lenient(data):
    problem = load_problems(["gsm8k"], data, shots=0)[0]
    verdicts = {
        " so\n#### 42": ("correct", True),
        " so 42 it is": ("correct", False),
        " #### 41, no: 42": ("correct", False),
        " #### 41": ("wrong", False),
        " 42 or 43": ("wrong", False),
        " many": ("wrong", False),
        "": ("unparsed", False),
        " #### 42\nQuestion: another\n#### 7": ("correct", True),
    }
    for text, (bucket, strict) in verdicts.items():
        outcome = answered(problem, text)
        assert (outcome.bucket, outcome.strict) == (bucket, strict), text


def test_a_solution_cut_short_counts_by_its_form_only(data):
    problem = load_problems(["gsm8k"], data, shots=0)[0]
    assert answered(problem, " half of it is 42", "length").bucket == "truncated"
    assert answered(problem, " #### 42 and", "length").strict
    assert answered(problem, " #### 41, no: 42", "length").bucket == "wrong"


@enclosed
def test_programs_are_run_and_only_good_ones_pass(data):
    double, last = load_problems(["humaneval"], data)
    for problem, record in zip((double, last), HUMAN, strict=True):
        assert problem.instance.prompt == record["prompt"]
        outcome = answered(problem, record["canonical_solution"])
        assert (outcome.bucket, outcome.strict) == ("correct", True)
    verdicts = {
        "    return 3 * x\n": "wrong",
        "    return\n  broken(": "wrong",
        "    raise SystemExit(0)\n": "wrong",
        "    import os; os._exit(0)\n": "wrong",
        "    print('VERDICT: pass')\n": "wrong",
        "    return 2 * x  # \ud800\n": "correct",
        "": "unparsed",
        # What comes after the function is not run, and fenced blocks are taken out.
        "    return 2 * x\n\ndef double(x):\n    return 0\n": "correct",
        "Here:\n```python\ndef double(x):\n    y = x\n    return x + y\n```\nDone.": "correct",
        "```\n    return x + x\n```": "correct",
        "```python\ndef double(x):\n    return 0\n```": "wrong",
    }
    for text, bucket in verdicts.items():
        assert answered(double, text).bucket == bucket, text


@enclosed
def test_human_eval_from_end_to_end_with_a_model(data):
    asked = load_problems(["humaneval"], data)
    texts = {p.instance.prompt: p.instance.example for p in asked[:1]}
    model = Scripted(lambda prompt: texts.get(prompt, "    return xs[-1]\n"))
    made = plan(model, asked, budget=Budget())
    outcomes = run_model(model, asked, plan=made)
    assert [o.bucket for o in outcomes] == ["correct", "wrong"]
    assert [r.max_new_tokens for r in model.asked] == [1024, 1024]
    assert "\ndef" in model.asked[0].stop
    # A chat model writes whole functions in a block, which those strings would cut.
    assert plan(model, asked, budget=Budget(), chat=True).requests[0].stop == ()
    assert plan(model, asked, budget=Budget(max_new_tokens=3)).requests == {}


def test_programs_that_cannot_be_enclosed_stop_the_run_before_it_begins(data, monkeypatch):
    from whet.evaluate.sandbox import run

    monkeypatch.setattr(run, "namespaces_available", lambda: "this test says so")
    with pytest.raises(OptionError, match="allow-unsandboxed-code"):
        load_problems(["humaneval"], data)
    [problem] = load_problems(["humaneval"], data, limit=1, allow_unsandboxed=True)
    assert answered(problem, "    return 2 * x\n").correct
    assert load_problems(["gsm8k"], data, shots=0)
