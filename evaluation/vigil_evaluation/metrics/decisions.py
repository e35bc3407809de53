"""Metrics of decisions at a threshold: precision, recall, F1, false-positive rate, accuracy."""

from typing import NamedTuple

from numpy.typing import ArrayLike

from vigil_evaluation.metrics.arrays import weighted_items


class Confusion(NamedTuple):
    """Counts, or sums of weights, of decisions at one threshold; rates with an empty denominator are ``None``."""

    true_positives: float
    false_positives: float
    false_negatives: float
    true_negatives: float

    @property
    def precision(self) -> float | None:
        """Share of the flagged items that are positive; ``None`` if nothing is flagged, or with a single class."""
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
        """Harmonic mean of precision and recall, 0 if nothing is flagged; ``None`` with a single class."""
        wrong = self.false_positives + self.false_negatives
        return 2 * self.true_positives / (2 * self.true_positives + wrong) if self._has_both() else None

    @property
    def accuracy(self) -> float | None:
        """Share of correct decisions; ``None`` if no target is known."""
        known = sum(self)
        return (self.true_positives + self.true_negatives) / known if known else None

    def _has_both(self) -> bool:
        return self.true_positives + self.false_negatives > 0 and self.false_positives + self.true_negatives > 0


def decisions_at(targets_N: ArrayLike, scores_N: ArrayLike, threshold: float, weights_N: ArrayLike | None = None) -> Confusion:
    """Count correct and wrong decisions if scores of at least ``threshold`` are flagged.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: on the scale of ``threshold``.
        threshold: the lowest score that is flagged.
        weights_N: number of items that each represents; ``None`` for 1 each.
    """
    targets, scores, weights = weighted_items(targets_N, scores_N, weights_N)
    positive, flagged = targets >= 0.5, scores >= threshold
    counts = (positive & flagged, ~positive & flagged, positive & ~flagged, ~positive & ~flagged)
    if weights is None:
        return Confusion(*(int(count.sum()) for count in counts))
    return Confusion(*(float(weights[count].sum()) for count in counts))


def f1_at(targets_N: ArrayLike, scores_N: ArrayLike, threshold: float, weights_N: ArrayLike | None = None) -> float | None:
    """Return F1 at a threshold; :class:`Confusion` has the other metrics of a threshold.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        scores_N: on the scale of ``threshold``.
        threshold: the lowest score that is flagged.
        weights_N: number of items that each represents; ``None`` for 1 each.
    """
    return decisions_at(targets_N, scores_N, threshold, weights_N).f1
