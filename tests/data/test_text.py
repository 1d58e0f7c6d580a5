from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from whet.data import text as text_module
from whet.data.text import TextWindows
from whet.errors import InputError, OptionError
from whet.zoo.tokenizer import character_tokenizer

TOKENIZER = character_tokenizer(words=["\n"])


def written(count: int) -> str:
    return "".join(f"{i:06d}\n" for i in range(count))


def windows(texts: Path | list[str], **options: Any) -> TextWindows:
    return TextWindows(TOKENIZER, texts, **{"length": 16, "batch_size": 4, "seed": 3} | options)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    one, other = windows([written(200)]), windows([written(200)])
    assert one.batch(7).shape == (4, 16)
    assert one.batch(7).dtype == torch.long
    other.batch(1)
    assert torch.equal(one.batch(7), other.batch(7))
    assert not torch.equal(one.batch(7), one.batch(8))
    assert not torch.equal(one.batch(7), windows([written(200)], seed=4).batch(7))


def test_training_reaches_every_token_of_its_part_and_none_that_is_held_out() -> None:
    found = windows([written(60)], batch_size=8, held_out=0.3)
    found.tokens = torch.arange(len(found.tokens))  # a token is then its own position
    seen = set(torch.cat([found.batch(step) for step in range(200)]).unique().tolist())
    assert seen == set(range(found.borders[0]))
    validation, test = found.windows("validation"), found.windows("test")
    for part in (validation, test):
        assert len(part.unique()) == part.numel()  # no overlap
        assert not seen & set(part.flatten().tolist())
    assert int(validation.max()) < found.borders[1] <= int(test.min())


def test_a_window_is_running_text() -> None:
    text = written(300)
    found = windows([text])
    for row in found.batch(0):
        assert TOKENIZER.decode(row) in text


def test_some_windows_are_spread_evenly_over_the_part() -> None:
    found = windows([written(400)], held_out=0.5)
    every = found.windows("test")
    some = found.windows("test", 3)
    assert torch.equal(some, every[[0, round((len(every) - 1) / 2), len(every) - 1]])


def test_pieces_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = windows([written(100)])
    monkeypatch.setattr(text_module, "_PIECE", 10)
    assert torch.equal(windows([written(100)]).tokens, whole.tokens)
    assert "".join(text_module._pieces("a" * 25 + "\nb\n\n" + "c" * 9)) == (
        "a" * 25 + "\nb\n\n" + "c" * 9
    )


def test_a_file_is_one_text_and_documents_end_with_eos(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(written(100), encoding="utf-8")
    eos = TOKENIZER.eos_token_id
    assert len(windows(path).tokens) == 700
    assert len(windows([written(50), written(50)]).tokens) == 702
    assert windows([written(50), written(50)]).tokens.eq(eos).nonzero().flatten().tolist() == [
        350,
        701,
    ]
    assert windows(path).sha256 != windows([written(100)]).sha256


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read text .*nowhere\.txt: No such file"):
        windows(tmp_path / "nowhere.txt")
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"abc\xff")
    with pytest.raises(InputError, match=r"bad\.txt is not UTF-8: .* at 3"):
        windows(bad)
    with pytest.raises(InputError, match="give a file as a Path"):
        windows("text.txt")  # type: ignore[arg-type]


def test_too_little_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"8 tokens, of which 8 for training, .* at least 64"):
        windows([written(1)])
    with pytest.raises(InputError, match="8 for validation, which needs at least 16"):
        windows([written(23)], batch_size=1)
    with pytest.raises(InputError, match="of which 0 for training"):
        windows([])
    found = windows([written(400)])
    with pytest.raises(InputError, match="the test part has 8 windows, 99 are needed"):
        found.windows("test", 99)
    with pytest.raises(InputError, match="the test part has 0 windows"):
        windows([written(400)], held_out=0).windows("test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "length=1 must be at least 2"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"held_out": 1.0}, "held_out=1 must be"),
        ({"held_out": -0.1}, "held_out=-0.1 must be"),
    ],
)
def test_options_outside_their_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        windows([written(100)], **options)
