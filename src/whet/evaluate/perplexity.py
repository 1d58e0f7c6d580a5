r"""Perplexity by the protocol of the compression literature (GPTQ, SparseGPT and those after them).

The text is one: WikiText-2's raw test split is `"\n\n".join(rows)`. One call encodes all of it,
adding whatever special tokens the tokenizer adds unasked; the ids are cut into windows of T tokens
that do not overlap, and what is left over is dropped. The first token of each window is given, the
other T - 1 are predicted:

    ppl = exp( sum over windows of T * mean(nll of its T - 1 tokens) / (windows * T) ).

lm-evaluation-harness' `wikitext` is another quantity: per page, detokenised, with rolling windows,
per word. For masked diffusion models each window's likelihood is a bound, so that the result is an
upper bound of a perplexity, with a Monte-Carlo error.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from whet.errors import InputError, OptionError
from whet.evaluate.encoding import TokenPair
from whet.evaluate.model import Likelihood


class TokenScorer(Protocol):
    """What perplexity needs of a model; `AutoregressiveModel` and `DiffusionModel` have it.

    bound: whether scores are lower bounds of log-likelihoods.
    """

    @property
    def bound(self) -> bool: ...

    @property
    def context_length(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def score(self, pairs: Sequence[TokenPair]) -> list[Likelihood]: ...


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """A perplexity and what it is of.

    error: standard error from Monte Carlo alone (0 for autoregressive models); it says nothing
    about other texts. bound: this is an upper bound. tokens: windows * window. file, sha256: the
    text's name and the first 12 digits of its hash (UTF-8). comparable: whether published values
    for WikiText-2 may stand beside this one; reason: why or why not.
    """

    value: float
    error: float
    bound: bool
    window: int
    windows: int
    tokens: int
    protocol: str
    file: str
    sha256: str
    comparable: bool
    reason: str


def perplexity(
    model: TokenScorer, text: str, *, window: int = 2048, file: str = "text"
) -> Perplexity:
    """Perplexity of a text in windows of `window` tokens.

    Errors: OptionError for a window below 2 or above the model's context; InputError for a text
    of less than one window.
    """
    if window < 2:
        raise OptionError(f"window={window} must be at least 2: its first token is given")
    if window > model.context_length:
        raise OptionError(f"window={window} exceeds the model's context of {model.context_length}")
    ids = model.encode(text)
    count = len(ids) // window
    if count == 0:
        raise InputError(f"{file} has {len(ids)} tokens: at least one window={window} is needed")
    pairs = [
        TokenPair((ids[low],), tuple(ids[low + 1 : low + window]), ("window", low // window))
        for low in range(0, count * window, window)
    ]
    found = model.score(pairs)
    predicted = count * (window - 1)
    # fsum is exact, so the order of windows leaves no trace.
    value = _exp(-math.fsum(f.value for f in found) / predicted)
    spread = math.sqrt(math.fsum(f.error**2 for f in found)) / predicted
    comparable, reason = comparison(text, window=window, bound=model.bound)
    of = "a bound on each window" if model.bound else "mean over windows"
    return Perplexity(
        value=value,
        error=value * spread if spread else 0.0,
        bound=model.bound,
        window=window,
        windows=count,
        tokens=count * window,
        protocol=f"one tokenisation, windows of {window} apart, first token given, {of}",
        file=file,
        sha256=hashlib.sha256(text.encode()).hexdigest()[:12],
        comparable=comparable,
        reason=reason,
    )


def file_perplexity(model: TokenScorer, path: Path, *, window: int = 2048) -> Perplexity:
    """Perplexity of a UTF-8 file as it is; its hash is that of the file.

    Errors: InputError for a file that cannot be read as text; those of `perplexity`.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable UTF-8 text ({error})") from error
    return perplexity(model, text, window=window, file=path.name)


# How the test split begins when its rows are joined, and a length that only the whole of it has.
_RAW_START = "\n\n = Robert Boulter = \n\n\n"
_RAW_CHARACTERS = 1_250_000
_PUBLISHED_WINDOWS = (2048, 4096)


def comparison(text: str, *, window: int, bound: bool) -> tuple[bool, str]:
    """Whether values published for WikiText-2 may be compared with one on this text, and why.

    Both versions of WikiText-2 are tokenised (` @-@ ` for a hyphen); in the one that published
    values are not for, rare words are `<unk>`.
    """
    if bound:
        return False, "an upper bound from a masked model is no perplexity of a left-to-right one"
    if re.search(r"(?<!\S)<unk>(?!\S)", text):
        return False, "rare words are <unk>: published values are for WikiText-2's raw version"
    if not text.startswith(_RAW_START) or len(text) < _RAW_CHARACTERS:
        tokenised = " (though tokenised like it)" if " @-@ " in text else ""
        return False, f"not WikiText-2's raw test split, its rows joined by blank lines{tokenised}"
    if window not in _PUBLISHED_WINDOWS:
        return False, f"published values are for windows of 2048 or 4096 tokens, not {window}"
    return True, f"WikiText-2's raw test split: compare with values for windows of {window}"


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
