"""Dawid-Skene against crowd-kit, the majority, and simulated reviewers of known accuracy."""

import os
import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from vigil_monitoring.agreement.dawid_skene import NO, UNSURE, YES, DawidSkene, Priors, fit_dawid_skene

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from crowdkit.aggregation import DawidSkene as CrowdKit

MAXIMUM_LIKELIHOOD = Priors(0, 0, 0, 0)
REPETITIONS = 300 if os.environ.get("VIGIL_PROVE") else 40


class Answers(NamedTuple):
    truth_N: np.ndarray[Any, Any]
    item_A: np.ndarray[Any, Any]
    reviewer_A: np.ndarray[Any, Any]
    answer_A: np.ndarray[Any, Any]

    def fit(self, **options: Any) -> DawidSkene:
        count = int(self.reviewer_A.max()) + 1
        return fit_dawid_skene(*self[1:], items=len(self.truth_N), reviewers=count, **{"replicates": 0, **options})


def simulate(
    random: Any, items: int, accuracy_W2: Any, *, prevalence: float, asked: float = 1.0, unsure_W2: Any = 0.0
) -> Answers:
    """Draw answers of reviewers with (specificity, sensitivity) and shares of "cannot tell" by truth."""
    accuracy_W2 = np.asarray(accuracy_W2)
    truth_N = (random.random(items) < prevalence).astype(int)
    right_WN = random.random((len(accuracy_W2), items)) < accuracy_W2[:, truth_N]
    answer_WN = np.where(right_WN, truth_N, 1 - truth_N)
    unsure_W2 = np.broadcast_to(unsure_W2, accuracy_W2.shape)
    answer_WN = np.where(random.random(answer_WN.shape) < unsure_W2[:, truth_N], UNSURE, answer_WN)
    reviewer_A, item_A = np.nonzero(random.random(answer_WN.shape) < asked)
    return Answers(truth_N, item_A, reviewer_A, answer_WN[reviewer_A, item_A])


@pytest.mark.parametrize("gold", [False, True])
def test_fit_dawid_skene_equals_crowd_kit(gold: bool) -> None:
    random = np.random.default_rng(1)
    answers = simulate(random, 120, random.uniform(0.75, 0.95, (5, 2)), prevalence=0.4, asked=0.8)
    items = np.unique(answers.item_A)
    known_N, true_labels = np.full(120, np.nan), None
    if gold:
        known_N[items[:15]] = answers.truth_N[items[:15]]
        true_labels = pd.Series(answers.truth_N[items[:15]], index=items[:15])
    table = pd.DataFrame({"task": answers.item_A, "worker": answers.reviewer_A, "label": answers.answer_A})
    model = CrowdKit(n_iter=100, tol=-1.0)  # a fixed number of steps, enough to come to rest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model.fit_predict_proba(table, true_labels=true_labels)
    found = answers.fit(priors=MAXIMUM_LIKELIHOOD, known_N=known_N, tolerance=1e-13)
    np.testing.assert_allclose(found.posterior_N[expected.index], expected[1], atol=1e-6)
    errors = model.errors_
    assert errors is not None
    np.testing.assert_allclose(found.sensitivity_W, [errors.loc[(w, 1), 1] for w in range(5)], atol=1e-6)
    np.testing.assert_allclose(found.specificity_W, [errors.loc[(w, 0), 0] for w in range(5)], atol=1e-6)


@pytest.mark.prove
def test_fit_dawid_skene_beats_the_majority_with_two_spammers_among_five() -> None:
    random = np.random.default_rng(2)
    ours, majority = [], []
    for _ in range(REPETITIONS):
        # Three who are right in 85 % and two who flip a coin.
        answers = simulate(random, 300, [[0.85, 0.85]] * 3 + [[0.5, 0.5]] * 2, prevalence=0.3)
        votes_N = np.bincount(answers.item_A, answers.answer_A == YES)
        majority.append(((votes_N > 2) == answers.truth_N).mean())
        ours.append(((answers.fit().posterior_N > 0.5) == answers.truth_N).mean())
    print(f"right by majority {np.mean(majority):.4f}, by Dawid-Skene {np.mean(ours):.4f}")
    assert np.mean(ours) > np.mean(majority) + 0.03
    assert np.mean(np.greater_equal(ours, majority)) > 0.95


@pytest.mark.prove
def test_fit_dawid_skene_intervals_cover_the_true_accuracy() -> None:
    random = np.random.default_rng(3)
    accuracy_W2 = np.array([[0.97, 0.9], [0.9, 0.8], [0.95, 0.75], [0.85, 0.9], [0.5, 0.5]])
    hits, posteriors, truths = [], [], []
    for repetition in range(REPETITIONS):
        answers = simulate(random, 400, accuracy_W2, prevalence=0.25, asked=0.8, unsure_W2=0.05)
        found = answers.fit(replicates=100, seed=repetition)
        for of, (specificity, sensitivity) in zip(found.accuracy("hate", "abcde"), accuracy_W2, strict=True):
            assert of.sensitivity_interval
            assert of.specificity_interval
            hits.append(of.sensitivity_interval.low <= sensitivity <= of.sensitivity_interval.high)
            hits.append(of.specificity_interval.low <= specificity <= of.specificity_interval.high)
        posteriors.append(found.posterior_N)
        truths.append(answers.truth_N)
    print(f"intervals of sensitivity and specificity cover {np.mean(hits):.3f}")
    assert 0.94 <= np.mean(hits) <= 0.985
    # Posteriors are calibrated.
    posterior, truth = np.concatenate(posteriors), np.concatenate(truths)
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1)):
        inside = (posterior >= low) & (posterior <= high)
        assert truth[inside].mean() == pytest.approx(posterior[inside].mean(), abs=0.04)


def test_fit_dawid_skene_uses_cannot_tell_where_it_depends_on_the_truth() -> None:
    random = np.random.default_rng(4)
    losses: dict[str, list[float]] = {"kept": [], "dropped": []}
    for _ in range(10):
        answers = simulate(random, 400, [[0.8, 0.8]] * 4, prevalence=0.4, unsure_W2=[0.05, 0.4])
        decided = answers.answer_A != UNSURE
        dropped = Answers(answers.truth_N, *(array[decided] for array in answers[1:]))
        for name, given in (("kept", answers), ("dropped", dropped)):
            posterior_N = np.clip(np.nan_to_num(given.fit().posterior_N, nan=0.4), 1e-6, 1 - 1e-6)
            losses[name].append(-np.log(np.where(given.truth_N == 1, posterior_N, 1 - posterior_N)).mean())
    assert np.mean(losses["kept"]) < np.mean(losses["dropped"]) - 0.02


def test_fit_dawid_skene_weights_count_as_copies_of_an_item() -> None:
    random = np.random.default_rng(5)
    answers = simulate(random, 60, [[0.9, 0.8]] * 4, prevalence=0.3, unsure_W2=0.1)
    weights_N = random.integers(1, 4, 60)
    copies_M = np.repeat(np.arange(60), weights_N)
    parts = [
        (np.full((answers.item_A == n).sum(), m), *(a[answers.item_A == n] for a in answers[2:])) for m, n in enumerate(copies_M)
    ]
    item_A, reviewer_A, answer_A = (np.concatenate(column) for column in zip(*parts, strict=True))
    priors, copied = Priors(), Answers(answers.truth_N[copies_M], item_A, reviewer_A, answer_A)
    # Weights are scaled to the number of items, so the priors of the copies are scaled too.
    scale = len(copies_M) / 60
    scaled = Priors(*(scale * value for value in (priors.right, priors.wrong, priors.positive, priors.negative)))
    weighted, expected = answers.fit(weights_N=weights_N.astype(float)), copied.fit(priors=scaled)
    np.testing.assert_allclose(weighted.posterior_N[copies_M], expected.posterior_N, atol=1e-5)
    assert weighted.prevalence == pytest.approx(expected.prevalence, abs=1e-6)


def test_fit_dawid_skene_keeps_known_truth_and_leaves_unasked_items_unknown() -> None:
    item_A = np.array([0, 0, 1, 1, 2])
    answers = Answers(np.zeros(4, int), item_A, np.array([0, 1, 0, 1, 0]), np.array([YES, YES, NO, NO, YES]))
    found = answers.fit(known_N=np.array([0, np.nan, np.nan, np.nan]))
    assert found.posterior_N[0] == 0
    assert np.isnan(found.posterior_N[3])
    assert found.converged
