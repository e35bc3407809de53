"""sample_ratio: silent at every look under the assigned share, loud when one arm loses units."""

import numpy as np
import pytest
from scipy.stats import beta, binom

from vigil_monitoring.experiments.sample_ratio import MISMATCH_ALPHA, PRIOR_UNITS, log_mismatch_evidence, sample_ratio


def test_log_mismatch_evidence_is_the_mixture_over_the_share() -> None:
    share, n, m = 0.3, 40, 50
    grid = np.linspace(0, 1, 200_001)[1:-1]
    prior = beta.pdf(grid, PRIOR_UNITS * share, PRIOR_UNITS * (1 - share))
    truth = np.trapezoid(prior * binom.pmf(n, n + m, grid), grid) / binom.pmf(n, n + m, share)
    assert log_mismatch_evidence(m, n, share) == pytest.approx(np.log(truth), abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_sample_ratio_keeps_its_rate_over_daily_looks(share: float) -> None:
    random, runs = np.random.default_rng(4), 3000
    days = random.binomial(2000, share, (runs, 30))
    challenger, champion = days.cumsum(axis=1), (2000 - days).cumsum(axis=1)
    alarms = (log_mismatch_evidence(champion, challenger, share) >= np.log(20)).any(axis=1).mean()
    assert alarms <= 0.05
    lost = random.binomial(2000, share * 0.93, (200, 30))
    found = [sample_ratio((2000 - of).cumsum(), of.cumsum(), share).mismatch for of in lost]
    assert np.mean(found) >= 0.9


def test_sample_ratio_remembers_an_earlier_mismatch() -> None:
    champion, challenger = np.array([1000, 3000, 101_000]), np.array([1000, 2000, 100_000])
    found = sample_ratio(champion, challenger, 0.5)
    assert found.mismatch
    assert found.p_value < MISMATCH_ALPHA < sample_ratio(champion[2:], challenger[2:], 0.5).p_value
    assert (found.champion, found.challenger) == (101_000, 100_000)
