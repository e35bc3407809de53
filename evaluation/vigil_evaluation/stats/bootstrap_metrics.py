"""Metrics of one label under any weights of the units; the label is prepared once for all replicates.

Rows may represent several items each, their masses. A replicate then weighs a row by its mass times the number of draws of its
unit, as if each row of the sample were drawn with all that it represents.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import RELIABILITY_BINS, Floats, log_losses, mass_bins
from vigil_evaluation.stats.bootstrap_kernels import (
    LANES,
    LabelRows,
    LabelSums,
    RankedRows,
    RankTally,
    add,
    calibration_errors,
    rank,
)

RANKED = ("average_precision", "auroc", "partial_auroc", "recall_at_fpr", "recall_at_precision")
COUNTED = ("f1", "precision", "recall", "false_positive_rate", "accuracy", "brier", "log_loss")
AT_RATE = ("partial_auroc", "recall_at_fpr")


class BootstrapPlan(NamedTuple):
    """Inputs of the bootstrap that all labels share.

    Attributes:
        units_N: unit of each row.
        units: number of units.
        codes_NC: group of each row in each grouping, numbered across groupings; -1 for none.
        groups: number of groups of all groupings.
        precision: precision of ``recall_at_precision``.
        rate: false-positive rate of ``recall_at_fpr`` and ``partial_auroc``.
        metrics: names of the metrics to compute.
        masses_N: number of items that each row represents, up to a common factor: 0, or at least 1; ``None`` for 1 each.
    """

    units_N: NDArray[np.int32]
    units: int
    codes_NC: NDArray[np.int32]
    groups: int
    precision: float
    rate: float
    metrics: Sequence[str]
    masses_N: Floats | None = None


class PreparedLabel(NamedTuple):
    """Rows of one label: to be summed by outcome, to be ranked, and to be summed by bin; each only if a metric needs it."""

    outcomes: LabelRows | None
    ranking: RankedRows | None
    bins: LabelRows | None


class Calibration(NamedTuple):
    """Calibration error by group and replicate.

    Attributes:
        errors_GB: debiased calibration error, ``[G, LANES]``.
        distances_GB: mean over items of the distance between their bin's mean and a centre, ``[G, LANES]``.
        means_GKB: mean of target minus probability in each of K bins, ``[G, K, LANES]``.
    """

    errors_GB: Floats
    distances_GB: Floats
    means_GKB: Floats


def prepare(targets_N: Floats, probabilities_N: Floats, threshold: float, plan: BootstrapPlan) -> PreparedLabel:
    """Sort a label's rows, and number their outcomes and bins, as far as the requested metrics need it."""
    there_N, masses = ~np.isnan(targets_N), None
    if plan.masses_N is not None:
        there_N &= plan.masses_N > 0
        masses = plan.masses_N[there_N]
    rows = np.flatnonzero(there_N).astype(np.int32)
    targets, probabilities, units, wanted = targets_N[rows], probabilities_N[rows], plan.units_N[rows], set(plan.metrics)
    positive = targets >= 0.5
    outcomes = ranking = bins = None
    if wanted & {*COUNTED, *AT_RATE}:
        losses = {"brier": lambda: (probabilities - targets) ** 2, "log_loss": lambda: log_losses(targets, probabilities)}
        parts = [losses[metric]() for metric in losses if metric in wanted]
        parts = parts if masses is None else [masses, *(part * masses for part in parts)]
        values = np.stack(parts, axis=1) if parts else np.empty((len(rows), 0))
        kinds = (2 * positive + (probabilities >= threshold)).astype(np.uint8)[:, None]
        outcomes = LabelRows(rows, units, plan.codes_NC, kinds, values)
    if wanted & set(RANKED):
        order = np.argsort(-probabilities, kind="stable")
        falling = probabilities[order]
        last = np.append(falling[1:] != falling[:-1], True) if len(rows) else np.empty(0, bool)
        marks = (positive[order] + 2 * last).astype(np.uint8)
        ranking = RankedRows(rows[order], units[order], marks, plan.codes_NC, None if masses is None else masses[order])
    if "calibration_error" in wanted:
        kinds = np.zeros((len(rows), plan.codes_NC.shape[1]), np.uint8)
        for column, codes in enumerate(plan.codes_NC[rows].T):
            by_group = np.argsort(codes, kind="stable")
            for members in np.split(by_group, np.flatnonzero(np.diff(codes[by_group])) + 1):
                kinds[members, column] = mass_bins(probabilities[members], weights_N=None if masses is None else masses[members])
        apart = targets - probabilities
        parts = [apart, apart**2]
        if masses is not None:
            parts = [masses, masses * apart, masses**2, masses**2 * apart, masses**2 * apart**2]
        values = np.stack(parts, axis=1)
        bins = LabelRows(rows, units, plan.codes_NC, kinds, values)
    return PreparedLabel(outcomes, ranking, bins)


def measure(weights_UB: NDArray[np.uint8], label: PreparedLabel, plan: BootstrapPlan) -> dict[str, Floats]:
    """Return each requested metric except the calibration error, ``[G, LANES]``; NaN where undefined."""
    result: dict[str, Floats] = {}
    counts_GKB: NDArray[np.int32] | Floats
    negatives: NDArray[np.int32] | Floats = np.zeros((plan.groups, LANES), np.int32)
    if plan.masses_N is not None:
        negatives = np.zeros((plan.groups, LANES))
    if label.outcomes:
        counts_GKB, sums_GKVB = _summed(weights_UB, label.outcomes, plan, 4)
        if plan.masses_N is not None:
            counts_GKB, sums_GKVB = np.ascontiguousarray(sums_GKVB[:, :, 0]), sums_GKVB[:, :, 1:]
        result.update(_counted(counts_GKB, sums_GKVB.sum(axis=1), plan.metrics))
        negatives = counts_GKB[:, 0] + counts_GKB[:, 1]
    if label.ranking:
        result.update(_ranked(weights_UB, label.ranking, plan, negatives))
    return result


def calibration(weights_UB: NDArray[np.uint8], bins: LabelRows, plan: BootstrapPlan, centres_GK: Floats) -> Calibration:
    """Return the calibration error, and the distance of the bins' means from ``centres_GK``."""
    sums = _summed(weights_UB, bins, plan, RELIABILITY_BINS)
    if plan.masses_N is not None:
        return _weighted_calibration(sums.sums_GKVB, centres_GK)
    errors, distances = np.empty((plan.groups, LANES)), np.empty((plan.groups, LANES))
    calibration_errors(sums, centres_GK, errors, distances)
    return Calibration(errors, distances, sums.sums_GKVB[:, :, 0] / np.maximum(sums.counts_GKB, 1))


def _weighted_calibration(sums_GKVB: Floats, centres_GK: Floats) -> Calibration:
    """Return the calibration error of rows with masses; see :func:`vigil_evaluation.metrics.calibration_error`."""
    from scipy.special import erf

    masses, apart, *squares = np.moveaxis(sums_GKVB, 2, 0)
    means = apart / np.where(masses > 0, masses, 1.0)
    spread = np.sqrt(np.maximum(squares[2] - 2 * means * squares[1] + means**2 * squares[0], 0.0))
    deviations, sizes = spread / np.where(masses > 0, masses, 1.0), np.abs(means)
    ratios = sizes / np.where(deviations > 0, deviations, np.inf)
    folded = deviations * np.sqrt(2 / np.pi) * np.exp(-(ratios**2) / 2) + sizes * erf(ratios / np.sqrt(2))
    errors = masses * (2 * sizes - np.where(deviations > 0, folded, sizes))
    distances, totals = masses * np.abs(means - centres_GK[:, :, None]), masses.sum(axis=1)
    return Calibration(divided(errors.sum(axis=1), totals), divided(distances.sum(axis=1), totals), means)


def ratio(weights_UB: NDArray[np.uint8], rows: LabelRows, plan: BootstrapPlan) -> Floats:
    """Return the ratio of the weighted sums of the first and the second value, ``[G, LANES]``; NaN where the latter is 0."""
    sums_GKVB = _summed(weights_UB, rows, plan, 1).sums_GKVB
    return divided(sums_GKVB[:, 0, 0], sums_GKVB[:, 0, 1])


def _summed(weights_UB: NDArray[np.uint8], rows: LabelRows, plan: BootstrapPlan, kinds: int) -> LabelSums:
    shape = (plan.groups, kinds)
    sums = LabelSums(np.zeros((*shape, LANES), np.int32), np.zeros((*shape, rows.values_NV.shape[1], LANES)))
    add(weights_UB, rows, sums)
    return sums


def _counted(counts_GKB: NDArray[np.int32] | Floats, sums_GVB: Floats, metrics: Sequence[str]) -> dict[str, Floats]:
    tn, fp, fn, tp = (counts_GKB[:, kind].astype(np.float64) for kind in range(4))
    known = tn + fp + fn + tp
    both = ((tp + fn > 0) & (fp + tn > 0)).astype(np.float64)
    result = {}
    if "f1" in metrics:
        result["f1"] = divided(2 * tp, both * (2 * tp + fp + fn))
    if "precision" in metrics:
        result["precision"] = divided(tp, both * (tp + fp))
    if "recall" in metrics:
        result["recall"] = divided(tp, tp + fn)
    if "false_positive_rate" in metrics:
        result["false_positive_rate"] = divided(fp, fp + tn)
    if "accuracy" in metrics:
        result["accuracy"] = divided(tp + tn, known)
    for place, metric in enumerate(metric for metric in ("brier", "log_loss") if metric in metrics):
        result[metric] = divided(sums_GVB[:, place], known)
    return result


def _ranked(
    weights_UB: NDArray[np.uint8], ranking: RankedRows, plan: BootstrapPlan, negatives_GB: NDArray[np.int32] | Floats
) -> dict[str, Floats]:
    shape = (plan.groups, LANES)
    kind = np.int32 if ranking.masses_N is None else np.float64
    hits, misses, found_MGB = np.zeros(shape, kind), np.zeros(shape, kind), np.zeros((len(RANKED), *shape))
    wanted = np.array([metric in plan.metrics for metric in RANKED])
    rank(weights_UB, ranking, RankTally(wanted, plan.precision, plan.rate, hits, misses, negatives_GB, found_MGB))
    both = (hits > 0) & (misses > 0)
    positives, pairs = np.where(both, hits, 0).astype(np.float64), np.where(both, hits.astype(np.float64) * misses, 0)
    least = plan.rate**2 / 2
    values = {
        "average_precision": divided(found_MGB[0], positives),
        "auroc": divided(2 * pairs - found_MGB[1], 2 * pairs),
        "partial_auroc": 0.5 * (1 + (divided(found_MGB[2], pairs) - least) / (plan.rate - least)),
        "recall_at_fpr": divided(found_MGB[3], positives),
        "recall_at_precision": divided(found_MGB[4], positives),
    }
    return {metric: values[metric] for metric in RANKED if metric in plan.metrics}


def divided(above: Any, below: Any) -> Floats:
    """Return ``above / below``; NaN for a division by 0."""
    result: Floats = np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) != 0)
    return result
