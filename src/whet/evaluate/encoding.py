"""Texts to tokens and back: where a continuation begins, what is cut off, where a text ends."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from whet.errors import InputError, OptionError
from whet.evaluate.model import Finish, GenerationRequest
from whet.rng import Key

T = TypeVar("T")


@dataclass(frozen=True)
class TokenPair:
    """Token ids to score: how likely is `target` after `context`? key: names its noise."""

    context: tuple[int, ...]
    target: tuple[int, ...]
    key: tuple[Key, ...] = ()

    def cut(self, room: int, *, least: int = 0) -> TokenPair:
        """At most `room` tokens, by leaving out the beginning of the context.

        Errors: InputError where the target and `least` tokens of context do not fit.
        """
        keep = room - len(self.target)
        if keep < least:
            raise InputError(
                f"a continuation of {len(self.target)} tokens is too long for this model: "
                f"at most {room - least} fit"
            )
        if keep >= len(self.context):
            return self
        return TokenPair(self.context[len(self.context) - keep :], self.target, self.key)


@dataclass(frozen=True)
class Written:
    """What of generated tokens counts. tokens: how many, the end-of-text token included."""

    text: str
    tokens: int
    finish: Finish


@dataclass(frozen=True)
class Codec:
    """A model's tokenizer. Build it with `Codec.of`.

    prefix: what the tokenizer puts before every text (nothing, or BOS); what it puts behind texts
    is never wanted here. end_ids: tokens after which a text is over.
    """

    tokenizer: Any
    prefix: tuple[int, ...]
    end_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, end_ids: Iterable[int | None]) -> Codec:
        plain = _ids(tokenizer, "a", special=False)
        framed = _ids(tokenizer, "a", special=True)
        starts = range(len(framed) - len(plain) + 1)
        start = next((i for i in starts if framed[i : i + len(plain)] == plain), 0)
        ends = tuple(dict.fromkeys(i for i in end_ids if i is not None))
        return cls(tokenizer, tuple(framed[:start]), ends)

    def encode(self, text: str) -> list[int]:
        """Token ids; the tokenizer's own prefix comes first, once."""
        ids, prefix = self.plain(text), list(self.prefix)
        # Text made with a chat template often brings its own.
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def plain(self, text: str) -> list[int]:
        """Token ids of a text by itself."""
        return _ids(self.tokenizer, text, special=False)

    def first_token(self) -> int:
        """What stands before a text that has nothing before it: BOS, or else EOS.

        Errors: InputError for a tokenizer with neither.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise InputError("an empty context needs a tokenizer with a BOS or an EOS token")

    def pair(
        self, context: str, continuation: str, key: tuple[Key, ...] = (), *, least: int = 1
    ) -> TokenPair:
        """Split a text into tokens before and tokens of the continuation.

        Spaces at the end of the context belong to the continuation. Both are encoded together, as
        tokens often begin with a space; where a token would lie across the border, it belongs to
        the continuation. least: 1 where something must come first, which is BOS or EOS if the
        context is empty. Errors: InputError for a continuation without tokens.
        """
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        before = self.encode(bare) if bare else list(self.prefix)
        whole = self.encode(bare + continuation)
        border = next(
            (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
            min(len(before), len(whole)),
        )
        if not continuation or border == len(whole):
            raise InputError(f"continuation {continuation!r} holds no token to score")
        head, target = whole[:border], whole[border:]
        if not head and least:
            head = [self.first_token()]
        return TokenPair(tuple(head), tuple(target), key)

    def written(self, ids: Sequence[int], stop: Sequence[str]) -> Written:
        """Cut generated tokens at the end of the text and before the first stop string.

        Stop strings are looked for in the decoded text, so they may lie across tokens; the first
        to be complete counts. Special tokens are left out, but for those that a stop string names.
        """
        end = next((i for i, t in enumerate(ids) if t in self.end_ids), None)
        places = self._shown(ids[:end], stop)
        body = [ids[i] for i in places]
        text = self.decode(body)
        if first_stop(text, stop) is None:
            if end is None:
                return Written(text, len(ids), "length")
            return Written(text, end + 1, "stop")
        # How many tokens until a stop string is complete.
        used = bisect_left(
            range(len(body)),
            True,
            key=lambda k: first_stop(self.decode(body[:k]), stop) is not None,
        )
        text = self.decode(body[:used])
        return Written(text[: first_stop(text, stop)], places[used - 1] + 1, "stop")

    def stops(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the last of these tokens ends the text, by itself or by completing a stop."""
        if ids[-1] in self.end_ids:
            return True
        if not stop:
            return False
        # A token holds a byte at least; two more, since decoders treat the first token apart.
        reach = max(len(s.encode()) for s in stop) + 2
        shown = [ids[i] for i in self._shown(ids, stop)]
        return first_stop(self.decode(shown[-reach:]), stop) is not None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _shown(self, ids: Sequence[int], stop: Sequence[str]) -> list[int]:
        """Places of the tokens that make the text."""
        special = {
            i
            for i, t in zip(
                self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True
            )
            if not any(t in s for s in stop)
        }
        return [place for place, i in enumerate(ids) if i not in special]


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins; None where there is none."""
    found = [place for s in stop if s and (place := text.find(s)) >= 0]
    return min(found, default=None)


def check_request(request: GenerationRequest) -> None:
    """Errors: OptionError for a length or temperature that cannot be."""
    if request.max_new_tokens < 1:
        raise OptionError(f"max_new_tokens={request.max_new_tokens} must be at least 1")
    if not 0 <= request.temperature < float("inf"):
        raise OptionError(f"temperature={request.temperature:g} must be 0 or more")


def rolling_windows(
    before: Sequence[int], ids: Sequence[int], context_length: int
) -> list[TokenPair]:
    """Windows in which an autoregressive model sees every token of a text once as target.

    Windows hold `context_length` targets; whatever room is left holds the tokens before them: one
    in a full window, more in the last (as in lm-evaluation-harness). before: stands before the
    text, a token at least.
    """
    whole = (*before, *ids)
    windows = []
    low, high = len(before), context_length + 1
    while low < len(whole):
        high = min(high, len(whole))
        windows.append(TokenPair(whole[max(0, high - context_length - 1) : low], whole[low:high]))
        low, high = high, high + context_length
    return windows


def chunk_windows(before: Sequence[int], ids: Sequence[int], size: int) -> list[TokenPair]:
    """Windows of `size` targets, each with the window before it as context, the first `before`."""
    ids = tuple(ids)
    return [
        TokenPair(ids[low - size : low] if low else tuple(before), ids[low : low + size])
        for low in range(0, len(ids), size)
    ]


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last with what is left."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])
