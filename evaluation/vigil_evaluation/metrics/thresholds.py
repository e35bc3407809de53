"""Threshold of each label: the one with the best F1 on the given rows, which should be validation rows."""

import numpy as np
from numpy.typing import ArrayLike

from vigil_evaluation.metrics.ranking import operating_points

DEFAULT_THRESHOLD = 0.5
"""Threshold of a label with no known positive or no known negative."""


def choose_thresholds(targets_NL: ArrayLike, probabilities_NL: ArrayLike, weights_N: ArrayLike | None = None) -> list[float]:
    """Return the threshold with the best F1 for each label; an item is flagged if its probability is at least the threshold.

    All thresholds between two neighbouring probabilities decide the same on these rows; the middle is taken, so that rounding in
    another runtime flips no decision. The strictest is taken among thresholds with equal F1. Thresholds are float32 numbers, so
    that comparisons in float32 and float64 agree.

    Args:
        targets_NL: in [0, 1], NaN for unknown.
        probabilities_NL: in [0, 1].
        weights_N: number of items that each row represents; ``None`` for 1 each.

    Returns:
        One threshold in [0, 1] for each label; 0.5 for a label with no known positive or no known negative.

    Raises:
        ValueError: if the shapes differ.
    """
    targets, probabilities = np.asarray(targets_NL), np.asarray(probabilities_NL)
    if targets.ndim != 2 or targets.shape != probabilities.shape:
        raise ValueError(f"targets {targets.shape} and probabilities {probabilities.shape} must both be [N, L]")
    return [_best_f1(targets[:, i], probabilities[:, i], weights_N) for i in range(targets.shape[1])]


def _best_f1(targets_N: ArrayLike, probabilities_N: ArrayLike, weights_N: ArrayLike | None) -> float:
    points = operating_points(targets_N, probabilities_N, weights_N)
    if not points.positives or not points.negatives:
        return DEFAULT_THRESHOLD
    f1 = 2 * points.true_positives / (points.true_positives + points.false_positives + points.positives)
    best = int(np.argmax(f1))
    upper = float(points.thresholds[best])
    lower = float(points.thresholds[best + 1]) if best + 1 < len(points.thresholds) else 0.0
    middle = float(np.float32((lower + upper) / 2))
    return middle if lower < middle <= upper else upper
