"""Cryptarithms: letters stand for digits in a sum, difference, product or quotient."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from whet import rng as rng_
from whet.tasks.answers import integer, last_block, mapping, read, undress
from whet.tasks.base import Instance, Mode, Verdict
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level

_SIGNS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}
_LENGTHS = {"medium": 3, "hard": 4, "extreme": 5}
_FEW_LETTERS = "ABCDEFGHIJ"
_ALL_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LONGER = 2  # by so many digits numbers may be longer in wide mode
COUNTED = 100
"""Solutions are counted up to this many."""


def solutions(sign: str, left: str, right: str, result: str) -> Iterator[dict[str, int]]:
    """Every assignment of digits that solves `left sign right = result`, without repetition.

    Columns are filled from the right: the digits of the summands (factors) leave one digit for
    the letter below, so that wrong branches end early. result: begins with "-" where negative.
    """
    # As a sum or a product x with y is z.
    if sign in "+*":
        x, y, z = left, right, result
    elif sign == "/":
        x, y, z = right, result, left
    elif result.startswith("-"):
        x, y, z = left, result[1:], right
    else:
        x, y, z = right, result, left
    leading = {x[0], y[0], z[0]}
    words = [word[::-1] for word in (x, y)]
    below = z[::-1]
    columns = len(below)
    digits: dict[str, int] = {}

    def choices(word: str, column: int) -> Iterator[None]:
        """Give the letter in this column each digit it can have, once and for all columns."""
        if column >= len(word) or word[column] in digits:
            yield
            return
        letter = word[column]
        taken = set(digits.values())
        for digit in range(letter in leading, 10):
            if digit not in taken:
                digits[letter] = digit
                yield
                del digits[letter]

    def extend(column: int, carry: int) -> Iterator[dict[str, int]]:
        if column == columns:
            if carry == 0:
                yield dict(digits)
            return
        for _ in choices(words[0], column):
            for _ in choices(words[1], column):
                total = carry + _column(words, digits, column, sign)
                letter, digit = below[column], total % 10
                known = digits.get(letter)
                if known is None:
                    if digit in digits.values() or (digit == 0 and letter in leading):
                        continue
                    digits[letter] = digit
                    yield from extend(column + 1, total // 10)
                    del digits[letter]
                elif known == digit:
                    yield from extend(column + 1, total // 10)

    # Digits beyond the result's could only be zeros, which numbers do not begin with.
    return extend(0, 0) if max(map(len, words)) <= columns else iter(())


def _column(words: Sequence[str], digits: Mapping[str, int], column: int, sign: str) -> int:
    """What the column of a sum, or of a product's partial products, adds up to."""
    if sign in "+-":
        return sum(digits[word[column]] for word in words if column < len(word))
    x, y = words
    first = max(0, column - len(y) + 1)
    last = min(column, len(x) - 1)
    return sum(digits[x[i]] * digits[y[column - i]] for i in range(first, last + 1))


@dataclass(frozen=True, kw_only=True)
class Cryptarithmetic(BeyondTask):
    """Find the digit of every letter. size: letters of both words, fixed by the level.

    In a quotient the divisor has as many letters, the result one fewer and the dividend what it
    takes. Numbers are drawn first and then written in letters, so that every problem is solvable
    with at most ten letters; all solutions are right. Faithful: letters A to J, no negative
    results. Wide: all letters, numbers up to two digits longer, differences of either sign.
    data: (sign, left, right, result, number of solutions up to `COUNTED`).
    """

    id: ClassVar[str] = "cryptarithmetic"
    summary: ClassVar[str] = "digits for the letters of a sum, difference, product or quotient"
    many_answers: ClassVar[bool] = True
    level: ClassVar[Level] = "hard"
    variations: ClassVar[tuple[str, ...]] = tuple(
        f"{operation}_{level}" for operation in _SIGNS for level in _LENGTHS
    )

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return (_LENGTHS[variation.partition("_")[2]],)

    @property
    def sign(self) -> str:
        return _SIGNS[self.variation.partition("_")[0]]

    def generate(self, rng: np.random.Generator) -> Instance:
        left, right, result = self._numbers(rng)
        letters = _FEW_LETTERS if self.mode == "faithful" else _ALL_LETTERS
        chosen = [letters[i] for i in rng.permutation(len(letters))[:10].tolist()]
        as_letters = str.maketrans("0123456789", "".join(chosen))
        words = [str(n).translate(as_letters) for n in (left, right, result)]
        count = sum(1 for _ in itertools.islice(solutions(self.sign, *words), COUNTED))
        answer = {chosen[d]: d for d in range(10) if chosen[d] in "".join(words)}
        data = (self.sign, *words, count)
        return self.instance(_prompt(self.sign, *words), data, answer)

    def _numbers(self, rng: np.random.Generator) -> tuple[int, int, int]:
        (a, b), sign = self._lengths(rng), self.sign
        x, y = (int(rng.integers(10 ** (n - 1), 10**n)) for n in (a, b))
        if sign == "+":
            return x, y, x + y
        if sign == "*":
            return x, y, x * y
        if sign == "/":
            return x * y, x, y
        while x == y:
            y = int(rng.integers(10 ** (b - 1), 10**b))
        if self.mode == "faithful":
            x, y = max(x, y), min(x, y)
        return x, y, x - y

    def _lengths(self, rng: np.random.Generator) -> tuple[int, int]:
        """Digits of the two numbers that are drawn."""
        assert self.size is not None
        a, b = self.size, self.size - (self.sign == "/")
        if self.mode == "wide":
            a, b = (n + int(rng.integers(_LONGER + 1)) for n in (a, b))
        return a, b

    def check(self, instance: Instance, answer: Any) -> Verdict:
        sign, left, right, result, _ = instance.data
        if not isinstance(answer, Mapping):
            return Verdict(False, "the answer does not map letters to digits")
        letters = set(left + right + result) - {"-"}
        if set(answer) != letters:
            return Verdict(False, f"the answer must name {', '.join(sorted(letters))} only")
        values = list(answer.values())
        if not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 10 for v in values):
            return Verdict(False, "a letter has something other than one digit")
        if len(set(values)) < len(values):
            return Verdict(False, "two letters have the same digit")
        x, y, z = left, right, result.removeprefix("-")
        for word in (x, y, z):
            if answer[word[0]] == 0:
                return Verdict(False, f"{word} begins with 0")
        p, q, r = (int("".join(str(answer[c]) for c in word)) for word in (x, y, z))
        if result.startswith("-"):
            r = -r
        right_so = {"+": p + q == r, "-": p - q == r, "*": p * q == r, "/": p == q * r}[sign]
        if not right_so:
            return Verdict(False, f"{p} {sign} {q} is not {r}")
        return Verdict(True)

    def solve(self, instance: Instance) -> dict[str, int]:
        found = next(solutions(*instance.data[:4]), None)
        if found is None:
            raise ValueError("the puzzle has no solution")
        return dict(sorted(found.items()))

    def render(self, answer: Any) -> str:
        return f"<answer>{json.dumps(dict(sorted(answer.items())))}</answer>"

    def parse(self, text: str, mode: Mode = "lenient") -> dict[str, int] | None:
        return read(text, mode, marked=last_block, exact=_digits, last=_last_digits)

    def log10_space(self) -> float:
        """An estimate from 8 fixed draws: pairs of numbers, times the letterings of each, by the
        number of pairs that look alike once in letters. An upper one where those exceed `COUNTED`.
        """
        return _log10_space(self)


@functools.cache
def _log10_space(task: Cryptarithmetic) -> float:
    assert task.size is not None
    a, b = task.size, task.size - (task.sign == "/")
    longer = _LONGER if task.mode == "wide" else 0
    pairs = (10 ** (a + longer) - 10 ** (a - 1)) * (10 ** (b + longer) - 10 ** (b - 1))
    pool = len(_ALL_LETTERS if task.mode == "wide" else _FEW_LETTERS)
    draws = 8
    mean = 0.0
    for i in range(draws):
        instance = task.generate(rng_.keyed(0, "cryptarithmetic space", i))
        letters = len(set("".join(instance.data[1:4])) - {"-"})
        mean += math.perm(pool, letters) / instance.data[4] / draws
    faithful_difference = task.sign == "-" and task.mode == "faithful"
    return math.log10(pairs * mean / (2 if faithful_difference else 1))


def _digits(text: str) -> dict[str, int] | None:
    """A mapping of letters to digits and nothing else; small letters count as capitals."""
    pairs = mapping(undress(text))
    if pairs is None:
        return None
    found: dict[str, int] = {}
    for name, value in pairs.items():
        digit = integer(value)
        if not re.fullmatch("[A-Za-z]", name) or digit is None or not 0 <= digit < 10:
            return None
        if found.setdefault(name.upper(), digit) != digit:
            return None
    return found


def _last_digits(text: str) -> dict[str, int] | None:
    """The last such mapping in running text, else the last digit given to each letter."""
    for braces in reversed(list(re.finditer(r"\{[^{}]{3,2000}\}", text))):
        found = _digits(braces.group())
        if found is not None:
            return found
    pairs = re.findall(r"\b([A-Z])\s{0,3}(?:=|:|->|→)\s{0,3}(\d)\b", text, re.A)
    return {letter: int(digit) for letter, digit in pairs} or None


def _prompt(sign: str, left: str, right: str, result: str) -> str:
    notes = ["Every letter stands for one digit from 0 to 9, different letters for different ones."]
    notes.append("No number begins with 0.")
    if sign == "/":
        notes.append("The division leaves no remainder.")
    if result.startswith("-"):
        notes.append("The result is a negative number.")
    return (
        f"Digits have been replaced by letters here:\n\n{left} {sign} {right} = {result}\n\n"
        + " ".join(notes)
        + " Find a digit for every letter so that the equation is true. Give all of them in answer "
        'tags: for letters P and Q that would be <answer>{"P": 7, "Q": 0}</answer>'
    )
