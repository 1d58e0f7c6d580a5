"""A metric by part (task, variation, size) as pictures: a row per part, a mark per arm."""

from __future__ import annotations

import re
from collections.abc import Sequence

from whet.errors import InputError
from whet.measure.record import Arm, Metric
from whet.report import words
from whet.report.plots import _INK, MARKERS, PALETTE, _matplotlib, _svg

_MOST_ROWS = 80


def parts_plot(arms: Sequence[Arm], metric: str) -> str:
    """`metric/PART` of all arms as an SVG: parts from top to bottom, values to the right.

    Intervals are lines. Errors: InputError where no arm has the metric by part; OptionError where
    matplotlib is missing.
    """
    names = words.breakdowns(list(arms)).get(metric, [])[:_MOST_ROWS]
    if not names:
        raise InputError(f"no arm has {metric!r} by part")
    with _matplotlib():
        from matplotlib.figure import Figure

        height = 1.3 + 0.3 * len(names)
        figure = Figure(figsize=(8.4, height), dpi=72)
        longest = max(len(n.partition("/")[2]) for n in names)
        left = min(0.45, 0.03 + 0.0125 * longest)
        axes = figure.add_axes((left, 0.55 / height, 0.97 - left, 1 - 1.25 / height))
        title = f"{words.heading(metric).capitalize()} by part"
        axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=24, x=0)
        axes.grid(visible=True, axis="x", color=_INK, alpha=0.12, linewidth=0.7)
        axes.patch.set_visible(False)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        spread = 0.5 / max(1, len(arms))
        for index, arm in enumerate(arms):
            shift = (index - (len(arms) - 1) / 2) * spread
            rows = [(i + shift, arm.metrics[n]) for i, n in enumerate(names) if n in arm.metrics]
            colour = PALETTE[index % len(PALETTE)]
            for y, m in rows:
                if m.ci is not None:
                    axes.plot(m.ci, [y, y], color=colour, alpha=0.55, lw=1.4)
            axes.plot(
                [m.value for _, m in rows],
                [y for y, _ in rows],
                MARKERS[index % len(MARKERS)],
                color=colour,
                ms=6,
                label=arm.name,
                zorder=3,
            )
        axes.set_yticks(range(len(names)), [n.partition("/")[2] for n in names], fontsize=9.5)
        axes.set_ylim(len(names) - 0.4, -0.6)
        _share_axis(axes, arms, names)
        _legend(axes, arms)
        return _svg(figure, title)


def sizes_plot(arms: Sequence[Arm], metric: str = "accuracy by size") -> str | None:
    """Accuracy against size, one small panel per task; None where no task has two sizes.

    Parts are named "TASK SIZE". Errors: OptionError where matplotlib is missing.
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
        from matplotlib.ticker import PercentFormatter

        columns = min(4, len(several))
        lines = -(-len(several) // columns)
        figure = Figure(figsize=(8.4, 0.7 + 1.6 * lines), dpi=72)
        top = 1 - 0.75 / (0.7 + 1.6 * lines)
        grid = figure.add_gridspec(
            lines, columns, left=0.07, right=0.99, bottom=0.12 / lines + 0.03, top=top,
            hspace=0.65, wspace=0.3,
        )  # fmt: skip
        for place, (task, sizes) in enumerate(several.items()):
            axes = figure.add_subplot(grid[place // columns, place % columns])
            axes.set_title(task.replace("_", " "), loc="left", fontsize=9)
            axes.patch.set_visible(False)
            axes.grid(visible=True, color=_INK, alpha=0.12, linewidth=0.7)
            order = sorted(sizes)
            for index, arm in enumerate(arms):
                points = [(s, arm.metrics[sizes[s]]) for s in order if sizes[s] in arm.metrics]
                _line(axes, points, index, arm.name)
            axes.set_ylim(-0.05, 1.05)
            axes.set_xticks(order, [str(s) for s in order], fontsize=8)
            axes.set_yticks([0, 0.5, 1])
            axes.tick_params(axis="y", labelsize=8)
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        title = "Accuracy against size"
        figure.text(0.01, 0.985, title, fontsize=13, fontweight="bold", va="top")
        if len(arms) > 1:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(
                handles, labels, loc="upper right", ncols=len(arms), frameon=False, fontsize=9
            )
        return _svg(figure, title)


def _line(axes: object, points: Sequence[tuple[int, Metric]], index: int, name: str) -> None:
    colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
    for size, m in points:
        if m.ci is not None:
            axes.plot([size, size], m.ci, color=colour, alpha=0.5, lw=1.2)  # type: ignore[attr-defined]
    xs, ys = [s for s, _ in points], [m.value for _, m in points]
    axes.plot(xs, ys, marker=marker, color=colour, ms=4.5, lw=1.2, label=name)  # type: ignore[attr-defined]


def _share_axis(axes: object, arms: Sequence[Arm], names: Sequence[str]) -> None:
    from matplotlib.ticker import PercentFormatter

    units = {arm.metrics[n].unit for arm in arms for n in names if n in arm.metrics}
    if units == {"fraction"}:
        axes.set_xlim(-0.02, 1.02)  # type: ignore[attr-defined]
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))  # type: ignore[attr-defined]


def _legend(axes: object, arms: Sequence[Arm]) -> None:
    if len(arms) > 1:
        axes.legend(  # type: ignore[attr-defined]
            loc="lower left",
            bbox_to_anchor=(-0.012, 0.995),
            ncols=min(4, len(arms)),
            frameon=False,
            fontsize=10,
            handletextpad=0.2,
            columnspacing=1.2,
        )
