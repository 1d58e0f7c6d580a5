"""Errors that a user can act on: one sentence with the field, the value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WhetError(Exception):
    """Base of every error whet raises on purpose. The command line prints it and exits with 2."""


class OptionError(WhetError, ValueError):
    """An option, name or combination of options that is not allowed."""


class InputError(WhetError, ValueError):
    """User data (a prompt, a file, a line) that cannot be used."""


class CheckpointError(WhetError, RuntimeError):
    """A checkpoint that is missing, damaged or of another shape than its configuration says."""


class NonFiniteError(WhetError, FloatingPointError):
    """A loss or a tensor that became NaN or infinite."""


class WhetWarning(UserWarning):
    """Something worked, but not the way the user may expect."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A closing clause for 'unknown NAME' sentences: the nearest match, else all known names.

    Errors: none; an empty `known` gives "nothing is registered".
    """
    options = sorted(set(known))
    if not options:
        return "nothing is registered"
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known are " + ", ".join(options)
