"""The 29 easy tasks as data: what is drawn, what is asked, what is right.

BeyondBench, arXiv 2509.24210, easy suite. Where the paper leaves open how numbers are drawn, they
are drawn with repetition. Deviations: `mode` repeats a value of the whole range; `wide` counts
negatives in freely drawn numbers (in the paper's lists half of the numbers are negative, so the
answer is known), and takes palindromes of any length (the paper's end at 393).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from whet.tasks.beyondbench.easy import draws, kinds
from whet.tasks.beyondbench.easy.draws import Draw
from whet.tasks.beyondbench.easy.kinds import Kind


@dataclass(frozen=True)
class Row:
    """One task. question: the operation, {x} the list in brackets or {a} and {b} the two numbers.

    answer: what is right, from the numbers. least: the smallest size. pair: two numbers, no list.
    wide: how `wide` draws, where it is another way.
    """

    id: str
    summary: str
    draw: Draw
    kind: Kind
    question: str
    answer: Callable[[Sequence[int]], Any]
    least: int = 2
    pair: bool = False
    wide: Draw | None = None


def relation(x: Sequence[int]) -> str:
    """How the first of two numbers compares with the second."""
    return "greater than" if x[0] > x[1] else "less than" if x[0] < x[1] else "equal to"


def median(x: Sequence[int]) -> Fraction:
    """The middle value, or the mean of the two middle ones."""
    ordered, half = sorted(x), len(x) // 2
    return Fraction(ordered[half] + ordered[~half], 2)


def modes(x: Sequence[int]) -> frozenset[int]:
    """All values that occur most often."""
    counts = Counter(x)
    most = max(counts.values())
    return frozenset(value for value, count in counts.items() if count == most)


def longest_increasing(x: Sequence[int]) -> int:
    """Length of the longest strictly increasing subsequence, by patience sorting."""
    ends: list[int] = []  # ends[k]: smallest end of such a subsequence of length k + 1
    for value in x:
        place = bisect.bisect_left(ends, value)
        ends[place : place + 1] = [value]
    return len(ends)


def local_maxima(x: Sequence[int]) -> int:
    """How many inner values exceed both neighbours."""
    return sum(a < b > c for a, b, c in zip(x, x[1:], x[2:], strict=False))


ROWS = (
    Row(
        "sorting",
        "sort whole numbers in ascending order",
        draws.SAMPLE,
        kinds.LIST,
        "Put the numbers {x} in ascending order.",
        lambda x: sorted(x),
    ),
    Row(
        "comparison",
        "compare two whole numbers",
        draws.RELATION,
        kinds.RELATION,
        "Is {a} greater than, less than or equal to {b}?",
        relation,
        pair=True,
    ),
    Row(
        "sum",
        "add whole numbers",
        draws.SAMPLE,
        kinds.WHOLE,
        "Add up all the numbers in {x}.",
        sum,
    ),
    Row(
        "subtraction",
        "subtract the first number from the second",
        draws.REPEATED,
        kinds.WHOLE,
        "Subtract {a} from {b}.",
        lambda x: x[1] - x[0],
        pair=True,
    ),
    Row(
        "multiplication",
        "multiply whole numbers, exactly",
        draws.REPEATED,
        kinds.WHOLE,
        "Multiply all the numbers in {x} and give every digit of the product.",
        math.prod,
    ),
    Row(
        "division",
        "divide two whole numbers, to two decimals",
        draws.DIVISION,
        kinds.QUOTIENT,
        "Divide {a} by {b}.",
        lambda x: Fraction(x[0], x[1]),
        pair=True,
    ),
    Row(
        "absolute_difference",
        "the distance between two whole numbers",
        draws.REPEATED,
        kinds.WHOLE,
        "Find the absolute difference of {a} and {b}.",
        lambda x: abs(x[0] - x[1]),
        pair=True,
    ),
    Row(
        "odd_count",
        "count odd numbers",
        draws.REPEATED,
        kinds.WHOLE,
        "Count the odd numbers in {x}, negative ones included.",
        lambda x: sum(v % 2 for v in x),
    ),
    Row(
        "even_count",
        "count even numbers",
        draws.REPEATED,
        kinds.WHOLE,
        "Count the even numbers in {x}; zero is even.",
        lambda x: sum(v % 2 == 0 for v in x),
    ),
    Row(
        "find_maximum",
        "find the largest number",
        draws.SAMPLE,
        kinds.WHOLE,
        "Find the largest number in {x}.",
        max,
    ),
    Row(
        "find_minimum",
        "find the smallest number",
        draws.SAMPLE,
        kinds.WHOLE,
        "Find the smallest number in {x}.",
        min,
    ),
    Row(
        "mean",
        "the mean of whole numbers",
        draws.REPEATED,
        kinds.NUMBER,
        "Compute the mean of the numbers in {x}.",
        lambda x: Fraction(sum(x), len(x)),
    ),
    Row(
        "median",
        "the median of whole numbers",
        draws.REPEATED,
        kinds.NUMBER,
        "Compute the median of the numbers in {x}; "
        "for an even count it is the mean of the two middle ones.",
        median,
    ),
    Row(
        "mode",
        "find all most frequent values",
        draws.WITH_MODE,
        kinds.SET,
        "Find the mode of {x}, that is every value that no other value outnumbers.",
        modes,
        least=3,
    ),
    Row(
        "second_maximum",
        "find the second largest distinct value",
        draws.TWO_VALUES,
        kinds.WHOLE,
        "Find the second largest distinct value in {x}.",
        lambda x: sorted(set(x))[-2],
    ),
    Row(
        "range",
        "the difference of the largest and the smallest number",
        draws.SAMPLE,
        kinds.WHOLE,
        "Compute by how much the largest number in {x} exceeds the smallest.",
        lambda x: max(x) - min(x),
    ),
    Row(
        "index_of_maximum",
        "the place of the largest number",
        draws.SAMPLE,
        kinds.WHOLE,
        "Find the position of the first largest number in {x}, counting positions from 0.",
        lambda x: x.index(max(x)),
    ),
    Row(
        "count_negative",
        "count negative numbers",
        draws.HALVES,
        kinds.WHOLE,
        "Count the numbers below zero in {x}.",
        lambda x: sum(v < 0 for v in x),
        wide=draws.SIGNED,
    ),
    Row(
        "count_unique",
        "count distinct values",
        draws.FEW_VALUES,
        kinds.WHOLE,
        "Count how many different values occur in {x}.",
        lambda x: len(set(x)),
    ),
    Row(
        "max_adjacent_difference",
        "the largest jump between neighbours",
        draws.REPEATED,
        kinds.WHOLE,
        "Find the largest absolute difference of two neighbouring numbers in {x}.",
        lambda x: max(abs(b - a) for a, b in itertools.pairwise(x)),
    ),
    Row(
        "count_greater_than_previous",
        "count numbers above the one before",
        draws.REPEATED,
        kinds.WHOLE,
        "Count the numbers in {x} that are greater than the number just before them.",
        lambda x: sum(b > a for a, b in itertools.pairwise(x)),
    ),
    Row(
        "sum_of_max_indices",
        "add the places at which the largest number stands",
        draws.MAX_COPIES,
        kinds.WHOLE,
        "Add up all positions at which the largest number of {x} stands, "
        "counting positions from 0.",
        lambda x: sum(i for i, v in enumerate(x) if v == max(x)),
    ),
    Row(
        "count_palindromic",
        "count palindromic numbers",
        draws.PALINDROMES,
        kinds.WHOLE,
        "Count the numbers in {x} whose digits read the same in both directions; "
        "a single digit counts.",
        lambda x: sum(str(v) == str(v)[::-1] for v in x),
        wide=draws.WIDE_PALINDROMES,
    ),
    Row(
        "longest_increasing_subsequence",
        "the length of the longest increasing subsequence",
        draws.REPEATED,
        kinds.WHOLE,
        "Find the length of the longest strictly increasing subsequence of {x}; "
        "its numbers need not be neighbours.",
        longest_increasing,
    ),
    Row(
        "sum_of_digits",
        "add all digits of all numbers",
        draws.TWO_DIGITS,
        kinds.WHOLE,
        "Add up all digits of all numbers in {x}.",
        lambda x: sum(int(digit) for v in x for digit in str(v)),
    ),
    Row(
        "count_perfect_squares",
        "count perfect squares",
        draws.SQUARES,
        kinds.WHOLE,
        "Count the perfect squares in {x}.",
        lambda x: sum(map(draws.is_square, x)),
    ),
    Row(
        "alternating_sum",
        "add and subtract in turn",
        draws.REPEATED,
        kinds.WHOLE,
        "Take the first number of {x}, subtract the second, add the third and go on in turn "
        "to the end.",
        lambda x: sum(x[::2]) - sum(x[1::2]),
    ),
    Row(
        "count_multiples",
        "count multiples of 3",
        draws.MULTIPLES,
        kinds.WHOLE,
        "Count the multiples of 3 in {x}, negative ones and zero included.",
        lambda x: sum(v % 3 == 0 for v in x),
    ),
    Row(
        "local_maxima_count",
        "count numbers above both neighbours",
        draws.REPEATED,
        kinds.WHOLE,
        "Count the numbers in {x} that have two neighbours and are greater than both.",
        local_maxima,
        least=3,
    ),
)
