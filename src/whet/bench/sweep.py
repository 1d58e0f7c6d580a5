"""Decoders over a grid of settings: which arms a sweep has."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from whet import catalogue
from whet.bench.decoding import DecoderArm, Models
from whet.errors import OptionError, nearest
from whet.models.denoiser import Denoiser
from whet.spec import Spec


def parse_axes(texts: Sequence[str]) -> dict[str, list[str]]:
    """`KEY=V1,V2,...` each. Errors: OptionError for what is none, or a key that comes twice."""
    axes: dict[str, list[str]] = {}
    for text in texts:
        key, equals, tail = text.partition("=")
        key = key.strip().replace("-", "_")
        values = list(dict.fromkeys(v.strip() for v in tail.split(",") if v.strip()))
        if not equals or not key or not values:
            raise OptionError(f"{text!r} is no axis of a sweep: write KEY=VALUE,VALUE,...")
        if key in axes:
            raise OptionError(f"{key!r} is swept twice: give all its values at once")
        axes[key] = values
    return axes


def sweep_arms(
    decoders: Sequence[str], axes: dict[str, list[str]]
) -> tuple[list[DecoderArm], dict[str, str]]:
    """Every decoder as it is written, then with every combination of the axes it has.

    A setting that a decoder is written with is not swept. Combinations that the decoder refuses
    are left out; they come back with the reason. Errors: OptionError for an axis that no decoder
    has, or a combination list that leaves nothing to compare.
    """
    arms: dict[str, DecoderArm] = {}
    refused: dict[str, str] = {}
    known: set[str] = set()
    for text in decoders:
        spec = Spec.parse(text)
        options: Any = catalogue.resolve(spec.name, "decode")
        names = {f.name for f in dataclasses.fields(options)}
        known |= names
        _add(arms, DecoderArm.parse(str(spec)))
        swept = {k: v for k, v in axes.items() if k in names and k not in spec.settings}
        for values in itertools.product(*swept.values()):
            settings = {**spec.settings, **dict(zip(swept, values, strict=True))}
            name = str(Spec(spec.name, None, settings))
            try:
                _add(arms, DecoderArm.parse(name))
            except OptionError as error:
                refused[name] = str(error)
    for key in axes:
        if key not in known:
            raise OptionError(f"no decoder of this sweep has {key!r}: {nearest(key, known)}")
    return list(arms.values()), refused


def _add(arms: dict[str, DecoderArm], arm: DecoderArm) -> None:
    """Unless another arm does the same under a shorter name."""
    if all((arm.options, arm.model) != (a.options, a.model) for a in arms.values()):
        arms[arm.name] = arm


def fitting(
    arms: Sequence[DecoderArm], model: Any, gen_length: int, others: Models = MappingProxyType({})
) -> tuple[list[DecoderArm], dict[str, str]]:
    """The arms that can decode `gen_length` positions with their model; the rest with the reason.

    Errors: OptionError where none is left.
    """
    kept, refused = [], {}
    for arm in arms:
        denoiser = Denoiser.of(others[arm.model][0] if arm.model else model)
        try:
            arm.options.check(denoiser, gen_length)
            kept.append(arm)
        except OptionError as error:
            refused[arm.name] = str(error)
    if not kept:
        raise OptionError(f"nothing is left of the sweep: {next(iter(refused.values()))}")
    return kept, refused
