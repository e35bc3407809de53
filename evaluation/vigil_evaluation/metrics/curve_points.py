"""Curves of one label, thinned to a bounded number of points.

Example:
    >>> recall_K, precision_K = precision_recall_curve(operating_points(targets_N, scores_N), 200)
"""

import numpy as np

from vigil_evaluation.metrics.arrays import Floats
from vigil_evaluation.metrics.ranking import OperatingPoints


def precision_recall_curve(points: OperatingPoints, count: int) -> tuple[Floats, Floats]:
    """Return recall and precision, at most about ``count`` points by rising recall: the first of each step of recall.

    Args:
        points: operating points with positives and negatives.
        count: steps of recall.
    """
    recall = points.true_positives / points.positives
    precision = points.true_positives / (points.true_positives + points.false_positives)
    _, first = np.unique(np.ceil(recall * count), return_index=True)
    kept = first[points.true_positives[first] > 0]
    return recall[kept], precision[kept]


def roc_curve(points: OperatingPoints, count: int, decades: int) -> tuple[Floats, Floats]:
    """Return the false-positive rate, and the highest recall of the thresholds that flag no larger share of the negatives.

    Args:
        points: operating points with positives and negatives.
        count: steps of the logarithm of the rate; about as many points are returned.
        decades: lower rates than ten to the minus this power count as one step.
    """
    rates = points.false_positives / points.negatives
    across = np.ceil(count * np.maximum(1 + np.log10(np.maximum(rates, 1e-12)) / decades, 0.0))
    last = np.flatnonzero(np.append(across[1:] != across[:-1], True))
    return rates[last], (points.true_positives / points.positives)[last]
