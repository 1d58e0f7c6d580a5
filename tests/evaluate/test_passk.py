"""pass@k against counting and known values."""

import itertools

import pytest

from whet.errors import OptionError
from whet.evaluate.passk import pass_at_k


def test_pass_at_k_counts_subsets_with_a_right_sample():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(range(n), k))
                right = sum(any(i < c for i in subset) for subset in subsets)
                assert pass_at_k(n, c, k) == pytest.approx(right / len(subsets), abs=1e-12)


def test_pass_at_k_of_ten_samples_with_three_right():
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(10, 3, 5) == pytest.approx(0.91667, abs=1e-5)
    assert pass_at_k(10, 3, 10) == 1
    assert pass_at_k(100000, 1, 1) == pytest.approx(1e-5)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6), (0, 0, 1)])
def test_pass_at_k_of_impossible_counts_is_refused(n, c, k):
    with pytest.raises(OptionError, match="pass@k needs"):
        pass_at_k(n, c, k)
