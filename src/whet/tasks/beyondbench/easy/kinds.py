"""Kinds of answer of the easy tasks: how each is asked for, written, read and compared.

A comparison gives the reason why an answer is wrong, "" where it is right. It takes any object:
one of another type is wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from whet.tasks import answers
from whet.tasks.base import Mode

TOLERANCE = Fraction(1, 10**6)
_RELATION = re.compile(r"greater than|less than|equal to")


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


def _last_set(text: str) -> list[int] | None:
    found = answers.last_integers(text)
    if found is not None:
        return found
    one = answers.last_integer(text)
    return None if one is None else [one]


def _read_set(text: str, mode: Mode) -> list[int] | None:
    return answers.read(
        text, mode, marked=answers.last_boxed, exact=answers.integers, last=_last_set
    )


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
        text, mode, marked=answers.last_boxed, exact=answers.rounded, last=answers.last_rounded
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


def _relation(text: str) -> str | None:
    found = " ".join(text.lower().split()).strip(" .\"'")
    return found if _RELATION.fullmatch(found) else None


def _last_relation(text: str) -> str | None:
    found = _RELATION.findall(" ".join(text.lower().split()))
    return found[-1] if found else None


def _read_relation(text: str, mode: Mode) -> str | None:
    return answers.read(text, mode, marked=answers.last_boxed, exact=_relation, last=_last_relation)


def _wrong_relation(answer: object, truth: str) -> str:
    if not isinstance(answer, str):
        return "the answer is no relation"
    return "" if answer == truth else "another relation holds"


RELATION = Kind(
    r"End with one of these three phrases, as \boxed{phrase}.", str, _read_relation, _wrong_relation
)
