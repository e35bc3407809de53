"""Confidence intervals of binomial shares, and the design effect of items that are sampled in units.

Items of one unit (an author, a template) resemble each other, so ``n`` of them carry less information than ``n`` independent
items. The design effect is that ratio: dividing counts by it gives effective counts, for which binomial methods hold.
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_data.card.shares import wilson_interval
from vigil_evaluation.metrics import Floats
from vigil_evaluation.stats.intervals import Interval


def wilson(hits: float, count: float, confidence: float) -> Interval:
    """Return the score interval of a share (Wilson 1927).

    Args:
        hits: number of successes.
        count: number of trials, at least 1.
        confidence: two-sided, such as 0.95.
    """
    return Interval(*wilson_interval(hits, count, confidence))


def clopper_pearson(hits: float, count: float, confidence: float) -> Interval:
    """Return the exact interval of a share (Clopper and Pearson 1934), whose coverage is at least the confidence.

    Args:
        hits: number of successes; may be an effective, fractional number.
        count: number of trials, at least 1; may be fractional too.
        confidence: two-sided, such as 0.95.
    """
    low, high = clopper_pearson_bounds([hits], [count], (1 + confidence) / 2)
    return Interval(float(low[0]), float(high[0]))


def clopper_pearson_bounds(hits_K: ArrayLike, counts_K: ArrayLike, confidence: float) -> tuple[Floats, Floats]:
    """Return the exact lower and the exact upper bound of each share, each one-sided at the confidence.

    Args:
        hits_K: successes, ``[K]``; may be fractional.
        counts_K: trials, ``[K]``; may be fractional.
        confidence: of each bound by itself.

    Returns:
        Lower and upper bounds, ``[K]`` each; NaN without trials.
    """
    from scipy.special import betaincinv

    hits, counts = np.asarray(hits_K, np.float64), np.asarray(counts_K, np.float64)
    misses = counts - hits
    low = betaincinv(np.where(hits > 0, hits, 1.0), np.where(hits > 0, misses + 1, 1.0), 1 - confidence)
    high = betaincinv(np.where(misses > 0, hits + 1, 1.0), np.where(misses > 0, misses, 1.0), confidence)
    some = counts > 0
    return (
        np.where(some, np.where(hits > 0, low, 0.0), np.nan),
        np.where(some, np.where(misses > 0, high, 1.0), np.nan),
    )


def korn_graubard(hits: float, count: int, units: int, spread: float, confidence: float) -> Interval:
    """Return the exact interval of a share for the effective number of items (Korn and Graubard 1998).

    That number is the count over the design effect, and less for few units by the squared ratio of the normal quantile to
    Student's. Where all or no items are hits, the design effect cannot be estimated, and each unit counts as one item.

    Args:
        hits: number of successes; under weights, the share by weight times the number of items.
        count: number of items.
        units: number of units that the items belong to, at least 2.
        spread: sum over units of the squared difference between a unit's hits and those expected at the overall share.
        confidence: two-sided, such as 0.95.
    """
    from scipy.special import stdtrit

    share = hits / count
    if hits in (0, count):
        return clopper_pearson(share * units, units, confidence)
    tail = 0.5 + confidence / 2
    few = NormalDist().inv_cdf(tail) / float(stdtrit(units - 1, tail))
    effective = max(count / _variance_ratio(spread, units, count, share) * few**2, 1.0)
    return clopper_pearson(share * effective, effective, confidence)


def design_effect(hits_U: ArrayLike, items_U: ArrayLike) -> float:
    """Return the ratio of a share's variance to that of as many independent items, at least 1 (Rao and Scott 1992).

    Args:
        hits_U: successes in each unit.
        items_U: items in each unit; units without items do not count.

    Returns:
        Infinity with fewer than two units. Where all or no items are successes, the variance cannot be estimated, and the items
        of a unit are taken for copies of one.
    """
    hits, items = np.asarray(hits_U, np.float64), np.asarray(items_U, np.float64)
    units, total = int((items > 0).sum()), float(items.sum())
    if units < 2:
        return float("inf")
    share = float(hits.sum()) / total
    if share in (0.0, 1.0):
        return max(float((items**2).sum()) / total, 1.0)
    return _variance_ratio(float(((hits - share * items) ** 2).sum()), units, total, share)


def _variance_ratio(spread: float, units: int, total: float, share: float) -> float:
    return max(units / (units - 1) * spread / (total * share * (1 - share)), 1.0)


def kish_design_effect(outcome_N: NDArray[np.bool_], units_N: NDArray[np.int32] | None, weights_N: Floats | None = None) -> float:
    """Return the design effect ``1 + r (m - 1)`` that units have on a share of items, at least 1 (Kish 1965).

    ``r`` is :func:`intraclass_correlation`, and ``m`` the mean size of the unit of an item; with weights, that of the squared sum
    of a unit's weights to the sum of squares. The effect of unequal weights themselves is not included.

    Args:
        outcome_N: whether each item is a success.
        units_N: unit of each item, from 0; ``None`` if each item is its own.
        weights_N: number of items that each represents; ``None`` if all count the same.
    """
    if units_N is None or not len(outcome_N):
        return 1.0
    sizes = np.bincount(units_N, weights_N).astype(np.float64)
    squares = float(sizes.sum() if weights_N is None else (weights_N**2).sum())
    size = float((sizes**2).sum() / squares) if squares else 1.0
    return 1 + intraclass_correlation(outcome_N, units_N, weights_N) * (size - 1)


def intraclass_correlation(outcome_N: NDArray[np.bool_], units_N: NDArray[np.int32], weights_N: Floats | None = None) -> float:
    """Return the correlation of two outcomes within a unit, by moments, plus one standard error so that it errs upwards.

    Args:
        outcome_N: whether each item is a success.
        units_N: unit of each item, from 0.
        weights_N: number of items that each represents; ``None`` if all count the same.

    Returns:
        A number in [0, 1], with weights possibly above; 0 where it cannot be estimated.
    """
    if weights_N is not None and not weights_N.sum():
        return 0.0
    mean = float(np.average(outcome_N, weights=weights_N)) if len(outcome_N) else 0.0
    if not 0 < mean < 1:
        return 0.0
    one_N = np.ones(len(outcome_N)) if weights_N is None else weights_N
    off = (outcome_N - mean) * one_N
    sums, squares, sizes, same = (np.bincount(units_N, weights=values) for values in (off, off**2, one_N, one_N**2))
    alike, pairs = sums**2 - squares, (sizes**2 - same) * mean * (1 - mean)
    most = 1.0
    if weights_N is not None:
        # Outcomes may vary more where weights are small: the variance is that of the weighted deviations.
        variance = float(squares.sum() / same.sum())
        pairs, most = (sizes**2 - same) * variance, max(mean * (1 - mean) / variance, 1.0)
    if not pairs.sum() > 0:
        return 0.0
    correlation = float(alike.sum() / pairs.sum())
    error = float(np.sqrt(((alike - correlation * pairs) ** 2).sum()) / pairs.sum())
    return min(max(correlation + error, 0.0), most)
