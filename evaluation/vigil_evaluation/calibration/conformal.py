"""Conformal prediction: thresholds on calibrated probabilities with guarantees that make no assumption about the model.

Two guarantees per label. Both are over the draw of the calibration items and of the next item, and hold only while the next item
is exchangeable with the calibration items; :mod:`vigil_evaluation.calibration.drift` detects signs that it is not.

- *Review*: items from ``review`` up are at least reviewed, and the expected fraction of positives below is at most the miss rate:
  Conformal Risk Control (Angelopoulos, Bates, Fisch, Lei and Schuster 2024, theorem 1).
- *Sets*: the prediction set of an item holds the answers, yes and no, that cannot be ruled out; within each class the expected
  fraction of items whose set excludes their class is at most the error rate: class-conditional split conformal prediction
  (Vovk 2012). A set with both answers, or none, means to abstain.

Where calibration items were labelled with different probabilities, they are not exchangeable with the next item, but weighted
exchangeable: each counts with its weight, and the next item with its own (Tibshirani, Barber, Candès and Ramdas 2019, theorem 2).
A threshold must not depend on the next item, so that item counts with the largest weight of any row, which is conservative.

Fitting and applying need numpy and the standard library alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_data.json_fields import Count, Fraction, NonNegative

if TYPE_CHECKING:
    from vigil_evaluation.specs import ConformalSpec

Floats = NDArray[np.float64]

NO, YES, BOTH, EMPTY = 0, 1, 2, 3
"""Contents of a prediction set; the last two mean to abstain."""

_ROUNDING = 1e-9
"""Added before truncation, since ``0.29 * 100`` is slightly less than 29."""


@dataclass(frozen=True, slots=True)
class LabelConformalThresholds:
    """Thresholds of one label, each ``None`` if there were too few calibration items of its class.

    Attributes:
        known: calibration items with a known target.
        positive: known positives among them.
        review: lowest probability at which an item is at least reviewed.
        yes: lowest probability whose set contains yes; if ``None``, every set does.
        no: highest probability whose set contains no; if ``None``, every set does.
        positive_weight: weight of the known positives, in units of the largest weight of any row; ``None`` if all count the same.
        negative_weight: weight of the known negatives, in the same unit.
    """

    known: Count
    positive: Count
    review: Fraction | None
    yes: Fraction | None
    no: Fraction | None
    positive_weight: NonNegative | None = None
    negative_weight: NonNegative | None = None

    def fitted_on(self, *, positive: bool) -> float:
        """Return the number of positives or negatives that the thresholds were fitted on; under weights, their weight."""
        weight = self.positive_weight if positive else self.negative_weight
        return float(self.positive if positive else self.known - self.positive) if weight is None else weight

    @property
    def prevalence(self) -> float:
        """Fraction of positives among the known targets, by weight; 0 without a known target."""
        positive, negative = self.fitted_on(positive=True), self.fitted_on(positive=False)
        return positive / (positive + negative) if positive else 0.0


@dataclass(frozen=True, slots=True)
class ConformalThresholds:
    """Conformal thresholds of all labels.

    Attributes:
        miss_rate: guarantee of ``review``.
        error_rate: guarantee of the prediction sets, within each class.
        labels: label to its thresholds, in the order of every ``[.., L]``.
    """

    miss_rate: Fraction
    error_rate: Fraction
    labels: Mapping[str, LabelConformalThresholds]

    def reviewed(self, probabilities_NL: ArrayLike) -> NDArray[np.bool_]:
        """Return the items that are at least reviewed, for each label ``[N, L]``.

        Items without a threshold or a probability (NaN) are always reviewed.

        Args:
            probabilities_NL: calibrated.
        """
        given_NL = self._checked(probabilities_NL)
        thresholds_L = [label.review for label in self.labels.values()]
        return np.asarray(~(given_NL < np.array([-np.inf if t is None else t for t in thresholds_L])))

    def sets(self, probabilities_NL: ArrayLike) -> NDArray[np.int8]:
        """Return the prediction set of each item and label: 0 no, 1 yes, 2 both, 3 neither; the last two mean to abstain.

        The set of an item without a probability (NaN) contains both.

        Args:
            probabilities_NL: calibrated.

        Returns:
            ``[N, L]``.
        """
        given_NL = self._checked(probabilities_NL)
        yes_L = np.array([-np.inf if label.yes is None else label.yes for label in self.labels.values()])
        no_L = np.array([np.inf if label.no is None else label.no for label in self.labels.values()])
        yes_NL, no_NL = ~(given_NL < yes_L), ~(given_NL > no_L)
        return np.where(yes_NL, np.where(no_NL, BOTH, YES), np.where(no_NL, NO, EMPTY)).astype(np.int8)

    def ordered(self, labels: Sequence[str]) -> "ConformalThresholds":
        """Return the same thresholds with labels in another order."""
        return replace(self, labels={label: self.labels[label] for label in labels})

    def mapped(self, maps: Mapping[str, Callable[[Floats], Floats]]) -> "ConformalThresholds":
        """Return the thresholds on other scales, for the named labels.

        A threshold decides identically before and after a non-decreasing map of it and of all probabilities, so the guarantee
        carries over. The new thresholds are float32 numbers; the review and yes thresholds are rounded down and the no threshold
        up, so that probabilities in float32 and in float64 are both on the correct side.

        Args:
            maps: label to a non-decreasing map, such as a calibrator fitted on the same rows.
        """
        return replace(self, labels={name: _mapped(label, maps.get(name, np.asarray)) for name, label in self.labels.items()})

    def _checked(self, probabilities_NL: ArrayLike) -> Floats:
        given_NL = np.asarray(probabilities_NL, np.float64)
        if given_NL.ndim != 2 or given_NL.shape[1] != len(self.labels):
            raise ValueError(f"probabilities {given_NL.shape} must be [N, {len(self.labels)}], one column for each label")
        return given_NL


def risk_control(losses_NK: ArrayLike, alpha: float, largest: float = 1.0) -> int | None:
    """Return the first of K increasingly conservative choices whose expected loss on the next item is at most ``alpha``.

    Conformal Risk Control: the first choice whose mean loss, including one additional item of the largest loss, is at most
    ``alpha`` (Angelopoulos et al. 2024, equation 4). By their theorem 1, the expected loss of the next exchangeable item is then
    at most ``alpha``.

    Args:
        losses_NK: loss of each calibration item at each choice; non-increasing along K.
        alpha: largest expected loss.
        largest: upper bound of the loss of any item.

    Returns:
        The index of the choice; ``None`` if no choice is conservative enough or there are too few items.

    Raises:
        ValueError: if a loss increases along K or exceeds ``largest``.
    """
    losses = np.asarray(losses_NK, np.float64)
    if losses.ndim != 2 or np.isnan(losses).any() or (losses > largest).any():
        raise ValueError(f"losses {losses.shape} must be [N, K], not NaN and at most {largest}")
    if (np.diff(losses, axis=1) > 0).any():
        raise ValueError("the loss of an item must not increase from one choice to the next")
    controlled_K = losses.sum(axis=0) + largest <= alpha * (len(losses) + 1) + _ROUNDING
    return int(np.argmax(controlled_K)) if controlled_K.any() else None


def fit_conformal(
    targets_NL: ArrayLike,
    probabilities_NL: ArrayLike,
    labels: Sequence[str],
    spec: "ConformalSpec",
    weights_N: ArrayLike | None = None,
) -> ConformalThresholds:
    """Fit each label's thresholds on calibration items with a known target; a target of at least 0.5 is positive.

    For the loss "a positive is not reviewed", Conformal Risk Control selects the k-th smallest probability of the n positives,
    with k the integer part of ``alpha * (n + 1)``; it requires n >= ``1 / alpha - 1``, as do split conformal sets. Under weights
    it selects the largest probability below which positives weigh at most ``alpha * (w + m) - m``, where w is the weight of all
    positives and m the largest weight of a row.

    Args:
        targets_NL: in [0, 1], NaN for unknown.
        probabilities_NL: of items that the model was not trained on, and not calibrated on these items except by a map that
            preserves the ranking; see :meth:`ConformalThresholds.mapped`.
        labels: names of the columns.
        spec: miss rate and error rate to guarantee.
        weights_N: number of items that each row represents, finite and at least 0; ``None`` for 1 each.

    Raises:
        ValueError: if the shapes differ, or the probability of an item with a known target is NaN.
    """
    targets, probabilities = np.asarray(targets_NL, np.float64), np.asarray(probabilities_NL, np.float64)
    if targets.shape != probabilities.shape or targets.ndim != 2 or targets.shape[1] != len(labels):
        raise ValueError(f"targets {targets.shape} and probabilities {probabilities.shape} must both be [N, {len(labels)}]")
    if np.isnan(probabilities[~np.isnan(targets)]).any():
        raise ValueError("the probability of an item with a known target is NaN")
    weights, largest = None if weights_N is None else np.asarray(weights_N, np.float64), 1.0
    if weights is not None:
        if weights.shape != targets.shape[:1]:
            raise ValueError(f"weights {weights.shape} must be a number for each of the {len(targets)} rows")
        targets = np.where(weights[:, None] > 0, targets, np.nan)
        largest = float(weights.max(initial=0.0)) or 1.0
    found = {}
    for i, name in enumerate(labels):
        known = ~np.isnan(targets[:, i])
        positive = known & (np.nan_to_num(targets[:, i]) >= 0.5)
        kinds = (positive, known & ~positive)
        positives, negatives = (probabilities[kind, i] for kind in kinds)
        # In items of the largest weight.
        weighed = (None, None) if weights is None else tuple(weights[kind] / largest for kind in kinds)
        below = _quantile(-negatives, spec.error_rate, weighed[1])
        found[name] = LabelConformalThresholds(
            int(known.sum()),
            int(positive.sum()),
            _quantile(positives, spec.miss_rate, weighed[0]),
            _quantile(positives, spec.error_rate, weighed[0]),
            None if below is None else -below,
            *(None if of is None else float(of.sum()) for of in weighed),
        )
    return ConformalThresholds(spec.miss_rate, spec.error_rate, found)


def order_statistic(items: int, alpha: float) -> int:
    """Return the rank, from 1, of the score in ascending order that is the threshold; 0 if there are too few items.

    Args:
        items: calibration items of the class.
        alpha: largest expected fraction of the class below the threshold.
    """
    return int(alpha * (items + 1) + _ROUNDING)


def _quantile(scores_N: Floats, alpha: float, weights_N: Floats | None) -> float | None:
    """Return the largest score with at most a fraction ``alpha`` of the n + 1 below it; the next item has the weight 1."""
    if weights_N is None:
        rank = order_statistic(len(scores_N), alpha)
        return float(np.partition(scores_N, rank - 1)[rank - 1]) if rank else None
    order = np.argsort(scores_N, kind="stable")
    below_N = np.cumsum(weights_N[order]) - weights_N[order]
    allowed = np.flatnonzero(below_N + 1 <= alpha * (weights_N.sum() + 1) + _ROUNDING)
    return float(scores_N[order][allowed[-1]]) if len(allowed) else None


def _mapped(label: LabelConformalThresholds, scale: Callable[[Floats], Floats]) -> LabelConformalThresholds:
    def moved(threshold: float | None, towards: float) -> float | None:
        if threshold is None:
            return None
        exact = float(scale(np.array([threshold]))[0])
        near = np.float32(exact)
        # Compared as Python numbers: numpy would compare in float32, where the two are equal.
        beyond = float(near) > exact if towards < exact else float(near) < exact
        return float(np.nextafter(near, np.float32(towards)) if beyond else near)

    return replace(label, review=moved(label.review, -1), yes=moved(label.yes, -1), no=moved(label.no, 2))
