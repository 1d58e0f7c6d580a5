import io
import json
import math

import pytest
from rich.console import Console

from whet.measure.record import Arm, Metric, new_record
from whet.report import arms_table, claims_table, print_table, show, words


def text_of(table, width=100):
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def squeezed(text):
    return " ".join(text.split())


def test_arms_table_shows_values_intervals_and_costs(record):
    text = text_of(arms_table(record))
    row = next(line for line in text.splitlines() if line.startswith(" soar"))
    assert squeezed(row) == "soar 64.0% [60.0, 68.0] 13,650 12.3 s 3.5 GiB"
    assert "SOAR <b>bold</b> [red]" in text  # brackets are not markup


def test_claims_table_judges_in_words(record):
    text = text_of(claims_table(record))
    assert "partly reproduced" in text
    for mark in ("✓ holds", "? open", "✗ fails"):
        assert mark in text
    assert "0.420× [0.400, 0.440]" in text
    assert "≤ 0.5×" in text
    assert "+4.0 points" in squeezed(text)


def test_tables_fit_100_columns_however_much_they_hold():
    metrics = {f"metric_{i}": Metric(value=i / 7, ci=(0, 9), unit="nats") for i in range(9)}
    arms = [Arm(name=f"arm {i} " + "x" * 90, chain="c", metrics=metrics) for i in range(3)]
    record = new_record("m", level="smoke", seeds={}, arms=arms)
    text = text_of(arms_table(record), width=100)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("metric 8 1.14 nats [0.000, 9.00]") == 3
    assert "…" not in text


def test_a_missing_metric_is_a_dash():
    arms = [
        Arm(name="a", chain="a", metrics={"loss": Metric(value=1.5)}),
        Arm(name="b", chain="b", cost={"forwards": 3}),
    ]
    text = text_of(arms_table(new_record("m", level="smoke", seeds={}, arms=arms)))
    rows = [squeezed(line) for line in text.splitlines()]
    assert "a 1.50 –" in rows
    assert "b – 3" in rows


ROWS = [{"id": "soar", "n": 1234, "tags": ["x", "y"]}, {"id": "[b]x", "n": None, "more": 1.5}]


def test_show_prints_a_table(capsys):
    show("methods", {"id": "method", "n": "n", "tags": "tags"}, ROWS)
    out = capsys.readouterr().out
    assert "method" in out
    assert "1,234" in out
    assert "x, y" in out
    assert "[b]x" in out
    assert "more" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_show_prints_json_and_nothing_else(capsys):
    show("methods", ["id"], ROWS, json=True)
    assert json.loads(capsys.readouterr().out) == ROWS
    show("none", ["id"], [], json=True)
    assert json.loads(capsys.readouterr().out) == []
    with pytest.raises(ValueError):
        show("x", ["id"], [{"id": math.nan}], json=True)


def test_print_table_goes_to_stdout_and_fits_the_terminal(capsys, record, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    print_table(claims_table(record))
    captured = capsys.readouterr()
    assert captured.err == ""
    assert 0 < max(map(len, captured.out.splitlines())) <= 60


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.7151, "fraction", "71.5%"),
        (1536, "bytes", "1.5 KiB"),
        (12, "bytes", "12 B"),
        (0.0123, "s", "12.3 ms"),
        (123.4, "s", "123 s"),
        (0, "s", "0 s"),
        (5e-6, "s", "5.00 µs"),
        (1234567, "", "1,234,567"),
        (12.345, "tokens/s", "12.35 tokens/s"),
        (0.00123, "", "0.00123"),
        (-0.5, "", "-0.500"),
    ],
)
def test_quantities(value, unit, text):
    assert words.quantity(value, unit) == text


@pytest.mark.parametrize(
    ("value", "ci", "unit", "text"),
    [
        (-0.004, (-0.01, 0.0), "fraction", "−0.4 points [−1.0, 0.0]"),
        (0.0, None, "fraction", "0.0 points"),
        (-0.00001, None, "fraction", "0.0 points"),
        (2.5, (-1.0, 6.0), "", "+2.50 [−1.00, +6.00]"),
        (-2048.0, None, "bytes", "−2.0 KiB"),
    ],
)
def test_differences_carry_their_sign(value, ci, unit, text):
    assert words.effect("difference", value, ci, unit) == text
