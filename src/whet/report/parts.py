"""A metric by part (task, variation, size) as pictures: a row per part, a mark per arm."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from whet.errors import InputError
from whet.measure.record import Arm, Metric
from whet.report import words
from whet.report.plots import _INK, MARKERS, PALETTE, _matplotlib, _svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 8.4  # inches, at 72 units each, as all lengths below
_MOST_ROWS = 80
_LONGEST = 44  # characters of a part's name
_PANEL, _GAP = 0.95, 0.65  # a panel, and room for the title of the next below it


def parts_plot(arms: Sequence[Arm], metric: str) -> str:
    """`metric/PART` of all arms as an SVG: parts from top to bottom, values to the right.

    Intervals are lines. The first 80 parts are shown, and the title says so where there are more.
    Errors: InputError where no arm has the metric by part; OptionError where matplotlib is
    missing.
    """
    every = words.breakdowns(list(arms)).get(metric, [])
    names = every[:_MOST_ROWS]
    if not names:
        raise InputError(f"no arm has {metric!r} by part")
    title = words.parts_heading(metric)
    if len(every) > len(names):
        title += f" (the first {len(names)} of {len(every)})"
    parts = [n.partition("/")[2] for n in names]
    labels = [p if len(p) <= _LONGEST else f"{p[: _LONGEST - 1]}…" for p in parts]
    with _matplotlib():
        from matplotlib.figure import Figure

        head, row = _head_height(arms), max(0.3, 0.1 * len(arms))
        height = head + row * len(names) + 0.4
        figure = Figure(figsize=(_WIDTH, height), dpi=72)
        left = 0.03 + 0.0098 * max(map(len, labels))
        axes = figure.add_axes((left, 0.35 / height, 0.97 - left, 1 - (head + 0.4) / height))
        axes.grid(visible=True, axis="x", color=_INK, alpha=0.12, linewidth=0.7)
        axes.patch.set_visible(False)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        for index, arm in enumerate(arms):
            shift = _shift(index, len(arms), 0.65)
            rows = [(i + shift, arm.metrics[n]) for i, n in enumerate(names) if n in arm.metrics]
            colour, marker = _look(index)
            for y, m in rows:
                if m.ci is not None:
                    axes.plot(m.ci, [y, y], color=colour, alpha=0.55, lw=1.4)
            values, ys = [m.value for _, m in rows], [y for y, _ in rows]
            axes.plot(values, ys, marker, color=colour, ms=6, label=arm.name, zorder=3)
        axes.set_yticks(range(len(names)), labels, fontsize=9.5)
        axes.tick_params(axis="x", labelsize=10)
        axes.set_ylim(len(names) - 0.4, -0.6)
        _share_axis(axes, arms, names)
        _head(figure, axes, title, arms)
        return _svg(figure, title)


def sizes_plot(arms: Sequence[Arm], metric: str = "accuracy by size") -> str | None:
    """Accuracy against size, one small panel per task; None where no task has two sizes.

    Parts are named "TASK SIZE". Arms stand a little beside each other, so that none hides another.
    Errors: OptionError where matplotlib is missing.
    """
    tasks: dict[str, dict[int, str]] = {}
    for name in words.breakdowns(list(arms)).get(metric, []):
        found = re.fullmatch(r"(.+) (\d+)", name.partition("/")[2])
        if found:
            tasks.setdefault(found.group(1), {})[int(found.group(2))] = name
    several = {task: sizes for task, sizes in tasks.items() if len(sizes) > 1}
    if not several:
        return None
    with _matplotlib():
        from matplotlib.figure import Figure

        columns = min(4, len(several))
        lines = -(-len(several) // columns)
        head = _head_height(arms) + 0.3  # the title of a panel may take two lines
        height = head + lines * _PANEL + (lines - 1) * _GAP + 0.3
        figure = Figure(figsize=(_WIDTH, height), dpi=72)
        grid = figure.add_gridspec(
            lines, columns, left=0.07, right=0.99, bottom=0.3 / height, top=1 - head / height,
            hspace=_GAP / _PANEL, wspace=0.3,
        )  # fmt: skip
        for place, (task, sizes) in enumerate(several.items()):
            axes = figure.add_subplot(grid[place // columns, place % columns])
            title = textwrap.fill(task.replace("_", " "), 26)
            axes.set_title(title, loc="left", fontsize=9, linespacing=1.0)
            _panel(axes, arms, sizes)
        title = "Accuracy against size"
        _head(figure, figure.axes[0], title, arms)
        return _svg(figure, title)


def _panel(axes: Axes, arms: Sequence[Arm], sizes: dict[int, str]) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.patch.set_visible(False)
    axes.grid(visible=True, color=_INK, alpha=0.12, linewidth=0.7)
    order = sorted(sizes)
    for index, arm in enumerate(arms):
        points = [(s, arm.metrics[sizes[s]]) for s in order if sizes[s] in arm.metrics]
        _line(
            axes, points, index, arm.name, _shift(index, len(arms), 0.06 * (order[-1] - order[0]))
        )
    axes.set_ylim(-0.05, 1.05)
    axes.set_xticks(order, [str(s) for s in order], fontsize=8)
    axes.set_yticks([0, 0.5, 1])
    axes.tick_params(axis="y", labelsize=8)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _line(
    axes: Axes, points: Sequence[tuple[int, Metric]], index: int, name: str, shift: float
) -> None:
    colour, marker = _look(index)
    for size, m in points:
        if m.ci is not None:
            axes.plot([size + shift] * 2, m.ci, color=colour, alpha=0.5, lw=1.2)
    xs, ys = [s + shift for s, _ in points], [m.value for _, m in points]
    axes.plot(xs, ys, marker=marker, color=colour, ms=4.5, lw=1.2, label=name)


def _look(index: int) -> tuple[str, str]:
    """Colour and marker of an arm."""
    return PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]


def _shift(index: int, count: int, spread: float) -> float:
    """How far arm `index` of `count` stands from the middle: evenly over `spread`, less an end."""
    return (index - (count - 1) / 2) * spread / count


def _share_axis(axes: Axes, arms: Sequence[Arm], names: Sequence[str]) -> None:
    from matplotlib.ticker import PercentFormatter

    units = {arm.metrics[n].unit for arm in arms for n in names if n in arm.metrics}
    if units == {"fraction"}:
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


# --- title and legend, above everything and across the whole width --------------------------------


def _legend_columns(arms: Sequence[Arm]) -> int:
    entry = 0.45 + 0.078 * max(len(arm.name) for arm in arms)
    return max(1, min(len(arms), int(_WIDTH / entry)))


def _head_height(arms: Sequence[Arm]) -> float:
    lines = math.ceil(len(arms) / _legend_columns(arms)) if len(arms) > 1 else 0
    return 0.5 + 0.22 * lines


def _head(figure: Figure, axes: Axes, title: str, arms: Sequence[Arm]) -> None:
    height = figure.get_size_inches()[1]
    top = 1 - 0.08 / height
    figure.text(0.01, top, title, fontsize=13, fontweight="bold", va="top")
    if len(arms) > 1:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=(0.005, 1 - 0.36 / height),
            ncols=_legend_columns(arms),
            frameon=False,
            fontsize=9.5,
            borderpad=0,
            borderaxespad=0,
            handletextpad=0.4,
            columnspacing=1.4,
        )
