"""Volumes: which share of all items, of known and unknown target, is flagged at the thresholds.

Unlike the metrics, volumes need no labels, so they are what an evaluation of unlabelled traffic consists of.

Example:
    >>> measure_volumes(data).overall.any_label
    ShareOfItems(value=0.124, interval=Interval(low=0.118, high=0.131))
"""

from dataclasses import dataclass

import numpy as np

from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.metrics import Floats
from vigil_evaluation.slices.grouping import Grouping
from vigil_evaluation.stats.bootstrap import replicate_ratio
from vigil_evaluation.stats.intervals import Interval, intervals


@dataclass(frozen=True, slots=True)
class ShareOfItems:
    """A share of items and its interval; ``None`` without items, or without replicates."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class GroupVolumes:
    """Volumes of one group of items.

    Attributes:
        value: what the items share; ``None`` where the column is null, and for all items.
        items: number of items.
        any_label: share of the items that are flagged for any label.
        labels: label to the share of the items that are flagged for it.
    """

    value: str | None
    items: int
    any_label: ShareOfItems
    labels: dict[str, ShareOfItems]


@dataclass(frozen=True, slots=True)
class VolumeBreakdown:
    """Volumes of the groups of one column or of two crossed columns, the largest first."""

    column: str
    groups: list[GroupVolumes]


@dataclass(frozen=True, slots=True)
class Volumes:
    """Shares of items that are flagged at the thresholds.

    Attributes:
        overall: all items.
        by: the breakdowns of :attr:`vigil_evaluation.results.EvaluationResults.by`, in the same order.
    """

    overall: GroupVolumes
    by: list[VolumeBreakdown]


def measure_volumes(data: EvaluationData) -> Volumes:
    """Measure the share of items that each label flags, in all items and in each group of each grouping of ``data``.

    A row of a weighted table counts as the number of items that it represents. Intervals are those of all metrics: a bootstrap
    over units.
    """
    everything = Grouping("all items", [None], np.zeros(len(data.probabilities_NL), np.int32), 0, 0)
    weights_N1 = np.ones((len(data.probabilities_NL), 1)) if data.weights.item_N is None else data.weights.item_N[:, None]
    flagged_NK = np.column_stack([data.flagged_NL.any(axis=1), data.flagged_NL]) * weights_N1
    (overall,) = _groups(data, everything, flagged_NK, weights_N1)
    return Volumes(overall, [VolumeBreakdown(g.column, _groups(data, g, flagged_NK, weights_N1)) for g in data.groupings])


def _groups(data: EvaluationData, grouping: Grouping, flagged_NK: Floats, weights_N1: Floats) -> list[GroupVolumes]:
    codes_N, groups = grouping.codes_N, len(grouping.values)
    below_NK = np.broadcast_to(weights_N1, flagged_NK.shape).copy()
    ratios_GK, samples_RGK = replicate_ratio(flagged_NK, below_NK, [(codes_N, groups)], data.resampling)
    low_GK, high_GK = intervals(ratios_GK, samples_RGK, data.spec.confidence)
    items_G = np.bincount(codes_N[codes_N >= 0], minlength=groups)

    def share(group: int, column: int) -> ShareOfItems:
        value, low, high = (float(ends[group, column]) for ends in (ratios_GK, low_GK, high_GK))
        return ShareOfItems(None if np.isnan(value) else value, None if np.isnan(low) else Interval(low, high))

    return [
        GroupVolumes(value, int(items_G[g]), share(g, 0), {label: share(g, i) for i, label in enumerate(data.labels, start=1)})
        for g, value in enumerate(grouping.values)
    ]
