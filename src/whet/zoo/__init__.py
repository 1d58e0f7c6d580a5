"""Tiny models that ship with the package, and `load` for any model by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Zoo models whose weights are in the package."""
    return sorted(p.parent.name for p in _HERE.glob("*/config.json"))


def recipes() -> dict[str, Path]:
    """Recipes in the package, by name."""
    return {p.stem: p for p in sorted((_HERE / "recipes").glob("*.yaml"))}


def load(source: str | Path, *, dtype: Any = "auto", device: Any = "cpu") -> tuple[Any, Any]:
    """Model and tokenizer of a zoo name, a directory in the published layout or a hub name.

    dtype: a torch dtype, or "auto" (as stored; float16 becomes float32 on a CPU). Registers
    whet's model classes with transformers' Auto factories. The model is in eval mode.
    Errors: OptionError for an unknown zoo name (with the nearest match), CheckpointError naming
    the file or tensor that is wrong.
    """
    from whet.errors import OptionError, nearest
    from whet.models.loading import load_checkpoint
    from whet.models.registry import register

    register()
    text = str(source)
    if text in names():
        source = _HERE / text
    elif "/" not in text and not Path(source).exists():
        raise OptionError(
            f"unknown model {text!r}: {nearest(text, names())} "
            "(a directory or a hub name owner/name works too)"
        )
    return load_checkpoint(source, dtype=dtype, device=device)
