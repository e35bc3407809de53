"""One number from the targets and scores of one label: unknown targets masked, ``None`` where the number is not defined.

Everything here is numpy, because scikit-learn takes seconds to import and a metric takes a few lines; the tests compare each
with scikit-learn. A target that is NaN is unknown and takes no part. A soft target counts as positive from 0.5 on, except for
the Brier score and the calibration error, which compare probabilities with the targets as they are. A label with no known
positive, or no known negative, has no ranking and so no number: reporting 0 or 1 for it would look like a finding.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RELIABILITY_BINS = 10


class OperatingPoints(NamedTuple):
    """What is flagged at each threshold that makes a difference, from the strictest to the loosest.

    Attributes:
        thresholds: the distinct scores, falling, ``[K]``; an item is flagged if its score is at least the threshold.
        true_positives: positives flagged at each, ``[K]``.
        false_positives: negatives flagged at each, ``[K]``.
        positives: all positives.
        negatives: all negatives.
    """

    thresholds: Floats
    true_positives: Integers
    false_positives: Integers
    positives: int
    negatives: int


class Confusion(NamedTuple):
    """Decisions at one threshold, counted over known targets; rates that would divide by nothing are ``None``."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def precision(self) -> float | None:
        """Share of the flagged that are positive; ``None`` if nothing is flagged, or if there is one class alone."""
        flagged = self.true_positives + self.false_positives
        return self.true_positives / flagged if flagged and self._has_both() else None

    @property
    def recall(self) -> float | None:
        """Share of the positives that are flagged; ``None`` without positives."""
        positives = self.true_positives + self.false_negatives
        return self.true_positives / positives if positives else None

    @property
    def false_positive_rate(self) -> float | None:
        """Share of the negatives that are flagged; ``None`` without negatives."""
        negatives = self.false_positives + self.true_negatives
        return self.false_positives / negatives if negatives else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, 0 if nothing is flagged; ``None`` if there is one class alone."""
        wrong = self.false_positives + self.false_negatives
        return 2 * self.true_positives / (2 * self.true_positives + wrong) if self._has_both() else None

    @property
    def accuracy(self) -> float | None:
        """Share of the decisions that are right; ``None`` if no target is known."""
        known = sum(self)
        return (self.true_positives + self.true_negatives) / known if known else None

    def _has_both(self) -> bool:
        return self.true_positives + self.false_negatives > 0 and self.false_positives + self.true_negatives > 0


class Reliability(NamedTuple):
    """Items gathered by predicted probability; bins without an item are left out.

    Attributes:
        probability: mean predicted probability of each bin, ``[B]``.
        target: mean target of each bin, ``[B]``.
        items: how many in each bin, ``[B]``.
    """

    probability: Floats
    target: Floats
    items: Integers


def known(targets_N: ArrayLike, scores_N: ArrayLike) -> tuple[Floats, Floats]:
    """The targets and scores of the items whose target is known, ``[K]`` each.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: higher means more likely positive; logits or probabilities.

    Raises:
        ValueError: if the shapes differ, or if a score beside a known target is NaN.
    """
    targets, scores = np.asarray(targets_N, np.float64), np.asarray(scores_N, np.float64)
    if targets.ndim != 1 or targets.shape != scores.shape:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape} must be vectors of one length")
    mask = ~np.isnan(targets)
    targets, scores = targets[mask], scores[mask]
    if nan := int(np.isnan(scores).sum()):
        raise ValueError(f"{nan} of {len(scores)} scores are NaN; such scores cannot be ranked")
    return targets, scores


def operating_points(targets_N: ArrayLike, scores_N: ArrayLike) -> OperatingPoints:
    """Count what is flagged at every distinct score.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: finite or infinite, not NaN.
    """
    targets, scores = known(targets_N, scores_N)
    positive = targets >= 0.5
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    last = np.append(scores[1:] != scores[:-1], True) if len(scores) else np.empty(0, bool)
    true_positives = np.cumsum(positive, dtype=np.int64)[last]
    flagged = np.flatnonzero(last).astype(np.int64) + 1
    positives = int(positive.sum())
    return OperatingPoints(scores[last], true_positives, flagged - true_positives, positives, len(scores) - positives)


def average_precision(targets_N: ArrayLike, scores_N: ArrayLike) -> float | None:
    """Average precision: the mean of precision over the steps of recall, without interpolation.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: logits or probabilities.

    Returns:
        ``None`` without a known positive or without a known negative.
    """
    points = operating_points(targets_N, scores_N)
    if not points.positives or not points.negatives:
        return None
    precision = points.true_positives / (points.true_positives + points.false_positives)
    return float(np.sum(np.diff(points.true_positives, prepend=0) * precision) / points.positives)


def auroc(targets_N: ArrayLike, scores_N: ArrayLike) -> float | None:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counted half.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: logits or probabilities.

    Returns:
        ``None`` without a known positive or without a known negative.
    """
    points = operating_points(targets_N, scores_N)
    if not points.positives or not points.negatives:
        return None
    above = points.true_positives + np.append(0, points.true_positives[:-1])
    area = int(np.sum(np.diff(points.false_positives, prepend=0) * above))
    return area / (2 * points.positives * points.negatives)


def recall_at_fpr(targets_N: ArrayLike, scores_N: ArrayLike, rate: float) -> float | None:
    """The highest recall of any threshold that flags at most ``rate`` of the negatives.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: logits or probabilities.
        rate: largest false-positive rate, in [0, 1]. With fewer than ``1 / rate`` negatives none may be flagged.

    Returns:
        ``None`` without a known positive or without a known negative.
    """
    points = operating_points(targets_N, scores_N)
    if not points.positives or not points.negatives:
        return None
    allowed = points.true_positives[points.false_positives / points.negatives <= rate]
    return float(allowed.max(initial=0) / points.positives)


def decisions_at(targets_N: ArrayLike, scores_N: ArrayLike, threshold: float) -> Confusion:
    """Count right and wrong decisions, flagging scores of at least ``threshold``.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: in the unit of ``threshold``.
        threshold: the lowest score that is flagged.
    """
    targets, scores = known(targets_N, scores_N)
    positive, flagged = targets >= 0.5, scores >= threshold
    counts = (positive & flagged, ~positive & flagged, positive & ~flagged, ~positive & ~flagged)
    return Confusion(*(int(count.sum()) for count in counts))


def f1_at(targets_N: ArrayLike, scores_N: ArrayLike, threshold: float) -> float | None:
    """F1 at a threshold; see :class:`Confusion` for the other numbers of a threshold.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: in the unit of ``threshold``.
        threshold: the lowest score that is flagged.
    """
    return decisions_at(targets_N, scores_N, threshold).f1


def brier(targets_N: ArrayLike, probabilities_N: ArrayLike) -> float | None:
    """Brier score: mean squared difference of probability and target (Brier 1950, in its binary form).

    Args:
        targets_N: in [0, 1], NaN for unknown; soft targets are compared as they are.
        probabilities_N: in [0, 1].

    Returns:
        ``None`` if no target is known.
    """
    targets, probabilities = known(targets_N, probabilities_N)
    return float(np.mean((probabilities - targets) ** 2)) if len(targets) else None


def reliability(targets_N: ArrayLike, probabilities_N: ArrayLike, bins: int = RELIABILITY_BINS) -> Reliability:
    """Gather items into bins of equal width by predicted probability.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        probabilities_N: in [0, 1].
        bins: how many; a probability on a border belongs to the bin above it, 1 to the last.
    """
    targets, probabilities = known(targets_N, probabilities_N)
    place = np.clip((probabilities * bins).astype(np.int64), 0, bins - 1)
    items = np.bincount(place, minlength=bins).astype(np.int64)
    filled = items > 0
    means = [np.bincount(place, weights=values, minlength=bins)[filled] / items[filled] for values in (probabilities, targets)]
    return Reliability(means[0], means[1], items[filled])


def calibration_error(targets_N: ArrayLike, probabilities_N: ArrayLike, bins: int = RELIABILITY_BINS) -> float | None:
    """Expected calibration error: mean distance of probability and frequency over bins, weighted by items (Naeini et al. 2015).

    Args:
        targets_N: in [0, 1], NaN for unknown.
        probabilities_N: in [0, 1].
        bins: as for :func:`reliability`.

    Returns:
        ``None`` if no target is known.
    """
    curve = reliability(targets_N, probabilities_N, bins)
    total = int(curve.items.sum())
    return float(np.sum(curve.items * np.abs(curve.probability - curve.target)) / total) if total else None
