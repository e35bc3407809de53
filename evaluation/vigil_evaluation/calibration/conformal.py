"""When to abstain: thresholds on calibrated probabilities with a guarantee that needs no assumption about the model.

Two guarantees for each label, both over the draw of the calibration items and of the next item, and both only as long as the next
item comes from where the calibration items came from; :mod:`vigil_evaluation.calibration.drift` looks for signs that it does not.

- *Review*: from ``review`` on an item is at least reviewed, and the expected share of positives below is at most the miss rate:
  Conformal Risk Control (Angelopoulos, Bates, Fisch, Lei and Schuster 2024, theorem 1).
- *Sets*: an item gets the set of the answers, yes and no, that cannot be ruled out; within each class the expected share of items
  whose set leaves their class out is at most the error rate: class-conditional split conformal prediction (Vovk 2012). Both
  answers, or neither, is to abstain.

Fitting and applying need numpy and the standard library alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_data import json_fields

if TYPE_CHECKING:
    from vigil_evaluation.specs import ConformalSpec

Floats = NDArray[np.float64]

NO, YES, BOTH, EMPTY = 0, 1, 2, 3
"""What a prediction set holds; the last two are to abstain."""

_ROUNDING = 1e-9
"""``0.29 * 100`` is a little less than 29."""


@dataclass(frozen=True, slots=True)
class LabelConformalThresholds:
    """The thresholds of one label, each ``None`` where there were too few calibration items of its class.

    Attributes:
        known: calibration items with a known target.
        positive: those of them that are positive.
        review: the lowest probability from which an item is at least reviewed.
        yes: the lowest probability from which the set holds yes; if ``None``, every set does.
        no: the highest probability up to which the set holds no; if ``None``, every set does.
    """

    known: int
    positive: int
    review: float | None
    yes: float | None
    no: float | None


@dataclass(frozen=True, slots=True)
class ConformalThresholds:
    """When to abstain, for each label.

    Attributes:
        miss_rate: what ``review`` guarantees.
        error_rate: what the sets guarantee within each class.
        labels: label to its thresholds, in the order of every ``[.., L]``.
    """

    miss_rate: float
    error_rate: float
    labels: Mapping[str, LabelConformalThresholds]

    def reviewed(self, probabilities_NL: ArrayLike) -> NDArray[np.bool_]:
        """Which items are at least reviewed, for each label ``[N, L]``.

        All are where there is no threshold, or no probability (NaN).

        Args:
            probabilities_NL: calibrated.
        """
        given_NL = self._checked(probabilities_NL)
        thresholds_L = [label.review for label in self.labels.values()]
        return np.asarray(~(given_NL < np.array([-np.inf if t is None else t for t in thresholds_L])))

    def sets(self, probabilities_NL: ArrayLike) -> NDArray[np.int8]:
        """The prediction set of each item and label: 0 no, 1 yes, 2 both, 3 neither; the last two are to abstain.

        An item without a probability (NaN) gets both.

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
        """The same with labels in another order."""
        return replace(self, labels={label: self.labels[label] for label in labels})

    def mapped(self, maps: Mapping[str, Callable[[Floats], Floats]]) -> "ConformalThresholds":
        """The same on other scales, for the labels that are named.

        A threshold decides alike before and after a rising map of it and of all probabilities, so the guarantee goes with it.
        The new thresholds are float32 numbers, the review and yes thresholds rounded down and the no threshold up, so that
        probabilities kept in float32 and in float64 are both on the right side.

        Args:
            maps: label to a map that never falls, such as a calibrator fitted on the same rows.
        """
        return replace(self, labels={name: _mapped(label, maps.get(name, np.asarray)) for name, label in self.labels.items()})

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        labels = {
            name: {"known": t.known, "positive": t.positive, "review": t.review, "yes": t.yes, "no": t.no}
            for name, t in self.labels.items()
        }
        return {"miss_rate": self.miss_rate, "error_rate": self.error_rate, "labels": labels}

    @classmethod
    def from_dict(cls, value: Any, where: str = "conformal") -> "ConformalThresholds":
        """Read what :meth:`to_dict` made.

        Raises:
            UserError: one line, if it is malformed.
        """
        read = json_fields.mapping(value, where, ("miss_rate", "error_rate", "labels"))
        miss_rate, error_rate = (json_fields.number(read[name], f"{where}.{name}", 0, 1) for name in ("miss_rate", "error_rate"))
        labels = {}
        for name, label in json_fields.mapping(read["labels"], f"{where}.labels").items():
            inside = f"{where}.labels.{name}"
            given = json_fields.mapping(label, inside, ("known", "positive", "review", "yes", "no"))
            counts = [json_fields.count(given[key], f"{inside}.{key}") for key in ("known", "positive")]
            thresholds = [_threshold(given[key], f"{inside}.{key}") for key in ("review", "yes", "no")]
            labels[name] = LabelConformalThresholds(*counts, *thresholds)
        return cls(miss_rate, error_rate, labels)

    def _checked(self, probabilities_NL: ArrayLike) -> Floats:
        given_NL = np.asarray(probabilities_NL, np.float64)
        if given_NL.ndim != 2 or given_NL.shape[1] != len(self.labels):
            raise ValueError(f"probabilities {given_NL.shape} must be [N, {len(self.labels)}], one column for each label")
        return given_NL


def risk_control(losses_NK: ArrayLike, alpha: float, largest: float = 1.0) -> int | None:
    """Conformal Risk Control: the first of K ever more careful choices whose expected loss on the next item is at most ``alpha``.

    The choice is the first whose mean loss, with one more item of the largest loss counted in, is at most ``alpha`` (Angelopoulos
    et al. 2024, equation 4). Theorem 1 there: the expected loss of the next exchangeable item is then at most ``alpha``.

    Args:
        losses_NK: of each calibration item at each choice; never rises along K.
        alpha: the largest expected loss.
        largest: no loss of any item is larger.

    Returns:
        The place of the choice; ``None`` if none is careful enough, or if there are too few items to tell.

    Raises:
        ValueError: if a loss rises along K or is above ``largest``.
    """
    losses = np.asarray(losses_NK, np.float64)
    if losses.ndim != 2 or np.isnan(losses).any() or (losses > largest).any():
        raise ValueError(f"losses {losses.shape} must be [N, K], not NaN and at most {largest}")
    if (np.diff(losses, axis=1) > 0).any():
        raise ValueError("the loss of an item must not rise from one choice to the next")
    careful_K = losses.sum(axis=0) + largest <= alpha * (len(losses) + 1) + _ROUNDING
    return int(np.argmax(careful_K)) if careful_K.any() else None


def fit_conformal(
    targets_NL: ArrayLike, probabilities_NL: ArrayLike, labels: Sequence[str], spec: "ConformalSpec"
) -> ConformalThresholds:
    """Find each label's thresholds on calibration items with a known target; a target of at least 0.5 is positive.

    For the loss "a positive is not reviewed" Conformal Risk Control takes the k-th smallest probability of the n positives, k
    being the whole part of ``alpha * (n + 1)``; it needs n to be at least ``1 / alpha - 1``. So do split conformal sets.

    Args:
        targets_NL: in [0, 1], NaN for unknown.
        probabilities_NL: the model must not have learnt from these items, nor the probabilities be calibrated on them, unless
            by a map that never turns two items round; see :meth:`ConformalThresholds.mapped`.
        labels: names of the columns.
        spec: the guarantees.

    Raises:
        ValueError: if the shapes differ, or a probability beside a known target is NaN.
    """
    targets, probabilities = np.asarray(targets_NL, np.float64), np.asarray(probabilities_NL, np.float64)
    if targets.shape != probabilities.shape or targets.ndim != 2 or targets.shape[1] != len(labels):
        raise ValueError(f"targets {targets.shape} and probabilities {probabilities.shape} must both be [N, {len(labels)}]")
    if np.isnan(probabilities[~np.isnan(targets)]).any():
        raise ValueError("the probability of an item with a known target is NaN")
    found = {}
    for i, name in enumerate(labels):
        known = ~np.isnan(targets[:, i])
        positive = known & (np.nan_to_num(targets[:, i]) >= 0.5)
        ofpositives, ofnegatives = probabilities[positive, i], probabilities[known & ~positive, i]
        below = _quantile(-ofnegatives, spec.error_rate)
        found[name] = LabelConformalThresholds(
            int(known.sum()),
            int(positive.sum()),
            _quantile(ofpositives, spec.miss_rate),
            _quantile(ofpositives, spec.error_rate),
            None if below is None else -below,
        )
    return ConformalThresholds(spec.miss_rate, spec.error_rate, found)


def order_statistic(items: int, alpha: float) -> int:
    """Which of the scores in rising order is the threshold, from 1; 0 if there are too few items for one.

    Args:
        items: calibration items of the class.
        alpha: largest expected share of the class below the threshold.
    """
    return int(alpha * (items + 1) + _ROUNDING)


def _quantile(scores_N: Floats, alpha: float) -> float | None:
    """The largest of the scores that at most a share ``alpha`` of the n + 1 lie below."""
    place = order_statistic(len(scores_N), alpha)
    return float(np.partition(scores_N, place - 1)[place - 1]) if place else None


def _mapped(label: LabelConformalThresholds, scale: Callable[[Floats], Floats]) -> LabelConformalThresholds:
    def moved(threshold: float | None, towards: float) -> float | None:
        if threshold is None:
            return None
        exact = float(scale(np.array([threshold]))[0])
        near = np.float32(exact)
        # As Python numbers: numpy would compare in float32, in which the two are equal.
        beyond = float(near) > exact if towards < exact else float(near) < exact
        return float(np.nextafter(near, np.float32(towards)) if beyond else near)

    return replace(label, review=moved(label.review, -1), yes=moved(label.yes, -1), no=moved(label.no, 2))


def _threshold(value: Any, where: str) -> float | None:
    return None if value is None else json_fields.number(value, where, 0, 1)
