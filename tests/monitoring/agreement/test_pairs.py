"""Agreement of pairs against scikit-learn and counting by hand."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from vigil_monitoring.agreement.dawid_skene import UNSURE
from vigil_monitoring.agreement.pairs import agreement_with_others, pair_agreement, tables_of_pairs


def test_pair_agreement_is_cohens_kappa_of_the_items_that_both_answer() -> None:
    random = np.random.default_rng(0)
    answer_WN = random.choice(3, size=(4, 60), p=(0.5, 0.4, 0.1))
    answer_WN[1, :40] = answer_WN[0, :40]
    reviewer_A, item_A = np.nonzero(random.random(answer_WN.shape) < 0.8)
    given = {(w, n): answer_WN[w, n] for w, n in zip(reviewer_A, item_A, strict=True) if answer_WN[w, n] != UNSURE}
    tables = tables_of_pairs(item_A, reviewer_A, answer_WN[reviewer_A, item_A], 4)
    equal_W, pairs_W = np.zeros(4), np.zeros(4)
    for first in range(4):
        for second in range(4):
            both = [n for n in range(60) if (first, n) in given and (second, n) in given]
            one, other = ([int(given[w, n]) for n in both] for w in (first, second))
            if first < second:
                found = pair_agreement("hate", "a", "b", tables[first, second], replicates=200)
                assert found.items == len(both)
                assert found.agreement == pytest.approx(np.mean(np.equal(one, other)))
                assert found.kappa == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)
                assert found.kappa_interval
                assert found.kappa_interval.low < found.kappa < found.kappa_interval.high
            if first != second:
                equal_W[first] += np.equal(one, other).sum()
                pairs_W[first] += len(both)
    np.testing.assert_array_equal(agreement_with_others(tables), (equal_W, pairs_W))


def test_pair_agreement_has_no_kappa_where_both_always_answer_the_same() -> None:
    found = pair_agreement("hate", "a", "b", np.array([[9, 0], [0, 0]]))
    assert (found.agreement, found.kappa, found.kappa_interval) == (1, None, None)
