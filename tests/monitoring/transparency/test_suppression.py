"""Suppression: an adversary with all published numbers finds no count that is left out, by algebra or by enumeration."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vigil_monitoring.transparency import suppress
from vigil_monitoring.transparency.publication import Publication

TABLE = np.array(
    [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1]]
)
"""Total, rows and columns of a table of two by three."""
COMPLETE = np.vstack([TABLE, np.eye(6, dtype=int)])


def rank(rows: list[list[int]]) -> int:
    """Rank of a matrix of integers, exactly."""
    matrix, found = [[Fraction(value) for value in row] for row in rows], 0
    for column in range(len(matrix[0]) if matrix else 0):
        pivot = next((r for r in range(found, len(matrix)) if matrix[r][column]), None)
        if pivot is None:
            continue
        matrix[found], matrix[pivot] = matrix[pivot], matrix[found]
        for r in range(len(matrix)):
            if r != found and matrix[r][column]:
                factor = matrix[r][column] / matrix[found][column]
                matrix[r] = [a - factor * b for a, b in zip(matrix[r], matrix[found], strict=True)]
        found += 1
    return found


def recovered(sums: NDArray[np.int_], cells: NDArray[np.int_], hidden: NDArray[np.bool_]) -> list[int]:
    """Counts that are left out, and are linear combinations of the published ones; cells that are empty are known to be."""
    filled = sums[:, cells > 0]
    published = filled[~hidden].tolist()
    return [row for row in np.flatnonzero(hidden).tolist() if rank([*published, filled[row].tolist()]) == rank(published)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=6, max_size=6), st.integers(2, 12))
def test_suppress_leaves_nothing_that_linear_algebra_recovers(cells: list[int], k: int) -> None:
    counts = np.array(cells)
    hidden, values = suppress(COMPLETE, counts, k), COMPLETE @ counts
    assert hidden[(values > 0) & (values < k)].all()
    assert not hidden[values == 0].any()
    assert recovered(COMPLETE, counts, hidden) == []


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=6, max_size=6), st.integers(2, 3))
def test_suppress_leaves_every_small_count_a_range_that_enumeration_cannot_narrow(cells: list[int], k: int) -> None:
    counts = np.array(cells)
    hidden, values = suppress(COMPLETE, counts, k), COMPLETE @ counts
    small = np.flatnonzero((values > 0) & (values < k))
    # Every table whose published numbers are the same, with counts up to what a wide enough range needs.
    most = [int(count) + k if count else 0 for count in counts]
    tables = np.array(list(product(*(range(value + 1) for value in most))))
    found = tables @ COMPLETE.T
    possible = found[(found[:, ~hidden] == values[~hidden]).all(axis=1) & (found[:, hidden] >= 1).all(axis=1)]
    for row in small:
        assert possible[:, row].max() - possible[:, row].min() >= k


def test_suppress_hides_the_smallest_of_those_that_reveal_a_count() -> None:
    parts = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert suppress(parts, np.array([3, 40, 500]), 10).tolist() == [False, True, True, False]
    assert suppress(parts, np.array([30, 40, 500]), 10).tolist() == [False] * 4
    assert suppress(parts, np.array([3, 40, 500]), 1).tolist() == [False] * 4


def test_suppress_hides_more_where_two_small_counts_sum_to_little() -> None:
    """1 and 2 next to their published sum of 3 would be known to within 1."""
    parts = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    hidden = suppress(parts, np.array([1, 2, 500]), 10)
    assert hidden[1:4].all()
    assert hidden[4] != hidden[0]  # one of the large count and the total, or the difference is the sum


def test_suppress_gives_equal_counts_the_same_fate() -> None:
    """A category with one sub-category is the same number twice."""
    rows = np.array([[1, 1], [1, 0], [1, 0], [0, 1]])
    hidden = suppress(rows, np.array([4, 90]), 5)
    assert hidden[1]
    assert hidden[2]
    assert hidden[0] != hidden[3]


@pytest.mark.parametrize("k", [5, 10])
def test_suppress_of_a_report_of_several_dimensions(k: int) -> None:
    random = np.random.default_rng(k)
    shape = (4, 2, 3)
    cells = random.poisson(np.exp(random.normal(1.5, 2, shape))).ravel()
    place = np.indices(shape).reshape(3, -1)
    sums = [np.ones(cells.size, bool)]
    sums += [place[axis] == value for axis in range(3) for value in range(shape[axis])]
    sums += [(place[0] == a) & (place[2] == b) for a in range(4) for b in range(3)]
    rows = np.array(sums).astype(int)
    hidden, values = suppress(rows, cells, k), rows @ cells
    small = (values > 0) & (values < k)
    assert small.any()
    assert hidden[small].all()
    assert recovered(rows, cells, small) != []  # what leaving out the small ones alone would reveal
    assert recovered(rows, cells, hidden) == []


def test_publication_decides_on_all_declared_sums_together() -> None:
    counts: Publication[tuple[str, str]] = Publication({("hate", "en"): 3, ("hate", "de"): 40, ("spam", "en"): 500}, k=10)
    counts.declare("hate", lambda cell: cell[0] == "hate")
    assert counts.read("hate") == 43
    counts.declare("hate, en", lambda cell: cell == ("hate", "en"))
    counts.declare("hate, de", lambda cell: cell == ("hate", "de"))
    assert [counts.read(name) for name in ("hate", "hate, en", "hate, de")] == [43, None, None]
    assert counts.withheld == 2


def test_publication_without_cells() -> None:
    counts: Publication[str] = Publication({}, k=10)
    counts.declare("all", lambda _: True)
    assert counts.read("all") == 0
    assert counts.withheld == 0
