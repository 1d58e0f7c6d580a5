"""The graphs that are coloured: ten families on vertices 0 to n-1, and how many of each there are.

`FAITHFUL` and `WIDE` give, for a family, how to draw a graph and log10 of the number of graphs.
An edge is a pair (u, v) with u < v; edges are sorted. In wide mode vertices are shuffled and the
families get the structure that is described with each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

Edge = tuple[int, int]
Graph = tuple[Edge, ...]


@dataclass(frozen=True)
class Family:
    """draw: a graph on n vertices. count: how many graphs on n vertices (see each for "about").

    every: all graphs, each once, for families that can be listed.
    """

    draw: Callable[[np.random.Generator, int], Graph]
    count: Callable[[int], float]
    every: Callable[[int], Iterator[Graph]] | None = None


def tidy(edges: Iterable[Edge]) -> Graph:
    """Edges without direction and repetition, sorted."""
    return tuple(sorted({(min(e), max(e)) for e in edges}))


def fixed(make: Callable[[int], Iterable[Edge]]) -> Family:
    """A family with one graph for each n."""
    return Family(lambda rng, n: tidy(make(n)), lambda n: 1, lambda n: iter([tidy(make(n))]))


def shuffled(rng: np.random.Generator, n: int, edges: Iterable[Edge]) -> Graph:
    """The graph with its vertices renamed at random."""
    names = rng.permutation(n).tolist()
    return tidy((names[u], names[v]) for u, v in edges)


def complete(n: int) -> list[Edge]:
    """K_n."""
    return list(itertools.combinations(range(n), 2))


def cycle(n: int) -> list[Edge]:
    """0 - 1 - ... - (n-1) - 0."""
    return [(i, (i + 1) % n) for i in range(n)]


def wheel(n: int) -> list[Edge]:
    """A hub, vertex 0, joined to the cycle 1 to n-1."""
    return [(0, i) for i in range(1, n)] + [(u + 1, v + 1) for u, v in cycle(n - 1)]


def grid_columns(n: int) -> int:
    """Columns of the grid of n vertices: it has floor(sqrt n) rows, the last perhaps shorter."""
    return math.ceil(n / math.isqrt(n))


def grid(n: int) -> list[Edge]:
    """A grid of floor(sqrt n) rows, filled row by row."""
    columns = grid_columns(n)
    across = [(i, i + 1) for i in range(n - 1) if (i + 1) % columns]
    return across + [(i, i + columns) for i in range(n - columns)]


def petersen(n: int, step: int = 2) -> list[Edge]:
    """A generalised Petersen graph: a cycle of h = n // 2 vertices, h more joined to it by spokes
    and to each other `step` apart (1 below h = 5). An odd vertex is joined to vertices 0 and 1.
    """
    h = n // 2
    step = step if h >= 5 else 1
    edges = [e for i in range(h) for e in ((i, (i + 1) % h), (i, i + h))]
    edges += [(h + i, h + (i + step) % h) for i in range(h)]
    if n % 2:
        edges += [(0, n - 1), (1, n - 1)]
    return edges


def ramsey(n: int) -> list[Edge]:
    """An edge where 1 <= (j - i)^2 mod n <= n // 2 + 1."""
    return [(i, j) for i, j in complete(n) if 1 <= (j - i) ** 2 % n <= n // 2 + 1]


def _tree(rng: np.random.Generator, n: int) -> Graph:
    return tidy((int(rng.integers(i)), i) for i in range(1, n))


def _trees(n: int) -> Iterator[Graph]:
    for parents in itertools.product(*(range(i) for i in range(1, n))):
        yield tidy((p, i) for i, p in enumerate(parents, 1))


def _cross(n: int) -> list[Edge]:
    return list(itertools.product(range(n // 2), range(n // 2, n)))


def _bipartite(rng: np.random.Generator, n: int) -> Graph:
    """n draws among the pairs between two halves; pairs drawn twice count once."""
    pairs = _cross(n)
    return tidy(pairs[i] for i in rng.integers(len(pairs), size=n).tolist())


def _bipartites(n: int) -> Iterator[Graph]:
    for size in range(1, n + 1):
        yield from map(tidy, itertools.combinations(_cross(n), size))


def _planar_start(n: int) -> list[Edge]:
    """Two triangles joined by an edge; with five vertices they share one."""
    if n == 5:
        return [(0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (3, 4)]
    return [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3)]


def _planar(rng: np.random.Generator, n: int) -> Graph:
    """Each further vertex hangs on one earlier vertex or on both ends of one earlier edge."""
    edges = _planar_start(n)
    for vertex in range(6, n):
        if rng.random() < 0.5:
            edges.append((int(rng.integers(vertex)), vertex))
        else:
            u, v = edges[int(rng.integers(len(edges)))]
            edges += [(u, vertex), (v, vertex)]
    return tidy(edges)


def _planars(n: int) -> Iterator[Graph]:
    graphs = [_planar_start(n)]
    for vertex in range(6, n):
        graphs = [
            [*edges, *((u, vertex) for u in ends)]
            for edges in graphs
            for ends in [*((u,) for u in range(vertex)), *edges]
        ]
    return map(tidy, graphs)


def _count_planar(n: int) -> float:
    graphs = {7: 1}  # by number of edges
    for vertex in range(6, n):
        longer: dict[int, int] = {}
        for edges, ways in graphs.items():
            longer[edges + 1] = longer.get(edges + 1, 0) + ways * vertex
            longer[edges + 2] = longer.get(edges + 2, 0) + ways * edges
        graphs = longer
    return sum(graphs.values())


def _dense(rng: np.random.Generator, n: int) -> Graph:
    return tidy(e for e in complete(n) if rng.random() < 0.6)


# --- wide mode ---------------------------------------------------------------------------------


def _multipartite(rng: np.random.Generator, n: int) -> Graph:
    """Complete between 3 to n parts, with none inside a part."""
    parts = int(rng.integers(3, n + 1))
    part = [*range(parts), *rng.integers(parts, size=n - parts).tolist()]
    return shuffled(rng, n, ((u, v) for u, v in complete(n) if part[u] != part[v]))


def _count_multipartite(n: int) -> float:
    """Exact: partitions of n vertices into 3 or more parts."""
    ways = [1] + [0] * n  # partitions of the vertices so far, by number of parts
    for _ in range(n):
        ways = [0] + [k * ways[k] + ways[k - 1] for k in range(1, n + 1)]
    return sum(ways[3:])


def _unicyclic(rng: np.random.Generator, n: int) -> Graph:
    """A cycle of 3 to n vertices; the others hang on it as trees."""
    length = int(rng.integers(3, n + 1))
    hung = [(int(rng.integers(i)), i) for i in range(length, n)]
    return shuffled(rng, n, cycle(length) + hung)


def _count_unicyclic(n: int) -> float:
    """Exact: a cycle on c of the vertices, times the forests rooted in it, c n^(n-c-1)."""
    return sum(
        math.comb(n, c) * math.factorial(c - 1) // 2 * int(c * n ** (n - c) // n)
        for c in range(3, n + 1)
    )


def _wide_tree(rng: np.random.Generator, n: int) -> Graph:
    return shuffled(rng, n, _tree(rng, n))


def _wide_bipartite(rng: np.random.Generator, n: int) -> Graph:
    """Half of the pairs between two halves, at least one."""
    pairs = _cross(n)
    kept = [e for e in pairs if rng.random() < 0.5]
    return shuffled(rng, n, kept or pairs[:1])


def _count_bipartite(n: int) -> float:
    """About: as if every graph were connected, which fixes its halves."""
    return math.comb(n, n // 2) * 2.0 ** len(_cross(n)) / (1 if n % 2 else 2)


def _wide_planar(rng: np.random.Generator, n: int) -> Graph:
    """Vertices put into the faces of a triangle one after the other, less 15 % of the edges."""
    edges: list[Edge] = [(0, 1), (0, 2), (1, 2)]
    faces = [(0, 1, 2), (0, 1, 2)]
    for vertex in range(3, n):
        a, b, c = faces.pop(int(rng.integers(len(faces))))
        edges += [(a, vertex), (b, vertex), (c, vertex)]
        faces += [(a, b, vertex), (a, c, vertex), (b, c, vertex)]
    kept = [e for e in edges if rng.random() < 0.85]
    return shuffled(rng, n, kept or edges[:1])


def _count_stacked(n: int) -> float:
    """At least: those that lost no edge, n! t / (12 (n-2)), t = the ternary trees of n-3 nodes."""
    m = n - 3
    trees = math.comb(3 * m, m) // (2 * m + 1)
    return math.factorial(n) * trees / (12 * (n - 2))


def _wide_wheel(rng: np.random.Generator, n: int) -> Graph:
    """A wheel that keeps three spokes and each further one with probability 0.8."""
    order = rng.permutation(n - 1).tolist()
    spokes = [(0, s + 1) for i, s in enumerate(order) if i < 3 or rng.random() < 0.8]
    return shuffled(rng, n, spokes + [(u + 1, v + 1) for u, v in cycle(n - 1)])


def _count_wheel(n: int) -> float:
    """About: hubs, rims and sets of spokes, as if the hub could always be told."""
    rims = math.factorial(n - 2) / 2
    return n * rims * ((1 << n - 1) - sum(math.comb(n - 1, j) for j in range(3)))


def _grid_cells(n: int) -> list[tuple[Edge, Edge]]:
    """The two diagonals of each square of the grid."""
    columns = grid_columns(n)
    corners = [i for i in range(n - columns - 1) if (i + 1) % columns]
    return [((i, i + columns + 1), (i + 1, i + columns)) for i in corners]


def _wide_grid(rng: np.random.Generator, n: int) -> Graph:
    """A grid in which each square has none or one of its diagonals."""
    cells = _grid_cells(n)
    kind = rng.integers(3, size=len(cells)).tolist()
    return shuffled(
        rng, n, grid(n) + [cell[k] for cell, k in zip(cells, kind, strict=True) if k < 2]
    )


def _count_grid(n: int) -> float:
    """About: names times diagonals, over the eight symmetries of a square."""
    return math.factorial(n) * 3.0 ** len(_grid_cells(n)) / 8


def _wide_petersen(rng: np.random.Generator, n: int) -> Graph:
    """Inner vertices 1 to (h-1)/2 apart, and n // 4 random further edges."""
    step = int(rng.integers(1, max(2, (n // 2 + 1) // 2)))
    edges = tidy(petersen(n, step))
    missing = sorted(set(complete(n)) - set(edges))
    extra = rng.permutation(len(missing))[: n // 4].tolist()
    return shuffled(rng, n, [*edges, *(missing[i] for i in extra)])


def _count_petersen(n: int) -> float:
    """About: names and further edges over the symmetries, at most 4 h for most of them."""
    missing = len(complete(n)) - len(tidy(petersen(n)))
    return math.factorial(n) * math.comb(missing, n // 4) / (4 * (n // 2))


def _circulant(rng: np.random.Generator, n: int) -> Graph:
    """An edge where the distance round the circle is in a random half of the possible ones."""
    distances = rng.permutation(n // 2)[: (n // 2 + 1) // 2] + 1
    chosen = set(distances.tolist())
    return shuffled(rng, n, (e for e in complete(n) if min(e[1] - e[0], n - e[1] + e[0]) in chosen))


def _count_circulant(n: int) -> float:
    """About, from below: the names of one such graph with only the symmetries of the circle."""
    return math.factorial(n) / (2 * n)


def _wide_dense(rng: np.random.Generator, n: int) -> Graph:
    p = rng.uniform(0.5, 0.7)
    return tidy(e for e in complete(n) if rng.random() < p)


def _count_all(n: int) -> float:
    return 2.0 ** math.comb(n, 2)


FAITHFUL: dict[str, Family] = {
    "complete": fixed(complete),
    "cycle": fixed(cycle),
    "tree": Family(_tree, lambda n: math.factorial(n - 1), _trees),
    "bipartite": Family(
        _bipartite,
        lambda n: sum(math.comb(len(_cross(n)), k) for k in range(1, n + 1)),
        _bipartites,
    ),
    "planar": Family(_planar, _count_planar, _planars),
    "wheel": fixed(wheel),
    "grid": fixed(grid),
    "petersen_variant": fixed(petersen),
    "ramsey": fixed(ramsey),
    "dense_random": Family(_dense, _count_all),
}
WIDE: dict[str, Family] = {
    "complete": Family(_multipartite, _count_multipartite),
    "cycle": Family(_unicyclic, _count_unicyclic),
    "tree": Family(_wide_tree, lambda n: n ** (n - 2)),
    "bipartite": Family(_wide_bipartite, _count_bipartite),
    "planar": Family(_wide_planar, _count_stacked),
    "wheel": Family(_wide_wheel, _count_wheel),
    "grid": Family(_wide_grid, _count_grid),
    "petersen_variant": Family(_wide_petersen, _count_petersen),
    "ramsey": Family(_circulant, _count_circulant),
    "dense_random": Family(_wide_dense, _count_all),
}
