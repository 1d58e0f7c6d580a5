"""Metrics by part: in the terminal, on the page and as pictures."""

import re

import pytest
from rich.console import Console

from whet.errors import InputError
from whet.measure.record import Arm, Comparison, Metric, new_record, save
from whet.report import from_folder, pages, words
from whet.report.parts import parts_plot, sizes_plot
from whet.report.tables import breakdown_tables, comparisons_table

INK = re.compile(r"<text[^>]*>(?:<tspan[^>]*>)?([^<]*)")


def share(value, n=40):
    low, high = max(0.0, value - 0.1), min(1.0, value + 0.1)
    return Metric(value=value, ci=(low, high), n=n, unit="fraction")


def arm(name, parts, metric="accuracy"):
    metrics = {f"{metric}/{part}": share(value) for part, value in parts.items()}
    return Arm(name=name, chain="autoregressive", metrics={"accuracy": share(0.5)} | metrics)


def record(*arms, **settings):
    return new_record("evaluate", level="cpu", seeds={}, arms=list(arms), **settings)


def text_of(table, width=100):
    console = Console(width=width, file=None, record=True, quiet=False)
    with console.capture() as caught:
        console.print(table)
    return caught.get()


def shown(svg):
    """The texts of a picture."""
    return [t.strip() for t in INK.findall(svg) if t.strip()]


# --- pictures -----------------------------------------------------------------------------------


def test_parts_and_arms_are_all_named():
    arms = [arm(f"model {i}", {"queens": 0.2 * i, "sudoku": 0.9}) for i in range(5)]
    svg = parts_plot(arms, "accuracy")
    assert svg.startswith("<svg")
    assert {"queens", "sudoku", "Accuracy by part", *(a.name for a in arms)} <= set(shown(svg))
    assert {"0%", "100%"} <= set(shown(svg))
    assert parts_plot(arms, "accuracy") == svg


def test_a_single_arm_needs_no_legend():
    svg = parts_plot([arm("alone", {"queens": 0.5})], "accuracy")
    assert "alone" not in shown(svg)


def test_parts_that_some_arms_lack_are_drawn_and_units_other_than_shares_keep_theirs():
    assert parts_plot([arm("a", {"x": 0.1}), arm("b", {"y": 0.2})], "accuracy")
    seconds = Arm(name="a", chain="c", metrics={"time/x": Metric(value=3.0, unit="s")})
    assert "100%" not in shown(parts_plot([seconds], "time"))


def test_more_parts_than_fit_are_said_and_long_names_are_cut():
    many = arm("a", {f"part {i:03d}": 0.5 for i in range(117)} | {"z" * 80: 0.1})
    texts = shown(parts_plot([many], "accuracy"))
    assert "Accuracy by part (the first 80 of 118)" in texts
    assert "part 079" in texts
    assert "part 080" not in texts
    assert f"{'z' * 43}…" in shown(parts_plot([arm("a", {"z" * 80: 0.1})], "accuracy"))


def test_a_metric_that_no_arm_has_by_part_is_refused():
    with pytest.raises(InputError, match="no arm has 'forwards' by part"):
        parts_plot([arm("a", {"x": 0.5})], "forwards")


def test_sizes_make_a_panel_per_task_with_several():
    sizes = {"sum 08": 0.9, "sum 16": 0.5, "sum 128": 0.1, "mean 08": 0.5, "odd one out": 0.5}
    arms = [arm(n, sizes, "accuracy by size") for n in ("dense", "pruned")]
    texts = shown(sizes_plot(arms))
    assert texts.count("sum") == 1
    assert "mean" not in texts  # one size is no line
    assert {"8", "16", "128", "dense", "pruned", "Accuracy against size"} <= set(texts)
    assert [t for t in texts if t in ("8", "16", "128")] == ["8", "16", "128"]
    assert sizes_plot([arm("a", {"sum 08": 0.9}, "accuracy by size")]) is None
    assert sizes_plot([arm("a", {"sum": 0.9})]) is None


def boxes(texts):
    return [t.get_window_extent() for t in texts if t.get_text() and t.get_visible()]


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("plot", ["parts", "sizes"])
def test_title_legend_and_panels_cover_neither_each_other_nor_the_edge(count, plot, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    import whet.report.parts as module

    kept = []
    monkeypatch.setattr(module, "_svg", lambda figure, title: kept.append(figure) or "<svg/>")
    names = [f"Some-Model-{i}.5B-Instruct, pruned" for i in range(count)]
    tasks = ("longest increasing subsequence", "count greater than previous", "max", "sum of all")
    if plot == "parts":
        parts_plot([arm(n, dict.fromkeys(tasks, 0.5)) for n in names], "accuracy")
    else:
        sizes = {f"{t} {s:02d}": 0.5 for t in (*tasks, "sum") for s in (8, 16)}
        sizes_plot([arm(n, sizes, "accuracy by size") for n in names])
    (figure,) = kept
    FigureCanvasAgg(figure).draw()
    head = boxes(figure.texts) + boxes(figure.legends[0].get_texts())
    titles = boxes([a._left_title for a in figure.axes])
    ticks = boxes([t for a in figure.axes for t in a.get_yticklabels()])
    places = head + titles
    for box in (*places, *ticks):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    for i, a in enumerate(places):
        for b in places[i + 1 :]:
            assert not a.overlaps(b)
    assert len(figure.legends[0].get_texts()) == count
    assert min(b.y0 for b in head) > max(a.get_window_extent().y1 for a in figure.axes)


# --- tables and the page ------------------------------------------------------------------------


def test_headings_say_by_what_once():
    assert words.parts_heading("accuracy") == "Accuracy by part"
    assert words.parts_heading("accuracy by size") == "Accuracy by size"


def test_few_parts_stand_side_by_side_and_many_below_each_other():
    few = record(arm("dense", {"a": 0.5, "b": 0.25}), arm("pruned", {"a": 0.75}))
    (table,) = breakdown_tables(few)
    assert [c.header for c in table.columns] == ["arm", "a", "b"]
    assert "–" in text_of(table)
    parts = {f"part {i}": i / 20 for i in range(20)}
    many = record(arm("dense", parts), arm("pruned", {"part 3": 0.9}))
    (table,) = breakdown_tables(many)
    text = text_of(table)
    assert [c.header for c in table.columns] == ["part", "dense", "pruned"]
    assert re.search(r"part 3 +15.0% \[5.0, 25.0\] +90.0% \[80.0, 100.0\]", text)
    assert re.search(r"part 4 +20.0% \[10.0, 30.0\] +–", text)
    assert max(map(len, text.splitlines())) <= 100


def test_parts_fit_the_terminal_however_many_arms_and_however_long_their_names():
    parts = {f"complex_pattern: variation number {i}": 0.5 for i in range(9)}
    (table,) = breakdown_tables(record(arm("dense", parts)))
    assert "50.0% [40.0, 60.0]" in text_of(table)
    (table,) = breakdown_tables(record(*(arm(f"model {i}", parts) for i in range(7))))
    text = text_of(table)
    assert "[40.0, 60.0]" not in text
    assert text.count("50.0%") == 63
    assert len(text.splitlines()) <= 9 + 5  # nothing folds
    wide = record(*(arm(f"a model of some size, number {i}", parts) for i in range(6)))
    text = text_of(breakdown_tables(wide)[0])
    assert text.count("50.0%") == 54  # folds rather than being cut


def test_comparisons_say_where_there_is_no_difference():
    made = [
        Comparison(a="x", b="y", metric="accuracy", value=0.02, ci=(-0.01, 0.05), test="paired"),
        Comparison(a="x", b="y", metric="accuracy", value=0.03, ci=(0.01, 0.05), test="paired"),
        Comparison(a="x", b="y", metric="accuracy", value=1.02, ci=(0.9, 1.2), test="ratio"),
        Comparison(a="x", b="y", metric="accuracy", value=0.5, ci=(0.4, 0.6), test="ratio"),
        Comparison(a="x", b="y", metric="accuracy", value=0.0, test="no interval", p=0.5),
    ]
    arms = [arm("x", {}), arm("y", {})]
    table = comparisons_table(record(*arms, comparisons=made))
    last = list(table.columns[-1].cells)
    assert [str(c) for c in last] == [
        "no measurable difference",
        "",
        "no measurable difference",
        "",
        "",
    ]
    text = text_of(table)
    assert "+2.0 points" in text
    assert "p = 0.5" in text


def test_the_page_has_a_picture_per_metric_by_part(tmp_path):
    sizes = {"sum 08": 0.9, "sum 16": 0.5}
    made = arm("dense", {"sum": 0.7, "mean": 0.2})
    made = made.model_copy(
        update={"metrics": made.metrics | arm("", sizes, "accuracy by size").metrics}
    )
    save(record(made), tmp_path / "evaluate.json")
    html = from_folder(tmp_path)
    assert html.count("<svg") == 2
    assert "Accuracy against size" in html
    assert "Accuracy by part" in html
    assert "Accuracy by size by part" not in html
    one = record(arm("dense", {"sum": 0.7}))
    assert pages._plots(one) == []  # a single part is no picture
