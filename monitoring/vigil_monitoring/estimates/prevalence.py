"""Prevalence of each label, in all traffic and in slices, by items and by exposure, from one reviewed sample."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vigil_monitoring.agreement.accuracy import AnswerAccuracy
from vigil_monitoring.estimates.label_answers import ANY, DomainEstimate, SampledRows
from vigil_monitoring.estimates.maturity import KnownAfter, Maturity
from vigil_monitoring.estimates.population import Population
from vigil_monitoring.estimates.reviewed_sample import ReviewedSample
from vigil_monitoring.survey.cells import Cell


@dataclass(frozen=True, slots=True)
class PrevalenceRow:
    """Prevalence of a label in a slice.

    Attributes:
        label: the label, or ``any label``.
        by: name of the slices; empty for all traffic.
        value: the slice.
        weight: ``items`` or ``exposure``.
        mass: decisions in the slice, or their exposure.
        found: the prevalence, and what is unknown.
        final: whether nearly all expected answers of a period are there; ``None`` for slices that are no periods.
    """

    label: str
    by: str
    value: str
    weight: str
    mass: float
    found: DomainEstimate
    final: bool | None


@dataclass(frozen=True, slots=True)
class PrevalenceResult:
    """Result of `vigil monitor prevalence`, kind ``prevalence``.

    Attributes:
        traffic: path of the traffic.
        queue: path of the queue.
        labels: labels that were reviewed.
        confidence: of each interval by itself.
        cluster: column of the clusters; ``None`` without.
        biased: whether the reviews are no probability sample.
        rows: estimates.
        maturity: how answers arrived; ``None`` where decisions have no time.
        notes: what a reader should know.
        curves: estimates by items as they were known at each age of the decisions.
    """

    traffic: str
    queue: str
    labels: tuple[str, ...]
    confidence: float
    cluster: str | None
    biased: bool
    rows: tuple[PrevalenceRow, ...]
    maturity: Maturity | None
    notes: tuple[str, ...]
    curves: tuple[KnownAfter, ...] = ()


def estimate_prevalence(
    reviewed: ReviewedSample,
    population: Population,
    accuracies: Mapping[str, AnswerAccuracy] | None = None,
    confidence: float = 0.95,
    maturity: Maturity | None = None,
) -> Iterator[PrevalenceRow]:
    """Yield the prevalence of each label, and of any label, in each slice, by items and, where known, by exposure.

    Args:
        reviewed: the sample.
        population: sums over the traffic.
        accuracies: accuracy of the targets by label, to correct for reviewers' errors; prevalence of any label is not corrected.
        confidence: of each interval.
        maturity: how answers arrived.
    """
    sampled = SampledRows(reviewed, population)
    for label in (*reviewed.labels, *((ANY,) if len(reviewed.labels) > 1 else ())):
        column = 1 + (len(population.labels) if label == ANY else population.labels.index(label))
        answers = sampled.of_label(label, accuracies or {}, confidence)
        for by, sums in population.sums.items():
            totals_WSK = sums.by_action.sum(axis=2)
            for place, value in sorted(enumerate(sums.codes.values), key=lambda pair: pair[1]):
                for w, weight in enumerate(population.weights):
                    mass_N = np.where(sampled.slices[by] == place, sampled.rows.masses_WN[w], 0.0)
                    cell = Cell(mass_N, float(totals_WSK[w, place, 0]), float(totals_WSK[w, place, column]))
                    if cell.mass > 0:
                        final = None if maturity is None else maturity.is_final(by, value)
                        yield PrevalenceRow(label, by, value, weight, cell.mass, answers.mean(cell), final)
