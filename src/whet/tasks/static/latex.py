r"""Short mathematical answers in LaTeX: finding them and comparing how they are written.

A rewriting of notation, no algebra: \frac12 and 1/2 and 0.5 are the same, x+1 and 1+x are not.
Braces that hold one number or letter count as absent, so that 2^10 is read as 2^{10}.
"""

from __future__ import annotations

import re

from whet.tasks.answers import number, undress

_READ = 20_000  # characters of a text, from its end
_TRIED = 20  # boxes that may be left open after the last closed one

_BOX = re.compile(r"\\f?boxed\s*(?:\{|([^{\s]))")
_SAID = re.compile(r"answer is\s*:?\s*(?:\$([^$\n]+)\$|([^\n]+?))\s*(?:\.\s|\.?$)", re.I | re.M)

_GONE = re.compile(
    r"\\\$|\^\{?\\circ\}?|\\degree|\\?%|\\displaystyle|\\[bB]igg?[lr]?(?![a-z])|\\left|\\right(?![a-z])"
)
_UNIT = re.compile(
    r"(?<=[\w})$])\s*\\(?:text|mbox|textrm|mathrm)\s*\{[^{}]*\}\s*(?:\^\{?\d\}?)?\s*$"
)
_THOUSANDS = re.compile(r"(?<![\d,(\[])\d{1,3}(?:(?:,|\\,|\\!|\{,\}|,\\!)\d{3})+(?![\d,])")
_ROOT = re.compile(r"\\sqrt\s*(?:(\d|[a-z])|\{([^{}]*)\})")
_PART = r"(\d|[a-z]|\\pi(?![a-zA-Z])|\{[^{}]*\})"
_FRACTION = re.compile(rf"(\d\s*)?\\[dtc]?frac\s*{_PART}\s*{_PART}")
_SYMBOL = re.compile(r"-?\d+|[a-zA-Z]|\\[a-zA-Z]+")
_PRODUCT = re.compile(r"-?\d*\s*(?:\\[a-zA-Z]+|[a-zA-Z]|sqrt\([^()]*\))|-?\d+")
_BRACES = re.compile(r"([\^_])\s*\{\s*(-?\d+|[a-zA-Z])\s*\}(?!\s*\d)")
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")  # one between digits is no dressing
_WORDS = {
    r"\leq": "<=",
    r"\geq": ">=",
    r"\le": "<=",
    r"\ge": ">=",
    r"\cdot": "*",
    r"\times": "*",
    r"\infty": "inf",
    r"\pi": "pi",
    r"\cup": "U",
    r"\pm": "+-",
}
_WORD = re.compile("|".join(rf"{re.escape(word)}(?![a-zA-Z])" for word in _WORDS))
_AND = "&"  # between the parts of a mixed number


def boxed(text: str) -> str | None:
    r"""The content of the last balanced \boxed{...}, as written."""
    text = text[-_READ:]
    for found in list(_BOX.finditer(text))[: -_TRIED - 1 : -1]:
        if found[1]:
            return found[1]
        depth = 1
        for at in range(found.end(), len(text)):
            if text[at - 1] != "\\":
                depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[found.end() : at]
    return None


def said(text: str) -> str | None:
    """What the last "answer is ..." says."""
    said = list(_SAID.finditer(text[-_READ:]))
    return (said[-1][1] or said[-1][2]) if said else None


def normalise(text: str) -> str:
    """One way of writing for many. Units in words after a value go, spaces go."""
    text = _GONE.sub("", text.strip()).strip("$").rstrip(".").strip()
    text = _UNIT.sub("", text)
    text = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m.group()), text)
    for _ in range(4):  # one within another, bounded
        text = _BRACES.sub(r"\1\2", text)
        text = _ROOT.sub(lambda m: f"sqrt({m[1] or m[2]})", text)
        text = _FRACTION.sub(_as_quotient, text)
    text = _WORD.sub(lambda m: _WORDS[m.group()], undress(text))
    text = re.sub(r"\s+", " ", _SPACE.sub("", text))
    named = re.fullmatch(r"[a-zA-Z](?:\([a-z]\))?=([^=]+)", text)  # x=3 says 3
    return named[1] if named else text


def _as_quotient(found: re.Match[str]) -> str:
    """a/b, with brackets where b is not one symbol or whole number and a not that or 2x."""
    parts = (part.removeprefix("{").removesuffix("}").strip() for part in found.groups()[1:])
    plain = zip(parts, (_PRODUCT, _SYMBOL), strict=True)
    top, bottom = (part if form.fullmatch(part) else f"({part})" for part, form in plain)
    return (f"{found[1]}{_AND}" if found[1] else "") + f"{top}/{bottom}"


def same(a: str, b: str) -> bool:
    """Whether two answers are written the same way or are the same number."""
    x, y = normalise(a), normalise(b)
    if x == y:
        return bool(x)
    p, q = (number(text.replace(_AND, " ")) for text in (x, y))
    return p is not None and p == q
