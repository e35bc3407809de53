"""Estimates of one target (a label, any label, the decisive label) from a reviewed sample, in any cell of the traffic."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.agreement.accuracy import AnswerAccuracy
from vigil_monitoring.estimates.population import ALL, Population, Rows, rows_of
from vigil_monitoring.estimates.reviewed_sample import ReviewedSample
from vigil_monitoring.estimates.slicing import Codes, slice_values, source_column
from vigil_monitoring.survey.cells import Answers, Cell
from vigil_monitoring.survey.estimators import Estimate, estimate_captured, estimate_captured_negatives, estimate_mean
from vigil_monitoring.survey.probability_sample import ProbabilitySample, answered

ANY = "any label"
"""Target that is positive if any label is."""

MAX_UNKNOWN_SHARE = 0.05
"""Share of unknown targets above which the estimates with all of them 0 and all of them 1 are stated."""


@dataclass(frozen=True, slots=True)
class DomainEstimate:
    """An estimate with what is unknown in its domain.

    Attributes:
        estimate: the estimate; answered rows stand for the unanswered ones of their stratum.
        unknown: share of the domain, by weight, whose drawn rows have no answer.
        bounds: the estimate if all unknown targets were 0 and if all were 1, in order; ``None`` up to 5 % of unknown ones.
    """

    estimate: Estimate
    unknown: float
    bounds: Interval | None


class LabelAnswers:
    """Answers about one target.

    Args:
        reviewed: the sample; cells have the masses of all its rows.
        targets_N: targets, NaN where unknown.
        predictions_N: predictions.
        accuracy: accuracy of the targets, to correct for reviewers' errors.
        confidence: of each interval.
    """

    def __init__(
        self,
        reviewed: ReviewedSample,
        targets_N: Floats,
        predictions_N: Floats,
        accuracy: AnswerAccuracy | None,
        confidence: float,
    ) -> None:
        self._biased, self._accuracy, self._confidence = reviewed.biased, accuracy, confidence
        self._targets_N, self._known_N = targets_N, ~np.isnan(targets_N)
        self._all = Answers(targets_N, reviewed.sample, None if reviewed.biased else predictions_N, reviewed.clusters_N)
        sample, _ = answered(reviewed.sample, self._known_N)
        self._answers = self._of(self._known_N, sample, targets_N)

    def mean(self, cell: Cell) -> DomainEstimate:
        """Estimate the share of a cell that is positive."""
        return self._estimate((cell,), lambda cells, *rest: estimate_mean(cells[0], *rest))

    def captured(self, inside: Cell, outside: Cell) -> DomainEstimate:
        """Estimate the share of the positives that is inside a cell."""
        return self._estimate((inside, outside), lambda cells, *rest: estimate_captured(cells[0], cells[1], *rest))

    def captured_negatives(self, inside: Cell, outside: Cell) -> DomainEstimate:
        """Estimate the share of the negatives that is inside a cell."""
        return self._estimate((inside, outside), lambda cells, *rest: estimate_captured_negatives(cells[0], cells[1], *rest))

    def _estimate(self, cells: tuple[Cell, ...], estimator: Callable[..., Estimate]) -> DomainEstimate:
        known = [cell._replace(mass_N=cell.mass_N[self._known_N]) for cell in cells]
        found = replace(estimator(known, self._answers, self._accuracy, self._confidence), biased=self._biased)
        weighted_N = np.stack([cell.mass_N for cell in cells]).sum(axis=0) * self._all.sample.weights_N
        whole = float(weighted_N.sum())
        unknown = float(weighted_N[~self._known_N].sum()) / whole if whole else 0.0
        if unknown <= MAX_UNKNOWN_SHARE or found.value is None:
            return DomainEstimate(found, unknown, None)
        bare = [cell._replace(predicted=None) for cell in cells]
        ends = [
            estimator(
                bare, self._all._replace(targets_N=np.where(self._known_N, self._targets_N, filled)), None, self._confidence
            )
            for filled in self._extremes(bare)
        ]
        values = [of.value for of in ends if of.value is not None]
        return DomainEstimate(found, unknown, Interval(min(values), max(values)) if len(values) == 2 else None)

    def _extremes(self, cells: list[Cell]) -> tuple[Floats | float, Floats | float]:
        """Return the values of unknown targets that make the share lowest and highest.

        Of a captured share, unknown targets count for it inside the cell and against it outside.
        """
        if len(cells) == 1:
            return 0.0, 1.0
        inside_N = (cells[0].mass_N > 0).astype(np.float64)
        return 1 - inside_N, inside_N

    def _of(self, rows_N: NDArray[np.bool_], sample: ProbabilitySample, targets_N: Floats) -> Answers:
        predictions_N, clusters_N = self._all.predictions_N, self._all.clusters_N
        return Answers(
            targets_N[rows_N],
            sample,
            None if predictions_N is None else predictions_N[rows_N],
            None if clusters_N is None else clusters_N[rows_N],
        )


class SampledRows:
    """Rows of a reviewed sample in the numbers of the population's slices, actions and labels.

    Args:
        reviewed: the sample.
        population: sums over the traffic.
    """

    def __init__(self, reviewed: ReviewedSample, population: Population) -> None:
        table = reviewed.queue.table
        self._reviewed, self._population = reviewed, population
        rows = rows_of(table, population.labels, population.actions, table["decisive"].combine_chunks())
        self.rows: Rows = rows._replace(masses_WN=rows.masses_WN * reviewed.in_period_N)
        for sums in population.sums.values():  # the queue may have actions that a part of its period lacks
            sums.make_room(len(sums.codes), len(population.actions))
        self.slices: Mapping[str, Codes] = {
            name: np.zeros(table.num_rows, np.int64)
            if name == ALL
            else sums.codes.known(slice_values(name, table["decisive" if name == "decisive" else source_column(name)]))
            for name, sums in population.sums.items()
        }

    def of_label(self, label: str, accuracies: Mapping[str, AnswerAccuracy], confidence: float) -> LabelAnswers:
        """Return the answers about a label, or about :data:`ANY`, which no measured accuracy corrects."""
        column = self._population.labels.index(label) if label != ANY else len(self._population.labels)
        return LabelAnswers(
            self._reviewed, self._targets(label), self.rows.probability_KN[column], accuracies.get(label), confidence
        )

    def of_decisive(self, confidence: float) -> LabelAnswers:
        """Return the answers about each row's decisive label; 0 where there is none, as such rows are in no cell of a reason."""
        assert self.rows.decisive_N is not None
        columns = np.stack([np.zeros(len(self.rows.decisive_N)), *map(self._targets, self._population.labels)])
        targets_N = columns[self.rows.decisive_N, np.arange(len(self.rows.decisive_N))]
        return LabelAnswers(self._reviewed, targets_N, self.rows.own_probability_N, None, confidence)

    def _targets(self, label: str) -> Floats:
        reviewed = self._reviewed
        if label in reviewed.labels:
            return reviewed.targets_NL[:, reviewed.labels.index(label)]
        if label != ANY:
            return np.full(len(reviewed.sample), np.nan)
        # Positive if one label is, whatever is unknown; negative only if all labels are known.
        known_N: Floats = np.nan_to_num(reviewed.targets_NL).max(axis=1)
        whole_N: Floats = reviewed.targets_NL.max(axis=1)
        return np.where(known_N >= 0.5, known_N, whole_N)
