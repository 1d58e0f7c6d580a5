"""Text made up by a rule, for trials of language-model training that need no data.

Words are strings of syllables with Zipf's frequencies. What follows a word is mostly one of a few
words of its own, so there is something to learn beyond frequencies; a period ends a sentence now
and then, and the next word is then free.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from whet.errors import OptionError
from whet.rng import keyed

_ONSETS = ("b", "ch", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v")
_NUCLEI = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_CODAS = ("", "", "l", "n", "r", "s", "t")


def zipf_markov_text(
    characters: int,
    *,
    seed: int,
    words: int = 1000,
    followers: int = 6,
    bound: float = 0.8,
    ending: float = 0.08,
) -> str:
    """ASCII text of exactly `characters` characters.

    words: different ones; word k has frequency in proportion to 1 / k where it is free. After a
    word comes, with probability `bound`, one of `followers` fixed words of its own, the k-th again
    in proportion to 1 / k. ending: probability that a sentence ends after a word.
    Errors: OptionError for sizes below 1 or probabilities outside [0, 1].
    """
    for name, value in (("characters", characters), ("words", words), ("followers", followers)):
        if value < 1:
            raise OptionError(f"{name}={value} must be at least 1")
    for name, share in (("bound", bound), ("ending", ending)):
        if not 0 <= share <= 1:
            raise OptionError(f"{name}={share:g} must be between 0 and 1")
    rng = keyed(seed, "zipf-markov")
    vocabulary = _vocabulary(rng, words)
    frequency = _zipf(words)
    own = rng.choice(words, size=(words, followers), p=frequency)
    pieces: list[str] = []
    length, word = 0, 0
    free = True
    while length < characters:
        # A block of draws at a time: one by one they would take most of the time.
        size = 4096
        at_large = rng.choice(words, size=size, p=frequency).tolist()
        among_own = rng.choice(followers, size=size, p=_zipf(followers)).tolist()
        bounds, ends = (rng.random(size) < bound).tolist(), (rng.random(size) < ending).tolist()
        for k in range(size):
            word = at_large[k] if free or not bounds[k] else int(own[word, among_own[k]])
            text = vocabulary[word].capitalize() if free else vocabulary[word]
            free = ends[k]
            pieces.append(text + (".\n" if free else " "))
            length += len(pieces[-1])
    return "".join(pieces)[:characters]


def _zipf(count: int) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = 1 / np.arange(1, count + 1)
    return np.asarray(weights / weights.sum())


def _vocabulary(rng: np.random.Generator, count: int) -> list[str]:
    """Different words; the frequent ones are short, as in languages."""
    found: dict[str, None] = {}
    syllables = 1
    while len(found) < count:
        for _ in range(4 * count):
            parts = [
                _ONSETS[rng.integers(len(_ONSETS))]
                + _NUCLEI[rng.integers(len(_NUCLEI))]
                + _CODAS[rng.integers(len(_CODAS))]
                for _ in range(syllables)
            ]
            found.setdefault("".join(parts))
            # A tenth of the words have one syllable, half at most two.
            if len(found) >= min(count, count * (syllables**2) // 10 + 1):
                break
        syllables += 1
    return list(found)
