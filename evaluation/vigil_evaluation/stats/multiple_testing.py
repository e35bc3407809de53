"""Many differences tested at once, with a known chance that any one of them is a false alarm.

A model that is compared with another in each metric, label and slice is compared thousands of times, and among thousands of
differences some look large by chance alone. The correction is the step-down max-T method (Westfall and Young 1993; Romano and
Wolf 2005): a difference counts if it is larger than the largest that chance would bring among all those that are still in
question. How they depend on each other is read off the bootstrap replicates, which all cells share, so that a hundred numbers of
the same items do not cost as much as a hundred of their own would.

Small slices are where such methods fail, so the statistic is made for them:

- Decisions are judged as in McNemar's exact test: the standard error is taken around the hypothesis rather than around the
  estimate, so that it cannot vanish where all of a few decisions went the same way, and the ratio is read off the binomial
  distribution of as many decisions as differ. Without a tolerance and clusters it is that test.
- Of other metrics, the ratio of excess and standard error is read off Student's distribution of as many units.
- Either has a largest value that it can take: that all of ``m`` units differ in the same direction has a chance of ``2**-m``
  where either direction is as likely. Beyond it a cell cannot raise an alarm, and so is not counted among those that could have
  (Tarone 1990). Slices in which nearly nothing differs cost no power.
- Chance is drawn from the normal distribution with the replicates' correlations, not from the replicates as they are: those of
  a cell with three changed decisions have tails of their own, by which the whole family would be judged.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats

CHUNK = 250
"""Draws that are made at once."""


MOST = 1000.0
"""Units from which on the sign test has no bound to speak of."""


class CellStatistics(NamedTuple):
    """How much speaks for a difference in each of C cells, ``[C]`` each, as standard normal numbers.

    Attributes:
        statistics: the higher the more.
        bounds: the largest value that each can take.
    """

    statistics: Floats
    bounds: Floats


def holm(p_values: Floats) -> Floats:
    """P-values corrected by Holm's step-down method (1979): rejecting those up to a level errs at all with at most that chance.

    Args:
        p_values: ``[K]``, of tests that may depend on each other in any way.
    """
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return corrected


def cell_statistics(
    excess_C: Floats, errors_C: Floats, units_C: Floats, differing_C: Floats, decisions_C: NDArray[np.bool_]
) -> CellStatistics:
    """The statistic of each cell, about standard normal where the hypothesis holds.

    Args:
        excess_C: by how much the estimate exceeds the hypothesis, in the direction that is looked for.
        errors_C: its standard error, of the bootstrap.
        units_C: independent units that the number rests on.
        differing_C: those of them in which the two models differ.
        decisions_C: whether the metric is one of decisions, which differ or do not.
    """
    from scipy.special import betainc, ndtri, stdtr

    units, differing = np.maximum(units_C, 1.0), np.maximum(np.minimum(units_C, differing_C), 1.0)
    around = np.sqrt(errors_C**2 + excess_C**2 / units)
    score = np.where(around > 0, excess_C / np.where(around > 0, around, 1.0), 0.0)
    # As many for the worse, of all that differ, as give this score: differences over the root of their number.
    worse = np.clip((differing + score * np.sqrt(differing)) / 2, 1e-9, differing)
    ratio = np.where(errors_C > 0, excess_C / np.where(errors_C > 0, errors_C, 1.0), np.sign(excess_C) * 1e9)
    p_values = np.where(
        decisions_C, betainc(worse, differing - worse + 1, 0.5), stdtr(np.maximum(units - 1, 1.0), -np.clip(ratio, -1e9, 1e9))
    )
    bounds = np.where(differing > MOST, np.inf, -ndtri(0.5 ** np.minimum(differing, MOST)))
    none = differing_C <= 0
    statistics = np.where(none, -np.inf, np.minimum(-ndtri(p_values), bounds))
    return CellStatistics(statistics, np.where(none, -np.inf, bounds))


def step_down(
    questions: Sequence[tuple[CellStatistics, int]], deviations_RC: NDArray[np.floating], draws: int, seed: int
) -> list[Floats]:
    """P-values corrected for the number of cells: rejecting those up to a level errs at all with at most that chance.

    Args:
        questions: families of hypotheses of the same C cells, each corrected for itself: the evidence, and 1 if it looks for
            estimates that are too high or -1 for those that are too low.
        deviations_RC: bootstrap replicates of each cell's estimate; any scale and centre.
        draws: from the joint distribution of the statistics where no hypothesis is false.
        seed: of the draws.

    Returns:
        ``[C]`` for each question, at least ``1 / (draws + 1)``.
    """
    random = np.random.default_rng(seed)
    scaled_RC = _standardised(deviations_RC, random)
    orders = [np.argsort(-found.statistics, kind="stable") for found, _ in questions]
    exceeded = [np.ones(len(order)) for order in orders]
    for start in range(0, draws, CHUNK):
        normal_BR = random.standard_normal((min(CHUNK, draws - start), len(scaled_RC)), np.float32)
        joint_BC = normal_BR @ scaled_RC
        for place, ((found, sign), order) in enumerate(zip(questions, orders, strict=True)):
            drawn_BC = np.minimum(sign * joint_BC, found.bounds.astype(np.float32))[:, order]
            # The largest among the cells still in question when it is this cell's turn: itself and all with less evidence.
            largest_BC = np.maximum.accumulate(drawn_BC[:, ::-1], axis=1)[:, ::-1]
            exceeded[place] += (largest_BC >= found.statistics[order]).sum(axis=0)
    corrected = []
    for order, counts in zip(orders, exceeded, strict=True):
        corrected.append(np.empty(len(order)))
        corrected[-1][order] = np.maximum.accumulate(counts / (draws + 1)) if len(order) else counts
    return corrected


def _standardised(deviations_RC: NDArray[np.floating], random: np.random.Generator) -> NDArray[np.float32]:
    """Columns of mean 0 and length 1, so that a normal combination of the rows has variance 1 and the columns' correlations."""
    centred = np.nan_to_num(deviations_RC - np.nanmean(deviations_RC, axis=0)).astype(np.float32)
    lengths = np.sqrt((centred**2).sum(axis=0))
    flat = ~(lengths > 0)
    if flat.any():
        # A cell without any spread has no correlations to speak of either.
        centred[:, flat] = random.standard_normal((len(centred), int(flat.sum())), np.float32)
        lengths[flat] = np.sqrt((centred[:, flat] ** 2).sum(axis=0))
    scaled: NDArray[np.float32] = centred / lengths
    return scaled
