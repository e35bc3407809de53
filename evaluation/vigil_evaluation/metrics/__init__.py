"""One number from the targets and scores of one label: unknown targets masked, ``None`` where the number is not defined.

Everything here is numpy, because scikit-learn takes seconds to import and a metric takes a few lines; the tests compare each
with scikit-learn. A target that is NaN is unknown and takes no part. A soft target counts as positive from 0.5 on, except for the
Brier score, the log loss and the calibration error, which compare probabilities with the targets as they are. A label with no
known positive, or no known negative, has no ranking and so no number: reporting 0 or 1 for it would look like a finding.

A micro number, over several labels at once, is the metric of all their cells in one vector.
"""

from math import erf, exp, pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RELIABILITY_BINS = 10

EPSILON = float(np.finfo(np.float64).eps)
"""How far the log loss keeps probabilities off 0 and 1."""


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


def partial_auroc(targets_N: ArrayLike, scores_N: ArrayLike, rate: float) -> float | None:
    """Area under the ROC curve up to a false-positive rate, scaled so that guessing gives 0.5 and perfection 1 (McClish 1989).

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: logits or probabilities.
        rate: the largest false-positive rate, in (0, 1]; the curve is interpolated there. 1 gives :func:`auroc`.

    Returns:
        ``None`` without a known positive or without a known negative.
    """
    points = operating_points(targets_N, scores_N)
    if not points.positives or not points.negatives:
        return None
    end = rate * points.negatives
    before, after = np.append(0, points.false_positives[:-1]), points.false_positives
    # The positives of one score raise the curve along a ramp from ``before`` to ``after``, and count from there to ``end``.
    within = np.clip(end - before, 0, after - before)
    width = within * within / (2 * np.maximum(after - before, 1)) + np.maximum(end - after, 0)
    area = float(np.sum(np.diff(points.true_positives, prepend=0) * width)) / (points.positives * points.negatives)
    return standardised(area, rate)


def standardised(area: float, rate: float) -> float:
    """An area under the ROC curve up to ``rate`` as McClish scales it: 0.5 for guessing, 1 for perfection."""
    least = rate * rate / 2
    return 0.5 * (1 + (area - least) / (rate - least))


def recall_at_precision(targets_N: ArrayLike, scores_N: ArrayLike, precision: float) -> float | None:
    """The highest recall of any threshold whose flags are positive with at least this precision; 0 if there is none.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: logits or probabilities.
        precision: smallest share of the flagged that are positive, in (0, 1].

    Returns:
        ``None`` without a known positive or without a known negative.
    """
    points = operating_points(targets_N, scores_N)
    if not points.positives or not points.negatives:
        return None
    precise = points.true_positives / (points.true_positives + points.false_positives) >= precision
    return float(points.true_positives[precise].max(initial=0) / points.positives)


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


def log_loss(targets_N: ArrayLike, probabilities_N: ArrayLike) -> float | None:
    """Log loss: mean of the negative log-likelihood of the targets, in nats.

    Args:
        targets_N: in [0, 1], NaN for unknown; soft targets are compared as they are (cross-entropy).
        probabilities_N: in [0, 1]; kept off 0 and 1 by the rounding of float64, as scikit-learn does, so that one sure mistake
            costs 36 nats rather than infinitely many.

    Returns:
        ``None`` if no target is known.
    """
    targets, probabilities = known(targets_N, probabilities_N)
    return float(np.mean(log_losses(targets, probabilities))) if len(targets) else None


def log_losses(targets: Floats, probabilities: Floats) -> Floats:
    """The log loss of each pair; NaN where the target is."""
    kept = np.clip(probabilities, EPSILON, 1 - EPSILON)
    losses: Floats = -(targets * np.log(kept) + (1 - targets) * np.log(1 - kept))
    return losses


def mass_bins(probabilities_N: Floats, bins: int = RELIABILITY_BINS) -> Integers:
    """Number the items by rising probability so that each bin has about the same number of them; equal ones stay together.

    Args:
        probabilities_N: any numbers, not NaN.
        bins: how many at most; fewer are used where many probabilities are equal.

    Returns:
        The bin of each item, ``[N]``, as scikit-learn's ``strategy="quantile"`` has it: the number of inner quantiles below.
    """
    _, place, counts = np.unique(probabilities_N, return_inverse=True, return_counts=True)
    below = (np.cumsum(counts) - counts)[place]
    place_N: Integers = np.maximum((bins * below - 1) // max(len(probabilities_N) - 1, 1), 0).astype(np.int64)
    return place_N


def reliability(targets_N: ArrayLike, probabilities_N: ArrayLike, bins: int = RELIABILITY_BINS) -> Reliability:
    """Gather items into bins of equal mass by predicted probability.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        probabilities_N: in [0, 1].
        bins: how many at most; equal probabilities share one.
    """
    targets, probabilities = known(targets_N, probabilities_N)
    place = mass_bins(probabilities, bins)
    items = np.bincount(place, minlength=bins).astype(np.int64)
    filled = items > 0
    means = [np.bincount(place, weights=values, minlength=bins)[filled] / items[filled] for values in (probabilities, targets)]
    return Reliability(means[0], means[1], items[filled])


def calibration_error(targets_N: ArrayLike, probabilities_N: ArrayLike, bins: int = RELIABILITY_BINS) -> float | None:
    """Expected calibration error over bins of equal mass, less what chance alone adds to it; at least 0.

    The plain error is the mean over items of the distance of mean probability and mean target in their bin (Naeini et al. 2015).
    Chance alone moves the two apart, so it is above 0 for a perfectly calibrated model, and more so the fewer the items. As the
    "normal-debiased" estimator of Kumar, Liang and Ma (2019, Verified Uncertainty Calibration, section 5), this one subtracts
    the estimated bias: a bin's distance is taken to be normal around the one seen, and its expected size (the mean of a folded
    normal, here in closed form rather than drawn) less its size is the bias. The variance is that of target less probability
    within the bin over its items, rather than that of the targets, so that wide bins are not corrected too far.

    Args:
        targets_N: in [0, 1], NaN for unknown; soft targets are compared as they are.
        probabilities_N: in [0, 1].
        bins: as for :func:`reliability`.

    Returns:
        ``None`` if no target is known.
    """
    targets, probabilities = known(targets_N, probabilities_N)
    if not len(targets):
        return None
    place, differences = mass_bins(probabilities, bins), targets - probabilities
    items = np.bincount(place, minlength=bins)
    filled = items > 0
    items, sums = items[filled], np.bincount(place, weights=differences, minlength=bins)[filled]
    squares = np.bincount(place, weights=differences**2, minlength=bins)[filled]
    means = sums / items
    deviations = np.sqrt(np.maximum(squares / items - means**2, 0) / items)
    error = sum(n * debiased(m, s) for n, m, s in zip(items.tolist(), means.tolist(), deviations.tolist(), strict=True))
    return max(float(error) / len(targets), 0.0)


def debiased(mean: float, deviation: float) -> float:
    """The size of ``mean``, less what an error of this standard deviation is expected to add to it."""
    size = abs(mean)
    if not deviation:
        return size
    ratio = size / deviation
    return 2 * size - (deviation * sqrt(2 / pi) * exp(-ratio * ratio / 2) + size * erf(ratio / sqrt(2)))
