"""confusion_between_labels: counted over items for which both targets are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from vigil_evaluation.metrics.label_confusion import confusion_between_labels


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([None, 3.0, [0.0, 1.0, 10.0]]))
def test_confusion_equals_a_loop_over_the_rows(seed, enough, masses):
    random = np.random.default_rng(seed)
    targets_NL = random.choice([0.0, 0.4, 0.5, 1.0, np.nan], (25, 3))
    probabilities_NL = random.random((25, 3))
    thresholds = {"a": 0.3, "b": 0.5, "c": 0.8}
    weights = None if masses is None else random.choice(np.atleast_1d(masses), 25)
    found = confusion_between_labels(targets_NL, probabilities_NL, thresholds, enough, weights)
    each = np.ones(25) if weights is None else weights
    assert found.labels == ["a", "b", "c"]
    for i in range(3):
        for j, limit in enumerate(thresholds.values()):
            rows = [
                n for n in range(25) if targets_NL[n, i] >= 0.5 and (i == j or (targets_NL[n, j] < 0.5 and targets_NL[n, j] >= 0))
            ]
            assert found.known[i][j] == len(rows)
            effective = each[rows].sum() ** 2 / max((each[rows] ** 2).sum(), 1e-9)
            if effective < enough - 1e-6:
                assert found.share[i][j] is None
            else:
                flagged = each[[n for n in rows if probabilities_NL[n, j] >= limit]].sum()
                assert found.share[i][j] == pytest.approx(flagged / each[rows].sum(), abs=1e-12)


def test_confusion_with_one_label_per_item_is_the_usual_matrix():
    random = np.random.default_rng(0)
    truth, said = random.integers(0, 4, 300), random.integers(0, 4, 300)
    found = confusion_between_labels(np.eye(4)[truth], np.eye(4)[said], dict.fromkeys("abcd", 0.5))
    np.testing.assert_allclose(found.share, confusion_matrix(truth, said, normalize="true"), atol=1e-12)
