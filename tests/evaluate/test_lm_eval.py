"""lm-evaluation-harness with whet's models, and whet's tasks in lm-evaluation-harness."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from whet.errors import InputError, OptionError, WhetWarning
from whet.evaluate.encoding import first_stop
from whet.evaluate.endpoint import EndpointError
from whet.evaluate.lm_eval_bridge import MAX_GEN_TOKS, WhetLM, Written, evaluate_with_lm_eval
from whet.evaluate.lm_eval_tasks import documents, drawn, score, task_folder
from whet.evaluate.model import Generation, Likelihood
from whet.evaluate.runner import draw_limited, judge
from whet.tasks import SUITES, expand
from whet.zoo.tokenizer import character_tokenizer


@pytest.fixture(autouse=True)
def _no_survey_of_the_machine(monkeypatch):
    """The harness asks pip and the drivers what is installed, a second at a time."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


WORDS = "alpha beta\ngamma; delta END epsilon zeta"


class Fake:
    """Writes what `answer` says of a request, out of order; likely is what is short."""

    name, context_length, fixed_canvas = "fake", 2000, False

    def __init__(self, answer=lambda r: Generation(text=WORDS, tokens=8, forwards=2.0)):
        self.answer, self.asked, self.calls, self.scored = answer, [], 0, []

    def count_tokens(self, text):
        return len(text)

    def generate(self, requests):
        self.asked += requests
        self.calls += 1
        for place in reversed(range(len(requests))):
            yield place, self.answer(requests[place])

    def loglikelihood(self, requests):
        self.scored += requests
        return [Likelihood(value=-len(r.continuation), tokens=1) for r in requests]

    def rolling(self, texts):
        return [Likelihood(value=-len(t) / 2) for t in texts]


def instance(*args, task="t", doc=0):
    return SimpleNamespace(args=args, task_name=task, doc_id=doc)


KWARGS = [
    {"until": ["\n"], "max_gen_toks": 5},
    {"until": "END", "do_sample": False, "temperature": 0.7},
    {"until": [";", "END"], "do_sample": True, "temperature": 0.5},
    {"max_new_tokens": 9, "until": None},
    {},
]


def mixed(n=30):
    return [instance(f"p{i % 7}", KWARGS[i % len(KWARGS)]) for i in range(n)]


def as_seen(requests):
    return sorted((r.prompt, r.max_new_tokens, r.stop, r.temperature, r.request) for r in requests)


def test_settings_of_requests_reach_the_model():
    model = Fake()
    WhetLM(model).generate_until([instance("p", k) for k in KWARGS])
    seen = {(r.max_new_tokens, r.stop, r.temperature) for r in model.asked}
    assert seen == {
        (5, ("\n",), 0.0),
        (MAX_GEN_TOKS, ("END",), 0.0),
        (MAX_GEN_TOKS, (";", "END"), 0.5),
        (9, (), 0.0),
        (MAX_GEN_TOKS, (), 0.0),
    }


def test_mixed_requests_come_back_in_order_without_stop_strings():
    model = Fake(lambda r: Generation(text=f"{r.prompt}|{r.max_new_tokens}|{WORDS}", tokens=1))
    requests = mixed()
    texts = WhetLM(model).generate_until(requests)
    for request, text in zip(requests, texts, strict=True):
        until = request.args[1].get("until") or []
        until = [until] if isinstance(until, str) else until
        assert text.startswith(f"{request.args[0]}|")
        assert first_stop(text, until) is None
    assert model.calls <= len(KWARGS)  # one call for settings of one kind


def test_any_order_asks_the_same_and_gives_the_same():
    requests = mixed()
    straight, shuffled = Fake(echo_noise), Fake(echo_noise)
    texts = WhetLM(straight).generate_until(requests)
    order = list(range(len(requests)))
    random.Random(1).shuffle(order)
    again = WhetLM(shuffled).generate_until([requests[i] for i in order])
    assert as_seen(straight.asked) == as_seen(shuffled.asked)
    # Repeats of one request are interchangeable, so compare what each request got as a set.
    assert by_request(requests, texts) == by_request([requests[i] for i in order], again)


def echo_noise(request):
    return Generation(text=f"{request.prompt} {request.request}", tokens=1)


def by_request(requests, texts):
    found = {}
    for request, text in zip(requests, texts, strict=True):
        found.setdefault(json.dumps(request.args), set()).add(str(text))
    return found


def test_repeats_of_a_problem_have_noise_of_their_own():
    model = Fake(echo_noise)
    one = instance("p", {"do_sample": True, "temperature": 1.0})
    assert len(set(WhetLM(model).generate_until([one] * 4))) == 4


def test_gen_length_wins_over_tasks_and_the_context_over_both():
    model = Fake()
    WhetLM(model, gen_length=64).generate_until([instance("p", KWARGS[0])])
    WhetLM(model, gen_length=64).generate_until([instance("p" * 1990, KWARGS[0])])
    assert [r.max_new_tokens for r in model.asked] == [64, 10]
    with pytest.raises(OptionError, match="gen_length"):
        WhetLM(model, gen_length=0)


def test_a_prompt_without_room_and_a_failed_text_are_empty_and_warned_of():
    failed = Generation(text="", tokens=0, finish="failed", error="the server is gone")
    model = Fake(lambda r: failed if r.prompt == "b" else Generation(text="x", tokens=1))
    lm = WhetLM(model)
    with pytest.warns(WhetWarning, match="2 of 3 texts could not be written"):
        texts = lm.generate_until([instance(p, {}) for p in ("p" * 2000, "b", "c")])
    assert texts == ["", "", "x"]
    assert lm.get_model_info()["failed_texts"] == 2


def test_prompts_a_model_cannot_use_fail_alone():
    def answer(request):
        if "bad" in request.prompt:
            raise InputError("unreadable")
        written.append(request.prompt)
        return Generation(text=request.prompt.upper(), tokens=1)

    written = []
    prompts = [f"p{i}" if i not in (3, 4, 11) else f"bad{i}" for i in range(16)]
    with pytest.warns(WhetWarning, match="3 of 16 .* unreadable"):
        texts = WhetLM(Fake(answer)).generate_until([instance(p, {}) for p in prompts])
    assert texts == ["" if "bad" in p else p.upper() for p in prompts]
    assert sorted(written) == sorted(p for p in prompts if "bad" not in p)  # each once


def test_an_endpoint_that_refuses_all_ends_the_run():
    def answer(request):
        raise EndpointError("refuses the key")

    model = Fake(answer)
    with pytest.raises(EndpointError):
        WhetLM(model).generate_until(mixed())
    assert model.calls == 1


def test_settings_that_no_model_has_are_warned_of():
    with pytest.warns(WhetWarning, match="top_p=0.5"):
        WhetLM(Fake()).generate_until([instance("p", {"top_p": 0.5, "top_k": 0})])


def test_what_texts_took_is_told():
    lm = WhetLM(Fake())
    lm.generate_until([instance("p", {})] * 3)
    info = lm.get_model_info()
    assert (info["texts"], info["tokens"], info["forwards"]) == (3, 24, 6.0)


def test_choices_of_a_question_share_their_noise():
    model = Fake()
    requests = [
        instance("c", " yes", doc=1),
        instance("c", " no", doc=1),
        instance("c", " yes", doc=2),
        instance("other", " yes", doc=1),
    ]
    found = WhetLM(model).loglikelihood(requests)
    questions = [r.question for r in model.scored]
    assert questions[0] == questions[1] == questions[3] != questions[2]
    assert found == [(-4, False), (-3, False), (-4, False), (-4, False)]
    assert WhetLM(model).loglikelihood_rolling([instance("text")]) == [-2.0]


def test_a_text_remembers_how_it_ended_through_copies_and_caches():
    text = Written("abc", "length")
    for again in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert (again, again.finish) == ("abc", "length")
    assert json.dumps([text]) == '["abc"]'


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def test_chat_templates_are_the_models_own():
    model = Fake()
    history = [{"role": "user", "content": "hi"}]
    with pytest.raises(OptionError, match="chat template"):
        WhetLM(model).apply_chat_template(history)
    model.tokenizer = character_tokenizer()
    model.tokenizer.chat_template = CHAT + "{% if add_generation_prompt %}<assistant>{% endif %}"
    lm = WhetLM(model)
    assert lm.apply_chat_template(history) == "<user>hi<assistant>"
    begun = [*history, {"role": "assistant", "content": "so"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == "<user>hi<assistant>so"
    assert lm.chat_template() == model.tokenizer.chat_template
    model.tokenizer.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(OptionError, match="no system"):
        lm.apply_chat_template(history)


def test_an_endpoint_applies_its_own_template():
    model = Fake()
    model.chat = True
    assert WhetLM(model).apply_chat_template([{"role": "user", "content": "hi"}]) == "hi"
    with pytest.raises(OptionError, match="single user"):
        WhetLM(model).apply_chat_template([{"role": "system", "content": "hi"}])


TOY = """
task: {name}
custom_dataset: !function toy_utils.load
test_split: test
output_type: {kind}
doc_to_text: "Q: {{{{q}}}}\\nA:"
doc_to_target: {target}
{more}
num_fewshot: 0
"""
TOY_UTILS = """
from datasets import Dataset

def load(**settings):
    rows = [{"q": str(i), "a": str(i * i), "right": i % 2} for i in range(10)]
    return {"test": Dataset.from_list(rows)}
"""
MEASURE = "metric_list: [{{metric: {}, aggregation: mean, higher_is_better: true}}]"
CHOICE = 'doc_to_choice: ["yes", "no"]\n' + MEASURE.format("acc")
WRITE = 'generation_kwargs: {until: ["\\n"], max_gen_toks: 8}\n' + MEASURE.format("exact_match")


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    (folder / "toy_utils.py").write_text(TOY_UTILS)
    kinds = [
        ("toy_write", "generate_until", '"{{a}}"', WRITE),
        ("toy_choose", "multiple_choice", "right", CHOICE),
    ]
    for name, kind, target, more in kinds:
        text = TOY.format(name=name, kind=kind, target=target, more=more)
        (folder / f"{name}.yaml").write_text(text)
    return folder


def squares(request):
    number = int(request.prompt.split("Q: ")[1].split("\n")[0])
    right = number in (2, 3, 5)
    return Generation(text=f"{number * number if right else -1}\nQ: 9", tokens=4)


def test_tasks_of_a_user_give_the_scores_they_should(toys, tmp_path):
    model = Fake(squares)
    found = evaluate_with_lm_eval(
        model, ["toy_write", "toy_choose"], include=[toys], cache=tmp_path / "cache"
    )
    assert found["results"]["toy_write"]["exact_match,none"] == 0.3
    # "no" is shorter, hence likelier: right where `right` is 1, that is for odd numbers.
    assert found["results"]["toy_choose"]["acc,none"] == 0.5
    assert found["config"]["whet_model"] == "fake"
    again = Fake(squares)
    cached = evaluate_with_lm_eval(
        again, ["toy_write", "toy_choose"], include=[toys], cache=tmp_path / "cache"
    )
    assert not again.asked
    assert not again.scored
    assert cached["results"]["toy_write"] == found["results"]["toy_write"]


def test_limit_and_unknown_tasks(toys):
    model = Fake(squares)
    evaluate_with_lm_eval(model, ["toy_write"], include=[toys], limit=4)
    assert len(model.asked) == 4
    with pytest.raises(OptionError, match="toy_write"):
        evaluate_with_lm_eval(model, ["toy_writ"], include=[toys])


def half_right(asked):
    """Right, wrong, silent, cut off, and right in a form nobody asked for, in turn."""
    answers = {}
    for i, problem in enumerate(asked):
        prompt, right = problem.instance.prompt, problem.instance.example
        answers[prompt] = [
            Generation(text=right, tokens=5),
            Generation(text="?", tokens=1),
            Generation(text="", tokens=1),
            Generation(text=f"so far {right[:-1]}", tokens=9, finish="length"),
            Generation(text=f"<think>hm</think>{right}", tokens=9),
        ][i % 5]
    return lambda request: answers[request.prompt]


@pytest.mark.parametrize("suite", ["scratchpad", "beyondbench"])
def test_whets_tasks_score_in_the_harness_as_in_whet(suite):
    classes = [cls for cls in SUITES[suite] if cls.id in ("sort", "sudoku", "sum", "median")]
    names = [f"{'whet' if suite == 'scratchpad' else suite}_{cls.id}" for cls in classes]
    assert len(names) == 2
    asked = draw_limited(expand(c.id for c in classes), 20, seed=3).problems
    model = Fake(half_right(asked))
    outcomes = [judge(p, model.answer(SimpleNamespace(prompt=p.instance.prompt))) for p in asked]
    found = evaluate_with_lm_eval(
        model, names, metadata={"problem_seed": 3, "problem_count": 20, "seed": 9}
    )["results"]
    assert len(model.asked) == len(asked)
    assert any(o.correct for o in outcomes)
    for cls, name in zip(classes, names, strict=True):
        mine = [o for o in outcomes if o.problem.task.id == cls.id]
        assert found[name]["acc_lenient,none"] == pytest.approx(mean(o.correct for o in mine))
        strict = mean(o.correct and o.strict for o in mine)
        assert found[name]["acc_strict,none"] == pytest.approx(strict)


def mean(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


def test_a_limit_takes_the_first_of_the_same_problems():
    few = [d["id"] for d in documents("sudoku", problem_count=5)["test"]]
    many = [d["id"] for d in documents("sudoku", problem_count=12)["test"]]
    assert many[:5] == few
    other = [d["id"] for d in documents("sudoku", problem_seed=1, problem_count=5)["test"]]
    assert set(other) != set(few)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem_count": 0}, "limit"),
        ({"problem_count": "ten"}, "problem_count"),
        ({"problem_seed": 1.5}, "problem_seed"),
        ({"problem_mode": "wide"}, "problem_mode"),
    ],
)
def test_bad_settings_of_problems_are_refused(settings, message):
    with pytest.raises(OptionError, match=message):
        documents("sudoku", **settings)


def test_a_document_alone_is_enough_to_judge_it():
    doc = documents("sort", problem_count=3)["test"][2]
    drawn.cache_clear()
    assert score(doc, [doc["target"]]) == {"acc_lenient": 1.0, "acc_strict": 1.0}
    assert score(doc, ["?"]) == {"acc_lenient": 0.0, "acc_strict": 0.0}


def test_every_task_and_group_is_known_once_and_documented(monkeypatch):
    import lm_eval.tasks

    from whet.lm_eval import known_tasks

    plain = lm_eval.tasks.TaskManager
    with known_tasks():
        manager = lm_eval.tasks.TaskManager(include_defaults=False)
    assert lm_eval.tasks.TaskManager is plain
    whets = {f"beyondbench_{cls.id}" for cls in SUITES["beyondbench"]}
    whets |= {f"whet_{cls.id}" for cls in SUITES["scratchpad"]}
    assert whets <= set(manager.all_subtasks)
    assert "whet_scratchpad" in manager.all_groups


def test_a_users_folder_stays_theirs_and_wins(toys, tmp_path):
    import lm_eval.tasks

    from whet.lm_eval import known_tasks

    (tmp_path / "mine.yaml").write_text(
        (toys / "toy_write.yaml").read_text().replace("toy_write", "whet_sort")
    )
    with known_tasks():
        one = lm_eval.tasks.TaskManager(include_path=str(toys), include_defaults=False)
        two = lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    assert {"toy_write", "whet_sort"} <= set(one.all_subtasks)
    assert two.task_index["whet_sort"].yaml_path.parent == tmp_path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("run --tasks whet_sort whet_ladder --limit 2", ["whet_sort", "whet_ladder"]),
        ("--tasks whet_sort,mmlu -t=x --model whet", ["whet_sort", "mmlu", "x"]),
        ("ls tasks", []),
    ],
)
def test_tasks_are_read_off_a_command_line(words, named):
    from whet.lm_eval import _tasks_named

    assert _tasks_named(words.split()) == named


def test_the_harnesss_own_tasks_are_left_out_only_where_nobody_asks_for_them(monkeypatch):
    import lm_eval.tasks

    from whet.lm_eval import known_tasks

    given = []
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **settings: given.append(settings))
    for wanted in (["whet_sort"], ["whet_sort", "mmlu"], []):
        with known_tasks(wanted):
            lm_eval.tasks.TaskManager()
    assert [settings.get("include_defaults", True) for settings in given] == [False, True, True]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two benchmarks of four problems each, as their authors publish them."""
    rows = [{"question": f"What is {i} + {i}?", "answer": f"Add.\n#### {2 * i}"} for i in range(9)]
    (tmp_path / "gsm8k").mkdir()
    for split, part in (("train", rows[4:]), ("test", rows[:4])):
        lines = "\n".join(map(json.dumps, part))
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text(lines)
    codes = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f'def plus(n):\n    """Add {i}."""\n',
            "canonical_solution": f"    return n + {i}\n",
            "test": f"def check(f):\n    assert f(1) == {i + 1}\n",
            "entry_point": "plus",
        }
        for i in range(4)
    ]
    (tmp_path / "HumanEval.jsonl").write_text("\n".join(map(json.dumps, codes)))
    monkeypatch.setenv("WHET_DATA", str(tmp_path))
    return tmp_path


def test_benchmarks_from_files_have_whets_prompts_and_scores(data):
    from whet.tasks.static import get_static

    task = get_static("gsm8k")
    problems = task.load(data)
    texts = [" Add.\n#### 0", " It is 2.", " #### 5", "\nQuestion: #### 6"]

    def answer(request):
        return Generation(text=texts[prompts.index(request.prompt)], tokens=4)

    prompts = [task.prompt(p, task.fewshot(data, 3)) for p in problems]
    model = Fake(answer)
    found = evaluate_with_lm_eval(model, ["whet_gsm8k"], num_fewshot=3)["results"]["whet_gsm8k"]
    scores = [task.score(p, t) for p, t in zip(problems, texts, strict=True)]
    assert found["strict,none"] == mean(s["strict"] for s in scores) == 0.25
    assert found["flexible,none"] == mean(s["flexible"] for s in scores) == 0.5
    assert {r.stop for r in model.asked} == {task.stop}


def test_a_benchmark_without_examples_runs_without_them(data):
    os.remove(data / "gsm8k" / "train.jsonl")
    model = Fake(lambda r: Generation(text="#### 0", tokens=1))
    with pytest.warns(WhetWarning, match="num_fewshot 0"):
        found = evaluate_with_lm_eval(model, ["whet_gsm8k"], num_fewshot=0)
    assert found["results"]["whet_gsm8k"]["strict,none"] == 0.25


def test_programs_run_only_with_consent_and_then_in_the_sandbox(data):
    from whet.evaluate.sandbox import namespaces_available

    def answer(request):
        return Generation(text="    return n + 2\n", tokens=5)

    with pytest.raises(ValueError, match="unsafe"):
        evaluate_with_lm_eval(Fake(answer), ["whet_humaneval"])
    found = evaluate_with_lm_eval(
        Fake(answer),
        ["whet_humaneval"],
        unsafe_code=True,
        metadata={"allow_unsandboxed_code": bool(namespaces_available())},
    )
    assert found["results"]["whet_humaneval"]["pass@1,none"] == 0.25


def test_a_preset_sets_what_a_model_can_and_yields_to_what_is_given():
    from whet.lm_eval import _with_preset

    name = "llada-8b-instruct:gsm8k-semi-ar"
    assert _with_preset(name, None, None, {}) == (
        "low-confidence",
        256,
        {"steps": 256, "block_length": 8, "temperature": 0.0, "eos": "none"},
    )
    decoder, canvas, settings = _with_preset(name, None, 64, {"steps": 64})
    assert (decoder, canvas, settings["steps"], settings["block_length"]) == (
        "low-confidence",
        64,
        64,
        8,
    )
    with pytest.raises(OptionError, match="soar"):
        _with_preset(name, "soar", None, {})


def test_groups_are_means_over_tasks():
    found = evaluate_with_lm_eval(
        Fake(lambda r: Generation(text="", tokens=1)), ["whet_scratchpad"], limit=1
    )
    assert found["groups"]["whet_scratchpad"]["acc_lenient,none"] == 0
    assert len(found["group_subtasks"]["whet_scratchpad"]) == len(SUITES["scratchpad"])


def test_the_folder_is_gone_afterwards():
    with task_folder() as folder:
        assert os.listdir(folder)
    assert not os.path.exists(folder)


@pytest.fixture(scope="module")
def tiny_gpt():
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=96,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).eval(), tokenizer


@pytest.mark.parametrize("batch_size", [1, 8])
def test_an_autoregressive_model_answers_as_the_harnesss_own_class(tiny_gpt, batch_size):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from whet.evaluate.autoregressive import AutoregressiveModel

    model, tokenizer = tiny_gpt
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=96)
    ours = WhetLM(AutoregressiveModel(model, tokenizer, name="gpt", batch_size=batch_size))
    dice = random.Random(0)

    def text(low, high):
        return "".join(dice.choice("abc de.12") for _ in range(dice.randint(low, high)))

    def asked(kind, args):
        return [Instance(kind, {}, a, 0, metadata=("t", i, 1)) for i, a in enumerate(args)]

    pairs = asked("loglikelihood", [(text(0, 30), text(1, 9) + "x") for _ in range(50)])
    for (a, greedy_a), (b, greedy_b) in zip(
        ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True
    ):
        assert a == pytest.approx(b, abs=1e-4)
        assert greedy_a == greedy_b
    kinds = [{"until": ["a"], "max_gen_toks": 7}, {"until": [" ", "12"], "max_gen_toks": 12}]
    prompts = asked("generate_until", [("p" + text(0, 30), kinds[i % 2]) for i in range(50)])
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)
    whole = asked("loglikelihood_rolling", [(text(1, 250),) for _ in range(5)])
    assert ours.loglikelihood_rolling(whole) == pytest.approx(
        theirs.loglikelihood_rolling(whole), abs=1e-3
    )


def test_model_arguments_become_a_model():
    from lm_eval.api.registry import get_model

    import whet.lm_eval as entry

    made = get_model("whet").create_from_arg_obj(
        {"pretrained": "tiny-dlm", "gen_length": 16, "block_length": 16, "samples": 2}
        | {"dtype": "float32"},
        {"batch_size": "auto", "max_batch_size": None, "device": "cuda:0"},
    )
    assert isinstance(made, entry.NamedModel)
    assert made.model.samples == 2
    assert made.gen_length == 16
    texts = made.generate_until([instance("sort 0832992864=", {"until": ["\n"]})])
    assert texts == ["0223468899"]
    with pytest.raises(OptionError, match="block_length"):
        entry.NamedModel("tiny-dlm", blok_length=4)
    with pytest.raises(OptionError, match="batch_size"):
        entry.NamedModel("tiny-dlm", batch_size="many")
    with pytest.raises(OptionError, match="float31"):
        entry.NamedModel("tiny-dlm", dtype="float31")


def test_whet_alone_never_imports_the_harness():
    code = (
        "import sys, whet, whet.evaluate, whet.bench.eval_models; print('lm_eval' in sys.modules)"
    )
    assert command([sys.executable, "-c", code]).stdout.strip() == "False"


def test_the_command_line_is_the_harnesss_own(toys):
    words = "--model whet --model_args pretrained=tiny-dlm,decoder=low-confidence,steps=16"
    words += f" --tasks whet_sort --limit 2 --include_path {toys}"
    made = command([sys.executable, "-m", "whet.lm_eval", *words.split()])
    assert "acc_strict" in made.stdout


def command(words):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    made = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert made.returncode == 0, made.stderr[-2000:]
    return made
