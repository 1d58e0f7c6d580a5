"""What the tests of the sandbox share."""

import textwrap

import pytest

from whet.evaluate.sandbox import Limits, namespaces_available, run, run_code

WHY_NOT = namespaces_available()
enclosed = pytest.mark.skipif(bool(WHY_NOT), reason=f"no namespaces: {WHY_NOT}")
SHORT = Limits(wall=10.0, cpu=1)


def program(text):
    return textwrap.dedent(text)


def go(text, **limits):
    return run_code(program(text), limits=Limits(**{"wall": 10.0, "cpu": 2, **limits}))


@pytest.fixture
def without_walls(monkeypatch):
    monkeypatch.setattr(run, "namespaces_available", lambda: "this test says so")
