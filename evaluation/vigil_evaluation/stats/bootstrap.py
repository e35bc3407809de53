"""Exact Poisson bootstrap of every metric, for all labels and groups at once.

A replicate draws each unit (an item, or all items of a cluster) a Poisson(1) number of times, the limit of drawing N of N with
replacement for large N (Hanley and MacGibbon 2006; Chamandy et al. 2012), with independent weights. Weights are a pure function
of seed, unit and replicate, so calls with the same :class:`Resampling` are paired, whichever labels, groups and metrics each
requests, on any number of threads. Each label is sorted once; one pass over its rows computes 64 replicates of all groups.
Nothing is binned: a replicate equals scikit-learn's metric with the weights as ``sample_weight``, up to float32. Rows may
represent several items each, as in a stratified review; a replicate then weighs each row by that number times its draws.

Example:
    >>> parameters = MetricParameters(false_positive_rate=0.01, precision=0.9, thresholds_L=np.array([0.5]))
    >>> replicates = replicate(targets_NL, probabilities_NL, [np.zeros(len(targets_NL), int)], parameters, Resampling(1000))
    >>> replicates.estimates["auroc"], replicates.samples["auroc"]  # [G, L] and [R, G, L]
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_evaluation.metrics import RELIABILITY_BINS, Floats

if TYPE_CHECKING:
    from vigil_evaluation.stats.bootstrap_metrics import BootstrapPlan, PreparedLabel

METRICS = (
    *("average_precision", "auroc", "partial_auroc", "recall_at_fpr", "recall_at_precision"),
    *("f1", "precision", "recall", "false_positive_rate", "accuracy", "brier", "log_loss", "calibration_error"),
)
"""All metrics, by their names in the results; :mod:`vigil_evaluation.metrics` defines each."""

COUNTED = METRICS[5:12]
"""Metrics that are a ratio of two sums over items."""

NEEDS_POSITIVES = (*METRICS[:5], "f1", "precision", "recall")
NEEDS_NEGATIVES = (*METRICS[:5], "f1", "precision", "false_positive_rate")
UNBOUNDED = ("brier", "log_loss", "calibration_error")
"""Metrics that are not shares."""

MEMORY_BYTES = 2**29
"""Largest size of the weights held at once, and of the prepared labels."""

BYTES_PER_ROW = 64
"""Size of a row of a prepared label; one more byte for each grouping."""

CALIBRATION_LEVEL = 0.01
"""Perfect calibration is not rejected if a larger share of replicates moves as far from the data as the data are from it."""

WEIGHTED_CALIBRATION_LEVEL = 0.001
"""The same for rows with weights, where replicates move less than the data: a few heavy rows decide the means of bins with rare
positives. docs/decisions/0016-sampling-weights.md reports the coverage with both levels."""

Codes = NDArray[np.int32]
Groups = Sequence[Codes | tuple[Codes, int]]


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """Settings of the bootstrap; two calls with the same settings are paired.

    Attributes:
        replicates: number of replicates; 0 for estimates only.
        seed: from 0 to 2**63 - 1.
        clusters: unit of each row, ``[N]``, from 0; ``None`` if each row is its own unit.
    """

    replicates: int = 1000
    seed: int = 0
    clusters: Codes | None = None

    def units(self, rows: int) -> int:
        """Return the number of units of a table with this number of rows."""
        return rows if self.clusters is None else int(self.clusters.max(initial=-1)) + 1


@dataclass(frozen=True, slots=True, eq=False)
class MetricParameters:
    """Parameters of the metrics that need one.

    Attributes:
        false_positive_rate: rate of ``recall_at_fpr``, and the upper limit of ``partial_auroc``.
        precision: precision of ``recall_at_precision``.
        thresholds_L: lowest probability that is flagged, for each label.
    """

    false_positive_rate: float
    precision: float
    thresholds_L: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Replicates:
    """Metrics and their bootstrap replicates for the G groups of all groupings, in order.

    Attributes:
        estimates: metric to its value, ``[G, L]``, as defined in :mod:`vigil_evaluation.metrics`; NaN where undefined.
        samples: metric to its replicates, float32 ``[R, G, L]``; NaN where undefined.
        known_GL: number of known targets, whatever their weights.
        positive_GL: number of known positives, whatever their weights.
        calibrated_GL: whether perfect calibration is not rejected; the interval of the calibration error should then start at 0.
    """

    estimates: dict[str, Floats]
    samples: dict[str, NDArray[np.float32]]
    known_GL: NDArray[np.int64]
    positive_GL: NDArray[np.int64]
    calibrated_GL: NDArray[np.bool_]


def replicate(  # noqa: PLR0917 (arrays, groups, and how they are measured)
    targets_NL: ArrayLike,
    probabilities_NL: ArrayLike,
    groups: Groups,
    parameters: MetricParameters,
    resampling: Resampling,
    metrics: Sequence[str] = METRICS,
    *,
    weights_N: ArrayLike | None = None,
    enough: int = 1,
    widened: bool = True,
) -> Replicates:
    """Compute metrics of each label over each group of rows, and their bootstrap replicates.

    Args:
        targets_NL: in [0, 1], NaN for unknown; positive from 0.5 on.
        probabilities_NL: in [0, 1]; ignored where the target is unknown.
        groups: groupings of the rows: the group of each row, ``[N]`` from 0, -1 for none; or a pair of that and the number of
            groups, if the last ones may be empty. A column of zeros is all rows.
        parameters: rates, precision and thresholds of the metrics.
        resampling: settings of the bootstrap.
        metrics: names of the metrics to compute.
        weights_N: number of items that each row represents, finite and at least 0; ``None`` for 1 each.
        enough: fewest known positives, negatives or (for a metric that needs neither) known targets; NaN below. Under weights,
            fewest effective ones (Kish 1965).
        widened: whether shares of 0 or 1 get spread, see :func:`widen`; false for the difference of two calls.

    Raises:
        ValueError: if shapes differ, a metric does not exist, or the probability of a known target is NaN.
    """
    targets, probabilities = np.asarray(targets_NL, np.float64), np.asarray(probabilities_NL, np.float64)
    if targets.ndim != 2 or targets.shape != probabilities.shape or len(parameters.thresholds_L) != targets.shape[1]:
        raise ValueError(
            f"targets {targets.shape}, probabilities {probabilities.shape}, thresholds {len(parameters.thresholds_L)}"
        )
    if unknown := sorted(set(metrics) - set(METRICS)):
        raise ValueError(f"no such metric: {', '.join(unknown)}")
    if nan := int(np.isnan(probabilities[~np.isnan(targets)]).sum()):
        raise ValueError(f"{nan} probabilities of known targets are NaN")
    from vigil_evaluation.stats.bootstrap_metrics import prepare

    plan = _plan(len(targets), groups, resampling, metrics, parameters, weights_N)
    if plan.masses_N is not None:
        targets = np.where(plan.masses_N[:, None] > 0, targets, np.nan)
    shape = (plan.groups, targets.shape[1])
    known_GL, positive_GL = _counts(~np.isnan(targets), plan), _counts(targets >= 0.5, plan)
    found = Replicates(
        {metric: np.full(shape, np.nan) for metric in metrics},
        {metric: np.full((resampling.replicates, *shape), np.nan, np.float32) for metric in metrics},
        known_GL,
        positive_GL,
        np.zeros(shape, np.bool_),
    )
    size = max(1, MEMORY_BYTES // ((BYTES_PER_ROW + plan.codes_NC.shape[1]) * max(len(targets), 1)))
    for first in range(0, shape[1], size):
        some = range(first, min(first + size, shape[1]))
        labels = [prepare(targets[:, i], probabilities[:, i], float(parameters.thresholds_L[i]), plan) for i in some]
        _fill(found, labels, first, plan, resampling)
    if widened:
        flagged_NL = ~np.isnan(targets) & (probabilities >= parameters.thresholds_L)
        if plan.masses_N is None:
            _widen_shares(found, _counts(flagged_NL, plan), _unit_sizes(plan)[:, None], resampling.seed)
        else:
            _widen_weighted_shares(found, targets, flagged_NL, plan, resampling.seed)
    _hide(
        found,
        enough,
        None if plan.masses_N is None else [_effective(of, plan) for of in (targets >= 0, targets >= 0.5, targets < 0.5)],
    )
    return found


def replicate_ratio(
    numerator_NK: ArrayLike,
    denominator_NK: ArrayLike,
    groups: Groups,
    resampling: Resampling,
    weights_N: ArrayLike | None = None,
) -> tuple[Floats, NDArray[np.float32]]:
    """Compute the ratio of two weighted sums over the rows of each group, and its bootstrap replicates.

    Args:
        numerator_NK: K numbers for each row; NaN counts as 0.
        denominator_NK: the same for the denominator.
        groups: as for :func:`replicate`.
        resampling: settings of the bootstrap.
        weights_N: as for :func:`replicate`.

    Returns:
        Estimates ``[G, K]`` and samples ``[R, G, K]``; NaN where the denominator is 0.
    """
    from vigil_evaluation.stats.bootstrap_kernels import LANES, LabelRows
    from vigil_evaluation.stats.bootstrap_metrics import ratio

    above, below = np.nan_to_num(np.asarray(numerator_NK, np.float64)), np.nan_to_num(np.asarray(denominator_NK, np.float64))
    if above.ndim != 2 or above.shape != below.shape:
        raise ValueError(f"numerators {above.shape} and denominators {below.shape} must both be [N, K]")
    plan = _plan(len(above), groups, resampling, weights_N=weights_N)
    shares_K = ((above >= 0) & (above <= below)).all(axis=0)
    if plan.masses_N is not None:
        above, below = above * plan.masses_N[:, None], below * plan.masses_N[:, None]
    estimates = np.full((plan.groups, above.shape[1]), np.nan)
    samples = np.full((resampling.replicates, plan.groups, above.shape[1]), np.nan, np.float32)

    def prepared(k: int) -> LabelRows:
        rows = np.flatnonzero((above[:, k] != 0) | (below[:, k] != 0)).astype(np.int32)
        values = np.stack([above[rows, k], below[rows, k]], axis=1)
        return LabelRows(rows, plan.units_N[rows], plan.codes_NC, np.zeros((len(rows), 1), np.uint8), values)

    def sample(block: int, weights_UB: NDArray[np.uint8], k: int) -> None:
        at = slice(block * LANES, (block + 1) * LANES)
        samples[at, :, k] = ratio(weights_UB, columns[k], plan).T[: len(samples[at])]

    columns = [prepared(k) for k in range(above.shape[1])]
    for k, rows in enumerate(columns):
        estimates[:, k] = ratio(_ones(plan.units), rows, plan)[:, 0]
    in_blocks(sample, above.shape[1], plan.units, resampling)
    units_GK = np.where(shares_K, _effective(below > 0, plan) / _unit_sizes(plan)[:, None], np.inf)
    widen(estimates, samples, units_GK, resampling.seed)
    return estimates, samples


def widen(estimates: Floats, samples: NDArray[np.floating], units: Floats, seed: int) -> None:
    """Spread the replicates of shares of 0 or 1, which are all equal: 20 of 20 does not make the next one certain.

    They become ``n / (n + g)`` (or one minus that) with ``g`` from a gamma distribution of shape 1/2 and ``n`` units,
    approximately the posterior of a share of ``n`` out of ``n`` under Jeffreys' prior, Beta(n + 1/2, 1/2). All metrics of a
    replicate use the same ``g``, so that equal metrics are equal in every replicate.

    Args:
        estimates: any shape.
        samples: ``[R, ...]``, modified in place.
        units: number of units behind each metric; infinite for metrics that are not shares.
        seed: of the bootstrap.
    """
    normal_R = np.random.Generator(np.random.Philox(seed)).standard_normal(len(samples))
    for value in (0.0, 1.0):
        alike = (estimates == value) & np.isfinite(units) & ((samples == value) | np.isnan(samples)).all(axis=0)
        g = (normal_R**2 / 2).reshape(-1, 1)
        missed = g / (np.maximum(units[alike], 1.0) + g)
        samples[:, alike] = 1 - missed if value else missed


def _widen_shares(found: Replicates, flagged_GL: NDArray[np.int64], sizes_G1: Floats, seed: int) -> None:
    known_GL, positive_GL = found.known_GL, found.positive_GL
    few_GL = np.minimum(positive_GL, known_GL - positive_GL)
    items = {"auroc": few_GL, "partial_auroc": few_GL, "precision": flagged_GL, "accuracy": known_GL}
    items["false_positive_rate"] = known_GL - positive_GL
    for metric in set(found.estimates) - {*UNBOUNDED}:
        widen(found.estimates[metric], found.samples[metric], items.get(metric, positive_GL) / sizes_G1, seed)


def _widen_weighted_shares(
    found: Replicates, targets: Floats, flagged_NL: NDArray[np.bool_], plan: "BootstrapPlan", seed: int
) -> None:
    """Widen shares of 0 or 1 by the weights of the rows that could have made them others.

    If every known positive is flagged, recall is 1. One that is not flagged would count as much as rows that are not flagged
    weigh: in a review of all items with a high probability and a tenth of the others, ten.
    """
    known_NL, positive_NL = ~np.isnan(targets), targets >= 0.5
    sizes_G1 = _unit_sizes(plan)[:, None]
    mass = {name: _masses(of, plan) for name, of in (("positive", positive_NL), ("negative", known_NL & ~positive_NL))}
    mass |= {"known": _masses(known_NL, plan), "flagged": _masses(flagged_NL, plan)}
    typical = np.maximum(_typical_mass(known_NL, plan), 1.0)
    passed, called = (_typical_mass(of, plan) for of in (known_NL & ~flagged_NL, flagged_NL))
    passed, called = np.where(passed > 0, passed, typical), np.where(called > 0, called, typical)
    few = np.minimum(mass["positive"], mass["negative"]) / typical
    units = {"auroc": few, "partial_auroc": few, "precision": mass["flagged"] / called, "accuracy": mass["known"] / typical}
    for metric in set(found.estimates) - {*UNBOUNDED}:
        one, of = found.estimates[metric], "negative" if metric == "false_positive_rate" else "positive"
        own = _typical_mass(targets < 0.5 if of == "negative" else positive_NL, plan)
        other = np.where(one == 1, passed, called) if metric in {"recall", "false_positive_rate"} else typical
        items = units.get(metric, mass[of] / np.maximum(np.maximum(own, other), 1.0))
        widen(one, found.samples[metric], items / sizes_G1, seed)


def _plan(  # noqa: PLR0917 (inputs of the bootstrap)
    rows: int,
    groups: Groups,
    resampling: Resampling,
    metrics: Sequence[str] = (),
    parameters: MetricParameters | None = None,
    weights_N: ArrayLike | None = None,
) -> "BootstrapPlan":
    from vigil_evaluation.stats.bootstrap_metrics import BootstrapPlan

    codes_NC, count = np.empty((rows, len(groups)), np.int32), 0
    for column, given in enumerate(groups):
        codes = np.asarray(given[0] if isinstance(given, tuple) else given)
        held = int(codes.max(initial=-1)) + 1
        size = given[1] if isinstance(given, tuple) else held
        if codes.shape != (rows,) or held > size:
            raise ValueError(f"grouping {column}: codes {codes.shape} up to {held - 1} do not fit {rows} rows and {size} groups")
        codes_NC[:, column] = np.where(codes >= 0, codes + count, -1)
        count += size
    units_N = np.arange(rows, dtype=np.int32) if resampling.clusters is None else np.asarray(resampling.clusters, np.int32)
    if units_N.shape != (rows,) or units_N.min(initial=0) < 0:
        raise ValueError(f"clusters {units_N.shape} must be the unit of each of the {rows} rows, from 0")
    at = (parameters.precision, parameters.false_positive_rate) if parameters else (0.0, 0.0)
    masses_N = None
    if weights_N is not None:
        masses_N = np.asarray(weights_N, np.float64)
        if masses_N.shape != (rows,) or not (np.isfinite(masses_N) & (masses_N >= 0)).all():
            raise ValueError(f"weights {masses_N.shape} must be {rows} finite numbers of at least 0")
        # No metric depends on a common factor; the kernels take sums below 1 for empty.
        masses_N = masses_N / masses_N.min(initial=np.inf, where=masses_N > 0)
    return BootstrapPlan(units_N, int(units_N.max(initial=-1)) + 1, codes_NC, count, *at, metrics, masses_N)


def _counts(which_NL: NDArray[np.bool_], plan: "BootstrapPlan") -> NDArray[np.int64]:
    """Return the number of true rows in each group, ``[G, L]``."""
    counts_GL = np.zeros((plan.groups, which_NL.shape[1]), np.int64)
    for label, which_N in enumerate(which_NL.T):
        for codes in plan.codes_NC[which_N].T:
            counts_GL[:, label] += np.bincount(codes[codes >= 0], minlength=plan.groups)
    return counts_GL


def _masses(which_NL: NDArray[np.bool_], plan: "BootstrapPlan", power: int = 1) -> Floats:
    """Return the sum of a power of the masses of the true rows in each group, ``[G, L]``."""
    assert plan.masses_N is not None
    sums_GL, powers_N = np.zeros((plan.groups, which_NL.shape[1])), plan.masses_N**power
    for label, which_N in enumerate(which_NL.T):
        for codes in plan.codes_NC.T:
            rows = which_N & (codes >= 0)
            sums_GL[:, label] += np.bincount(codes[rows], powers_N[rows], plan.groups)
    return sums_GL


def _typical_mass(which_NL: NDArray[np.bool_], plan: "BootstrapPlan") -> Floats:
    """Return the mean mass, weighted by mass, of the true rows in each group, ``[G, L]``; 0 without one."""
    return _masses(which_NL, plan, 2) / np.maximum(_masses(which_NL, plan), 1.0)


def _effective(which_NL: NDArray[np.bool_], plan: "BootstrapPlan") -> Floats:
    """Return the effective number (Kish 1965) of true rows in each group, ``[G, L]``: their number if they weigh the same."""
    if plan.masses_N is None:
        return _counts(which_NL, plan).astype(np.float64)
    return _masses(which_NL, plan) ** 2 / np.maximum(_masses(which_NL, plan, 2), 1.0)


def _unit_sizes(plan: "BootstrapPlan") -> Floats:
    """Return the mean number of rows per unit in each group, ``[G]``; 1 for an empty group."""
    sizes_G = np.ones(plan.groups)
    if plan.units == len(plan.units_N):
        return sizes_G
    for codes in plan.codes_NC.T:
        rows = codes >= 0
        pairs = np.unique(codes[rows].astype(np.int64) * plan.units + plan.units_N[rows])
        units_G = np.bincount(pairs // plan.units, minlength=plan.groups)
        rows_G = np.bincount(codes[rows], minlength=plan.groups)
        sizes_G = np.where(units_G > 0, rows_G / np.maximum(units_G, 1), sizes_G)
    return sizes_G


def _fill(
    found: Replicates, labels: Sequence["PreparedLabel"], first: int, plan: "BootstrapPlan", resampling: Resampling
) -> None:
    """Fill in the estimates (all weights 1) and the replicates of the labels from number ``first`` on."""
    from vigil_evaluation.stats.bootstrap_kernels import LANES
    from vigil_evaluation.stats.bootstrap_metrics import calibration, measure

    ones, none = _ones(plan.units), np.zeros((plan.groups, RELIABILITY_BINS))
    centres: dict[int, Floats] = {}
    seen, moved = np.zeros((plan.groups, len(labels))), np.zeros((resampling.replicates, plan.groups, len(labels)), np.float32)

    def estimate(label: int) -> None:
        for metric, values in measure(ones, labels[label], plan).items():
            found.estimates[metric][:, first + label] = values[:, 0]
        if bins := labels[label].bins:
            errors_GB, distances_GB, means_GKB = calibration(ones, bins, plan, none)
            found.estimates["calibration_error"][:, first + label] = np.maximum(errors_GB[:, 0], 0)
            seen[:, label], centres[label] = distances_GB[:, 0], means_GKB[:, :, 0].copy()

    def sample(block: int, weights_UB: NDArray[np.uint8], label: int) -> None:
        at = slice(block * LANES, (block + 1) * LANES)
        many = len(moved[at])
        for metric, values in measure(weights_UB, labels[label], plan).items():
            found.samples[metric][at, :, first + label] = values.T[:many]
        if bins := labels[label].bins:
            errors_GB, distances_GB, _ = calibration(weights_UB, bins, plan, centres[label])
            found.samples["calibration_error"][at, :, first + label] = errors_GB.T[:many]
            moved[at, :, label] = distances_GB.T[:many]

    with ThreadPoolExecutor(_threads()) as pool:
        list(pool.map(estimate, range(len(labels))))
    in_blocks(sample, len(labels), plan.units, resampling)
    if centres and resampling.replicates:
        some = slice(first, first + len(labels))
        _centre(found.estimates["calibration_error"][:, some], found.samples["calibration_error"][:, :, some])
        level = CALIBRATION_LEVEL if plan.masses_N is None else WEIGHTED_CALIBRATION_LEVEL
        found.calibrated_GL[:, some] = (moved >= seen.astype(np.float32)).mean(axis=0) > level


def _centre(estimates_GL: Floats, samples_RGL: NDArray[np.float32]) -> None:
    """Shift the calibration error's replicates so that their mean is the estimate.

    A replicate varies around the data as the data around the truth, so its bins carry sampling error twice, and
    debiasing removes it once. docs/decisions/0009-intervals.md reports the coverage with and without the shift.
    """
    there = ~np.isnan(samples_RGL)
    means_GL = np.where(there, samples_RGL, 0).sum(axis=0, dtype=np.float64) / np.maximum(there.sum(axis=0), 1)
    samples_RGL += (estimates_GL - means_GL).astype(np.float32)
    np.maximum(samples_RGL, 0, out=samples_RGL)


def in_blocks(task: Callable[[int, NDArray[np.uint8], int], None], labels: int, units: int, resampling: Resampling) -> None:
    """Call ``task(block, weights, label)`` for each block of replicates and each label, on all cores."""
    from vigil_evaluation.stats.bootstrap_kernels import LANES, draw

    blocks = -(-resampling.replicates // LANES)
    threads = _threads()
    held = max(1, min(blocks, threads, MEMORY_BYTES // (LANES * max(units, 1))))
    weights_HUB = np.empty((held, units, LANES), np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, blocks, held):
            some = range(start, min(start + held, blocks))
            list(pool.map(lambda block: draw(resampling.seed, block, weights_HUB[block % held]), some))
            pairs: Iterator[tuple[int, int]] = ((block, label) for label in range(labels) for block in some)
            list(pool.map(lambda pair: task(pair[0], weights_HUB[pair[0] % held], pair[1]), pairs))


def _hide(found: Replicates, enough: int, effective: Sequence[Floats] | None) -> None:
    """Set metrics with too few known targets to NaN; ``effective`` numbers of known, positive and negative ones under weights."""
    known_GL, positive_GL, negative_GL = found.known_GL, found.positive_GL, found.known_GL - found.positive_GL
    if effective is not None:
        known_GL, positive_GL, negative_GL = (np.floor(numbers + 1e-6).astype(np.int64) for numbers in effective)
    for metric in found.estimates:
        few_GL = known_GL < enough
        if metric in NEEDS_POSITIVES:
            few_GL = few_GL | (positive_GL < enough)
        if metric in NEEDS_NEGATIVES:
            few_GL = few_GL | (negative_GL < enough)
        found.estimates[metric][few_GL] = np.nan
        found.samples[metric][:, few_GL] = np.nan


def _ones(units: int) -> NDArray[np.uint8]:
    from vigil_evaluation.stats.bootstrap_kernels import LANES

    return np.broadcast_to(np.ones(LANES, np.uint8), (units, LANES)).copy()


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
