"""Confidence sequences: intervals that hold at every look at once, so that looking every day keeps the error rate.

Robbins' normal mixture (1970) in its asymptotic form (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, "Time-uniform central
limit theory", theorem 2.2) bounds any estimate with a standard error, such as a difference of weighted ratios over clusters. With
few clusters the standard error is itself uncertain: the mixture then runs over the effect in standard deviations, which are
integrated out (Jeffreys' t-test; Pérez-Ortiz, Lardy, de Heide and Grünwald 2022, section 4), exact for normal clusters from
the second one on; it becomes Robbins' mixture as their number grows.

Example:
    >>> ratio = prior_ratio(np.arange(1, 31), horizon=30, alpha=0.05)
    >>> radius = standard_errors * critical_values(ratio, 0.05, df=np.arange(30))
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import lambertw, stdtr

Floats = NDArray[np.float64]

MAX_STATISTIC = 1e6
"""Statistic above which a one-sided critical value counts as infinite."""

BISECTIONS = 60
"""Halvings of the range in which a one-sided critical value is searched."""


def prior_ratio(clusters: ArrayLike, horizon: float, alpha: float, *, one_sided: bool = False) -> Floats:
    """Return the ratio of the data's information to the mixture's prior at each look, for the tightest bound at the horizon.

    The ratio must not depend on the outcomes, so it counts clusters (days, blocks), not estimated variances.

    Args:
        clusters: number of clusters at each look.
        horizon: number of clusters at which the bound is tightest; it holds at all others, also later ones.
        alpha: error rate.
        one_sided: for one-sided bounds.
    """
    two_sided_alpha = min(2 * alpha, 0.5) if one_sided else alpha
    best = -float(np.real(lambertw(-(two_sided_alpha**2) / np.e, k=-1))) - 1
    return best * np.asarray(clusters, np.float64) / horizon


def log_e_values(statistics: ArrayLike, ratio: ArrayLike, df: ArrayLike = np.inf, *, one_sided: bool = False) -> Floats:
    """Return the logarithm of the evidence against a mean of 0: under it, P(any look reaches 1 / alpha) <= alpha.

    Args:
        statistics: estimates in standard errors.
        ratio: from :func:`prior_ratio`.
        df: degrees of freedom of the standard errors; clusters - 1 for the standard error of their mean.
        one_sided: against a mean <= 0.
    """
    t, r, df = np.asarray(statistics, np.float64), np.asarray(ratio, np.float64), np.asarray(df, np.float64)
    finite = np.where(np.isfinite(df), df, 1.0)
    known = t**2 * r / (2 * (1 + r))
    estimated = (finite + 1) / 2 * (np.log1p(t**2 / finite) - np.log1p(t**2 / (finite * (1 + r))))
    logs = np.where(np.isfinite(df), estimated, known) - np.log1p(r) / 2
    if one_sided:
        # Twice the posterior probability of a positive effect: the mixture over positive effects alone.
        shrunk = t * np.sqrt(r / (1 + r))
        scaled = shrunk * np.where(np.isfinite(df), np.sqrt((finite + 1) / (finite + t**2 / (1 + r))), 1.0)
        with np.errstate(divide="ignore"):
            logs = logs + np.log(2 * stdtr(np.where(np.isfinite(df), finite + 1, 1e12), scaled))
    return np.asarray(logs)


def critical_values(ratio: ArrayLike, alpha: float, df: ArrayLike = np.inf, *, one_sided: bool = False) -> Floats:
    """Return the half-width of the confidence sequence in standard errors, at each look.

    Args:
        ratio: from :func:`prior_ratio`.
        alpha: probability that the truth is outside at any look.
        df: degrees of freedom of the standard errors.
        one_sided: width of a lower (or upper) bound.

    Returns:
        Infinite where the clusters are too few to bound anything.
    """
    r, df = np.broadcast_arrays(np.asarray(ratio, np.float64), np.asarray(df, np.float64))
    if one_sided:
        return _one_sided(r, alpha, np.asarray(df))
    finite = np.where(np.isfinite(df) & (df > 0), df, 1.0)
    level = np.exp((np.log1p(r) - 2 * np.log(alpha)) / (finite + 1))
    room = 1 - level / (1 + r)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimated = np.sqrt(finite * (level - 1) / room)
        known = np.sqrt((1 + r) / r * (np.log1p(r) - 2 * np.log(alpha)))
    return np.where(np.isinf(df), known, np.where((df > 0) & (room > 0), estimated, np.inf))


def _one_sided(r: Floats, alpha: float, df: Floats) -> Floats:
    finite = np.maximum(df, 0.5)
    low, high = np.zeros(r.shape), np.full(r.shape, MAX_STATISTIC)
    bounded = (r > 0) & (df > 0) & (log_e_values(high, r, finite, one_sided=True) >= -np.log(alpha))
    for _ in range(BISECTIONS):
        # The geometric mean: critical values of few clusters span orders of magnitude.
        middle = np.sqrt(np.maximum(low, 1e-3) * high)
        above = log_e_values(middle, r, finite, one_sided=True) >= -np.log(alpha)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.where(bounded, high, np.inf)
