"""Suspected label errors against cleanlab on complete labels, with planted errors, and with unknown targets."""

import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from vigil_monitoring.agreement.label_errors import confident_learning, held_out, suspected_targets, suspects_queue

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from cleanlab.filter import find_label_issues

Arrays = tuple[np.ndarray[Any, Any], ...]


def planted(seed: int, *, share: float = 0.05, intercept: float = 0.0) -> Arrays:
    """Return targets, some of them flipped, out-of-fold probabilities, and which are flipped."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(2500, 12))
    truth_N = random.random(2500) < expit(features @ np.linspace(0.5, 2.5, 12) + intercept)
    flipped_N = random.random(2500) < share
    given_N = truth_N ^ flipped_N
    probability_N = cross_val_predict(LogisticRegression(), features, given_N, cv=5, method="predict_proba")[:, 1]
    return given_N.astype(np.float64), probability_N, flipped_N


@pytest.mark.parametrize("intercept", [0.0, -6.0])
def test_confident_learning_is_at_least_as_precise_as_cleanlab_among_the_first_hundred(intercept: float) -> None:
    ours, theirs = [], []
    for seed in range(3):
        given_N, probability_N, flipped_N = planted(seed, intercept=intercept)
        both_N2 = np.stack([1 - probability_N, probability_N], axis=1)
        options = {"filter_by": "confident_learning", "return_indices_ranked_by": "self_confidence", "n_jobs": 1}
        expected = find_label_issues(given_N.astype(int), both_N2, **options)
        found = confident_learning(given_N, probability_N)
        order = np.argsort(found.quality_N)
        ranked = order[found.suspected_N[order]]
        assert set(ranked) == set(expected)
        ours.append(flipped_N[ranked[:100]].mean())
        theirs.append(flipped_N[expected[:100]].mean())
    assert np.mean(ours) >= np.mean(theirs)
    assert np.mean(ours) > 0.4  # planted: 0.05


def test_confident_learning_ignores_unknown_targets() -> None:
    given_N, probability_N, _ = planted(0)
    random = np.random.default_rng(0)
    known_N = random.random(len(given_N)) < 0.6
    masked = confident_learning(np.where(known_N, given_N, np.nan), probability_N)
    alone = confident_learning(given_N[known_N], probability_N[known_N])
    np.testing.assert_array_equal(masked.suspected_N[known_N], alone.suspected_N)
    assert not masked.suspected_N[~known_N].any()
    assert (masked.known, masked.wrong_positives) == (known_N.sum(), alone.wrong_positives)


def test_confident_learning_estimates_the_share_of_wrong_targets() -> None:
    given_N, probability_N, flipped_N = planted(1, share=0.1)
    found = confident_learning(given_N, probability_N)
    assert found.wrong_positives == pytest.approx(flipped_N[given_N == 1].mean(), abs=0.04)
    assert found.wrong_negatives == pytest.approx(flipped_N[given_N == 0].mean(), abs=0.04)
    one_class = confident_learning(np.ones(5), np.linspace(0, 1, 5))
    assert (one_class.suspected_N.any(), one_class.wrong_positives) == (False, None)


def test_suspected_targets_of_all_labels_become_one_queue() -> None:
    given_N, probability_N, _ = planted(2)
    table = pa.table({
        "id": [f"{n}" for n in range(len(given_N))],
        "probability.hate": probability_N,
        "target.hate": given_N,
        "probability.spam": 1 - probability_N,
        "target.spam": [None, *(1 - given_N[1:])],
        "language": ["en"] * len(given_N),
    })  # fmt: skip
    found, suspects = suspected_targets(table, ("hate", "spam"))
    assert found["spam"].known == len(given_N) - 1
    assert [of.quality for of in suspects] == sorted(of.quality for of in suspects)
    queue = suspects_queue(table, ("hate", "spam"), suspects)
    rows = {row["id"]: row for row in queue.table.to_pylist()}
    assert {(of.id, of.label) for of in suspects} == {(id_, label) for id_, row in rows.items() for label in row["ask"]}
    assert rows[suspects[0].id]["language"] == "en"
    assert queue.record.kind == "non-probability"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"fold": [0, 1], "split": ["train", "train"]}, "yes"),
        ({"split": ["test", "validation"]}, "yes"),
        ({"split": ["test", "train"]}, "no"),
        ({}, "unstated"),
    ],
)
def test_held_out_follows_from_fold_or_split(columns: dict[str, list[Any]], expected: str) -> None:
    assert held_out(pa.table({"id": ["a", "b"], **columns}))[0] == expected
