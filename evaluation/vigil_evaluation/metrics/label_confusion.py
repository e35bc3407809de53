"""Confusion between labels: rate at which another, negative label is flagged for the positives of one label."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics.arrays import Floats


@dataclass(frozen=True, slots=True)
class LabelConfusion:
    """Confusion matrix of labels: a row is a label that holds, a column a label that may be flagged.

    Attributes:
        labels: L labels, of the rows and of the columns.
        share: ``[L][L]``, share flagged as the column's label among the items that are known positive for the row's label and
            known negative for the column's. On the diagonal: share flagged among the label's known positives. ``None`` where
            there are too few such items.
        known: ``[L][L]``, number of such items, whatever their weights.
    """

    labels: list[str]
    share: list[list[float | None]]
    known: list[list[int]]


def confusion_between_labels(
    targets_NL: Floats,
    probabilities_NL: Floats,
    thresholds: Mapping[str, float],
    enough: int = 1,
    weights_N: Floats | None = None,
) -> LabelConfusion:
    """Return the confusion matrix of multi-label decisions.

    As the usual matrix, except that an item counts in each row whose label holds, and a cell counts only items for which both
    targets are known.

    Args:
        targets_NL: in [0, 1], NaN for unknown.
        probabilities_NL: in [0, 1].
        thresholds: label to the lowest probability that is flagged, in the order of the columns.
        enough: fewest items for a share; under weights, fewest effective items (Kish 1965).
        weights_N: number of items that each row represents; ``None`` for 1 each.
    """
    positive_NL, negative_NL = targets_NL >= 0.5, targets_NL < 0.5
    flagged_NL = probabilities_NL >= np.array(list(thresholds.values()))
    holds_LN = positive_NL.T.astype(np.float64)

    def counted(flagged_NL: NDArray[np.bool_], weights_N: Floats) -> Floats:
        """Sum the weights of the items of each cell that are flagged as the column's label."""
        sums_LL = (holds_LN * weights_N) @ (negative_NL & flagged_NL)
        np.fill_diagonal(sums_LL, weights_N @ (positive_NL & flagged_NL))
        return sums_LL

    every_NL, one_N = np.ones_like(flagged_NL), np.ones(len(targets_NL))
    masses_N = one_N if weights_N is None else weights_N
    mass_LL = counted(every_NL, masses_N)
    effective_LL = mass_LL**2 / np.maximum(counted(every_NL, masses_N**2), np.finfo(np.float64).tiny)
    enough_LL = effective_LL >= max(enough, 1) * (1 - 1e-9)
    share_LL = counted(flagged_NL, masses_N) / np.where(enough_LL, mass_LL, 1.0)
    share = [
        [value if there else None for value, there in zip(*rows, strict=True)]
        for rows in zip(share_LL.tolist(), enough_LL.tolist(), strict=True)
    ]
    return LabelConfusion(list(thresholds), share, counted(every_NL, one_N).astype(np.int64).tolist())
