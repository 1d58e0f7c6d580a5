"""Reading answers out of a model's text. Nothing here knows the truth, and nothing is executed.

Strict reading takes what stands in the LAST well-formed marker, so that a repeated prompt or an
earlier attempt does not count. Lenient reading tries that first, then the last line that says
"answer:", then the last value of the right type. All scans are linear in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

from whet.tasks.base import Mode

T = TypeVar("T")

MAX_TEXT = 1 << 20
"""Only the last so many characters of a text are read."""
_MAX_DIGITS = 4000  # Python refuses to convert longer numbers.

_MINUS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "－": "-", "\u00a0": " ", "\u202f": " "})
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<!\d)\.\d+)?"
    r"(?:[eE][-+]?\d{1,3})?(?![\w])"
)
_INTEGER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?![\w]|\.\d)")
_SAYS = re.compile(r"\banswer\b[^:=\n]{0,40}[:=]\s*(.+)", re.I)
_OPEN, _CLOSE = re.compile(r"<answer>", re.I), re.compile(r"</answer>", re.I)
_MAX_PAIR = 400  # characters of one "name: value"
_DEFAULT_THINK = ("<think>", "</think>")


def answer_part(text: str, markers: tuple[str, str] = _DEFAULT_THINK) -> str | None:
    """What follows the model's thinking; None where thinking was begun and never ended."""
    opened, closed = markers
    _, found, rest = text.rpartition(closed)
    if found:
        return rest
    return None if opened in text else text


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} whose braces balance, LaTeX dressing removed."""
    text = text[-MAX_TEXT:]
    closing = _matching_braces(text)
    for start in reversed([m.end() - 1 for m in re.finditer(r"\\f?boxed\s*\{", text)]):
        if start in closing:
            return undress(text[start + 1 : closing[start]])
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


def last_block(text: str) -> str | None:
    """The content of the last <answer>...</answer>."""
    pieces = _CLOSE.split(text[-MAX_TEXT:])[:-1]  # each ends where a block was closed
    for piece in reversed(pieces):
        opens = [m.end() for m in _OPEN.finditer(piece)]
        if opens:
            return piece[opens[-1] :].strip()
    return None


def last_said(text: str) -> str | None:
    """What the last line of the form "answer: X" says."""
    for line in reversed(text[-MAX_TEXT:].splitlines()):
        found = _SAYS.search(line[:10_000])
        if found:
            return undress(found.group(1).strip(" *_`"))
    return None


def undress(text: str) -> str:
    r"""Remove \text{}, \frac{a}{b} (as a/b), dollar signs, \, spaces; unify minus signs."""
    text = text.translate(_MINUS)
    for _ in range(4):  # nested dressing, bounded
        stripped = _FRACTION.sub(r"\1/\2", _TEXT.sub(r"\1", text))
        if stripped == text:
            break
        text = stripped
    text = re.sub(r"\\[,;:!]|\\left|\\right|\$|\\\(|\\\)", "", text)
    return text.replace("\\{", "{").replace("\\}", "}").replace("\\_", "_").strip()


def read(
    text: str,
    mode: Mode,
    *,
    marked: Callable[[str], str | None],
    exact: Callable[[str], T | None],
    last: Callable[[str], T | None],
) -> T | None:
    """An answer by the module's order.

    marked: the marker the prompt asks for (`last_boxed` or `last_block`). exact: reads a text that
    should be the answer and nothing else. last: finds the last value of the type in running text.
    """
    text = text[-MAX_TEXT:].translate(_MINUS)
    inside = marked(text)
    if inside is not None:
        found = exact(inside)
        if found is not None or mode == "strict":
            return found
        # A marker around a sentence: lenient reading looks into it first.
        found = last(inside)
        if found is not None:
            return found
    if mode == "strict":
        return None
    said = last_said(text)
    if said is not None:
        found = exact(said)
        if found is None:
            found = last(said)
        if found is not None:
            return found
    return last(text)


def integer(text: str) -> int | None:
    """A whole number and nothing else, from its digits: 1,234 and -5 and +7 and 12. and 3.00."""
    found = re.fullmatch(r"([-+]?)\s*(\d{1,3}(?:,\d{3})+|\d+)(?:\.0*)?", text.strip())
    if found is None or len(found.group(2)) > _MAX_DIGITS:
        return None
    value = int(found.group(2).replace(",", ""))
    return -value if found.group(1) == "-" else value


def last_integer(text: str) -> int | None:
    """The last whole number in running text."""
    found = None
    for found in _INTEGER.finditer(text.translate(_MINUS)):
        pass
    return integer(found.group()) if found else None


def number(text: str) -> Fraction | None:
    """A number and nothing else, exactly: 1,234.5 and -3/4 and 1e-3 and .5."""
    text = text.strip().rstrip(".")
    top, slash, bottom = text.partition("/")
    if slash:
        a, b = number(top), number(bottom)
        return a / b if a is not None and b else None
    text = text.replace(" ", "")
    if not text or len(text) > _MAX_DIGITS or not _NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(text.replace(",", ""))
    except ValueError:
        return None


def last_number(text: str) -> Fraction | None:
    """The last number in running text; a fraction written a/b is one number."""
    found = None
    pattern = rf"(?:{_NUMBER.pattern})(?:\s*/\s*\d+)?"
    for m in re.finditer(pattern, text.translate(_MINUS)):
        if m.group()[-1:].isdigit():
            found = m.group()
    return number(found) if found else None


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
    """The last bracketed list of whole numbers in running text, else the last line's numbers."""
    for m in reversed(list(re.finditer(r"\[[^\[\]]{0,20000}\]", text.translate(_MINUS)))):
        found = integers(m.group())
        if found is not None:
            return found
    for line in reversed(text.translate(_MINUS).splitlines()):
        found = integers(line)
        if found is not None and len(found) > 1:
            return found
    return None


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

    None where a name comes twice with different values or a part is no pair.
    """
    inner = text.strip().strip("`").removeprefix("json").removeprefix("python").strip()
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
        pair = re.fullmatch(r"\s*[-*]?\s*(\S.*?)\s*(?::|=>|->|=)\s*(\S.*?)\s*", part)
        if pair is None:
            return None
        key, value = (p.strip().strip("'\"") for p in pair.groups())
        if found.setdefault(key, value) != value:
            return None
    return found or None


def last_mapping(text: str) -> dict[str, str] | None:
    """The last {...} of running text that is a mapping."""
    closing = _matching_braces(text)
    for start in sorted(closing, reverse=True):
        found = mapping(text[start : closing[start] + 1])
        if found is not None:
            return found
    return None


def as_json_list(values: list[int]) -> str:
    """A list of whole numbers as prompts and answers write it: [1, 2, 3]."""
    return json.dumps(values)
