"""cluster_sums: equal to a loop over clusters, and standard errors that match the spread of repeated experiments."""

import numpy as np
import pytest

from vigil_monitoring.experiments.cluster_sums import ClusterSums, difference_looks

LOOKS = np.arange(10)


def filled(seed: int, rows: int = 400, times: int = 10, groups: int = 7) -> tuple[ClusterSums, list[tuple[np.ndarray, ...]]]:
    random, sums, parts = np.random.default_rng(seed), ClusterSums(times, groups), []
    for arm in (False, True):
        time, group = random.integers(0, times, rows), random.integers(0, groups, rows)
        denominator = random.integers(0, 3, rows).astype(float)
        numerator = denominator * random.random(rows)
        for part in np.array_split(np.arange(rows), 3):
            sums.add(arm, time[part], group[part], numerator[part], denominator[part])
        parts.append((time, group, numerator, denominator))
    return sums, parts


@pytest.mark.parametrize("last", [3, 9])
def test_looks_equal_a_loop_over_authors_and_times(last: int) -> None:
    sums, parts = filled(1)
    found = sums.looks(np.array([1, last]))
    ratios, rows, residuals = [], [], []
    for arm, (time, group, numerator, denominator) in enumerate(parts):
        kept = time <= last
        ratio = numerator[kept].sum() / denominator[kept].sum()
        ratios.append(ratio)
        rows.append((denominator[kept] > 0).sum())
        scaled = (numerator - ratio * denominator)[kept] / denominator[kept].sum() * (1 if arm else -1)
        residuals += zip(time[kept], group[kept], scaled, strict=True)

    def variance(keys: list[object]) -> float:
        totals: dict[object, float] = {}
        for key, (_, _, residual) in zip(keys, residuals, strict=True):
            totals[key] = totals.get(key, 0.0) + residual
        return sum(total**2 for total in totals.values())

    times, groups = last + 1, 7
    over_time = variance([t for t, _, _ in residuals]) * times / (times - 1)
    over_group = variance([g for _, g, _ in residuals]) * groups / (groups - 1)
    both = variance([(t, g) for t, g, _ in residuals])
    assert found.difference_K[1] == pytest.approx(ratios[1] - ratios[0])
    assert found.champion_K[1] == pytest.approx(ratios[0])
    assert found.errors_K[1] == pytest.approx(np.sqrt(max(over_time + over_group - both, over_time, over_group)))
    assert found.rows_KA[1].tolist() == rows
    assert found.clusters_K[1] == min(times, groups)


def test_looks_are_undefined_without_a_second_day_or_a_denominator() -> None:
    sums, _ = filled(2)
    assert np.isnan(sums.looks(np.array([0])).errors_K[0])
    empty = ClusterSums(3, 4)
    empty.add(False, np.array([0, 1]), np.array([1, 2]), np.array([1.0, 0.0]), np.array([1.0, 1.0]))
    found = empty.looks(np.arange(3))
    assert np.isnan(found.difference_K).all()
    assert np.isnan(found.errors_K).all()
    assert found.rows_KA.tolist() == [[1, 0], [2, 0], [2, 0]]


@pytest.mark.parametrize("persistent", [0.0, 1.0])
def test_difference_looks_has_errors_of_the_right_size(persistent: float) -> None:
    """A split by author: authors differ for good, days differ for both arms, and each arm has days of its own."""
    random, runs, times, groups = np.random.default_rng(3), 1500, 14, 60
    challenger = random.random((runs, 1, groups)) < 0.5
    rate = 10 + persistent * random.normal(0, 3, (runs, 1, groups)) + random.normal(0, 2, (runs, times, 1))
    rate = rate + np.where(challenger, *random.normal(0, 0.5, (2, runs, times, 1)))
    values = rate + random.normal(0, 3, (runs, times, groups))
    sums = np.stack([values * ~challenger, ~challenger * np.ones_like(values), values * challenger, challenger + 0 * values], -1)
    looks = difference_looks(sums, np.array([6, 13]), np.ones((times, 2), np.int64))
    ratio = looks.errors_K.mean(axis=0) / looks.difference_K.std(axis=0)
    assert (np.abs(ratio - 1) < 0.12).all(), ratio
