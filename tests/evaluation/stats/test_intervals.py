"""intervals: coverage in simulations with a known truth, and properties for any replicates."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import beta, norm

from vigil_evaluation.stats.bootstrap import METRICS, MetricParameters, Resampling, replicate, replicate_ratio
from vigil_evaluation.stats.intervals import interval, intervals

RATE, PRECISION, THRESHOLD = 0.1, 0.5, 0.3
AT_ONCE = 100


class Regime(NamedTuple):
    """Simulation: rows, share of positives, separation of the scores, rows per unit, and miscalibration of the logits."""

    rows: int
    share: float
    apart: float = 1.5
    unit: int = 1
    slope: float = 1.2
    shift: float = 0.2


REGIMES = {
    "300 rows, 10 % positive": Regime(300, 0.1),
    "300 rows, 30 % positive": Regime(300, 0.3),
    "600 rows in units of 4, 20 % positive": Regime(600, 0.2, unit=4),
    "1000 rows, 20 % positive, underconfident": Regime(1000, 0.2, 2.5, slope=0.7, shift=0.0),
    "2000 rows, 5 % positive": Regime(2000, 0.05, 1.8),
    "2000 rows, 30 % positive": Regime(2000, 0.3),
    "2000 rows in units of 4, 10 % positive": Regime(2000, 0.1, unit=4),
    "2000 rows, 5 % positive, calibrated": Regime(2000, 0.05, 1.8, slope=1.0, shift=0.0),
}


def draw(random: np.random.Generator, regime: Regime, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and probabilities; rows of a unit share half the variance of a target, and a third of that of a score."""
    units, shape = rows // regime.unit, (rows, columns)
    common = [np.repeat(random.normal(size=(units, columns)), regime.unit, axis=0) for _ in range(2)]
    own = 1.0 if regime.unit == 1 else 0.5
    latent = np.sqrt(1 - own) * common[0] + np.sqrt(own) * random.normal(size=shape)
    targets = (latent < norm.ppf(regime.share)).astype(float)
    own = 1.0 if regime.unit == 1 else 0.64
    scores = regime.apart * targets + np.sqrt(1 - own) * common[1] + np.sqrt(own) * random.normal(size=shape)
    logits = np.log(regime.share / (1 - regime.share)) + regime.apart * scores - regime.apart**2 / 2
    return targets, 1 / (1 + np.exp(-(regime.slope * logits + regime.shift)))


def truth_of(regime: Regime, rows: int) -> dict[str, float]:
    targets, probabilities = (values[:, 0] for values in draw(np.random.default_rng(0), regime, rows, 1))
    points = MetricParameters(RATE, PRECISION, np.array([THRESHOLD]))
    everything = [np.zeros(rows, np.int32)]
    found = replicate(targets[:, None], probabilities[:, None], everything, points, Resampling(0)).estimates
    return {name: float(values[0, 0]) for name, values in found.items()}


def misses_of(regime: Regime, truth: dict[str, float], tries: int) -> dict[str, tuple[float, float]]:
    """Rates at which each metric's interval lies above and below the truth."""
    units = np.repeat(np.arange(regime.rows // regime.unit), regime.unit).astype(np.int32)
    points, counts = MetricParameters(RATE, PRECISION, np.full(AT_ONCE, THRESHOLD)), {name: np.zeros(3) for name in METRICS}
    for seed in range(tries // AT_ONCE):
        cells = draw(np.random.default_rng(seed + 1), regime, regime.rows, AT_ONCE)
        found = replicate(*cells, [np.zeros(regime.rows, np.int32)], points, Resampling(1000, seed, units))
        for name in METRICS:
            low, high = intervals(found.estimates[name], found.samples[name], 0.95)
            if name == "calibration_error":
                low = np.where(found.calibrated_GL, 0, low)
            counts[name] += (low > truth[name]).sum(), (high < truth[name]).sum(), (~np.isnan(low)).sum()
    return {name: (above / defined, below / defined) for name, (above, below, defined) in counts.items()}


@pytest.mark.prove
@pytest.mark.parametrize("name", REGIMES)
def test_intervals_cover(name: str, proofs: Callable[[int, int], int]) -> None:
    regime, tries = REGIMES[name], proofs(100, 4000)
    truth = truth_of(regime, proofs(400_000, 4_000_000))
    missed = misses_of(regime, truth, tries)
    # A share of the proof scatters more than the bounds are wide.
    slack = 0.0 if tries > 1000 else 3.5 * np.sqrt(0.05 * 0.95 / tries)
    for metric, (above, below) in missed.items():
        print(f"{name}: {metric} is {truth[metric]:.3f}, held {1 - above - below:.1%} (above {above:.1%}, below {below:.1%})")
    for metric, (above, below) in missed.items():
        # With a truth of 0 an interval can be wrong on one side alone.
        most = 1.0 if metric == "calibration_error" and regime.slope == 1 else 0.97
        assert 0.93 - slack <= 1 - above - below <= most + slack, metric


@pytest.mark.prove
def test_intervals_cover_shares_of_few_items(proofs: Callable[[int, int], int]) -> None:
    tries = proofs(200, 4000)
    slack = 0.0 if tries > 1000 else 3.5 * np.sqrt(0.05 * 0.95 / tries)
    mean = []
    for items in (10, 20, 50, 200):
        for share in (0.5, 0.8, 0.9, 0.95, 0.99):
            hits = (np.random.default_rng(items).random((items, tries)) < share).astype(float)
            estimates, samples = replicate_ratio(hits, np.ones_like(hits), [np.zeros(items, np.int32)], Resampling(1000))
            low, high = intervals(estimates, samples, 0.95)
            mean.append(float(((low <= share) & (share <= high)).mean()))
            print(f"{items} items, {share:.0%} right: held {mean[-1]:.1%}")
            # Few items leave few intervals to choose from: those of a share can only be on the wide side.
            assert mean[-1] >= 0.93 - slack, (items, share)
            if items == 200 and share < 0.99:
                assert mean[-1] <= 0.97 + slack, (items, share)
    print(f"on average {np.mean(mean):.1%}")


def test_intervals_of_twenty_of_twenty_are_not_empty() -> None:
    hits = np.ones((20, 1))
    estimates, samples = replicate_ratio(hits, hits, [np.zeros(20, np.int32)], Resampling(1000))
    found = interval(float(estimates[0, 0]), samples[:, 0, 0], 0.95)
    assert found is not None
    assert found.high == 1
    # Between the exact interval (Clopper and Pearson), which is too wide, and that of Jeffreys' prior.
    assert beta.ppf(0.025, 20, 1) < found.low < beta.ppf(0.025, 20.5, 0.5)


def test_intervals_of_a_calibration_error_within_chance_start_at_zero() -> None:
    random = np.random.default_rng(1)
    probabilities = random.beta(1, 3, (2000, 2))
    targets = (random.random((2000, 2)) < np.clip(probabilities + np.array([0, 0.1]), 0, 1)).astype(float)
    points = MetricParameters(RATE, PRECISION, np.full(2, 0.5))
    found = replicate(targets, probabilities, [np.zeros(2000, np.int32)], points, Resampling(400), ("calibration_error",))
    assert found.calibrated_GL.tolist() == [[True, False]]
    assert found.samples["calibration_error"].mean(axis=0) == pytest.approx(found.estimates["calibration_error"], abs=2e-3)


@given(
    arrays.arrays(float, (50, 3), elements=st.one_of(st.floats(-2, 2), st.just(np.nan), st.just(0.5))),
    arrays.arrays(float, (3,), elements=st.one_of(st.floats(-2, 2), st.just(np.nan), st.just(0.5))),
    st.sampled_from([0.5, 0.9, 0.95, 0.999]),
)
def test_intervals_end_at_replicates_around_the_estimate(samples: np.ndarray, estimates: np.ndarray, confidence: float) -> None:
    low, high = intervals(estimates, samples, confidence)
    for i, estimate in enumerate(estimates):
        drawn = samples[:, i][~np.isnan(samples[:, i])]
        one = interval(None if np.isnan(estimate) else float(estimate), samples[:, i], confidence)
        if np.isnan(estimate) or len(drawn) < 25:
            assert one is None
            assert np.isnan(low[i])
            assert np.isnan(high[i])
        else:
            assert one == (low[i], high[i])
            assert min(drawn.min(), estimate) <= low[i] <= estimate <= high[i] <= max(drawn.max(), estimate)


def test_intervals_of_symmetric_replicates_are_percentiles() -> None:
    drawn = norm.ppf((np.arange(2000) + 0.5) / 2000)
    found = interval(0.0, drawn, 0.9)
    assert found == pytest.approx((norm.ppf(0.05), norm.ppf(0.95)), abs=4e-3)
    # Replicates that lie too low by a quarter are moved up by twice that: once to the number, once beyond.
    assert interval(0.25, drawn, 0.9) == pytest.approx((norm.ppf(0.05) + 0.5, norm.ppf(0.95) + 0.5), abs=0.01)


def test_intervals_equal_scipy_up_to_the_acceleration() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).exponential(size=60)
    drawn = np.random.default_rng(1).choice(values, (9999, 60)).mean(axis=1)
    found = interval(float(values.mean()), drawn, 0.95)
    peer = bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(2)).confidence_interval
    assert found == pytest.approx((peer.low, peer.high), abs=0.02)
    plain = np.quantile(drawn, [0.025, 0.975])
    assert abs(found[1] - peer.high) < abs(plain[1] - peer.high)


def test_intervals_keep_shapes_and_are_none_without_replicates() -> None:
    samples = np.random.default_rng(0).random((100, 2, 3)).astype(np.float32)
    low, high = intervals(np.full((2, 3), 0.5), samples, 0.95)
    assert low.shape == high.shape == (2, 3)
    assert (low < 0.2).all()
    assert np.isnan(intervals(np.full((2, 3), 0.5), samples[:0], 0.95)).all()
    assert interval(0.5, np.empty(0), 0.95) is None
