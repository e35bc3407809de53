"""shift_evidence and betting_evidence: the formulas, and false alarms and delays in simulations with known truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi2, norm

from vigil_monitoring.sequential.e_process import betting_evidence, ever_p, first_alarms, shift_evidence, start_weights

ALPHA = 0.05


def log_density_of_invariant(values, design, covariance):
    """Density of the maximal invariant under N(X b, s² V), up to what does not depend on V (dense matrices, float64)."""
    inverse = np.linalg.inv(covariance)
    inner = design.T @ inverse @ design
    rss = values @ (inverse - inverse @ design @ np.linalg.inv(inner) @ design.T @ inverse) @ values
    freedom = len(values) - design.shape[1]
    return -0.5 * (np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(inner)[1] + freedom * math.log(rss))


@pytest.mark.parametrize("negligible", [0.0, 0.7])
def test_shift_evidence_is_the_likelihood_ratio_of_the_invariant(negligible):
    random = np.random.default_rng(4)
    values, group = random.normal(size=18), np.arange(18) % 3
    values[15:] += 4
    weights, references = random.uniform(0.5, 2, 18), 12
    band = np.array([[-negligible], [negligible]])
    found = shift_evidence(values[:, None], references, group_N=group, weights_NK=weights[:, None], band_2K=band)
    since = [log_e_since(start, values, group, weights, references, negligible) for start in range(6)]
    assert found.log_e[-1, 0] == pytest.approx(max(since), abs=1e-7)
    assert found.start[-1, 0] == int(np.argmax(since)) == 3


def log_e_since(start, values, group, weights, references, negligible):
    """The evidence since one day from dense covariance matrices, with the weight of that day."""
    kept = np.r_[0:references, references + start : len(values)]
    design, shift = (group[kept, None] == np.arange(3)).astype(float), (kept >= references).astype(float)
    covariance, total = np.diag(1 / weights[kept]), 0.0
    for sign in (1, -1):
        moved = values[kept] - sign * negligible * shift
        null = log_density_of_invariant(moved, design, covariance)
        for scale in (1.5, 6.0):
            normal = log_density_of_invariant(moved, design, covariance + scale**2 * np.outer(shift, shift))
            total += math.exp(normal - null) * 2 * sign_probability(moved, design, shift, weights[kept], scale, sign) / 4
    return math.log(total * start_weights(start + 1)[start])


def sign_probability(y, design, shift, weights, scale, sign):
    """Posterior probability of the sign of the shift, by numerical integration over the standard deviation."""
    root = np.sqrt(weights)
    q_basis, _ = np.linalg.qr(design * root[:, None])
    d, r = shift * root, y * root
    d, r = d - q_basis @ (q_basis.T @ d), r - q_basis @ (q_basis.T @ r)
    information, product, rss, freedom = d @ d, d @ r, r @ r, len(y) - design.shape[1]
    spread = 1 + scale**2 * information
    mean, variance = scale**2 * product / spread, scale**2 / spread
    rss_g = rss - scale**2 * product**2 / spread

    # rss_g / sigma² has a chi-squared distribution; given it, the shift is normal.
    def positive(u):
        return chi2.pdf(u, freedom) * norm.cdf(sign * mean * math.sqrt(u / rss_g / variance))

    return quad(positive, 0, 40 * freedom, limit=100, points=[freedom])[0]


def null_days(random, streams, references, days, *, weekday=0.0, shift=None):
    """Normal daily values with a weekday cycle, and a shift of the days after the reference."""
    n = references + days
    values = random.normal(size=(n, streams)) + weekday * np.sin(np.arange(n) % 7)[:, None]
    if shift is not None:
        values[references:] += shift
    return values


@pytest.mark.prove
@pytest.mark.parametrize("shift", ["none", "at the edge", "alternating", "late"])
def test_shift_evidence_keeps_the_rate_of_false_alarms_over_30_looks(shift, proofs):
    random, streams, days = np.random.default_rng(11), proofs(300, 20_000), 30
    edge, first = 0.5, np.arange(days)[:, None]
    path = {
        "none": None,
        "at the edge": np.full((days, 1), edge),
        "alternating": np.where(first % 2, -edge, edge),
        "late": np.where(first < 15, -edge, edge),
    }[shift]
    values = null_days(random, streams, 28, days, weekday=3.0, shift=path)
    band = np.tile([[-edge], [edge]], (1, streams))
    found = shift_evidence(values, 28, group_N=np.arange(58) % 7, band_2K=band)
    alarms = (ever_p(found.log_e)[-1] <= ALPHA).mean()
    print(f"{shift}: {alarms:.3%} alarms")
    assert alarms <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / streams)


def test_a_fixed_sample_test_that_is_looked_at_every_day_does_not():
    from scipy.stats import ttest_ind

    random, streams = np.random.default_rng(12), 500
    values = null_days(random, streams, 28, 30)
    looks = [ttest_ind(values[:28], values[28 : 28 + n]).pvalue < ALPHA for n in range(2, 31)]
    assert np.any(looks, axis=0).mean() > 3 * ALPHA
    found = shift_evidence(values, 28)
    assert (ever_p(found.log_e)[-1] <= ALPHA).mean() <= ALPHA


def test_shift_evidence_finds_a_change_of_three_standard_deviations_within_a_week():
    random, streams, references, begins = np.random.default_rng(13), 200, 28, 10
    shift = np.where(np.arange(30)[:, None] >= begins, 3.0, 0.0)
    values = null_days(random, streams, references, 30, weekday=3.0, shift=shift)
    found = shift_evidence(values, references, group_N=np.arange(58) % 7)
    first = first_alarms(found.log_e, np.ones(streams), ALPHA)
    assert ((first >= begins) & (first < begins + 7)).mean() >= 0.9
    since = found.start[np.minimum(first, 29), np.arange(streams)]
    assert (np.abs(since - begins) <= 2).mean() >= 0.8


def test_shift_evidence_counts_the_error_of_a_short_reference():
    random, streams = np.random.default_rng(14), 300
    for references in (0, 1, 3):
        found = shift_evidence(null_days(random, streams, references, 20), references)
        assert (ever_p(found.log_e)[-1] <= ALPHA).mean() <= ALPHA + 0.02
    one = shift_evidence(random.normal(size=(2, 5)), 1)
    assert one.log_e == pytest.approx(np.full((1, 5), math.log(0.5)))  # One day against one shows nothing.


def test_shift_evidence_ignores_days_without_a_value_and_uses_the_least_variance():
    random = np.random.default_rng(15)
    values = random.normal(size=(20, 3))
    weights = np.ones((20, 3))
    values[5], weights[5], values[13], weights[13] = np.nan, 0, np.nan, 0
    kept = np.r_[0:5, 6:13, 14:20]
    found = shift_evidence(values, 10, weights_NK=weights).log_e[-1] - np.log(0.5)
    without = shift_evidence(values[kept], 9).log_e[-1] - np.log(0.5)
    assert (found <= without + 1e-9).all()  # The same sums, at later starts of smaller weight.
    still = np.zeros((20, 1))
    still[15:] = 1e-3
    assert shift_evidence(still, 10).log_e[-1] > 10
    assert shift_evidence(still, 10, least_variance_K=np.array([1e-4])).log_e[-1] < 0


def test_shift_evidence_rejects_wrong_shapes_and_bands():
    with pytest.raises(ValueError, match="references"):
        shift_evidence(np.zeros((3, 1)), 4)
    with pytest.raises(ValueError, match="must include 0"):
        shift_evidence(np.zeros((3, 1)), 1, band_2K=np.array([[0.1], [0.2]]))
    assert shift_evidence(np.zeros((3, 0)), 1).log_e.shape == (2, 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-5, 5), st.floats(0.01, 100))
def test_shift_evidence_does_not_depend_on_location_and_scale(seed, location, scale):
    values = np.random.default_rng(seed).normal(size=(15, 2))
    band = np.array([[-0.1, 0], [0.2, 0]])
    one = shift_evidence(values, 8, band_2K=band)
    other = shift_evidence(location + scale * values, 8, band_2K=scale * band)
    assert other.log_e == pytest.approx(one.log_e, rel=1e-6, abs=1e-6)


def rare_items(random, streams, items, rate):
    return (random.random((items, streams)) < rate).astype(float)


@pytest.mark.prove
def test_betting_evidence_keeps_the_rate_of_false_alarms_and_finds_a_change(proofs):
    random, streams, items, days = np.random.default_rng(21), proofs(300, 5000), 1500, 30
    expected, day = 0.05, np.repeat(np.arange(days), items // days)
    bounds = np.full((items, streams), expected)
    null = betting_evidence(rare_items(random, streams, items, 0.05) - expected, bounds, day, days)
    assert (ever_p(null.log_e)[-1] <= ALPHA).mean() <= ALPHA + 2 * math.sqrt(ALPHA / streams)
    changed = rare_items(random, streams, items, 0.05)
    changed[750:] = rare_items(random, streams, 750, 0.15)
    found = betting_evidence(changed - expected, bounds, day, days)
    first = first_alarms(found.log_e, np.ones(streams), ALPHA)
    assert (first < days).mean() >= 0.9
    assert np.median(found.start[-1]) == pytest.approx(15, abs=3)


def test_betting_evidence_is_a_martingale_for_two_values():
    # All four paths of a fair coin: the expectation of the capital of each start is 1.
    paths = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1)
    found = betting_evidence(paths, np.ones((4, 16)), np.zeros(4, np.int64), 1)
    assert np.exp(found.log_e[0] - math.log(0.5)).mean() == pytest.approx(1.0, abs=1e-12)


def test_betting_evidence_rejects_a_value_below_its_bound():
    with pytest.raises(ValueError, match="below the bound"):
        betting_evidence(np.array([[-2.0]]), np.ones((1, 1)), np.zeros(1, np.int64), 1)


def test_first_alarms_share_alpha_between_streams():
    log_e = np.log(np.array([[1.0, 30.0, 1.0], [50.0, 30.0, 1.0]]))
    assert first_alarms(log_e, np.full(3, 1 / 3), ALPHA).tolist() == [2, 2, 2]
    assert first_alarms(log_e, np.array([0.5, 0.4, 0.1]), ALPHA).tolist() == [1, 2, 2]
    assert first_alarms(log_e, np.array([0.1, 0.8, 0.1]), ALPHA).tolist() == [2, 0, 2]
