"""Fit calibrators on known targets, and select among the methods by cross-validation.

Each method is fitted on all folds but one and scored on that one by log loss; the simplest method within one standard error of
the best is selected (Breiman et al. 1984, section 3.4.3), with the standard error of the difference on the same items. A soft
target t counts as t positives and 1 - t negatives.

Rows may represent several items each (:mod:`vigil_evaluation.sampling_weights`). Fits and losses then weigh each row by that
number, scaled so that the weights sum to the effective number of rows (Kish 1965): what is added as a single item, such as the
pseudo-observations of Platt, then counts as a row of the mean weight, and a common factor changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_evaluation.calibration.calibrators import (
    IDENTITY,
    PARAMETERS,
    Calibration,
    Calibrator,
    FittedCalibration,
    Floats,
    LabelCalibration,
    log_probabilities,
)
from vigil_evaluation.calibration.conformal import fit_conformal
from vigil_evaluation.calibration.drift import DriftReference
from vigil_evaluation.metrics.arrays import effective_items

if TYPE_CHECKING:
    from vigil_evaluation.sampling_weights import SamplingWeights
    from vigil_evaluation.specs import CalibrationSpec, EvaluationSpec

MIN_CLASS_TARGETS = 10
"""Fewest known positives, and fewest known negatives, to fit anything on; under weights, fewest effective ones (Kish 1965)."""

MAX_KNOTS = 64
"""Most knots of an isotonic calibrator; the most similar neighbouring blocks are pooled until it has at most this many."""

_CLIP = 2.0**-26
"""Smallest distance of a probability from 0 or 1 in a log loss, so that one wrong item cannot outweigh all others."""

_MIN_SLOPE = 1e-3
"""Smallest slope of a calibrator: a constant one would lose the ranking."""

_OUTER_RISE = 0.01
"""Fraction of the remaining distance to 0 or 1 by which an isotonic calibrator rises beyond its outer blocks."""

Integers = NDArray[np.int64]


class LabelledRows(NamedTuple):
    """Items with a known target of one label, ``[K]`` each; the weights are ``None`` if all count the same."""

    targets: Floats
    raw: Floats
    folds: Integers
    weights: Floats | None

    def take(self, which: NDArray[np.bool_]) -> "LabelledRows":
        """Return the selected rows."""
        weights = None if self.weights is None else self.weights[which]
        return LabelledRows(self.targets[which], self.raw[which], self.folds[which], weights)

    def classes(self) -> tuple[float, float]:
        """Return the number of positives and of negatives; under weights, the effective ones (Kish 1965)."""
        positive = self.targets >= 0.5
        if self.weights is None:
            return int(positive.sum()), int((~positive).sum())
        # Sums of equal weights round.
        return tuple(effective_items(self.weights[kind]) + 1e-9 for kind in (positive, ~positive))  # type: ignore[return-value]

    def fitted(self, method: str) -> Calibrator:
        """Fit a method on these rows, with weights that sum to their effective number."""
        weights = self.weights
        if weights is not None:
            weights = weights * (effective_items(weights) / weights.sum())
        return FIT_FUNCTIONS[method](self.targets, self.raw, weights)

    def mean(self, values: Floats) -> float:
        """Return the mean of a number of each row."""
        return float(values.mean() if self.weights is None else np.average(values, weights=self.weights))


@dataclass(frozen=True, slots=True)
class SelectedCalibrator:
    """Result of the cross-validation on one set of rows.

    Attributes:
        calibrator: the selected method, fitted on all rows.
        log_loss: method to its mean log loss on held-out folds; empty if there were too few rows to choose.
        losses: held-out log loss of the selected method on each row, ``[K]``.
        probabilities: held-out calibrated probability of each row, ``[K]``.
    """

    calibrator: Calibrator
    log_loss: dict[str, float]
    losses: Floats
    probabilities: Floats


def fit_calibrators(  # noqa: PLR0917 (arrays, their names, how, and two that may be left out)
    targets_NL: ArrayLike,
    probabilities_NL: ArrayLike,
    labels: Sequence[str],
    spec: "CalibrationSpec",
    groups_N: Sequence[str | None] | None = None,
    seed: int = 0,
    *,
    weights_N: ArrayLike | None = None,
) -> Calibration:
    """Fit a calibrator for each label, and for each group where it is better than the pooled one.

    Args:
        targets_NL: in [0, 1], NaN for unknown; items of unknown target are ignored.
        probabilities_NL: raw, in [0, 1], of items that the model was not trained on. Items whose probability is NaN (they could
            not be decoded) are ignored.
        labels: names of the columns.
        spec: methods, folds, and the column to group by.
        groups_N: value of ``spec.by`` of each item; required for groups, ignored without ``spec.by``.
        seed: random seed of the folds.
        weights_N: number of items that each row represents, finite and at least 0; ``None`` for 1 each.

    Raises:
        ValueError: if the shapes differ, a value is outside [0, 1], or a weight is negative or not finite.
    """
    return _cross_fit(targets_NL, probabilities_NL, labels, spec, groups_N, seed, weights_N)[0]


def fit_calibration(  # noqa: PLR0917 (as for fit)
    targets_NL: ArrayLike,
    probabilities_NL: ArrayLike,
    labels: Sequence[str],
    spec: "EvaluationSpec",
    groups_N: Sequence[str | None] | None = None,
    presence_N: Sequence[str | None] | None = None,
    *,
    weights: "SamplingWeights | None" = None,
    unknown_share: float = 1.0,
) -> FittedCalibration:
    """Fit everything that a run and a bundle carry: calibrators, conformal thresholds and the drift reference.

    Conformal thresholds are fitted on raw probabilities and then calibrated. Since a calibrator preserves the ranking, the
    decisions are identical, so one set of rows serves both and the guarantee holds. This is not true of a label some of whose
    groups have their own calibrators, which change the ranking between groups: its thresholds are fitted on held-out calibrated
    probabilities, and the guarantee holds approximately (docs/calibration.md has measurements).

    Args:
        targets_NL: in [0, 1], NaN for unknown.
        probabilities_NL: raw, in [0, 1], of items that the model was not trained on; NaN for items that could not be decoded.
        labels: names of the columns.
        spec: settings of the evaluation.
        groups_N: value of ``spec.calibration.by`` of each item.
        presence_N: modalities of each item.
        weights: number of items that each row represents; ``None`` for 1 each.
        unknown_share: share of the items, chosen at random, that also have a probability of labels whose target is unknown; those
            of the others are NaN. In the drift reference they count for the others, too.

    Raises:
        ValueError: if the shapes differ, or a value is outside [0, 1].
    """
    label_N, item_N = (None, None) if weights is None else (weights.label_N, weights.item_N)
    calibration, held_out = _cross_fit(targets_NL, probabilities_NL, labels, spec.calibration, groups_N, spec.seed, label_N)
    raw = np.asarray(probabilities_NL, np.float64)
    pooled = {name: label.pooled.apply for name, label in calibration.labels.items() if not label.groups}
    ordering = np.where([name in pooled for name in labels], raw, held_out)
    known = np.where(np.isnan(raw), np.nan, np.asarray(targets_NL, np.float64))
    conformal = fit_conformal(known, ordering, labels, spec.conformal, label_N).mapped(pooled)
    weights_NL = None
    if unknown_share < 1:
        weights_NL = np.where(np.isnan(known), 1 / unknown_share, 1.0) * (1.0 if item_N is None else item_N[:, None])
    reference = DriftReference.of(calibration.apply(raw, groups_N), conformal, presence_N, item_N, weights_NL=weights_NL)
    return FittedCalibration(calibration, conformal, reference)


def log_losses(targets_N: Floats, probabilities_N: Floats) -> Floats:
    """Return the log loss of each item, in nats."""
    likely_N = np.clip(probabilities_N, _CLIP, 1 - _CLIP)
    return np.asarray(-(targets_N * np.log(likely_N) + (1 - targets_N) * np.log1p(-likely_N)))


def _checked(targets_NL: ArrayLike, probabilities_NL: ArrayLike, labels: int) -> tuple[Floats, Floats]:
    targets, raw = np.asarray(targets_NL, np.float64), np.asarray(probabilities_NL, np.float64)
    if targets.shape != raw.shape or targets.ndim != 2 or targets.shape[1] != labels:
        raise ValueError(f"targets {targets.shape} and probabilities {raw.shape} must both be [N, {labels}]")
    if ((targets < 0) | (targets > 1)).any():
        raise ValueError("targets must be in [0, 1]")
    return targets, raw


def _cross_fit(  # noqa: PLR0917 (as for fit)
    targets_NL: ArrayLike,
    probabilities_NL: ArrayLike,
    labels: Sequence[str],
    spec: "CalibrationSpec",
    groups_N: Sequence[str | None] | None,
    seed: int,
    weights_N: ArrayLike | None,
) -> tuple[Calibration, Floats]:
    """Return the calibration, and the held-out calibrated probability of each known item, ``[N, L]``."""
    targets, raw = _checked(targets_NL, probabilities_NL, len(labels))
    names = None
    if spec.by is not None and groups_N is not None:
        names = np.empty(len(raw), object)
        names[:] = list(groups_N)
    weights = None if weights_N is None else np.asarray(weights_N, np.float64)
    if weights is not None and (weights.shape != targets.shape[:1] or not (np.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError(f"weights {weights.shape} must be {len(targets)} finite numbers of at least 0")
    held_out = np.full(raw.shape, np.nan)
    found = {}
    for i, name in enumerate(labels):
        random = np.random.default_rng([seed, i])
        found[name] = _label(targets[:, i], raw[:, i], spec, names, random, held_out[:, i], weights)
    return Calibration(spec.by, found), held_out


def _label(  # noqa: PLR0917 (the columns of one label)
    targets_N: Floats,
    raw_N: Floats,
    spec: "CalibrationSpec",
    names_N: NDArray[np.object_] | None,
    random: np.random.Generator,
    held_out_N: Floats,
    weights_N: Floats | None,
) -> LabelCalibration:
    """Fit one label, and write the held-out calibrated probability of each known item into ``held_out_N``."""
    known_N = ~(np.isnan(targets_N) | np.isnan(raw_N))
    if weights_N is not None:
        known_N &= weights_N > 0
    targets_K = targets_N[known_N]
    weights_K = None if weights_N is None else weights_N[known_N]
    rows = LabelledRows(targets_K, raw_N[known_N], _folds(targets_K, spec.folds, random), weights_K)
    pooled = _select(rows, spec)
    held_out_K = pooled.probabilities.copy()
    groups: dict[str, Calibrator] = {}
    if names_N is not None:
        names_K = names_N[known_N]
        for value in sorted({value for value in names_K if value is not None}):
            inside_K = names_K == value
            inside = rows.take(inside_K)
            own = _select(inside, spec) if not inside_K.all() else None
            if own is not None and own.log_loss and _clearly_less(own.losses, pooled.losses[inside_K], inside):
                groups[value] = own.calibrator
                held_out_K[inside_K] = own.probabilities
    held_out_N[known_N] = held_out_K
    return LabelCalibration(pooled.calibrator, groups, pooled.log_loss, len(targets_K), int((targets_K >= 0.5).sum()))


def _folds(targets_K: Floats, folds: int, random: np.random.Generator) -> Integers:
    """Assign each item a random fold, stratified by positives and negatives."""
    order = np.lexsort((random.random(len(targets_K)), targets_K >= 0.5))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order)) % folds
    return places


def _select(rows: LabelledRows, spec: "CalibrationSpec") -> SelectedCalibrator:
    """Select the simplest method within one standard error of the best."""
    losses = {"none": log_losses(rows.targets, rows.raw)}
    if min(rows.classes()) < max(MIN_CLASS_TARGETS, spec.folds):
        return SelectedCalibrator(IDENTITY, {}, losses["none"], rows.raw)
    held_out = {"none": rows.raw}
    for method in (name for name in PARAMETERS if name in spec.methods and name != "none"):
        held_out[method] = _out_of_fold(rows, method)
        losses[method] = log_losses(rows.targets, held_out[method])
    means = {method: rows.mean(of) for method, of in losses.items()}
    best = losses[min(means, key=lambda method: means[method])]
    chosen = next(method for method, of in losses.items() if not _clearly_less(best, of, rows))
    return SelectedCalibrator(rows.fitted(chosen), means, losses[chosen], held_out[chosen])


def _clearly_less(losses_K: Floats, others_K: Floats, rows: LabelledRows) -> bool:
    """Return whether the mean is lower by more than the standard error of the difference on the same items."""
    difference_K, count, weights_K = others_K - losses_K, len(losses_K), rows.weights
    if weights_K is None:
        return bool(difference_K.mean() > difference_K.std(ddof=1) / np.sqrt(count))
    mean = rows.mean(difference_K)
    # The linearised variance of a weighted mean (Cochran 1977, section 11.7).
    squares = float((weights_K**2 * (difference_K - mean) ** 2).sum())
    return bool(mean > np.sqrt(count / (count - 1) * squares) / weights_K.sum())


def _out_of_fold(rows: LabelledRows, method: str) -> Floats:
    held_out = np.empty(len(rows.raw))
    for fold in np.unique(rows.folds):
        inside = rows.folds == fold
        held_out[inside] = rows.take(~inside).fitted(method).apply(rows.raw[inside])
    return held_out


class FitFunction(Protocol):
    """Fits a method on known targets and raw probabilities, ``[K]`` each; a row of weight 2 counts as two rows."""

    def __call__(self, targets_K: Floats, raw_K: Floats, weights_K: Floats | None = None) -> Calibrator:
        """Fit it."""


def fit_none(targets_K: Floats, raw_K: Floats, weights_K: Floats | None = None) -> Calibrator:  # noqa: ARG001 (one of the fits)
    """Return the identity."""
    return IDENTITY


def fit_temperature(targets_K: Floats, raw_K: Floats, weights_K: Floats | None = None) -> Calibrator:
    """Fit the temperature by log loss (Guo et al. 2017, section 4.2)."""
    yes_K, no_K = log_probabilities(raw_K)
    (slope,) = _minimize(targets_K, [yes_K - no_K], _MIN_SLOPE, weights_K, constant=False)
    return Calibrator("temperature", {"temperature": 1 / slope})


def fit_platt(targets_K: Floats, raw_K: Floats, weights_K: Floats | None = None) -> Calibrator:
    """Fit slope and intercept of the log odds by log loss (Platt 1999)."""
    yes_K, no_K = log_probabilities(raw_K)
    slope, intercept = _minimize(targets_K, [yes_K - no_K], _MIN_SLOPE, weights_K, constant=True)
    return Calibrator("platt", {"slope": slope, "intercept": intercept})


def fit_beta(targets_K: Floats, raw_K: Floats, weights_K: Floats | None = None) -> Calibrator:
    """Fit a beta calibrator by log loss (Kull, Silva Filho and Flach 2017, algorithm 1)."""
    yes_K, no_K = log_probabilities(raw_K)
    a, b, c = _minimize(targets_K, [yes_K, -no_K], 0.0, weights_K, constant=True)
    if a + b < _MIN_SLOPE:
        a = b = _MIN_SLOPE
    return Calibrator("beta", {"a": a, "b": b, "c": c})


def fit_isotonic(targets_K: Floats, raw_K: Floats, weights_K: Floats | None = None) -> Calibrator:
    """Fit centred isotonic regression: its blocks, each at its mean, joined by lines (Oron and Flournoy 2017).

    Lines preserve the ranking within blocks. A block without positives, or without negatives, gets the frequency of the rule of
    succession, never 0 or 1. Beyond the means of the outer blocks the line rises by very little, to preserve the ranking.
    """
    from scipy.optimize import isotonic_regression

    read_K = np.asarray(raw_K, np.float32).astype(np.float64)
    distinct, place_K = np.unique(read_K, return_inverse=True)
    items = np.bincount(place_K, weights_K).astype(np.float64)
    sums = np.bincount(place_K, targets_K if weights_K is None else weights_K * targets_K)
    blocks = isotonic_regression(sums / items, weights=items).blocks[:-1]
    items_B, sums_B, raws_B = (np.add.reduceat(values, blocks) for values in (items, sums, items * distinct))
    items_B, sums_B, raws_B = _pooled(items_B, sums_B, raws_B)
    raw_B, calibrated_B = raws_B / items_B, sums_B / items_B
    calibrated_B[0] = max(calibrated_B[0], min(1 / (items_B[0] + 2), *calibrated_B[1:2], 0.5))
    calibrated_B[-1] = min(calibrated_B[-1], max(1 - 1 / (items_B[-1] + 2), *calibrated_B[-2:-1], 0.5))
    keep = np.append(True, np.diff(raw_B) > 0)
    raw, calibrated = raw_B[keep].tolist(), calibrated_B[keep].tolist()
    if raw[0] > 0:
        raw, calibrated = [0.0, *raw], [calibrated[0] * (1 - _OUTER_RISE), *calibrated]
    if raw[-1] < 1:
        raw, calibrated = [*raw, 1.0], [*calibrated, 1 - (1 - calibrated[-1]) * (1 - _OUTER_RISE)]
    return Calibrator("isotonic", {"raw": raw, "calibrated": calibrated})


def _pooled(items_B: Floats, sums_B: Floats, raws_B: Floats) -> tuple[Floats, Floats, Floats]:
    """Pool neighbouring blocks, those first that add least to the squared error, until few enough are left."""
    while len(items_B) > MAX_KNOTS - 2:
        left, right = items_B[:-1], items_B[1:]
        added = left * right / (left + right) * np.diff(sums_B / items_B) ** 2
        starts = np.delete(np.arange(len(items_B)), np.argmin(added) + 1)
        items_B, sums_B, raws_B = (np.add.reduceat(values, starts) for values in (items_B, sums_B, raws_B))
    return items_B, sums_B, raws_B


def _minimize(
    targets_K: Floats, columns: Sequence[Floats], least: float, weights_K: Floats | None, *, constant: bool
) -> list[float]:
    """Return the coefficients of the log odds that minimize the log loss of smoothed targets, the intercept last.

    Targets are smoothed as if one more positive and one more negative had been observed (Platt 1999, section 2.2); without this,
    separable classes would make every probability 0 or 1. The problem is convex.

    Args:
        targets_K: in [0, 1].
        columns: features, ``[K]`` each.
        least: smallest coefficient of a feature.
        weights_K: number of rows that each counts as; ``None`` for 1 each.
        constant: whether to fit an intercept.
    """
    from scipy.optimize import minimize

    if weights_K is None:
        count, positives = float(len(targets_K)), float(targets_K.sum())
    else:
        count, positives = float(weights_K.sum()), float((weights_K * targets_K).sum())
    low, high = 1 / (count - positives + 2), (positives + 1) / (positives + 2)
    smoothed_K = low + targets_K * (high - low)
    features_DK = np.stack(columns)
    # Standardized features reduce the steps of the optimizer.
    centres_D = features_DK.mean(axis=1) if constant else np.zeros(len(columns))
    sizes_D = np.maximum(np.sqrt(((features_DK - centres_D[:, None]) ** 2).mean(axis=1)), 1e-12)
    features_DK = (features_DK - centres_D[:, None]) / sizes_D[:, None]
    if constant:
        features_DK = np.vstack([features_DK, np.ones_like(smoothed_K)])

    def loss_and_gradient(weights_D: Floats) -> tuple[float, Floats]:
        # einsum, since the threads of @ wait for each other; there are at most three columns.
        odds_K = np.einsum("d,dk->k", weights_D, features_DK)
        small_K = np.exp(-np.abs(odds_K))
        loss = np.maximum(odds_K, 0) + np.log1p(small_K) - smoothed_K * odds_K
        residual_K = np.where(odds_K >= 0, 1.0, small_K) / (1 + small_K) - smoothed_K
        if weights_K is not None:
            return float((weights_K * loss).sum() / count), np.einsum("dk,k->d", features_DK, weights_K * residual_K) / count
        return float(loss.mean()), np.einsum("dk,k->d", features_DK, residual_K) / count

    start = [*sizes_D, float(centres_D.sum())] if constant else list(sizes_D)
    bounds = [*((least * size, None) for size in sizes_D), *([(None, None)] * constant)]
    # Not L-BFGS-B: it calls BLAS for its 3 x 3 matrices, whose threads made it up to fifty times slower on a busy machine.
    options = {"ftol": 1e-13, "gtol": 1e-8, "maxfun": 500}
    found = minimize(loss_and_gradient, start, jac=True, bounds=bounds, method="TNC", options=options).x
    weights = found[: len(columns)] / sizes_D
    return [*map(float, weights), *([float(found[-1] - weights @ centres_D)] * constant)]


FIT_FUNCTIONS: Mapping[str, FitFunction] = {
    "none": fit_none,
    "temperature": fit_temperature,
    "platt": fit_platt,
    "beta": fit_beta,
    "isotonic": fit_isotonic,
}
"""Method to the function that fits it."""
