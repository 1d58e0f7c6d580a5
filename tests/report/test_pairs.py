"""Arms of different records on the items they share, in the terminal and on the page."""

import json

import numpy as np
import pytest
from rich.console import Console

from whet.errors import InputError
from whet.measure.items import save_items
from whet.measure.record import Arm, Metric, load, new_record, save
from whet.measure.stats import mcnemar, paired_bootstrap
from whet.report import from_folder
from whet.report.pages import find_all
from whet.report.pairs import Pair, pair_records
from whet.report.tables import pairs_table

IDS = [f"sum-{i}" for i in range(60)]
EVEN = [int(i % 2 == 0) for i in range(60)]
MOST = [int(i % 6 != 0) for i in range(60)]


def write(path, arms, ids=IDS):
    """A record with items at `path`. arms: name -> verdicts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: {"correct": verdicts} for name, verdicts in arms.items()}
    items = save_items(path.with_suffix(".items.json"), {"ids": ids, "arms": columns})
    made = [
        Arm(name=n, chain=n, metrics={"accuracy": Metric(value=0.5, unit="fraction")}) for n in arms
    ]
    save(new_record("evaluate", level="cpu", seeds={}, arms=made, items=items), path)
    return path


def pairs_of(*paths):
    return pair_records([(path, load(path)) for path in paths])


def test_a_pair_is_the_paired_comparison_of_the_shared_items(tmp_path):
    a = write(tmp_path / "a.json", {"dense": EVEN})
    order = np.random.default_rng(0).permutation(60)[:50]
    b = write(tmp_path / "b.json", {"pruned": [MOST[i] for i in order]}, [IDS[i] for i in order])
    (pair,) = pairs_of(a, b)
    shared = sorted(order)
    x, y = [MOST[i] for i in shared], [EVEN[i] for i in shared]
    value, low, high = paired_bootstrap(x, y)
    assert (pair.a, pair.b, pair.n) == ("dense", "pruned", 50)
    assert (pair.difference, *pair.ci) == pytest.approx((value, low, high))
    assert pair.p == mcnemar(x, y)
    assert pair.agreed == pytest.approx(np.mean(np.equal(x, y)))
    (back,) = pairs_of(b, a)
    assert back.difference == pytest.approx(-pair.difference)
    assert (back.p, back.agreed, back.n) == (pair.p, pair.agreed, pair.n)


def test_only_arms_of_different_records_are_paired(tmp_path):
    a = write(tmp_path / "a.json", {"x": EVEN, "y": MOST})
    b = write(tmp_path / "b.json", {"z": EVEN})
    c = write(tmp_path / "c.json", {"w": MOST})
    found = [(p.a, p.b) for p in pairs_of(a, b, c)]
    assert found == [("x", "z"), ("x", "w"), ("y", "z"), ("y", "w"), ("z", "w")]
    assert pairs_of(a) == []


def test_what_cannot_be_paired_is_passed_over(tmp_path):
    a = write(tmp_path / "a.json", {"x": EVEN})
    other = write(tmp_path / "b.json", {"y": EVEN}, [f"mean-{i}" for i in range(60)])
    one = write(tmp_path / "c.json", {"z": [1, 0]}, [IDS[0], "mean-1"])
    skipped = write(tmp_path / "d.json", {"w": [None] * 59 + [1]})
    plain = tmp_path / "e.json"
    save(new_record("m", level="cpu", seeds={}, arms=[Arm(name="v", chain="v", metrics={})]), plain)
    assert (
        pairs_of(a, other) == pairs_of(a, one) == pairs_of(a, skipped) == pairs_of(a, plain) == []
    )


def test_items_without_a_verdict_are_left_out_of_their_pair(tmp_path):
    a = write(tmp_path / "a.json", {"x": EVEN})
    b = write(tmp_path / "b.json", {"y": [None, *EVEN[1:]]})
    (pair,) = pairs_of(a, b)
    assert (pair.n, pair.difference, pair.p, pair.agreed) == (59, 0.0, 1.0, 1.0)
    assert pair.words == "no measurable difference"


def test_arms_of_one_name_are_told_apart_by_their_folders(tmp_path):
    a = write(tmp_path / "runs" / "dense" / "evaluate.json", {"model": EVEN})
    b = write(tmp_path / "runs" / "pruned" / "evaluate.json", {"model": MOST})
    (pair,) = pairs_of(a, b)
    assert (pair.a, pair.b) == ("model (dense)", "model (pruned)")
    c = write(tmp_path / "runs" / "pruned" / "again.json", {"model": MOST, "own": EVEN})
    names = {name for p in pairs_of(a, b, c) for name in (p.a, p.b)}
    assert names == {
        "model (dense/evaluate)",
        "model (pruned/evaluate)",
        "model (pruned/again)",
        "own",
    }
    assert next(p.a for p in pairs_of(b, c)) == "model (evaluate)"


def test_words_follow_the_interval():
    def pair(low, high):
        return Pair("a", "b", 9, (low + high) / 2, (low, high), 0.5, 0.5)

    assert pair(0.1, 0.2).words == "b is better"
    assert pair(-0.2, -0.1).words == "a is better"
    for ends in ((-0.1, 0.1), (0.0, 0.1), (-0.1, 0.0)):
        assert pair(*ends).words == "no measurable difference"


def test_damaged_items_are_an_error(tmp_path):
    a = write(tmp_path / "a.json", {"x": EVEN})
    b = write(tmp_path / "b.json", {"y": MOST})
    path = b.with_suffix(".items.json")
    path.write_text(path.read_text().replace("sum-1", "sum-01", 1))
    with pytest.raises(InputError, match=r"b\.items\.json is not the file"):
        pairs_of(a, b)


def test_the_table_fits_and_says_what_differs(tmp_path):
    a = write(tmp_path / "a.json", {"dense": EVEN})
    b = write(tmp_path / "b.json", {"pruned [4 bits]": MOST})
    console = Console(width=100)
    with console.capture() as caught:
        console.print(pairs_table(pairs_of(a, b)))
    text = " ".join(caught.get().split())
    assert "pruned [4 bits]" in text
    assert "+33.3 points [" in text
    assert "pruned [4 bits] is better" in text.replace("\n", " ") or "is better" in text
    assert "60" in text


# --- several folders ----------------------------------------------------------------------------


def test_the_page_of_several_folders_compares_their_records(tmp_path):
    write(tmp_path / "dense" / "evaluate.json", {"dense": EVEN})
    write(tmp_path / "pruned" / "evaluate.json", {"pruned": MOST})
    html = from_folder(tmp_path / "dense", tmp_path / "pruned")
    assert "2 records" in html
    assert "pruned is better" in html
    assert "no measurable difference" not in html
    assert "is better" not in from_folder(tmp_path / "dense")
    assert from_folder(tmp_path / "dense", tmp_path / "pruned") == html


def test_records_of_one_name_in_several_folders_are_named_by_their_whole_path(tmp_path):
    for name in ("dense", "pruned"):
        write(tmp_path / name / "evaluate.json", {name: EVEN})
    names = [n for n, _, _ in find_all([tmp_path / "dense", tmp_path / "pruned"])]
    assert names == [(tmp_path / n / "evaluate").as_posix() for n in ("dense", "pruned")]
    assert [n for n, _, _ in find_all([tmp_path])] == ["dense/evaluate", "pruned/evaluate"]
    assert [n for n, _, _ in find_all([tmp_path / "dense" / "evaluate.json"])] == ["evaluate"]


def test_a_record_that_is_reached_twice_is_there_once(tmp_path):
    write(tmp_path / "dense" / "evaluate.json", {"dense": EVEN})
    write(tmp_path / "pruned" / "evaluate.json", {"pruned": MOST})
    for folders in (
        [tmp_path, tmp_path],
        [tmp_path, tmp_path / "dense"],
        [tmp_path / "pruned" / "evaluate.json", tmp_path],
    ):
        found = find_all(folders)
        assert sorted(p.parent.name for _, p, _ in found) == ["dense", "pruned"]
        assert len({n for n, _, _ in found}) == 2
        assert from_folder(*folders).count("pruned is better") == 1


def test_folders_without_records_are_all_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "other.json").write_text(json.dumps({"x": 1}))
    with pytest.raises(InputError, match=r"no records in .*/a, .*/b"):
        from_folder(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match="no folder"):
        from_folder(tmp_path / "c")
