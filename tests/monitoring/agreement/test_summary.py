"""Agreement of a whole queue, what is adjudicated, and who is right."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from vigil_data.reviews.decisions import Decision
from vigil_monitoring.agreement.accuracy import DECIDED
from vigil_monitoring.agreement.adjudication import adjudication_queue
from vigil_monitoring.agreement.summary import AgreementOptions, AgreementResult, measure_agreement
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table

NOW = datetime(2026, 11, 9, tzinfo=UTC)
LABELS = ("hate", "spam")
SPECIFICITY_SENSITIVITY = {"ann": (0.97, 0.95), "ben": (0.95, 0.85), "cleo": (0.9, 0.9), "dan": (0.5, 0.5)}


def queue_of(items: int, **columns: Any) -> Queue:
    rows = [
        {"id": f"{n}", "purpose": "estimate", "inclusion_probability": 0.5, "ask": LABELS, "language": "de" if n % 3 else "en"}
        | {name: value(n) for name, value in columns.items()}
        for n in range(items)
    ]
    return Queue(queue_table(rows, LABELS), QueueRecord("probability", LABELS, start="2026-11-01", end="2026-11-07"))


def review(truth_NL: np.ndarray[Any, Any], seed: int = 0) -> Iterator[Decision]:
    random = np.random.default_rng(seed)
    for item, row in enumerate(truth_NL):
        for reviewer, (specificity, sensitivity) in SPECIFICITY_SENSITIVITY.items():
            for label, truth in zip(LABELS, row, strict=True):
                right = random.random() < (sensitivity if truth else specificity)
                value = None if random.random() < 0.05 else float(truth == right)
                yield Decision(f"{item}", label, value, reviewer, NOW, minutes=0.5)


@pytest.fixture(scope="module")
def truth_NL() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).random((150, 2)) < 0.3


@pytest.fixture(scope="module")
def measured(truth_NL: np.ndarray[Any, Any]) -> AgreementResult:
    gold = {(f"{n}", label): float(truth_NL[n, place]) for n in range(50) for place, label in enumerate(LABELS)}
    options = AgreementOptions(replicates=50, by=("language",))
    return measure_agreement(queue_of(150), list(review(truth_NL)), gold, options)[0]


def test_measure_agreement_finds_the_reviewer_who_guesses(measured: AgreementResult) -> None:
    shares = {of.reviewer: of.agreement or 0.0 for of in measured.reviewers}
    assert min(shares, key=lambda name: shares[name]) == "dan"
    for source in ("latent", "gold"):
        accuracy = {of.reviewer: of for of in measured.accuracy if (of.label, of.source) == ("hate", source)}
        assert accuracy["dan"].sensitivity_interval
        assert accuracy["dan"].sensitivity_interval.low < 0.5 < accuracy["dan"].sensitivity_interval.high
        assert (accuracy["ann"].specificity or 0) > 0.9
    decided = next(of for of in measured.accuracy if of.reviewer == DECIDED)
    assert (decided.source, (decided.specificity or 0) > 0.9) == ("gold", True)


def test_measure_agreement_counts_answers_and_minutes_by_label_slice_and_reviewer(measured: AgreementResult) -> None:
    for of in measured.labels:
        assert (of.items, of.enough, of.answers, of.alpha.level) == (150, 150, 600, "nominal")
        assert 0.02 < of.cannot_tell < 0.09
        assert of.positive_interval
        assert of.positive_interval.low < 0.3 < of.positive_interval.high
        slices = [(part.column, part.value, part.alpha.items) for part in of.slices]
        assert slices == [("language", "de", 100), ("language", "en", 50)]
    ann = measured.reviewers[0]
    assert (ann.reviewer, ann.items, ann.answers, ann.minutes, ann.minutes_per_item) == ("ann", 150, 300, 150, 1.0)
    assert len(measured.pairs) == 2 * 6


def test_measure_agreement_takes_adjudicated_answers_as_truth_and_the_newest_policy_only() -> None:
    item = {"id": "0", "label": "hate", "time": NOW}
    decisions = [
        Decision(value=0.0, reviewer="ann", policy_version="1", **item),
        Decision(value=1.0, reviewer="ann", policy_version="2", **item),
        Decision(value=0.0, reviewer="ben", policy_version="2", **item),
        Decision(value=0.0, reviewer="eve", policy_version="2", adjudicated=True, **item),
        Decision(value=1.0, reviewer="eve", policy_version="2", adjudicated=True, **item | {"time": NOW + timedelta(1)}),
    ]
    found, doubtful = measure_agreement(queue_of(1), decisions, options=AgreementOptions(replicates=0))
    assert (found.labels[0].answers, found.labels[0].positive, doubtful) == (2, 0.75, [])  # (1 + 0.5) / (1 + 1) with the prior
    assert [of.reviewer for of in found.reviewers] == ["ann", "ben"]
    adjudicated = {of.reviewer: of.sensitivity for of in found.accuracy if of.source == "adjudicated"}
    assert adjudicated == {"": None, "ann": 1, "ben": 0}  # a tie has no decided target


def test_measure_agreement_orders_doubtful_items_by_expected_gain_and_reach() -> None:
    votes = {"0": (1, 1, 1), "1": (1, 0, 1), "2": (1, 0, None), "3": (None, None, None), "4": (0, 0, 0)}
    decisions = [
        Decision(item, label, value, who, NOW)
        for item, values in votes.items()
        for label in LABELS
        for who, value in zip("abc", values, strict=True)
    ]
    options = AgreementOptions(replicates=0, bounds=(0.3, 0.7))
    _, doubtful = measure_agreement(queue_of(5), decisions, options=options)
    assert [(of.id, of.gain) for of in doubtful[:4]] == [("2", 0.5), ("2", 0.5), ("3", 0.5), ("3", 0.5)]
    assert {of.id for of in doubtful} == {"1", "2", "3"}
    queue = queue_of(5, exposure=lambda n: 1000.0 if n == 1 else 1.0)
    _, doubtful = measure_agreement(queue, decisions, options=options)
    assert doubtful[0].id == "1"
    adjudicated = adjudication_queue(queue, doubtful)
    assert adjudicated.table["id"].to_pylist() == ["1", "2", "3"]
    assert adjudicated.table["ask"].to_pylist() == [list(LABELS)] * 3
    assert adjudicated.record.kind == "non-probability"


def test_measure_agreement_weighted_estimates_the_share_of_the_population() -> None:
    truth_NL = np.repeat(np.arange(200) < 100, 2).reshape(200, 2)
    decisions = list(review(truth_NL))
    queue = queue_of(200, inclusion_probability=lambda n: 1.0 if n < 100 else 0.25)
    plain, weighted = (
        measure_agreement(queue, decisions, options=AgreementOptions(weighted=weighted, replicates=0))[0].labels[0].positive
        for weighted in (False, True)
    )
    assert plain == pytest.approx(0.5, abs=0.06)
    assert weighted == pytest.approx(0.2, abs=0.04)
