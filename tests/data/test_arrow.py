import pyarrow as pa
import pytest

from whet.data.arrow import ArrowRows, build_rows
from whet.errors import CheckpointError, InputError, OptionError


def schema():
    return pa.schema({"n": pa.int64(), "text": pa.string()})


def build(folder, made=None, **changes):
    def make(numbers):
        if made is not None:
            made.append(list(numbers))
        return [{"n": n, "text": f"row {n}"} for n in numbers]

    options = {"identity": {"seed": 1}, "total": 10, "make": make, "shard_size": 4, **changes}
    build_rows(folder, schema=schema, **options)
    return folder


def test_rows_come_back_in_order(tmp_path):
    rows = ArrowRows(build(tmp_path), columns=["n", "text"])
    assert len(rows) == 10
    assert [r["n"] for r in rows] == list(range(10)) == rows.column("n")
    assert rows[-1] == {"n": 9, "text": "row 9"}
    assert [r["n"] for r in rows[3:9:2]] == [3, 5, 7]
    with pytest.raises(IndexError):
        rows[10]


def test_only_what_is_missing_is_made_again(tmp_path):
    build(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.arrow")}
    (tmp_path / "part-00001.arrow").unlink()
    made = []
    build(tmp_path, made)
    assert made == [[4, 5, 6, 7]]
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.arrow")} == before


def test_a_failure_in_a_shard_keeps_the_shards_before(tmp_path):
    def fail(numbers):
        if 4 in numbers:
            raise RuntimeError("killed")
        return [{"n": n, "text": ""} for n in numbers]

    with pytest.raises(RuntimeError):
        build(tmp_path, make=fail)
    assert [p.name for p in sorted(tmp_path.glob("*.arrow"))] == ["part-00000.arrow"]
    with pytest.raises(InputError, match="2 of 3 shards are missing"):
        ArrowRows(tmp_path)


def test_parts_together_are_the_whole(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build(whole)
    for k in (2, 0, 1):
        build(parts, part=(k, 3))
    assert list(ArrowRows(parts)) == list(ArrowRows(whole))


def test_another_identity_is_refused(tmp_path):
    build(tmp_path)
    with pytest.raises(CheckpointError, match=r"identity\.seed"):
        build(tmp_path, identity={"seed": 2})
    with pytest.raises(CheckpointError, match="total"):
        build(tmp_path, total=12)


def test_a_damaged_shard_is_named(tmp_path):
    path = build(tmp_path) / "part-00002.arrow"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"part-00002\.arrow: damaged"):
        ArrowRows(tmp_path)


def test_rows_of_another_kind_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no column 'tokens'"):
        ArrowRows(build(tmp_path), columns=["tokens"])


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no rows"):
        ArrowRows(tmp_path)


def test_a_maker_that_loses_rows_is_caught(tmp_path):
    with pytest.raises(InputError, match="0 rows were made where 4"):
        build(tmp_path, make=lambda numbers: [])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"total": 0}, "total=0"),
        ({"shard_size": 0}, "shard_size=0"),
        ({"part": (2, 2)}, "part=2/2"),
        ({"part": (0, 0)}, "part=0/0"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, changes, match):
    with pytest.raises(OptionError, match=match):
        build(tmp_path, **changes)


def test_datasets_reads_the_shards(tmp_path):
    import datasets

    paths = [str(p) for p in sorted(build(tmp_path / "rows").glob("*.arrow"))]
    found = datasets.load_dataset(
        "arrow", data_files=paths, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert found["n"][:] == list(range(10))
