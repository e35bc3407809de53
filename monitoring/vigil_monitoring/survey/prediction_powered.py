"""Prediction-powered inference as published, for a simple random sample."""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vigil_evaluation.stats.intervals import Interval


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
