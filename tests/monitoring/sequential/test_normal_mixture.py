"""normal_mixture: the closed forms equal integrals of likelihood ratios, and coverage holds at all looks at once."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import halfnorm, nct, norm
from scipy.stats import t as student

from vigil_monitoring.sequential.normal_mixture import critical_values, log_e_values, prior_ratio

LOOKS = 30


@pytest.mark.parametrize("statistic", [-1.5, 0.7, 4.0])
@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("df", [2.0, 11.0, np.inf])
def test_log_e_values_integrate_the_likelihood_ratio_over_the_effect(statistic: float, one_sided: bool, df: float) -> None:
    ratio, n = 2.3, df + 1

    def integrand(effect: float) -> float:  # in standard deviations of the prior
        prior = halfnorm.pdf(effect) if one_sided else norm.pdf(effect)
        shift = effect * np.sqrt(ratio)
        if np.isinf(df):
            return float(prior * norm.pdf(statistic, shift) / norm.pdf(statistic))
        return float(prior * nct.pdf(statistic, df, shift) / student.pdf(statistic, df))

    truth = quad(integrand, 0 if one_sided else -9, 9, limit=200)[0]
    assert np.exp(log_e_values(statistic, ratio, df, one_sided=one_sided)) == pytest.approx(truth, rel=1e-5), n


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.floats(0.01, 100),
    alpha=st.floats(1e-4, 0.2),
    df=st.one_of(st.integers(1, 500).map(float), st.just(np.inf)),
    one_sided=st.booleans(),
)
def test_critical_values_are_where_the_evidence_reaches_one_over_alpha(
    ratio: float, alpha: float, df: float, one_sided: bool
) -> None:
    critical = critical_values(ratio, alpha, df, one_sided=one_sided)
    if np.isinf(critical):
        # Even the largest statistic is no evidence: the likelihood ratio of a t statistic is bounded.
        assert log_e_values(1e5, ratio, df, one_sided=one_sided) < -np.log(alpha) + 1e-3
    else:
        assert log_e_values(critical, ratio, df, one_sided=one_sided) == pytest.approx(-np.log(alpha), abs=1e-6)
        assert critical > student.isf(alpha if one_sided else alpha / 2, min(df, 1e9))


def test_prior_ratio_minimises_the_width_at_the_horizon() -> None:
    for one_sided in (False, True):
        best = critical_values(prior_ratio(30, 30, 0.05, one_sided=one_sided), 0.05, one_sided=one_sided)
        others = [critical_values(best_ratio, 0.05, one_sided=one_sided) for best_ratio in np.geomspace(0.5, 200, 200)]
        assert best <= min(others) * (1.0001 if not one_sided else 1.002)


def statistics(values_RK: np.ndarray) -> np.ndarray:
    """t statistics of the running mean, ``[R, K]``; 0 at the first."""
    n = np.arange(1, values_RK.shape[1] + 1)
    means = values_RK.cumsum(axis=1) / n
    squares = (values_RK**2).cumsum(axis=1) - n * means**2
    errors = np.sqrt(np.maximum(squares, 1e-300) / np.maximum(n - 1, 1) / n)
    return np.where(n > 1, means / errors, 0.0)


@pytest.mark.prove
@pytest.mark.parametrize("one_sided", [False, True])
def test_critical_values_hold_at_every_look_where_those_of_one_look_do_not(
    one_sided: bool, proofs: Callable[[int, int], int]
) -> None:
    runs, random = proofs(4000, 100_000), np.random.default_rng(5)
    looks = np.arange(1, LOOKS + 1)
    found = statistics(random.standard_normal((runs, LOOKS)))
    ratio = prior_ratio(looks, LOOKS, 0.05, one_sided=one_sided)
    bounds = critical_values(ratio, 0.05, looks - 1, one_sided=one_sided)
    sizes = found if one_sided else abs(found)
    alarms = (sizes > bounds).any(axis=1).mean()
    once = student.isf(0.05 if one_sided else 0.025, np.maximum(looks - 1, 1))
    naive = (sizes > once)[:, 1:].any(axis=1).mean()
    with_known_errors = (sizes > critical_values(ratio, 0.05, one_sided=one_sided)).any(axis=1).mean()
    print(f"one-sided {one_sided}: alarms {alarms:.4f}; test of one look {naive:.4f}; without df {with_known_errors:.4f}")
    assert 0.002 < alarms < 0.05
    assert naive > 0.12
    assert with_known_errors > 0.08  # why the degrees of freedom matter


@pytest.mark.prove
def test_critical_values_hold_for_weighted_rare_outcomes(proofs: Callable[[int, int], int]) -> None:
    """Days of sampled items with unequal weights: 2 % positives among the heavy ones, differences of -1, 0 and 1."""
    runs, random, daily = proofs(500, 20_000), np.random.default_rng(6), 60
    weights = random.choice([1.0, 20.0], (daily,), p=[0.7, 0.3])
    looks = np.arange(1, LOOKS + 1)
    bounds = critical_values(prior_ratio(looks, LOOKS, 0.05), 0.05, looks - 1)
    missed = 0
    for _ in range(max(runs // 500, 1)):
        signs = random.choice([-1.0, 0.0, 1.0], (500, LOOKS, daily), p=[0.04, 0.92, 0.04])
        missed += (abs(statistics((signs * weights).sum(axis=2))) > bounds).any(axis=1).sum()
    print(f"missed {missed / runs:.4f}")
    assert missed / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
