"""Chains of methods: what a user wrote, checked; as steps on a command line or a YAML recipe.

    gptq:bits=4,group_size=32

names a method of the catalogue and options of its dataclass. A chain's steps go by stage (depth
first, number formats last), which is checked before anything is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from whet import catalogue
from whet.compress.data import COUNT
from whet.compress.method import Compression, checked_order
from whet.errors import InputError, OptionError, nearest
from whet.spec import Spec, build
from whet.zoo.recipe import YamlFile

_RECIPES = Path(__file__).parent / "recipes"

Steps = tuple[Compression, ...]


class ChainRecipe(YamlFile):
    """A compression in one file; flags of the command line go before it.

    steps: as on the command line, or `{method: {option: value}}`. data: a text file or
    "tasks:NAME". length: None takes what the model takes, 2,048 tokens at most.
    """

    steps: list[str | dict[str, dict[str, JsonValue] | None]] = Field(min_length=1)
    data: str | None = None
    count: int = Field(default=COUNT, ge=1)
    length: int | None = Field(default=None, ge=2)
    batch_size: int = Field(default=8, ge=1)
    seed: int = 0

    def check(self) -> None:
        """Errors: OptionError for unknown methods or options, or a wrong order."""
        self.chain()

    def chain(self) -> Steps:
        """The steps as methods."""
        return parse_chain(self.steps)


def recipes() -> dict[str, Path]:
    """Recipes in the package, by name."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.yaml"))}


def read_recipe(name: str) -> ChainRecipe:
    """A recipe in the package, or a YAML file. Errors: InputError."""
    known = recipes()
    path = known.get(name, Path(name))
    if not path.is_file():
        raise InputError(f"no recipe {name!r}: {nearest(name, known)} (a YAML file works too)")
    return ChainRecipe.read(path)


def parse_chain(steps: Sequence[str | Mapping[str, Any]]) -> Steps:
    """Methods with their options, in order.

    Errors: OptionError for no steps, unknown methods or options, or a wrong order.
    """
    if not steps:
        raise OptionError("a chain needs at least one step, as gptq:bits=4")
    chain = tuple(map(parse_step, steps))
    checked_order(chain)
    return chain


def parse_step(step: str | Mapping[str, Any]) -> Compression:
    """One method. Errors: OptionError for an unknown method, option or a value of a wrong type."""
    if isinstance(step, str):
        spec = Spec.parse(step)
        if spec.suite is not None:
            raise OptionError(f"{step!r}: methods of compression have no suites (@{spec.suite})")
        name, settings = spec.name, dict(spec.settings)
    else:
        if len(step) != 1:
            raise OptionError(f"a step is one method and its options, got {', '.join(step)!r}")
        ((name, given),) = step.items()
        settings = {key: _as_text(value) for key, value in (given or {}).items()}
    method = catalogue.get(name, "compress")
    found = build(catalogue.resolve(method.id, "compress"), settings, of=f"method {method.id!r}")
    if not isinstance(found, Compression):
        raise OptionError(f"method {method.id!r} is no compression method")
    return found


def step_text(step: Compression) -> str:
    """A step as it would be written: its name and the options that are not the default ones."""
    settings = {}
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default:
            settings[field.name] = _as_text(value)
    return str(Spec(step.id, None, settings))


def _as_text(value: Any) -> str:
    """As `Spec` settings are written: lists with a plus between their parts."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(_as_text, value))
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)
