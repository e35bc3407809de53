from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from vigil_data.reviews.decisions import Decision
from vigil_monitoring.estimates.maturity import Maturity, measure_maturity
from vigil_monitoring.estimates.reviewed_sample import ReviewedSample, reviewed_sample
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table

FIRST = datetime(2026, 11, 1, tzinfo=UTC)


def measured(ages_days: list[list[float | None]], now_days: float) -> Maturity:
    """Rows of each day with the age at their answer, if it came before now."""
    rows, decisions = [], []
    for day, ages in enumerate(ages_days):
        for n, age in enumerate(ages):
            id_ = f"{day}-{n}"
            rows.append(
                {
                    "id": id_,
                    "time": FIRST + timedelta(days=day),
                    "purpose": "estimate",
                    "inclusion_probability": 0.5,
                    "ask": ["spam"],
                }
            )
            if age is not None and day + age <= now_days:
                decisions.append(Decision(id_, "spam", 1.0, "ann", FIRST + timedelta(days=day + age)))
    # A second answer about an old row makes the last review that of now.
    decisions.append(Decision("0-1", "spam", 1.0, "ben", FIRST + timedelta(days=now_days)))
    queue = Queue(queue_table(rows, ["spam"]), QueueRecord("probability", ("spam",)))
    reviewed: ReviewedSample = reviewed_sample(queue, decisions)
    found = measure_maturity(reviewed, decisions, ("day",))
    assert found is not None
    return found


def test_measure_maturity_counts_answers_that_cannot_have_come_yet_as_censored() -> None:
    random = np.random.default_rng(0)
    ages: list[list[float | None]] = [random.exponential(2.0, 400).tolist() for _ in range(10)]
    found = measured(ages, now_days=10.0)
    shares = {of.age_days: of.arrived for of in found.arrivals}
    # The plain share of answered rows by three days is too low, as those of the last days are too young.
    assert shares[3] == pytest.approx(1 - np.exp(-1.5), abs=0.03)
    assert shares[1] == pytest.approx(1 - np.exp(-0.5), abs=0.03)


def test_measure_maturity_calls_a_day_final_when_nearly_all_expected_answers_are_there() -> None:
    # A tenth of the rows is never answered; the others within two days.
    ages: list[list[float | None]] = [[None, *np.linspace(0.1, 2.0, 9)] for _ in range(8)]
    found = measured(ages, now_days=8.0)
    assert found.expected == pytest.approx(0.9, abs=0.02)
    finals = [of.final for of in found.periods if of.by == "day"]
    assert finals == [True] * 7 + [False]
    assert found.is_final("day", "2026-11-01") is True
    assert found.is_final("language", "en") is None


def test_measure_maturity_needs_times() -> None:
    rows = [{"id": "a", "purpose": "estimate", "inclusion_probability": 0.5, "ask": ["spam"]}]
    decisions = [Decision("a", "spam", 1.0, "ann", FIRST)]
    queue = Queue(queue_table(rows, ["spam"]), QueueRecord("probability", ("spam",)))
    assert measure_maturity(reviewed_sample(queue, decisions), decisions, ()) is None
