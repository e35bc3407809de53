"""Coverage of conformal thresholds on labelled rows, and whether the guarantees held there.

A guarantee holds in the mean over calibration splits: with n positives and the threshold at the k-th of them, the fraction of
future positives that are missed follows a beta distribution with parameters k and n + 1 - k (Vovk 2012, section 2), whose mean is
at most the stated rate. More misses than stated can be due to few calibration positives or to rows from another distribution;
warnings distinguish the two. Where rows have weights, shares are weighted, and tests use effective
numbers. This detects a change of the positives at unchanged scores, which
:mod:`vigil_evaluation.calibration.drift` cannot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

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

if TYPE_CHECKING:
    from vigil_evaluation.sampling_weights import SamplingWeights

MIN_EXCESS, MIN_EXCESS_WITH_FEW_ITEMS = 1.1, 1.5
"""Smallest ratio of errors to the stated rate for a warning, however significant: where chance does not explain them, and where
few calibration items might, which is common."""


@dataclass(frozen=True, slots=True)
class ErrorShare:
    """Errors against one guarantee on labelled rows.

    Attributes:
        stated: largest expected error rate.
        items: items of the class, whatever their weights.
        errors: errors among them, whatever their weights.
        share: error rate, by weight if items have weights; ``None`` without items.
        interval: exact interval of the error rate (Clopper and Pearson 1934), of effective numbers if items have weights (Korn
            and Graubard 1998).
        fitted_on: calibration items of the class that the threshold was fitted on; if they had weights, the number of items of
            the largest weight that weigh as much.
        effective: effective number of items of the class: the number of independent, equally weighted ones whose error rate would
            vary as much; ``items`` if items have no weights.
    """

    stated: float
    items: int
    errors: int
    share: float | None
    interval: Interval | None
    fitted_on: int
    effective: float


@dataclass(frozen=True, slots=True)
class LabelCoverage:
    """Coverage of one label; ``None`` where too few calibration items gave no threshold.

    Attributes:
        known: items with a known target.
        positive: known positives among them.
        review_threshold: lowest probability at which an item is at least reviewed.
        reviewed: fraction of all items, of known and unknown target, that reach it.
        missed: positives that do not reach it.
        left_out_yes: positives whose prediction set excludes yes.
        left_out_no: negatives whose prediction set excludes no.
        abstained: fraction of all items whose set contains both answers or neither; ``None`` if neither class has a threshold.
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
    """Coverage of all labels, and whether the guarantees hold on these items.

    Attributes:
        miss_rate: guaranteed miss rate of the review thresholds.
        error_rate: guaranteed error rate of the prediction sets, within each class.
        confidence: confidence of each interval.
        labels: label to its coverage.
        reviewed_any: fraction of the items that reach the review threshold of any label that has one.
        drift: these items compared with the calibration split; ``None`` if no reference of the split was kept.
        warnings: guarantees that do not hold, one sentence each; empty if none was found.
    """

    miss_rate: float
    error_rate: float
    confidence: float
    labels: dict[str, LabelCoverage]
    reviewed_any: float | None
    drift: DriftResults | None
    warnings: list[str]


class _GuaranteeCheck(NamedTuple):
    """A guarantee, the observed errors, and the p-value of so many errors under each explanation."""

    label: str
    error: str
    observed: ErrorShare
    p_chance: float
    p_few_items: float


def conformal_coverage(
    calibrated: FittedCalibration,
    targets_NL: ArrayLike,
    probabilities_NL: ArrayLike,
    labels: Sequence[str],
    *,
    confidence: float,
    presence_N: Sequence[str | None] | None = None,
    weights: "SamplingWeights | None" = None,
) -> ConformalCoverage | None:
    """Apply conformal thresholds to labelled rows, and compare the rows with the calibration split.

    Args:
        calibrated: everything that was fitted on the calibration split.
        targets_NL: in [0, 1], NaN for unknown.
        probabilities_NL: calibrated.
        labels: names of the columns.
        confidence: confidence of the intervals.
        presence_N: modalities of each item.
        weights: number of items that each row represents; ``None`` for 1 each.

    Returns:
        The coverage; ``None`` if no thresholds were fitted for these labels.
    """
    if calibrated.conformal is None or not set(labels) <= set(calibrated.conformal.labels):
        return None
    conformal = calibrated.conformal.ordered(labels)
    targets, probabilities = np.asarray(targets_NL, np.float64), np.asarray(probabilities_NL, np.float64)
    drift, (label_N, item_N) = None, (None, None) if weights is None else (weights.label_N, weights.item_N)
    if calibrated.reference is not None and set(labels) <= set(calibrated.reference.labels):
        drift = detect_drift(calibrated.reference.ordered(labels), probabilities, presence_N, item_N)
    if label_N is not None:
        targets = np.where(label_N[:, None] > 0, targets, np.nan)
    coverage = _labels(conformal, targets, probabilities, confidence, label_N, item_N)
    given_L = np.array([label.review is not None for label in conformal.labels.values()])
    reached_N: NDArray[np.bool_] = np.asarray(conformal.reviewed(probabilities)[:, given_L].any(axis=1))
    any_share = _share(reached_N, item_N) if given_L.any() and len(targets) else None
    warnings = [*(drift.warnings if drift is not None else []), *_warnings(coverage)]
    return ConformalCoverage(conformal.miss_rate, conformal.error_rate, confidence, coverage, any_share, drift, warnings)


def _labels(  # noqa: PLR0917 (the arrays, and their weights)
    conformal: ConformalThresholds,
    targets: Floats,
    probabilities: Floats,
    confidence: float,
    label_N: Floats | None,
    item_N: Floats | None,
) -> dict[str, LabelCoverage]:
    reviewed_NL, sets_NL = conformal.reviewed(probabilities), conformal.sets(probabilities)
    return {
        name: _label(label, conformal, targets[:, i], reviewed_NL[:, i], sets_NL[:, i], confidence, label_N, item_N)
        for i, (name, label) in enumerate(conformal.labels.items())
    }


def _label(  # noqa: PLR0917 (the columns of one label)
    label: LabelConformalThresholds,
    conformal: ConformalThresholds,
    targets_N: Floats,
    reviewed_N: NDArray[np.bool_],
    sets_N: NDArray[np.int8],
    confidence: float,
    label_N: Floats | None,
    item_N: Floats | None,
) -> LabelCoverage:
    positive_N, negative_N = targets_N >= 0.5, targets_N < 0.5
    without_yes_N, without_no_N = (np.isin(sets_N, sets) for sets in ((NO, EMPTY), (YES, EMPTY)))

    def errors(threshold: float | None, wrong_N: NDArray[np.bool_], of_N: NDArray[np.bool_], stated: float) -> ErrorShare | None:
        if threshold is None:
            return None
        fitted_on = int(label.fitted_on(positive=of_N is positive_N))
        return _error_share(wrong_N[of_N], stated, confidence, fitted_on, None if label_N is None else label_N[of_N])

    some = len(sets_N) > 0
    return LabelCoverage(
        known=int((positive_N | negative_N).sum()),
        positive=int(positive_N.sum()),
        review_threshold=label.review,
        reviewed=_share(reviewed_N, item_N) if some and label.review is not None else None,
        missed=errors(label.review, ~reviewed_N, positive_N, conformal.miss_rate),
        left_out_yes=errors(label.yes, without_yes_N, positive_N, conformal.error_rate),
        left_out_no=errors(label.no, without_no_N, negative_N, conformal.error_rate),
        abstained=_share(np.isin(sets_N, (BOTH, EMPTY)), item_N) if some and (label.yes, label.no) != (None, None) else None,
    )


def _share(which_N: NDArray[np.bool_], weights_N: Floats | None) -> float:
    return float(which_N.mean() if weights_N is None else np.average(which_N.astype(np.float64), weights=weights_N))


def _error_share(
    wrong_K: NDArray[np.bool_], stated: float, confidence: float, fitted_on: int, weights_K: Floats | None
) -> ErrorShare:
    from vigil_evaluation.stats.binomial import clopper_pearson

    errors, items = int(wrong_K.sum()), len(wrong_K)
    if not items:
        return ErrorShare(stated, 0, 0, None, None, fitted_on, 0.0)
    share, hits, effective = errors / items, float(errors), float(items)
    if weights_K is not None:
        share = _share(wrong_K, weights_K)
        # The linearised variance of a weighted share (Cochran 1977, section 11.7); it vanishes if all or no items are errors.
        apart = float((weights_K**2 * (wrong_K - share) ** 2).sum()) if 0 < errors < items else float((weights_K**2).sum())
        spread = share * (1 - share) if 0 < errors < items else 1.0
        effective = max(min(spread * float(weights_K.sum()) ** 2 / apart, effective), 1.0)
        hits = share * effective
    return ErrorShare(stated, items, errors, share, clopper_pearson(hits, effective, confidence), fitted_on, effective)


def _warnings(coverage: dict[str, LabelCoverage]) -> list[str]:
    from vigil_evaluation.stats.multiple_testing import holm

    checks = []
    for name, label in coverage.items():
        guarantees = {
            "positives were missed by review": label.missed,
            "negatives are taken for certain positives (their prediction set excludes no)": label.left_out_no,
        }
        if label.missed is None or label.left_out_yes is None or label.missed.stated != label.left_out_yes.stated:
            guarantees["positives are taken for certain negatives (their prediction set excludes yes)"] = label.left_out_yes
        checks += [_check(name, error, seen) for error, seen in guarantees.items() if seen is not None and seen.items]
    if not checks:
        return []
    p_chance, p_few_items = (holm(np.array([getattr(c, name) for c in checks])) for name in ("p_chance", "p_few_items"))
    warnings = []
    for check, by_chance, by_few in zip(checks, p_chance, p_few_items, strict=True):
        few_items = bool(by_few > FALSE_ALARM_RATE)
        excess = (check.observed.share or 0.0) / check.observed.stated
        if by_chance <= FALSE_ALARM_RATE and excess >= (MIN_EXCESS_WITH_FEW_ITEMS if few_items else MIN_EXCESS):
            warnings.append(_warning(check, few_items=few_items))
    return warnings


def _check(label: str, error: str, observed: ErrorShare) -> _GuaranteeCheck:
    """Return p-values of so many errors at the stated rate, and at a rate as variable as few calibration items make it."""
    from scipy.special import betainc
    from scipy.stats import betabinom

    if not observed.errors or observed.share is None:
        return _GuaranteeCheck(label, error, observed, 1.0, 1.0)
    items = observed.effective
    errors = observed.share * items
    p_chance = float(betainc(errors, items - errors + 1, observed.stated))
    rank = max(order_statistic(observed.fitted_on, observed.stated), 1)
    # The distribution needs whole numbers; fewer errors are weaker evidence.
    p_few_items = float(betabinom.sf(np.floor(errors + 1e-9) - 1, np.ceil(items - 1e-9), rank, observed.fitted_on + 1 - rank))
    return _GuaranteeCheck(label, error, observed, p_chance, p_few_items)


def _warning(check: _GuaranteeCheck, *, few_items: bool) -> str:
    seen, interval = check.observed, check.observed.interval
    between = "" if interval is None else f" ({_percent(interval.low)} to {_percent(interval.high)})"
    share = f"{_percent(seen.share or 0.0)}{between} of the {seen.items} {check.label} {check.error}"
    if few_items:
        return (
            f"{share}, more than the stated {_percent(seen.stated)}: chance may explain this, since the threshold was fitted on "
            f"only {seen.fitted_on} items; calibrate on more items"
        )
    return (
        f"{share}, more than the stated {_percent(seen.stated)} and more than chance explains: these items differ from the "
        "calibration split, and the guarantee does not hold on them; recalibrate on items like these"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
