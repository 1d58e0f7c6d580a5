"""Kinds of answer of the easy tasks: how each is asked for, written, read and compared.

A comparison gives the reason why an answer is wrong, "" where it is right. It takes any object:
one of another type is wrong.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from whet.tasks import answers
from whet.tasks.base import Mode

TOLERANCE = Fraction(1, 10**6)
_AND = re.compile(r"\\?&|\band\b", re.I)
_INTEGERS = re.compile(r"(?:(?<![\w.)\]}])[-+])?\d[\w.]*", re.A)
_BULLET = re.compile(r"\s*(?:[-*•]|\d{1,3}[.)])\s", re.A)
_LIST = re.compile(r"\[([-+\d\s,;]*)\]", re.A)


@dataclass(frozen=True)
class Kind:
    """ask: the sentence of the prompt that asks for the answer, in its marker."""

    ask: str
    write: Callable[[Any], str]
    read: Callable[[str, Mode], Any | None]
    wrong: Callable[[object, Any], str]


def _wrong_whole(answer: object, truth: int) -> str:
    if not answers.is_whole(answer):
        return "the answer is no whole number"
    return "" if answer == truth else "another number is right"


WHOLE = Kind(
    r"End with the result in digits, as \boxed{result}.", str, answers.boxed_integer, _wrong_whole
)

# --- several whole numbers ----------------------------------------------------------------------


def _read_list(text: str, mode: Mode) -> list[int] | None:
    return answers.read(
        text,
        mode,
        marked=answers.last_boxed,
        exact=answers.integers,
        last=answers.last_integers,
    )


def _set(text: str) -> list[int] | None:
    """Numbers and nothing else but brackets, commas, "and" and &."""
    return answers.integers(_AND.sub(",", text))


def _last_set(text: str) -> list[int] | None:
    """All numbers of the last sentence that has some. Neighbouring items of a list are one.

    A bracketed list that repeats a number is no set but the restated problem.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    for items, group in itertools.groupby(reversed(lines), key=_is_item):
        for block in [" ".join(group)] if items else group:
            for sentence in [block] if items else reversed(answers.sentences(block)):
                found = _INTEGERS.findall(_LIST.sub(_unless_repeating, sentence))
                if found:
                    values = [answers.integer(x.rstrip(".")) for x in found]
                    return None if None in values else [x for x in values if x is not None]
    return None


def _is_item(line: str) -> bool:
    """Whether a line has a bullet or number before it, or no words."""
    return bool(_BULLET.match(line)) or not any(map(str.isalpha, line))


def _unless_repeating(found: re.Match[str]) -> str:
    values = answers.integers(found.group()) or []
    return " " if len(set(values)) < len(values) else found.group()


def _read_set(text: str, mode: Mode) -> list[int] | None:
    return answers.read(text, mode, marked=answers.last_boxed, exact=_set, last=_last_set)


def _wrong_list(answer: object, truth: list[int]) -> str:
    if not isinstance(answer, list | tuple) or not all(map(answers.is_whole, answer)):
        return "the answer is no list of whole numbers"
    if len(answer) != len(truth):
        return f"the list has {len(answer)} numbers, not {len(truth)}"
    return "" if list(answer) == truth else "another list is right"


def _wrong_set(answer: object, truth: frozenset[int]) -> str:
    if not isinstance(answer, list | tuple | set | frozenset) or not all(
        map(answers.is_whole, answer)
    ):
        return "the answer is no set of whole numbers"
    return "" if set(answer) == truth else "another set is right"


LIST = Kind(
    r"End with the new list in brackets, separated by commas, as \boxed{[...]}.",
    lambda truth: answers.as_json_list(list(truth)),
    _read_list,
    _wrong_list,
)
SET = Kind(
    r"End with all of them, in any order and separated by commas, as \boxed{...}.",
    lambda truth: ", ".join(map(str, sorted(truth))),
    _read_set,
    _wrong_set,
)

# --- numbers that need not be whole -------------------------------------------------------------


def two_decimals(x: Fraction) -> Fraction:
    """x rounded to two decimals, halves away from zero, exactly."""
    hundredths = math.floor(abs(x) * 100 + Fraction(1, 2))
    return Fraction(hundredths if x >= 0 else -hundredths, 100)


def _wrong_quotient(answer: object, truth: Fraction) -> str:
    value = answers.as_fraction(answer)
    if value is None:
        return "the answer is no number"
    same = two_decimals(value) == two_decimals(truth)
    return "" if same else "another number is right, to two decimals"


def _read_number(text: str, mode: Mode) -> answers.Rounded | Fraction | None:
    if mode == "strict":
        return answers.boxed_number(text, mode)
    return answers.read(
        text,
        mode,
        marked=answers.last_boxed,
        exact=answers.rounded,
        within=answers.only_rounded,
        last=answers.last_rounded,
    )


def _wrong_number(answer: object, truth: Fraction) -> str:
    """A `Rounded` answer of two decimals or more may be a rounded one; others are exact to 1e-6."""
    allowed = TOLERANCE
    if isinstance(answer, answers.Rounded):
        if answer.decimals in (2, 3, 4, 5):  # with more, the tolerance is the larger one
            allowed = Fraction(1, 2 * 10**answer.decimals)
        answer = answer.value
    value = answers.as_fraction(answer)
    if value is None:
        return "the answer is no number"
    return "" if abs(value - truth) <= allowed else "another number is right"


QUOTIENT = Kind(
    r"End with the result rounded to two decimals (halves away from zero), as \boxed{result}.",
    lambda truth: answers.write_number(two_decimals(truth)),
    answers.boxed_number,
    _wrong_quotient,
)
NUMBER = Kind(
    r"End with the exact result, as a decimal (six correct decimals are enough) or a fraction a/b,"
    r" as \boxed{result}.",
    answers.write_number,
    _read_number,
    _wrong_number,
)

# --- a relation ---------------------------------------------------------------------------------


_PHRASES = ("greater than", "less than", "equal to")
_WORDS = {
    **dict.fromkeys(("greater", "larger", "bigger", "larger than", ">", r"\gt"), _PHRASES[0]),
    **dict.fromkeys(("less", "smaller", "lower", "smaller than", "<", r"\lt"), _PHRASES[1]),
    **dict.fromkeys(("equal", "equals", "the same", "=", "=="), _PHRASES[2]),
}
_STATED = re.compile(
    r"\b(?:(?P<greater>(?:greater|larger|bigger) than)|(?P<less>(?:less|smaller|lower) than)"
    r"|(?P<equal>equals?(?: to)?))\b"
)
# Sentences that leave the relation open, or deny one.
_OPEN = re.compile(
    r"\b(?:not|cannot|never|neither|nor|whether)\b|n['’]t\b"
    r"|\bno (?:greater|larger|bigger|less|smaller|lower)\b"
)
_PARTS = re.compile(r"(?<=[.!?;])\s+|\n\s*\n")


def _phrase(text: str) -> str | None:
    found = " ".join(text.lower().split()).strip(" .\"'")
    return found if found in _PHRASES else None


def _phrase_or_word(text: str) -> str | None:
    """Lenient reading also knows other words for the phrases, and the signs."""
    found = " ".join(text.lower().split()).strip(" .\"'")
    return found if found in _PHRASES else _WORDS.get(found)


def _last_relation(text: str) -> str | None:
    """What the last sentence about a relation says; None where it asks or names several."""
    for part in reversed(_PARTS.split(text.lower())):
        sentence = " ".join(part.split())
        found = {m.lastgroup for m in _STATED.finditer(sentence)}
        if found:
            if len(found) > 1 or _OPEN.search(sentence) or sentence.endswith("?"):
                return None
            return dict(zip(("greater", "less", "equal"), _PHRASES, strict=True))[found.pop() or ""]
    return None


def _read_relation(text: str, mode: Mode) -> str | None:
    exact = _phrase if mode == "strict" else _phrase_or_word
    return answers.read(text, mode, marked=answers.last_boxed, exact=exact, last=_last_relation)


def _wrong_relation(answer: object, truth: str) -> str:
    if not isinstance(answer, str):
        return "the answer is no relation"
    return "" if answer == truth else "another relation holds"


RELATION = Kind(
    r"End with one of these three phrases, as \boxed{phrase}.", str, _read_relation, _wrong_relation
)
