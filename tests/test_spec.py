from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.errors import OptionError
from whet.spec import Spec, build


@dataclass(frozen=True)
class Options:
    steps: int = 1
    rate: float = 0.5
    flag: bool = False
    name: str = "x"
    block: int | None = None
    kind: Literal["a", "b"] = "a"
    places: tuple[int, ...] = (0,)
    hidden: int = field(default=3, init=False)


def test_the_parts_of_a_spec():
    assert Spec.parse("sudoku") == Spec("sudoku")
    assert Spec.parse("soar@fast:beam-width=4, threshold = 0.9") == Spec(
        "soar", "fast", {"beam_width": "4", "threshold": "0.9"}
    )
    assert Spec.parse("a:b=c=d,") == Spec("a", None, {"b": "c=d"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names nothing"),
        (":a=1", "names nothing"),
        ("@suite", "names nothing"),
        ("x:a", "no setting"),
        ("x:=1", "no setting"),
        ("x:a=1,a=2", "'a' is set twice"),
        ("x:a-b=1,a_b=2", "'a_b' is set twice"),
    ],
)
def test_broken_specs_say_why(text, why):
    with pytest.raises(OptionError, match=why):
        Spec.parse(text)


WORD = st.text("abcxyz09_.", min_size=1, max_size=6)


@given(WORD, st.none() | WORD, st.dictionaries(WORD, WORD, max_size=3))
def test_printing_and_parsing_are_inverse(name, suite, settings):
    spec = Spec(name, suite, settings)
    assert Spec.parse(str(spec)) == spec


def test_build_reads_several_numbers():
    assert build(Options, {"places": "1+22"}, of="x").places == (1, 22)
    assert build(Options, {"places": ""}, of="x").places == ()
    with pytest.raises(OptionError, match="places='a' must be a whole number"):
        build(Options, {"places": "1+a"}, of="x")


def test_build_converts_text_by_type():
    made = build(
        Options,
        {"steps": "4", "rate": "1e-2", "flag": "TRUE", "name": "7", "block": "8", "kind": "b"},
        of="thing",
    )
    assert made == Options(4, 0.01, True, "7", 8, "b")
    assert build(Options, {"block": "none", "steps": 5}, of="thing") == Options(5)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("stepz", "1", "thing has no option 'stepz': did you mean 'steps'?"),
        ("hidden", "1", "thing has no option 'hidden': "),
        ("steps", "1.5", "thing: steps='1.5' must be a whole number"),
        ("rate", "fast", "thing: rate='fast' must be a number"),
        ("flag", "1", "thing: flag='1' must be true or false"),
        ("block", "all", "thing: block='all' must be a whole number"),
        ("kind", "c", "thing: kind='c' is not one of a, b"),
    ],
)
def test_build_names_the_field_and_the_value(key, value, why):
    with pytest.raises(OptionError) as caught:
        build(Options, {key: value}, of="thing")
    assert str(caught.value).startswith(why)
