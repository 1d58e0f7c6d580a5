"""Reading answers out of a model's text. Nothing here knows the truth, and nothing is executed.

Strict reading admits the last closed marker and no more: its whole content must be the answer.
Lenient reading also finds an answer among other words there. A marker without one (prompts show
such markers as a form to fill in) makes everything up to its end void, so that a repeated prompt
answers nothing; after it, or where no marker stands, a line that announces an answer goes before
mere mentions of a value. The time of every scan grows in proportion to the text.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, TypeGuard, TypeVar

from whet.tasks.base import Mode

T = TypeVar("T")

MAX_TEXT = 1 << 20
"""Only the last so many characters of a text are read."""
_MAX_DIGITS = 4000  # Python refuses to convert numbers of more than 4,300 digits to text
_MAX_NUMBER = 1000  # characters of a number that is no whole number

_MINUS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "－": "-", "\u00a0": " ", "\u202f": " "})
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit|operatorname)\s*\{([^{}]*)\}")
# \frac{a}{b}, and \frac12 where the second argument is one digit and no other follows it.
_FRACTION = re.compile(
    r"(\d ?)?\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d)(?!\d))", re.A
)
_SUBSCRIPT = re.compile(r"_ ?\{ ?(\w{1,4}) ?\}")
_LOW_DIGITS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_INTEGER = re.compile(r"([-+]?)\s*(\d{1,3}(?:,\d{3})+|\d+)(?:\.0*)?", re.A)
_NUMBER = re.compile(
    r"[-+]?\s*(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?", re.A
)
# A run that may be a number, read whole: what is wrong with it is found afterwards, so that no
# text makes the scan start over. A sign after a word or bracket is an operation, not a sign.
_RUN = re.compile(r"(?:(?<![\w.)\]}])[-+])?(?:[\w.,]|(?<=\d[eE])[-+](?=\d))+")
_DIGIT = re.compile(r"\d", re.A)
_STARTS = re.compile(r"[-+]?[.,_]*\d", re.A)  # a run that is a number or was meant to be one
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*_]{0,4}\s+|\n")
_LIST = re.compile(r"\[([-+\d\s,.;]*)\]", re.A)
_BOLD = re.compile(r"(?<![\w*])\*\*([^*\n]{1,100})\*\*(?![\w*])")
# What makes a number next to it a part of an expression or list.
_BEFORE = re.compile(r"(?:[-+/^_*×·÷,]\s*[({]?|\\[a-zA-Z]+\s*\{?|\w[({])\s*$")
_AFTER = re.compile(r"[)}]?\s*(?:[-+/^*×·÷,!%]|\\[a-zA-Z%])")
_NEAR = 40  # characters before a number that are looked at
_SAYS = re.compile(r"\banswer\b[^:=\n]{0,40}[:=]\s*(.+)", re.I)
_OPEN, _CLOSE = re.compile(r"<answer>", re.I), re.compile(r"</answer>", re.I)
_BETWEEN = re.compile(r":|=>|->|=")
_MAX_PAIR = 400  # characters of one "name: value"
_MAX_LIST = 20_000  # characters of a list in running text
THINK = ("<think>", "</think>")


def answer_part(text: str, markers: tuple[str, str] = THINK) -> str | None:
    """What follows the model's thinking; None where thinking was begun and never ended."""
    opened, closed = markers
    _, found, rest = text.rpartition(closed)
    if found:
        return None if opened in rest else rest
    return None if opened in text else text


class Marked(NamedTuple):
    """What a marker says, and the place where the marker ends."""

    text: str
    end: int


def last_boxed(text: str) -> Marked | None:
    r"""The content of the last \boxed{...} whose braces balance, LaTeX dressing removed."""
    cut = max(0, len(text) - MAX_TEXT)
    text = text[cut:]
    closing = _matching_braces(text)
    for start in reversed([m.end() - 1 for m in re.finditer(r"\\f?boxed\s*\{", text)]):
        if start in closing:
            return Marked(undress(text[start + 1 : closing[start]]), cut + closing[start] + 1)
    return None


def _matching_braces(text: str) -> dict[int, int]:
    """Opening to closing places of all balanced braces; escaped ones do not count."""
    open_at: list[int] = []
    found: dict[int, int] = {}
    for m in re.finditer(r"\\.|[{}]", text, re.S):
        if m.group() == "{":
            open_at.append(m.start())
        elif m.group() == "}" and open_at:
            found[open_at.pop()] = m.start()
    return found


def last_block(text: str) -> Marked | None:
    """The content of the last <answer>...</answer>."""
    cut = max(0, len(text) - MAX_TEXT)
    closes = list(_CLOSE.finditer(text, cut))
    starts = [cut, *(m.end() for m in closes)]  # of the pieces that end where a block was closed
    for start, close in zip(reversed(starts[:-1]), reversed(closes), strict=True):
        opens = [m.end() for m in _OPEN.finditer(text, start, close.start())]
        if opens:
            return Marked(text[opens[-1] : close.start()].strip(), close.end())
    return None


def last_said(text: str) -> Marked | None:
    """What the last line of the form "answer: X" says."""
    end = len(text)
    for line in reversed(text[-MAX_TEXT:].splitlines(keepends=True)):
        found = _SAYS.search(line[:10_000])
        if found:
            return Marked(undress(_BOLD.sub(r"\1", found.group(1)).strip(" *_`!")), end)
        end -= len(line)
    return None


def undress(text: str) -> str:
    r"""Remove \text{}, \frac{a}{b} and \frac12 (as a/b), dollar signs, \, spaces; unify minus
    signs.
    """
    text = text.translate(_MINUS)
    for _ in range(4):  # nested dressing, bounded
        stripped = _FRACTION.sub(_plain_fraction, _TEXT.sub(r"\1", text))
        if stripped == text:
            break
        text = stripped
    text = text.replace("{,}", ",")
    text = re.sub(r"\\[,;:!]|\\left(?![a-z])|\\right(?![a-z])|\$|\\\(|\\\)", "", text)
    return text.replace("\\{", "{").replace("\\}", "}").replace("\\_", "_").strip()


def _plain_fraction(found: re.Match[str]) -> str:
    whole, *parts = found.groups()
    top, bottom = (part for part in parts if part is not None)
    return f"{whole.strip()} {top}/{bottom}" if whole else f"{top}/{bottom}"


def read(
    text: str,
    mode: Mode,
    *,
    marked: Callable[[str], Marked | None],
    exact: Callable[[str], T | None],
    last: Callable[[str], T | None],
    within: Callable[[str], T | None] | None = None,
) -> T | None:
    """An answer by the rules at the head of this module.

    marked: the marker the prompt asks for (`last_boxed` or `last_block`). exact: reads a text that
    should be the answer and nothing else. last: finds the last value of the type in running text.
    within: finds the answer in a marker or announcement that says more than it; where it cannot,
    an announcement is void as a marker is. None: `last`, and an announcement may be a heading.
    """
    text = text[-MAX_TEXT:].translate(_MINUS)
    inside = marked(text)
    if inside is not None:
        found = exact(inside.text)
        if found is not None or mode == "strict":
            return found
        found = (within or last)(inside.text)
        if found is not None:
            return found
        text = text[inside.end :]
    if mode == "strict":
        return None
    said = last_said(text)
    if said is not None:
        for part in dict.fromkeys((said.text, _SENTENCE_END.split(said.text, maxsplit=1)[0])):
            for reader in (exact, within or last):
                found = reader(part)
                if found is not None:
                    return found
        if within is not None:
            text = text[said.end :]
    return last(text)


def sentences(text: str) -> list[str]:
    """The sentences of a text, lines apart, without those that ask."""
    every = _SENTENCE_END.split(text)
    return [sentence for sentence in every if not sentence.rstrip(" *_\"')").endswith("?")]


def _stated(text: str) -> str:
    """Without questions and without lists of numbers in brackets: they restate a problem."""
    kept = "\n".join(sentences(text.translate(_MINUS)))
    return _LIST.sub(lambda m: " " if "," in m.group(1) else m.group(), kept)


def _only(text: str) -> str | None:
    """The text of the only number in a short text (its first to last digit); None where a sign of
    a list or of an operation stands beside it.
    """
    text = _BOLD.sub(r"\1", text.translate(_MINUS))
    runs = [m for m in _RUN.finditer(text) if _STARTS.match(m.group())]
    if not runs:
        return None
    start = runs[0].start()
    found = text[start : runs[-1].end()].rstrip("._")
    if _BEFORE.search(text[max(0, start - _NEAR) : start]) or _AFTER.match(
        text, start + len(found)
    ):
        return None
    return found.lstrip("_")


def integer(text: str) -> int | None:
    """A whole number and nothing else, from its digits: 1,234 and -5 and +7 and 12. and 3.00."""
    found = _INTEGER.fullmatch(text.strip())
    if found is None or len(found.group(2)) > _MAX_DIGITS:
        return None
    value = int(found.group(2).replace(",", ""))
    return -value if found.group(1) == "-" else value


def only_integer(text: str) -> int | None:
    """The whole number of a short text that holds no other number: of "x = 5" or "5 apples"."""
    found = _only(text)
    return integer(found) if found else None


def last_integer(text: str) -> int | None:
    """The last whole number stated in running text: no part of a fraction, power or [list]."""
    text = _stated(text)
    for m in reversed(list(_RUN.finditer(text))):
        if not _DIGIT.search(m.group()):
            continue
        before = text[max(0, m.start() - _NEAR) : m.start()].rstrip()
        after = text[m.end() : m.end() + _NEAR].lstrip()
        if before.endswith(("/", "^", "^{")) or after.startswith(("/", "^")):
            continue
        for piece in _pieces(m.group()):
            found = integer(piece)
            if found is not None:
                return found
    return None


def number(text: str) -> Fraction | None:
    """A number and nothing else, exactly: 1,234.5 and -3/4 and 1 1/2 and 1e-3 and .5."""
    text = text.strip()
    if text.count("/") == 1 and len(text) <= 2 * _MAX_NUMBER:
        before, _, bottom = text.partition("/")
        mixed = re.fullmatch(r"([-+]?)\s*(\d+)\s+(\d+)\s*", before, re.A)
        a, b = _decimal(mixed.group(3) if mixed else before), _decimal(bottom)
        whole = _decimal(mixed.group(2)) if mixed else Fraction(0)
        if a is None or whole is None or not b:
            return None
        return -(whole + a / b) if mixed and mixed.group(1) == "-" else whole + a / b
    found = integer(text)
    return Fraction(found) if found is not None else _decimal(text)


def _decimal(text: str) -> Fraction | None:
    text = text.strip()
    if len(text) > _MAX_NUMBER or not _NUMBER.fullmatch(text):
        return None
    return Fraction(re.sub(r"[\s,]", "", text))


def only_number(text: str) -> Fraction | None:
    """As `only_integer`, for any number; a fraction written a/b is one."""
    found = _only(text)
    return number(found) if found else None


def last_number(text: str) -> Fraction | None:
    """The last number in running text; a fraction written a/b is one number."""
    found = _last_number_text(text)
    return number(found) if found else None


@dataclass(frozen=True)
class Rounded:
    """A number and how many decimals of it were written (None: a fraction, or with exponent)."""

    value: Fraction
    decimals: int | None


def rounded(text: str) -> Rounded | None:
    """As `number`, with the count of written decimals."""
    value = number(text)
    if value is None:
        return None
    plain = re.fullmatch(r"[^./eE]*(?:\.(\d*))?", text.strip())
    return Rounded(value, len(plain.group(1) or "") if plain else None)


def only_rounded(text: str) -> Rounded | None:
    """As `only_number`, with the count of written decimals."""
    found = _only(text)
    return rounded(found) if found else None


def last_rounded(text: str) -> Rounded | None:
    """The last number stated in running text, with the count of written decimals."""
    found = _last_number_text(_stated(text))
    return rounded(found) if found else None


def _last_number_text(text: str) -> str | None:
    text = text.translate(_MINUS)
    runs = list(_RUN.finditer(text))
    for i in range(len(runs) - 1, -1, -1):
        if not _DIGIT.search(runs[i].group()):
            continue
        found = next((p for p in _pieces(runs[i].group()) if number(p) is not None), None)
        if found is None:
            continue
        before = text[max(0, runs[i].start() - 8) : runs[i].start()]
        if i and before.strip().endswith("/") and runs[i].group().startswith(found):
            between = text[runs[i - 1].end() : runs[i].start()]
            top = next(iter(_pieces(runs[i - 1].group())), "")
            if between.strip() == "/" and number(f"{top}/{found}") is not None:
                return f"{top}/{found}"
        return found
    return None


def _pieces(run: str) -> Iterator[str]:
    """What may be a number in a run: all of it, else its parts between commas, last first."""
    run = run.lstrip(",_").rstrip(".,_")
    yield run
    if "," in run:
        yield from (part.rstrip(".") for part in reversed(run.split(",")))


def boxed_integer(text: str, mode: Mode) -> int | None:
    """`read` for a whole number in a box."""
    return read(
        text, mode, marked=last_boxed, exact=integer, within=only_integer, last=last_integer
    )


def boxed_number(text: str, mode: Mode) -> Fraction | None:
    """`read` for a number in a box."""
    return read(
        text,
        mode,
        marked=last_boxed,
        exact=number,
        within=only_number,
        last=lambda rest: last_number(_stated(rest)),
    )


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def as_fraction(value: object) -> Fraction | None:
    """A parsed number; None for anything else, floats among it (they may have lost digits)."""
    return Fraction(value) if isinstance(value, Fraction) or is_whole(value) else None


def write_number(x: Fraction | int) -> str:
    """A number in digits: as a decimal where it ends, else as a/b."""
    x = Fraction(x)
    odd = x.denominator
    for factor in (2, 5):
        while odd % factor == 0:
            odd //= factor
    if odd != 1:
        return str(x)
    places = next(k for k in itertools.count() if 10**k % x.denominator == 0)
    digits = str(abs(x.numerator) * (10**places // x.denominator)).rjust(places + 1, "0")
    sign = "-" if x < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def integers(text: str) -> list[int] | None:
    """A list of whole numbers and nothing else: [1, -2, 3] or (1, 2) or 1, 2, 3 or [].

    Inside a list a comma always separates: 1,234 is two numbers.
    """
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("[]", "()", "{}"):
        inner = inner[1:-1].strip()
        if not inner:
            return []
    parts = [p.strip() for p in re.split(r"[,;]|\s+", inner) if p.strip()]
    found = [integer(p) for p in parts]
    return None if not found or None in found else [v for v in found if v is not None]


def last_integers(text: str) -> list[int] | None:
    """The last bracketed list of whole numbers in running text, else the last line's numbers.

    A list inside another one is a part of something else, and not read.
    """
    text = text.translate(_MINUS)
    for inner in _outermost(text):
        found = integers(inner) if len(inner) <= _MAX_LIST else None
        if found is not None:
            return found
    for line in reversed(text.splitlines()):
        if not _DIGIT.search(line):
            continue
        found = integers(line.rpartition(":")[2].strip(" *_`.$"))
        if found is not None and len(found) > 1:
            return found
    return None


def _outermost(text: str) -> Iterator[str]:
    """The bracketed parts of a text that lie in no other one, the last first."""
    open_at: list[int] = []
    found: list[tuple[int, int]] = []  # in the order of their ends: what encloses comes later
    for m in re.finditer(r"[\[\]]", text):
        if m.group() == "[":
            open_at.append(m.start())
        elif open_at:
            found.append((open_at.pop(), m.end()))
    before = len(text)
    for start, end in reversed(found):
        if end <= before:
            before = start
            yield text[start:end]


def rows(text: str) -> list[list[str]] | None:
    """Bracketed rows, one per line or nested: cells as text without quotes."""
    found = re.findall(r"\[([^\[\]]*)\]", text)
    if not found:
        return None
    return [
        [cell.strip().strip("'\"") for cell in re.split(r"[,\s]+", row.strip()) if cell]
        for row in found
    ]


def mapping(text: str) -> dict[str, str] | None:
    """Names to values, both as text: {"A": 1, 'B': 2} or {x1: True} or A=1, B=2 (or lines).

    An index is written out: x_{1} is x_1. Dollar signs are dropped.
    None where a name comes twice with different values or a part is no pair.
    """
    inner = _plain_names(text).strip().strip("`")
    inner = inner.removeprefix("json").removeprefix("python").strip()
    if inner[:1] + inner[-1:] == "{}":
        inner = inner[1:-1]
    elif "{" in inner or "}" in inner:
        return None
    found: dict[str, str] = {}
    for part in re.split(r"[,;\n]", inner):
        if not part.strip():
            continue
        if len(part) > _MAX_PAIR:
            return None
        between = _BETWEEN.search(part)
        if between is None:
            return None
        key = part[: between.start()].strip().removeprefix("- ").removeprefix("* ")
        key, value = (p.strip().strip("'\"") for p in (key, part[between.end() :]))
        if not key or not value:
            return None
        if found.setdefault(key, value) != value:
            return None
    return found or None


def _plain_names(text: str) -> str:
    return _SUBSCRIPT.sub(r"_\1", text.translate(_LOW_DIGITS).replace("$", ""))


def last_mapping(text: str) -> dict[str, str] | None:
    """The last {...} of running text that is a mapping."""
    plain = _plain_names(text).replace("\\", "")
    for found in reversed(re.findall(r"\{[^{}]*\}", plain)):
        pairs = mapping(found)
        if pairs is not None:
            return pairs
    return None


def as_json_list(values: list[int]) -> str:
    """A list of whole numbers as prompts and answers write it: [1, 2, 3]."""
    return json.dumps(values)
