"""Confusion between labels: rate at which another, negative label is flagged for the positives of one label."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vigil_evaluation.metrics.arrays import Floats


@dataclass(frozen=True, slots=True)
class LabelConfusion:
    """Confusion matrix of labels: a row is a label that holds, a column a label that may be flagged.

    Attributes:
        labels: L labels, of the rows and of the columns.
        share: ``[L][L]``, share flagged as the column's label among the items that are known positive for the row's label and
            known negative for the column's. On the diagonal: share flagged among the label's known positives. ``None`` where
            there are too few such items.
        known: ``[L][L]``, number of such items.
    """

    labels: list[str]
    share: list[list[float | None]]
    known: list[list[int]]


def confusion_between_labels(
    targets_NL: Floats, probabilities_NL: Floats, thresholds: Mapping[str, float], enough: int = 1
) -> LabelConfusion:
    """Return the confusion matrix of multi-label decisions.

    As the usual matrix, except that an item counts in each row whose label holds, and a cell counts only items for which both
    targets are known.

    Args:
        targets_NL: in [0, 1], NaN for unknown.
        probabilities_NL: in [0, 1].
        thresholds: label to the lowest probability that is flagged, in the order of the columns.
        enough: fewest items for a share.
    """
    positive_NL, negative_NL = targets_NL >= 0.5, targets_NL < 0.5
    flagged_NL = probabilities_NL >= np.array(list(thresholds.values()))
    holds_LN = positive_NL.T.astype(np.float64)
    known_LL = holds_LN @ negative_NL
    flagged_LL = holds_LN @ (negative_NL & flagged_NL)
    np.fill_diagonal(known_LL, positive_NL.sum(axis=0))
    np.fill_diagonal(flagged_LL, (positive_NL & flagged_NL).sum(axis=0))
    share = [
        [flagged / known if known >= max(enough, 1) else None for flagged, known in zip(*rows, strict=True)]
        for rows in zip(flagged_LL.tolist(), known_LL.tolist(), strict=True)
    ]
    return LabelConfusion(list(thresholds), share, known_LL.astype(np.int64).tolist())
