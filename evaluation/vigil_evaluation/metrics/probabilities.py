"""Metrics of probabilities: Brier score, log loss, reliability and calibration error."""

from math import erf, exp, pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vigil_evaluation.metrics.arrays import Floats, Integers, known_items

RELIABILITY_BINS = 10

EPSILON = float(np.finfo(np.float64).eps)
"""Distance from 0 and 1 at which the log loss clips probabilities."""


class Reliability(NamedTuple):
    """Reliability diagram: items binned by predicted probability, without empty bins.

    Attributes:
        probability: mean predicted probability of each bin, ``[B]``.
        target: mean target of each bin, ``[B]``.
        items: number of items in each bin, ``[B]``.
    """

    probability: Floats
    target: Floats
    items: Integers


def brier(targets_N: ArrayLike, probabilities_N: ArrayLike) -> float | None:
    """Return the Brier score: mean squared difference of probability and target (Brier 1950, binary form).

    Args:
        targets_N: in [0, 1], NaN for unknown; soft targets are compared as they are.
        probabilities_N: in [0, 1].

    Returns:
        ``None`` if no target is known.
    """
    targets, probabilities = known_items(targets_N, probabilities_N)
    return float(np.mean((probabilities - targets) ** 2)) if len(targets) else None


def log_loss(targets_N: ArrayLike, probabilities_N: ArrayLike) -> float | None:
    """Return the log loss: mean negative log-likelihood of the targets, in nats.

    Args:
        targets_N: in [0, 1], NaN for unknown; soft targets are compared as they are (cross-entropy).
        probabilities_N: in [0, 1]; clipped by the float64 epsilon as in scikit-learn, so that one certain mistake costs 36 nats
            rather than infinity.

    Returns:
        ``None`` if no target is known.
    """
    targets, probabilities = known_items(targets_N, probabilities_N)
    return float(np.mean(log_losses(targets, probabilities))) if len(targets) else None


def log_losses(targets: Floats, probabilities: Floats) -> Floats:
    """Return the log loss of each pair; NaN where the target is NaN."""
    kept = np.clip(probabilities, EPSILON, 1 - EPSILON)
    losses: Floats = -(targets * np.log(kept) + (1 - targets) * np.log(1 - kept))
    return losses


def mass_bins(probabilities_N: Floats, bins: int = RELIABILITY_BINS) -> Integers:
    """Return the bin of each item by rising probability; bins have equal mass, and equal probabilities share a bin.

    Args:
        probabilities_N: any numbers, not NaN.
        bins: largest number of bins; fewer are used if many probabilities are equal.

    Returns:
        ``[N]``, as scikit-learn's ``strategy="quantile"``: the number of inner quantiles below.
    """
    _, place, counts = np.unique(probabilities_N, return_inverse=True, return_counts=True)
    below = (np.cumsum(counts) - counts)[place]
    place_N: Integers = np.maximum((bins * below - 1) // max(len(probabilities_N) - 1, 1), 0).astype(np.int64)
    return place_N


def reliability(targets_N: ArrayLike, probabilities_N: ArrayLike, bins: int = RELIABILITY_BINS) -> Reliability:
    """Bin items by predicted probability, with equal mass.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        probabilities_N: in [0, 1].
        bins: largest number of bins; equal probabilities share one.
    """
    targets, probabilities = known_items(targets_N, probabilities_N)
    place = mass_bins(probabilities, bins)
    items = np.bincount(place, minlength=bins).astype(np.int64)
    filled = items > 0
    means = [np.bincount(place, weights=values, minlength=bins)[filled] / items[filled] for values in (probabilities, targets)]
    return Reliability(means[0], means[1], items[filled])


def calibration_error(targets_N: ArrayLike, probabilities_N: ArrayLike, bins: int = RELIABILITY_BINS) -> float | None:
    """Return the expected calibration error over bins of equal mass, debiased; at least 0.

    The plain error is the mean over items of the distance between mean probability and mean target in their bin (Naeini et al.
    2015). Sampling error alone makes it positive for a perfectly calibrated model, the more so the fewer the items. Like the
    "normal-debiased" estimator of Kumar, Liang and Ma (2019, Verified Uncertainty Calibration, section 5), this one subtracts
    the estimated bias: a bin's distance is taken as normal around the observed one; its expected size (the mean of a folded
    normal, in closed form) minus the observed size is the bias. The variance is that of target minus probability within the bin,
    not that of the targets, so that wide bins are not overcorrected.

    Args:
        targets_N: in [0, 1], NaN for unknown; soft targets are compared as they are.
        probabilities_N: in [0, 1].
        bins: as for :func:`reliability`.

    Returns:
        ``None`` if no target is known.
    """
    targets, probabilities = known_items(targets_N, probabilities_N)
    if not len(targets):
        return None
    place, differences = mass_bins(probabilities, bins), targets - probabilities
    items = np.bincount(place, minlength=bins)
    filled = items > 0
    items, sums = items[filled], np.bincount(place, weights=differences, minlength=bins)[filled]
    squares = np.bincount(place, weights=differences**2, minlength=bins)[filled]
    means = sums / items
    deviations = np.sqrt(np.maximum(squares / items - means**2, 0) / items)
    error = sum(n * debiased(m, s) for n, m, s in zip(items.tolist(), means.tolist(), deviations.tolist(), strict=True))
    return max(float(error) / len(targets), 0.0)


def debiased(mean: float, deviation: float) -> float:
    """Return the size of ``mean``, minus the expected contribution of an error with this standard deviation."""
    size = abs(mean)
    if not deviation:
        return size
    ratio = size / deviation
    return 2 * size - (deviation * sqrt(2 / pi) * exp(-ratio * ratio / 2) + size * erf(ratio / sqrt(2)))
