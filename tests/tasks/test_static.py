"""Benchmarks from local files, written here: reading, prompts, scores, presets."""

import gzip
import json
import time

import pytest

from whet.dlm.decoders import decoder_options
from whet.errors import InputError, OptionError
from whet.tasks.static import PRESETS, STATIC, StaticTask, get_preset, get_static, latex
from whet.tasks.static.base import StaticProblem
from whet.tasks.static.code import fenced

GSM = [
    {"question": f"Tom has {n} pens and buys 2. How many?", "answer": f"{n}+2=<<{n}+2={n + 2}>>"
     f"{n + 2}\nSo he has {n + 2}.\n#### {n + 2:,}"}
    for n in (1, 5, 1998, 7)
]  # fmt: skip
MATH = [
    {"problem": "Half of one?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "Level 1"},
    {"problem": "Two?", "solution": r"$1+1=\boxed{2}$.", "answer": "2", "unique_id": "two"},
]
HUMAN = [
    {
        "task_id": "Human/0",
        "prompt": 'import math\n\n\ndef half(x):\n    """ Half of x """\n',
        "canonical_solution": "    return x / 2\n",
        "test": "def check(candidate):\n    assert candidate(4) == 2\n    assert math.pi > 3\n",
        "entry_point": "half",
    }
]
MBPP = [
    {
        "task_id": n,
        "text": f"Write a function that adds {n}.",
        "code": f"def add(x):\r\n  return x + {n}",
        "test_list": [f"assert add(1) == {1 + n}", f"assert add(0) == {n}"],
        "test_setup_code": "",
    }
    for n in (1, 2, 3, 4, 5, 11, 12, 510, 511, 601)
]


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "gsm8k" / "test.jsonl", GSM[:2])
    write(tmp_path / "gsm8k" / "train.jsonl", GSM[2:])
    write(tmp_path / "math" / "test.jsonl", MATH)
    write(tmp_path / "humaneval" / "HumanEval.jsonl.gz", HUMAN)
    write(tmp_path / "mbpp" / "mbpp.jsonl", MBPP)
    return tmp_path


def execute(program):
    """Runs what this file wrote; real answers go to the sandbox."""
    try:
        exec(program, {"__name__": "__main__"})
    except Exception:  # noqa: BLE001 - whatever a wrong program raises
        return False
    return True


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(STATIC))
def test_every_benchmark_loads_from_the_folder_above_or_its_own(name, data, monkeypatch):
    task = STATIC[name]
    problems = task.load(data)
    assert problems
    assert len({p.id for p in problems}) == len(problems)
    assert task.load(str(data / task.folder)) == problems
    monkeypatch.setenv("WHET_DATA", str(data))
    assert task.load() == problems
    assert task.metrics
    assert task.max_new_tokens > 0
    assert isinstance(task, StaticTask)


def test_zipped_and_plain_files_and_odd_line_ends_read_alike(data):
    (plain,) = get_static("humaneval").load(data)
    (data / "humaneval" / "HumanEval.jsonl.gz").unlink()
    text = json.dumps({**HUMAN[0], "note": "a\u2028b\u0085c"}, ensure_ascii=False)
    (data / "humaneval" / "HumanEval.jsonl").write_bytes(f"\ufeff{text}\r\n\r\n".encode())
    assert get_static("humaneval").load(data) == [plain]


def test_the_cleaned_edition_of_mbpp_reads_as_a_list(tmp_path):
    records = [
        {
            "task_id": 11,
            "prompt": "Add.",
            "code": "def f(): return math.pi",
            "test_list": ["assert f() > 3"],
            "test_imports": ["import math"],
        }
    ]
    (tmp_path / "sanitized-mbpp.json").write_text(json.dumps(records))
    task = get_static("mbpp")
    (problem,) = task.load(tmp_path)
    assert task.score(problem, problem.target, execute) == {"pass@1": 1.0}


def test_mbpp_has_the_papers_splits(data):
    task = get_static("mbpp")
    assert [p.id for p in task.load(data)] == ["mbpp-11", "mbpp-12", "mbpp-510"]
    assert [p.id for p in task.fewshot(data, 3)] == ["mbpp-2", "mbpp-3", "mbpp-4"]


def test_no_folder_says_how_to_name_one(monkeypatch, tmp_path):
    monkeypatch.delenv("WHET_DATA", raising=False)
    with pytest.raises(OptionError, match=r"'gsm8k' reads local files: .* --data or in WHET_DATA"):
        get_static("gsm8k").load()
    with pytest.raises(InputError, match=r"data folder .*nowhere does not exist"):
        get_static("gsm8k").load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"'gsm8k' needs test\.jsonl \(or \.gz\) in .*gsm8k or "):
        get_static("gsm8k").load(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"question": "q", "answer": "#### 1"}\n{"question": ', "test.jsonl, line 2 is no JSON"),
        ("[1]", r"line 1 must be a record \{...\}, not list"),
        ('{"questoin": "q", "answer": "#### 1"}', "no field 'question': did you mean 'questoin'"),
        ('{"question": 3, "answer": "#### 1"}', "field 'question' is int, it must be str"),
        ('{"question": "q", "answer": "1"}', 'field "answer" must end with #### and a number'),
        ("\n\n", "holds no problem"),
        ("[" * 100000, "line 1 is no JSON"),
    ],
)
def test_a_bad_line_is_named_with_the_reason(text, why, tmp_path):
    (tmp_path / "test.jsonl").write_text(text)
    with pytest.raises(InputError, match=why):
        get_static("gsm8k").load(tmp_path)


def test_damaged_files_and_repeated_ids_are_refused(data):
    path = data / "humaneval" / "HumanEval.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot read"):
        get_static("humaneval").load(data)
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match="cannot read"):
        get_static("humaneval").load(data)
    write(path, HUMAN * 2)
    with pytest.raises(InputError, match="has problem 'Human/0' twice"):
        get_static("humaneval").load(data)
    (data / "gsm8k" / "test.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot read"):
        get_static("gsm8k").load(data)
    write(data / "mbpp" / "mbpp.jsonl", [{**MBPP[5], "test_list": [1]}])
    with pytest.raises(InputError, match="field 'test_list' must be a list of texts"):
        get_static("mbpp").load(data)


def test_an_unknown_name_says_the_nearest():
    with pytest.raises(
        OptionError, match="unknown benchmark 'humanevil': did you mean 'humaneval'"
    ):
        get_static("humanevil")


# --- prompts --------------------------------------------------------------------------------------


def test_gsm8k_prompts_show_the_training_split_only(data):
    task = get_static("gsm8k")
    problem = task.load(data)[0]
    shots = task.fewshot(data, 2)
    assert task.prompt(problem, shots) == (
        "Question: Tom has 1998 pens and buys 2. How many?\n"
        "Answer: 1998+2=<<1998+2=2000>>2000\nSo he has 2000.\n#### 2,000\n\n"
        "Question: Tom has 7 pens and buys 2. How many?\n"
        "Answer: 7+2=<<7+2=9>>9\nSo he has 9.\n#### 9\n\n"
        "Question: Tom has 1 pens and buys 2. How many?\nAnswer:"
    )
    assert task.prompt(problem) == "Question: Tom has 1 pens and buys 2. How many?\nAnswer:"
    cot = get_static("gsm8k_cot")
    assert cot.prompt(problem, shots[:1]) == (
        "Q: Tom has 1998 pens and buys 2. How many?\n"
        "A: 1998+2=2000 So he has 2000. The answer is 2,000.\n\n"
        "Q: Tom has 1 pens and buys 2. How many?\nA:"
    )


def test_a_problem_is_never_its_own_example(data):
    task = get_static("gsm8k")
    problem = task.load(data)[0]
    with pytest.raises(OptionError, match="'gsm8k-1' is among its own examples"):
        task.prompt(problem, [problem])


def test_examples_that_do_not_exist_are_refused(data):
    with pytest.raises(OptionError, match="shots=3: task 'gsm8k' has 2 to show"):
        get_static("gsm8k").fewshot(data, 3)
    with pytest.raises(OptionError, match="'humaneval' has no training problems: shots must be 0"):
        get_static("humaneval").fewshot(data, 1)
    with pytest.raises(OptionError, match="shots=-1"):
        get_static("gsm8k").fewshot(data, -1)
    assert get_static("humaneval").fewshot(data, 0) == []
    with pytest.raises(OptionError, match="has no train split"):
        get_static("humaneval").load(data, "train")


@pytest.mark.parametrize("name", sorted(STATIC))
def test_an_answer_as_the_examples_show_it_scores_full_marks(name, data):
    task = STATIC[name]
    for problem in task.load(data):
        text = task.solution(problem)
        assert set(task.score(problem, text, execute)) == set(task.metrics)
        assert all(task.score(problem, text, execute).values())
        assert not any(task.score(problem, "", execute).values())
        # What follows the answer does not count.
        later = f"{text}{task.stop[0]} 12345 #### 12345 \\boxed{{12345}}"
        assert all(task.score(problem, later, execute).values())


def test_code_prompts(data):
    task = get_static("humaneval")
    (problem,) = task.load(data)
    assert task.prompt(problem) == HUMAN[0]["prompt"]
    task = get_static("mbpp")
    prompt = task.prompt(task.load(data)[0], task.fewshot(data, 1))
    assert prompt.count("[BEGIN]") == 2
    assert prompt.count("[DONE]") == 1
    assert prompt.endswith("assert add(1) == 12\nassert add(0) == 11\n[BEGIN]\n")


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("so 3 - 1 = 2.\n#### 2,000", 1, 1),
        ("#### 2000.", 1, 1),
        ("#### $2000", 1, 1),
        ("#### 2000.0 dollars", 1, 1),
        ("#### 2000\nQuestion: next\n#### 5", 1, 1),
        ("#### 5\n#### 2000", 0, 1),
        ("The answer is 2000.", 0, 1),
        ("The answer is $2,000...", 0, 1),
        ("2000 and then ...", 0, 1),
        ("#### two thousand", 0, 0),
        ("#### -2000", 0, 0),
        ("#### 20000", 0, 0),
        ("#### 2000 or 3", 1, 0),
        ("", 0, 0),
        ("####", 0, 0),
    ],
)
def test_gsm8k_scores_the_stated_number_and_the_last_one(text, strict, flexible):
    problem = StaticProblem(id="x", prompt="?", target="2000")
    assert get_static("gsm8k").score(problem, text) == {"strict": strict, "flexible": flexible}


def test_gsm8k_cot_reads_the_sentence():
    problem = StaticProblem(id="x", prompt="?", target="2000")
    score = get_static("gsm8k_cot").score
    assert score(problem, "so the answer is $2,000.")["strict"] == 1
    assert score(problem, "The answer is therefore odd. The answer is 2000.")["strict"] == 1
    assert score(problem, "The answer is −2000.")["strict"] == 0
    assert score(StaticProblem(id="x", prompt="?", target="-5"), "The answer is −5.")["strict"] == 1
    assert score(problem, "#### 2000") == {"strict": 0, "flexible": 1}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\frac{1}{2}", r"\dfrac12"),
        (r"\frac{1}{2}", "1/2"),
        (r"\frac{1}{2}", ".5"),
        (r"\frac{-1}{2}", r"-\frac{1}{2}"),
        (r"1\frac{1}{2}", "3/2"),
        (r"2\frac{3}{4}", "2.75"),
        (r"\frac{\sqrt{2}}{2}", r"\dfrac{\sqrt2}{2}"),
        (r"\frac{x+1}{y}", r"\tfrac{x + 1}{y}"),
        (r"10\text{ cm}^2", "10"),
        (r"30^\circ", "30"),
        (r"50\%", "50"),
        ("1,234", "1234"),
        (r"12{,}345", "12345"),
        ("$x=3$", "3"),
        (r"\left(1, 2\right)", "(1,2)"),
        (r"\text{even}", "even"),
        (r"2\cdot 3^{x}", "2*3^{x}"),
        (r"x \leq 3", r"x\le3"),
        ("5.", "5"),
        (r"3.0", "3"),
        (r"\$18.90", "18.90"),
        (r"$\$18.90$", "18.9"),
        (r"18.90\$", "18.90"),
        (r"\$32,\!500", "32500"),
        (r"\$1{,}234{,}567.50", "1234567.5"),
        ("2^{10}", "2^10"),
        ("x^{2}y", "x^2 y"),
        ("x_{1}", "x_1"),
        (r"\frac{x^{2}}{y}", r"\frac{x^2}{y}"),
        (r"\frac{\pi}{2}", r"\pi/2"),
        (r"\frac\pi2", r"\pi/2"),
        (r"\frac{3\pi}{4}", r"3\pi / 4"),
        (r"\frac{3 \pi}{4}", r"\dfrac{3\pi}{4}"),
        (r"\frac{\sqrt{2}}{2}", r"\sqrt{2}/2"),
        ("1 1/2", r"1\frac{1}{2}"),
        ("2 x", "2x"),
    ],
)
def test_ways_of_writing_one_answer_are_the_same(a, b):
    assert latex.same(a, b)
    assert latex.same(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"1\frac{1}{2}", "11/2"),
        (r"\frac{1}{2}", r"\frac{2}{1}"),
        ("(1,2)", "(2,1)"),
        ("(1,234)", "(1234)"),
        ("x", "X"),
        ("", ""),
        ("-3", "3"),
        (r"\sqrt{2}", "2"),
        ("x=3,y=4", "4"),
        ("2", "2x"),
        (r"\pi", "p"),
        ("12", "1 2"),
        ("1 1/2", "11/2"),
        ("2^{1}0", "2^{10}"),
        ("2^{x+1}", "2^x+1"),
        ("x^{2y}", "x^{2}y"),
        (r"\frac{1+\pi}{2}", r"1+\pi/2"),
        (r"\frac{1}{2\pi}", r"1/2\pi"),
        (r"\$18.90", "8.90"),
    ],
)
def test_other_answers_are_not(a, b):
    assert not latex.same(a, b)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{1} so \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a} and \boxed{open", "a"),
        (r"\boxed 7 done", "7"),
        (r"\fbox no, \fboxed{x_{1}}", "x_{1}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        ("nothing", None),
        (r"\boxed{" * 5000, None),
    ],
)
def test_the_last_closed_box_is_read(text, found):
    assert latex.boxed(text) == found


def test_math_takes_the_box_then_the_sentence(data):
    task = get_static("minerva_math")
    half, two = task.load(data)
    assert (half.target, half.id, two.id) == (r"\frac{1}{2}", "math-1", "two")
    for text, right in [
        (r"Thus \boxed{0.5}.", 1),
        ("Final Answer: The final answer is $\\frac12$. I hope it is correct.", 1),
        (r"The answer is 1/2. No: \boxed{2}", 0),
        ("1/2", 0),
    ]:
        assert task.score(half, text) == {"exact_match": right}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("    return x / 2", True),
        ("    return x / 2\ndef other():\n    oops oops", True),
        ("    return x / 2\nprint(half(2), 1 / 0)", True),
        ("    return x", False),
        ("```python\ndef half(x):\n    return x / 2\n```\nThis works.", True),
        ("Sure:\n```\n    return x / 2\n```", True),
        ("```python\ndef half(x):\n    return math.floor(x / 2)", True),
        ("def half(x):\n    return x / 2", True),
        ("here you are", False),
    ],
)
def test_humaneval_takes_bodies_and_blocks(text, right, data):
    task = get_static("humaneval")
    (problem,) = task.load(data)
    assert task.score(problem, text, execute) == {"pass@1": float(right)}


HALF = "def half(x):\n    return two(x)\n"
BLOCKS = [
    (["def two(x):\n    return x / 2\n", HALF], True),
    (["import fractions\n\n\n# mine\n@staticmethod\ndef two(x):\n    return x / 2\n", HALF], True),
    (["def half(x):\n    return x\n", "def half(x):\n    return x / 2\n"], True),
    (["def half(x):\n    return x / 2\n", "def half(x):\n    return x\n"], False),
    (["def half(x):\n    return x / 2\n", "print(half(1))\nundefined()"], True),
    (["undefined()\ndef two(x):\n    return 1\n", "half = lambda x: x / 2\n"], True),
    (["", "def half(x):\n    return x / 2\n"], True),
    (["    return x / 2", "half(1) == 0.5\nundefined()"], True),
    (["print(half == 1)\nundefined()", "async def halfway(x): pass"], False),
]


@pytest.mark.parametrize(("blocks", "right"), BLOCKS)
def test_of_several_blocks_the_last_that_defines_the_function_counts(blocks, right, data):
    text = "".join(f"So:\n```python\n{block.rstrip()}\n```\n" for block in blocks)
    problem = get_static("humaneval").load(data)[0]
    assert get_static("humaneval").score(problem, text, execute) == {"pass@1": float(right)}
    if "    return x / 2" not in blocks:  # a body is an answer to HumanEval only
        test = StaticProblem(
            id="x",
            prompt="?",
            target=HALF,
            data={"tests": ["assert abs(half(4)) == 2"], "setup": ""},
        )
        assert get_static("mbpp").score(test, text, execute) == {"pass@1": float(right)}


@pytest.mark.parametrize(
    "piece", ["```", "``` ", "```   \t", "```x\n", "```\n ```", "\n   ```", "`"]
)
def test_odd_fences_are_read_in_time_in_step_with_their_length(piece):
    # A quadratic search takes minutes at this length.
    text = piece * (400_000 // len(piece))
    started = time.process_time()
    fenced(text, ("f",))
    fenced("```" + " " * 400_000, ("f",))
    assert time.process_time() - started < 20


def test_many_answers_are_judged_in_one_call_and_as_one_by_one(data):
    task = get_static("humaneval")
    problem = task.load(data)[0]
    texts = ["    return x / 2", "    return x", "    return x / 2", "no program"]
    asked = []

    def execute_many(programs):
        asked.append(list(programs))
        return [execute(program) for program in programs]

    found = task.score_many([problem] * 4, texts, execute_many)
    assert found == [task.score(problem, text, execute) for text in texts]
    assert [score["pass@1"] for score in found] == [1, 0, 1, 0]
    assert [len(programs) for programs in asked] == [3]
    with pytest.raises(OptionError, match="'humaneval' is scored by running programs"):
        task.score_many([problem], ["x"])
    with pytest.raises(OptionError, match="there are 1 texts for 2 problems"):
        task.score_many([problem] * 2, ["x"], execute_many)
    with pytest.raises(ValueError, match="shorter"):
        task.score_many([problem], ["x"], lambda programs: [])
    assert task.score_many([], [], execute_many) == []


def test_tasks_without_programs_score_many_texts_without_running_any():
    problem = StaticProblem(id="x", prompt="?", target="2")
    found = get_static("gsm8k").score_many([problem] * 2, ["#### 2", "#### 3"])
    assert [score["strict"] for score in found] == [1, 0]


def test_mbpp_takes_text_up_to_done_and_blocks(data):
    task = get_static("mbpp")
    problem = task.load(data)[0]
    for text, right in [
        ("def add(x):\n    return x + 11\n[DONE]\nnonsense here", True),
        ("[BEGIN]\nadd = lambda x: x + 11\n[DONE]", True),
        ("```python\nadd = lambda x: x + 11\n```\nas asked", True),
        ("add = lambda x: x", False),
    ]:
        assert task.score(problem, text, execute) == {"pass@1": float(right)}


def test_programs_are_not_run_by_the_task_itself(data):
    for name in ("humaneval", "mbpp"):
        task = get_static(name)
        problem = task.load(data)[0]
        with pytest.raises(OptionError, match=f"'{name}' is scored by running programs"):
            task.score(problem, "import os")
        assert isinstance(task.program(problem, ""), str)
    assert get_static("gsm8k").program(StaticProblem(id="x", prompt="", target="1"), "1") is None


# --- presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_a_decoder_of_ours_on_a_benchmark_of_ours(name):
    preset = get_preset(name)
    assert preset.task in STATIC
    assert name.partition(":")[2].startswith(preset.task)
    options = decoder_options(preset.decoder, preset.settings)
    # As many steps as tokens, in blocks that divide the canvas, is what all of these papers do.
    assert options.steps == preset.gen_length
    assert preset.gen_length % (options.block_length or preset.gen_length) == 0
    assert preset.reported is None or 0 < preset.reported < 100


def test_presets_have_the_published_numbers():
    semi = get_preset("llada-8b-instruct:gsm8k-semi-ar")
    assert (semi.gen_length, semi.settings["block_length"], semi.reported) == (256, 8, 78.6)
    assert get_preset("llada-8b-instruct:gsm8k").settings["block_length"] == 512
    assert get_preset("llada-8b-instruct:humaneval").settings["eos"] == "suppress"
    assert get_preset("llada-8b-instruct:mbpp").settings["eos"] == "defer"
    assert get_preset("llada-8b-base:minerva_math-1024").num_fewshot == 4
    assert get_preset("dream-7b-base:humaneval").settings["top_p"] == 0.95
    with pytest.raises(OptionError, match=r"unknown preset 'llada-1\.5:gsm8': did you mean"):
        get_preset("llada-1.5:gsm8")
