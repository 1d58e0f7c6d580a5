"""One model over many problems: what is asked, and what a log makes of a second run."""

import json

import pytest

from tests.evaluate.scripted import Scripted, knowing
from whet.errors import InputError, OptionError
from whet.evaluate import Generation, draw_problems
from whet.evaluate.run import AnswerLog, Budget, plan, run_model, with_examples
from whet.tasks import get_task, problems, split_of

WHO = {"model": "scripted", "problems": {"seed": 0, "sizes": []}}


@pytest.fixture(scope="module")
def asked():
    return draw_problems([get_task("sum"), get_task("sort")], 20, seed=3)


def run(model, asked, log=None, **budget):
    planned = plan(model, asked, budget=Budget(**budget))
    return run_model(model, asked, plan=planned, log=log)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- budget ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"reasoning": -1.0}, "reasoning=-1.0 must be at least 0"),
        ({"reasoning": float("inf")}, "reasoning=inf"),
        ({"temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_budgets_that_cannot_be(setting, says):
    with pytest.raises(OptionError, match=says):
        Budget(**setting)


def test_working_is_a_multiple_of_the_answers_tokens(asked):
    model = Scripted(str)
    sum_, sort = asked[0], asked[1]
    long = len(sum_.instance.example)
    assert Budget().expected(model, sum_) == long * 5  # the suite's allowance is four times
    assert Budget().expected(model, sort) == len(sort.instance.example)
    assert Budget(reasoning=0.5).expected(model, sum_) == -(-long * 3 // 2)
    assert Budget(reasoning=0).expected(model, sum_) == long


def test_only_problems_that_fit_the_context_are_asked(asked):
    lengths = [len(p.instance.prompt) + Budget().expected(Scripted(str), p) for p in asked]
    context = sorted(lengths)[len(lengths) // 2]
    for canvas in (False, True):
        model = Scripted(str, context=context, canvas=canvas)
        made = plan(model, asked, budget=Budget())
        assert set(made.requests) == {i for i, n in enumerate(lengths) if n <= context}
        assert set(made.skipped) == set(range(len(asked))) - set(made.requests)
        assert 0 < len(made.skipped) < len(asked)
        assert all("tokens are expected, the context leaves" in w for w in made.skipped.values())
        for i, request in made.requests.items():
            assert len(request.prompt) + request.max_new_tokens <= context
            assert request.max_new_tokens >= Budget().expected(model, asked[i])
            assert request.request == i


def test_a_canvas_holds_the_longest_answer_of_its_task_in_steps_of_sixteen(asked):
    model = Scripted(str, canvas=True)
    made = plan(model, asked, budget=Budget())
    for name in ("sum", "sort"):
        mine = [i for i, p in enumerate(asked) if p.task.id == name]
        longest = max(Budget().expected(model, asked[i]) for i in mine)
        canvas = {made.requests[i].max_new_tokens for i in mine}
        assert canvas == {-(-longest // 16) * 16}
    free = plan(Scripted(str), asked, budget=Budget())
    assert {r.max_new_tokens for r in free.requests.values()} == {1024}


def test_a_canvas_that_the_context_cuts_keeps_whole_steps_where_answers_fit(asked):
    for budget in (Budget(), Budget(max_new_tokens=150)):
        for context in range(150, 260, 7):
            model = Scripted(str, context=context, canvas=True)
            for i, request in plan(model, asked, budget=budget).requests.items():
                need = budget.expected(model, asked[i])
                room = context - len(request.prompt)
                assert need <= request.max_new_tokens <= room
                if request.max_new_tokens not in (need, budget.max_new_tokens):
                    assert request.max_new_tokens % 16 == 0


def test_a_given_budget_is_kept_and_leaves_out_what_needs_more(asked):
    model = Scripted(str)
    need = [Budget().expected(model, p) for p in asked]
    limit = sorted(need)[9]
    made = plan(model, asked, budget=Budget(max_new_tokens=limit, temperature=0.7))
    assert set(made.requests) == {i for i, n in enumerate(need) if n <= limit}
    assert {r.max_new_tokens for r in made.requests.values()} == {limit}
    assert {r.temperature for r in made.requests.values()} == {0.7}
    assert {why.partition(",")[2] for why in made.skipped.values()} == {f" the budget is {limit}"}


def test_a_model_without_room_is_asked_nothing(asked):
    model = Scripted(str, context=4)
    outcomes = run(model, asked)
    assert {o.bucket for o in outcomes} == {"skipped_budget"}
    assert model.asked == []


# --- solved examples ------------------------------------------------------------------------------


def test_shots_are_solved_training_problems_and_never_test_problems(asked):
    prompts = with_examples(asked, 3, seed=3)
    test_prompts = {p.instance.prompt for p in draw_problems([get_task("sum")], 200, seed=3)}
    for problem, prompt in zip(asked, prompts, strict=True):
        ends = shown_before(problem.task, problem.instance.prompt)
        assert prompt.endswith(ends)
        shown = list(problems(problem.task, seed=3, split="train", count=3))
        assert [split_of(i.key) for i in shown] == ["train"] * 3
        solved = "".join(f"{shown_before(problem.task, i.prompt)}{i.example}\n\n" for i in shown)
        assert prompt == solved + ends
        assert not test_prompts & {i.prompt for i in shown}
    assert with_examples(asked, 0, seed=3) == [p.instance.prompt for p in asked]
    assert with_examples(asked, 3, seed=4) != prompts


def shown_before(task, prompt):
    return f"Problem: {prompt}\n" if task.separator else prompt


def test_a_model_that_goes_on_with_another_problem_is_stopped():
    """Base models answer, then write the next problem and its answer."""
    asked = draw_problems([get_task("sum"), get_task("sort")], 4, seed=0)
    prompts = with_examples(asked, 2, seed=0)
    made = plan(Scripted(str, context=4000), asked, budget=Budget(), prompts=prompts)
    for index, problem in enumerate(asked):
        wanted = ("\nProblem: ",) if problem.task.id == "sum" else ()
        assert made.requests[index].stop == wanted
    plain = plan(Scripted(str, context=4000), asked, budget=Budget())
    assert {r.stop for r in plain.requests.values()} == {()}


def test_every_setting_of_a_task_has_examples_of_its_own():
    tasks = [get_task("sudoku:min_blanks=2,max_blanks=2"), get_task("sudoku:min_blanks=9")]
    asked = draw_problems(tasks, 4, seed=0)
    for problem, prompt in zip(asked, with_examples(asked, 2, seed=0), strict=True):
        shown = prompt[: -len(problem.instance.prompt)].split("\n\n")[:2]
        blanks = [text.partition("=")[0].count(".") for text in shown]
        least = problem.task.min_blanks
        assert all(b == 2 for b in blanks) if least == 2 else all(b >= 9 for b in blanks)


def test_tasks_for_evaluation_only_show_none_of_their_problems():
    asked = draw_problems([get_task("tower_hanoi")], 2, seed=0)
    with pytest.raises(InputError, match="too few problems to show some solved"):
        with_examples(asked, 1, seed=0)
    with pytest.raises(OptionError, match="shots=-1 must be at least 0"):
        with_examples(asked, -1, seed=0)


# --- the log --------------------------------------------------------------------------------------


def test_outcomes_keep_the_order_of_the_problems_and_every_bucket_is_counted(asked):
    silent, broken, lost = asked[0].instance, asked[2].instance, asked[4].instance
    said = {
        silent.prompt: "",
        broken.prompt: Generation(text="", tokens=0, finish="failed", error="status 500"),
        lost.prompt: Generation(text="so far 12", tokens=9, finish="length"),
    }
    known = knowing(asked, wrong={asked[1].id})
    outcomes = run(Scripted(lambda p: said[p] if p in said else known(p)), asked)
    assert [o.problem.id for o in outcomes] == [p.id for p in asked]
    found = [o.bucket for o in outcomes]
    assert found[:5] == ["unparsed", "wrong", "failed", "correct", "truncated"]
    assert found[5:] == ["correct"] * 15


def test_a_second_run_asks_only_for_what_the_first_left(asked, tmp_path):
    path, say = tmp_path / "log.jsonl", knowing(asked)
    whole = run(Scripted(say), asked)

    class Killed(Exception):
        pass

    def mortal(prompt):
        if len(first.asked) > 7:
            raise Killed
        return say(prompt)

    first = Scripted(mortal)
    with pytest.raises(Killed):
        run(first, asked, AnswerLog.open(path, WHO))
    with path.open("a") as file:
        file.write('{"id": "sum-12')  # the line that the kill cut
    second = Scripted(say)
    done = []
    planned = plan(second, asked, budget=Budget())
    log = AnswerLog.open(path, WHO)
    outcomes = run_model(second, asked, plan=planned, log=log, on_done=done.append)
    assert outcomes == whole
    assert done == list(range(7, 21))
    assert len(first.asked) == 8
    assert len(second.asked) == 13
    written = lines(path)
    assert written[0] == {"format": "whet-answers-1", **WHO}
    assert sorted(v["id"] for v in written[1:]) == sorted(p.id for p in asked)
    assert {v["bucket"] for v in written[1:]} == {"correct"}
    third = Scripted(say)
    assert run(third, asked, AnswerLog.open(path, WHO)) == whole
    assert third.asked == []


def test_a_request_that_failed_has_no_answer_and_is_asked_again(asked, tmp_path):
    path = tmp_path / "log.jsonl"
    failed = Generation(text="", tokens=0, finish="failed", error="no answer")
    outcomes = run(Scripted(lambda p: failed), asked, AnswerLog.open(path, WHO))
    assert {o.bucket for o in outcomes} == {"failed"}
    model = Scripted(knowing(asked))
    assert all(o.correct for o in run(model, asked, AnswerLog.open(path, WHO)))
    assert len(model.asked) == len(asked)
    assert {g.finish for g in AnswerLog.read(path).answers.values()} == {"stop"}


def test_verdicts_in_a_log_are_not_believed(asked, tmp_path):
    path = tmp_path / "log.jsonl"
    run(Scripted(lambda p: "?!"), asked, AnswerLog.open(path, WHO))
    header, *answers = lines(path)
    forged = [v | {"bucket": "correct", "strict": True, "reason": ""} for v in answers]
    path.write_text("".join(json.dumps(v) + "\n" for v in [header, *forged]))
    outcomes = run(Scripted(str), asked, AnswerLog.open(path, WHO))
    assert not any(o.correct for o in outcomes)


@pytest.mark.parametrize("text", ["\ud800 half", "\x00\u2028\x85\r\n\\", "9" * (1 << 20)])
def test_any_text_survives_the_log(text, asked, tmp_path):
    path = tmp_path / "log.jsonl"
    first = run(Scripted(lambda p: text), asked[:2], AnswerLog.open(path, WHO))
    assert [g.text for g in AnswerLog.read(path).answers.values()] == [text, text]
    assert run(Scripted(str), asked[:2], AnswerLog.open(path, WHO)) == first


def test_answers_of_other_settings_are_refused_and_kept(asked, tmp_path):
    path = tmp_path / "log.jsonl"
    run(Scripted(knowing(asked)), asked, AnswerLog.open(path, WHO))
    before = path.read_bytes()
    for other, field in (
        ({**WHO, "model": "another"}, "model"),
        ({**WHO, "problems": {"seed": 1, "sizes": []}}, "problems"),
        ({**WHO, "shots": 2}, "shots"),
    ):
        with pytest.raises(InputError, match=rf"of other settings \({field}\): use another --out"):
            AnswerLog.open(path, other)
    assert path.read_bytes() == before


def test_a_log_without_answers_keeps_nobody_out(asked, tmp_path):
    path = tmp_path / "log.jsonl"
    header = json.dumps({"format": "whet-answers-1", **WHO})
    for begun in ("", header[:9], header[:40], header, header + "\n"):
        path.write_text(begun)
        AnswerLog.open(path, {**WHO, "shots": 2})
        assert lines(path) == [{"format": "whet-answers-1", **WHO, "shots": 2}]


def test_answers_to_another_prompt_are_refused(asked, tmp_path):
    path = tmp_path / "log.jsonl"
    run(Scripted(knowing(asked)), asked, AnswerLog.open(path, WHO))
    model = Scripted(knowing(asked))
    planned = plan(model, asked, budget=Budget(), prompts=with_examples(asked, 1, seed=3))
    with pytest.raises(InputError, match="had another prompt, use another --out"):
        run_model(model, asked, plan=planned, log=AnswerLog.open(path, WHO))


def damaged(values):
    """Whole lines that no run wrote."""
    answer = values[1]
    yield "not json\n"
    yield json.dumps(values[0])[:-1] + "\n" + json.dumps(answer) + "\n"
    yield json.dumps({"format": "whet-answers-2"}) + "\n" + json.dumps(answer) + "\n"
    yield "[]\n" + json.dumps(answer) + "\n"
    for change in (
        {"text": 5},
        {"text": None},
        {"tokens": "x"},
        {"finish": "banana"},
        {"forwards": [1]},
        {"prompt": None},
        {"id": []},
    ):
        yield json.dumps(values[0]) + "\n" + json.dumps(answer | change) + "\n"
    gone = {k: v for k, v in answer.items() if k != "finish"}
    yield json.dumps(values[0]) + "\n" + json.dumps(gone) + "\n"
    yield json.dumps(values[0]) + "\n" + json.dumps(answer)[:30] + "\n" + json.dumps(answer) + "\n"


def test_a_damaged_log_is_refused_and_kept(asked, tmp_path):
    path = tmp_path / "log.jsonl"
    run(Scripted(knowing(asked)), asked[:3], AnswerLog.open(path, WHO))
    for text in damaged(lines(path)):
        path.write_text(text)
        for read in (AnswerLog.read, lambda p: AnswerLog.open(p, WHO)):
            with pytest.raises(InputError, match="is no log of answers"):
                read(path)
        assert path.read_text() == text
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="is no log of answers"):
        AnswerLog.read(path)
    with pytest.raises(InputError, match="cannot read"):
        AnswerLog.read(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        AnswerLog.open(tmp_path, WHO)
    with pytest.raises(InputError, match="cannot write"):
        AnswerLog.open(path / "log.jsonl", WHO)


def test_a_full_disk_names_the_log_and_keeps_what_was_answered(asked, tmp_path, monkeypatch):
    from pathlib import Path

    path = tmp_path / "log.jsonl"
    log = AnswerLog.open(path, WHO)
    real, count = Path.open, []

    def full(self, mode="r", *args, **kwargs):
        if mode == "a" and self == path:
            count.append(1)
            if len(count) > 5:
                raise OSError(28, "No space left on device")
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"log.jsonl: No space left.*the same command goes on"):
        run(Scripted(knowing(asked)), asked, log)
    monkeypatch.undo()
    assert len(lines(path)) == 6
