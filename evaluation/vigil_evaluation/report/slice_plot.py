"""Breakdowns as dots with intervals: one metric and one label at a time, which the reader chooses."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vigil_evaluation.report.axes import Axis, axis
from vigil_evaluation.report.rendering import FEW
from vigil_evaluation.results import Breakdown, Group
from vigil_evaluation.stats.intervals import Interval

GROUPS_SHOWN = 60
"""Groups of one column on the page; metrics.json has them all."""

METRICS = {
    "accuracy": ("Right decisions", "percent"),
    "recall": ("Recall at the threshold", "percent"),
    "precision": ("Precision at the threshold", "percent"),
    "false_positive_rate": ("False-positive rate", "percent"),
    "average_precision": ("Average precision", "score"),
    "auroc": ("AUROC", "score"),
    "recall_at_fpr": ("Recall at the reported FPR", "percent"),
    "calibration_error": ("Calibration error", "score"),
}
"""What can be chosen: names and styles. Of all labels together, right decisions are items that are all right."""

TOGETHER = "all labels together"


class Number(NamedTuple):
    """A number of one group, what it rests on in words, and whether that is few."""

    value: float | None
    interval: Interval | None
    rests_on: str
    weight: int
    few: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A group with the number that is shown first."""

    value: str | None
    items: int
    number: Number


@dataclass(frozen=True, slots=True)
class SlicePlot:
    """A breakdown.

    Attributes:
        column: by which.
        title: the section's.
        rows: the groups that are shown, the largest first, with the share of items that are all right.
        whole: that share of all items.
        axis: of that share.
        metrics: names of what can be chosen.
        labels: the labels that can be chosen, all together first.
        left_out: groups that metrics.json has and the page does not.
        values_left_out: groups that neither has.
        items_left_out: how many items those are.
        data: all numbers as JSON, for the script.
    """

    column: str
    title: str
    rows: list[Row]
    whole: float | None
    axis: Axis
    metrics: list[str]
    labels: list[str]
    left_out: int
    values_left_out: int
    items_left_out: int
    data: str


def slice_plot(breakdown: Breakdown, overall: Group) -> SlicePlot:
    """A breakdown as a picture.

    Args:
        breakdown: the groups of one column.
        overall: all items.
    """
    shown, labels = breakdown.groups[:GROUPS_SHOWN], list(overall.labels)
    axes = {metric: axis(_held(metric, [overall, *shown])) for metric in METRICS}
    data = {
        "metrics": [
            {
                "name": name,
                "style": style,
                "ticks": axes[metric].ticks,
                "whole": [_rounded(_number(overall, metric, label).value) for label in (None, *labels)],
                "cells": [[_cell(group, metric, label) for group in shown] for label in (None, *labels)],
            }
            for metric, (name, style) in METRICS.items()
        ],
        "labels": [TOGETHER, *labels],
        "counts": [[[group.labels[label].known, group.labels[label].positive] for group in shown] for label in labels],
        "judged": [group.judged for group in shown],
        "few": FEW,
    }
    return SlicePlot(
        breakdown.column,
        "Modalities present" if breakdown.column == "presence" else f"By {breakdown.column}",
        [Row(group.value, group.items, _number(group, "accuracy", None)) for group in shown],
        _number(overall, "accuracy", None).value,
        axes["accuracy"],
        [name for name, _ in METRICS.values()],
        [TOGETHER, *labels],
        len(breakdown.groups) - len(shown),
        breakdown.values_left_out,
        breakdown.items_left_out,
        json.dumps(data, separators=(",", ":"), ensure_ascii=False),
    )


def _number(group: Group, metric: str, label: str | None) -> Number:
    if label is not None:
        numbers = group.labels[label]
        few = min(numbers.positive, numbers.known - numbers.positive) < FEW
        rests_on = f"{numbers.known:,} known, {numbers.positive:,} positive"
        return Number(getattr(numbers, metric), numbers.intervals.get(metric), rests_on, numbers.known, few)
    if metric == "accuracy":
        return Number(group.all_right, group.all_right_interval, f"{group.judged:,} judged", group.judged, group.judged < FEW)
    macro = group.macro[metric]
    rests_on = f"mean of {macro.labels} of {len(group.labels)} labels"
    return Number(macro.value, macro.interval, rests_on, macro.labels, group.judged < FEW)


def _cell(group: Group, metric: str, label: str | None) -> list[float | None] | list[float | int | None]:
    """Value and ends of its interval, as far as there are; of a mean over labels also how many they are."""
    number = _number(group, metric, label)
    interval = [] if number.interval is None else [_rounded(end) for end in number.interval]
    held: list[float | int | None] = [_rounded(number.value), *interval]
    if label is None and metric != "accuracy":
        held += [None] * (3 - len(held)) + [number.weight]
    return held


def _held(metric: str, groups: list[Group]) -> Iterator[float | None]:
    """All values and ends of intervals of a metric."""
    for group in groups:
        for label in (None, *group.labels):
            number = _number(group, metric, label)
            yield number.value
            yield from number.interval or ()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
