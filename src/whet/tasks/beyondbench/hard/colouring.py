"""Graph colouring with as many colours as the graph needs and no more.

Source: BeyondBench, arXiv 2509.24210, task graph_coloring. Deviations: the number of colours is
the chromatic number, found by exact search; the prompt asks for at most that many, and so does the
check.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from whet.tasks.answers import last_block, last_mapping, mapping, read
from whet.tasks.base import Instance, Mode, Verdict
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level
from whet.tasks.beyondbench.hard.colouring_graphs import FAITHFUL, WIDE, Family, Graph
from whet.tasks.beyondbench.hard.solvers_sat import model

_NAMES = range(10, 100)  # of the vertices in wide mode
_PALETTE = ("red", "blue", "green", "yellow", "orange", "purple", "brown", "pink", "black", "white")
_VERTEX = re.compile(r"(?:vertex|node|v)?[ _]?(\d{1,4})", re.I)
_MAX_COLOUR = 30  # characters of a colour's name


@dataclass(frozen=True, kw_only=True)
class GraphColoring(BeyondTask):
    """Colour the vertices of a graph with at most k colours, k its chromatic number.

    size: vertices. faithful: vertices 0 to n-1; complete, cycle, wheel, grid, petersen_variant and
    ramsey are one graph for each size. wide: vertices are named by numbers drawn from 10 to 99, and
    every family has random structure of its own.
    """

    id: ClassVar[str] = "graph_coloring"
    summary: ClassVar[str] = "colour a graph with as few colours as it needs, ten kinds of graph"
    many_answers: ClassVar[bool] = True
    level: ClassVar[Level] = "hard"
    variations: ClassVar[tuple[str, ...]] = tuple(FAITHFUL)

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return range(5, 29)

    @classmethod
    def default_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return (5, 8, 10)

    @property
    def _family(self) -> Family:
        return (FAITHFUL if self.mode == "faithful" else WIDE)[self.variation]

    def generate(self, rng: np.random.Generator) -> Instance:
        n = self.size or 0
        graph = self._family.draw(rng, n)
        if self.mode == "faithful":
            return self._instance(tuple(range(n)), graph)
        names = tuple(_NAMES[i] for i in sorted(rng.permutation(len(_NAMES))[:n].tolist()))
        return self._instance(names, tuple((names[u], names[v]) for u, v in graph))

    def _instance(self, vertices: tuple[int, ...], edges: Graph) -> Instance:
        colours = colouring(vertices, edges)
        k = len(set(colours.values()))
        return self.instance(_prompt(vertices, edges, k), (vertices, edges, k), named(colours))

    def check(self, instance: Instance, answer: Any) -> Verdict:
        """Whether each vertex has a colour, no edge has two equal ends, and at most k are used."""
        vertices, edges, k = instance.data
        if not isinstance(answer, Mapping):
            return Verdict(False, "the answer does not map vertices to colours")
        if any(type(v) is not int for v in answer):
            return Verdict(False, "a vertex is not a whole number")
        if any(type(c) not in (int, str) for c in answer.values()):
            return Verdict(False, "a colour is neither a name nor a number")
        colour = {v: str(c).strip().casefold() for v, c in answer.items()}
        missing = [v for v in vertices if not colour.get(v)]
        if missing:
            return Verdict(False, f"vertex {missing[0]} has no colour")
        if len(colour) != len(vertices):
            return Verdict(False, "a vertex was coloured that the graph does not have")
        for u, v in edges:
            if colour[u] == colour[v]:
                return Verdict(False, f"vertices {u} and {v} are joined and have one colour")
        used = len(set(colour.values()))
        if used > k:
            return Verdict(False, f"{used} colours, at most {k} are allowed")
        return Verdict(True)

    def solve(self, instance: Instance) -> dict[int, str]:
        vertices, edges, _ = instance.data
        return named(colouring(vertices, edges))

    def certify(self, instance: Instance) -> str:
        """By python-sat: k colours are enough and k - 1 are not."""
        vertices, edges, k = instance.data
        if sat_colourable(vertices, edges, k - 1):
            return f"{k - 1} colours are enough"
        return super().certify(instance)

    def log10_space(self) -> float:
        """Exact in faithful mode; in wide mode names times graphs, see `colouring_graphs`."""
        n = self.size or 0
        names = 1 if self.mode == "faithful" else math.comb(len(_NAMES), n)
        return math.log10(names) + math.log10(self._family.count(n))

    def all_instances(self) -> Iterator[Instance] | None:
        n = self.size or 0
        every = self._family.every
        if every is None or self.log10_space() >= 3:
            return None
        return (self._instance(tuple(range(n)), graph) for graph in every(n))

    def render(self, answer: Mapping[int, Any]) -> str:
        return "<answer>{" + ", ".join(f"{v}: {c}" for v, c in answer.items()) + "}</answer>"

    def parse(self, text: str, mode: Mode = "lenient") -> dict[int, str] | None:
        """Vertex to colour as it is written; `vertex 3`, `v3` and `v_{3}` are vertex 3."""
        return read(text, mode, marked=last_block, exact=_colours, last=_last_colours)


def colouring(vertices: Sequence[int], edges: Sequence[Sequence[int]]) -> dict[int, int]:
    """A colouring with the fewest colours, 0 to k-1: exact search, most constrained vertex first.

    A vertex takes a colour in use or the first unused one. Source: Brelaz, CACM 22, 1979 (DSATUR).
    At 28 vertices the search sees a few hundred partial colourings.
    """
    near: dict[int, list[int]] = {v: [] for v in vertices}
    for u, v in edges:
        near[u].append(v)
        near[v].append(u)
    k = 1
    while (found := _colour(near, k)) is None:
        k += 1
    return {v: found[v] for v in vertices}


def sat_colourable(vertices: Sequence[int], edges: Sequence[Sequence[int]], k: int) -> bool:
    """Whether k colours are enough, by python-sat."""
    if k < 1:
        return not vertices
    name = {(v, c): 1 + i * k + c for i, v in enumerate(vertices) for c in range(k)}
    clauses = [[name[v, c] for c in range(k)] for v in vertices]
    clauses += [[-name[u, c], -name[v, c]] for u, v in edges for c in range(k)]
    return model(clauses) is not None


def _colour(near: Mapping[int, Sequence[int]], k: int) -> dict[int, int] | None:
    """A colouring with the colours 0 to k-1, or None where there is none."""
    colour: dict[int, int] = {}
    barred = dict.fromkeys(near, 0)  # bits: the colours of the neighbours

    def search(used: int) -> bool:
        left = [v for v in near if v not in colour]
        if not left:
            return True
        vertex = max(left, key=lambda v: (barred[v].bit_count(), len(near[v])))
        for c in range(min(used + 1, k)):
            if barred[vertex] >> c & 1:
                continue
            colour[vertex] = c
            changed = [u for u in near[vertex] if u not in colour and not barred[u] >> c & 1]
            for u in changed:
                barred[u] |= 1 << c
            if search(max(used, c + 1)):
                return True
            for u in changed:
                barred[u] &= ~(1 << c)
            del colour[vertex]
        return False

    return colour if search(0) else None


def named(colours: Mapping[int, int]) -> dict[int, str]:
    """Colours by name where there are enough names, else by number."""
    if max(colours.values()) < len(_PALETTE):
        return {v: _PALETTE[c] for v, c in colours.items()}
    return {v: str(c) for v, c in colours.items()}


def _colours(text: str) -> dict[int, str] | None:
    found = mapping(text)
    return None if found is None else _vertices(found)


def _last_colours(text: str) -> dict[int, str] | None:
    found = last_mapping(text)
    return None if found is None else _vertices(found)


def _vertices(found: Mapping[str, str]) -> dict[int, str] | None:
    """Names of vertices as numbers; None where one is no vertex or has two colours."""
    out: dict[int, str] = {}
    for name, colour in found.items():
        match = _VERTEX.fullmatch(name.strip())
        if match is None or len(colour) > _MAX_COLOUR:
            return None
        if out.setdefault(int(match.group(1)), colour) != colour:
            return None
    return out


def _prompt(vertices: Sequence[int], edges: Sequence[Sequence[int]], k: int) -> str:
    form = ", ".join(f"{v}: colour" for v in vertices[:2])
    return (
        f"A graph has {len(vertices)} vertices: {', '.join(map(str, vertices))}.\n"
        f"It has {len(edges)} edges: {', '.join(f'{u}-{v}' for u, v in edges) or 'none'}.\n\n"
        "Give every vertex a colour so that the two ends of every edge have different colours. "
        f"Use at most {k} different colour{'s' if k > 1 else ''}; a colour may be a name or a "
        "number.\n"
        "List every vertex with its colour, in this form:\n"
        f"<answer>{{{form}, ...}}</answer>"
    )
