"""Metrics: against scikit-learn; unknown targets are ignored; undefined metrics are ``None``."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import foldnorm
from sklearn import metrics as peer
from sklearn.calibration import calibration_curve

from vigil_evaluation import metrics

RANKED: dict[str, Callable[..., float | None]] = {
    "average_precision": metrics.average_precision,
    "auroc": metrics.auroc,
    "partial_auroc": lambda t, s: metrics.partial_auroc(t, s, 0.2),
    "recall_at_fpr": lambda t, s: metrics.recall_at_fpr(t, s, 0.2),
    "recall_at_precision": lambda t, s: metrics.recall_at_precision(t, s, 0.7),
    "f1_at": lambda t, s: metrics.f1_at(t, s, 0.5),
}
WEIGHTED: dict[str, Callable[..., float | None]] = {
    "average_precision": metrics.average_precision,
    "auroc": metrics.auroc,
    "partial_auroc": lambda t, s, weights_N=None: metrics.partial_auroc(t, s, 0.2, weights_N),
    "recall_at_fpr": lambda t, s, weights_N=None: metrics.recall_at_fpr(t, s, 0.2, weights_N),
    "recall_at_precision": lambda t, s, weights_N=None: metrics.recall_at_precision(t, s, 0.7, weights_N),
    "f1_at": lambda t, s, weights_N=None: metrics.f1_at(t, s, 0.5, weights_N),
}
MEANS = (metrics.brier, metrics.log_loss, metrics.calibration_error)


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
    for rate in (0.01, 0.25, 0.5, 1.0):
        expected = peer.roc_auc_score(positive, scores, max_fpr=rate)
        assert metrics.partial_auroc(targets, scores, rate) == pytest.approx(expected, abs=1e-12)
    precisions, recalls, _ = peer.precision_recall_curve(positive, scores)
    for precision in (0.01, 0.5, 2 / 3, 1.0):
        # The last point of scikit-learn's curve, precision 1 at recall 0, flags nothing.
        expected = recalls[:-1][precisions[:-1] >= precision].max(initial=0)
        assert metrics.recall_at_precision(targets, scores, precision) == pytest.approx(expected, abs=1e-12)


@given(cells(probabilities), st.sampled_from([0.0, 0.1, 0.5, 0.73, 1.0]))
def test_decisions_at_equals_scikit_learn(pairs: list[tuple[float, float]], threshold: float) -> None:
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


weighted_cells = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.2, 0.5, 1.0]),
        probabilities,
        st.one_of(st.sampled_from([0.0, 1.0, 10.0, 0.25]), st.floats(0.01, 100)),
    ),
    min_size=1,
    max_size=60,
)


@given(weighted_cells)
def test_weighted_metrics_equal_scikit_learn(rows: list[tuple[float, float, float]]) -> None:
    targets, scores, weights = (np.array(column) for column in zip(*rows, strict=True))
    counted = weights > 0
    t, s, w = targets[counted], scores[counted], weights[counted]
    positive = t >= 0.5
    found = {name: metric(targets, scores, weights_N=weights) for name, metric in WEIGHTED.items()}
    at = metrics.decisions_at(targets, scores, 0.5, weights)
    if not len(t):
        assert {*found.values(), at.accuracy, at.recall, at.false_positive_rate} == {None}
        return
    hard = positive.astype(float)
    assert metrics.brier(hard, s, w) == pytest.approx(peer.brier_score_loss(hard, s, sample_weight=w, pos_label=1), abs=1e-12)
    assert metrics.log_loss(hard, s, w) == pytest.approx(
        peer.log_loss(hard, s, labels=[0, 1], sample_weight=w), rel=1e-12, abs=1e-12
    )
    assert at.accuracy == pytest.approx(peer.accuracy_score(positive, s >= 0.5, sample_weight=w), abs=1e-12)
    if positive.all() or not positive.any():
        assert {found[name] for name in RANKED} == {None}
        return
    rates, recalls, _ = peer.roc_curve(positive, s, sample_weight=w, drop_intermediate=False)
    precisions, at_precision, _ = peer.precision_recall_curve(positive, s, sample_weight=w)
    expected = {
        "average_precision": peer.average_precision_score(positive, s, sample_weight=w),
        "auroc": peer.roc_auc_score(positive, s, sample_weight=w),
        "partial_auroc": peer.roc_auc_score(positive, s, sample_weight=w, max_fpr=0.2),
        "f1_at": peer.f1_score(positive, s >= 0.5, sample_weight=w, zero_division=0),
    }
    if not np.isclose(rates, 0.2, atol=1e-9).any():
        expected["recall_at_fpr"] = recalls[rates <= 0.2].max()
    if not np.isclose(precisions, 0.7, atol=1e-9).any():
        expected["recall_at_precision"] = at_precision[:-1][precisions[:-1] >= 0.7].max(initial=0)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert at.recall == pytest.approx(peer.recall_score(positive, s >= 0.5, sample_weight=w), abs=1e-12)
    if (s >= 0.5).any():
        assert at.precision == pytest.approx(peer.precision_score(positive, s >= 0.5, sample_weight=w), abs=1e-12)
    assert at.false_positive_rate == pytest.approx(np.average(s[~positive] >= 0.5, weights=w[~positive]), abs=1e-12)


@given(cells(probabilities), st.lists(st.integers(0, 4), min_size=60, max_size=60), st.sampled_from([1.0, 0.25, 8.0]))
def test_an_item_of_integer_weight_counts_as_copies(pairs: list[tuple[float, float]], copies: list[int], scale: float) -> None:
    targets, scores = columns(pairs)
    times = np.array(copies[: len(targets)])
    copied = np.repeat(targets, times), np.repeat(scores, times)
    for name, metric in (WEIGHTED | {"brier": metrics.brier, "log_loss": metrics.log_loss}).items():
        assert metric(targets, scores, weights_N=scale * times) == pytest.approx(metric(*copied), abs=1e-9), name
    assert metrics.choose_thresholds(targets[:, None], scores[:, None], times) == metrics.choose_thresholds(
        copied[0][:, None], copied[1][:, None]
    )


@given(cells(probabilities), st.sampled_from([0.1, 1.0, 1 / 3, 100.0]))
def test_equal_weights_change_nothing(pairs: list[tuple[float, float]], weight: float) -> None:
    targets, scores = columns(pairs)
    weights = np.full(len(targets), weight)
    np.testing.assert_array_equal(metrics.mass_bins(scores, 10, weights), metrics.mass_bins(scores))
    assert metrics.calibration_error(targets, scores, weights_N=weights) == pytest.approx(
        metrics.calibration_error(targets, scores), abs=1e-9
    )
    found, plain = metrics.reliability(targets, scores, weights_N=weights), metrics.reliability(targets, scores)
    np.testing.assert_allclose(found.target, plain.target)
    np.testing.assert_allclose(found.mass, weight * plain.items)
    assert metrics.effective_items(weights) == pytest.approx(len(weights))


def test_weighted_calibration_error_equals_a_loop() -> None:
    random = np.random.default_rng(0)
    scores, weights = random.random(3000), random.choice([1.0, 10.0], 3000)
    targets = (random.random(3000) < scores**2).astype(float)
    place, error = metrics.mass_bins(scores, 10, weights), 0.0
    masses = np.bincount(place, weights=weights)
    assert masses.max() - masses.min() <= 40, "bins have equal mass"
    for one in range(10):
        w, d = weights[place == one], (targets - scores)[place == one]
        mean = np.average(d, weights=w)
        deviation = np.sqrt((w**2 * (d - mean) ** 2).sum()) / w.sum()
        chance = foldnorm.mean(abs(mean) / deviation, scale=deviation)
        error += w.sum() / weights.sum() * (2 * abs(mean) - chance)
    assert metrics.calibration_error(targets, scores, weights_N=weights) == pytest.approx(error, abs=1e-12)
    diagram = metrics.reliability(targets, scores, weights_N=weights)
    np.testing.assert_allclose(diagram.mass, masses)
    np.testing.assert_allclose(diagram.target[3], np.average(targets[place == 3], weights=weights[place == 3]))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="must be 2 finite numbers of at least 0"):
        metrics.auroc([0, 1], [0.1, 0.9], weights)


@given(cells(probabilities))
def test_brier_and_log_loss_equal_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    targets, scores = columns(pairs)
    hard = (targets >= 0.5).astype(float)
    assert metrics.brier(hard, scores) == pytest.approx(peer.brier_score_loss(hard, scores, pos_label=1), abs=1e-12)
    assert metrics.log_loss(hard, scores) == pytest.approx(peer.log_loss(hard, scores, labels=[0, 1]), rel=1e-12, abs=1e-12)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.integers(0, 10**6)), min_size=1, max_size=80, unique_by=lambda c: c[1]))
def test_mass_bins_equal_scikit_learn(pairs: list[tuple[float, int]]) -> None:
    targets, scores = columns([(target, place / 10**6) for target, place in pairs])
    # scikit-learn interpolates between probabilities to find the edges of its bins, where rounding may put an edge next to the
    # probability that it should be: the sizes tell. Without ties there is nothing else in which the two may differ.
    frequency, probability = calibration_curve(targets, scores, n_bins=10, strategy="quantile")
    found = metrics.reliability(targets, scores)
    assert found.items.sum() == len(targets)
    assert found.items.max() - found.items.min() <= 2
    if (len(targets) - 1) % 10:
        np.testing.assert_allclose(found.target, frequency, atol=1e-12)
        np.testing.assert_allclose(found.probability, probability, atol=1e-12)


@given(cells(probabilities))
def test_calibration_error_equals_a_loop(pairs: list[tuple[float, float]]) -> None:
    targets, scores = columns(pairs)
    bins: dict[int, list[int]] = {}
    for item, score in enumerate(scores):
        rank = int((scores < score).sum())  # ties count as the lowest of them
        bins.setdefault(sum(i * (len(scores) - 1) < 10 * rank for i in range(1, 10)), []).append(item)
    error = 0.0
    for members in bins.values():
        differences = targets[members] - scores[members]
        mean, deviation = differences.mean(), differences.std() / np.sqrt(len(members))
        chance = foldnorm.mean(abs(mean) / deviation, scale=deviation) if deviation > 1e-9 else abs(mean)
        error += len(members) / len(scores) * (2 * abs(mean) - chance)
    assert metrics.calibration_error(targets, scores) == pytest.approx(max(error, 0), abs=1e-9)


def test_calibration_error_of_a_calibrated_model_is_near_zero_and_of_another_near_the_truth() -> None:
    random = np.random.default_rng(0)
    found, plain, shifted = [], [], []
    for _ in range(200):
        scores = random.beta(0.5, 2, 1000)
        targets = (random.random(1000) < scores).astype(float)
        curve = metrics.reliability(targets, scores)
        found.append(metrics.calibration_error(targets, scores))
        plain.append((curve.items * np.abs(curve.probability - curve.target)).sum() / 1000)
        shifted.append(metrics.calibration_error(targets, np.clip(scores + 0.1, 0, 1)))
    assert np.mean(found) < 0.65 * np.mean(plain)
    assert np.mean(shifted) == pytest.approx(0.1, abs=0.003)


@given(cells(probabilities), st.data())
def test_metrics_ignore_unknown_targets(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    targets, scores = columns(pairs)
    unknown = np.array(data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs))))
    masked, noise = np.where(unknown, np.nan, targets), np.where(unknown, np.nan, scores)
    for metric in (*RANKED.values(), *MEANS):
        dropped = metric(targets[~unknown], scores[~unknown])
        assert metric(masked, scores) == dropped
        assert metric(masked, noise) == dropped, "the score of an unknown target is never read"


@given(cells(logits), st.integers(0, 2**32 - 1))
def test_metrics_do_not_depend_on_order(pairs: list[tuple[float, float]], seed: int) -> None:
    targets, scores = columns(pairs)
    shuffled = np.random.default_rng(seed).permutation(len(pairs))
    for name, metric in RANKED.items():
        assert metric(targets, scores) == metric(targets[shuffled], scores[shuffled]), name


def test_brier_and_calibration_error_compare_soft_targets_as_they_are() -> None:
    targets, scores = [0.25, 0.75], [0.25, 0.75]
    assert metrics.brier(targets, scores) == 0
    assert metrics.calibration_error(targets, scores) == 0
    assert metrics.log_loss(targets, scores) == pytest.approx(-0.25 * np.log(0.25) - 0.75 * np.log(0.75), abs=1e-12)
    assert metrics.auroc(targets, scores) == 1


@pytest.mark.parametrize("targets", [[], [np.nan, np.nan], [1.0, np.nan], [0.0, 0.2]])
def test_ranking_metrics_of_a_single_class_are_none(targets: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = [0.5] * len(targets)
        assert [metric(targets, scores) for metric in RANKED.values()] == [None] * len(RANKED)


def test_metrics_without_known_targets_are_none() -> None:
    assert [metric([np.nan], [0.3]) for metric in MEANS] == [None] * 3
    assert metrics.reliability([np.nan], [0.3]).items.tolist() == []
    at = metrics.decisions_at([np.nan], [0.3], 0.5)
    assert (at.precision, at.recall, at.f1, at.accuracy, at.false_positive_rate) == (None,) * 5


def test_ranking_metrics_accept_infinite_scores_and_refuse_nan() -> None:
    assert metrics.auroc([1, 0], [np.inf, -np.inf]) == 1
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        metrics.auroc([1, 0], [np.nan, 0.1])


def test_metrics_refuse_unequal_shapes() -> None:
    with pytest.raises(ValueError, match="one length"):
        metrics.auroc([1, 0], [0.1])


def test_log_loss_of_a_certain_mistake_is_finite() -> None:
    assert metrics.log_loss([1, 0], [0.0, 1.0]) == pytest.approx(36.04, abs=0.01)


def test_metrics_of_all_cells_are_micro_averages() -> None:
    random = np.random.default_rng(1)
    targets_NL = random.choice([0.0, 1.0, np.nan], (50, 3))
    scores_NL = random.random((50, 3))
    known = ~np.isnan(targets_NL)
    for name, metric in RANKED.items():
        assert metric(targets_NL.ravel(), scores_NL.ravel()) == metric(targets_NL[known], scores_NL[known]), name
