"""Simulated traffic has the truth that it states."""

import numpy as np
from simulated_traffic import days_of, simulate_traffic


def test_simulate_traffic_is_calibrated_and_clustered_with_the_stated_prevalence() -> None:
    table, truth_NL = simulate_traffic(60_000, 3, prevalence=0.02, labels=("hate",), correlation=0.4)
    probability_N = table.column("probability.hate").to_numpy()
    truth_N = truth_NL[:, 0]
    assert abs(probability_N.mean() - 0.02) < 1e-6
    bands = np.digitize(probability_N, [0.005, 0.05, 0.2, 0.5])
    for band in range(5):
        expected = probability_N[bands == band]
        # Authors correlate, so sums vary more than binomial ones.
        sd = np.sqrt((expected * (1 - expected)).sum())
        assert abs(truth_N[bands == band].sum() - expected.sum()) < 6 * sd
    residual_N = truth_N - probability_N
    authors = table.column("author").to_numpy(zero_copy_only=False)
    _, codes_N = np.unique(authors, return_inverse=True)
    within = (np.bincount(codes_N, residual_N) ** 2).sum() / (residual_N**2).sum()
    assert within > 1.3
    days = days_of(table)
    assert len(days) == 7
    assert sum(day.num_rows for day in days.values()) == 60_000


def test_simulate_traffic_reports_miscalibrated_scores_of_the_same_truth() -> None:
    table, truth_NL = simulate_traffic(20_000, 3, prevalence=0.02)
    wrong, same_NL = simulate_traffic(20_000, 3, prevalence=0.02, shift=1.5)
    np.testing.assert_array_equal(truth_NL, same_NL)
    assert wrong.column("probability.hate").to_numpy().mean() > 1.5 * table.column("probability.hate").to_numpy().mean()
