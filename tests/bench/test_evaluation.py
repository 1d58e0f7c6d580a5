"""Several models on the same problems: what is drawn, compared and kept."""

import json

import pytest

from tests.evaluate.scripted import Scripted, knowing
from whet.bench.evaluation import (
    Answered,
    Draw,
    answer,
    arm_names,
    evaluation_record,
    fingerprint,
    log_name,
)
from whet.errors import InputError, OptionError
from whet.evaluate.run import AnswerLog, Budget
from whet.measure.items import align, load_items
from whet.measure.record import load, save


def answered(say, asked, name="scripted", log=None, **options):
    model = Scripted(say, name=name)
    made = answer(model, asked, chain=name, budget=Budget(), log=log, **options)
    return made, model


# --- drawing --------------------------------------------------------------------------------------


def test_a_draw_is_the_same_for_everyone_and_survives_a_log():
    draw = Draw(tasks=("sum", "sort"), sizes=(4, 8), limit=4, seed=9)
    asked, notes = draw.problems()
    assert [p.task.id for p in asked] == ["sum", "sum", "sort"] * 2 + ["sort"] * 2
    assert sorted({p.instance.size for p in asked if p.task.id == "sum"}) == [4, 8]
    assert notes == []
    kept = json.loads(json.dumps(draw.as_settings()))
    assert Draw.from_settings(kept) == draw
    again, _ = Draw.from_settings(kept).problems()
    assert [(p.id, p.instance.prompt) for p in again] == [(p.id, p.instance.prompt) for p in asked]
    other, _ = Draw(tasks=("sum", "sort"), sizes=(4, 8), limit=4, seed=10).problems()
    assert not {p.id for p in other} & {p.id for p in asked}


@pytest.mark.parametrize(
    "change",
    [{"seed": "x"}, {"n": "3"}, {"sizes": ["4"]}, {"more": 1}, {"tasks": None}, {"tasks": "sum"}],
)
def test_settings_that_no_draw_wrote_are_refused(change):
    good = Draw(tasks=("sum",), n=3).as_settings()
    for value in (good | change, {k: v for k, v in good.items() if k != "seed"}, None, []):
        with pytest.raises(InputError, match="does not say which problems it answers"):
            Draw.from_settings(value)


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (Draw(tasks=("sum",)), "give n .* or limit"),
        (Draw(tasks=("sum",), n=4, limit=4), "either n .* or limit"),
        (Draw(tasks=("gsm8k",), n=4, limit=4), "either n .* or limit"),
        (Draw(tasks=("sum",), n=0), "n=0 is too few"),
        (Draw(tasks=("sum",), limit=-1), "limit=-1 must be at least 1"),
        (Draw(tasks=("sum", "gsm8k"), n=4), "gsm8k comes from files, sum is drawn"),
        (Draw(tasks=("sum",), sizes=(1000,), n=4), "sizes 1000 are impossible"),
        (Draw(tasks=("sum",), sizes=(0,), n=4), "sizes: 0 is impossible"),
        (Draw(tasks=("beyondbench:hrad",), n=4), "did you mean 'beyondbench:hard'"),
        (Draw(tasks=("find_maximun",), n=4), "did you mean 'find_maximum'"),
        (Draw(tasks=("sum",), mode="wild", n=4), "wild"),
        (Draw(tasks=("gsm8k:x=1",), n=4), "unknown benchmark 'gsm8k:x=1'"),
    ],
)
def test_draws_that_cannot_be(draw, says):
    with pytest.raises(OptionError, match=says):
        draw.problems()


def test_a_number_of_problems_from_a_file(tmp_path):
    for name, count in (("test", 5), ("train", 1)):
        rows = [{"question": f"{name} {i}?", "answer": f"#### {i}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    draw = Draw(tasks=("gsm8k",), n=3, data=str(tmp_path), shots=1)
    asked, _ = draw.problems()
    assert [p.id for p in asked] == ["gsm8k-gsm8k-1", "gsm8k-gsm8k-2", "gsm8k-gsm8k-3"]
    for n in (0, -2):
        with pytest.raises(OptionError, match=f"n={n} must be at least 1"):
            Draw(tasks=("gsm8k",), n=n, data=str(tmp_path), shots=1).problems()
    made, _ = answered(lambda p: "#### 1", asked)
    assert [o.bucket for o in made.outcomes] == ["wrong", "correct", "wrong"]
    assert "shots" not in made.settings  # those of the draw count


def test_a_task_named_twice_is_asked_once():
    twice, _ = Draw(tasks=("tower_hanoi", "tower_hanoi"), limit=3).problems()
    once, _ = Draw(tasks=("tower_hanoi",), limit=3).problems()
    assert [p.id for p in twice] == [p.id for p in once]
    # Two settings of one task may share problems.
    names = ("sudoku:min_blanks=1,max_blanks=1", "sudoku:min_blanks=1,max_blanks=2")
    both, notes = Draw(tasks=names, n=600).problems()
    assert len({p.id for p in both}) == len(both) < 600
    assert notes == [f"{600 - len(both)} problems came twice and are asked once"]


# --- answers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked():
    return Draw(tasks=("sum", "sort"), n=12, seed=1).problems()[0]


def test_two_models_are_compared_on_the_same_problems(asked, tmp_path):
    wrong = {p.id for p in asked[:5]}
    first, _ = answered(knowing(asked, wrong=wrong), asked, "base")
    second, _ = answered(knowing(asked, wrong={asked[5].id}), asked, "better")
    draw = Draw(tasks=("sum", "sort"), n=12, seed=1)
    record = evaluation_record([first, second], draw, folder=tmp_path)
    [found] = record.comparisons
    assert (found.a, found.b) == ("better", "base")
    assert found.value == pytest.approx(4 / 12)
    # 5 problems only "better" solves, 1 only "base": exact McNemar.
    assert found.p == pytest.approx(2 * (1 + 6) / 2**6)
    save(record, tmp_path / "evaluate.json")
    kept = load(tmp_path / "evaluate.json")
    items = load_items(tmp_path / "evaluate.json", kept)
    a, b = align(items, "better", items, "base", "correct")
    assert sum(a) == 11
    assert sum(b) == 7
    assert items["ids"] == [p.id for p in asked]
    assert kept.seeds == {"problems": 1}
    assert kept.settings["tasks"] == ["sum", "sort"]
    for arm in kept.arms:
        assert sum(arm.metrics[m].value for m in ("wrong", "unparsed") if m in arm.metrics) == (
            12 - 12 * arm.metrics["accuracy"].value
        )
        assert arm.cost["tokens"] == pytest.approx(12 * arm.metrics["tokens"].value)


def test_what_one_model_skipped_is_left_out_of_the_pair(asked):
    say = knowing(asked)
    small = Scripted(say, name="small", context=60)
    first = answer(small, asked, chain="small", budget=Budget())
    second, _ = answered(say, asked, "large")
    skipped = sum(o.bucket == "skipped_budget" for o in first.outcomes)
    assert 0 < skipped < 11
    record = evaluation_record([first, second], Draw(tasks=("sum", "sort"), n=12), folder=None)
    assert f"{12 - skipped} problems, 100.0 % agree" in record.comparisons[0].test
    assert record.arms[0].metrics["accuracy"].n == 12 - skipped
    assert record.arms[0].metrics["skipped_budget"].value == skipped
    assert any(f"small: {skipped} of 12 problems skipped" in note for note in record.notes)
    none = answer(Scripted(say, name="none", context=4), asked, chain="none", budget=Budget())
    record = evaluation_record([none, second], Draw(tasks=("sum", "sort"), n=12), folder=None)
    assert record.comparisons == []
    assert set(record.arms[0].metrics) == {"skipped_budget"}


def test_shots_and_chat_reach_the_model(asked):
    made, model = answered(lambda p: "", asked, shots=2, seed=1, chat=lambda t: f"<user>{t}<end>")
    assert all(r.prompt.startswith("<user>") and r.prompt.endswith("<end>") for r in model.asked)
    assert made.settings == {"shots": 2, "chat": True, "max_new_tokens": 1024}
    assert {o.bucket for o in made.outcomes} == {"unparsed"}


def test_time_is_told_only_of_what_was_answered_at_one_go(asked, tmp_path):
    for expected in (True, False):
        log = AnswerLog.open(tmp_path / "a.jsonl", {})
        made, _ = answered(knowing(asked), asked, log=log)
        assert (made.seconds is not None) is expected
    record = evaluation_record([made], Draw(tasks=("sum", "sort"), n=12), folder=None)
    assert "seconds" not in record.arms[0].cost


def test_names_tell_arms_and_files_apart(tmp_path):
    def arm(name, chain):
        return Answered(name, chain, [])

    assert arm_names([arm("m", "soar"), arm("m", "greedy"), arm("k", "soar")]) == [
        "m, soar",
        "m, greedy",
        "k",
    ]
    assert len(set(arm_names([arm("m", "soar")] * 3))) == 3
    assert log_name("org/model-7B") == "answers-org-model-7B.jsonl"
    assert log_name("../..//é") == "answers-..-...jsonl"
    assert log_name("/") == "answers-model.jsonl"
    assert fingerprint("org/name") == ""
    assert fingerprint("tiny-dlm")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = fingerprint(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert fingerprint(str(tmp_path)) != before
