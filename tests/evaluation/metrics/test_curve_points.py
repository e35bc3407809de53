"""Curves: scikit-learn's where there are few points, bounded and on them where there are many."""

import numpy as np
import pytest
import sklearn.metrics

from vigil_evaluation.metrics import operating_points, precision_recall_curve, roc_curve


def example(count, seed=3):
    random = np.random.default_rng(seed)
    targets = (random.random(count) < 0.3).astype(float)
    return targets, np.round(np.clip(targets * 0.3 + random.random(count) * 0.7, 0, 1), 4)


def test_curves_of_few_points_are_those_of_scikit_learn():
    targets, scores = example(60)
    points = operating_points(targets, scores)
    expected, recall, _ = sklearn.metrics.precision_recall_curve(targets, scores)
    found = list(zip(*precision_recall_curve(points, 10**6), strict=True))
    wanted = {(r, p) for r, p in zip(recall.tolist(), expected.tolist(), strict=True)}
    assert set(found) <= wanted
    assert {r for r, _ in found} == {r for r in recall.tolist() if r > 0}, "the first point of each recall"
    rates, recalls, _ = sklearn.metrics.roc_curve(targets, scores, drop_intermediate=False)
    assert set(zip(*roc_curve(points, 10**6, 6), strict=True)) <= set(zip(rates.tolist(), recalls.tolist(), strict=True))


def test_curves_of_many_points_are_bounded_and_keep_their_area():
    targets, scores = example(20_000)
    points = operating_points(targets, scores)
    recall, precision = precision_recall_curve(points, 200)
    assert len(recall) <= 201
    area = float(np.sum(np.diff(recall, prepend=0) * precision))
    assert area == pytest.approx(sklearn.metrics.average_precision_score(targets, scores), abs=0.005)
    rate, recall = roc_curve(points, 200, 6)
    assert len(rate) <= 201
    assert sklearn.metrics.auc(np.append(0, rate), np.append(0, recall)) == pytest.approx(
        sklearn.metrics.roc_auc_score(targets, scores), abs=0.01
    )
