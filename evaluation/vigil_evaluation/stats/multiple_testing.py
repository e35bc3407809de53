"""Multiple testing: corrections that bound the probability of any false alarm (family-wise error rate).

Two models compared in each metric, label and slice are compared thousands of times, and some of those differences look large
by chance. :func:`step_down` is the step-down max-T method (Westfall and Young 1993; Romano and Wolf 2005): a difference counts if
it exceeds the largest that chance would produce among all hypotheses not yet rejected. Their dependence is estimated from the
bootstrap replicates, which all cells share, so that a hundred correlated metrics cost less than a hundred independent ones.

Such methods fail on small slices, so the statistic is designed for them:

- Metrics of decisions use McNemar's exact test: the standard error is taken around the hypothesis rather than the estimate, so
  that it cannot vanish if all of a few decisions changed in the same direction, and the ratio is referred to the binomial
  distribution of the number of changed decisions. Without a tolerance and clusters it is exactly that test.
- For other metrics, the ratio of excess and standard error is referred to Student's distribution with the number of units.
- Each statistic has an upper bound: all ``m`` units differ in the same direction with probability ``2**-m`` if both directions
  are equally likely. A cell cannot exceed its bound, so it does not count where it could not raise an alarm (Tarone 1990). Slices
  in which almost nothing differs cost no power.
- The null distribution is normal with the replicates' correlations, rather than the replicates themselves: those of a cell with
  three changed decisions have tails of their own, which would dominate the family.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats

CHUNK_DRAWS = 250
"""Number of draws made at once."""

MAX_BOUNDED_UNITS = 1000.0
"""Number of units above which the bound of the sign test is infinite."""


class CellStatistics(NamedTuple):
    """Test statistics of C cells on a standard normal scale, ``[C]`` each.

    Attributes:
        statistics: evidence for a difference.
        bounds: largest possible value of each statistic.
    """

    statistics: Floats
    bounds: Floats


def holm(p_values: Floats) -> Floats:
    """Return p-values corrected by Holm's step-down method (1979), which controls the family-wise error rate.

    Args:
        p_values: ``[K]``, of arbitrarily dependent tests.
    """
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return corrected


def cell_statistics(
    excess_C: Floats, errors_C: Floats, units_C: Floats, differing_C: Floats, decisions_C: NDArray[np.bool_]
) -> CellStatistics:
    """Return the statistic of each cell, approximately standard normal under the hypothesis.

    Args:
        excess_C: estimate minus hypothesis, positive in the tested direction.
        errors_C: bootstrap standard error of the estimate.
        units_C: number of independent units behind the metric.
        differing_C: number of units in which the two models differ.
        decisions_C: whether the metric depends on decisions only.
    """
    from scipy.special import betainc, ndtri, stdtr

    units, differing = np.maximum(units_C, 1.0), np.maximum(np.minimum(units_C, differing_C), 1.0)
    around = np.sqrt(errors_C**2 + excess_C**2 / units)
    score = np.where(around > 0, excess_C / np.where(around > 0, around, 1.0), 0.0)
    # Number of changes for the worse that gives this score: difference of the counts over the root of their sum.
    worse = np.clip((differing + score * np.sqrt(differing)) / 2, 1e-9, differing)
    ratio = np.where(errors_C > 0, excess_C / np.where(errors_C > 0, errors_C, 1.0), np.sign(excess_C) * 1e9)
    p_values = np.where(
        decisions_C, betainc(worse, differing - worse + 1, 0.5), stdtr(np.maximum(units - 1, 1.0), -np.clip(ratio, -1e9, 1e9))
    )
    bounds = np.where(differing > MAX_BOUNDED_UNITS, np.inf, -ndtri(0.5 ** np.minimum(differing, MAX_BOUNDED_UNITS)))
    none = differing_C <= 0
    statistics = np.where(none, -np.inf, np.minimum(-ndtri(p_values), bounds))
    return CellStatistics(statistics, np.where(none, -np.inf, bounds))


def step_down(
    families: Sequence[tuple[CellStatistics, int]], deviations_RC: NDArray[np.floating], draws: int, seed: int
) -> list[Floats]:
    """Return p-values corrected by the step-down max-T method, which controls the family-wise error rate.

    Args:
        families: families of hypotheses about the same C cells, each corrected separately: the statistics, and 1 to test for
            estimates that are too high or -1 for too low.
        deviations_RC: bootstrap replicates of each cell's estimate, in any scale and centre.
        draws: number of draws from the joint null distribution of the statistics.
        seed: of the draws.

    Returns:
        ``[C]`` for each family, at least ``1 / (draws + 1)``.
    """
    random = np.random.default_rng(seed)
    scaled_RC = _standardised(deviations_RC, random)
    orders = [np.argsort(-found.statistics, kind="stable") for found, _ in families]
    exceeded = [np.ones(len(order)) for order in orders]
    for start in range(0, draws, CHUNK_DRAWS):
        normal_BR = random.standard_normal((min(CHUNK_DRAWS, draws - start), len(scaled_RC)), np.float32)
        joint_BC = normal_BR @ scaled_RC
        for place, ((found, sign), order) in enumerate(zip(families, orders, strict=True)):
            drawn_BC = np.minimum(sign * joint_BC, found.bounds.astype(np.float32))[:, order]
            # Maximum over the hypotheses not yet rejected at this cell's turn: itself and all with less evidence.
            largest_BC = np.maximum.accumulate(drawn_BC[:, ::-1], axis=1)[:, ::-1]
            exceeded[place] += (largest_BC >= found.statistics[order]).sum(axis=0)
    corrected = []
    for order, counts in zip(orders, exceeded, strict=True):
        corrected.append(np.empty(len(order)))
        corrected[-1][order] = np.maximum.accumulate(counts / (draws + 1)) if len(order) else counts
    return corrected


def _standardised(deviations_RC: NDArray[np.floating], random: np.random.Generator) -> NDArray[np.float32]:
    """Return columns of mean 0 and length 1: normal combinations of the rows have variance 1 and the columns' correlations."""
    centred = np.nan_to_num(deviations_RC - np.nanmean(deviations_RC, axis=0)).astype(np.float32)
    lengths = np.sqrt((centred**2).sum(axis=0))
    flat = ~(lengths > 0)
    if flat.any():
        # A cell without spread has no correlations.
        centred[:, flat] = random.standard_normal((len(centred), int(flat.sum())), np.float32)
        lengths[flat] = np.sqrt((centred[:, flat] ** 2).sum(axis=0))
    scaled: NDArray[np.float32] = centred / lengths
    return scaled
