import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from whet.errors import InputError, OptionError
from whet.measure import record as rec
from whet.measure.record import Arm, Claim, Comparison, Items, Record


def made_claim(value, ci, op, target, name="c"):
    return rec.claim(name, "ratio", "soar", "greedy", "forwards", value, ci, op, target)


@pytest.mark.parametrize(
    ("op", "ci", "target", "ok"),
    [
        (">=", (1.0, 2.0), 1.0, True),
        (">=", (0.9, 2.0), 1.0, None),
        (">=", (0.1, 0.9), 1.0, False),
        (">", (1.0, 2.0), 1.0, None),
        (">", (0.5, 1.0), 1.0, False),
        (">", (1.1, 2.0), 1.0, True),
        ("<=", (0.2, 1.0), 1.0, True),
        ("<=", (1.1, 1.2), 1.0, False),
        ("<", (0.2, 1.0), 1.0, None),
        ("<", (1.0, 1.2), 1.0, False),
        ("<", (0.2, 0.9), 1.0, True),
        ("==", (1.0, 1.0), 1.0, True),
        ("==", (0.9, 1.1), 1.0, None),
        ("==", (1.1, 1.2), 1.0, False),
        ("==", None, 1.0, True),
    ],
)
def test_judge_needs_the_whole_interval(op, ci, target, ok):
    assert rec.judge(1.0, ci, op, target) is ok


@settings(max_examples=50, deadline=None)
@given(st.floats(-9, 9), st.floats(0, 3), st.floats(0, 3), st.sampled_from([">=", "<=", ">", "<"]))
def test_judge_agrees_with_its_negation(value, below, above, op):
    ci = (value - below, value + above)
    negated = {">=": "<", "<": ">=", "<=": ">", ">": "<="}[op]
    one, other = rec.judge(value, ci, op, 0.0), rec.judge(value, ci, negated, 0.0)
    assert (one, other) in [(True, False), (False, True), (None, None)]
    if one is not None:
        assert rec.judge(value, None, op, 0.0) is one


@pytest.mark.parametrize("bad", [(math.nan, None), (1.0, (2.0, 1.0)), (1.0, (0.0, math.inf))])
def test_judge_refuses_numbers_that_are_none(bad):
    with pytest.raises(OptionError, match="cannot judge"):
        rec.judge(*bad, ">=", 0.0)


def test_judge_refuses_an_unknown_op():
    with pytest.raises(OptionError, match="'!='"):
        rec.judge(1.0, None, "!=", 0.0)


HOLDS, FAILS, OPEN = (2.0, (1.5, 2.5)), (0.0, (0.0, 0.5)), (1.0, (0.5, 1.5))


@pytest.mark.parametrize(
    ("claims", "word"),
    [
        ([], "undecided"),
        ([HOLDS, HOLDS], "reproduced"),
        ([HOLDS, OPEN], "undecided"),
        ([OPEN], "undecided"),
        ([HOLDS, FAILS], "partly"),
        ([HOLDS, OPEN, FAILS], "partly"),
        ([OPEN, FAILS], "not_reproduced"),
        ([FAILS], "not_reproduced"),
    ],
)
def test_verdict(make, claims, word):
    made = [made_claim(value, ci, ">=", 1.0) for value, ci in claims]
    assert rec.verdict(made) == word
    assert make(claims=made).verdict == (word if made else None)


def test_a_claim_cannot_contradict_its_numbers_but_may_stay_open():
    fields = made_claim(0.0, (0.0, 0.5), ">=", 1.0).model_dump()
    assert fields["ok"] is False
    assert Claim(**{**fields, "ok": None}).ok is None
    with pytest.raises(ValidationError, match="its numbers say False"):
        Claim(**{**fields, "ok": True})


def test_a_verdict_cannot_contradict_the_claims(make):
    fields = make(claims=[made_claim(*OPEN, ">=", 1.0)]).model_dump()
    with pytest.raises(ValidationError, match="claims say 'undecided'"):
        Record(**{**fields, "verdict": "reproduced"})


def test_a_record_survives_the_disk(make, tmp_path):
    before = make(
        title="T",
        settings={"gen_length": 64, "windows": [1, None, "x"]},
        claims=[made_claim(*HOLDS, ">=", 1.0)],
        comparisons=[
            Comparison(a="soar", b="greedy", metric="accuracy", value=0.1, test="mcnemar", p=0.5)
        ],
        items=Items(path="items/soar.json", sha256="0" * 64),
        notes=["Größe ✓"],
    )
    path = tmp_path / "deep" / "soar.json"
    rec.save(before, path)
    assert rec.load(path) == before
    text = path.read_text(encoding="utf-8")
    keys = list(json.loads(text))
    assert keys == sorted(keys)
    assert "Größe" in text
    rec.save(rec.load(path), path)
    assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in path.parent.iterdir()] == ["soar.json"]


def test_new_record_says_where_and_when(make, monkeypatch):
    made = make()
    assert made.created.endswith("Z")
    assert made.machine.cores >= 1
    assert made.versions["python"].startswith("3.")
    assert {"whet", "numpy"} <= set(made.versions)


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"a": {"value": math.nan, "ci": None, "n": None, "unit": ""}}},
        {"metrics": {"a": {"value": 0.0, "ci": (0.0, math.inf), "n": None, "unit": ""}}},
        {"metrics": {"a": {"value": 0.0, "ci": (1.0, 0.0), "n": None, "unit": ""}}},
        {"cost": {"seconds": math.inf}},
        {"settings": {"deep": [{"x": -math.inf}]}},
        {"settings": {"object": object()}},
        {"colour": "red"},
    ],
)
def test_an_arm_refuses_what_json_does_not_have(change):
    with pytest.raises(ValidationError):
        Arm(**{"name": "a", "chain": "a", **change})


@pytest.mark.parametrize("created", ["2026-01-01T10:00:00", "2026-01-01T10:00:00+02:00", "today"])
def test_times_are_utc(make, created):
    with pytest.raises(ValidationError):
        Record(**{**make().model_dump(), "created": created})


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.json", "a/../../x.json", "", "a\\b"])
def test_items_stay_below_the_record(path):
    with pytest.raises(ValidationError):
        Items(path=path, sha256="0")


def test_arms_have_distinct_names_and_claims_refer_to_them(make):
    fields = make().model_dump()
    with pytest.raises(ValidationError, match="distinct names"):
        Record(**{**fields, "arms": fields["arms"] * 2})
    claim = made_claim(*OPEN, ">=", 1.0).model_dump() | {"b": "pbs"}
    with pytest.raises(ValidationError, match="'pbs'"):
        Record(**{**fields, "claims": [claim]})


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda v: v.pop("method"), "method: Field required"),
        (lambda v: v.update(colour=1), "colour: Extra inputs"),
        (lambda v: v.update(schema_version=2), "schema version 2, this whet reads 1"),
        (lambda v: v.pop("schema_version"), "is not a record"),
        (lambda v: v["arms"][0]["cost"].update(s=math.nan), "arms.0.cost.s"),
        (lambda v: v.update(verdict="reproduced"), "claims say"),
    ],
)
def test_load_names_the_file_and_the_field(make, tmp_path, edit, says):
    path = tmp_path / "r.json"
    rec.save(make(), path)
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))
    with pytest.raises(InputError) as error:
        rec.load(path)
    message = str(error.value)
    assert says in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b"[1]", b""])
def test_load_refuses_what_is_no_record(tmp_path, raw):
    path = tmp_path / "r.json"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"r\.json"):
        rec.load(path)
    with pytest.raises(InputError, match="cannot read"):
        rec.load(tmp_path / "none.json")


def test_find_takes_records_only(make, tmp_path):
    rec.save(make(method="b"), tmp_path / "b.json")
    rec.save(make(method="a"), tmp_path / "a" / "x.json")
    rec.save(make(method="c"), tmp_path / ".hidden" / "c.json")
    (tmp_path / "config.json").write_text('{"model_type": "llada"}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text('["schema_version"]')
    found = rec.find(tmp_path)
    assert [(p.name, r.method) for p, r in found] == [("x.json", "a"), ("b.json", "b")]
    assert rec.find(tmp_path / "b.json") == [found[1]]
    with pytest.raises(InputError, match="no folder"):
        rec.find(tmp_path / "none")


def test_find_does_not_pass_over_a_damaged_record(make, tmp_path):
    rec.save(make(), tmp_path / "r.json")
    (tmp_path / "r.json").write_text((tmp_path / "r.json").read_text()[:-5])
    with pytest.raises(InputError, match=r"r\.json is not JSON"):
        rec.find(tmp_path)


def test_records_and_reports_do_not_import_torch():
    code = (
        "import sys, whet.measure.record, whet.measure, whet.report;"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
