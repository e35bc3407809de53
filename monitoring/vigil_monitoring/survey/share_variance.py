"""Variance of a share under the sample's design, blended with the one that models of the targets expect."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vigil_evaluation.metrics import Floats
from vigil_monitoring.survey.cells import Answers, LinearizedShare
from vigil_monitoring.survey.expected_targets import DESIGN_WEIGHT, MODEL_DEGREES, targets_by_design, targets_by_predictions
from vigil_monitoring.survey.probability_sample import ProbabilitySample, cluster_variance, deviation_scales, deviations
from vigil_monitoring.survey.proportion_intervals import degrees_of_freedom, largest_ratios

ROUNDING_VARIANCE = 1e-20
"""Variances up to this are rounding errors: no share varies so little unless its strata have equal targets or all is reviewed."""


class ShareVariance(NamedTuple):
    """Variance of a share, and its degrees of freedom."""

    variance: float
    degrees: float


def share_variance(of: LinearizedShare, answers: Answers, mass_N: Floats, models: "Sequence[TargetModel]") -> ShareVariance:
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
        return ShareVariance(variance + cluster_variance(of.own_N, sample, clusters_N), degrees)
    if variance <= ROUNDING_VARIANCE or not models:
        return ShareVariance(variance, degrees)
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
    return ShareVariance(blended, blended**2 / float((blended_H**2 / (degrees_H + MODEL_DEGREES)).sum()))


class TargetModel(NamedTuple):
    """Expected targets of all rows, and the weight of the model among others."""

    expected_N: Floats
    weight: float


def target_models(answers: Answers, mass_N: Floats) -> list[TargetModel]:
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
            models.append(TargetModel(expected_N, weight))
    return models


def _expected_variance(of: LinearizedShare, expected_N: Floats, answers: Answers, mass_N: Floats, strata: int) -> Floats:
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
