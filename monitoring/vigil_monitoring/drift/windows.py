"""Windows of traffic, and the reference that they are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from typing import NamedTuple

import numpy as np

from vigil_evaluation.calibration.drift import DriftReference
from vigil_monitoring.drift.settings import Window
from vigil_monitoring.drift.summaries import ALL, DaySummary, FeatureSums, SliceCounts, SummaryPlan

WEEK = 7


@dataclass(frozen=True, slots=True)
class SummaryWindow:
    """A day or a week.

    Attributes:
        start: first day.
        end: last day.
        summary: counts of its decisions.
    """

    start: date
    end: date
    summary: DaySummary


@dataclass(frozen=True, slots=True)
class Reference:
    """What traffic is compared with.

    Attributes:
        name: its description.
        windows: its windows; one for the calibration split of a bundle.
        edges: label to the edges at which its distribution is known; ``None`` for all of the plan.
        is_traffic: whether it is traffic, whose actions, categories, volumes and days are known.
    """

    name: str
    windows: Sequence[SummaryWindow]
    edges: Mapping[str, Sequence[float]] | None = None

    @property
    def is_traffic(self) -> bool:
        """Whether it is traffic rather than a calibration split."""
        return self.edges is None


class Comparison(NamedTuple):
    """What is compared.

    Attributes:
        reference: the reference.
        windows: the windows that are tested, in order.
        plan: plan of the summaries of both.
        notes: what is not compared.
    """

    reference: Reference
    windows: list[SummaryWindow]
    plan: SummaryPlan
    notes: list[str]


def days_between(start: date, end: date) -> list[date]:
    """Return all days from the first to the last, both included."""
    return [start + timedelta(days=n) for n in range((end - start).days + 1)]


def windows_of(summaries: Mapping[date, DaySummary], window: Window) -> list[SummaryWindow]:
    """Return the windows of consecutive days; weeks start on Mondays, and incomplete ones are left out."""
    if window == "day":
        return [SummaryWindow(day, day, summaries[day]) for day in sorted(summaries)]
    found = []
    for _, group in groupby(sorted(summaries), key=lambda day: day.isocalendar()[:2]):
        days = list(group)
        if len(days) == WEEK:
            found.append(SummaryWindow(days[0], days[-1], merged([summaries[day] for day in days])))
    return found


def weekdays_of(reference: Sequence[SummaryWindow], windows: Sequence[SummaryWindow], window: Window) -> list[int]:
    """Return the group of each window: its weekday, if the windows are days and the reference has two of each."""
    starts = [each.start.weekday() for each in (*reference, *windows)]
    counted = np.bincount(starts[: len(reference)], minlength=WEEK)
    return starts if window == "day" and counted.min() >= 2 else [0] * len(starts)


def merged(summaries: Sequence[DaySummary]) -> DaySummary:
    """Return the sum of summaries."""
    total = DaySummary()
    for summary in summaries:
        total.errors += summary.errors
        for name, counts in summary.slices.items():
            into = total.slices.setdefault(name, SliceCounts())
            into.items += counts.items
            for label, count_B in counts.counts.items():
                into.counts[label] = np.add(into.counts[label], count_B).tolist() if label in into.counts else list(count_B)
                sum_B = counts.sums[label]
                into.sums[label] = np.add(into.sums[label], sum_B).tolist() if label in into.sums else list(sum_B)
            for column, values in counts.categories.items():
                _add(into.categories.setdefault(column, {}), values)
        for column, values in summary.mixes.items():
            _add(total.mixes.setdefault(column, {}), values)
        if summary.features is not None:
            known = total.features or FeatureSums(0, [0.0] * len(summary.features.sums), [0.0] * len(summary.features.sums))
            total.features = FeatureSums(
                known.items + summary.features.items,
                np.add(known.sums, summary.features.sums).tolist(),
                np.add(known.squares, summary.features.squares).tolist(),
            )
    return total


def _add(into: dict[str, int], values: Mapping[str, int]) -> None:
    for value, count in values.items():
        into[value] = into.get(value, 0) + count


def calibration_split(reference: DriftReference, plan: SummaryPlan, name: str) -> Reference:
    """Return a bundle's reference as one window; between its own edges, its items count as at the edge below."""
    counts = SliceCounts(items=max((sum(label.counts) for label in reference.labels.values()), default=0))
    for label, known in reference.labels.items():
        if label in plan.edges:
            places = [0, *(plan.edges[label].index(edge) + 1 for edge in known.edges)]
            count_B = np.bincount(places, known.counts, len(plan.edges[label]) + 1).astype(np.int64).tolist()
            counts.counts[label], counts.sums[label] = count_B, [0.0] * len(count_B)
    if reference.presence:
        counts.categories["presence"] = dict(reference.presence)
    summary = DaySummary(slices={ALL: counts})
    edges = {label: known.edges for label, known in reference.labels.items() if label in plan.edges}
    return Reference(name, [SummaryWindow(date.min, date.min, summary)], edges)
