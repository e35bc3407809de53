"""Which labels are taken for which: among the positives of one label, how often another is flagged that does not hold."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vigil_evaluation.metrics import Floats


@dataclass(frozen=True, slots=True)
class LabelConfusion:
    """Row: a label that holds; column: a label that may be flagged.

    Attributes:
        labels: L labels, of the rows and of the columns.
        share: ``[L][L]``: of the items for which the row's label is known positive and the column's known negative, the share
            that is flagged as the column's label. On the diagonal: of the label's known positives, the share that is flagged.
            ``None`` where there are too few such items.
        known: ``[L][L]``: how many such items there are.
    """

    labels: list[str]
    share: list[list[float | None]]
    known: list[list[int]]


def confusion(targets_NL: Floats, probabilities_NL: Floats, thresholds: Mapping[str, float], enough: int = 1) -> LabelConfusion:
    """Count which labels are flagged where another holds.

    A confusion matrix of several labels an item: rows as in the matrix of one label an item, but an item counts in each row whose
    label holds, and a cell knows only the items whose two targets are both known.

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
