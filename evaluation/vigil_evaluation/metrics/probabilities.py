"""Metrics of probabilities: Brier score, log loss, reliability and calibration error."""

from math import erf, exp, pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vigil_evaluation.metrics.arrays import Floats, Integers, weighted_items

RELIABILITY_BINS = 10

MASS_ROUNDING = 1e-6
"""Rounding error of a sum of masses, in items."""

EPSILON = float(np.finfo(np.float64).eps)
"""Distance from 0 and 1 at which the log loss clips probabilities."""


class Reliability(NamedTuple):
    """Reliability diagram: items binned by predicted probability, without empty bins.

    Attributes:
        probability: mean predicted probability of each bin, ``[B]``.
        target: mean target of each bin, ``[B]``.
        items: number of items in each bin, ``[B]``.
        mass: sum of the items' weights in each bin, ``[B]``.
    """

    probability: Floats
    target: Floats
    items: Integers
    mass: Floats


def brier(targets_N: ArrayLike, probabilities_N: ArrayLike, weights_N: ArrayLike | None = None) -> float | None:
    """Return the Brier score: mean squared difference of probability and target (Brier 1950, binary form).

    Args:
        targets_N: in [0, 1], NaN for unknown; soft targets are compared as they are.
        probabilities_N: in [0, 1].
        weights_N: number of items that each represents; ``None`` for 1 each.

    Returns:
        ``None`` if no target is known.
    """
    targets, probabilities, weights = weighted_items(targets_N, probabilities_N, weights_N)
    return _mean((probabilities - targets) ** 2, weights)


def log_loss(targets_N: ArrayLike, probabilities_N: ArrayLike, weights_N: ArrayLike | None = None) -> float | None:
    """Return the log loss: mean negative log-likelihood of the targets, in nats.

    Args:
        targets_N: in [0, 1], NaN for unknown; soft targets are compared as they are (cross-entropy).
        probabilities_N: in [0, 1]; clipped by the float64 epsilon as in scikit-learn, so that one certain mistake costs 36 nats
            rather than infinity.
        weights_N: number of items that each represents; ``None`` for 1 each.

    Returns:
        ``None`` if no target is known.
    """
    targets, probabilities, weights = weighted_items(targets_N, probabilities_N, weights_N)
    return _mean(log_losses(targets, probabilities), weights)


def log_losses(targets: Floats, probabilities: Floats) -> Floats:
    """Return the log loss of each pair; NaN where the target is NaN."""
    kept = np.clip(probabilities, EPSILON, 1 - EPSILON)
    losses: Floats = -(targets * np.log(kept) + (1 - targets) * np.log(1 - kept))
    return losses


def _mean(values: Floats, weights: Floats | None) -> float | None:
    if not len(values):
        return None
    return float(np.mean(values) if weights is None else np.average(values, weights=weights))


def mass_bins(probabilities_N: Floats, bins: int = RELIABILITY_BINS, weights_N: Floats | None = None) -> Integers:
    """Return the bin of each item by rising probability; bins have equal mass, and equal probabilities share a bin.

    Args:
        probabilities_N: any numbers, not NaN.
        bins: largest number of bins; fewer are used if many probabilities are equal.
        weights_N: mass of each item, above 0; ``None`` for 1 each.

    Returns:
        ``[N]``, as scikit-learn's ``strategy="quantile"``: the number of inner quantiles below.
    """
    if weights_N is not None and len(weights_N):
        _, place = np.unique(probabilities_N, return_inverse=True)
        masses = np.bincount(place, weights=weights_N) * (len(weights_N) / weights_N.sum())
        below_N = (np.cumsum(masses) - masses)[place]
        # The same rule for real numbers; rounding must not move an item whose mass below is an exact quantile.
        inner_N = np.ceil((bins * below_N - MASS_ROUNDING) / max(len(probabilities_N) - 1, 1)) - 1
        return np.asarray(np.clip(inner_N, 0, bins - 1), np.int64)
    _, place, counts = np.unique(probabilities_N, return_inverse=True, return_counts=True)
    below = (np.cumsum(counts) - counts)[place]
    place_N: Integers = np.maximum((bins * below - 1) // max(len(probabilities_N) - 1, 1), 0).astype(np.int64)
    return place_N


def reliability(
    targets_N: ArrayLike, probabilities_N: ArrayLike, bins: int = RELIABILITY_BINS, weights_N: ArrayLike | None = None
) -> Reliability:
    """Bin items by predicted probability, with equal mass.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        probabilities_N: in [0, 1].
        bins: largest number of bins; equal probabilities share one.
        weights_N: number of items that each represents; ``None`` for 1 each.
    """
    targets, probabilities, weights = weighted_items(targets_N, probabilities_N, weights_N)
    place = mass_bins(probabilities, bins, weights)
    items = np.bincount(place, minlength=bins).astype(np.int64)
    filled = items > 0
    each = np.ones(len(place)) if weights is None else weights
    mass = np.bincount(place, weights=each, minlength=bins)[filled].astype(np.float64)
    means = [np.bincount(place, weights=each * of, minlength=bins)[filled] / mass for of in (probabilities, targets)]
    return Reliability(means[0], means[1], items[filled], mass)


def calibration_error(
    targets_N: ArrayLike, probabilities_N: ArrayLike, bins: int = RELIABILITY_BINS, weights_N: ArrayLike | None = None
) -> float | None:
    """Return the expected calibration error over bins of equal mass, debiased; at least 0.

    The plain error is the mean over items of the distance between mean probability and mean target in their bin (Naeini et al.
    2015). Sampling error alone makes it positive for a perfectly calibrated model, the more so the fewer the items. Like the
    "normal-debiased" estimator of Kumar, Liang and Ma (2019, Verified Uncertainty Calibration, section 5), this one subtracts
    the estimated bias: a bin's distance is taken as normal around the observed one; its expected size (the mean of a folded
    normal, in closed form) minus the observed size is the bias. The variance is that of target minus probability within the bin,
    not that of the targets, so that wide bins are not overcorrected; under weights it is that of a weighted mean, by
    linearisation (Cochran 1977, section 11.7).

    Args:
        targets_N: in [0, 1], NaN for unknown; soft targets are compared as they are.
        probabilities_N: in [0, 1].
        bins: as for :func:`reliability`.
        weights_N: number of items that each represents; ``None`` for 1 each.

    Returns:
        ``None`` if no target is known.
    """
    targets, probabilities, weights = weighted_items(targets_N, probabilities_N, weights_N)
    if not len(targets):
        return None
    place, differences = mass_bins(probabilities, bins, weights), targets - probabilities
    masses = np.ones(len(place)) if weights is None else weights

    def sums(values: Floats) -> Floats:
        return np.bincount(place, weights=values, minlength=bins)[filled].astype(np.float64)

    filled = np.bincount(place, minlength=bins) > 0
    mass, means = sums(masses), sums(masses * differences) / sums(masses)
    squares = [sums(masses**2 * differences**power) for power in (0, 1, 2)]
    deviations = np.sqrt(np.maximum(squares[2] - 2 * means * squares[1] + means**2 * squares[0], 0)) / mass
    error = sum(w * debiased(m, s) for w, m, s in zip(mass.tolist(), means.tolist(), deviations.tolist(), strict=True))
    return max(float(error / mass.sum()), 0.0)


def debiased(mean: float, deviation: float) -> float:
    """Return the size of ``mean``, minus the expected contribution of an error with this standard deviation."""
    size = abs(mean)
    if not deviation:
        return size
    ratio = size / deviation
    return 2 * size - (deviation * sqrt(2 / pi) * exp(-ratio * ratio / 2) + size * erf(ratio / sqrt(2)))
