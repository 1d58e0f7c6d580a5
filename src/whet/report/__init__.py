"""Records made readable: tables for the terminal, plots, and one self-contained page.

Names are imported on first use, so that a verb that prints a table does not pay for pages.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Canvas": "canvas",
    "CanvasRun": "canvas",
    "Plot": "page",
    "Point": "plots",
    "arms_table": "tables",
    "claims_table": "tables",
    "from_folder": "pages",
    "frontier": "plots",
    "frontier_of": "pages",
    "pareto": "plots",
    "print_table": "tables",
    "render_page": "page",
    "show": "tables",
    "write_page": "page",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'whet.report' has no attribute {name!r}")
    return getattr(importlib.import_module(f"whet.report.{_HOMES[name]}"), name)
