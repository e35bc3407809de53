"""Scores by strategy against hand-made numbers and scikit-activeml."""

import warnings

import numpy as np
import pytest

from vigil_monitoring.mining.embeddings import Clusters
from vigil_monitoring.mining.strategies import cluster_lift, expected_change, relevance, similarity_to, typicality, uncertainty

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from skactiveml.pool import uncertainty_scores
    from skactiveml.pool._typi_clust import _typicality  # the published package's own helper, as an oracle


def test_uncertainty_orders_as_the_margin_of_scikit_activeml() -> None:
    p_N = np.random.default_rng(0).random(50)
    expected_N = uncertainty_scores(np.stack([1 - p_N, p_N], axis=1), method="margin_sampling")
    np.testing.assert_array_equal(np.argsort(uncertainty(p_N[:, None])), np.argsort(expected_N))
    assert uncertainty(np.array([[0.5, np.nan], [np.nan, np.nan], [0.1, 0.4]])) == pytest.approx([1, 0, 0.96])
    assert relevance(np.array([[0.5, np.nan], [np.nan, np.nan], [0.1, 0.4]])) == pytest.approx([0.5, 0, 0.4])


def test_expected_change_is_the_probability_that_a_review_overturns_times_reach_over_minutes() -> None:
    found = expected_change(
        np.array([[0.9, 0.2], [0.3, 0.4], [0.9, 0.2]]),
        np.array([0, 1, 1]),
        np.array([True, False, True]),
        np.array([10.0, 100.0, 1.0]),
        np.array([1.0, 2.0, 0.5]),
    )
    assert found == pytest.approx([0.1 * 10, 0.4 * 100 / 2, 0.8 / 0.5])


def test_similarity_to_counts_near_copies_of_errors_only() -> None:
    anchors = np.array([[1.0, 0.0], [0.0, 1.0]])
    items = np.array([[0.0, 1.0], [np.sqrt(0.75), 0.5], [-1.0, 0.0], [0.0, 0.0]])
    assert similarity_to(items, anchors) == pytest.approx([1, 2 * (np.sqrt(0.75) - 0.5), 0, 0])
    assert similarity_to(items, np.empty((0, 2))) == pytest.approx(np.zeros(4))


def test_cluster_lift_is_zero_for_clusters_that_are_not_more_frequent() -> None:
    assert cluster_lift(np.array([50, 49, 1]), np.array([99, 0, 1])) == pytest.approx([0, 49, 0])


def test_typicality_equals_that_of_scikit_activeml() -> None:
    items = np.random.default_rng(1).normal(size=(60, 5))
    expected = _typicality(items, np.arange(60), k=20)
    np.testing.assert_allclose(typicality(items, items), expected[np.arange(60)], rtol=1e-6)


def test_clusters_give_new_content_its_lift_and_each_cluster_the_same_weight() -> None:
    random = np.random.default_rng(2)
    centres = np.eye(4)

    def items(counts: tuple[int, ...]) -> np.ndarray:
        return np.concatenate([centres[k] + 0.02 * random.normal(size=(n, 4)) for k, n in enumerate(counts)])

    recent, known = items((300, 300, 300, 60)), items((300, 300, 300, 0))
    clusters = Clusters(recent, known, seed=0)
    code_N = clusters.codes(recent)
    lift_N, typical_N = clusters.lift_C[code_N], clusters.typical(recent, code_N)
    assert lift_N[900:].min() > 5 * lift_N[:900].mean()
    # Weight of a group of content under uniform sampling would be proportional to its items.
    totals = np.bincount(code_N, typical_N)[np.unique(code_N)]
    assert totals == pytest.approx(np.ones(len(totals)), rel=0.35)
