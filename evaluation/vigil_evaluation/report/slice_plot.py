"""Breakdowns as dots with intervals, for one metric and one label at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vigil_evaluation.report.axes import Axis, fit_axis
from vigil_evaluation.report.rendering import FEW_ITEMS
from vigil_evaluation.results import EvaluationResults
from vigil_evaluation.slices.results import Breakdown, GroupMetrics
from vigil_evaluation.stats.intervals import Interval
from vigil_evaluation.volumes import GroupVolumes

MAX_GROUPS = 60
"""Groups of one column on the page; metrics.json has all."""

SLICE_METRICS = {
    "accuracy": ("Accuracy", "percent"),
    "recall": ("Recall", "percent"),
    "precision": ("Precision", "percent"),
    "false_positive_rate": ("False-positive rate", "percent"),
    "average_precision": ("Average precision", "score"),
    "auroc": ("AUROC", "score"),
    "recall_at_fpr": ("Recall at the reported FPR", "percent"),
    "calibration_error": ("Calibration error", "score"),
    "flagged": ("Share flagged", "percent"),
}
"""Name and format of each metric. Accuracy of all labels is exact-match accuracy: the share of items without a wrong decision.

``flagged`` is the share of all items, of known and unknown target; the only one without labels. Over all labels it is the share
of items that are flagged for any.
"""

ALL_LABELS = "all labels"


class SliceValue(NamedTuple):
    """A metric of one group, its support in words and as a number, and whether the support is small."""

    value: float | None
    interval: Interval | None
    support: str
    support_count: int
    few: bool


@dataclass(frozen=True, slots=True)
class SliceRow:
    """A group with the value of the metric that is shown first, over all labels."""

    value: str | None
    items: int
    first: SliceValue


@dataclass(frozen=True, slots=True)
class SlicePlot:
    """A breakdown.

    Attributes:
        column: grouping column.
        title: heading.
        rows: largest groups, with the first metric over all labels.
        overall: the first metric of all items.
        axis: axis of the first metric.
        metrics: names of the metrics to choose from.
        labels: labels to choose from, all labels first.
        left_out: number of groups that metrics.json has and the page does not.
        values_left_out: number of groups that neither has.
        items_left_out: number of items in these.
        data: all values as JSON, for the script.
    """

    column: str
    title: str
    rows: list[SliceRow]
    overall: float | None
    axis: Axis
    metrics: list[str]
    labels: list[str]
    left_out: int
    values_left_out: int
    items_left_out: int
    data: str


class _Group(NamedTuple):
    """Metrics and volumes of one group."""

    metrics: GroupMetrics
    volumes: GroupVolumes


def slice_plots(results: EvaluationResults) -> list[SlicePlot]:
    """Prepare every breakdown that has groups for the page; without labelled items only the share flagged is shown."""
    names = list(SLICE_METRICS) if results.labelled else ["flagged"]
    overall = _Group(results.overall, results.volumes.overall)
    return [
        _slice_plot(breakdown, [_Group(*pair) for pair in zip(breakdown.groups, volumes.groups, strict=True)], overall, names)
        for breakdown, volumes in zip(results.by, results.volumes.by, strict=True)
        if breakdown.groups
    ]


def _slice_plot(breakdown: Breakdown, groups: list[_Group], overall: _Group, names: list[str]) -> SlicePlot:
    shown, labels = groups[:MAX_GROUPS], list(overall.metrics.labels)
    axes = {metric: fit_axis(_drawn_values(metric, [overall, *shown])) for metric in names}
    data = {
        "metrics": [
            {
                "name": SLICE_METRICS[metric][0],
                "style": SLICE_METRICS[metric][1],
                "all_items": metric == "flagged",
                "ticks": axes[metric].ticks,
                "overall": [_rounded(_slice_value(overall, metric, label).value) for label in (None, *labels)],
                "cells": [[_cell(group, metric, label) for group in shown] for label in (None, *labels)],
            }
            for metric in names
        ],
        "labels": [ALL_LABELS, *labels],
        "counts": [[[group.metrics.labels[k].known, group.metrics.labels[k].positive] for group in shown] for k in labels],
        "known": [group.metrics.judged for group in shown],
        "items": [group.volumes.items for group in shown],
        "few": FEW_ITEMS,
    }
    first = names[0]
    return SlicePlot(
        breakdown.column,
        "By modalities present" if breakdown.column == "presence" else f"By {breakdown.column}",
        [SliceRow(group.metrics.value, group.metrics.items, _slice_value(group, first, None)) for group in shown],
        _slice_value(overall, first, None).value,
        axes[first],
        [SLICE_METRICS[name][0] for name in names],
        [ALL_LABELS, *labels],
        len(groups) - len(shown),
        breakdown.values_left_out,
        breakdown.items_left_out,
        json.dumps(data, separators=(",", ":"), ensure_ascii=False),
    )


def _slice_value(group: _Group, metric: str, label: str | None) -> SliceValue:
    if metric == "flagged":
        volumes = group.volumes
        share = volumes.any_label if label is None else volumes.labels[label]
        return SliceValue(share.value, share.interval, f"{volumes.items:,} items", volumes.items, volumes.items < FEW_ITEMS)
    metrics = group.metrics
    if label is not None:
        numbers = metrics.labels[label]
        few = min(numbers.positive, numbers.known - numbers.positive) < FEW_ITEMS
        support = f"{numbers.known:,} known, {numbers.positive:,} positive"
        return SliceValue(getattr(numbers, metric), numbers.intervals.get(metric), support, numbers.known, few)
    few = metrics.judged < FEW_ITEMS
    if metric == "accuracy":
        return SliceValue(metrics.all_right, metrics.all_right_interval, f"{metrics.judged:,} known", metrics.judged, few)
    macro = metrics.macro[metric]
    return SliceValue(macro.value, macro.interval, f"mean of {macro.labels} of {len(metrics.labels)} labels", macro.labels, few)


def _cell(group: _Group, metric: str, label: str | None) -> list[float | int | None]:
    """Return value and ends of the interval, as far as defined; for a mean over labels also the number of labels."""
    number = _slice_value(group, metric, label)
    interval = [] if number.interval is None else [_rounded(end) for end in number.interval]
    cell: list[float | int | None] = [_rounded(number.value), *interval]
    if label is None and metric not in ("accuracy", "flagged"):
        cell += [None] * (3 - len(cell)) + [number.support_count]
    return cell


def _drawn_values(metric: str, groups: list[_Group]) -> Iterator[float | None]:
    """Yield all values and ends of intervals of a metric."""
    for group in groups:
        for label in (None, *group.metrics.labels):
            number = _slice_value(group, metric, label)
            yield number.value
            yield from number.interval or ()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
