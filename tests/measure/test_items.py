import json

import numpy as np
import pytest

from whet.errors import InputError
from whet.measure import items
from whet.measure.record import Items

DATA = {
    "ids": ["a", "b", 3],
    "arms": {
        "soar": {"correct": [True, False, True], "steps": np.array([3, 4, 5])},
        "greedy": {"correct": [0, 0, 1], "answer": ["x", None, "z"], "score": [0.5, 1, 2.0]},
    },
}


def test_items_survive_the_disk(make, tmp_path):
    stored = items.save_items(tmp_path / "items" / "x.json", DATA, folder=tmp_path)
    assert stored.path == "items/x.json"
    record = make(items=stored)
    loaded = items.load_items(tmp_path / "r.json", record)
    assert loaded["ids"] == ["a", "b", 3]
    assert loaded["arms"]["soar"] == {"correct": [1, 0, 1], "steps": [3, 4, 5]}
    assert loaded["arms"]["greedy"]["answer"] == ["x", None, "z"]
    assert b"\n" not in (tmp_path / "items" / "x.json").read_bytes()[:-1]


def test_the_same_items_have_the_same_hash(tmp_path):
    one, two = (items.save_items(tmp_path / f"{i}.json", DATA) for i in range(2))
    assert one.path == "0.json"
    assert one.sha256 == two.sha256


def test_a_changed_or_missing_file_is_noticed(make, tmp_path):
    path = tmp_path / "x.json"
    record = make(items=items.save_items(path, DATA))
    path.write_text(path.read_text().replace("3", "4", 1))
    with pytest.raises(InputError, match="is not the file"):
        items.load_items(tmp_path / "r.json", record)
    path.unlink()
    with pytest.raises(InputError, match="cannot read"):
        items.load_items(tmp_path / "r.json", record)
    with pytest.raises(InputError, match="no per-item"):
        items.load_items(tmp_path / "r.json", make())


def test_another_format_is_refused(make, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"ids": [], "arms": {}}))
    record = make(items=Items(path="x.json", sha256=items._digest(path.read_bytes())))
    with pytest.raises(InputError, match="format"):
        items.load_items(tmp_path / "r.json", record)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids": ["a", "a", "b"]}, "repeat"),
        ({"ids": ["a"]}, "3 cells for 1 ids"),
        ({"arms": {"x": {"y": [1, 2, float("nan")]}}}, "finite"),
        ({"arms": {"x": {"y": [1, 2, [3]]}}}, "finite"),
        ({"extra": 1}, "fields"),
    ],
)
def test_bad_items_are_refused(tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        items.save_items(tmp_path / "x.json", {**DATA, **change})
    assert not (tmp_path / "x.json").exists()


def test_items_lie_below_the_record(tmp_path):
    with pytest.raises(InputError, match="in or below"):
        items.save_items(tmp_path / "x.json", DATA, folder=tmp_path / "records")


def test_align_pairs_by_id():
    one = {"ids": ["a", "b", "c"], "arms": {"x": {"k": [1, 2, 3]}}}
    two = {"ids": ["c", "d", "a"], "arms": {"y": {"k": [30, 40, 10]}}}
    assert items.align(one, "x", two, "y", "k") == ([1, 3], [10, 30])
    with pytest.raises(InputError, match="no arm 'z'"):
        items.align(one, "z", two, "y", "k")
    with pytest.raises(InputError, match="no column 'q'"):
        items.align(one, "x", two, "y", "q")
    with pytest.raises(InputError, match="share no item"):
        items.align(one, "x", {"ids": [9], "arms": {"y": {"k": [1]}}}, "y", "k")
