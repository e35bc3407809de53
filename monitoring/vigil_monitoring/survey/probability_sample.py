"""Probability samples of fixed size, and the variance of estimates from them.

Every statistic is linearized: near the truth it moves like the Horvitz-Thompson total of one number for each row, its influence
(Särndal, Swensson and Wretman 1992, section 5.5). One variance function therefore serves totals, means, ratios and differences.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats

Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ProbabilitySample:
    """Rows that were drawn with known probabilities.

    Attributes:
        probability_N: inclusion probability of each row, in (0, 1]; after :func:`answered`, times the answered share.
        strata_N: stratum of each row, from 0; a number of rows fixed in advance was drawn from each by a high-entropy design.
    """

    probability_N: Floats
    strata_N: Codes

    def __post_init__(self) -> None:
        if not ((self.probability_N > 0) & (self.probability_N <= 1)).all():
            raise ValueError("inclusion probabilities must be in (0, 1]")

    def __len__(self) -> int:
        return len(self.probability_N)

    @property
    def weights_N(self) -> Floats:
        """Number of rows of the population that each row represents."""
        return 1 / self.probability_N

    def rows(self, rows_N: NDArray[np.bool_]) -> "ProbabilitySample":
        """Return some rows of the sample."""
        return ProbabilitySample(self.probability_N[rows_N], self.strata_N[rows_N])


class Statistic(NamedTuple):
    """A linearized statistic.

    Attributes:
        value: its value.
        influence_N: its influence; to first order the statistic varies like ``sum(influence / probability)``.
    """

    value: float
    influence_N: Floats

    def __add__(self, other: object) -> "Statistic":
        if not isinstance(other, Statistic):
            return NotImplemented
        return Statistic(self.value + other.value, self.influence_N + other.influence_N)

    def times(self, factor: float) -> "Statistic":
        """Return the statistic times a constant."""
        return Statistic(self.value * factor, self.influence_N * factor)

    def over(self, other: "Statistic") -> "Statistic":
        """Return the ratio of two statistics (Särndal et al. 1992, section 5.6); the other must not be 0."""
        share = self.value / other.value
        return Statistic(share, (self.influence_N - share * other.influence_N) / other.value)


def total(values_N: Floats, sample: ProbabilitySample) -> Statistic:
    """Return the Horvitz-Thompson total, which is unbiased (Horvitz and Thompson 1952)."""
    return Statistic(float((values_N * sample.weights_N).sum()), values_N)


def calibrated_total(values_N: Floats, mass_N: Floats, mass: float, sample: ProbabilitySample) -> Statistic:
    """Return the total of ``mass x value`` as the known total mass times Hájek's mean (Särndal et al. 1992, section 5.7).

    Args:
        values_N: values.
        mass_N: mass of each row, such as 1 or its exposure; 0 outside the domain.
        mass: sum of the masses over the population.
        sample: the sample.

    Returns:
        0 with no influence where the sample has no mass.
    """
    weighted_N = mass_N * sample.weights_N
    found = float(weighted_N.sum())
    if not found:
        return Statistic(0.0, np.zeros(len(values_N)))
    mean = float((weighted_N * values_N).sum() / found)
    return Statistic(mass * mean, mass_N * (values_N - mean) * (mass / found))


def answered(sample: ProbabilitySample, known_N: NDArray[np.bool_]) -> tuple[ProbabilitySample, tuple[int, ...]]:
    """Return the answered rows of a sample, weighted for the unanswered rows of their stratum.

    Answers are taken for a second phase that reaches each row of a stratum with the same probability (Särndal et al. 1992,
    section 15.6): the probabilities are multiplied by the weighted share of the stratum's rows that is answered.

    Returns:
        The answered rows; and the strata without any, which no answered row represents.
    """
    strata = int(sample.strata_N.max(initial=-1)) + 1
    weights_N = sample.weights_N
    drawn_H = np.bincount(sample.strata_N, weights_N, strata)
    reached_H = np.bincount(sample.strata_N[known_N], weights_N[known_N], strata)
    missing = tuple(int(h) for h in np.flatnonzero((drawn_H > 0) & (reached_H == 0)))
    kept = sample.rows(known_N)
    share_H = np.minimum(reached_H / np.where(drawn_H > 0, drawn_H, 1.0), 1.0)
    return replace(kept, probability_N=kept.probability_N * share_H[kept.strata_N]), missing


def deviations(influences_NK: Floats, sample: ProbabilitySample) -> Floats:
    """Return deviations whose sums of products are the design covariances of statistics, ``[N, K]``.

    The variance is Hájek's (1964) for fixed-size designs of high entropy, in the form of Brewer and Donadio (2003, equation 18
    with Hájek's constants) and Särndal et al. (1992, section 3.6): per stratum, ``n / (n - 1) * sum((1 - p) * (z / p - B) ** 2)``
    with ``B`` the mean of ``z / p`` weighted by ``1 - p``. Rows with probability 1 add nothing; simple random sampling gets its
    finite-population correction. Strata with a single row that was left to chance are joined, which errs upwards.

    Args:
        influences_NK: influences of K statistics.
        sample: the sample.
    """
    expanded_NK = influences_NK * sample.weights_N[:, None]
    joined_N, strata = _joined_strata(sample)
    random_N = 1 - sample.probability_N
    counts_H, random_H = (np.bincount(joined_N, of, strata) for of in (random_N > 0, random_N))
    centre_HK = np.stack([np.bincount(joined_N, random_N * column, strata) for column in expanded_NK.T], axis=1)
    centre_NK = centre_HK[joined_N] / np.where(random_H > 0, random_H, 1.0)[joined_N, None]
    # A single row in all strata: its square, uncentred.
    centre_NK[counts_H[joined_N] < 2] = 0.0
    return (expanded_NK - centre_NK) * np.sqrt(deviation_scales(sample))[:, None]


def deviation_scales(sample: ProbabilitySample) -> Floats:
    """Return ``n / (n - 1) * (1 - p)`` of each row, by which :func:`deviations` scales its squares."""
    joined_N, strata = _joined_strata(sample)
    random_N = 1 - sample.probability_N
    counts_N = np.bincount(joined_N, random_N > 0, strata)[joined_N]
    scales_N: Floats = random_N * np.where(counts_N > 1, counts_N / np.maximum(counts_N - 1, 1), 1.0)
    return scales_N


def _joined_strata(sample: ProbabilitySample) -> tuple[Codes, int]:
    """Return the stratum of each row, where those with a single row left to chance are one more; and their number."""
    strata = int(sample.strata_N.max(initial=-1)) + 1
    counts_H = np.bincount(sample.strata_N, sample.probability_N < 1, strata)
    joined_N: Codes = np.where(counts_H[sample.strata_N] == 1, strata, sample.strata_N)
    return joined_N, strata + 1


def cluster_variance(influence_N: Floats, sample: ProbabilitySample, clusters_N: Codes) -> float:
    """Return the variance that a statistic has because the clusters of the population could have been others.

    With the design variance it makes that for the process which produces the traffic, whose clusters (authors, threads) are
    exchangeable: the sum over the population's clusters of their squared total influence, estimated without bias by weighting
    pairs of rows within a cluster by both weights (Graubard and Korn 2002, section 2).

    Args:
        influence_N: influence of the statistic, without any prediction.
        sample: the sample.
        clusters_N: cluster of each row, from 0; negative for a row of its own.

    Returns:
        At least that of rows without clusters, which noise could make it fall below.
    """
    expanded_N = sample.weights_N * influence_N
    together_N = np.where(clusters_N < 0, clusters_N.max(initial=0) + 1 + np.arange(len(clusters_N)), clusters_N)
    sums_C = np.bincount(np.unique(together_N, return_inverse=True)[1], expanded_N)
    pairs = float((sums_C**2).sum() - (expanded_N**2).sum())
    return float((expanded_N * influence_N).sum()) + max(pairs, 0.0)
