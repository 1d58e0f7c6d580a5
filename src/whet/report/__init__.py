"""Records made readable: tables for the terminal, plots, and one self-contained page."""

from __future__ import annotations

from whet.report.canvas import Canvas, CanvasRun
from whet.report.page import Plot, render_page, write_page
from whet.report.pages import from_folder, frontier_of
from whet.report.plots import Point, frontier, pareto
from whet.report.tables import arms_table, claims_table, print_table, show

__all__ = [
    "Canvas",
    "CanvasRun",
    "Plot",
    "Point",
    "arms_table",
    "claims_table",
    "from_folder",
    "frontier",
    "frontier_of",
    "pareto",
    "print_table",
    "render_page",
    "show",
    "write_page",
]
