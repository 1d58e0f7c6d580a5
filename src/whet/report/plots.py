"""Plots as SVG text: one file, no pyplot, the same bytes for the same input.

Text and axes take the page's own text colour (`currentColor`), so a plot reads in light and dark.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.errors import InputError, OptionError
from whet.report.labels import Box, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe hues, lightness moved to 3:1 or more on white and on near-black;
# shapes differ too, so that colour never stands alone.
PALETTE = ("#2a7fc9", "#d0590b", "#0d9668", "#b3629f", "#a77a00", "#4a93b8", "#c9445c", "#7a7f87")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")

_INK = "#010203"  # stands for the page's text colour until the SVG is finished
_SIZE = (8.4, 5.0)  # inches, at 72 units each


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a frontier: a name, where it is, its interval in y, and whose it is."""

    label: str
    x: float
    y: float
    ylo: float | None = None
    yhi: float | None = None
    group: str = ""


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points no other beats (less x and at least as much y, or more y for no more x), by x."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def frontier(
    points: Sequence[Point],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    percent: bool = False,
    log_x: bool | None = None,
) -> str:
    """Quality (up is better) against cost (left is better) as an SVG: what is worth its price.

    Each point has its name beside it and its interval; the stepped line runs along the Pareto
    set. percent: y holds fractions and is shown in percent. log_x: a logarithmic cost axis, by
    default where the costs are positive and span more than a factor of 8.
    Errors: InputError without points, OptionError where matplotlib is missing.
    """
    if not points:
        raise InputError("a frontier needs at least one point")
    with _matplotlib():
        from matplotlib.figure import Figure

        figure = Figure(figsize=_SIZE, dpi=72)
        axes = figure.add_axes((0.1, 0.12, 0.88, 0.74))
        _axes_style(axes, xlabel, ylabel, title)
        _scales(axes, points, percent, log_x)
        _frontier_line(axes, points)
        _draw_points(axes, points)
        _draw_labels(figure, axes, points)
        return _svg(figure, title)


@contextlib.contextmanager
def _matplotlib() -> Iterator[None]:
    """matplotlib's own defaults plus ours inside the block; the user's settings come back after.

    Errors: OptionError where matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise OptionError(
            "plots need matplotlib: install the extra with pip install 'whet[plots]'"
        ) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": "whet",
                "svg.fonttype": "none",
                "font.family": "sans-serif",
                "font.size": 11,
                "text.color": _INK,
                "axes.labelcolor": _INK,
                "axes.edgecolor": _INK,
                "xtick.color": _INK,
                "ytick.color": _INK,
            }
        )
        yield


def _axes_style(axes: Axes, xlabel: str, ylabel: str, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=26)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(visible=True, color=_INK, alpha=0.12, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_alpha(0.4)


def _scales(axes: Axes, points: Sequence[Point], percent: bool, log_x: bool | None) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

    low, high = min(p.x for p in points), max(p.x for p in points)
    if log_x if log_x is not None else low > 0 and high / low > 8:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(low / 1.25, high * 1.35)
    else:
        margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
        axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    bottom = min(_lowest(p) for p in points)
    top = max(_highest(p) for p in points)
    margin = (top - bottom) * 0.09 or abs(top) * 0.1 or 1.0
    axes.set_ylim(bottom - margin, top + margin)
    if percent:
        axes.yaxis.set_major_formatter(
            PercentFormatter(xmax=1, decimals=0 if top - bottom > 0.05 else 1)
        )


def _lowest(point: Point) -> float:
    return point.y if point.ylo is None else min(point.y, point.ylo)


def _highest(point: Point) -> float:
    return point.y if point.yhi is None else max(point.y, point.yhi)


def _frontier_line(axes: Axes, points: Sequence[Point]) -> None:
    """From the cheapest point to the right edge: what each cost can buy at most."""
    best = pareto(points)
    xs = [p.x for p in best] + [axes.get_xlim()[1]]
    ys = [p.y for p in best] + [best[-1].y]
    axes.step(
        xs, ys, where="post", color=_INK, alpha=0.45, linewidth=1.3, dashes=(5, 3), zorder=1.5
    )


def _draw_points(axes: Axes, points: Sequence[Point]) -> None:
    groups = list(dict.fromkeys(p.group for p in points))
    for index, group in enumerate(groups):
        members = [p for p in points if p.group == group]
        colour = PALETTE[index % len(PALETTE)]
        xs = [p.x for p in members]
        for p in members:
            axes.plot([p.x, p.x], [_lowest(p), _highest(p)], color=colour, alpha=0.6, lw=1.4)
        marker = MARKERS[index % len(MARKERS)]
        axes.plot(xs, [p.y for p in members], marker, color=colour, ms=7, label=group, zorder=3)
    if len(groups) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.012, 0.99),
            ncols=len(groups),
            frameon=False,
            fontsize=10,
            handletextpad=0.2,
            columnspacing=1.2,
        )


def _draw_labels(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import IdentityTransform

    renderer = FigureCanvasAgg(figure).get_renderer()
    anchors = [_pixel(axes, p.x, p.y) for p in points]
    texts = [axes.text(0, 0, p.label, fontsize=9.5, transform=IdentityTransform()) for p in points]
    sizes = []
    for text in texts:
        extent = text.get_window_extent(renderer)
        sizes.append((float(extent.width), float(extent.height)))
    frame = axes.get_window_extent(renderer)
    bounds = (float(frame.x0), float(frame.y0), float(frame.x1), float(frame.y1))
    boxes = place_labels(anchors, sizes, _obstacles(axes, points), bounds)
    for text, box, anchor in zip(texts, boxes, anchors, strict=True):
        text.set_position(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
        text.set_horizontalalignment("center")
        text.set_verticalalignment("center")
        _leader(axes, box, anchor)


def _leader(axes: Axes, box: Box, anchor: tuple[float, float]) -> None:
    """A thin line from the point to its name, where the name is not right beside it."""
    from matplotlib.transforms import IdentityTransform

    x = min(max(anchor[0], box[0]), box[2])
    y = min(max(anchor[1], box[1] + 2), box[3] - 2)
    if (x - anchor[0]) ** 2 + (y - anchor[1]) ** 2 < 13**2:
        return
    axes.plot(
        [anchor[0], x],
        [anchor[1], y],
        color=_INK,
        alpha=0.4,
        lw=0.7,
        transform=IdentityTransform(),
    )


def _obstacles(axes: Axes, points: Sequence[Point]) -> list[Box]:
    boxes: list[Box] = []
    for p in points:
        x, y = _pixel(axes, p.x, p.y)
        boxes.append((x - 4.5, y - 4.5, x + 4.5, y + 4.5))
        low, high = _pixel(axes, p.x, _lowest(p))[1], _pixel(axes, p.x, _highest(p))[1]
        boxes.append((x - 1, low, x + 1, high))
    best = pareto(points)
    ends = [*best[1:], None]
    for here, after in zip(best, ends, strict=True):
        x, y = _pixel(axes, here.x, here.y)
        right, top = _pixel(axes, after.x, after.y) if after else (axes.bbox.x1, y)
        boxes += [(x, y - 1, right, y + 1), (right - 1, y, right + 1, top)]
    return boxes


def _pixel(axes: Axes, x: float, y: float) -> tuple[float, float]:
    px, py = axes.transData.transform((x, y))
    return float(px), float(py)


def _svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element: scalable, transparent, ids its own, nothing external."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(_INK, "currentColor")
    # matplotlib's style sheet says * {…}, which would reach the whole page around an inline SVG.
    text = re.sub(r"\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    for side in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", text, count=1)
    name = html.escape(title, quote=True)
    style = "stroke-linejoin:round;stroke-linecap:butt"
    text = text.replace("<svg", f'<svg role="img" aria-label="{name}" style="{style}"', 1)
    prefix = "w" + hashlib.sha256(text.encode()).hexdigest()[:8] + "-"
    for mark in ('id="', 'href="#', "url(#"):
        text = text.replace(mark, mark + prefix)
    return text
