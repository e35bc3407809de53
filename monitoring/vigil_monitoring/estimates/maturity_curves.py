"""Maturity curves: the estimates of a period as they were known when its decisions had an age.

An estimate that is not final takes missing answers to be as those that are there. Items that wait long for an answer may differ;
the curves of older periods show by how much: a level curve says that young estimates can be relied on, a rising one that they are
low.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vigil_data.reviews.decisions import Decision
from vigil_evaluation.metrics import Floats
from vigil_monitoring.estimates.inputs import EstimationInputs
from vigil_monitoring.estimates.label_answers import ANY
from vigil_monitoring.estimates.maturity import DAY_MICROSECONDS, KnownAfter, answer_ages
from vigil_monitoring.estimates.online_metrics import estimate_metrics
from vigil_monitoring.estimates.population import ALL, Population
from vigil_monitoring.estimates.prevalence import estimate_prevalence
from vigil_monitoring.estimates.reviewed_sample import ReviewedSample
from vigil_monitoring.estimates.slicing import TIME_SLICES, slice_values
from vigil_monitoring.reviews.answers import review_targets

AGES_DAYS = (1, 2, 3, 7, 14, 28, 56, 90)


def prevalence_curves(of: EstimationInputs, confidence: float = 0.95) -> Iterator[KnownAfter]:
    """Yield the prevalence of each label in each period, by items, as it was known at each age.

    Args:
        of: what the estimates start from; periods are all of it, and its slices of time.
        confidence: of each interval.
    """
    for seen in _snapshots(of):
        for row in estimate_prevalence(seen.reviewed, seen.population, of.accuracies, confidence):
            if (row.by, row.value) in seen.periods and row.found.estimate.value is not None:
                yield KnownAfter("prevalence", row.label, row.by, row.value, seen.age_days, row.found)


def metric_curves(of: EstimationInputs, confidence: float = 0.95) -> Iterator[KnownAfter]:
    """Yield the metrics of each action for any label in each period, by items, as they were known at each age.

    See :func:`prevalence_curves` for the arguments; decisive labels have been read.
    """
    for seen in _snapshots(of):
        for row in estimate_metrics(seen.reviewed, seen.population, of.accuracies, confidence, labels=()):
            if row.label == ANY and (row.by, row.value) in seen.periods and row.found.estimate.value is not None:
                yield KnownAfter(row.metric, row.action, row.by, row.value, seen.age_days, row.found)


class _Snapshot(NamedTuple):
    """What was known at an age of the decisions.

    Attributes:
        age_days: the age.
        reviewed: the sample with the targets that the answers until then decide.
        population: sums by items over all traffic and slices of time.
        periods: slices whose drawn decisions have all reached the age.
    """

    age_days: float
    reviewed: ReviewedSample
    population: Population
    periods: frozenset[tuple[str, str]]


def _snapshots(of: EstimationInputs) -> Iterator[_Snapshot]:
    """Yield what was known at each age at which answers were still missing; nothing where decisions have no time."""
    reviewed, population = of.reviewed, of.population
    _, now_days_N = answer_ages(reviewed, of.decisions)
    if now_days_N is None:
        return
    names = [name for name in population.sums if name == ALL or name in TIME_SLICES]
    items = population._replace(weights=population.weights[:1], sums={name: population.sums[name] for name in names})
    youngest = _youngest(reviewed, names, now_days_N)
    aged = [(_age(decision, decided), decision) for decision, decided in _with_time(reviewed, of.decisions)]
    last = max((age for age, _ in aged), default=0.0)
    for age_days in AGES_DAYS:
        periods = frozenset(period for period, age in youngest.items() if age >= age_days)
        if age_days >= last or not periods:
            return
        known = [decision for age, decision in aged if age <= age_days]
        targets_NL = review_targets(reviewed.queue, known, reviewed.labels).value_NL
        yield _Snapshot(age_days, replace(reviewed, targets_NL=targets_NL), items, periods)


def _youngest(reviewed: ReviewedSample, names: Sequence[str], now_days_N: Floats) -> dict[tuple[str, str], float]:
    """Return the age that the youngest drawn decision of each period has at the last answer."""
    found: dict[tuple[str, str], float] = {}
    for name in names:
        times = reviewed.queue.table["time"]
        values = ["all"] * len(now_days_N) if name == ALL else slice_values(name, times).to_pylist()
        for value, age, inside in zip(values, now_days_N.tolist(), reviewed.in_period_N.tolist(), strict=True):
            if inside:
                found[name, value] = min(age, found.get((name, value), np.inf))
    return found


def _with_time(reviewed: ReviewedSample, decisions: Sequence[Decision]) -> Iterator[tuple[Decision, float]]:
    """Yield reviewers' decisions about the sample, with the days since 1970 of the row's decision (of several, the first)."""
    decided: dict[str, float] = {}
    micros_N = reviewed.queue.table["time"].cast("int64").to_numpy()
    for id_, days in zip(reviewed.queue.table["id"].to_pylist(), (micros_N / DAY_MICROSECONDS).tolist(), strict=True):
        decided[id_] = min(days, decided.get(id_, np.inf))
    return ((decision, decided[decision.id]) for decision in decisions if decision.id in decided)


def _age(decision: Decision, decided: float) -> float:
    return max(decision.time.timestamp() / 86_400 - decided, 0.0)
