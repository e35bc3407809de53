"""Binomial intervals and design effects: against their definitions."""

from math import comb

import numpy as np
import pytest

from vigil_evaluation.stats.binomial import (
    clopper_pearson,
    clopper_pearson_bounds,
    design_effect,
    intraclass_correlation,
    kish_design_effect,
    wilson,
)


@pytest.mark.parametrize("count", [1, 5, 30, 200])
def test_clopper_pearson_ends_at_the_binomial_tails(count):
    for hits in {0, 1, count // 3, count - 1, count}:
        low, high = clopper_pearson(hits, count, 0.9)
        tail = [
            sum(comb(count, k) * p**k * (1 - p) ** (count - k) for k in which)
            for p, which in ((low, range(hits, count + 1)), (high, range(hits + 1)))
        ]
        assert low == 0 if hits == 0 else tail[0] == pytest.approx(0.05, abs=1e-9)
        assert high == 1 if hits == count else tail[1] == pytest.approx(0.05, abs=1e-9)


@pytest.mark.parametrize("count", [5, 40, 300])
def test_wilson_ends_where_the_score_test_does(count):
    for hits in {0, 1, count // 3, count}:
        low, high = wilson(hits, count, 0.95)
        for end in (low, high):
            if 0 < end < 1:
                assert abs(hits / count - end) / np.sqrt(end * (1 - end) / count) == pytest.approx(1.959964, abs=1e-6)
        assert 0 <= low <= hits / count <= high <= 1
    assert wilson(0, count, 0.95)[0] == 0
    assert wilson(count, count, 0.95)[1] == 1


def test_clopper_pearson_bounds_are_the_ends_of_the_interval_and_nan_without_trials():
    low, high = clopper_pearson_bounds([0, 3, 10, 0], [10, 10, 10, 0], 0.975)
    for place, hits in enumerate((0, 3, 10)):
        assert (low[place], high[place]) == pytest.approx(clopper_pearson(hits, 10, 0.95))
    assert np.isnan([low[3], high[3]]).all()
    assert np.array([low[0], high[2]]).tolist() == [0, 1]


def test_design_effect_is_the_ratio_of_variances():
    random = np.random.default_rng(0)
    # Units of 10 items whose errors agree in 4 of 10 cases: 1 + (10 - 1) * 0.4 by Kish's formula.
    effects = []
    for _ in range(200):
        alike = random.random((100, 1)) < 0.4
        errors = np.where(alike, random.random((100, 1)) < 0.2, random.random((100, 10)) < 0.2).sum(axis=1)
        effects.append(design_effect(errors, np.full(100, 10)))
    assert np.mean(effects) == pytest.approx(4.6, rel=0.05)
    assert design_effect([1, 0, 0], [1, 1, 1]) == pytest.approx(1.0, abs=0.5)
    assert design_effect([4], [9]) == float("inf")
    assert design_effect([0, 0], [5, 5]) == design_effect([5, 5, 0], [5, 5, 0]) == 5


def test_kish_design_effect_of_copies_is_the_size_of_a_unit():
    units = np.repeat(np.arange(50, dtype=np.int32), 4)
    copies = np.repeat(np.arange(50) % 2 == 0, 4)
    assert intraclass_correlation(copies, units) == 1
    assert kish_design_effect(copies, units) == pytest.approx(4)
    assert kish_design_effect(copies, None) == 1
    assert intraclass_correlation(np.ones(200, bool), units) == 0


def test_kish_design_effect_with_weights_is_that_of_the_variance():
    """A unit's items are alike, and some count eight times; against the variance of the weighted share of independent items."""
    random = np.random.default_rng(0)
    units = np.repeat(np.arange(300, dtype=np.int32), 6)
    weights = np.where(random.random(len(units)) < 0.5, 1.0, 8.0)
    shares, effects = [], []
    for _ in range(400):
        outcome = random.random(len(units)) < np.where(random.random(300) < 0.5, 0.8, 0.2)[units]
        shares.append(np.average(outcome, weights=weights))
        effects.append(kish_design_effect(outcome, units, weights))
    independent = 0.25 * (weights**2).sum() / weights.sum() ** 2
    # The correlation is estimated with one standard error more, so the effect errs upwards.
    assert 0.95 < np.mean(effects) / (np.var(shares) / independent) < 1.4
    equal = np.full(len(units), 3.0)
    assert kish_design_effect(outcome, units, equal) == pytest.approx(kish_design_effect(outcome, units))
    assert intraclass_correlation(outcome, units, np.zeros(len(units))) == 0
