import pytest
import torch

from whet.compress.data import calibration_batches, parse_source, solved_problems, split_text
from whet.data.text import tokenise
from whet.errors import InputError, OptionError
from whet.tasks import get_task
from whet.zoo.tokenizer import byte_tokenizer, character_tokenizer

TOKENIZER = byte_tokenizer()
ZOO = character_tokenizer(["sudoku", "<think>", "</think>"])


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i}, and some more\n" for i in range(200)))
    return path


def rows_of(batches):
    return [
        row[mask.bool()].tolist()
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_windows_are_runs_of_the_text_and_depend_on_seed_and_number_alone(text):
    whole = tokenise(TOKENIZER, text).tolist()
    batches = calibration_batches(TOKENIZER, text, count=7, length=32, batch_size=3, seed=1)
    assert [tuple(b["input_ids"].shape) for b in batches] == [(3, 32), (3, 32), (1, 32)]
    assert all(bool(b["attention_mask"].all()) for b in batches)
    rows = rows_of(batches)
    assert all(any(whole[i : i + 32] == row for i in range(len(whole) - 31)) for row in rows)
    fewer = calibration_batches(TOKENIZER, text, count=5, length=32, batch_size=8, seed=1)
    assert rows_of(fewer) == rows[:5]
    assert rows_of(calibration_batches(TOKENIZER, text, count=5, length=32, seed=2)) != rows[:5]


def test_windows_reach_both_ends_of_the_text(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("abcdef")
    rows = rows_of(calibration_batches(TOKENIZER, path, count=40, length=5))
    assert {tuple(row) for row in rows} == {
        tuple(TOKENIZER("abcde")["input_ids"]),
        tuple(TOKENIZER("bcdef")["input_ids"]),
    }


def test_what_is_held_out_is_whole_lines_that_no_window_touches(text):
    head, tail = split_text(text, 0.25)
    assert head + tail == text.read_text()
    assert head.endswith("\n")
    assert len(tail) >= 0.25 * len(head + tail)
    seen = calibration_batches(TOKENIZER, text, count=300, length=16, held_out=0.25)
    assert all(TOKENIZER.decode(row) in head for row in rows_of(seen))
    assert split_text(text, 0.0) == (text.read_text(), "")


def test_texts_are_cut_and_padded_on_the_right():
    texts = ["abc", "a longer text than the others", "de"]
    (batch,) = calibration_batches(TOKENIZER, texts, count=9, length=10)
    assert batch["input_ids"].shape == (3, 10)
    assert batch["attention_mask"].sum(-1).tolist() == [3, 10, 2]
    assert bool((batch["attention_mask"].diff(dim=-1) <= 0).all())
    assert [TOKENIZER.decode(row) for row in rows_of([batch])] == ["abc", "a longer t", "de"]


def test_of_many_texts_some_are_drawn_by_the_seed():
    texts = [f"text {i}" for i in range(50)]
    drawn = [
        [
            TOKENIZER.decode(r)
            for r in rows_of(calibration_batches(TOKENIZER, texts, count=5, seed=s))
        ]
        for s in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5
    assert set(drawn[0]) <= set(texts)


def test_tasks_give_solved_problems_of_the_training_split():
    rows = rows_of(calibration_batches(ZOO, "tasks:scratchpad", count=14, length=200))
    assert len(rows) == 14
    assert all(row[-1] == ZOO.eos_token_id for row in rows)
    task = get_task("sudoku")
    train = solved_problems(ZOO, "tasks:sudoku", 20, seed=0, split="train")
    test = solved_problems(ZOO, "tasks:sudoku", 20, seed=0, split="test")
    prompts = [{tuple(problem) for problem, _ in part} for part in (train, test)]
    assert len(prompts[0]) == 20
    assert not prompts[0] & prompts[1]
    assert ZOO.decode(train[0][1]).startswith("<think>")
    assert task.id == "sudoku"
    assert solved_problems(ZOO, "tasks:sudoku", 3, seed=0, split="train") == train[:3]


def test_a_tokenizer_without_words_for_it_gets_no_working():
    plain = character_tokenizer(["sudoku"])
    (_, answer), *_ = solved_problems(plain, "tasks:sudoku", 1, seed=0, split="train")
    assert "think" not in plain.decode(answer)
    assert len(answer) == 17


def test_inputs_are_integers_of_torch():
    (batch,) = calibration_batches(TOKENIZER, ["abc"], length=8)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"count": 0}, OptionError, "count=0 must be at least 1"),
        ({"length": 1}, OptionError, "length=1 must be at least 2"),
        ({"batch_size": 0}, OptionError, "batch_size=0 must be at least 1"),
        ({"length": 10**6}, InputError, "tokens, a calibration window has length=1,000,000"),
        ({"held_out": 1.0}, OptionError, "held_out=1 must be at least 0 and below 1"),
    ],
)
def test_impossible_sizes_say_why(text, options, error, why):
    with pytest.raises(error, match=why):
        calibration_batches(TOKENIZER, text, **{"length": 16, **options})


@pytest.mark.parametrize(
    ("source", "error", "why"),
    [
        ([], InputError, "no calibration texts"),
        (["ab", ""], InputError, "calibration text 1 is empty"),
        ("scratchpad", OptionError, "give a Path, a list of texts, or 'tasks:NAME'"),
        ("tasks:sudoko", OptionError, "sudoku"),
    ],
)
def test_unusable_sources_say_why(source, error, why):
    with pytest.raises(error, match=why):
        calibration_batches(TOKENIZER, source, length=8)


def test_sources_as_they_are_written(tmp_path):
    assert parse_source("tasks:scratchpad") == "tasks:scratchpad"
    path = tmp_path / "t.txt"
    with pytest.raises(InputError, match=r"no text file .*tasks:NAME"):
        parse_source(str(path))
    path.write_text("x")
    assert parse_source(str(path)) == path
    with pytest.raises(OptionError, match="unknown task"):
        parse_source("tasks:nothing")
