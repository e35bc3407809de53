"""shifted_prevalence, black_box_prevalence and fit_shift against known prevalences and the EM algorithm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_monitoring.drift.label_shift import (
    black_box_prevalence,
    class_histograms,
    fit_shift,
    shifted_prevalence,
    shifted_shares,
)


def histograms_of(random, items=200_000, prevalence=0.05, bins=40):
    """Counts and sums of calibrated probabilities of the reference, and the distribution of each class over bins."""
    positive = random.random(items) < prevalence
    score = random.normal(np.where(positive, 2.0, 0.0))
    odds = prevalence / (1 - prevalence) * np.exp(2 * score - 2)  # Bayes' rule for two normal classes: calibrated exactly.
    p = odds / (1 + odds)
    place = np.minimum((p ** (1 / 3) * bins).astype(int), bins - 1)
    by_class = np.stack([np.bincount(place[positive == k], minlength=bins) for k in (False, True)])
    return (
        np.bincount(place, minlength=bins).astype(float),
        np.bincount(place, p, bins),
        by_class / by_class.sum(1, keepdims=True),
    )


@pytest.mark.parametrize("prevalence", [0.005, 0.05, 0.4])
def test_shifted_prevalence_recovers_a_pure_label_shift(prevalence):
    random = np.random.default_rng(3)
    counts, sums, by_class = histograms_of(random)
    reference = class_histograms(counts, sums)
    assert reference.prevalence == pytest.approx(0.05, abs=0.002)
    new = random.multinomial(100_000, prevalence * by_class[1] + (1 - prevalence) * by_class[0]).astype(float)
    fit = fit_shift(reference, new)
    assert fit.prevalence == pytest.approx(prevalence, rel=0.1)
    assert black_box_prevalence(reference, new) == pytest.approx(prevalence, rel=0.15)
    assert fit.unexplained < 0.015
    # The mean of the old probabilities is not the prevalence any more.
    mean = (new * reference.probability_B).sum() / new.sum()
    assert prevalence == 0.05 or abs(mean - prevalence) > 2 * abs(fit.prevalence - prevalence)


def test_shifted_prevalence_is_the_fixed_point_of_expectation_maximization():
    random = np.random.default_rng(5)
    counts, sums, by_class = histograms_of(random, items=20_000)
    reference = class_histograms(counts, sums)
    new = random.multinomial(5000, 0.2 * by_class[1] + 0.8 * by_class[0]).astype(float) * (reference.share_B > 0)
    prior = reference.prevalence
    estimate = prior
    for _ in range(5000):
        p = reference.probability_B
        odds = estimate / prior * p / ((1 - estimate) / (1 - prior) * (1 - p))
        estimate = (new * odds / (1 + odds)).sum() / new.sum()
    assert shifted_prevalence(reference, new[None])[0] == pytest.approx(estimate, abs=1e-6)


def test_fit_shift_leaves_another_change_unexplained():
    random = np.random.default_rng(6)
    counts, sums, _ = histograms_of(random)
    reference = class_histograms(counts, sums)
    moved = np.roll(counts, 3)  # All scores are higher, of positives and negatives.
    fit = fit_shift(reference, moved)
    assert fit.unexplained > 0.5 * fit.distance > 0.05


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_shifted_prevalence_of_the_reference_is_its_own(seed, bins):
    random = np.random.default_rng(seed)
    counts = random.integers(0, 50, bins).astype(float)
    sums = counts * np.sort(random.random(bins))
    reference = class_histograms(counts, sums)
    if reference is None:
        return
    assert shifted_shares(reference, reference.prevalence) == pytest.approx(reference.share_B)
    spread = (counts * (reference.probability_B - reference.prevalence) ** 2).sum()
    if spread > 1e-6:  # Equal probabilities tell nothing about the prevalence.
        assert shifted_prevalence(reference, counts[None])[0] == pytest.approx(reference.prevalence, abs=1e-6)


def test_label_shift_without_items_or_uncertainty():
    assert class_histograms(np.zeros(3), np.zeros(3)) is None
    assert class_histograms(np.array([5.0, 0.0]), np.zeros(2)) is None
    reference = class_histograms(np.array([5.0, 5.0]), np.array([1.0, 4.0]))
    assert np.isnan(shifted_prevalence(reference, np.zeros((1, 2)))).all()
    assert black_box_prevalence(reference, np.zeros(2)) is None
    same = class_histograms(np.array([5.0, 5.0]), np.array([1.0, 1.0]))
    assert black_box_prevalence(same, np.array([1.0, 2.0])) is None
