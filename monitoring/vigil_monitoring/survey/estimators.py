"""Prevalence, precision, recall and false-positive rates from a probability sample of reviewed rows and scores of all rows.

All are shares of known or estimated masses (a mass is a number of rows, or their exposure) in cells of the traffic:

- a mean, such as prevalence in a slice or precision of an action: positives of a cell over its known mass;
- a captured share, such as recall: positives inside a cell over those inside and outside.

The total of a cell is its known mass times Hájek's mean of the reviewed rows, corrected by the difference of the predictions'
known total and its estimate from the same rows, times a tuned weight. This is the difference estimator of survey sampling
(Särndal, Swensson and Wretman 1992, chapter 6) and prediction-powered inference with power tuning (PPI++: Angelopoulos, Duchi and
Zrnic 2023, section 3): PPI++ writes it for simple random samples and predictions of separate unlabelled rows
(:mod:`.prediction_powered`); here the inclusion probabilities are unequal, and the predictions' totals are of the population.

Example:
    >>> everything = Cell(np.ones(500), mass=1e6, predicted=1924.7)
    >>> estimate_mean(everything, Answers(targets_N, ProbabilitySample(probability_N, strata_N), predictions_N))
    Estimate(value=0.0021, interval=Interval(low=0.0011, high=0.0036), method='ppi++', reviewed=500, positives=13, …)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.agreement.accuracy import AnswerAccuracy
from vigil_monitoring.survey.cells import Answers, Cell, LinearizedShare
from vigil_monitoring.survey.error_correction import Correction
from vigil_monitoring.survey.exact_bounds import exact_bounds
from vigil_monitoring.survey.probability_sample import ProbabilitySample, Statistic, calibrated_total, deviations
from vigil_monitoring.survey.proportion_intervals import proportion_interval
from vigil_monitoring.survey.share_variance import ROUNDING_VARIANCE, share_variance, target_models

HAJEK, PPI, BOUND = "hajek", "ppi++", "exact bound"


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated share.

    Attributes:
        value: the share; ``None`` where no reviewed row is in its domain, or a recall without any positive.
        interval: its interval; ``None`` without a value.
        method: ``hajek``; ``ppi++`` where predictions narrow it; ``exact bound`` where no row, or every row, is positive.
        reviewed: reviewed rows in the domain.
        positives: those of them whose target is at least 0.5 (for a false-positive rate: below).
        effective: number of rows of a simple random sample that would give the same variance; ``None`` without a variance.
        tuning: weight of the predictions in [0, 1]; 0 for the classical estimate.
        corrected: whether it is corrected for reviewers' errors (Rogan and Gladen 1978).
        biased: whether the reviewed rows are no probability sample, so that neither value nor interval can be relied on.
    """

    value: float | None
    interval: Interval | None
    method: str
    reviewed: int
    positives: int
    effective: float | None
    tuning: float = 0.0
    corrected: bool = False
    biased: bool = False


def estimate_mean(cell: Cell, answers: Answers, accuracy: AnswerAccuracy | None = None, confidence: float = 0.95) -> Estimate:
    """Estimate the share of a cell's mass that is positive: prevalence in a slice, precision of an action.

    Args:
        cell: the cell.
        answers: reviewed rows.
        accuracy: sensitivity and specificity of the targets, to correct for reviewers' errors (Rogan and Gladen 1978).
        confidence: two-sided.
    """
    return _estimate((cell,), answers, accuracy, confidence)


def estimate_captured(
    inside: Cell, outside: Cell, answers: Answers, accuracy: AnswerAccuracy | None = None, confidence: float = 0.95
) -> Estimate:
    """Estimate the share of the positive mass that lies inside a cell, such as recall of an action.

    Args:
        inside: the cell, such as rows that got the action.
        outside: the rest of the domain; the cells share no row.
        answers: reviewed rows.
        accuracy: see :func:`estimate_mean`.
        confidence: two-sided.
    """
    return _estimate((inside, outside), answers, accuracy, confidence)


def estimate_captured_negatives(
    inside: Cell, outside: Cell, answers: Answers, accuracy: AnswerAccuracy | None = None, confidence: float = 0.95
) -> Estimate:
    """Estimate the share of the negative mass that lies inside a cell, such as the false-positive rate of an action.

    ``positives`` of the estimate counts negative targets. See :func:`estimate_captured` for the arguments.
    """
    negative = answers._replace(
        targets_N=1 - answers.targets_N,
        predictions_N=None if answers.predictions_N is None else 1 - answers.predictions_N,
    )
    cells = [
        cell if cell.predicted is None else cell._replace(predicted=cell.mass - cell.predicted) for cell in (inside, outside)
    ]
    return _estimate(cells, negative, None if accuracy is None else _flipped(accuracy), confidence)


def _flipped(accuracy: AnswerAccuracy) -> AnswerAccuracy:
    """Return the accuracy of the same answers with negatives as the class that is found, for targets ``1 - y``."""
    return replace(
        accuracy,
        sensitivity=accuracy.specificity,
        sensitivity_interval=accuracy.specificity_interval,
        positives=accuracy.negatives,
        specificity=accuracy.sensitivity,
        specificity_interval=accuracy.sensitivity_interval,
        negatives=accuracy.positives,
    )


def _estimate(cells: Sequence[Cell], answers: Answers, accuracy: AnswerAccuracy | None, confidence: float) -> Estimate:
    in_cells_CN = np.stack([cell.mass_N > 0 for cell in cells])
    reviewed_N: NDArray[np.bool_] = np.logical_or.reduce(in_cells_CN)
    reviewed, positives = int(reviewed_N.sum()), int((reviewed_N & (answers.targets_N >= 0.5)).sum())
    nothing = Estimate(None, None, HAJEK, reviewed, positives, None, corrected=accuracy is not None)
    if not reviewed or any(cell.mass > 0 and not inside_N.any() for cell, inside_N in zip(cells, in_cells_CN, strict=True)):
        return nothing
    counts = _Counts(
        cells,
        [calibrated_total(answers.targets_N, cell.mass_N, cell.mass, answers.sample) for cell in cells],
        _controls(cells, answers),
        np.stack([_per_target(cell, answers.sample) for cell in cells]),
    )
    correction = None if accuracy is None else Correction.by(accuracy)
    classical = _shared(counts, 0.0, correction)
    if classical is None:
        return nothing
    share, slopes = _share(cells, counts.positive)
    mass_N: Floats = np.sum([cell.mass_N for cell in cells], axis=0)
    models = target_models(answers, mass_N)
    found, noise = classical, share_variance(classical, answers, mass_N, models)
    tuning = 0.0
    if counts.controls and share is not None and 0 < share < 1:
        tuning = _tuning(_influence(slopes, counts.positive), _influence(slopes, counts.controls), answers.sample)
    if tuning:
        powered = _shared(counts, tuning, correction)
        if powered is not None and all(
            _possible(cell, of, answers.targets_N) for cell, of in zip(cells, powered.counted, strict=True)
        ):
            less = share_variance(powered, answers, mass_N, models)
            if less.variance <= noise.variance:
                found, noise = powered, less
    value = found.value
    variance = noise.variance + (0.0 if correction is None else correction.variance(cells, found.totals, found.slopes))
    if 0 < value < 1 and variance > ROUNDING_VARIANCE:
        method, effective = PPI if found.tuning else HAJEK, float(value * (1 - value) / variance)
        interval = proportion_interval(value, variance, noise.degrees, confidence)
    else:
        method, effective = BOUND, None
        interval = exact_bounds(cells, counts.positive, answers, confidence)
        if correction is not None:
            half = NormalDist().inv_cdf(0.5 + confidence / 2) * variance**0.5
            low, high = (correction.share(end) for end in interval) if len(cells) == 1 else interval
            interval = Interval(min(low, value - half), max(high, value + half))
    return replace(
        nothing,
        value=_clipped(value),
        interval=Interval(*map(_clipped, interval)),
        method=method,
        effective=effective,
        tuning=found.tuning,
    )


def _clipped(share: float) -> float:
    return min(max(float(share), 0.0), 1.0)


class _Counts(NamedTuple):
    """Totals of cells, linearized.

    Attributes:
        cells: the cells.
        positive: their positive mass.
        controls: their estimated less their known predicted mass; none without predictions.
        per_target_CN: derivative of a row's influence on each cell's total by its target.
    """

    cells: Sequence[Cell]
    positive: Sequence[Statistic]
    controls: Sequence[Statistic]
    per_target_CN: Floats


def _shared(counts: _Counts, tuning: float, correction: Correction | None) -> LinearizedShare | None:
    """Return the share at a weight of the predictions; ``None`` if there is nothing to divide by."""
    gain, cells, controls = 1.0 if correction is None else correction.gain, counts.cells, counts.controls
    totals = list(counts.positive)
    if tuning:
        totals = [Statistic(of.value - tuning * by.value, of.influence_N) for of, by in zip(totals, controls, strict=True)]
    before = [of.value for of in totals]
    if correction is not None:
        totals = [correction.total(cell, of) for cell, of in zip(cells, totals, strict=True)]
    value, slopes = _share(cells, totals)
    if value is None:
        return None
    own_N = _influence(slopes, totals)
    moved_N = tuning / gain * _influence(slopes, controls) if tuning else np.zeros(len(own_N))
    return LinearizedShare(
        value, before, totals, slopes, tuning, own_N, moved_N, np.asarray(slopes) @ counts.per_target_CN / gain
    )


def _per_target(cell: Cell, sample: ProbabilitySample) -> Floats:
    """Return the derivative of each row's influence on a cell's total by its target."""
    found = float((cell.mass_N * sample.weights_N).sum())
    return cell.mass_N * (cell.mass / found if found else 0.0)


def _share(cells: Sequence[Cell], totals: Sequence[Statistic]) -> tuple[float | None, list[float]]:
    """Return a mean or a captured share, and its derivative by each total; ``None`` if there is nothing to divide by."""
    if len(cells) == 1:
        return totals[0].value / cells[0].mass, [1 / cells[0].mass]
    whole = totals[0].value + totals[1].value
    if whole <= 0:
        return None, []
    share = totals[0].value / whole
    return share, [(1 - share) / whole, -share / whole]


def _influence(slopes: Sequence[float], totals: Sequence[Statistic]) -> Floats:
    summed_N: Floats = np.stack([slope * of.influence_N for slope, of in zip(slopes, totals, strict=True)]).sum(axis=0)
    return summed_N


def _controls(cells: Sequence[Cell], answers: Answers) -> list[Statistic]:
    """Return the estimated less the known predicted total of each cell, whose expectation is 0; none without predictions."""
    made: list[Statistic] = []
    for cell in cells:
        if answers.predictions_N is None or cell.predicted is None:
            return []
        found = calibrated_total(answers.predictions_N, cell.mass_N, cell.mass, answers.sample)
        made.append(Statistic(found.value - cell.predicted, found.influence_N))
    return made


def _tuning(target_N: Floats, prediction_N: Floats, sample: ProbabilitySample) -> float:
    """Return the weight of the predictions that minimizes the variance, shrunk by its own noise, in [0, 1].

    The least squares coefficient of PPI++ (Angelopoulos et al. 2023, section 3, example 1), under the design's covariance. It is
    multiplied by the positive part of ``1 - (standard error / coefficient) ** 2``, as in James and Stein (1961), so that useless
    predictions get no weight.
    """
    apart_UK = deviations(np.stack([target_N, prediction_N], axis=1), sample)
    power = float((apart_UK[:, 1] ** 2).sum())
    if power <= 0:
        return 0.0
    best = float((apart_UK[:, 0] * apart_UK[:, 1]).sum()) / power
    if best <= 0:
        return 0.0
    noise = float((apart_UK[:, 1] ** 2 * (apart_UK[:, 0] - best * apart_UK[:, 1]) ** 2).sum()) / power**2
    return min(best * max(1 - noise / best**2, 0.0), 1.0)


def _possible(cell: Cell, positive: float, targets_N: Floats) -> bool:
    """Return whether a total of positive mass is between the mass that was found and all but the negative mass found.

    One outside is noise; the classical total is inside.
    """
    found = float((cell.mass_N * targets_N).sum())
    return found <= positive <= cell.mass - (float(cell.mass_N.sum()) - found)
