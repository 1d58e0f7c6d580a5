import itertools
import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from whet.errors import InputError, OptionError
from whet.report import plots
from whet.report.labels import place_labels
from whet.report.plots import Point, frontier, pareto

LABELS = {"xlabel": "forwards", "ylabel": "accuracy", "title": "A < B & C"}


def some_points(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Point(
            label=f"method {i} k={i % 4}",
            x=float(rng.uniform(8, 128)),
            y=float(y := rng.uniform(0.3, 0.9)),
            ylo=float(y - 0.03),
            yhi=float(y + 0.03),
            group=f"g{i % 5}",
        )
        for i in range(count)
    ]


def test_the_pareto_set():
    points = [
        Point(label=n, x=x, y=y)
        for n, x, y in [
            ("a", 1, 1),
            ("b", 2, 0.5),
            ("c", 2, 2),
            ("d", 3, 2),
            ("e", 4, 3),
            ("f", 1, 0),
        ]
    ]
    assert [p.label for p in pareto(points)] == ["a", "c", "e"]
    assert pareto([]) == []


@pytest.mark.parametrize("count", [1, 6, 25])
def test_a_frontier_is_an_svg_with_every_name(count):
    svg = frontier(some_points(count), **LABELS, percent=True)
    root = ElementTree.fromstring(svg)
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    for point in some_points(count):
        assert point.label in texts
    assert "A < B & C" in texts
    assert root.get("aria-label") == "A < B & C"
    assert any(text and text.endswith("%") for text in texts)


def test_the_same_points_give_the_same_bytes_whatever_the_users_style():
    import matplotlib

    one = frontier(some_points(9), **LABELS)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": "x"}):
        before = matplotlib.rcParams.copy()
        assert frontier(some_points(9), **LABELS) == one
        assert matplotlib.rcParams.copy() == before


def test_an_svg_can_be_inlined_twice_and_refers_to_nothing_outside():
    one, two = frontier(some_points(3), **LABELS), frontier(some_points(4), **LABELS)
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((one, two), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= own
        assert not re.search(r'href="[^#]', svg)
        assert "<style" not in svg
        assert "<metadata" not in svg
        assert plots._INK not in svg
        assert "currentColor" in svg
        assert not re.search(r"<svg[^>]*\swidth=", svg)


def test_points_without_a_spread_or_an_interval_are_drawn():
    for points in ([Point(label="a", x=0, y=0)], [Point(label=n, x=5, y=1) for n in "ab"]):
        assert "<svg" in frontier(points, **LABELS)
    with pytest.raises(InputError, match="at least one"):
        frontier([], **LABELS)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match=r"whet\[plots\]"):
        frontier(some_points(2), **LABELS)


def overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [6, 25])
def test_labels_cover_neither_each_other_nor_the_points(count, seed):
    rng = np.random.default_rng(seed)
    # Clustered, as real frontiers are: a few distinct costs, qualities close together.
    xs = rng.choice([80, 150, 240, 400, 500], count) + rng.uniform(-10, 10, count)
    ys = rng.uniform(80, 300, count)
    anchors = list(zip(xs.tolist(), ys.tolist(), strict=True))
    sizes = [(float(w), 12.0) for w in rng.uniform(40, 110, count)]
    marks = [(x - 4, y - 4, x + 4, y + 4) for x, y in anchors]
    bounds = (0.0, 0.0, 600.0, 360.0)
    boxes = place_labels(anchors, sizes, marks, bounds)
    for box, size in zip(boxes, sizes, strict=True):
        assert box[2] - box[0] == pytest.approx(size[0])
        assert overlap(box, bounds) == pytest.approx(size[0] * size[1])
    assert all(overlap(a, b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert sum(overlap(box, mark) for box in boxes for mark in marks) == 0
    assert place_labels(anchors, sizes, marks, bounds) == boxes


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", plots.PALETTE)
def test_colours_stand_out_on_light_and_dark(colour):
    for paper in ("#ffffff", "#1c2026"):
        low, high = sorted([luminance(colour), luminance(paper)])
        assert (high + 0.05) / (low + 0.05) >= 3
