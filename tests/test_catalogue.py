import dataclasses
import json
import subprocess
import sys

import pytest

from whet import catalogue
from whet.catalogue import Method
from whet.errors import OptionError

FOREIGN = Method(id="foreign", kind="baseline", summary="", parts={"decode": "m:a"})


@pytest.fixture
def entry_point(monkeypatch):
    """Install rows as if another package brought them."""

    def install(*rows):
        class Entry:
            @staticmethod
            def load():
                return rows

        monkeypatch.setattr(catalogue.importlib.metadata, "entry_points", lambda group: [Entry()])
        catalogue.methods.cache_clear()

    yield install
    catalogue.methods.cache_clear()


def test_ids_and_aliases_are_unique_and_rows_complete():
    rows = catalogue.methods()
    names = [n for row in rows.values() for n in (row.id, *row.aliases)]
    assert len(names) == len(set(names))
    assert all(row.id == key for key, row in rows.items())
    for row in rows.values():
        assert row.summary.endswith(".")
        assert row.title
        assert row.parts
        assert row.kind != "system" or "reproduce" in row.parts
        assert all(t.startswith("whet.") and t.count(":") == 1 for t in row.parts.values())
        assert set(row.conflicts) <= set(rows)


def test_rows_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        catalogue.get("soar").id = "x"


def test_greedy_is_an_alias():
    assert catalogue.get("greedy") is catalogue.get("low-confidence")
    assert catalogue.get("greedy", "decode").id == "low-confidence"


def test_an_unknown_name_gets_its_nearest_match():
    with pytest.raises(OptionError, match=r"^unknown method 'treshold': did you mean 'threshold'"):
        catalogue.get("treshold")
    with pytest.raises(OptionError, match=r"unknown method for `decode` 'gredy': .*'greedy'"):
        catalogue.get("gredy", "decode")
    with pytest.raises(OptionError, match=r"known are .*soar"):
        catalogue.get("zzzzzzzz")


def test_a_method_without_the_part_is_unknown_to_that_verb():
    with pytest.raises(OptionError, match=r"unknown method for `train` 'soar'"):
        catalogue.get("soar", "train")
    with pytest.raises(OptionError, match="nothing is registered"):
        catalogue.get("soar", "fly")


def test_parts_resolve_to_what_they_name():
    from whet.dlm.low_confidence import LowConfidence
    from whet.dlm.masked import MaskedTraining

    assert catalogue.resolve("greedy", "decode") is LowConfidence
    assert catalogue.resolve("masked", "train") is MaskedTraining


def test_other_packages_add_rows(entry_point):
    entry_point(FOREIGN)
    assert catalogue.get("foreign", "decode") is FOREIGN
    assert list(catalogue.methods())[-1] == "foreign"


@pytest.mark.parametrize("names", [{"id": "soar"}, {"aliases": ("greedy",)}, {"id": "greedy"}])
def test_a_name_used_twice_is_refused(entry_point, names):
    entry_point(dataclasses.replace(FOREIGN, **names))
    with pytest.raises(OptionError, match=r"method name '(soar|greedy)' is used by"):
        catalogue.methods()


def test_the_catalogue_imports_nothing_heavy():
    code = (
        "import sys, json, whet, whet.catalogue; whet.catalogue.methods(); "
        "print(json.dumps([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []
