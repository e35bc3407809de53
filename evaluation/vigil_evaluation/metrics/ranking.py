"""Metrics of a ranking: average precision, AUROC, partial AUROC, and recall at a false-positive rate or precision.

Each is a few lines of numpy, because importing scikit-learn takes seconds; the tests compare them with scikit-learn.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vigil_evaluation.metrics.arrays import Floats, Integers, weighted_items


class OperatingPoints(NamedTuple):
    """Counts, or sums of weights, of flagged items at each distinct threshold, from the strictest to the loosest.

    Attributes:
        thresholds: distinct scores, falling, ``[K]``; an item is flagged if its score is at least the threshold.
        true_positives: flagged positives, ``[K]``.
        false_positives: flagged negatives, ``[K]``.
        positives: number of positives.
        negatives: number of negatives.
    """

    thresholds: Floats
    true_positives: Integers | Floats
    false_positives: Integers | Floats
    positives: float
    negatives: float


def operating_points(targets_N: ArrayLike, scores_N: ArrayLike, weights_N: ArrayLike | None = None) -> OperatingPoints:
    """Count the flagged items at every distinct score.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: finite or infinite, not NaN.
        weights_N: number of items that each represents; ``None`` for 1 each.
    """
    targets, scores, weights = weighted_items(targets_N, scores_N, weights_N)
    positive = targets >= 0.5
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    last = np.append(scores[1:] != scores[:-1], True) if len(scores) else np.empty(0, bool)
    if weights is not None:
        sums = [np.cumsum(np.where(kind, weights[order], 0.0)) for kind in (positive, ~positive)]
        return OperatingPoints(scores[last], *(one[last] for one in sums), *(float(one[-1]) if len(one) else 0.0 for one in sums))
    true_positives = np.cumsum(positive, dtype=np.int64)[last]
    flagged = np.flatnonzero(last).astype(np.int64) + 1
    positives = int(positive.sum())
    return OperatingPoints(scores[last], true_positives, flagged - true_positives, positives, len(scores) - positives)


def average_precision(targets_N: ArrayLike, scores_N: ArrayLike, weights_N: ArrayLike | None = None) -> float | None:
    """Return the average precision: mean precision over the steps of recall, without interpolation.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: logits or probabilities.
        weights_N: number of items that each represents; ``None`` for 1 each.

    Returns:
        ``None`` without a known positive or without a known negative.
    """
    points = operating_points(targets_N, scores_N, weights_N)
    if not points.positives or not points.negatives:
        return None
    precision = points.true_positives / (points.true_positives + points.false_positives)
    return float(np.sum(np.diff(points.true_positives, prepend=0) * precision) / points.positives)


def auroc(targets_N: ArrayLike, scores_N: ArrayLike, weights_N: ArrayLike | None = None) -> float | None:
    """Return the area under the ROC curve: probability that a positive scores above a negative, ties counted half.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: logits or probabilities.
        weights_N: number of items that each represents; ``None`` for 1 each.

    Returns:
        ``None`` without a known positive or without a known negative.
    """
    points = operating_points(targets_N, scores_N, weights_N)
    if not points.positives or not points.negatives:
        return None
    above = points.true_positives + np.append(0, points.true_positives[:-1])
    area = np.sum(np.diff(points.false_positives, prepend=0) * above).item()
    return float(area / (2 * points.positives * points.negatives))


def recall_at_fpr(targets_N: ArrayLike, scores_N: ArrayLike, rate: float, weights_N: ArrayLike | None = None) -> float | None:
    """Return the highest recall of any threshold that flags at most a share ``rate`` of the negatives.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: logits or probabilities.
        rate: largest false-positive rate, in [0, 1]. With fewer than ``1 / rate`` negatives none may be flagged.
        weights_N: number of items that each represents; ``None`` for 1 each.

    Returns:
        ``None`` without a known positive or without a known negative.
    """
    points = operating_points(targets_N, scores_N, weights_N)
    if not points.positives or not points.negatives:
        return None
    allowed = points.true_positives[points.false_positives / points.negatives <= rate]
    return float(allowed.max(initial=0) / points.positives)


def partial_auroc(targets_N: ArrayLike, scores_N: ArrayLike, rate: float, weights_N: ArrayLike | None = None) -> float | None:
    """Return the AUROC up to a false-positive rate, scaled to 0.5 for guessing and 1 for a perfect ranking (McClish 1989).

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: logits or probabilities.
        rate: the largest false-positive rate, in (0, 1]; the curve is interpolated there. 1 gives :func:`auroc`.
        weights_N: number of items that each represents; ``None`` for 1 each.

    Returns:
        ``None`` without a known positive or without a known negative.
    """
    points = operating_points(targets_N, scores_N, weights_N)
    if not points.positives or not points.negatives:
        return None
    end = rate * points.negatives
    before, after = np.append(0, points.false_positives[:-1]), points.false_positives
    # The positives of one score raise the curve along a ramp from ``before`` to ``after``, then count up to ``end``.
    within = np.clip(end - before, 0, after - before)
    steps = after - before
    width = within * within / (2 * np.where(steps > 0, steps, 1)) + np.maximum(end - after, 0)
    area = float(np.sum(np.diff(points.true_positives, prepend=0) * width)) / (points.positives * points.negatives)
    return mcclish_scaled(area, rate)


def mcclish_scaled(area: float, rate: float) -> float:
    """Return an area under the ROC curve up to ``rate`` on McClish's scale: 0.5 for guessing, 1 for a perfect ranking."""
    least = rate * rate / 2
    return 0.5 * (1 + (area - least) / (rate - least))


def recall_at_precision(
    targets_N: ArrayLike, scores_N: ArrayLike, precision: float, weights_N: ArrayLike | None = None
) -> float | None:
    """Return the highest recall of any threshold with at least this precision; 0 if there is none.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: logits or probabilities.
        precision: smallest share of the flagged that are positive, in (0, 1].
        weights_N: number of items that each represents; ``None`` for 1 each.

    Returns:
        ``None`` without a known positive or without a known negative.
    """
    points = operating_points(targets_N, scores_N, weights_N)
    if not points.positives or not points.negatives:
        return None
    precise = points.true_positives / (points.true_positives + points.false_positives) >= precision
    return float(points.true_positives[precise].max(initial=0) / points.positives)
