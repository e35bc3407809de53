"""Subgroup metrics as rows of a heatmap, and the gaps between a subgroup and all other items."""

from dataclasses import dataclass

from vigil_evaluation.results import EvaluationResults
from vigil_evaluation.stats.intervals import Interval

HEATMAP_COLUMNS = {
    "subgroup_auc": "Subgroup AUC",
    "bpsn_auc": "BPSN AUC",
    "bnsp_auc": "BNSP AUC",
    "recall_gap": "Recall gap, points",
    "false_positive_gap": "False-positive gap, points",
}
"""Headings by metric, in the order of the columns."""

GAP_METRICS = {"recall_gap": "recall", "false_positive_gap": "false-positive rate"}
"""Metrics that are a difference between the subgroup and all other items."""

MAX_SUBGROUPS = 60
"""Subgroups on the page; metrics.json has all."""


@dataclass(frozen=True, slots=True)
class HeatmapCell:
    """One metric of one subgroup.

    Attributes:
        value: value of the metric; ``None`` if undefined.
        interval: its interval.
        difference: how much better (above 0) the subgroup fares: an AUC minus the label's AUROC; a gap, negated where more is
            worse.
        significant: whether the interval excludes a difference of 0.
    """

    value: float | None
    interval: Interval | None
    difference: float | None
    significant: bool


@dataclass(frozen=True, slots=True)
class HeatmapRow:
    """One subgroup: its identity column, value, numbers of items, known and positive targets, and cells by metric."""

    identity: str
    value: str
    items: int
    known: int
    positive: int
    cells: dict[str, HeatmapCell]


@dataclass(frozen=True, slots=True)
class SubgroupGap:
    """Gap of one subgroup and label."""

    label: str
    value: str
    metric: str
    size: float
    interval: Interval
    known: int
    positive: int

    @property
    def margin(self) -> float:
        """Distance of the interval's nearer end from 0; negative if the interval contains 0."""
        return max(self.interval.low, -self.interval.high)

    @property
    def worse(self) -> bool:
        """Whether the subgroup fares worse than the other items."""
        return (self.size < 0) == (self.metric == "recall_gap")


def heatmap_rows(results: EvaluationResults, label: str) -> list[HeatmapRow]:
    """Return the heatmap of one label; ``results.fairness`` must be present."""
    assert results.fairness is not None
    auroc = results.overall.labels[label].auroc
    rows = []
    for subgroup in results.fairness.subgroups[:MAX_SUBGROUPS]:
        numbers = subgroup.labels[label]
        cells = {name: _cell(name, getattr(numbers, name), numbers.intervals.get(name), auroc) for name in HEATMAP_COLUMNS}
        rows.append(HeatmapRow(subgroup.identity, subgroup.value, subgroup.items, numbers.known, numbers.positive, cells))
    return rows


def subgroup_gaps(results: EvaluationResults) -> list[SubgroupGap]:
    """Return all gaps that have an interval."""
    return [
        SubgroupGap(label, subgroup.value, metric, size, interval, numbers.known, numbers.positive)
        for subgroup in (results.fairness.subgroups if results.fairness is not None else [])
        for label, numbers in subgroup.labels.items()
        for metric in GAP_METRICS
        if (size := getattr(numbers, metric)) is not None and (interval := numbers.intervals.get(metric)) is not None
    ]


def _cell(metric: str, value: float | None, interval: Interval | None, auroc: float | None) -> HeatmapCell:
    reference = 0.0 if metric in GAP_METRICS else auroc
    if value is None or reference is None:
        return HeatmapCell(value, interval, None, False)
    significant = interval is not None and not interval.low <= reference <= interval.high
    difference = reference - value if metric == "false_positive_gap" else value - reference
    return HeatmapCell(value, interval, difference, significant)
