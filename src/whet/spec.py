"""One grammar for a thing with its settings: `NAME[@suite][:key=value,...]`.

A value that is a list has its entries joined by plus signs: `key=0+1+31`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from whet.errors import OptionError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Spec:
    """A parsed `NAME[@suite][:key=value,...]`; values are still text."""

    name: str
    suite: str | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Errors: OptionError where a setting is not key=value or a key comes twice."""
        head, _, tail = text.partition(":")
        name, _, suite = head.strip().partition("@")
        if not name:
            raise OptionError(f"{text!r} names nothing: write NAME or NAME:key=value,key=value")
        settings: dict[str, str] = {}
        for part in filter(None, (p.strip() for p in tail.split(","))):
            key, equals, value = part.partition("=")
            key = key.strip().replace("-", "_")
            if not equals or not key:
                raise OptionError(f"{part!r} in {text!r} is no setting: write key=value")
            if key in settings:
                raise OptionError(f"{key!r} is set twice in {text!r}")
            settings[key] = value.strip()
        return cls(name, suite or None, settings)

    def __str__(self) -> str:
        suite = f"@{self.suite}" if self.suite else ""
        tail = ",".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.name}{suite}" + (f":{tail}" if tail else "")


def build(cls: type[T], settings: dict[str, Any], *, of: str) -> T:
    """Make dataclass `cls` from settings whose values may be text; `of` names it in errors.

    Errors: OptionError for an unknown key (nearest match) or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise OptionError(f"{of} has no option {key!r}: {nearest(key, known)}")
        values[key] = _convert(value, known[key], key, of) if isinstance(value, str) else value
    return cls(**values)


def _convert(text: str, hint: Any, key: str, of: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if text.lower() in ("none", "null") and type(None) in args:
            return None
        hint = next(a for a in args if a is not type(None))
        return _convert(text, hint, key, of)
    if origin is tuple:  # of any length, parts of one kind, as 1+2+3
        return tuple(_convert(part, args[0], key, of) for part in filter(None, text.split("+")))
    if origin is typing.Literal:
        if text not in args:
            raise OptionError(f"{of}: {key}={text!r} is not one of {', '.join(map(str, args))}")
        return text
    if origin is tuple:  # of one kind, of any length
        return tuple(_convert(part, args[0], key, of) for part in filter(None, text.split("+")))
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise OptionError(f"{of}: {key}={text!r} must be true or false")
        return text.lower() == "true"
    try:
        return hint(text)
    except (TypeError, ValueError):
        kind = {"int": "a whole number", "float": "a number"}.get(hint.__name__, hint.__name__)
        raise OptionError(f"{of}: {key}={text!r} must be {kind}") from None
