"""fisher_p_values: against scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from vigil_evaluation.stats.exact_tests import ErrorCounts, fisher_p_values


@given(st.integers(0, 2**32 - 1))
def test_fisher_p_values_equal_scipys(seed):
    random = np.random.default_rng(seed)
    items, others = random.integers(1, 60, 5), random.integers(1, 300, 5)
    errors, wrong = random.integers(0, items + 1), random.integers(0, others + 1)
    found = fisher_p_values(ErrorCounts(errors, items), ErrorCounts(wrong, others))
    for e, n, w, m, p in zip(errors, items, wrong, others, found, strict=True):
        peer = fisher_exact([[e, n - e], [w, m - w]], alternative="greater").pvalue
        assert p == (pytest.approx(peer, rel=1e-9, abs=1e-14) if e * m > w * n else 1)


def test_fisher_p_values_of_large_tables_equal_scipys():
    found = fisher_p_values(
        ErrorCounts(np.array([2_150, 90_000]), np.array([20_000, 300_000])),
        ErrorCounts(np.array([100_000] * 2), np.array([10**6] * 2)),
    )
    peers = [
        fisher_exact([[e, n - e], [10**5, 9 * 10**5]], alternative="greater").pvalue
        for e, n in ((2150, 20_000), (90_000, 300_000))
    ]
    assert found[0] == pytest.approx(peers[0], rel=1e-6)
    assert found[1] == peers[1] == 0
