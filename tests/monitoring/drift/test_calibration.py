"""calibration_evidence: reviewed items whose positives do not occur as often as the probabilities state."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from vigil_data.errors import UserError
from vigil_data.reviews.decisions import Decision
from vigil_monitoring.drift.calibration import (
    ReviewedItems,
    calibration_evidence,
    positives_per_predicted,
    reviewed_items,
    surprising,
)
from vigil_monitoring.drift.summaries import DaySummary
from vigil_monitoring.drift.windows import SummaryWindow
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table
from vigil_monitoring.sequential.e_process import ever_p

START, DAYS, ALPHA = date(2026, 10, 5), 30, 0.05
WINDOWS = [SummaryWindow(START + timedelta(days=n), START + timedelta(days=n), DaySummary()) for n in range(DAYS)]


def reviews(random, *, factor=1.0, changed_from=0, per_day=60, authors=400, alike=0.5):
    """A sample of each day with probabilities proportional to scores; truths of an author's items on a day agree."""
    population = 2000
    days, units, p, truth, weights = [], [], [], [], []
    for day in range(DAYS):
        score = random.beta(0.3, 3, population)
        inclusion = np.minimum(1, per_day * (score + 0.05) / (score + 0.05).sum())
        actual = np.minimum(score * (factor if day >= changed_from else 1.0), 1.0)
        author = random.integers(0, authors, population)
        shared = random.random(authors)[author]
        draw = np.where(random.random(population) < alike, shared, random.random(population))
        drawn = random.random(population) < inclusion
        days += [day] * int(drawn.sum())
        units += author[drawn].tolist()
        p += score[drawn].tolist()
        truth += (draw < actual)[drawn].tolist()
        weights += (1 / inclusion[drawn]).tolist()
    known = np.where(random.random(len(p)) < 0.05, np.nan, np.array(truth, float))
    return ReviewedItems(
        [f"item-{n}" for n in range(len(p))],
        np.array(START, "datetime64[D]") + np.array(days),
        np.array(units),
        ("hate",),
        np.array(p)[:, None],
        known[:, None],
        np.array(weights),
        {"": np.ones(len(p), bool)},
    )


@pytest.mark.prove
@pytest.mark.parametrize("factor", [1.0, 1.2, 0.85])
def test_calibration_evidence_keeps_the_rate_of_false_alarms_over_30_looks(factor, proofs):
    # Up to a quarter more positives, or less, than the probabilities state are negligible.
    runs, random, alarms = proofs(15, 500), np.random.default_rng(round(100 * factor)), 0
    for _ in range(runs):
        _, evidence = calibration_evidence(reviews(random, factor=factor), WINDOWS, 1.25)
        alarms += ever_p(evidence.log_e)[-1].min() <= ALPHA / 2
    print(f"{factor} times the stated positives: {alarms} of {runs} runs alarm")
    assert alarms <= ALPHA * runs + (runs < 20)


@pytest.mark.prove
@pytest.mark.parametrize(("factor", "within"), [(2.5, 10), (0.3, 14)])
def test_calibration_evidence_finds_a_planted_change_within_days_in_90_percent_of_runs(factor, within, proofs):
    runs, random, found = proofs(6, 300), np.random.default_rng(round(10 * factor)), 0
    for _ in range(runs):
        reviewed = reviews(random, factor=factor, changed_from=8)
        [stream], evidence = calibration_evidence(reviewed, WINDOWS, 1.25)
        p = ever_p(evidence.log_e)[:, 0 if factor > 1 else 1]
        first = int(np.argmax(p <= ALPHA / 2)) if p[-1] <= ALPHA / 2 else DAYS
        found += 8 <= first < 8 + within
    positives, predicted = positives_per_predicted(reviewed, stream, 8)
    assert positives / predicted == pytest.approx(factor, rel=0.35)
    print(f"{factor} times the stated positives: found within {within} days in {found} of {runs} runs")
    assert found >= 0.9 * runs


def test_surprising_items_are_positives_of_low_probability_with_large_weight():
    reviewed = reviews(np.random.default_rng(2), factor=3.0)
    [stream], _ = calibration_evidence(reviewed, WINDOWS, 1.25)
    excess = reviewed.weights_N * (reviewed.targets_NL[:, 0] - reviewed.probabilities_NL[:, 0])
    ids = surprising(reviewed, stream, 0, 20, more=True)
    assert [reviewed.ids.index(name) for name in ids] == np.argsort(-np.nan_to_num(excess))[:20].tolist()
    few = reviewed.take(np.arange(10))
    assert calibration_evidence(few, WINDOWS, 1.25)[0] == []


def decision(name, value, label="hate"):
    return Decision(name, label, value, "ann", datetime(2026, 11, 9, tzinfo=UTC))


def queue_of(rows, kind="probability"):
    return Queue(queue_table(rows, ("hate",)), QueueRecord(kind, ("hate",), traffic="log"))


def test_reviewed_items_leaves_out_rows_that_were_picked():
    time = datetime(2026, 10, 6, 12, tzinfo=UTC)
    row = {"time": time, "inclusion_probability": 0.25, "purpose": "estimate", "ask": ["hate"], "probability.hate": 0.5}
    first = queue_of(
        [
            {**row, "id": "b", "author": "ann", "language": "de", "time": time + timedelta(days=2)},
            {**row, "id": "a", "author": "ann", "purpose": "audit"},
            {**row, "id": "c", "purpose": "mined", "inclusion_probability": None},
            {**row, "id": "d", "purpose": "gold"},
        ],
        "mined",
    )
    found = reviewed_items(
        [(first, [decision("a", 1.0), decision("b", None), decision("c", 1.0)])], ("hate", "spam"), ("language",)
    )
    assert found.ids == ["a", "b"]
    assert found.days.tolist() == [date(2026, 10, 6), date(2026, 10, 8)]
    assert found.weights_N.tolist() == [4.0, 4.0]
    assert found.units[0] == found.units[1]
    assert np.isnan(found.targets_NL).tolist() == [[False, True], [True, True]]
    assert {name: member.tolist() for name, member in found.slices.items()} == {
        "": [True, True],
        "language=de": [False, True],
        "language=unknown": [True, False],
    }
    with pytest.raises(UserError, match="needs a probability sample"):
        reviewed_items([(queue_of([{**row, "id": "a"}], "non-probability"), [])], ("hate",), ())
    with pytest.raises(UserError, match="1 rows have no time"):
        reviewed_items([(queue_of([{**row, "id": "a", "time": None}]), [])], ("hate",), ())
