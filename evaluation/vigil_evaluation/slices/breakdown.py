"""The numbers of each group of items, by label and over labels, each with an interval."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats, log_losses
from vigil_evaluation.results import Breakdown, Group, LabelFindings, Macro, Micro
from vigil_evaluation.slices.grouping import Grouping
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats import bootstrap
from vigil_evaluation.stats.bootstrap import COUNTED, METRICS, Points, Replicates, Resampling, replicate, replicate_ratio
from vigil_evaluation.stats.intervals import Interval, intervals

CELLS = 40_000_000
"""The most replicates of numbers that are held at once, of 4 bytes each."""


class EvaluationData(NamedTuple):
    """A predictions table as arrays, and how it is measured.

    Attributes:
        targets_NL: in [0, 1], NaN for unknown.
        probabilities_NL: in [0, 1].
        thresholds: label to the lowest probability that is flagged, in the order of the columns.
        resampling: behind the intervals.
        spec: what is measured.
    """

    targets_NL: Floats
    probabilities_NL: Floats
    thresholds: Mapping[str, float]
    resampling: Resampling
    spec: EvaluationSpec

    @property
    def flagged_NL(self) -> NDArray[np.bool_]:
        """Which labels are flagged of each item."""
        return self.probabilities_NL >= np.array(list(self.thresholds.values()))

    @property
    def right_N(self) -> Floats:
        """1 for an item whose every known target is decided rightly, 0 for another, NaN for one without a known target."""
        known_NL = ~np.isnan(self.targets_NL)
        right_NL = ((self.targets_NL >= 0.5) == self.flagged_NL) | ~known_NL
        return np.where(known_NL.any(axis=1), right_NL.all(axis=1), np.nan)


class _Numbers(NamedTuple):
    """Estimates ``[...]`` with the ends of their intervals, NaN where there is none."""

    estimates: Floats
    low: Floats
    high: Floats

    def at(self, *place: int) -> tuple[float | None, Interval | None]:
        estimate, low, high = (float(values[place]) for values in self)
        return None if np.isnan(estimate) else estimate, None if np.isnan(low) else Interval(low, high)


class _Found(NamedTuple):
    """The numbers of the G groups of some groupings, in order."""

    by_label: dict[str, _Numbers]
    macro: dict[str, _Numbers]
    macro_labels: dict[str, NDArray[np.int64]]
    micro: dict[str, _Numbers]
    all_right: _Numbers
    judged_G: NDArray[np.int64]
    outcomes_GL4: NDArray[np.int64]


def groups_of(judged: EvaluationData, groupings: Sequence[Grouping], progress: Callable[[str], None]) -> list[list[Group]]:
    """The groups of each grouping, with all their numbers.

    Args:
        judged: the table.
        groupings: of its rows.
        progress: told what is measured.
    """
    made: list[list[Group]] = []
    for chunk in _chunks(judged, groupings):
        progress(f"{' and '.join(g.column for g in chunk)}: {sum(len(g.values) for g in chunk)} groups")
        found, first = _measure(judged, chunk), 0
        for grouping in chunk:
            items = np.bincount(grouping.codes_N[grouping.codes_N >= 0], minlength=len(grouping.values))
            made.append([_group(judged, found, first + i, value, int(items[i])) for i, value in enumerate(grouping.values)])
            first += len(grouping.values)
    return made


def overall(judged: EvaluationData, progress: Callable[[str], None]) -> Group:
    """The group of all items."""
    everything = Grouping("all items", [None], np.zeros(len(judged.targets_NL), np.int32), 0, 0)
    return groups_of(judged, [everything], progress)[0][0]


def breakdowns(judged: EvaluationData, groupings: Sequence[Grouping], progress: Callable[[str], None]) -> list[Breakdown]:
    """The breakdown by each grouping."""
    made = groups_of(judged, groupings, progress)
    return [Breakdown(g.column, groups, g.values_left_out, g.items_left_out) for g, groups in zip(groupings, made, strict=True)]


def _chunks(judged: EvaluationData, groupings: Sequence[Grouping]) -> Iterator[list[Grouping]]:
    """The groupings in order, so many at once that their replicates fit; each at least alone."""
    cells = max(judged.resampling.replicates, 1) * judged.targets_NL.shape[1] * len(METRICS)
    chunk: list[Grouping] = []
    for grouping in groupings:
        if chunk and cells * sum(len(g.values) for g in [*chunk, grouping]) > CELLS:
            yield chunk
            chunk = []
        chunk.append(grouping)
    if chunk:
        yield chunk


def _measure(judged: EvaluationData, groupings: Sequence[Grouping]) -> _Found:
    spec, codes = judged.spec, [(grouping.codes_N, len(grouping.values)) for grouping in groupings]
    points = Points(spec.false_positive_rate, spec.precision, np.array(list(judged.thresholds.values())))
    replicates = replicate(
        judged.targets_NL, judged.probabilities_NL, codes, points, judged.resampling, METRICS, enough=spec.enough
    )
    known_GL, positive_GL = replicates.known_GL, replicates.positive_GL
    by_label, macro, macro_labels = {}, {}, {}
    for name in METRICS:
        estimates, samples = replicates.estimates[name], replicates.samples[name]
        by_label[name] = _with_intervals(estimates, samples, spec.confidence, _from_zero(name, replicates.calibrated_GL))
        defined_GL = ~np.isnan(estimates)
        macro_labels[name] = defined_GL.sum(axis=1)
        macro[name] = _with_intervals(_mean(estimates, defined_GL), _mean(samples, defined_GL), spec.confidence)
    right_N = judged.right_N
    ratios, ratio_samples = replicate_ratio(*_ratios(judged, right_N), codes, judged.resampling)
    totals = {"known_G": known_GL.sum(axis=1), "positive_G": positive_GL.sum(axis=1)}
    micro = _pooled(judged, codes, ratios, ratio_samples, **totals)
    judged_G = np.concatenate([_count(g, ~np.isnan(right_N)) for g in groupings])
    all_right = np.where(judged_G >= spec.enough, ratios[:, -1], np.nan)
    return _Found(
        by_label,
        macro,
        macro_labels,
        micro,
        _with_intervals(all_right, ratio_samples[:, :, -1], spec.confidence),
        judged_G,
        np.concatenate([_outcomes(judged, grouping) for grouping in groupings]),
    )


def _suffices(metric: str, known: NDArray[np.int64], positive: NDArray[np.int64], enough: int) -> NDArray[np.bool_]:
    """Where there are enough known targets for a metric, as :func:`vigil_evaluation.stats.bootstrap.replicate` has it."""
    need = known
    if metric in bootstrap.NEEDS_POSITIVES:
        need = np.minimum(need, positive)
    if metric in bootstrap.NEEDS_NEGATIVES:
        need = np.minimum(need, known - positive)
    return np.asarray(need >= max(enough, 1))


def _with_intervals(
    estimates: Floats, samples: NDArray[np.floating], confidence: float, from_zero: NDArray[np.bool_] | None = None
) -> _Numbers:
    low, high = intervals(estimates, samples, confidence)
    return _Numbers(estimates, low if from_zero is None else np.where(from_zero, np.minimum(low, 0.0), low), high)


def _from_zero(metric: str, calibrated: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Where the interval of a metric begins at 0, because the replicates do not rule out that there is only chance."""
    return calibrated if metric == "calibration_error" else None


def _mean(values_GL: NDArray[np.floating], defined_GL: NDArray[np.bool_]) -> Floats:
    """The mean over labels ``[..., G]`` of the values that are defined, of those labels whose estimate is; NaN without one."""
    there = defined_GL & ~np.isnan(values_GL)
    sums, counts = np.where(there, values_GL, 0.0).sum(axis=-1, dtype=np.float64), there.sum(axis=-1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _ratios(judged: EvaluationData, right_N: Floats) -> tuple[Floats, Floats]:
    """What is summed above and below the line, ``[N, 8]``: over all labels, in the order of ``COUNTED``; then all right."""
    targets, flagged = judged.targets_NL, judged.flagged_NL
    positive, negative = targets >= 0.5, targets < 0.5
    known = positive | negative
    hits, alarms, misses = (positive & flagged).sum(1), (negative & flagged).sum(1), (positive & ~flagged).sum(1)
    rights = hits + (negative & ~flagged).sum(1)
    counts = known.sum(1)
    squares = np.where(known, (judged.probabilities_NL - targets) ** 2, 0.0).sum(1)
    losses = np.nan_to_num(log_losses(targets, judged.probabilities_NL)).sum(1)
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
    judged: EvaluationData,
    codes: Sequence[tuple[NDArray[np.int32], int]],
    ratios: Floats,
    samples: NDArray[np.floating],
    *,
    known_G: NDArray[np.int64],
    positive_G: NDArray[np.int64],
) -> dict[str, _Numbers]:
    """The numbers over all known cells of item and label at once; cells of one item are resampled together."""
    spec, (items, labels) = judged.spec, judged.targets_NL.shape
    others = [name for name in METRICS if name not in COUNTED]
    known = ~np.isnan(judged.targets_NL.ravel())
    units_N = np.arange(items, dtype=np.int32) if judged.resampling.clusters is None else judged.resampling.clusters
    resampling = Resampling(judged.resampling.replicates, judged.resampling.seed, np.repeat(units_N, labels)[known])
    ranked: Replicates = replicate(
        judged.targets_NL.ravel()[known][:, None],
        judged.probabilities_NL.ravel()[known][:, None],
        [(np.repeat(codes_N, labels)[known], groups) for codes_N, groups in codes],
        Points(spec.false_positive_rate, spec.precision, np.array([0.5])),
        resampling,
        others,
        enough=spec.enough,
    )
    numbers = {name: (ranked.estimates[name][:, 0], ranked.samples[name][:, :, 0]) for name in others}
    for i, name in enumerate(COUNTED):
        numbers[name] = np.where(_suffices(name, known_G, positive_G, spec.enough), ratios[:, i], np.nan), samples[:, :, i]
    chance_G = ranked.calibrated_GL[:, 0]
    return {name: _with_intervals(*numbers[name], spec.confidence, _from_zero(name, chance_G)) for name in METRICS}


def _count(grouping: Grouping, which_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    codes = grouping.codes_N[which_N & (grouping.codes_N >= 0)]
    return np.bincount(codes, minlength=len(grouping.values)).astype(np.int64)


def _outcomes(judged: EvaluationData, grouping: Grouping) -> NDArray[np.int64]:
    """True positives, false positives, false negatives and true negatives of each group and label, ``[G, L, 4]``."""
    flagged, groups = judged.flagged_NL, len(grouping.values)
    made = []
    for i in range(flagged.shape[1]):
        known = ~np.isnan(judged.targets_NL[:, i]) & (grouping.codes_N >= 0)
        positive = judged.targets_NL[known, i] >= 0.5
        outcome = np.where(flagged[known, i], np.where(positive, 0, 1), np.where(positive, 2, 3))
        made.append(np.bincount(grouping.codes_N[known] * 4 + outcome, minlength=4 * groups).reshape(groups, 4))
    return np.stack(made, axis=1).astype(np.int64)


def _group(judged: EvaluationData, found: _Found, place: int, value: str | None, items: int) -> Group:
    all_right, all_right_interval = found.all_right.at(place)
    macro = {}
    for name in METRICS:
        mean, interval = found.macro[name].at(place)
        # Each label's calibration error is biased upwards, which the mean keeps: an interval would not cover (decisions/0009).
        macro[name] = Macro(mean, int(found.macro_labels[name][place]), None if name == "calibration_error" else interval)
    return Group(
        value=value,
        items=items,
        judged=int(found.judged_G[place]),
        all_right=all_right,
        all_right_interval=all_right_interval,
        macro=macro,
        micro={name: Micro(*found.micro[name].at(place)) for name in METRICS},
        labels={label: _label(found, place, i, limit) for i, (label, limit) in enumerate(judged.thresholds.items())},
    )


def _label(found: _Found, place: int, label: int, threshold: float) -> LabelFindings:
    numbers = {name: found.by_label[name].at(place, label) for name in METRICS}
    hits, alarms, misses, passes = found.outcomes_GL4[place, label].tolist()
    return LabelFindings(
        known=hits + alarms + misses + passes,
        positive=hits + misses,
        threshold=threshold,
        **{name: value for name, (value, _) in numbers.items()},
        true_positives=hits,
        false_positives=alarms,
        false_negatives=misses,
        true_negatives=passes,
        intervals={name: interval for name, (_, interval) in numbers.items() if interval is not None},
    )
