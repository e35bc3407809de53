"""What abstaining gives on labelled rows, and whether the guarantees held there.

A guarantee speaks of the mean over calibration splits: with n positives, and thresholds at the k-th of them, the share of missed
positives among all that are to come is a draw from a beta distribution of parameters k and n + 1 - k (Vovk 2012, section 2), the
mean of which is at most what is stated. So more misses than stated may be bad luck of few calibration positives, or a sign that
these rows are of another kind. Both are said, and apart; this is what catches a change of the positives behind scores that look
as they did, which :mod:`vigil_evaluation.calibration.drift` cannot see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_evaluation.calibration.calibrators import FittedCalibration, Floats
from vigil_evaluation.calibration.conformal import (
    BOTH,
    EMPTY,
    NO,
    YES,
    ConformalThresholds,
    LabelConformalThresholds,
    order_statistic,
)
from vigil_evaluation.calibration.drift import FALSE_ALARM_RATE, DriftResults, detect_drift
from vigil_evaluation.stats.intervals import Interval

MIN_EXCESS, MIN_EXCESS_WITH_FEW_ITEMS = 1.1, 1.5
"""How many times the stated share errors must be for a warning, however sure it is: where chance does not explain them, and where
that of few calibration items does, which is no rare thing."""


@dataclass(frozen=True, slots=True)
class ErrorShare:
    """How often a guarantee was missed on labelled rows.

    Attributes:
        stated: largest expected share.
        items: how many of the class there were.
        errors: in how many it went wrong.
        share: of them; ``None`` without an item.
        interval: exact, of that share (Clopper and Pearson 1934).
        fitted_on: calibration items of the class, on which the threshold rests.
    """

    stated: float
    items: int
    errors: int
    share: float | None
    interval: Interval | None
    fitted_on: int


@dataclass(frozen=True, slots=True)
class LabelCoverage:
    """What abstaining gives for one label; ``None`` where too few calibration items gave no threshold.

    Attributes:
        known: items with a known target.
        positive: those of them that are positive.
        review_threshold: the lowest probability from which an item is at least reviewed.
        reviewed: share of all items, whether their target is known or not, that reach it.
        missed: positives that do not.
        left_out_yes: positives whose prediction set leaves yes out.
        left_out_no: negatives whose prediction set leaves no out.
        abstained: share of all items whose set holds both answers or neither; ``None`` if neither class has a threshold.
    """

    known: int
    positive: int
    review_threshold: float | None
    reviewed: float | None
    missed: ErrorShare | None
    left_out_yes: ErrorShare | None
    left_out_no: ErrorShare | None
    abstained: float | None


@dataclass(frozen=True, slots=True)
class ConformalCoverage:
    """What abstaining gives, whether the guarantees held, and whether they can be trusted on these items.

    Attributes:
        miss_rate: stated of review thresholds.
        error_rate: stated of prediction sets, within each class.
        confidence: of each interval.
        labels: label to its numbers.
        reviewed_any: share of the items that reach the review threshold of some label that has one.
        drift: these items compared with the calibration split; ``None`` where no sketch of that was kept.
        warnings: what does not hold, in words; empty if nothing was found.
    """

    miss_rate: float
    error_rate: float
    confidence: float
    labels: dict[str, LabelCoverage]
    reviewed_any: float | None
    drift: DriftResults | None
    warnings: list[str]


class _GuaranteeCheck(NamedTuple):
    """A guarantee that may not hold: what is said of it, and the chance of so many errors by each explanation."""

    label: str
    what: str
    seen: ErrorShare
    by_chance: float
    by_few: float


def conformal_coverage(
    calibrated: FittedCalibration,
    targets_NL: ArrayLike,
    probabilities_NL: ArrayLike,
    labels: Sequence[str],
    *,
    confidence: float,
    presence_N: Sequence[str | None] | None = None,
) -> ConformalCoverage | None:
    """Apply conformal thresholds to labelled rows, and compare those with the calibration split.

    Args:
        calibrated: all that was fitted on the calibration split.
        targets_NL: in [0, 1], NaN for unknown.
        probabilities_NL: calibrated.
        labels: names of the columns.
        confidence: of the intervals.
        presence_N: of each item the modalities that it has.

    Returns:
        ``None`` if no thresholds were fitted, or if they are not of these labels.
    """
    if calibrated.conformal is None or not set(labels) <= set(calibrated.conformal.labels):
        return None
    conformal = calibrated.conformal.ordered(labels)
    targets, probabilities = np.asarray(targets_NL, np.float64), np.asarray(probabilities_NL, np.float64)
    moved = None
    if calibrated.reference is not None and set(labels) <= set(calibrated.reference.labels):
        moved = detect_drift(calibrated.reference.ordered(labels), probabilities, presence_N)
    found = _labels(conformal, targets, probabilities, confidence)
    given_L = np.array([label.review is not None for label in conformal.labels.values()])
    reached_N = conformal.reviewed(probabilities)[:, given_L].any(axis=1)
    any_share = float(reached_N.mean()) if given_L.any() and len(targets) else None
    warnings = [*(moved.warnings if moved is not None else []), *_warnings(found)]
    return ConformalCoverage(conformal.miss_rate, conformal.error_rate, confidence, found, any_share, moved, warnings)


def _labels(
    conformal: ConformalThresholds, targets: Floats, probabilities: Floats, confidence: float
) -> dict[str, LabelCoverage]:
    reviewed_NL, sets_NL = conformal.reviewed(probabilities), conformal.sets(probabilities)
    return {
        name: _label(label, conformal, targets[:, i], reviewed_NL[:, i], sets_NL[:, i], confidence)
        for i, (name, label) in enumerate(conformal.labels.items())
    }


def _label(  # noqa: PLR0917 (the columns of one label)
    label: LabelConformalThresholds,
    conformal: ConformalThresholds,
    targets_N: Floats,
    reviewed_N: NDArray[np.bool_],
    sets_N: NDArray[np.int8],
    confidence: float,
) -> LabelCoverage:
    positive_N, negative_N = targets_N >= 0.5, targets_N < 0.5
    without_yes_N, without_no_N = (np.isin(sets_N, sets) for sets in ((NO, EMPTY), (YES, EMPTY)))

    def errors(threshold: float | None, wrong_N: NDArray[np.bool_], of_N: NDArray[np.bool_], stated: float) -> ErrorShare | None:
        if threshold is None:
            return None
        fitted_on = label.positive if of_N is positive_N else label.known - label.positive
        return _error_share(int((wrong_N & of_N).sum()), int(of_N.sum()), stated, confidence, fitted_on)

    some = len(sets_N) > 0
    return LabelCoverage(
        known=int((positive_N | negative_N).sum()),
        positive=int(positive_N.sum()),
        review_threshold=label.review,
        reviewed=float(reviewed_N.mean()) if some and label.review is not None else None,
        missed=errors(label.review, ~reviewed_N, positive_N, conformal.miss_rate),
        left_out_yes=errors(label.yes, without_yes_N, positive_N, conformal.error_rate),
        left_out_no=errors(label.no, without_no_N, negative_N, conformal.error_rate),
        abstained=float(np.isin(sets_N, (BOTH, EMPTY)).mean()) if some and (label.yes, label.no) != (None, None) else None,
    )


def _error_share(errors: int, items: int, stated: float, confidence: float, fitted_on: int) -> ErrorShare:
    from vigil_evaluation.stats.proportions import clopper_pearson

    if not items:
        return ErrorShare(stated, 0, 0, None, None, fitted_on)
    return ErrorShare(stated, items, errors, errors / items, clopper_pearson(errors, items, confidence), fitted_on)


def _warnings(found: dict[str, LabelCoverage]) -> list[str]:
    from vigil_evaluation.stats.exact_tests import holm

    doubts = []
    for name, label in found.items():
        seen = {"positives were missed by review": label.missed, "negatives have a set without no": label.left_out_no}
        if label.missed is None or label.left_out_yes is None or label.missed.stated != label.left_out_yes.stated:
            seen["positives have a set without yes"] = label.left_out_yes
        doubts += [_doubt(name, what, errors) for what, errors in seen.items() if errors is not None and errors.items]
    if not doubts:
        return []
    by_chance, by_few = (holm(np.array(p_values)) for p_values in zip(*((d.by_chance, d.by_few) for d in doubts), strict=True))
    texts = []
    for doubt, chance, few in zip(doubts, by_chance, by_few, strict=True):
        unlucky, times = bool(few > FALSE_ALARM_RATE), doubt.seen.errors / (doubt.seen.stated * doubt.seen.items)
        if chance <= FALSE_ALARM_RATE and times >= (MIN_EXCESS_WITH_FEW_ITEMS if unlucky else MIN_EXCESS):
            texts.append(_text(doubt, unlucky=unlucky))
    return texts


def _doubt(name: str, what: str, seen: ErrorShare) -> _GuaranteeCheck:
    """How likely so many errors are at the stated share, and at a share drawn as few calibration items would have it."""
    from scipy.special import betainc
    from scipy.stats import betabinom

    if not seen.errors:
        return _GuaranteeCheck(name, what, seen, 1.0, 1.0)
    by_chance = float(betainc(seen.errors, seen.items - seen.errors + 1, seen.stated))
    place = order_statistic(seen.fitted_on, seen.stated)
    by_few = float(betabinom.sf(seen.errors - 1, seen.items, place, seen.fitted_on + 1 - place))
    return _GuaranteeCheck(name, what, seen, by_chance, by_few)


def _text(doubt: _GuaranteeCheck, *, unlucky: bool) -> str:
    seen, interval = doubt.seen, doubt.seen.interval
    between = "" if interval is None else f" ({_percent(interval.low)} to {_percent(interval.high)})"
    share = f"{_percent(seen.errors / seen.items)}{between} of the {seen.items} {doubt.label} {doubt.what}"
    if unlucky:
        return (
            f"{share}, more than the stated {_percent(seen.stated)}: the threshold rests on {seen.fitted_on} items, whose chance "
            "may explain it; calibrate on more"
        )
    return (
        f"{share}, more than the stated {_percent(seen.stated)} and more than chance explains: these items are not as the "
        "calibration split was, and the guarantee does not hold on them; calibrate anew on items like these"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
