"""Sums behind the metrics of subgroups, for all groups of a column in one pass over the items, compiled by numba.

As in :mod:`vigil_evaluation.stats.bootstrap_kernels`, the innermost loops run over LANES replicates that are
adjacent in memory.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.stats.bootstrap_kernels import LANES, compiled, drawn

POSITIVES, NEGATIVES, WITHIN, OTHERS_POSITIVE, OTHERS_NEGATIVE, HITS, ALARMS = range(7)
"""Places of the sums: the group's positives and negatives; pairs of a positive above a negative (ties count half) with both in
the group, with the negative in the group, with the positive in the group; flagged positives and negatives."""

SUMS = 7


class RankedItems(NamedTuple):
    """K items of one label, sorted by falling score.

    Attributes:
        units_K: resampling unit.
        positive_K: whether the target is positive.
        flagged_K: whether the item is flagged.
        ends_K: place after the last item with the same score.
        starts: start of each item's groups in ``groups_M``, ``[K + 1]``.
        groups_M: groups of the items.
        masses_K: number of items that each represents, at least 1; ``None`` for 1 each.
    """

    units_K: NDArray[np.int32]
    positive_K: NDArray[np.bool_]
    flagged_K: NDArray[np.bool_]
    ends_K: NDArray[np.int32]
    starts: NDArray[np.int32]
    groups_M: NDArray[np.int32]
    masses_K: NDArray[np.float64] | None


@compiled
def _positive(weights: Any, ranked: Any, k: int, sums_XB: Any, negatives_B: Any) -> None:
    """Add positive ``k`` to the sums of one group; ``negatives_B`` is the number of negatives above it."""
    for lane in range(LANES):
        weight = np.float64(drawn(weights[lane], ranked.masses_K, k))
        sums_XB[POSITIVES, lane] += weight
        sums_XB[OTHERS_NEGATIVE, lane] += weight * negatives_B[lane]
    if ranked.flagged_K[k]:
        for lane in range(LANES):
            sums_XB[HITS, lane] += drawn(weights[lane], ranked.masses_K, k)


@compiled
def _negative(weights: Any, ranked: Any, k: int, sums_XB: Any, positives_2B: Any, own_2B: Any) -> None:  # noqa: PLR0917
    """Add negative ``k`` to the sums of one group; both counts of positives are those above it, then those tied with it."""
    for lane in range(LANES):
        weight = np.float64(drawn(weights[lane], ranked.masses_K, k))
        sums_XB[NEGATIVES, lane] += weight
        sums_XB[OTHERS_POSITIVE, lane] += weight * (positives_2B[0, lane] + 0.5 * positives_2B[1, lane])
        sums_XB[WITHIN, lane] += weight * (own_2B[0, lane] + 0.5 * own_2B[1, lane])
    if ranked.flagged_K[k]:
        for lane in range(LANES):
            sums_XB[ALARMS, lane] += drawn(weights[lane], ranked.masses_K, k)


@compiled
def _tied(weights_UB: Any, ranked: Any, first: int, above_G2B: Any, negatives_2B: Any) -> None:
    """Count the positives of each group and of all, and all negatives, of one score."""
    for k in range(first, ranked.ends_K[first]):
        weights = weights_UB[ranked.units_K[k]]
        if ranked.positive_K[k]:
            for lane in range(LANES):
                above_G2B[-1, 1, lane] += drawn(weights[lane], ranked.masses_K, k)
            for m in range(ranked.starts[k], ranked.starts[k + 1]):
                for lane in range(LANES):
                    above_G2B[ranked.groups_M[m], 1, lane] += drawn(weights[lane], ranked.masses_K, k)
        else:
            for lane in range(LANES):
                negatives_2B[1, lane] += drawn(weights[lane], ranked.masses_K, k)


@compiled
def _passed(counts_2B: Any) -> None:
    """Move the tied counts to those above."""
    for lane in range(LANES):
        counts_2B[0, lane] += counts_2B[1, lane]
        counts_2B[1, lane] = 0.0


@compiled
def subgroup_sums(weights_UB: Any, ranked: Any, sums_GXB: Any) -> None:
    """Sum LANES replicates.

    Args:
        weights_UB: see :func:`vigil_evaluation.stats.bootstrap_kernels.draw`.
        ranked: a :class:`RankedItems` whose groups are numbered from 0 to S - 1.
        sums_GXB: written, ``[S + 1, 7, LANES]``: sums of each group, then of all items.
    """
    groups = sums_GXB.shape[0] - 1
    sums_GXB[:] = 0.0
    above_G2B, negatives_2B, negatives_B = np.zeros((groups + 1, 2, LANES)), np.zeros((2, LANES)), np.zeros(LANES)
    first = 0
    while first < len(ranked.units_K):
        last = ranked.ends_K[first]
        _tied(weights_UB, ranked, first, above_G2B, negatives_2B)
        for lane in range(LANES):
            negatives_B[lane] = negatives_2B[0, lane] + 0.5 * negatives_2B[1, lane]
        for k in range(first, last):
            weights = weights_UB[ranked.units_K[k]]
            if ranked.positive_K[k]:
                _positive(weights, ranked, k, sums_GXB[groups], negatives_B)
            else:
                _negative(weights, ranked, k, sums_GXB[groups], above_G2B[groups], above_G2B[groups])
            for m in range(ranked.starts[k], ranked.starts[k + 1]):
                group = ranked.groups_M[m]
                if ranked.positive_K[k]:
                    _positive(weights, ranked, k, sums_GXB[group], negatives_B)
                else:
                    _negative(weights, ranked, k, sums_GXB[group], above_G2B[groups], above_G2B[group])
        for m in range(ranked.starts[first], ranked.starts[last]):
            _passed(above_G2B[ranked.groups_M[m]])
        _passed(above_G2B[groups])
        _passed(negatives_2B)
        first = last
    for group in range(groups + 1):
        for lane in range(LANES):
            # The sum counts the negatives above each positive; all others are below.
            pairs = sums_GXB[group, POSITIVES, lane] * negatives_2B[0, lane]
            sums_GXB[group, OTHERS_NEGATIVE, lane] = pairs - sums_GXB[group, OTHERS_NEGATIVE, lane]
