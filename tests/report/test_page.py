import re
from html.parser import HTMLParser

import pytest

from whet.errors import InputError
from whet.measure.record import Arm, Metric, new_record, save
from whet.report import (
    Canvas,
    CanvasRun,
    from_folder,
    frontier_of,
    pages,
    render_page,
    write_page,
)

VOID = {"meta", "br", "input", "link", "img", "hr"}


class Outline(HTMLParser):
    """Checks that tags nest, and collects text, tags and attributes."""

    def __init__(self, html):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def having(self, name):
        return [a for _, a in self.tags if name in a.get("class", "").split()]


def words_of(html):
    return " ".join(" ".join(Outline(html).text).split())


def canvas(**changes):
    fields = {
        "name": "soar",
        "tokens": ["<s>", " the", "\n", "cat", ""],
        "commit_step": [-1, 0, 1, 0, 2],
        "confidence": [0.0, 0.995, 0.3, 0.9, 0.96],
        "steps": 3,
        "correct": True,
        **changes,
    }
    return Canvas("What <b>is</b> 1 & 1?", [CanvasRun(**fields)])


def test_a_page_says_what_the_record_says(record):
    html = render_page([("soar", record)], title="Results")
    text = words_of(html)
    for part in (
        "64.0% [60.0, 68.0]",
        "13,650",
        "3.5 GiB",
        "± partly reproduced",
        "✓ holds Half",
        "✗ fails",
        "? open",
        "0.420× [0.400, 0.440]",
        "target ≤ 0.5×",
        "p = 0.03",
        record.created,
        record.machine.cpu,
        f"numpy {record.versions['numpy']}",
        "tasks 7",
    ):
        assert part in text, part


def test_all_text_is_escaped(record):
    html = render_page([("<q>name", record)], title="<u>T", canvases=[canvas()], notes=["<em>n"])
    tags = {tag for tag, _ in Outline(html).tags}
    assert not tags & {"q", "u", "em", "s"}
    assert html.count("<script") == 1  # our own, for the canvases
    assert "SOAR <b>bold</b> [red]" in words_of(html)
    assert "alert(1)</script>." not in html


def test_a_page_needs_nothing_from_outside(record):
    svg = frontier_of(record)
    html = render_page(
        [("a", record), ("b", record)], title="T", plots=[("c", svg)], canvases=[canvas()]
    )
    for tag, attributes in Outline(html).tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    rest = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(r"https?:|@import|url\((?!#)|//\w+\.", rest)


def test_an_index_appears_for_several_records_only(record):
    one = render_page([("a", record)], title="T")
    two = render_page([("a", record), ("b", record)], title="T")
    assert not Outline(one).having("index")
    links = [a["href"] for t, a in Outline(two).tags if t == "a"]
    ids = {a["id"] for t, a in Outline(two).tags if t == "section" and "id" in a}
    assert len(links) == 2
    assert {link[1:] for link in links} == ids
    with pytest.raises(InputError, match="distinct"):
        render_page([("a", record), ("a", record)], title="T")


def test_the_bars_share_one_scale(record):
    html = render_page([("a", record)], title="T")
    starts = [float(x) for x in re.findall(r'<i style="left:([\d.]+)%', html)]
    dots = [float(x) for x in re.findall(r'<b style="left:([\d.]+)%', html)]
    assert min(starts) == 0
    assert dots == pytest.approx(
        [100 * (k / 500 - 0.362) / 0.318 for k in (300, 320, 290, 201)], abs=0.01
    )


def test_a_canvas_shows_its_final_state_and_its_steps(record):
    html = render_page([("a", record)], title="T", canvases=[canvas()])
    outline = Outline(html)
    cells = outline.having("cell")
    assert [c["data-step"] for c in cells] == ["0", "1", "2", "1", "3"]
    assert not outline.having("masked")
    classes = [c["class"].split() for c in cells]
    assert classes[0] == ["cell", "given"]
    assert [c[1] for c in classes[1:]] == ["q4", "q0", "q2", "q3"]
    assert classes[1][2] == classes[3][2] != classes[2][2]  # one step, one outline
    assert cells[1]["title"] == "step 1, confidence 0.995"
    tokens = re.findall(r'<span class="token">(.*?)</span>', html)
    assert tokens == ["&lt;s&gt;", " the", "↵", "cat", "∅"]
    assert next(a for t, a in outline.tags if t == "input")["max"] == "3"
    assert all("hidden" in a for a in outline.having("player"))  # until the script runs
    assert "✓ correct" in words_of(html)
    assert "✗ wrong" in words_of(render_page([], title="T", canvases=[canvas(correct=False)]))


def test_a_page_without_canvases_has_no_script(record):
    assert "<script" not in render_page([("a", record)], title="T")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": ["a"]}, "one of each per position"),
        ({"steps": 2}, "commits in step 2 of 2"),
        ({"commit_step": [-2, 0, 1, 0, 2]}, "step -2"),
        ({"confidence": [0, 1.5, 0, 0, 0]}, "1.5"),
        ({"confidence": [0, float("nan"), 0, 0, 0]}, "nan"),
    ],
)
def test_a_canvas_that_contradicts_itself_is_refused(change, says):
    with pytest.raises(InputError, match=says):
        render_page([], title="T", canvases=[canvas(**change)])


@pytest.mark.parametrize(
    "svg",
    [
        "<svg><script>1</script></svg>",
        '<svg onload="x()"></svg>',
        '<svg><a href="https://example.org"></a></svg>',
        '<svg><rect fill="url(https://example.org)"/></svg>',
        "<p>no</p>",
    ],
)
def test_an_svg_that_does_things_is_refused(svg):
    with pytest.raises(InputError, match="plain <svg>"):
        render_page([], title="T", plots=[("c", svg)])


def test_a_folder_becomes_a_page(tmp_path, record):
    save(record, tmp_path / "reproduce" / "soar.json")
    plain = Arm(name="x", chain="x", metrics={"loss": Metric(value=1.0)})
    save(
        new_record("decode", level="smoke", seeds={}, arms=[plain]),
        tmp_path / "benchmarks" / "decode.json",
    )
    html = from_folder(tmp_path)
    assert "2 records" in html
    assert "reproduce/soar" in html
    assert "benchmarks/decode" in html
    assert html.count("<svg") == 1  # the plain one has nothing to plot
    write_page(tmp_path / "out" / "page.html", html)
    assert (tmp_path / "out" / "page.html").read_text(encoding="utf-8") == html
    assert from_folder(tmp_path) == html


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(InputError, match="no records"):
        from_folder(tmp_path)


def test_without_matplotlib_the_page_says_what_is_missing(tmp_path, record, monkeypatch):
    save(record, tmp_path / "soar.json")
    monkeypatch.setattr(pages, "_can_plot", lambda: False)
    html = from_folder(tmp_path)
    assert "<svg" not in html
    assert "whet[plots]" in html


def test_the_frontier_is_per_item_where_items_are_counted(record):
    assert "forwards per item" in frontier_of(record)
    arms = [
        arm.model_copy(update={"metrics": {"accuracy": Metric(value=0.5, unit="fraction")}})
        for arm in record.arms
    ]
    totals = new_record("m", level="smoke", seeds={}, arms=arms)
    assert "per item" not in frontier_of(totals)
    assert frontier_of(new_record("m", level="smoke", seeds={}, arms=arms[:1])) is None
