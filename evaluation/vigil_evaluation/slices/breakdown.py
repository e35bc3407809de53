"""Metrics of groups of items, by label and averaged over labels, each with an interval.

If items have weights, metrics are weighted and counts are not.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.progress import ProgressCallback
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.metrics import Floats, log_losses
from vigil_evaluation.slices.grouping import Grouping
from vigil_evaluation.slices.results import Breakdown, GroupMetrics, LabelMetrics, MacroAverage, MicroAverage
from vigil_evaluation.stats import bootstrap
from vigil_evaluation.stats.bootstrap import (
    COUNTED,
    METRICS,
    MetricParameters,
    Replicates,
    Resampling,
    replicate,
    replicate_ratio,
)
from vigil_evaluation.stats.intervals import Interval, intervals

MAX_REPLICATE_CELLS = 40_000_000
"""Largest number of replicates of metrics held at once, 4 bytes each."""


class _Estimates(NamedTuple):
    """Estimates ``[...]`` and the ends of their intervals; NaN where undefined."""

    estimates: Floats
    low: Floats
    high: Floats

    def at(self, *place: int) -> tuple[float | None, Interval | None]:
        estimate, low, high = (float(values[place]) for values in self)
        return None if np.isnan(estimate) else estimate, None if np.isnan(low) else Interval(low, high)


class _Measured(NamedTuple):
    """Metrics of the G groups of some groupings, in order."""

    by_label: dict[str, _Estimates]
    macro: dict[str, _Estimates]
    macro_labels: dict[str, NDArray[np.int64]]
    micro: dict[str, _Estimates]
    all_right: _Estimates
    judged_G: NDArray[np.int64]
    outcomes_GL4: NDArray[np.int64]
    effective_GL: Floats


def measure_groups(data: EvaluationData, progress: ProgressCallback) -> tuple[GroupMetrics, list[Breakdown]]:
    """Return the metrics of all items, and those of each group of each grouping of ``data``."""
    everything = Grouping("all items", [None], np.zeros(len(data.targets_NL), np.int32), 0, 0)
    made: list[list[GroupMetrics]] = []
    for chunk in _chunks(data, [everything, *data.groupings]):
        progress(f"{' and '.join(g.column for g in chunk)}: {sum(len(g.values) for g in chunk)} groups", 0, None)
        found, first = _measure(data, chunk), 0
        for grouping in chunk:
            kept_N = grouping.codes_N >= 0
            codes, many, item_N = grouping.codes_N[kept_N], len(grouping.values), data.weights.item_N
            items = np.bincount(codes, minlength=many)
            traffic = items if item_N is None else np.bincount(codes, item_N[kept_N], many)
            of = zip(grouping.values, items.tolist(), traffic.tolist(), strict=True)
            made.append([_group(data, found, first + i, *numbers) for i, numbers in enumerate(of)])
            first += len(grouping.values)
    overall, *by = made
    return overall[0], [
        Breakdown(g.column, groups, g.values_left_out, g.items_left_out) for g, groups in zip(data.groupings, by, strict=True)
    ]


def _chunks(data: EvaluationData, groupings: Sequence[Grouping]) -> Iterator[list[Grouping]]:
    """Split the groupings, in order, so that the replicates of each part fit into memory."""
    cells = max(data.resampling.replicates, 1) * data.targets_NL.shape[1] * len(METRICS)
    chunk: list[Grouping] = []
    for grouping in groupings:
        if chunk and cells * sum(len(g.values) for g in [*chunk, grouping]) > MAX_REPLICATE_CELLS:
            yield chunk
            chunk = []
        chunk.append(grouping)
    if chunk:
        yield chunk


def _measure(data: EvaluationData, groupings: Sequence[Grouping]) -> _Measured:
    spec, codes = data.spec, [(grouping.codes_N, len(grouping.values)) for grouping in groupings]
    points = MetricParameters(spec.false_positive_rate, spec.precision, data.thresholds_L)
    label_N = data.weights.label_N
    replicates = replicate(
        data.targets_NL, data.probabilities_NL, codes, points, data.resampling, METRICS, weights_N=label_N, enough=spec.enough
    )
    by_label, macro, macro_labels = {}, {}, {}
    for name in METRICS:
        estimates, samples = replicates.estimates[name], replicates.samples[name]
        by_label[name] = _with_intervals(estimates, samples, spec.confidence, _from_zero(name, replicates.calibrated_GL))
        defined_GL = ~np.isnan(estimates)
        macro_labels[name] = defined_GL.sum(axis=1)
        macro[name] = _with_intervals(_mean(estimates, defined_GL), _mean(samples, defined_GL), spec.confidence)
    right_N = data.right_N
    ratios, ratio_samples = replicate_ratio(*_ratios(data, right_N), codes, data.resampling, label_N)
    micro = _pooled(data, codes, ratios, ratio_samples)
    judged_NL, known_NL = ~np.isnan(right_N)[:, None], ~np.isnan(data.targets_NL)
    judged_G = _by_group(groupings, judged_NL)[:, 0].astype(np.int64)
    all_right = np.where(_effective(groupings, judged_NL, label_N)[:, 0] >= spec.enough, ratios[:, -1], np.nan)
    return _Measured(
        by_label,
        macro,
        macro_labels,
        micro,
        _with_intervals(all_right, ratio_samples[:, :, -1], spec.confidence),
        judged_G,
        np.concatenate([_outcomes(data, grouping) for grouping in groupings]),
        _effective(groupings, known_NL, label_N),
    )


def _by_group(groupings: Sequence[Grouping], values_NK: NDArray[np.number] | NDArray[np.bool_]) -> Floats:
    """Return the sum of each column over each group, ``[G, K]``."""
    sums = []
    for grouping in groupings:
        kept_N = grouping.codes_N >= 0
        codes, kept_NK = grouping.codes_N[kept_N], values_NK[kept_N].astype(np.float64)
        sums.append(np.stack([np.bincount(codes, column_N, len(grouping.values)) for column_N in kept_NK.T], axis=1))
    return np.concatenate(sums)


def _effective(
    groupings: Sequence[Grouping], numbers_NK: NDArray[np.number] | NDArray[np.bool_], weights_N: Floats | None
) -> Floats:
    """Return the effective number (Kish 1965) behind each column of numbers of cells per item, ``[G, K]``."""
    numbers_GK = _by_group(groupings, numbers_NK)
    if weights_N is None:
        return numbers_GK
    sums, squares = (_by_group(groupings, numbers_NK * weights_N[:, None] ** power) for power in (1, 2))
    kish = np.where(squares > 0, sums**2 / np.where(squares > 0, squares, 1.0), 0.0)
    # Equal weights leave the number as it is.
    return np.where(np.abs(kish - numbers_GK) < 1e-6 * numbers_GK, numbers_GK, kish)


def _suffices(metric: str, known: Floats, positive: Floats, negative: Floats, enough: int) -> NDArray[np.bool_]:
    """Whether there are enough known targets for a metric, by the rule of :func:`vigil_evaluation.stats.bootstrap.replicate`."""
    need = known
    if metric in bootstrap.NEEDS_POSITIVES:
        need = np.minimum(need, positive)
    if metric in bootstrap.NEEDS_NEGATIVES:
        need = np.minimum(need, negative)
    return np.asarray(need >= max(enough, 1))


def _with_intervals(
    estimates: Floats, samples: NDArray[np.floating], confidence: float, from_zero: NDArray[np.bool_] | None = None
) -> _Estimates:
    low, high = intervals(estimates, samples, confidence)
    return _Estimates(estimates, low if from_zero is None else np.where(from_zero, np.minimum(low, 0.0), low), high)


def _from_zero(metric: str, calibrated: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Whether the interval of a metric starts at 0, because perfect calibration is not rejected; ``None`` for other metrics."""
    return calibrated if metric == "calibration_error" else None


def _mean(values_GL: NDArray[np.floating], defined_GL: NDArray[np.bool_]) -> Floats:
    """Return the mean over labels, ``[..., G]``, of the defined values of labels whose estimate is defined; NaN without one."""
    there = defined_GL & ~np.isnan(values_GL)
    sums, counts = np.where(there, values_GL, 0.0).sum(axis=-1, dtype=np.float64), there.sum(axis=-1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _ratios(data: EvaluationData, right_N: Floats) -> tuple[Floats, Floats]:
    """Return numerators and denominators, ``[N, 8]``: of the ``COUNTED`` metrics over all labels, then of ``all_right``."""
    targets, flagged = data.targets_NL, data.flagged_NL
    positive, negative = targets >= 0.5, targets < 0.5
    known = positive | negative
    hits, alarms, misses = (positive & flagged).sum(1), (negative & flagged).sum(1), (positive & ~flagged).sum(1)
    rights = hits + (negative & ~flagged).sum(1)
    counts = known.sum(1)
    squares = np.where(known, (data.probabilities_NL - targets) ** 2, 0.0).sum(1)
    losses = np.nan_to_num(log_losses(targets, data.probabilities_NL)).sum(1)
    above = (2 * hits, hits, hits, alarms, rights, squares, losses, np.nan_to_num(right_N))
    below = (
        2 * hits + alarms + misses,
        hits + alarms,
        hits + misses,
        negative.sum(1),
        counts,
        counts,
        counts,
        ~np.isnan(right_N),
    )
    return np.stack(above, axis=1).astype(np.float64), np.stack(below, axis=1).astype(np.float64)


def _pooled(
    data: EvaluationData,
    codes: Sequence[tuple[NDArray[np.int32], int]],
    ratios: Floats,
    samples: NDArray[np.floating],
) -> dict[str, _Estimates]:
    """Return the metrics over all known cells of item and label; cells of one item are resampled together."""
    spec, (items, labels) = data.spec, data.targets_NL.shape
    others = [name for name in METRICS if name not in COUNTED]
    known = ~np.isnan(data.targets_NL.ravel())
    units_N = np.arange(items, dtype=np.int32) if data.resampling.clusters is None else data.resampling.clusters
    resampling = Resampling(data.resampling.replicates, data.resampling.seed, np.repeat(units_N, labels)[known])
    label_N = data.weights.label_N
    ranked: Replicates = replicate(
        data.targets_NL.ravel()[known][:, None],
        data.probabilities_NL.ravel()[known][:, None],
        [(np.repeat(codes_N, labels)[known], groups) for codes_N, groups in codes],
        MetricParameters(spec.false_positive_rate, spec.precision, np.array([0.5])),
        resampling,
        others,
        weights_N=None if label_N is None else np.repeat(label_N, labels)[known],
        enough=spec.enough,
    )
    targets = data.targets_NL
    cells_NK = np.stack([np.sum(of, axis=1) for of in (~np.isnan(targets), targets >= 0.5, targets < 0.5)], axis=1)
    groupings = [Grouping("", [None] * many, codes_N, 0, 0) for codes_N, many in codes]
    known_G, positive_G, negative_G = _effective(groupings, cells_NK, label_N).T
    numbers = {name: (ranked.estimates[name][:, 0], ranked.samples[name][:, :, 0]) for name in others}
    for i, name in enumerate(COUNTED):
        numbers[name] = (
            np.where(_suffices(name, known_G, positive_G, negative_G, spec.enough), ratios[:, i], np.nan),
            samples[:, :, i],
        )
    chance_G = ranked.calibrated_GL[:, 0]
    return {name: _with_intervals(*numbers[name], spec.confidence, _from_zero(name, chance_G)) for name in METRICS}


def _outcomes(data: EvaluationData, grouping: Grouping) -> NDArray[np.int64]:
    """Count true positives, false positives, false negatives and true negatives of each group and label, ``[G, L, 4]``."""
    flagged, groups = data.flagged_NL, len(grouping.values)
    made = []
    for i in range(flagged.shape[1]):
        known = ~np.isnan(data.targets_NL[:, i]) & (grouping.codes_N >= 0)
        positive = data.targets_NL[known, i] >= 0.5
        outcome = np.where(flagged[known, i], np.where(positive, 0, 1), np.where(positive, 2, 3))
        made.append(np.bincount(grouping.codes_N[known] * 4 + outcome, minlength=4 * groups).reshape(groups, 4))
    return np.stack(made, axis=1).astype(np.int64)


def _group(  # noqa: PLR0917 (numbers of one group)
    data: EvaluationData, found: _Measured, place: int, value: str | None, items: int, traffic: float
) -> GroupMetrics:
    all_right, all_right_interval = found.all_right.at(place)
    macro = {}
    for name in METRICS:
        mean, interval = found.macro[name].at(place)
        # The mean keeps the upward bias of each label's calibration error: an interval would not cover (decisions/0009).
        macro[name] = MacroAverage(mean, int(found.macro_labels[name][place]), None if name == "calibration_error" else interval)
    return GroupMetrics(
        value=value,
        items=items,
        traffic=float(traffic),
        judged=int(found.judged_G[place]),
        all_right=all_right,
        all_right_interval=all_right_interval,
        macro=macro,
        micro={name: MicroAverage(*found.micro[name].at(place)) for name in METRICS},
        labels={label: _label(found, place, i, limit) for i, (label, limit) in enumerate(data.thresholds.items())},
    )


def _label(found: _Measured, place: int, label: int, threshold: float) -> LabelMetrics:
    numbers = {name: found.by_label[name].at(place, label) for name in METRICS}
    hits, alarms, misses, passes = found.outcomes_GL4[place, label].tolist()
    return LabelMetrics(
        known=hits + alarms + misses + passes,
        positive=hits + misses,
        effective=float(found.effective_GL[place, label]),
        threshold=threshold,
        **{name: value for name, (value, _) in numbers.items()},
        true_positives=hits,
        false_positives=alarms,
        false_negatives=misses,
        true_negatives=passes,
        intervals={name: interval for name, (_, interval) in numbers.items() if interval is not None},
    )
