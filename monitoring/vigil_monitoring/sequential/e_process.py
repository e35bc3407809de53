"""E-processes for changes: evidence that may be looked at after every day without more false alarms.

An e-process is a nonnegative statistic that starts at 1 and whose expectation at any stopping time is at most 1 under the null
hypothesis, so that it ever reaches ``1 / alpha`` with probability at most ``alpha`` (Ville 1939; Ramdas, Grünwald, Vovk, Shafer
2023, "Game-theoretic statistics and safe anytime-valid inference", section 2). A p-value that is repeated every day has no such
bound.

- :func:`shift_evidence`: daily values, such as the share of a category on a day, against reference days. Real traffic is not
  binomial: days differ by more than their items explain. The unit is therefore the day, and its variance is unknown: under the
  null hypothesis the values of all days are normal around their weekday's mean, shifted by at most a stated amount.
- :func:`betting_evidence`: bounded values, such as reviewed items, without a model of their variance.

Both find a change at an unknown time: every day may be the first one, day ``s`` with weight ``1 / (s (s + 1))`` (the weights sum
to 1). An e-detector without such weights only bounds the mean time between false alarms (Shin, Ramdas, Rinaldo 2022,
"E-detectors: a nonparametric framework for sequential change detection", section 2).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_SCALES = (1.5, 6.0)
"""Standard deviations of a change in units of the days' standard deviation, mixed equally."""

_STREAMS_AT_ONCE = 512
"""Streams that are computed together, so that memory is bounded."""

LOOKBACK = 60
"""Days of one evidence of a shift: one that began earlier is looked for in its later days only."""

_LARGEST_BET = 0.8
"""Largest part of the capital that one observation can lose."""


class ChangeEvidence(NamedTuple):
    """Evidence of K streams after each of T days, ``[T, K]``.

    Attributes:
        log_e: logarithm of the evidence for a change, at best since ``start``; the probability that it ever exceeds
            ``log(1 / alpha)`` without a change is at most ``alpha``, for each stream.
        start: the first changed day that is supported most, an index below T.
    """

    log_e: Floats
    start: Integers


def start_weights(days: int) -> Floats:
    """Return the weight of each day as the first changed one, ``[T]``; over all days to come they sum to 1."""
    first = np.arange(1, days + 1)
    return 1.0 / (first * (first + 1))


def shift_evidence(
    values_NK: Floats,
    references: int,
    *,
    group_N: Integers | None = None,
    weights_NK: Floats | None = None,
    band_2K: Floats | None = None,
    least_variance_K: Floats | None = None,
) -> ChangeEvidence:
    """Return the evidence that the mean of daily values has shifted from the reference days by more than a negligible amount.

    Under the null hypothesis, values are independent and normal with a mean for each group of days (such as weekdays) and a
    variance of the stream, all unknown, plus a shift within the band after the reference. The evidence since a day is the
    likelihood ratio of the part of the data that does not depend on these means and the variance (the maximal invariant), for a
    normal shift against none. It is exact however few reference days there are, since their own sampling error is part of it
    (Pérez-Ortiz, Lardy, de Heide, Grünwald 2024, "E-statistics, group invariance and anytime-valid testing"; Wang and Ramdas
    2025, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance"). Either direction has half of
    the evidence, a half-normal shift beyond its end of the band.

    Args:
        values_NK: value of each day and stream, the reference days first; ignored where the weight is 0.
        references: number of reference days R, so that ``T = N - R``.
        group_N: group of each day, from 0; ``None`` for a single one.
        weights_NK: inverse relative variance of each value, 0 where there is none; ``None`` for 1 each.
        band_2K: lowest and highest negligible shift, at most and at least 0; ``None`` for 0, any shift.
        least_variance_K: variance that a value of weight 1 has at least, such as that of sampling; ``None`` for 0.

    Raises:
        ValueError: if shapes differ, or 0 is outside the band.
    """
    days, streams = values_NK.shape
    weights_NK = np.ones((days, streams)) if weights_NK is None else weights_NK
    band_2K = np.zeros((2, streams)) if band_2K is None else band_2K
    least_K = np.zeros(streams) if least_variance_K is None else least_variance_K
    group_N = np.zeros(days, np.int64) if group_N is None else group_N
    if not 0 <= references <= days or weights_NK.shape != values_NK.shape or len(group_N) != days:
        raise ValueError(f"values {values_NK.shape}, weights {weights_NK.shape}, {len(group_N)} groups, {references} references")
    if (band_2K[0] > 0).any() or (band_2K[1] < 0).any():
        raise ValueError("the band of negligible shifts must include 0")
    member_NG = (group_N[:, None] == np.unique(group_N)[None, :]).astype(np.float64)
    parts = [
        _shift_evidence(values_NK[:, at], references, member_NG, weights_NK[:, at], band_2K[:, at], least_K[at])
        for at in (slice(first, first + _STREAMS_AT_ONCE) for first in range(0, streams, _STREAMS_AT_ONCE))
    ]
    if not parts:
        return ChangeEvidence(np.zeros((days - references, 0)), np.zeros((days - references, 0), np.int64))
    return ChangeEvidence(*(np.concatenate(part, axis=1) for part in zip(*parts, strict=True)))


def _shift_evidence(  # noqa: PLR0917 (the arrays of some streams)
    values_NK: Floats, references: int, member_NG: Floats, weights_NK: Floats, band_2K: Floats, least_K: Floats
) -> ChangeEvidence:
    known_NK = weights_NK > 0
    base_weight_GK = member_NG[:references].T @ weights_NK[:references]
    # Around the reference mean, sums of squares lose no digits.
    values_NK = np.where(known_NK, values_NK, 0.0)
    total_K = base_weight_GK.sum(axis=0)
    first_K = values_NK[np.argmax(known_NK, axis=0), np.arange(values_NK.shape[1])]
    mean_K = np.where(total_K > 0, (weights_NK * values_NK)[:references].sum(axis=0) / np.where(total_K > 0, total_K, 1), first_K)
    values_NK = np.where(known_NK, values_NK - mean_K, 0.0)
    sums_NK, squares_NK = weights_NK * values_NK, weights_NK * values_NK**2
    base_sum_GK, base_square_K = member_NG[:references].T @ sums_NK[:references], squares_NK[:references].sum(axis=0)
    base_days_K = known_NK[:references].sum(axis=0)
    days = len(values_NK) - references
    log_weight_T = np.log(start_weights(days))
    best_TK = np.full((days, values_NK.shape[1]), -np.inf)
    start_TK = np.zeros(best_TK.shape, np.int64)
    for start in range(days):
        at = slice(references + start, references + start + LOOKBACK)
        new_weight_TGK = np.cumsum(member_NG[at, :, None] * weights_NK[at, None, :], axis=0)
        new_sum_TGK = np.cumsum(member_NG[at, :, None] * sums_NK[at, None, :], axis=0)
        weight_TGK, sum_TGK = base_weight_GK + new_weight_TGK, base_sum_GK + new_sum_TGK
        over_TGK = 1.0 / np.where(weight_TGK > 0, weight_TGK, 1.0)
        # The column of the shift, without what the means of the groups explain: its square, and its product with the values.
        information_TK = (new_weight_TGK * base_weight_GK * over_TGK).sum(axis=1)
        product_TK = (new_sum_TGK - new_weight_TGK * sum_TGK * over_TGK).sum(axis=1)
        residual_TK = base_square_K + np.cumsum(squares_NK[at], axis=0) - (sum_TGK**2 * over_TGK).sum(axis=1)
        freedom_TK = base_days_K + np.cumsum(known_NK[at], axis=0) - (weight_TGK > 0).sum(axis=1)
        log_e_TK = log_weight_T[start] + _shift_log_e(product_TK, information_TK, residual_TK, freedom_TK, band_2K, least_K)
        later_TK, starts_TK = best_TK[start : start + LOOKBACK], start_TK[start : start + LOOKBACK]
        better_TK = log_e_TK > later_TK
        later_TK[better_TK], starts_TK[better_TK] = log_e_TK[better_TK], start
    return ChangeEvidence(best_TK, start_TK)


def _shift_log_e(  # noqa: PLR0917 (the sums of a regression)
    product: Floats, information: Floats, residual: Floats, freedom: Integers, band_2K: Floats, least_K: Floats
) -> Floats:
    """Return the logarithm of the likelihood ratio of a half-normal shift in either direction beyond the band.

    The ratio of a normal shift of standard deviation g (in units of the days') is ``(1 + g² q)^(-1/2) (RSS_g / RSS)^(-df/2)``,
    with ``RSS_g = RSS - g² r² / (1 + g² q)``. A half-normal one has twice the posterior probability of its sign times that, which
    is a probability of Student's distribution.
    """
    usable = (information > 1e-12) & (freedom >= 1)
    q, nu = np.where(usable, information, 1.0), np.maximum(freedom, 1).astype(np.float64)
    around = np.maximum(residual - product**2 / q, np.maximum(nu - 1, 0) * least_K)
    terms = []
    for sign, edge_K in ((1.0, band_2K[1]), (-1.0, -band_2K[0])):
        r = sign * product - edge_K * q
        rss = np.maximum(around + r**2 / q, 1e-300)
        for scale in _SCALES:
            spread = 1 + scale**2 * q
            rss_g = np.maximum(rss - scale**2 * r**2 / spread, 1e-300)
            t = scale * r / np.sqrt(spread * rss_g / nu)
            terms.append(-0.5 * np.log(spread) + 0.5 * nu * np.log(rss / rss_g) + np.log(np.maximum(2 * stdtr(nu, t), 1e-300)))
    log_e: Floats = np.logaddexp.reduce(np.stack(terms), axis=0) - np.log(len(terms))
    return np.where(usable, log_e, 0.0)


def betting_evidence(values_NK: Floats, bounds_NK: Floats, day_N: Integers, days: int) -> ChangeEvidence:
    """Return the evidence that the mean of bounded values is above 0, by betting on it before each value is seen.

    The capital is multiplied by ``1 + λ z`` for each value z, of a bet λ that depends on earlier values only. Under the null
    hypothesis that the mean of each value given the earlier ones is at most 0, it is an e-process whatever the distribution
    (Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by betting", sections 4 and 5.2; the bets are
    those of its aGRAPA).

    Args:
        values_NK: values of K streams in order of time, at least ``-bounds_NK``.
        bounds_NK: known before the value, positive; a value of 0 with a bound of 1 changes nothing.
        day_N: day of each value, ascending, below ``days``; the change may begin on any.
        days: number of days T.

    Raises:
        ValueError: if a value is below its bound.
    """
    if (values_NK < -bounds_NK * (1 + 1e-9)).any() or (bounds_NK <= 0).any():
        raise ValueError("a value is below the bound that was stated for it")
    streams = values_NK.shape[1]
    log_weight_T = np.log(start_weights(days))
    log_capital_TK = np.zeros((days, streams))
    sum_TK, square_TK, seen_TK = np.zeros((days, streams)), np.zeros((days, streams)), np.zeros((days, 1))
    evidence = ChangeEvidence(np.zeros((days, streams)), np.zeros((days, streams), np.int64))
    ends_T = np.searchsorted(day_N, np.arange(days), side="right")
    i = 0
    for day, end in enumerate(ends_T):
        running = slice(0, day + 1)
        for value_K, bound_K in zip(values_NK[i:end], bounds_NK[i:end], strict=True):
            # A quarter of the squared bound is the largest variance of a value that is as far from both its bounds.
            mean_TK = sum_TK[running] / (seen_TK[running] + 1)
            spread_TK = (0.25 * bound_K**2 + square_TK[running]) / (seen_TK[running] + 1)
            bet_TK = np.clip(mean_TK / np.maximum(spread_TK, 1e-300), 0.0, _LARGEST_BET / bound_K)
            log_capital_TK[running] += np.log1p(bet_TK * value_K)
            sum_TK[running] += value_K
            square_TK[running] += value_K**2
            seen_TK[running] += 1
        i = int(end)
        weighted_TK = log_weight_T[running, None] + log_capital_TK[running]
        evidence.start[day] = weighted_TK.argmax(axis=0)
        evidence.log_e[day] = weighted_TK.max(axis=0)
    return evidence


def ever_p(log_e_TK: Floats) -> Floats:
    """Return p-values ``[T, K]`` that may be looked at after every day: 1 over the largest evidence so far, at most 1."""
    return np.exp(-np.maximum(np.maximum.accumulate(log_e_TK, axis=0), 0.0))


def first_alarms(log_e_TK: Floats, shares_K: Floats, alpha: float) -> Integers:
    """Return the first day of alarm of each stream, ``[K]``; T without one.

    The probability of any false alarm in any stream on any day is at most ``alpha``: a stream alarms where its evidence reaches 1
    over its share of ``alpha`` (weighted Bonferroni), under whatever dependence between streams.

    Args:
        log_e_TK: evidence after each day.
        shares_K: share of ``alpha`` for each stream; they sum to at most 1.
        alpha: largest probability of any false alarm.
    """
    reached_TK = log_e_TK >= -np.log(alpha * shares_K)
    return np.where(reached_TK.any(axis=0), reached_TK.argmax(axis=0), len(log_e_TK)).astype(np.int64)
