"""Every metric against scikit-learn; unknown targets masked; null where a number is not defined."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as peer
from sklearn.calibration import calibration_curve

from vigil_evaluation import metrics

RANKED: dict[str, Callable[..., float | None]] = {
    "average_precision": metrics.average_precision,
    "auroc": metrics.auroc,
    "recall_at_fpr": lambda t, s: metrics.recall_at_fpr(t, s, 0.2),
    "f1_at": lambda t, s: metrics.f1_at(t, s, 0.5),
}


def cells(scores: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[float, float]]]:
    """Pairs of target and score; scores often tie."""
    return st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 1.0]), scores), min_size=1, max_size=60)


probabilities = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.floats(0, 1, width=32))
logits = st.one_of(st.sampled_from([-2.0, 0.0, 3.0]), st.floats(-30, 30))


def columns(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    targets, scores = zip(*pairs, strict=True)
    return np.array(targets), np.array(scores)


@given(cells(logits))
def test_ranking_metrics_equal_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    targets, scores = columns(pairs)
    positive = targets >= 0.5
    if positive.all() or not positive.any():
        assert {name: metric(targets, scores) for name, metric in RANKED.items()} == dict.fromkeys(RANKED)
        return
    assert metrics.average_precision(targets, scores) == pytest.approx(peer.average_precision_score(positive, scores), abs=1e-12)
    assert metrics.auroc(targets, scores) == pytest.approx(peer.roc_auc_score(positive, scores), abs=1e-12)
    rates, recalls, _ = peer.roc_curve(positive, scores, drop_intermediate=False)
    for rate in (0.0, 0.01, 0.25, 1.0):
        assert metrics.recall_at_fpr(targets, scores, rate) == pytest.approx(recalls[rates <= rate].max(), abs=1e-12)


@given(cells(probabilities), st.sampled_from([0.0, 0.1, 0.5, 0.73, 1.0]))
def test_decisions_equal_scikit_learn(pairs: list[tuple[float, float]], threshold: float) -> None:
    targets, scores = columns(pairs)
    positive, flagged = targets >= 0.5, scores >= threshold
    at = metrics.decisions_at(targets, scores, threshold)
    (tn, fp), (fn, tp) = peer.confusion_matrix(positive, flagged, labels=[False, True])
    assert at == (tp, fp, fn, tn)
    assert at.accuracy == pytest.approx(peer.accuracy_score(positive, flagged), abs=1e-12)
    both = positive.any() and not positive.all()
    wanted = {
        "recall": peer.recall_score(positive, flagged, zero_division=0) if positive.any() else None,
        "precision": peer.precision_score(positive, flagged) if both and flagged.any() else None,
        "f1": peer.f1_score(positive, flagged, zero_division=0) if both else None,
        "false_positive_rate": 1 - peer.recall_score(~positive, ~flagged, zero_division=0) if not positive.all() else None,
    }
    for name, value in wanted.items():
        found = getattr(at, name)
        assert found is None if value is None else found == pytest.approx(value, abs=1e-12), name


@given(cells(probabilities))
def test_calibration_equals_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    targets, scores = columns(pairs)
    hard = (targets >= 0.5).astype(float)
    assert metrics.brier(hard, scores) == pytest.approx(peer.brier_score_loss(hard, scores, pos_label=1), abs=1e-12)
    edges = np.linspace(0, 1, 11)
    # scikit-learn finds bins by comparing with the edges, where 0.3 and 3 / 10 may differ by a rounding: keep off the edges.
    inside = np.abs(scores[:, None] - edges[None]).min(axis=1) > 1e-6
    if inside.any():
        frequency, probability = calibration_curve(hard[inside], scores[inside], n_bins=10, strategy="uniform")
        found = metrics.reliability(hard[inside], scores[inside])
        np.testing.assert_allclose(found.target, frequency, atol=1e-12)
        np.testing.assert_allclose(found.probability, probability, atol=1e-12)
        assert found.items.sum() == inside.sum()
        weights = found.items / found.items.sum()
        expected = float((weights * np.abs(frequency - probability)).sum())
        assert metrics.calibration_error(hard[inside], scores[inside]) == pytest.approx(expected, abs=1e-12)


@given(cells(probabilities), st.data())
def test_masking_equals_dropping(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    targets, scores = columns(pairs)
    unknown = np.array(data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs))))
    masked, noise = np.where(unknown, np.nan, targets), np.where(unknown, np.nan, scores)
    for metric in (*RANKED.values(), metrics.brier, metrics.calibration_error):
        dropped = metric(targets[~unknown], scores[~unknown])
        assert metric(masked, scores) == dropped
        assert metric(masked, noise) == dropped, "the score of an unknown target is never read"


@given(cells(logits), st.integers(0, 2**32 - 1))
def test_order_does_not_matter(pairs: list[tuple[float, float]], seed: int) -> None:
    targets, scores = columns(pairs)
    shuffled = np.random.default_rng(seed).permutation(len(pairs))
    for name, metric in RANKED.items():
        assert metric(targets, scores) == metric(targets[shuffled], scores[shuffled]), name


def test_soft_targets_are_compared_as_they_are_by_brier_and_calibration() -> None:
    targets, scores = [0.25, 0.75], [0.25, 0.75]
    assert metrics.brier(targets, scores) == 0
    assert metrics.calibration_error(targets, scores) == 0
    assert metrics.auroc(targets, scores) == 1


@pytest.mark.parametrize("targets", [[], [np.nan, np.nan], [1.0, np.nan], [0.0, 0.2]])
def test_one_class_alone_has_no_ranking(targets: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = [0.5] * len(targets)
        assert [metric(targets, scores) for metric in RANKED.values()] == [None] * len(RANKED)


def test_nothing_known_has_no_number() -> None:
    assert metrics.brier([np.nan], [0.3]) is None
    assert metrics.calibration_error([np.nan], [0.3]) is None
    at = metrics.decisions_at([np.nan], [0.3], 0.5)
    assert (at.precision, at.recall, at.f1, at.accuracy, at.false_positive_rate) == (None,) * 5


def test_infinite_scores_are_ranked_and_nan_is_refused() -> None:
    assert metrics.auroc([1, 0], [np.inf, -np.inf]) == 1
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        metrics.auroc([1, 0], [np.nan, 0.1])


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        metrics.auroc([1, 0], [0.1])
