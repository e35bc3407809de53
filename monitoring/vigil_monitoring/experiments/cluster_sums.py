"""Difference of a ratio between two arms at every look, with a standard error over two kinds of clusters.

Rows add up to four sums for each cluster of time (day, or pair of blocks) and each group of authors: numerator and denominator of
the champion and of the challenger. The difference of the ratios is linearized (Särndal, Swensson and Wretman 1992, section 5.6).
Its variance is that of the linearized sums over authors, plus over time, less over both (Cameron, Gelbach and Miller 2011,
section 2.2), and at least that of either. Whatever both arms share (item, author, day) cancels there. Authors are hashed into
groups, so that memory does not grow with their number: groups of independent authors are independent (Wolter 2007, section 2.2).
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

GROUPS = 512
"""Groups into which authors are hashed."""

SUMS = 4
"""Numerator and denominator of the champion, then of the challenger."""


class Looks(NamedTuple):
    """Difference at each of K looks.

    Attributes:
        champion_K: the champion's ratio, NaN where undefined.
        challenger_K: the challenger's ratio.
        difference_K: challenger minus champion.
        errors_K: standard errors, NaN where undefined.
        clusters_K: number of independent clusters behind the standard error.
        rows_KA: rows behind each arm's denominator, ``[K, 2]``.
    """

    champion_K: Floats
    challenger_K: Floats
    difference_K: Floats
    errors_K: Floats
    clusters_K: Integers
    rows_KA: Integers


@dataclass(slots=True)
class ClusterSums:
    """Sums of numerators and denominators, by time and group of authors.

    Args:
        times: number of clusters of time, T.
        groups: number of groups of authors, G.

    Attributes:
        sums_TGS: numerator and denominator of the champion, then of the challenger, ``[T, G, 4]``.
        rows_TA: rows with a denominator of each arm, ``[T, 2]``.
    """

    times: int
    groups: int = GROUPS
    sums_TGS: Floats = field(init=False)
    rows_TA: Integers = field(init=False)

    def __post_init__(self) -> None:
        self.sums_TGS = np.zeros((self.times, self.groups, SUMS))
        self.rows_TA = np.zeros((self.times, 2), np.int64)

    def add(self, challenger: bool, time_N: Integers, group_N: Integers, numerator_N: Floats, denominator_N: Floats) -> None:
        """Add rows of one arm.

        Args:
            challenger: the arm.
            time_N: cluster of time.
            group_N: group of the author.
            numerator_N: weighted numerator; rows without a denominator have none.
            denominator_N: weighted denominator.
        """
        place_N = time_N * self.groups + group_N
        for column, values_N in ((0, numerator_N), (1, denominator_N)):
            found = np.bincount(place_N, values_N, self.times * self.groups).reshape(self.times, self.groups)
            self.sums_TGS[:, :, 2 * challenger + column] += found
        self.rows_TA[:, int(challenger)] += np.bincount(time_N[denominator_N > 0], minlength=self.times)

    def looks(self, last_time_K: Integers) -> Looks:
        """Return the difference after each look.

        Args:
            last_time_K: last cluster of time that each look includes.
        """
        *found, rows_KA = difference_looks(self.sums_TGS[None], last_time_K, self.rows_TA)
        champion, challenger, difference, errors, clusters = (values[0] for values in found)
        return Looks(champion, challenger, difference, errors, clusters, rows_KA)


def difference_looks(sums_RTGS: Floats, last_time_K: Integers, rows_TA: Integers) -> Looks:
    """Return the differences of R repetitions at once, with ``R`` as the first axis of all but ``rows_KA``.

    Args:
        sums_RTGS: see :class:`ClusterSums`.
        last_time_K: last cluster of time that each look includes.
        rows_TA: rows with a denominator of each arm.
    """
    some_RT = (sums_RTGS != 0).any(axis=(2, 3))
    by_author = np.empty((len(sums_RTGS), len(last_time_K), SUMS, SUMS))
    totals_RKS = np.empty((len(sums_RTGS), len(last_time_K), SUMS))
    authors_RK = np.empty((len(sums_RTGS), len(last_time_K)), np.int64)
    running_RGS, done = np.zeros((len(sums_RTGS), *sums_RTGS.shape[2:])), 0
    for look, last in enumerate(last_time_K):
        running_RGS += sums_RTGS[:, done : last + 1].sum(axis=1)
        done = last + 1
        by_author[:, look] = np.einsum("rgs,rgt->rst", running_RGS, running_RGS)
        totals_RKS[:, look] = running_RGS.sum(axis=1)
        authors_RK[:, look] = (running_RGS != 0).any(axis=2).sum(axis=1)
    days_RTS = sums_RTGS.sum(axis=2)
    by_day = np.einsum("rts,rtu->rtsu", days_RTS, days_RTS).cumsum(axis=1)[:, last_time_K]
    by_both = np.einsum("rtgs,rtgu->rtsu", sums_RTGS, sums_RTGS).cumsum(axis=1)[:, last_time_K]
    times_RK = some_RT.cumsum(axis=1)[:, last_time_K]
    found = _differences(totals_RKS, (by_author, by_day, by_both), times_RK, authors_RK)
    return Looks(*found, rows_TA.cumsum(axis=0)[last_time_K])


def _differences(
    totals: Floats, moments: tuple[Floats, Floats, Floats], times: Integers, authors: Integers
) -> tuple[Floats, Floats, Floats, Floats, Integers]:
    """Return both ratios, their difference, its standard error and the number of clusters, ``[R, K]`` each.

    Args:
        totals: sums, ``[R, K, 4]``.
        moments: sums of products of the clusters' sums, by author, by time and by both, ``[R, K, 4, 4]``.
        times: clusters of time that are not empty.
        authors: groups of authors that are not empty.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        champion, challenger = totals[..., 0] / totals[..., 1], totals[..., 2] / totals[..., 3]
        gradient = np.stack(
            [-1 / totals[..., 1], champion / totals[..., 1], 1 / totals[..., 3], -challenger / totals[..., 3]], axis=-1
        )
        several = authors > 1
        quadratic = [np.einsum("rks,rkst,rkt->rk", gradient, of, gradient) for of in moments]
        over_authors = np.where(several, quadratic[0] * authors / np.maximum(authors - 1, 1), 0.0)
        over_times = quadratic[1] * times / np.maximum(times - 1, 1)
        variance = np.maximum.reduce([over_authors + over_times - quadratic[2] * several, over_authors, over_times])
        variance = np.where(several, variance, over_times)
        errors = np.where(times > 1, np.sqrt(np.maximum(variance, 0)), np.nan)
    clusters = np.where(several, np.minimum(times, authors), times)
    return champion, challenger, challenger - champion, np.where(np.isfinite(errors), errors, np.nan), clusters
