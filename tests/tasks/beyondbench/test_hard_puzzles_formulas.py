"""Colouring and SAT: every valid answer counts and no other; what is promised is proven."""

import builtins
import collections
import dataclasses
import itertools
import math

import networkx
import numpy as np
import pytest

from tests.tasks.beyondbench.puzzle_rules import (
    MODES,
    cell,
    draw,
    formula_in,
    graph_in,
    models_of,
)
from whet.errors import OptionError
from whet.tasks.beyondbench.hard.colouring import GraphColoring, colouring
from whet.tasks.beyondbench.hard.sat import BooleanSat
from whet.tasks.beyondbench.hard.solvers_sat import count_models, exactly_one, model

# --- colouring ----------------------------------------------------------------------------------


def chromatic(vertices, edges, k):
    """The chromatic polynomial at k by deletion and contraction."""
    if not edges:
        return k ** len(vertices)
    (u, v), *rest = edges
    merged = {tuple(sorted(u if x == v else x for x in e)) for e in rest}
    joined = chromatic([x for x in vertices if x != v], sorted(merged), k)
    return chromatic(vertices, rest, k) - joined


each_family = pytest.mark.parametrize("variation", GraphColoring.variations)


@each_family
@pytest.mark.parametrize("mode", MODES)
def test_accepted_colourings_number_as_the_chromatic_polynomial_says(variation, mode):
    for size in (5, 6):
        task = cell(GraphColoring, variation, mode, size=size)
        for instance in draw(task, 2):
            vertices, edges, k = graph_in(instance.prompt)
            if k**size > 5000:  # complete graphs: all maps would take long
                k, instance = 4, dataclasses.replace(instance, data=(vertices, edges, 4))
            maps = itertools.product(range(k), repeat=size)
            accepted = sum(
                task.check(instance, dict(zip(vertices, m, strict=True))).ok for m in maps
            )
            assert accepted == chromatic(vertices, edges, k)
            assert accepted or k == 4


@each_family
@pytest.mark.parametrize("mode", MODES)
def test_k_is_the_chromatic_number_by_exhaustive_search_and_by_sat(variation, mode):
    for size in (5, 7, 8, 10, 19, 28):
        task = cell(GraphColoring, variation, mode, size=size)
        for instance in draw(task, 3 if size < 10 else 1):
            vertices, edges, k = graph_in(instance.prompt)
            assert instance.data == (tuple(vertices), tuple(edges), k)
            at = {v: i for i, v in enumerate(vertices)}
            if size <= 8 and k <= 6:
                maps = np.array(list(itertools.product(range(k - 1), repeat=size - 1)))
                maps = np.concatenate([np.zeros((len(maps), 1), int), maps], axis=1)
                for u, v in edges:
                    maps = maps[maps[:, at[u]] != maps[:, at[v]]]
                assert len(maps) == 0
            else:
                assert not colourable(at, edges, k - 1)
            assert colourable(at, edges, k)


def colourable(at, edges, k):
    """By python-sat; one clique is coloured first, which is no loss."""
    clauses = [c for i in at.values() for c in exactly_one([i * k + c + 1 for c in range(k)])]
    for u, v in edges:
        clauses += [[-(at[u] * k + c + 1), -(at[v] * k + c + 1)] for c in range(k)]
    graph = networkx.Graph(edges)
    clique = max(networkx.find_cliques(graph), key=len)
    if len(clique) > k:
        return False
    return model(clauses, [at[v] * k + c + 1 for c, v in enumerate(clique)]) is not None


def test_numbers_of_colours_that_were_published_wrong():
    for variation, size, k in (("ramsey", 10, 5), ("ramsey", 12, 3), ("petersen_variant", 10, 3)):
        (instance,) = draw(GraphColoring(variation=variation, size=size), 1)
        assert instance.data[2] == k
    assert {i.data[2] for i in draw(GraphColoring(variation="planar", size=8), 30)} == {3}
    assert colouring(range(3), []) == {0: 0, 1: 0, 2: 0}


def test_the_families_are_what_their_names_say():
    for size in (5, 6, 9, 10, 28):
        graphs = {}
        for variation, mode in itertools.product(GraphColoring.variations, MODES):
            (instance,) = draw(cell(GraphColoring, variation, mode, size=size), 1)
            vertices, edges, _ = graph_in(instance.prompt)
            graphs[variation, mode] = graph = networkx.Graph(edges)
            graph.add_nodes_from(vertices)
            assert set(graph) == set(vertices)
        for mode in MODES:
            assert networkx.is_tree(graphs["tree", mode])
            assert networkx.is_bipartite(graphs["bipartite", mode])
            assert networkx.check_planarity(graphs["planar", mode])[0]
            assert networkx.check_planarity(graphs["wheel", mode])[0]
            assert networkx.check_planarity(graphs["grid", mode])[0]
        same = networkx.is_isomorphic
        assert same(graphs["complete", "faithful"], networkx.complete_graph(size))
        assert same(graphs["cycle", "faithful"], networkx.cycle_graph(size))
        assert same(graphs["wheel", "faithful"], networkx.wheel_graph(size))
        unicyclic = graphs["cycle", "wide"]
        assert networkx.is_connected(unicyclic)
        assert unicyclic.number_of_edges() == size
        assert len({d for _, d in graphs["ramsey", "wide"].degree()}) == 1
        apart = networkx.complement(graphs["complete", "wide"])
        assert all(
            apart.subgraph(c).size() == math.comb(len(c), 2)
            for c in networkx.connected_components(apart)
        )
    (instance,) = draw(GraphColoring(variation="petersen_variant", size=10), 1)
    assert same(networkx.Graph(instance.data[1]), networkx.petersen_graph())
    (instance,) = draw(GraphColoring(variation="grid", size=9), 1)
    assert same(networkx.Graph(instance.data[1]), networkx.grid_2d_graph(3, 3))


def test_faithful_graphs_are_counted_exactly():
    listed = 0
    for variation in GraphColoring.variations:
        for size in (5, 6, 7, 8):
            task = GraphColoring(variation=variation, size=size)
            every = task.all_instances()
            if every is None:
                assert variation == "dense_random" or task.log10_space() >= 3
                continue
            keys = [i.key for i in every]
            assert len(set(keys)) == len(keys) == round(10 ** task.log10_space()) < 1000
            assert {i.key for i in draw(task, 30)} <= set(keys)
            listed += len(keys) > 1
    assert listed >= 6


def test_wide_graphs_on_five_vertices_are_counted():
    pairs = list(itertools.combinations(range(5), 2))
    graphs = []
    for kept in itertools.product((0, 1), repeat=10):
        graph = networkx.Graph([e for e, k in zip(pairs, kept, strict=True) if k])
        graph.add_nodes_from(range(5))
        graphs.append(graph)
    connected = [g for g in graphs if networkx.is_connected(g)]
    counts = {
        "tree": sum(g.size() == 4 for g in connected),
        "cycle": sum(g.size() == 5 for g in connected),
        "dense_random": len(graphs),
        "complete": 52 - 1 - 15,  # partitions of five into three parts or more
    }
    for variation, count in counts.items():
        task = GraphColoring(variation=variation, size=5, mode="wide")
        assert task.log10_space() == pytest.approx(math.log10(count * math.comb(90, 5)))


def test_renaming_vertices_maps_the_accepted_colourings_onto_each_other():
    for variation in GraphColoring.variations:
        task = GraphColoring(variation=variation)
        (instance,) = draw(task, 1)
        vertices, edges, _ = instance.data
        names = dict(zip(vertices, (31, 4, 15, 9, 26), strict=True))
        renamed = dataclasses.replace(
            instance,
            data=([names[v] for v in vertices], [(names[v], names[u]) for u, v in edges], 3),
        )
        instance = dataclasses.replace(instance, data=(vertices, edges, 3))
        for colours in itertools.product("rgb", repeat=5):
            answer = dict(zip(vertices, colours, strict=True))
            other = {names[v]: {"r": 7, "g": "r", "b": "x"}[c] for v, c in answer.items()}
            assert task.check(instance, answer).ok == task.check(renamed, other).ok


# --- SAT ----------------------------------------------------------------------------------------

each_kind = pytest.mark.parametrize("variation", BooleanSat.variations)


@each_kind
@pytest.mark.parametrize("mode", MODES)
def test_accepted_assignments_are_the_models_of_the_truth_table(variation, mode):
    for size in (4, 6, 8):
        task = cell(BooleanSat, variation, mode, size=size)
        for instance in draw(task, 4):
            names = instance.data[1]
            tried = itertools.product((False, True), repeat=size)
            answers = [dict(zip(names, values, strict=True)) for values in tried]
            models = models_of(instance.prompt)
            assert [a for a in answers if task.check(instance, a)] == models
            assert task.parse(instance.example) in models


@each_kind
def test_the_conditions_are_of_the_kind_that_is_named(variation):
    sizes = collections.Counter()
    for mode, ratio in itertools.product(MODES, (2.5, 4.0)):
        for instance in draw(cell(BooleanSat, variation, mode, size=7, ratio=ratio), 40):
            names, clauses, exactly = formula_in(instance.prompt)
            assert exactly == (variation == "xor")
            for clause in clauses:
                assert {v for v, _ in clause} <= set(names)
                assert len({v for v, _ in clause}) == len(clause)
                positive = sum(sign for _, sign in clause)
                sizes[len(clause)] += 1
                if variation == "horn":
                    assert positive <= 1
                if variation == "graph_based":
                    assert positive == len(clause) or (positive, len(clause)) == (0, 2)
    total = sum(sizes.values())
    shares = {
        "random_k": {3: 1},
        "mixed": {1: 0.2, 2: 0.4, 3: 0.3},
        "horn": {1: 0.3, 2: 0.5, 3: 0.2},
        "xor": {2: 0.4, 3: 0.4, 4: 0.2},
        "graph_based": {},
    }[variation]
    for size, share in shares.items():
        assert sizes[size] / total == pytest.approx(share, abs=0.03)
    assert max(sizes) == {"mixed": 6, "xor": 4}.get(variation, 3)


def test_values_that_cannot_be_read_are_never_taken_for_true():
    parse = BooleanSat().parse
    assert parse("<answer>{x1: True, x2: maybe}</answer>", "strict") is None
    assert parse("<answer>{x1: True, x2: True or False, ...}</answer>", "lenient") is None
    assert parse("<answer>{x1: 2}</answer>", "lenient") is None
    assert parse("<answer>{x1: True, x1: False}</answer>", "lenient") is None
    assert parse("<answer>{x1: True, 1: False}</answer>", "lenient") is None
    assert parse('<answer>{"x1": true, "2": F, x_3: 0}</answer>', "strict") == {
        1: True,
        2: False,
        3: False,
    }


@each_kind
def test_the_bound_on_the_number_of_formulas_counts_conditions_exactly(variation):
    n, true = 4, (1, 2)
    literals = [x for v in range(1, n + 1) for x in (v, -v)]
    count = 0
    for size in range(1, 7):
        for clause in itertools.combinations(literals, size):
            if len(set(map(abs, clause))) < size:
                continue
            holds = sum((abs(x) in true) == (x > 0) for x in clause)
            positive = sum(x > 0 for x in clause)
            count += {
                "random_k": size == 3 and holds > 0,
                "mixed": holds > 0,
                "horn": size <= 3 and positive <= 1 and holds > 0,
                "xor": 2 <= size <= 4 and holds == 1,
                "graph_based": holds > 0
                and ((size == 2 and positive == 0) or (size in (2, 3) and positive == size)),
            }[variation]
    assert BooleanSat(variation=variation).log10_space() == pytest.approx(12 * math.log10(count))


def test_models_are_counted_up_to_the_limit():
    clauses = [[1, 2, 3]]
    assert count_models(clauses, (1, 2, 3), limit=100) == 7
    assert count_models(clauses, (1, 2, 3), limit=3) == 3
    assert count_models(clauses, (1, 2, 3), limit=100, assumptions=[-1, -2]) == 1
    assert count_models([*clauses, [-3]], (1, 2), limit=100) == 3
    assert count_models(exactly_one([1, 2, 3, 4]), (1, 2, 3, 4), limit=9) == 4
    assert model([[1], [-1]]) is None
    assert model([[1, 2]], [-1]) == {-1, 2}


def test_without_python_sat_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("pysat"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    (instance,) = draw(BooleanSat(), 1)  # drawing and checking need no solver
    assert BooleanSat().correct(instance, instance.example)
    with pytest.raises(OptionError, match=r"whet\[solvers\]"):
        BooleanSat().solve(instance)
