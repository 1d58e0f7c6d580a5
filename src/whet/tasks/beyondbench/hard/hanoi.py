"""Tower of Hanoi: any legal sequence of moves that ends at the stated goal is right.

Source: BeyondBench, arXiv 2509.24210, task tower_hanoi. Deviations: the goal peg is part of the
problem and of its check; detours are accepted, the optimum is a second measure (`optimal`).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from whet.tasks.answers import last_block, read
from whet.tasks.base import Instance, Mode, Verdict
from whet.tasks.beyondbench.base import BeyondTask, Drawing, Level

Move = tuple[int, str, str]
Pegs = Sequence[int]  # the peg (0, 1, 2 for A, B, C) of disk 1, disk 2, ...

_ARROW = r"(?:to|onto|->|=>|→|\\to|\\rightarrow)"
_PEG = r"(?:(?:peg|rod|pole|tower) )?"
_FROM_TO = rf"{_PEG}([ABC]) ?{_ARROW} ?{_PEG}([ABC])\b"
_MOVE = re.compile(rf"\bdis[ck] ?#?(\d{{1,3}}) ?(?:from|:) ?{_FROM_TO}", re.I)
_LINE = re.compile(  # one move and nothing else, perhaps numbered; spaces are single by then
    r"(?:[-*] ?)?(?:(?:step |move )?\d{1,4} ?[.):] ?)?(?:move |transfer )?(?:the )?"
    rf"(?:{_MOVE.pattern}|(\d{{1,3}}): ?{_FROM_TO}) ?[.,;]?",
    re.I,
)
_MAX_LINE = 300  # characters: longer lines hold no answer


@dataclass(frozen=True, kw_only=True)
class TowerHanoi(BeyondTask):
    """Move all disks to the goal. faithful: a tower from one peg to another, pegs drawn; wide: from
    any legal arrangement of the disks on the three pegs to any other.
    """

    id: ClassVar[str] = "tower_hanoi"
    summary: ClassVar[str] = "tower of Hanoi, 3 to 8 disks, any legal sequence to the stated goal"
    many_answers: ClassVar[bool] = True
    level: ClassVar[Level] = "hard"
    variations: ClassVar[tuple[str, ...]] = ("n3", "n4", "n5", "n6", "n7", "n8")

    @classmethod
    def allowed_sizes(cls, variation: str, mode: Drawing) -> Sequence[int]:
        return (int(variation[1:]),)

    def generate(self, rng: np.random.Generator) -> Instance:
        n = self.disks
        if self.mode == "faithful":
            source, target = rng.permutation(3)[:2].tolist()
            return self._instance((source,) * n, (target,) * n)
        start = rng.integers(3, size=n).tolist()
        goal = start
        while goal == start:
            goal = rng.integers(3, size=n).tolist()
        return self._instance(tuple(start), tuple(goal))

    @property
    def disks(self) -> int:
        """Number of disks: the variation says it."""
        return int(self.variation[1:])

    def _instance(self, start: tuple[int, ...], goal: tuple[int, ...]) -> Instance:
        return self.instance(_prompt(start, goal), (start, goal), shortest(start, goal))

    def check(self, instance: Instance, answer: Any) -> Verdict:
        """Play the moves. extra `optimal`: 1.0 where no shorter sequence exists, else 0.0."""
        start, goal = instance.data
        if not isinstance(answer, (list, tuple)):
            return Verdict(False, "the answer is not a list of moves")
        at = list(start)
        for number, move in enumerate(answer, 1):
            fault = _fault(at, move)
            if fault:
                return Verdict(False, f"move {number}: {fault}")
            disk, _, to = move
            at[disk - 1] = "ABC".index(to)
        if at != list(goal):
            return Verdict(False, "the moves do not end at the goal")
        return Verdict(True, extra={"optimal": float(len(answer) == len(shortest(start, goal)))})

    def solve(self, instance: Instance) -> list[Move]:
        return shortest(*instance.data)

    def log10_space(self) -> float:
        """Exact: ordered pairs of different pegs, or of different arrangements."""
        places = 3 if self.mode == "faithful" else 3**self.disks
        return math.log10(places * (places - 1))

    def all_instances(self) -> Iterator[Instance] | None:
        if self.log10_space() >= 3:
            return None
        towers = [(p,) * self.disks for p in range(3)]
        wide = itertools.product(range(3), repeat=self.disks)
        places = towers if self.mode == "faithful" else list(wide)
        return (self._instance(a, b) for a, b in itertools.permutations(places, 2))

    def render(self, answer: Sequence[Move]) -> str:
        lines = (f"Move disk {disk} from peg {a} to peg {b}" for disk, a, b in answer)
        return "<answer>\n" + "\n".join(lines) + "\n</answer>"

    def parse(self, text: str, mode: Mode = "lenient") -> list[Move] | None:
        """Moves, one a line. Lenient reading takes the last run of lines that hold moves."""
        return read(text, mode, marked=last_block, exact=_only_moves, last=_last_moves)


def shortest(start: Pegs, goal: Pegs) -> list[Move]:
    """A shortest sequence of moves between two arrangements of the same disks.

    The largest disk that has to move does so once or, by way of the third peg, twice; the smaller
    ones gather out of its way each time (Hinz et al., The Tower of Hanoi, 2013, chapter 2).
    """
    n = len(start)
    while n and start[n - 1] == goal[n - 1]:
        n -= 1
    if not n:
        return []
    a, b = start[n - 1], goal[n - 1]
    spare = 3 - a - b

    def backwards(peg: int) -> list[tuple[int, int, int]]:
        return [(d, y, x) for d, x, y in reversed(list(_gather(list(goal), n - 1, peg)))]

    once = [*_gather(list(start), n - 1, spare), (n, a, b), *backwards(spare)]
    tower = list(_gather([b] * (n - 1), n - 1, a))
    twice = [
        *_gather(list(start), n - 1, b),
        (n, a, spare),
        *tower,
        (n, spare, b),
        *backwards(a),
    ]
    best = min(once, twice, key=len)
    return [(disk, "ABC"[x], "ABC"[y]) for disk, x, y in best]


def _gather(at: list[int], count: int, peg: int) -> Iterator[tuple[int, int, int]]:
    """The shortest moves that bring disks 1 to `count` to one peg; `at` is changed on the way."""
    if not count:
        return
    disk, here = count, at[count - 1]
    if here != peg:
        yield from _gather(at, count - 1, 3 - here - peg)
        yield disk, here, peg
        at[disk - 1] = peg
    yield from _gather(at, count - 1, peg)


def _fault(at: Pegs, move: Any) -> str:
    """Why a move is not possible now, "" where it is."""
    if not isinstance(move, (list, tuple)) or len(move) != 3:
        return "it is not a disk and two pegs"
    disk, a, b = move
    if type(disk) is not int or not 1 <= disk <= len(at):
        return "there is no such disk"
    if not all(isinstance(p, str) and p in ("A", "B", "C") for p in (a, b)) or a == b:
        return "it needs two different pegs among A, B and C"
    x, y = "ABC".index(a), "ABC".index(b)
    if at[disk - 1] != x:
        return f"disk {disk} is not on peg {a}"
    if x in at[: disk - 1]:
        return f"disk {disk} is not on top of peg {a}"
    if y in at[: disk - 1]:
        return f"disk {disk} would lie on a smaller disk"
    return ""


def _shown(at: Pegs) -> str:
    lines = []
    for peg, name in enumerate("ABC"):
        disks = [str(d) for d in range(len(at), 0, -1) if at[d - 1] == peg]
        lines.append(f"Peg {name}: {', '.join(disks) or 'empty'}")
    return "\n".join(lines)


def _prompt(start: Pegs, goal: Pegs) -> str:
    n = len(start)
    return (
        f"A Tower of Hanoi has three pegs, A, B and C, and {n} disks. Disk 1 is the smallest and "
        f"disk {n} the largest.\n\n"
        f"Start, each peg from bottom to top:\n{_shown(start)}\n\n"
        f"Goal, each peg from bottom to top:\n{_shown(goal)}\n\n"
        "Rules: one disk moves at a time. Only the top disk of a peg can move. A disk never lies "
        "on a smaller one.\n\n"
        "Find moves that lead from the start to the goal, as few as you can; every legal sequence "
        "that ends at the goal counts. Write them in order, one a line, in this form:\n"
        "<answer>\nMove disk k from peg X to peg Y\n...\n</answer>"
    )


def _only_moves(text: str) -> list[Move] | None:
    """Lines that are moves and nothing else."""
    moves: list[Move] = []
    for line in map(_plain, filter(str.strip, text.splitlines())):
        found = _LINE.fullmatch(line)
        if found is None:
            return None
        disk, a, b = (part for part in found.groups() if part is not None)
        moves.append((int(disk), a.upper(), b.upper()))
    return moves or None


def _last_moves(text: str) -> list[Move] | None:
    """The moves of the last run of lines that hold some; empty lines do not end a run."""
    run: list[list[Move]] = []
    for line in map(_plain, filter(str.strip, reversed(text.splitlines()))):
        moves = _only_moves(line) or [
            (int(disk), a.upper(), b.upper()) for disk, a, b in _MOVE.findall(line)
        ]
        if moves:
            run.append(moves)
        elif run:
            break
    return [move for moves in reversed(run) for move in moves] or None


def _plain(line: str) -> str:
    """A line with single spaces and without marks of emphasis; "?" where it is too long."""
    line = " ".join(re.sub(r"[*`$|]", " ", line[: _MAX_LINE + 1]).split())
    return line if len(line) <= _MAX_LINE else "?"
