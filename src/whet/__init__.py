"""whet: make generative models smaller and faster, and measure honestly what that cost.

`import whet` is light; torch and transformers are imported by the first call that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whet.zoo import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        # By string: the package's root stands under every floor and imports none of them.
        return importlib.import_module("whet.zoo").load
    raise AttributeError(f"module 'whet' has no attribute {name!r}")
