"""Inclusion probabilities of systematic samples are exact, and sizes of strata add up to the budget."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_monitoring.sampling.systematic import allocate, certainty_cut, expected_sizes, points_from, random_start

sizes_lists = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@given(sizes_lists, st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_points_choose_each_row_with_exactly_its_probability(sizes: list[int], sample: int) -> None:
    """Every start is tried: a row must be chosen by exactly ``n · size`` of the ``total`` starts times one."""
    sample = min(sample, len(sizes))
    cut = certainty_cut(sorted(sizes, reverse=True), sum(sizes), len(sizes), sample)
    uncertain = [size for size in sizes if not cut.certain or size < cut.size]
    assert cut.certain + len(uncertain) == len(sizes)
    assert cut.certain + cut.points == sample
    assert cut.rest == sum(uncertain)
    counts: Counter[int] = Counter()
    ends = np.cumsum(uncertain)
    for start in range(cut.rest if cut.points else 0):
        chosen = np.searchsorted(ends, points_from(cut, start), side="right").tolist()
        assert len(set(chosen)) == cut.points
        counts.update(chosen)
    if cut.points:
        assert [counts[row] for row in range(len(uncertain))] == [cut.points * size for size in uncertain]
        assert all(0 < cut.points * size < cut.rest for size in uncertain)


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=30), st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_certainty_cut_gives_probabilities_that_add_up_to_the_sample(sizes: list[int], sample: int) -> None:
    sample = min(sample, len(sizes))
    cut = certainty_cut(sorted(sizes, reverse=True), sum(sizes), len(sizes), sample)
    probabilities = [1.0 if cut.certain and size >= cut.size else cut.points * size / cut.rest for size in sizes]
    assert sum(probabilities) == pytest.approx(sample, rel=1e-12)
    assert all(0 < of <= 1 for of in probabilities)


def test_random_start_is_uniform_over_seeds() -> None:
    cut = certainty_cut([10] * 7, 70, 7, 3)
    counts = np.bincount([random_start(cut, seed, "below 0.1") for seed in range(14_000)], minlength=70)
    assert len(counts) == 70
    assert ((counts - 200) ** 2 / 200).sum() < 69 + 5 * np.sqrt(2 * 69)
    assert [random_start(cut, seed, "other") for seed in range(20)] != [
        random_start(cut, seed, "below 0.1") for seed in range(20)
    ]


@given(st.lists(st.lists(st.integers(1, 10**6), min_size=1, max_size=20), min_size=1, max_size=5), st.data())
@settings(max_examples=100, deadline=None)
def test_expected_sizes_sum_the_probabilities_of_one_factor(strata: list[list[int]], data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, sum(map(len, strata)))) - 1
    if budget == 0:
        return
    largest = [np.sort(np.array(of))[::-1][:budget] for of in strata]
    found = expected_sizes(largest, np.array([sum(of) for of in strata]), budget)
    low, high = 0.0, 1.0  # an independent solution, by bisection over all rows
    for _ in range(200):
        factor = (low + high) / 2
        low, high = (factor, high) if sum(min(1, factor * size) for of in strata for size in of) < budget else (low, factor)
    np.testing.assert_allclose(found, [sum(min(1, high * size) for size in of) for of in strata], rtol=1e-9, atol=1e-9)


@given(st.lists(st.tuples(st.floats(0.001, 100), st.integers(0, 5), st.integers(5, 200)), min_size=1, max_size=9), st.data())
@settings(max_examples=150, deadline=None)
def test_allocate_keeps_limits_and_spends_the_budget(strata: list[tuple[float, int, int]], data: st.DataObject) -> None:
    due, least, most = (np.array(column) for column in zip(*strata, strict=True))
    budget = data.draw(st.integers(int(least.sum()), int(most.sum())))
    sizes = allocate(due, least, most, budget)
    assert sizes.sum() == budget
    assert ((sizes >= least) & (sizes <= most)).all()


def test_allocate_rounds_what_is_due() -> None:
    sizes = allocate(np.array([3.4, 2.3, 4.3]), np.array([2, 2, 2]), np.array([50, 50, 50]), 10)
    assert sizes.tolist() == [4, 2, 4]
