"""Precision, recall and false-positive rate of actions on live traffic, and reviewers' load.

What counts as right for an action:

- ``precision``, ``recall`` and ``false_positive_rate`` of ``any label``: an item violates if any label is positive.
- ``precision`` of a label: of the decisions that the label decided (the first reason), the share where it is positive;
  ``precision`` of ``decisive label`` is that of all decisions together.
- ``recall`` of a label: of the items where it is positive, the share that got the action, whichever label decided.
- ``false_positive_rate`` of a label: of the items where it is negative, the share that got the action because of the label.

:data:`ANY_ACTION` is the policy as a whole: every action but ``allow`` and ``review``, which take nothing down.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_monitoring.agreement.accuracy import AnswerAccuracy
from vigil_monitoring.estimates.label_answers import ANY, DomainEstimate, LabelAnswers, SampledRows
from vigil_monitoring.estimates.maturity import KnownAfter, Maturity
from vigil_monitoring.estimates.population import Population, Sums
from vigil_monitoring.estimates.reviewed_sample import ReviewedSample
from vigil_monitoring.estimates.slicing import NONE
from vigil_monitoring.survey.cells import Cell

ANY_ACTION, DECISIVE = "any action", "decisive label"
PASSIVE_ACTIONS = ("allow", "review", NONE)
"""Actions that leave an item as it is."""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric of an action in a slice.

    Attributes:
        metric: ``precision``, ``recall`` or ``false_positive_rate``.
        action: the action, or ``any action``.
        label: the label, ``any label`` or ``decisive label``.
        by: name of the slices; empty for all traffic.
        value: the slice.
        weight: ``items`` or ``exposure``.
        mass: decisions with the action (of a label: because of the label), or their exposure.
        found: the metric, and what is unknown.
    """

    metric: str
    action: str
    label: str
    by: str
    value: str
    weight: str
    mass: float
    found: DomainEstimate


@dataclass(frozen=True, slots=True)
class LoadRow:
    """Decisions and reviews in a slice, counted in all traffic.

    Attributes:
        by: name of the slices; empty for all traffic.
        value: the slice.
        decisions: number of decisions.
        actions: number of decisions by action.
        reviews: decisions that were sent to reviewers.
        reviews_per_day: reviews over the days of the traffic.
        minutes_per_day: reviews per day times the mean minutes of an answered row; ``None`` where no minutes were measured.
    """

    by: str
    value: str
    decisions: int
    actions: dict[str, int]
    reviews: int
    reviews_per_day: float
    minutes_per_day: float | None


@dataclass(frozen=True, slots=True)
class MetricsResult:
    """Result of `vigil monitor metrics`, kind ``metrics``; attributes as in :class:`.prevalence.PrevalenceResult`.

    Attributes:
        policies: names and versions of the policies that decided.
        load: decisions and reviews.
        curves: metrics of any label as they were known at each age.
    """

    traffic: str
    queue: str
    labels: tuple[str, ...]
    confidence: float
    cluster: str | None
    biased: bool
    policies: tuple[str, ...]
    rows: tuple[MetricRow, ...]
    load: tuple[LoadRow, ...]
    maturity: Maturity | None
    notes: tuple[str, ...]
    curves: tuple[KnownAfter, ...] = ()


def estimate_metrics(
    reviewed: ReviewedSample,
    population: Population,
    accuracies: Mapping[str, AnswerAccuracy] | None = None,
    confidence: float = 0.95,
    labels: Sequence[str] | None = None,
) -> Iterator[MetricRow]:
    """Yield the metrics of each action and of the policy, for any label and each label, in each slice and weight.

    Args:
        reviewed: the sample.
        population: sums over the traffic, with decisive labels.
        accuracies: accuracy of the targets by label, to correct for reviewers' errors; metrics of any or the decisive label are
            not corrected.
        confidence: of each interval.
        labels: labels in addition to any label (default: all that were reviewed).
    """
    sampled = SampledRows(reviewed, population)
    named = (ANY, *(reviewed.labels if labels is None else labels))
    answers = {label: sampled.of_label(label, accuracies or {}, confidence) for label in named}
    decisive_answers = sampled.of_decisive(confidence)
    names = population.actions.values
    active = [name for name in sorted(names) if name not in ("allow", NONE)]
    actions = {name: np.array([other == name for other in names]) for name in active}
    if sum(name not in PASSIVE_ACTIONS for name in names) > 1:
        actions[ANY_ACTION] = np.array([name not in PASSIVE_ACTIONS for name in names])
    for by, sums in population.sums.items():
        for place, value in sorted(enumerate(sums.codes.values), key=lambda pair: pair[1]):
            for w, weight in enumerate(population.weights):
                cells = _Cells(sampled, population.labels, sums, sampled.slices[by] == place, place, w)
                for action, chosen_A in actions.items():
                    for metric, label, mass, found in _metrics(cells, chosen_A, answers, decisive_answers):
                        yield MetricRow(metric, action, label, by, value, weight, mass, found)


class _Cells:
    """Cells of one slice and weight."""

    def __init__(  # noqa: PLR0917 (a slice of a sample and of its population)
        self, sampled: SampledRows, labels: tuple[str, ...], sums: Sums, inside_N: NDArray[np.bool_], place: int, weight: int
    ) -> None:
        self._mass_N: Floats = np.where(inside_N, sampled.rows.masses_WN[weight], 0.0)
        self._action_N, self._decisive_N = sampled.rows.action_N, sampled.rows.decisive_N
        self._labels = labels
        self._by_action_AK, self._by_reason_ALK = sums.by_action[weight, place], sums.by_reason[weight, place]

    def of_action(self, chosen_A: NDArray[np.bool_], label: str) -> tuple[Cell, Cell]:
        """Return the cells of decisions with and without the actions, predicted by a label (or the highest probability)."""
        column = len(self._labels) + 1 if label == ANY else self._labels.index(label) + 1
        with_N = chosen_A[self._action_N]
        inside_K, all_K = self._by_action_AK[chosen_A].sum(axis=0), self._by_action_AK.sum(axis=0)
        inside = Cell(self._mass_N * with_N, float(inside_K[0]), float(inside_K[column]))
        outside = Cell(self._mass_N * ~with_N, float(all_K[0] - inside_K[0]), float(all_K[column] - inside_K[column]))
        return inside, outside

    def of_reason(self, chosen_A: NDArray[np.bool_], label: str) -> tuple[Cell, Cell]:
        """Return the cells of decisions with the actions because of a label (:data:`DECISIVE`: of any), and of all others.

        The second cell is predicted by the label; there is none for any.
        """
        assert self._decisive_N is not None
        chosen_L = np.zeros(len(self._labels) + 1, np.bool_)
        column = 0 if label == DECISIVE else self._labels.index(label) + 1
        chosen_L[1:] = True if label == DECISIVE else np.arange(1, len(chosen_L)) == column
        with_N = chosen_A[self._action_N] & chosen_L[self._decisive_N]
        inside_K, all_K = self._by_reason_ALK[chosen_A][:, chosen_L].sum(axis=(0, 1)), self._by_action_AK.sum(axis=0)
        inside = Cell(self._mass_N * with_N, float(inside_K[0]), float(inside_K[1]))
        outside = Cell(self._mass_N * ~with_N, float(all_K[0] - inside_K[0]), float(all_K[column] - inside_K[1]))
        return inside, outside


def _metrics(
    cells: _Cells, chosen_A: NDArray[np.bool_], answers: Mapping[str, LabelAnswers], decisive_answers: LabelAnswers
) -> Iterator[tuple[str, str, float, DomainEstimate]]:
    inside, outside = cells.of_action(chosen_A, ANY)
    if inside.mass <= 0:
        return
    yield "precision", ANY, inside.mass, answers[ANY].mean(inside)
    yield "recall", ANY, inside.mass, answers[ANY].captured(inside, outside)
    yield "false_positive_rate", ANY, inside.mass, answers[ANY].captured_negatives(inside, outside)
    because, _ = cells.of_reason(chosen_A, DECISIVE)
    if because.mass > 0:
        yield "precision", DECISIVE, because.mass, decisive_answers.mean(because)
    for label, of in answers.items():
        if label == ANY:
            continue
        because, others = cells.of_reason(chosen_A, label)
        inside, outside = cells.of_action(chosen_A, label)
        if because.mass > 0:
            yield "precision", label, because.mass, of.mean(because)
        yield "recall", label, inside.mass, of.captured(inside, outside)
        if because.mass > 0:
            yield "false_positive_rate", label, because.mass, of.captured_negatives(because, others)


def count_load(population: Population, days: int, minutes: float | None) -> Iterator[LoadRow]:
    """Yield the decisions and reviews of each slice.

    Args:
        population: sums over the traffic.
        days: number of days of the traffic.
        minutes: mean reviewers' minutes for a row.
    """
    for by, sums in population.sums.items():
        counts_SA = sums.by_action[0, :, :, 0]
        for place, value in sorted(enumerate(sums.codes.values), key=lambda pair: pair[1]):
            by_action = {name: round(float(n)) for name, n in zip(population.actions.values, counts_SA[place], strict=True) if n}
            per_day = float(sums.reviews[place]) / days
            yield LoadRow(
                by,
                value,
                round(float(counts_SA[place].sum())),
                by_action,
                round(float(sums.reviews[place])),
                per_day,
                None if minutes is None else per_day * minutes,
            )
