"""Intervals of proportions that rest on few, unequally weighted positives.

Chosen by simulation (docs/monitoring.md has the table): at a prevalence of 0.2 % with 500 labels, Wald's interval covers 80 to
89 % and that of the log-odds 88 to 94 %, since a sample without a positive of large weight has a low estimate and a low variance
at once. Korn and Graubard's exact interval with Student's quantile for the noise of the variance itself covers more, and with a
variance that is blended with an expected one (:mod:`.expected_targets`) 95 %.
"""

import math
from statistics import NormalDist

import numpy as np

from vigil_evaluation.metrics import Floats
from vigil_evaluation.stats.binomial import clopper_pearson
from vigil_evaluation.stats.intervals import Interval

MIN_DEGREES_OF_FREEDOM = 1.0


def degrees_of_freedom(contributions_U: Floats) -> float:
    """Return Satterthwaite's degrees of freedom of a variance that is a sum of independent contributions (Satterthwaite 1946).

    Args:
        contributions_U: contribution of each unit, such as its squared deviation; a sum of k equal ones has ``2 k``.
    """
    spread = float((contributions_U**2).sum())
    return 2 * float(contributions_U.sum()) ** 2 / spread if spread > 0 else math.inf


def largest_ratios(degrees_H: Floats, tail: float = 0.05) -> Floats:
    """Return how many times its estimate a variance may be, by the chi-squared distribution; next to no limit without degrees.

    Args:
        degrees_H: degrees of freedom of estimates.
        tail: probability of estimates that are smaller still.
    """
    from scipy.special import gammaincinv

    shape_H = np.maximum(degrees_H / 2, 1e-3)
    ratios_H: Floats = shape_H / np.maximum(gammaincinv(shape_H, tail), 1e-300)
    return ratios_H


def proportion_interval(value: float, variance: float, degrees: float, confidence: float) -> Interval:
    """Return the exact binomial interval for the effective number of rows (Korn and Graubard 1998).

    That number is ``value (1 - value) / variance``, times the squared ratio of the normal quantile to Student's, so that it is
    smaller where few positives dominate the variance.

    Args:
        value: the proportion, inside (0, 1).
        variance: its variance.
        degrees: degrees of freedom of the variance.
        confidence: two-sided, such as 0.95.
    """
    if variance <= 0:
        return Interval(value, value)
    from scipy.special import stdtrit

    tail = 0.5 + confidence / 2
    few = 1.0
    if math.isfinite(degrees):
        few = NormalDist().inv_cdf(tail) / float(stdtrit(max(degrees, MIN_DEGREES_OF_FREEDOM), tail))
    effective = value * (1 - value) / variance * few**2
    return clopper_pearson(value * effective, effective, confidence)


def absence_bound(represented: float, mass: float, unseen: float, confidence: float) -> float:
    """Return the upper bound of the share of positives where the sample has none: the rule of three for unequal weights.

    If rows that make up more than the bound were positive, one of them would be in the sample with at least the confidence,
    wherever they are: the least probable rows are the worst case. For ``n`` rows of equal weight it is the exact binomial bound
    ``1 - (1 - confidence) ** (1 / n)``.

    Args:
        represented: largest mass that a sampled row (or cluster of rows) represents: its mass over its inclusion probability.
        mass: mass of the domain.
        unseen: mass of the domain outside the sample, which limits the bound.
        confidence: of the bound, one-sided, since the lower end is 0 for certain.
    """
    rows = max(mass / represented, 1e-12) if represented > 0 else math.inf
    bound = -math.expm1(math.log1p(-confidence) / rows) if math.isfinite(rows) else 0.0
    return min(bound, max(unseen, 0.0) / mass, 1.0)
