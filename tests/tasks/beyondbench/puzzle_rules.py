"""The rules of the hard puzzles written again, from the text of a prompt alone."""

import itertools
import re

from whet import rng
from whet.tasks.beyondbench.hard.colouring import GraphColoring
from whet.tasks.beyondbench.hard.hanoi import TowerHanoi
from whet.tasks.beyondbench.hard.queens import NQueens
from whet.tasks.beyondbench.hard.sat import BooleanSat
from whet.tasks.beyondbench.hard.sudoku import SudokuSolving

TASKS = (TowerHanoi, NQueens, GraphColoring, BooleanSat, SudokuSolving)
MODES = ("faithful", "wide")
CELLS = [(cls, variation, mode) for cls in TASKS for variation in cls.variations for mode in MODES]
IDS = [f"{cls.id}-{variation}-{mode}" for cls, variation, mode in CELLS]


def cell(cls, variation, mode, **settings):
    return cls(variation=variation, mode=mode, **settings)


def draw(task, count, seed=0):
    return [task.generate(rng.keyed(seed, "draw", i)) for i in range(count)]


def numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


# --- Hanoi --------------------------------------------------------------------------------------


def hanoi_pegs(prompt):
    """Start and goal: for each peg its disks from bottom to top."""
    pegs = [numbers(line) for line in re.findall(r"^Peg [ABC]: (.*)$", prompt, re.M)]
    assert len(pegs) == 6
    return pegs[:3], pegs[3:]


def valid_hanoi(prompt, moves):
    stacks, goal = hanoi_pegs(prompt)
    stacks = dict(zip("ABC", stacks, strict=True))
    for disk, a, b in moves:
        if a not in stacks or b not in stacks or stacks[a][-1:] != [disk]:
            return False
        if (stacks[b] and stacks[b][-1] < disk) or a == b:
            return False
        stacks[b].append(stacks[a].pop())
    return list(stacks.values()) == goal


# --- queens -------------------------------------------------------------------------------------


def valid_queens(prompt, columns):
    n = int(re.search(r"Place (\d+) queens", prompt).group(1))
    given = re.findall(r"row (\d+), column (\d+)", prompt)
    if len(columns) != n or set(columns) != set(range(n)):
        return False
    if any(columns[int(r)] != int(c) for r, c in given):
        return False
    return all(
        abs(columns[i] - columns[j]) != j - i for i, j in itertools.combinations(range(n), 2)
    )


# --- colouring ----------------------------------------------------------------------------------


def graph_in(prompt):
    """Vertices, edges and the number of colours."""
    vertices = numbers(re.search(r"vertices: (.*)\.", prompt).group(1))
    edges = [(int(u), int(v)) for u, v in re.findall(r"(\d+)-(\d+)", prompt)]
    assert len(vertices) == int(re.search(r"has (\d+) vertices", prompt).group(1))
    assert len(edges) == int(re.search(r"has (\d+) edges", prompt).group(1)) == len(set(edges))
    return vertices, edges, int(re.search(r"at most (\d+) different", prompt).group(1))


def valid_colouring(prompt, colour):
    vertices, edges, k = graph_in(prompt)
    if set(colour) != set(vertices) or len(set(colour.values())) > k:
        return False
    return not any(colour[u] == colour[v] for u, v in edges)


# --- SAT ----------------------------------------------------------------------------------------


def formula_in(prompt):
    """Variables, clauses (as printed) and whether exactly one literal of each must hold."""
    names = numbers(re.search(r"variables (.*) that satisfy", prompt).group(1))
    clauses = [
        [(int(v), not negated) for negated, v in re.findall(r"(NOT )?x(\d+)", line)]
        for line in re.findall(r"^\d+\. (.*)$", prompt, re.M)
    ]
    exactly = "exactly one of the listed literals must be true" in prompt
    assert exactly or "at least one of the literals joined by OR must be true" in prompt
    assert ("OR" not in prompt) == exactly
    return names, clauses, exactly


def models_of(prompt):
    """The truth table's models."""
    names, clauses, exactly = formula_in(prompt)
    found = []
    for values in itertools.product((False, True), repeat=len(names)):
        truth = dict(zip(names, values, strict=True))
        counts = [sum(truth[v] == positive for v, positive in clause) for clause in clauses]
        if all(c == 1 if exactly else c >= 1 for c in counts):
            found.append(truth)
    return found


def valid_sat(prompt, truth):
    names, clauses, exactly = formula_in(prompt)
    if set(truth) != set(names):
        return False
    counts = [sum(truth[v] == positive for v, positive in clause) for clause in clauses]
    return all(c == 1 if exactly else c >= 1 for c in counts)


# --- Sudoku -------------------------------------------------------------------------------------


def letters_after(prompt, title):
    """Places with the same letter, from the block of letters that follows a line."""
    if title not in prompt:
        return {}
    block = prompt.split(title, 1)[1].strip("\n").split("\n")
    places = {}
    for r, line in enumerate(block):
        if not re.fullmatch(r"[A-Z]( [A-Z])*", line):
            break
        for c, letter in enumerate(line.split()):
            places.setdefault(letter, []).append((r, c))
    return places


def sudoku_in(prompt):
    """The given rows ("_" where blank), the symbols, the units and the cages."""
    rows = [
        [cell.strip() for cell in line.split(",")]
        for line in re.findall(r"^\[(.*)\]$", prompt, re.M)
        if "n" not in line
    ]
    n = len(rows)
    wanted = re.search(r"each of the numbers (.*) exactly once", prompt).group(1)
    symbols = numbers(wanted)
    if " to " in wanted:
        symbols = list(range(symbols[0], symbols[1] + 1))
    assert n == len(symbols) == int(re.search(r"(\d+)x\d+ number grid", prompt).group(1))
    units = [[(r, c) for c in range(n)] for r in range(n)]
    units += [[(r, c) for r in range(n)] for c in range(n)]
    boxes = re.search(r"boxes of (\d) rows and (\d) columns", prompt)
    if boxes:
        h, w = map(int, boxes.groups())
        assert h * w == n
        for top, left in itertools.product(range(0, n, h), range(0, n, w)):
            units.append([(top + i, left + j) for i in range(h) for j in range(w)])
    else:
        regions = letters_after(prompt, "Cells with the same letter form a region:")
        assert [len(cells) for cells in regions.values()] == [n] * n
        units += regions.values()
    if "both main diagonals" in prompt:
        units += [[(i, i) for i in range(n)], [(i, n - 1 - i) for i in range(n)]]
    cages = letters_after(prompt, "Cells with the same letter form a cage:")
    sums = {letter: int(total) for letter, total in re.findall(r"([A-Z]) = (\d+)", prompt)}
    assert set(sums) == set(cages)
    return rows, symbols, units, [(sums[letter], cells) for letter, cells in cages.items()]


def valid_sudoku(prompt, rows):
    given, symbols, units, cages = sudoku_in(prompt)
    n = len(symbols)
    if [len(row) for row in rows] != [n] * n:
        return False
    for want, have in zip(itertools.chain(*given), itertools.chain(*rows), strict=True):
        if want not in ("_", str(have)):
            return False
    if any(sorted(rows[r][c] for r, c in unit) != symbols for unit in units):
        return False
    return all(sum(rows[r][c] for r, c in cells) == total for total, cells in cages)


VALID = {
    "tower_hanoi": valid_hanoi,
    "n_queens": valid_queens,
    "graph_coloring": valid_colouring,
    "boolean_sat": valid_sat,
    "sudoku_solving": valid_sudoku,
}
