"""Confidence sequences: intervals that hold at every look at once, so that looking every day keeps the error rate.

Robbins' normal mixture (1970) in its asymptotic form (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, "Time-uniform central
limit theory", theorem 2.2) bounds any estimate with a standard error, such as a difference of weighted ratios over clusters. With
few clusters the standard error is itself uncertain: the mixture then runs over the effect in standard deviations, which are
integrated out (Jeffreys' t-test; Pérez-Ortiz, Lardy, de Heide and Grünwald 2022, section 4), exact for normal clusters from
the second one on; it becomes Robbins' mixture as their number grows. For few bounded values there is an exact empirical Bernstein
sequence (Waudby-Smith and Ramdas 2023, theorem 2).

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


def bounded_mean_sequence(values: ArrayLike, alpha: float, low: float = 0.0, high: float = 1.0) -> tuple[Floats, Floats]:
    """Return the exact confidence sequence of the mean of bounded values, for few of them: no variance is assumed.

    The predictable plug-in empirical Bernstein sequence (Waudby-Smith and Ramdas 2023, theorem 2), with its running intersection.

    Args:
        values: ``[..., N]`` in the order of arrival, independent or with a constant mean given the past; weights included, for a
            weighted mean.
        alpha: probability that the mean is outside at any N.
        low: smallest possible value.
        high: largest possible value.

    Returns:
        Lower and upper ends after each value, ``[..., N]``.
    """
    x = (np.asarray(values, np.float64) - low) / (high - low)
    if ((x < 0) | (x > 1)).any():
        raise ValueError(f"values must lie in [{low}, {high}]")
    n = np.arange(1, x.shape[-1] + 1)
    means = (0.5 + x.cumsum(axis=-1)) / (n + 1)
    variances = (0.25 + ((x - means) ** 2).cumsum(axis=-1)) / (n + 1)
    start = np.full((*x.shape[:-1], 1), 0.5)
    past_means = np.concatenate([start, means[..., :-1]], axis=-1)
    past_variances = np.concatenate([start / 2, variances[..., :-1]], axis=-1)
    bets = np.minimum(np.sqrt(2 * np.log(2 / alpha) / (past_variances * n * np.log1p(n))), 0.5)
    total = bets.cumsum(axis=-1)
    spread = ((x - past_means) ** 2 * (-np.log1p(-bets) - bets)).cumsum(axis=-1)
    centre, radius = (bets * x).cumsum(axis=-1) / total, (np.log(2 / alpha) + spread) / total
    lower = np.maximum.accumulate(np.clip(centre - radius, 0, 1), axis=-1)
    upper = np.minimum.accumulate(np.clip(centre + radius, 0, 1), axis=-1)
    return low + (high - low) * lower, low + (high - low) * upper
