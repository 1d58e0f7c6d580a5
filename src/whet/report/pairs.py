"""Any number of records side by side: arms of different records, paired on the items they share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whet.measure.items import load_items
from whet.measure.record import Record
from whet.measure.stats import mcnemar, paired_bootstrap

_COLUMN = "correct"


@dataclass(frozen=True)
class Pair:
    """Arm `b` less arm `a` on `n` shared items. agreed: how often both are right or both wrong."""

    a: str
    b: str
    n: int
    difference: float
    ci: tuple[float, float]
    p: float
    agreed: float

    @property
    def words(self) -> str:
        """What it says: an interval with 0 in it is no measurable difference."""
        if self.ci[0] <= 0 <= self.ci[1]:
            return "no measurable difference"
        return f"{self.b} is better" if self.difference > 0 else f"{self.a} is better"


def pair_records(records: Sequence[tuple[Path, Record]]) -> list[Pair]:
    """Every two arms of different records of one kind that answered two of the same items or more.

    Records without items, and items without verdicts, are passed over. Arms of one name are told
    apart by what is different in the paths of their records.
    Errors: those of `load_items` for damaged items.
    """
    arms: list[tuple[int, str, dict[str, float]]] = []
    for place, (path, record) in enumerate(records):
        if record.items is None:
            continue
        data = load_items(path, record)
        for name, columns in data["arms"].items():
            if _COLUMN not in columns:
                continue
            verdicts = {
                str(i): float(v)
                for i, v in zip(data["ids"], columns[_COLUMN], strict=True)
                if isinstance(v, (int, float))
            }
            arms.append((place, name, verdicts))
    repeated = [name for _, name, _ in arms]
    places = _distinct([path for path, _ in records])
    pairs = []
    for (i, a, first), (j, b, second) in itertools.combinations(arms, 2):
        shared = [item for item in first if item in second]
        if i == j or records[i][1].method != records[j][1].method or len(shared) < 2:
            continue
        x = np.array([second[s] for s in shared])
        y = np.array([first[s] for s in shared])
        value, low, high = paired_bootstrap(x, y, "difference")
        labels = [
            f"{name} ({places[k]})" if repeated.count(name) > 1 else name
            for k, name in ((i, a), (j, b))
        ]
        pairs.append(
            Pair(
                a=labels[0],
                b=labels[1],
                n=len(shared),
                difference=value,
                ci=(low, high),
                p=mcnemar(x.astype(bool), y.astype(bool)),
                agreed=float((x == y).mean()),
            )
        )
    return pairs


def _distinct(paths: Sequence[Path]) -> list[str]:
    """Paths without the folders and the file name that all of them share."""
    if len(paths) < 2:
        return [path.stem for path in paths]
    whole = [path.resolve().with_suffix("") for path in paths]
    common = os.path.commonpath([path.parent for path in whole])
    short = [path.relative_to(common) for path in whole]
    if len({path.name for path in short}) == 1 and all(len(path.parts) > 1 for path in short):
        short = [path.parent for path in short]
    return [path.as_posix() for path in short]
