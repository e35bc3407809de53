"""What was decided of each item and what was expected of it, read once from a predictions table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.predictions import prediction_arrays


@dataclass(frozen=True, slots=True)
class ItemDecisions:
    """N items and L labels.

    Attributes:
        labels: L labels.
        targets_NL: NaN is unknown.
        probabilities_NL: of the same.
        flagged_NL: whether the probability reaches the label's threshold.
        right_NL: 1 where the decision is right, 0 where it is wrong, NaN where the target is unknown.
    """

    labels: Sequence[str]
    targets_NL: Floats
    probabilities_NL: Floats
    flagged_NL: NDArray[np.bool_]
    right_NL: Floats

    @classmethod
    def of(cls, table: pa.Table, labels: Sequence[str], thresholds: Mapping[str, float]) -> "ItemDecisions":
        """Read a predictions table.

        Args:
            table: of probabilities and targets.
            labels: which labels.
            thresholds: label to the lowest probability that is flagged.

        Raises:
            UserError: a column is absent or holds what it must not.
        """
        targets_NL, probabilities_NL = prediction_arrays(table, labels)
        flagged_NL = probabilities_NL >= np.array([thresholds[label] for label in labels], np.float64)
        right_NL = np.where(np.isnan(targets_NL), np.nan, flagged_NL == (targets_NL >= 0.5))
        return cls(labels, targets_NL, probabilities_NL, flagged_NL, right_NL)
