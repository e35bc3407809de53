"""Prevalence, precision, recall and false-positive rates from a probability sample of reviewed rows and scores of all rows.

All are shares of known or estimated masses (a mass is a number of rows, or their exposure) in cells of the traffic:

- a mean, such as prevalence in a slice or precision of an action: positives of a cell over its known mass;
- a captured share, such as recall: positives inside a cell over those inside and outside.

The total of a cell is its known mass times Hájek's mean of the reviewed rows, corrected by the difference of the predictions'
known total and its estimate from the same rows, times a tuned weight. This is the difference estimator of survey sampling
(Särndal, Swensson and Wretman 1992, chapter 6) and prediction-powered inference with power tuning (PPI++: Angelopoulos, Duchi and
Zrnic 2023, section 3): PPI++ writes it for simple random samples and predictions of separate unlabelled rows (:func:`ppi_mean`);
here the inclusion probabilities are unequal, and the predictions' totals are those of the whole population.

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
from numpy.typing import ArrayLike, NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.agreement.accuracy import AnswerAccuracy
from vigil_monitoring.estimates.expected_targets import DESIGN_WEIGHT, MODEL_DEGREES, targets_by_design, targets_by_predictions
from vigil_monitoring.estimates.probability_sample import (
    Codes,
    ProbabilitySample,
    Statistic,
    calibrated_total,
    cluster_variance,
    deviation_scales,
    deviations,
)
from vigil_monitoring.estimates.proportion_intervals import absence_bound, degrees_of_freedom, largest_ratios, proportion_interval

HAJEK, PPI, BOUND = "hajek", "ppi++", "exact bound"

ROUNDING_VARIANCE = 1e-20
"""Variances up to this are rounding errors: no share varies so little unless its strata have equal targets or all is reviewed."""


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


class Cell(NamedTuple):
    """A part of the population with known mass.

    Attributes:
        mass_N: mass of each reviewed row: 1 or its exposure; 0 outside the cell.
        mass: sum over the population.
        predicted: sum of mass times prediction over the population; ``None`` without predictions.
    """

    mass_N: Floats
    mass: float
    predicted: float | None = None


class Answers(NamedTuple):
    """Reviewed rows of a probability sample; all arrays are aligned.

    Attributes:
        targets_N: targets in [0, 1], all known.
        sample: how the rows were drawn.
        predictions_N: predictions, such as calibrated probabilities; any will do, better ones narrow the intervals more.
        clusters_N: cluster of each row (such as its author), from 0, negative for a row of its own. With clusters, an interval is
            for the process that produces the traffic; without, for the traffic of the period as it was.
    """

    targets_N: Floats
    sample: ProbabilitySample
    predictions_N: Floats | None = None
    clusters_N: Codes | None = None


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
    models = _models(answers, mass_N)
    found, noise = classical, _noise(classical, answers, mass_N, models)
    tuning = 0.0
    if counts.controls and share is not None and 0 < share < 1:
        tuning = _tuning(_influence(slopes, counts.positive), _influence(slopes, counts.controls), answers.sample)
    if tuning:
        powered = _shared(counts, tuning, correction)
        if powered is not None and all(
            _possible(cell, of, answers.targets_N) for cell, of in zip(cells, powered.counted, strict=True)
        ):
            less = _noise(powered, answers, mass_N, models)
            if less.variance <= noise.variance:
                found, noise = powered, less
    value = found.value
    variance = noise.variance + (0.0 if correction is None else correction.variance(cells, found.totals, found.slopes))
    if 0 < value < 1 and variance > ROUNDING_VARIANCE:
        method, effective = PPI if found.tuning else HAJEK, float(value * (1 - value) / variance)
        interval = proportion_interval(value, variance, noise.degrees, confidence)
    else:
        method, effective = BOUND, None
        interval = _bounds(cells, counts.positive, answers, confidence)
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


class _Share(NamedTuple):
    """A share of totals, linearized.

    Attributes:
        value: the share; corrected, it may be outside [0, 1].
        counted: positive mass of each cell, before the correction.
        totals: after it.
        slopes: derivative of the share by each of the totals.
        tuning: weight of the predictions.
        own_N: influence of the targets.
        moved_N: influence of the predictions times their weight, which is subtracted.
        per_target_N: derivative of a row's influence by its target.
    """

    value: float
    counted: list[float]
    totals: list[Statistic]
    slopes: list[float]
    tuning: float
    own_N: Floats
    moved_N: Floats
    per_target_N: Floats


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


def _shared(counts: _Counts, tuning: float, correction: "Correction | None") -> _Share | None:
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
    return _Share(value, before, totals, slopes, tuning, own_N, moved_N, np.asarray(slopes) @ counts.per_target_CN / gain)


def _per_target(cell: Cell, sample: ProbabilitySample) -> Floats:
    """Return the derivative of each row's influence on a cell's total by its target."""
    found = float((cell.mass_N * sample.weights_N).sum())
    return cell.mass_N * (cell.mass / found if found else 0.0)


class _Noise(NamedTuple):
    """Variance of a share, and its degrees of freedom."""

    variance: float
    degrees: float


def _noise(of: _Share, answers: Answers, mass_N: Floats, models: "Sequence[_Model]") -> _Noise:
    """Return the variance under the design, and of clusters.

    Few positives make the variance of a stratum noisy, and none makes it 0: it is blended with the one that models of the targets
    expect (:mod:`.expected_targets`). Without clusters only, since models take targets to be independent.

    Args:
        of: the share.
        answers: the sample, the predictions and the clusters.
        mass_N: mass of each row in the cells; 0 outside.
        models: models of the targets; none to take the variance from the targets alone.
    """
    sample, clusters_N = answers.sample, answers.clusters_N
    parts_N = deviations((of.own_N - of.moved_N)[:, None], sample)[:, 0] ** 2
    variance, degrees = float(parts_N.sum()), degrees_of_freedom(parts_N)
    if clusters_N is not None:
        return _Noise(variance + cluster_variance(of.own_N, sample, clusters_N), degrees)
    if variance <= ROUNDING_VARIANCE or not models:
        return _Noise(variance, degrees)
    targets_N, strata = answers.targets_N, int(sample.strata_N.max()) + 1
    # A geometric mean: where models disagree, they do by orders of magnitude.
    logs_HM = np.stack(
        [model.weight * np.log(_expected_variance(of, model.expected_N, answers, mass_N, strata)) for model in models], axis=1
    )
    modelled_H = np.exp(logs_HM.sum(axis=1) / sum(model.weight for model in models))
    influence_N = (1 - sample.probability_N) * (of.per_target_N * sample.weights_N) ** 2
    degrees_H = 2 * np.minimum(*(_effective_count(influence_N, kind_N, sample, strata) for kind_N in (targets_N, 1 - targets_N)))
    own_H = np.bincount(sample.strata_N, parts_N, strata)
    # Models of many positives that were found may not say much more than those do.
    modelled_H = np.minimum(modelled_H, own_H * largest_ratios(degrees_H))
    blended_H = (degrees_H * own_H + MODEL_DEGREES * modelled_H) / (degrees_H + MODEL_DEGREES)
    blended = float(blended_H.sum())
    return _Noise(blended, blended**2 / float((blended_H**2 / (degrees_H + MODEL_DEGREES)).sum()))


class _Model(NamedTuple):
    """Expected targets of all rows, and the weight of the model among others."""

    expected_N: Floats
    weight: float


def _models(answers: Answers, mass_N: Floats) -> list[_Model]:
    """Return the models of the targets inside the cells; none for clusters, or for targets that are all equal."""
    inside_N, targets_N = mass_N > 0, answers.targets_N
    targets_n, sizes_n = targets_N[inside_N], (mass_N * answers.sample.weights_N)[inside_N]
    if answers.clusters_N is not None or targets_n.min() == targets_n.max():
        return []
    fitted: list[tuple[Floats | None, float]] = [(targets_by_design(targets_n, sizes_n), DESIGN_WEIGHT)]
    if answers.predictions_N is not None:
        by_predictions = targets_by_predictions(targets_n, answers.predictions_N[inside_N], sizes_n)
        fitted.append((by_predictions, 1 - DESIGN_WEIGHT))
    models = []
    for found_n, weight in fitted:
        if found_n is not None:
            expected_N = targets_N.copy()
            expected_N[inside_N] = found_n
            models.append(_Model(expected_N, weight))
    return models


def _expected_variance(of: _Share, expected_N: Floats, answers: Answers, mass_N: Floats, strata: int) -> Floats:
    """Return the variance of each stratum's part that is expected if targets are drawn with their expectations, above 0."""
    sample = answers.sample
    centres_N = of.own_N + of.per_target_N * (expected_N - answers.targets_N) - of.moved_N
    between_N = deviations(centres_N[:, None], sample)[:, 0] ** 2
    drawn_N = np.where(mass_N > 0, expected_N * (1 - expected_N), 0.0)
    within_N = deviation_scales(sample) * (of.per_target_N * sample.weights_N) ** 2 * drawn_N
    summed_H: Floats = np.maximum(np.bincount(sample.strata_N, between_N + within_N, strata), ROUNDING_VARIANCE)
    return summed_H


def _effective_count(influence_N: Floats, kind_N: Floats, sample: ProbabilitySample, strata: int) -> Floats:
    """Return how many equal contributions each stratum's targets of a kind amount to (Satterthwaite 1946)."""
    sums_H, squares_H = (np.bincount(sample.strata_N, influence_N**power * kind_N, strata) for power in (1, 2))
    counts_H: Floats = np.where(squares_H > 0, sums_H**2 / np.where(squares_H > 0, squares_H, 1.0), 0.0)
    return counts_H


class Correction(NamedTuple):
    """Correction for reviewers' errors: true total = (total - (1 - specificity) x mass) / (sensitivity + specificity - 1).

    Rogan and Gladen (1978); the variances of sensitivity and specificity enter by the delta method.

    Attributes:
        specificity: share of negatives that are answered negative.
        gain: sensitivity + specificity - 1, above 0.
        variances: of sensitivity and of specificity.
    """

    specificity: float
    gain: float
    variances: tuple[float, float]

    @classmethod
    def by(cls, accuracy: AnswerAccuracy) -> "Correction":
        """Return the correction for measured sensitivity and specificity.

        A share of 1 in ``n`` items has a variance too: that of the share with half an item added to each side (Jeffreys).

        Raises:
            ValueError: if either is unknown, or answers are no better than chance.
        """
        sensitivity, specificity = accuracy.sensitivity, accuracy.specificity
        if sensitivity is None or specificity is None or sensitivity + specificity <= 1:
            raise ValueError("no correction without a sensitivity and a specificity whose sum is above 1")
        variances = [
            (share := (found * count + 0.5) / (count + 1)) * (1 - share) / count
            for found, count in ((sensitivity, accuracy.positives), (specificity, accuracy.negatives))
        ]
        return cls(specificity, sensitivity + specificity - 1, (variances[0], variances[1]))

    def share(self, apparent: float) -> float:
        """Return the true share of an apparent one, which may be outside [0, 1]."""
        return (apparent - (1 - self.specificity)) / self.gain

    def total(self, cell: Cell, apparent: Statistic) -> Statistic:
        """Return the true total of a cell."""
        return Statistic((apparent.value - (1 - self.specificity) * cell.mass) / self.gain, apparent.influence_N / self.gain)

    def variance(self, cells: Sequence[Cell], totals: Sequence[Statistic], slopes: Sequence[float]) -> float:
        """Return the variance that a share of corrected totals has from those of sensitivity and specificity."""
        by_sensitivity = sum(slope * -of.value / self.gain for slope, of in zip(slopes, totals, strict=True))
        by_specificity = sum(
            slope * (cell.mass - of.value) / self.gain for slope, cell, of in zip(slopes, cells, totals, strict=True)
        )
        return self.variances[0] * by_sensitivity**2 + self.variances[1] * by_specificity**2


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


def _bounds(cells: Sequence[Cell], totals: Sequence[Statistic], answers: Answers, confidence: float) -> Interval:
    """Return an interval where no variance can be estimated, as the sample has no positives, or nothing else."""
    if len(cells) == 1:
        return _cell_bounds(cells[0], totals[0], answers, confidence, confidence)
    # An end of a captured share errs if one of two ends does: half of the error each.
    ends = [
        _cell_bounds(cell, of, answers, confidence, 0.5 + confidence / 2) if cell.mass else Interval(0.0, 0.0)
        for cell, of in zip(cells, totals, strict=True)
    ]
    low_in, high_in = (end * cells[0].mass for end in ends[0])
    low_out, high_out = (end * cells[1].mass for end in ends[1])
    return Interval(
        low_in / (low_in + high_out) if low_in > 0 else 0.0,
        high_in / (high_in + low_out) if low_out > 0 else 1.0,
    )


def _cell_bounds(cell: Cell, of: Statistic, answers: Answers, confidence: float, one_sided: float) -> Interval:
    """Return the interval of a cell's mean: from its variance, or the bound where the targets of each stratum are equal."""
    mean, sample = of.value / cell.mass, answers.sample
    parts_U = deviations(of.influence_N[:, None] / cell.mass, sample)[:, 0] ** 2
    if 0 < mean < 1 and parts_U.sum() > ROUNDING_VARIANCE:
        return proportion_interval(mean, float(parts_U.sum()), degrees_of_freedom(parts_U), confidence)
    inside_N = cell.mass_N > 0
    represented_N = (cell.mass_N * sample.weights_N)[inside_N]
    if (together_N := answers.clusters_N) is not None:
        alone_N = together_N.max(initial=0) + 1 + np.arange(len(together_N))
        cluster_N = np.unique(np.where(together_N < 0, alone_N, together_N)[inside_N], return_inverse=True)[1]
        represented_N = np.bincount(cluster_N, represented_N).astype(np.float64)
    bound = absence_bound(float(represented_N.max()), cell.mass, cell.mass - float(cell.mass_N.sum()), one_sided)
    return Interval(max(mean - bound, 0.0), min(mean + bound, 1.0))


class PredictionPoweredMean(NamedTuple):
    """A mean by PPI++ from a simple random sample.

    Attributes:
        value: the mean.
        interval: Wald's interval.
        tuning: weight of the predictions.
    """

    value: float
    interval: Interval
    tuning: float


def ppi_mean(
    targets_n: ArrayLike, predictions_n: ArrayLike, unlabelled_N: ArrayLike, confidence: float = 0.95, tuning: float | None = None
) -> PredictionPoweredMean:
    """Return the mean by PPI++ in its published form: a simple random sample, and predictions of separate unlabelled rows.

    Args:
        targets_n: targets of the labelled rows.
        predictions_n: predictions of the same rows.
        unlabelled_N: predictions of the unlabelled rows, drawn from the same distribution.
        confidence: two-sided.
        tuning: weight of the predictions (default: the one that minimizes the variance, within [0, 1]).

    The value is that of Angelopoulos, Duchi and Zrnic (2023), equation 3, and the weight that of section 3, example 1. For
    traffic of known size use :func:`estimate_mean`, whose interval also holds for few positives and unequal probabilities.
    """
    targets, predictions, unlabelled = (np.asarray(of, np.float64) for of in (targets_n, predictions_n, unlabelled_N))
    labelled, others = len(targets), len(unlabelled)
    if tuning is None:
        covariance = float(((targets - targets.mean()) * (predictions - predictions.mean())).mean())
        spread = float(np.concatenate([predictions, unlabelled]).var(ddof=1)) * (1 + labelled / others)
        tuning = min(max(covariance / spread, 0.0), 1.0) if spread > 0 else 0.0
    value = tuning * float(unlabelled.mean()) + float((targets - tuning * predictions).mean())
    variance = tuning**2 * float(unlabelled.var()) / others + float((targets - tuning * predictions).var()) / labelled
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * variance**0.5
    return PredictionPoweredMean(value, Interval(value - half, value + half), tuning)
