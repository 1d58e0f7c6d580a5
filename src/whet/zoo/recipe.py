"""Recipes: a run in one YAML file, read strictly."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from whet.errors import InputError, OptionError, nearest
from whet.fit import FitSettings


class YamlFile(BaseModel):
    """A YAML file with known keys. Unknown ones are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, path: Path, *, method: str | None = None) -> Self:
        """The recipe in a YAML file, which must be for `method` where one is given.

        Errors: InputError naming the file and the key that is wrong.
        """
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read recipe {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            why = " ".join(str(error).split())
            raise InputError(f"recipe {path} is not YAML: {why}") from error
        # First, since another method's keys would all be unknown.
        named = raw.get("method") if isinstance(raw, dict) else None
        if isinstance(named, str) and method not in (None, named):
            raise InputError(f"recipe {path}: method: it is for {named!r}, not {method!r}")
        try:
            recipe = cls.model_validate(raw)
            recipe.check()
        except ValidationError as error:
            raise InputError(f"recipe {path}: {cls._explain(error)}") from error
        except OptionError as error:
            raise InputError(f"recipe {path}: {error}") from error
        return recipe

    def check(self) -> None:
        """What fields cannot say, before anything is built. Errors: OptionError."""

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        # An unknown key first: it is often the misspelt form of one that is reported missing.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        where = ".".join(map(str, first["loc"])) or "recipe"
        if first["type"] != "extra_forbidden":
            return f"{where}: {first['msg'].removeprefix('Value error, ')}"
        section: type[BaseModel] = cls
        for part in first["loc"][:-1]:
            if part in section.model_fields:  # else it names a choice of a union
                section = _section(section.model_fields[str(part)].annotation)
        key = str(first["loc"][-1])
        return f"unknown key {where!r}: {nearest(key, section.model_fields)}"


class Recipe(YamlFile):
    """What every training recipe has; a method's own recipe adds its keys."""

    method: str
    fit: FitSettings


def recipe_method(path: Path) -> str:
    """The method that a recipe in the package is for."""
    return str(yaml.safe_load(path.read_text(encoding="utf-8"))["method"])


def _section(annotation: Any) -> type[BaseModel]:
    """The model in `Model` or `Model | None`."""
    choices = (annotation, *typing.get_args(annotation))
    return next(c for c in choices if isinstance(c, type) and issubclass(c, BaseModel))
