"""Decoders by name: `soar`, `soar:threshold=0.9,beam_width=4`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whet import catalogue
from whet.dlm.options import DecodeOptions
from whet.errors import OptionError
from whet.spec import Spec, build


def decoder_options(text: str, settings: Mapping[str, Any] | None = None) -> DecodeOptions:
    """Options of the decoder named by `NAME[:key=value,...]`, with `settings` on top.

    Errors: OptionError for an unknown decoder or option (nearest match) or a bad value.
    """
    spec = Spec.parse(text)
    if spec.suite is not None:
        raise OptionError(f"{text!r}: decoders have no suites, write {spec.name!r}")
    method = catalogue.get(spec.name, "decode")
    merged = {**spec.settings, **(settings or {})}
    options: DecodeOptions = build(
        catalogue.resolve(method.id, "decode"), merged, of=f"decoder {method.id!r}"
    )
    return options
