"""The shape of a Record: what one measurement says, and the rule by which claims are judged.

A record cannot contradict itself: a claim's `ok` and a record's `verdict` may be left open, but
may not say anything else than their own numbers do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue, model_validator

from whet.errors import OptionError
from whet.measure.machine import Machine

SCHEMA_VERSION: Literal[1] = 1

Op = Literal[">=", "<=", ">", "<", "=="]
Kind = Literal["ratio", "difference", "order", "equality"]
Level = Literal["smoke", "cpu", "gpu"]
Verdict = Literal["reproduced", "partly", "not_reproduced", "undecided"]


def judge(value: float, ci: tuple[float, float] | None, op: Op, target: float) -> bool | None:
    """Does `value op target` hold, given the interval `ci` (low, high) of `value`?

    True if the whole interval clears the target, False if the whole interval misses it, None if
    it straddles it. Without an interval the value alone decides. `==` is exact: True for a
    zero-width interval at the target, False for one that does not contain it.
    Errors: OptionError for an unknown `op`, a number that is not finite, or low > high.
    """
    low, high = ci if ci is not None else (value, value)
    if not all(math.isfinite(x) for x in (value, low, high, target)) or low > high:
        raise OptionError(f"cannot judge {value} with interval [{low}, {high}] against {target}")
    if op == ">=":
        clears, misses = low >= target, high < target
    elif op == ">":
        clears, misses = low > target, high <= target
    elif op == "<=":
        clears, misses = high <= target, low > target
    elif op == "<":
        clears, misses = high < target, low >= target
    elif op == "==":
        clears, misses = low == high == target, not low <= target <= high
    else:
        raise OptionError(f"op is {op!r}; allowed are >=, <=, >, <, ==")
    return True if clears else False if misses else None


def verdict(claims: Iterable[Claim]) -> Verdict:
    """One word for all claims together.

    reproduced: every claim holds. partly: at least one holds and at least one fails.
    not_reproduced: at least one fails and none holds (open ones are no support).
    undecided: none fails but some are open, or there are no claims.
    """
    oks = [claim.ok for claim in claims]
    if False in oks:
        return "partly" if True in oks else "not_reproduced"
    return "reproduced" if oks and None not in oks else "undecided"


def _ordered(ci: tuple[float, float]) -> tuple[float, float]:
    if ci[0] > ci[1]:
        raise ValueError(f"an interval is (low, high), got {ci}")
    return ci


def _utc(text: str) -> str:
    when = datetime.fromisoformat(text)
    if when.utcoffset() != timedelta(0):
        raise ValueError(f"a time is ISO-8601 in UTC, like 2026-01-31T12:00:00Z, got {text!r}")
    return text


def _below(path: str) -> str:
    parts = PurePosixPath(path)
    if not parts.name or parts.is_absolute() or ".." in parts.parts or "\\" in path:
        raise ValueError(f"a path lies in or below the record's folder, got {path!r}")
    return path


Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]
Settings = dict[str, JsonValue]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Metric(_Part):
    """A measured value with its interval, the number of items behind it and its unit.

    Units the reports know: "fraction" (shown as a percentage), "bytes", "s"; others are shown as
    written, and "" is a plain number.
    """

    value: float
    ci: Interval | None = None
    n: int | None = None
    unit: str = ""


class Arm(_Part):
    """One variant of a run. chain: what ran, in the naming grammar ("soar:threshold=0.95").

    cost: totals over the run, by name (forwards, rows, tokens, seconds, peak_bytes, ...).
    """

    name: str
    chain: str
    settings: Settings = {}
    metrics: dict[str, Metric] = {}
    cost: dict[str, float] = {}


class Items(_Part):
    """Where the per-item outcomes lie: a path relative to the record's folder, and its SHA-256."""

    path: Annotated[str, AfterValidator(_below)]
    sha256: str


class Comparison(_Part):
    """Arm `a` against arm `b` on one metric. test: how (for example "paired bootstrap")."""

    a: str
    b: str
    metric: str
    value: float
    ci: Interval | None = None
    test: str
    p: float | None = None


class Claim(_Part):
    """A sentence of the paper as a number against a target; `claim()` fills in `ok`."""

    name: str
    kind: Kind
    a: str
    b: str
    metric: str
    value: float
    ci: Interval | None = None
    op: Op
    target: float
    ok: bool | None = None
    text: str = ""

    @model_validator(mode="after")
    def _honest(self) -> Self:
        says = judge(self.value, self.ci, self.op, self.target)
        if self.ok is not None and self.ok is not says:
            raise ValueError(f"claim {self.name!r} has ok={self.ok}, its numbers say {says}")
        return self


def claim(
    name: str,
    kind: Kind,
    a: str,
    b: str,
    metric: str,
    value: float,
    ci: tuple[float, float] | None,
    op: Op,
    target: float,
    text: str = "",
) -> Claim:
    """A Claim whose `ok` is judged from its own interval. Errors: those of `judge`."""
    return Claim(
        name=name,
        kind=kind,
        a=a,
        b=b,
        metric=metric,
        value=value,
        ci=ci,
        op=op,
        target=target,
        ok=judge(value, ci, op, target),
        text=text,
    )


class Record(_Part):
    """One measurement: what ran where, what came out, and what that says about the claims.

    created: ISO-8601, UTC. level: how much machine it stands for. seeds: name -> seed.
    verdict: None for a plain benchmark, which claims nothing.
    Errors: ValidationError if two arms share a name, or a comparison, claim or verdict does not
    fit the arms and the numbers.
    """

    schema_version: Literal[1] = 1
    method: str
    title: str = ""
    created: Annotated[str, AfterValidator(_utc)]
    commit: str | None
    level: Level
    seeds: dict[str, int]
    machine: Machine
    versions: dict[str, str]
    settings: Settings = {}
    arms: list[Arm]
    items: Items | None = None
    comparisons: list[Comparison] = []
    claims: list[Claim] = []
    verdict: Verdict | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"arms need distinct names, got {names}")
        used = [(c.a, c.b) for c in self.comparisons] + [(c.a, c.b) for c in self.claims]
        for name in (name for pair in used for name in pair):
            if name not in names:
                raise ValueError(f"{name!r} is compared or claimed about, but is no arm")
        says = verdict(self.claims)
        if self.verdict not in (None, "undecided", says):
            raise ValueError(f"verdict is {self.verdict!r}, the claims say {says!r}")
        return self
