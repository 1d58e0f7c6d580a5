from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from whet.data.synthetic import zipf_markov_text
from whet.errors import OptionError


def test_the_text_is_ascii_of_the_length_asked_for_and_comes_from_its_seed() -> None:
    text = zipf_markov_text(5000, seed=1)
    assert len(text) == 5000
    assert text.isascii()
    assert zipf_markov_text(5000, seed=1) == text
    assert zipf_markov_text(5000, seed=2) != text
    assert zipf_markov_text(7000, seed=1).startswith(text)


def test_free_words_have_zipfs_frequencies() -> None:
    text = zipf_markov_text(400_000, seed=0, words=50, bound=0.0, ending=0.0)
    counts = [n for _, n in Counter(text.lower().split()).most_common()]
    assert len(counts) in (50, 51)  # the last word may be cut
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.1)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.15)


def test_words_are_followed_by_words_of_their_own() -> None:
    pairs = Counter[tuple[str, str]]()
    words = zipf_markov_text(200_000, seed=0, words=200, followers=1, bound=1.0, ending=0.0).split()
    pairs.update(itertools.pairwise(words[1:-1]))
    assert len(pairs) == len({first for first, _ in pairs})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"characters": 0}, "characters=0 must be at least 1"),
        ({"words": 0}, "words=0 must be"),
        ({"bound": 1.5}, r"bound=1\.5 must be between 0 and 1"),
        ({"ending": -0.1}, r"ending=-0\.1 must be"),
    ],
)
def test_settings_outside_their_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        zipf_markov_text(**{"characters": 10, "seed": 0} | options)
