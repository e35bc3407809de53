import warnings
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from vigil_evaluation.stats.binomial import clopper_pearson
from vigil_monitoring.agreement.accuracy import accuracy_of_counts
from vigil_monitoring.survey.cells import Answers, Cell
from vigil_monitoring.survey.estimators import estimate_captured, estimate_captured_negatives, estimate_mean
from vigil_monitoring.survey.prediction_powered import ppi_mean
from vigil_monitoring.survey.probability_sample import ProbabilitySample

Floats = NDArray[np.float64]


def simple_sample(n: int, population: int) -> ProbabilitySample:
    return ProbabilitySample(np.full(n, n / population), np.zeros(n, np.int64))


def test_estimate_mean_of_a_simple_random_sample_has_the_textbook_variance() -> None:
    targets_N = (np.arange(200) % 5 == 0).astype(np.float64)
    found = estimate_mean(Cell(np.ones(200), 1000.0), Answers(targets_N, simple_sample(200, 1000)))
    variance = (1 - 200 / 1000) * targets_N.var(ddof=1) / 200  # Cochran 1977, equation 3.8
    assert found.value == pytest.approx(0.2)
    assert found.effective == pytest.approx(0.16 / variance)
    assert (found.reviewed, found.positives, found.method) == (200, 40, "hajek")


def test_estimate_mean_uses_differences_within_strata_only() -> None:
    strata_N = np.repeat([0, 1], 50)
    targets_N = strata_N.astype(np.float64)
    found = estimate_mean(Cell(np.ones(100), 1000.0), Answers(targets_N, ProbabilitySample(np.full(100, 0.1), strata_N)))
    assert found.value == 0.5
    assert found.method == "exact bound"  # no variance within a stratum, but rows that were not reviewed may differ
    assert found.interval == pytest.approx((0.5 - (1 - 0.05**0.01), 0.5 + (1 - 0.05**0.01)))


@pytest.mark.parametrize("tuning", [None, 0.0, 0.4, 1.0])
def test_ppi_mean_equals_ppi_python(tuning: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ppi_py import ppi_mean_ci, ppi_mean_pointestimate
    random = np.random.default_rng(0)
    for labelled, others in ((50, 400), (300, 5000), (40, 60)):
        truth_N = random.random(labelled + others)
        targets_n = (random.random(labelled) < truth_N[:labelled]).astype(float)
        predictions_N = np.clip(truth_N + 0.2 * random.normal(size=len(truth_N)), 0, 1)
        mine = ppi_mean(targets_n, predictions_N[:labelled], predictions_N[labelled:], 0.9, tuning)
        given = targets_n, predictions_N[:labelled], predictions_N[labelled:]
        low, high = ppi_mean_ci(*given, alpha=0.1, lam=tuning)
        assert mine.value == pytest.approx(ppi_mean_pointestimate(*given, lam=mine.tuning).item(), abs=1e-9)
        assert mine.interval == pytest.approx((np.ravel(low).item(), np.ravel(high).item()), abs=1e-9)


def test_estimate_mean_with_predictions_equals_ppi_python_at_its_weight() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ppi_py import ppi_mean_pointestimate
    random = np.random.default_rng(1)
    scores_N = random.random(4000)
    drawn_n = random.choice(4000, 300, replace=False)
    targets_n = (random.random(300) < scores_N[drawn_n]).astype(float)
    answers = Answers(targets_n, simple_sample(300, 4000), scores_N[drawn_n])
    found = estimate_mean(Cell(np.ones(300), 4000.0, float(scores_N.sum())), answers)
    assert found.method == "ppi++"
    assert 0.5 < found.tuning <= 1
    expected = ppi_mean_pointestimate(targets_n, scores_N[drawn_n], scores_N, lam=found.tuning)
    assert found.value == pytest.approx(expected.item(), abs=1e-9)


def test_estimate_mean_without_positives_gives_the_exact_bound() -> None:
    found = estimate_mean(Cell(np.ones(300), 1e9), Answers(np.zeros(300), simple_sample(300, 10**9)))
    assert (found.value, found.method) == (0.0, "exact bound")
    assert found.interval is not None
    assert found.interval.high == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-6)
    # One row that represents half of the traffic: nothing is known about its half.
    weights_N = np.r_[np.full(99, 1.0), 99.0]
    heavy = estimate_mean(
        Cell(np.ones(100), 198.0), Answers(np.zeros(100), ProbabilitySample(1 / weights_N, np.zeros(100, np.int64)))
    )
    assert heavy.interval is not None
    assert heavy.interval.high == pytest.approx(98 / 198)


def test_estimate_mean_of_a_census_has_no_width() -> None:
    targets_N = np.r_[np.ones(3), np.zeros(7)]
    found = estimate_mean(Cell(np.ones(10), 10.0), Answers(targets_N, ProbabilitySample(np.ones(10), np.zeros(10, np.int64))))
    assert found.interval == (0.3, 0.3)


def test_estimate_mean_without_a_reviewed_row_is_unknown() -> None:
    found = estimate_mean(Cell(np.zeros(5), 10.0), Answers(np.ones(5), simple_sample(5, 50)))
    assert (found.value, found.interval, found.reviewed) == (None, None, 0)


def test_estimate_captured_is_recall_by_weight() -> None:
    # 10 of 20 inside are positive (each represents 1), 2 of 80 outside (each represents 10).
    targets_N = np.r_[np.ones(10), np.zeros(10), np.ones(2), np.zeros(78)]
    inside_N = np.r_[np.ones(20), np.zeros(80)]
    sample = ProbabilitySample(1 / np.where(inside_N > 0, 1.0, 10.0), (inside_N == 0).astype(np.int64))
    inside, outside = Cell(inside_N, 20.0), Cell(1 - inside_N, 800.0)
    recall = estimate_captured(inside, outside, Answers(targets_N, sample))
    rate = estimate_captured_negatives(inside, outside, Answers(targets_N, sample))
    assert recall.value == pytest.approx(10 / (10 + 20))
    assert rate.value == pytest.approx(10 / (10 + 780))
    assert (recall.positives, rate.positives) == (12, 88)


def test_estimate_captured_has_the_variance_of_the_bootstrap() -> None:
    random = np.random.default_rng(2)
    n = 2000
    scores_N = random.random(n)
    inside_N = (scores_N > 0.6).astype(float)
    targets_N = (random.random(n) < scores_N**2).astype(float)
    answers = Answers(targets_N, simple_sample(n, 10**8), scores_N)
    masses = inside_N.mean() * 1e8, (1 - inside_N).mean() * 1e8
    found = estimate_captured(Cell(inside_N, masses[0]), Cell(1 - inside_N, masses[1]), answers)
    draws_RN = random.multinomial(n, np.full(n, 1 / n), size=1500)
    # Poststratified, as the masses of the cells are known.
    shares_R = [
        (a := masses[0] * (d * inside_N * targets_N).sum() / (d * inside_N).sum())
        / (a + masses[1] * (d * (1 - inside_N) * targets_N).sum() / (d * (1 - inside_N)).sum())
        for d in draws_RN
    ]
    assert found.value is not None
    assert found.effective is not None
    assert found.value * (1 - found.value) / found.effective == pytest.approx(np.var(shares_R), rel=0.1)


def test_estimate_captured_without_missed_positives_is_bounded_below() -> None:
    targets_N, inside_N = np.r_[np.ones(50), np.zeros(250)], np.r_[np.ones(50), np.zeros(250)]
    sample = ProbabilitySample(np.where(inside_N > 0, 1.0, 0.01), (inside_N == 0).astype(np.int64))
    found = estimate_captured(Cell(inside_N, 50.0), Cell(1 - inside_N, 25_000.0), Answers(targets_N, sample))
    assert found.value == 1.0
    assert found.interval is not None
    missed = 25_000 * (1 - 0.025 ** (1 / 250))
    assert found.interval == pytest.approx((50 / (50 + missed), 1.0), rel=1e-3)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_estimate_mean_corrects_for_reviewers_errors(share: float) -> None:
    n, sensitivity, specificity = 2000, 0.8, 0.97
    apparent = share * sensitivity + (1 - share) * (1 - specificity)
    targets_N = (np.arange(n) < round(apparent * n)).astype(float)
    accuracy = accuracy_of_counts("spam", "", "gold", 0.8 * 200, 200, 0.97 * 400, 400)
    answers = Answers(targets_N, simple_sample(n, 10**9))
    found = estimate_mean(Cell(np.ones(n), 1e9), answers, accuracy)
    assert found.corrected
    assert found.value == pytest.approx(share, abs=0.001)
    # Rogan and Gladen 1978: variance of a corrected share.
    gain = sensitivity + specificity - 1
    terms = [
        apparent * (1 - apparent) / n,
        share**2 * sensitivity * (1 - sensitivity) / 200,
        (1 - share) ** 2 * specificity * (1 - specificity) / 400,
    ]
    assert found.effective is not None
    assert share * (1 - share) / found.effective == pytest.approx(sum(terms) / gain**2, rel=0.04)


def test_estimate_mean_below_what_errors_explain_is_clipped_and_covers_zero() -> None:
    accuracy = accuracy_of_counts("spam", "", "gold", 90, 100, 190, 200)
    answers = Answers((np.arange(1000) < 20).astype(float), simple_sample(1000, 10**9))
    found = estimate_mean(Cell(np.ones(1000), 1e9), answers, accuracy)
    assert (found.value, found.method) == (0.0, "exact bound")
    assert found.interval is not None
    assert found.interval.low == 0.0
    assert 0.0 < found.interval.high < 0.05


def test_estimate_mean_of_a_large_simple_sample_agrees_with_the_exact_interval() -> None:
    targets_N = (np.arange(5000) < 1000).astype(float)
    found = estimate_mean(Cell(np.ones(5000), 1e12), Answers(targets_N, simple_sample(5000, 10**12)))
    assert found.interval == pytest.approx(clopper_pearson(1000, 5000, 0.95), rel=0.005)
    assert NormalDist().inv_cdf(0.975) == pytest.approx(1.96, abs=0.001)
