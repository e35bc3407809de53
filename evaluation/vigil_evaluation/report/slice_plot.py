"""Breakdowns as dots with intervals, for one metric and one label at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vigil_evaluation.report.axes import Axis, fit_axis
from vigil_evaluation.report.rendering import FEW_ITEMS
from vigil_evaluation.slices.results import Breakdown, GroupMetrics
from vigil_evaluation.stats.intervals import Interval

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
}
"""Name and format of each metric. Accuracy of all labels is exact-match accuracy: the share of items without a wrong decision."""

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
    """A group with its exact-match accuracy, which is shown first."""

    value: str | None
    items: int
    accuracy: SliceValue


@dataclass(frozen=True, slots=True)
class SlicePlot:
    """A breakdown.

    Attributes:
        column: grouping column.
        title: heading.
        rows: largest groups, with their exact-match accuracy.
        overall: exact-match accuracy of all items.
        axis: axis of that accuracy.
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


def slice_plot(breakdown: Breakdown, overall: GroupMetrics) -> SlicePlot:
    """Prepare a breakdown for the page.

    Args:
        breakdown: groups of one column.
        overall: all items.
    """
    shown, labels = breakdown.groups[:MAX_GROUPS], list(overall.labels)
    axes = {metric: fit_axis(_drawn_values(metric, [overall, *shown])) for metric in SLICE_METRICS}
    data = {
        "metrics": [
            {
                "name": name,
                "style": style,
                "ticks": axes[metric].ticks,
                "overall": [_rounded(_slice_value(overall, metric, label).value) for label in (None, *labels)],
                "cells": [[_cell(group, metric, label) for group in shown] for label in (None, *labels)],
            }
            for metric, (name, style) in SLICE_METRICS.items()
        ],
        "labels": [ALL_LABELS, *labels],
        "counts": [[[group.labels[label].known, group.labels[label].positive] for group in shown] for label in labels],
        "known": [group.judged for group in shown],
        "few": FEW_ITEMS,
    }
    return SlicePlot(
        breakdown.column,
        "By modalities present" if breakdown.column == "presence" else f"By {breakdown.column}",
        [SliceRow(group.value, group.items, _slice_value(group, "accuracy", None)) for group in shown],
        _slice_value(overall, "accuracy", None).value,
        axes["accuracy"],
        [name for name, _ in SLICE_METRICS.values()],
        [ALL_LABELS, *labels],
        len(breakdown.groups) - len(shown),
        breakdown.values_left_out,
        breakdown.items_left_out,
        json.dumps(data, separators=(",", ":"), ensure_ascii=False),
    )


def _slice_value(group: GroupMetrics, metric: str, label: str | None) -> SliceValue:
    if label is not None:
        numbers = group.labels[label]
        few = min(numbers.positive, numbers.known - numbers.positive) < FEW_ITEMS
        support = f"{numbers.known:,} known, {numbers.positive:,} positive"
        return SliceValue(getattr(numbers, metric), numbers.intervals.get(metric), support, numbers.known, few)
    if metric == "accuracy":
        support = f"{group.judged:,} known"
        return SliceValue(group.all_right, group.all_right_interval, support, group.judged, group.judged < FEW_ITEMS)
    macro = group.macro[metric]
    support = f"mean of {macro.labels} of {len(group.labels)} labels"
    return SliceValue(macro.value, macro.interval, support, macro.labels, group.judged < FEW_ITEMS)


def _cell(group: GroupMetrics, metric: str, label: str | None) -> list[float | int | None]:
    """Return value and ends of the interval, as far as defined; for a mean over labels also the number of labels."""
    number = _slice_value(group, metric, label)
    interval = [] if number.interval is None else [_rounded(end) for end in number.interval]
    cell: list[float | int | None] = [_rounded(number.value), *interval]
    if label is None and metric != "accuracy":
        cell += [None] * (3 - len(cell)) + [number.support_count]
    return cell


def _drawn_values(metric: str, groups: list[GroupMetrics]) -> Iterator[float | None]:
    """Yield all values and ends of intervals of a metric."""
    for group in groups:
        for label in (None, *group.labels):
            number = _slice_value(group, metric, label)
            yield number.value
            yield from number.interval or ()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
