"""Answers that arrive late: how many have arrived by which age of the traffic, and which periods are final.

Answers about rows that are not answered yet are right-censored at the last decision; Kaplan and Meier's estimator (1958) gives
the share that arrives by each age. A period is final once 95 % of the answers that it will ever get are there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from vigil_data.reviews.decisions import Decision
from vigil_evaluation.metrics import Floats
from vigil_monitoring.estimates.label_answers import DomainEstimate
from vigil_monitoring.estimates.reviewed_sample import ReviewedSample
from vigil_monitoring.estimates.slicing import TIME_SLICES, slice_values

FINAL_SHARE = 0.95
"""Share of the expected answers with which a period is final."""

AGES_DAYS = (0.25, 0.5, 1, 2, 3, 5, 7, 10, 14, 21, 28, 42, 56, 90, 120, 180, 365)
DAY_MICROSECONDS = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """Share of the drawn rows that are answered by an age of the traffic.

    Attributes:
        age_days: time from the decision to its first answer.
        arrived: share of the rows answered by then ("cannot tell" is an arrival).
    """

    age_days: float
    arrived: float


@dataclass(frozen=True, slots=True)
class PeriodMaturity:
    """Answers of the rows of one period.

    Attributes:
        by: ``day``, ``week`` or ``month``; empty for the whole period.
        value: which of them.
        rows: drawn rows.
        answered: those with an answer.
        final: whether 95 % of the answers that are expected are there.
    """

    by: str
    value: str
    rows: int
    answered: int
    final: bool


@dataclass(frozen=True, slots=True)
class KnownAfter:
    """An estimate of a period as it was known when all its decisions had an age, from :mod:`.maturity_curves`.

    Attributes:
        metric: ``prevalence``, ``precision``, ``recall`` or ``false_positive_rate``.
        name: the label; of an online metric, the action.
        by: ``day``, ``week`` or ``month``; empty for the whole period.
        value: which of them.
        age_days: age; of each decision, the answers until then count.
        found: the estimate, by items.
    """

    metric: str
    name: str
    by: str
    value: str
    age_days: float
    found: DomainEstimate


@dataclass(frozen=True, slots=True)
class Maturity:
    """How answers arrive.

    Attributes:
        last_review: time of the last decision, ISO 8601.
        expected: share of the rows that is expected to be answered in the end.
        arrivals: share that is answered by each age.
        periods: the whole period, and each slice of time.
    """

    last_review: str
    expected: float
    arrivals: tuple[Arrival, ...]
    periods: tuple[PeriodMaturity, ...]

    def is_final(self, by: str, value: str) -> bool | None:
        """Return whether a slice of time is final; ``None`` for other slices."""
        found = {(of.by, of.value): of.final for of in self.periods}
        return found.get((by, value))


def measure_maturity(reviewed: ReviewedSample, decisions: Sequence[Decision], by: Sequence[str]) -> Maturity | None:
    """Measure how answers arrived.

    Args:
        reviewed: the sample.
        decisions: all decisions about it.
        by: slices; those of time become periods.

    Returns:
        ``None`` where the rows of the queue have no time.
    """
    ages_N, now_days_N = answer_ages(reviewed, decisions)
    if ages_N is None or now_days_N is None or not len(ages_N):
        return None
    answered_N = ~np.isnan(ages_N)
    durations_N = np.where(answered_N, ages_N, now_days_N)
    grid = [age for age in AGES_DAYS if age < durations_N.max()] + [float(np.ceil(durations_N.max() * 4) / 4)]
    arrived = [1 - _surviving(durations_N, answered_N, age) for age in grid]
    expected = arrived[-1]
    periods = [_period("", "all", answered_N, expected)]
    for name in (name for name in by if name in TIME_SLICES):
        values_N = slice_values(name, reviewed.queue.table["time"]).to_numpy(zero_copy_only=False)
        periods += [_period(name, value, answered_N[values_N == value], expected) for value in sorted(set(values_N.tolist()))]
    last = max(of.time for of in decisions)
    return Maturity(
        last.astimezone(UTC).isoformat(timespec="seconds"),
        expected,
        tuple(Arrival(age, share) for age, share in zip(grid, arrived, strict=True)),
        tuple(periods),
    )


def answer_ages(reviewed: ReviewedSample, decisions: Sequence[Decision]) -> tuple[Floats | None, Floats | None]:
    """Return each row's age in days at its first answer (NaN without one) and at the last decision; ``None`` without times."""
    times = reviewed.queue.table["time"].combine_chunks()
    if times.null_count or not decisions:
        return None, None
    first: dict[str, datetime] = {}
    for of in decisions:
        if of.id not in first or of.time < first[of.id]:
            first[of.id] = of.time
    decided_N = times.cast(pa.int64()).to_numpy() / DAY_MICROSECONDS
    last = max(of.time for of in decisions).timestamp() / 86_400
    answers = [first.get(id_) for id_ in reviewed.queue.table["id"].to_pylist()]
    answered_N = np.array([np.nan if moment is None else moment.timestamp() / 86_400 for moment in answers])
    # An answer from before the decision is about the same item at an earlier decision.
    return np.maximum(answered_N - decided_N, 0.0), np.maximum(last - decided_N, 0.0)


def _surviving(durations_N: Floats, answered_N: np.ndarray, age: float) -> float:
    """Return the share of rows without an answer by an age (Kaplan and Meier 1958)."""
    order = np.lexsort((~answered_N, durations_N))  # answers before censoring at the same age
    at_risk = len(durations_N) - np.arange(len(durations_N))
    steps = np.where(answered_N[order], 1 - 1 / at_risk, 1.0)
    return float(np.prod(steps[durations_N[order] <= age]))


def _period(by: str, value: str, answered_N: np.ndarray, expected: float) -> PeriodMaturity:
    share = float(answered_N.mean()) if len(answered_N) else 0.0
    final = bool(len(answered_N)) and share >= FINAL_SHARE * expected
    return PeriodMaturity(by, value, len(answered_N), int(answered_N.sum()), final)
