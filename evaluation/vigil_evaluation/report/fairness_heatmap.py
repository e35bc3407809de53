"""Subgroups against the rest, as the rows of a heat map, and which of the differences are more than chance explains."""

from collections.abc import Iterator
from dataclasses import dataclass

from vigil_evaluation.results import Findings
from vigil_evaluation.stats.intervals import Interval

COLUMNS = {
    "subgroup_auc": "Subgroup AUC",
    "bpsn_auc": "BPSN AUC",
    "bnsp_auc": "BNSP AUC",
    "recall_gap": "Recall gap, points",
    "false_positive_gap": "False-positive gap, points",
}
"""Names of the numbers, in the order of the columns."""

GAPS = {"recall_gap": "recall", "false_positive_gap": "false-positive rate"}
"""Differences of the subgroup from all other items."""

SHOWN = 60
"""Subgroups on the page; metrics.json has all."""


@dataclass(frozen=True, slots=True)
class GapCell:
    """One number of one subgroup.

    Attributes:
        value: the number; ``None`` where it is not defined.
        interval: its interval.
        difference: how much better (above 0) the subgroup fares: an AUC less the label's AUROC; a gap as it is, turned round
            where more is worse.
        sure: whether the interval holds no difference of 0.
    """

    value: float | None
    interval: Interval | None
    difference: float | None
    sure: bool


@dataclass(frozen=True, slots=True)
class GapRow:
    """A subgroup: the column that names it, its value, its items, known and positive of them, and its cells by name."""

    identity: str
    value: str
    items: int
    known: int
    positive: int
    cells: dict[str, GapCell]


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap of one subgroup and label."""

    label: str
    value: str
    kind: str
    size: float
    interval: Interval
    known: int
    positive: int

    @property
    def least(self) -> float:
        """How far the interval's nearer end is from 0; below 0 if it holds 0."""
        return max(self.interval.low, -self.interval.high)

    @property
    def worse(self) -> bool:
        """Whether the subgroup fares worse than the rest."""
        return (self.size < 0) == (self.kind == "recall_gap")


def gap_rows(findings: Findings, label: str) -> list[GapRow]:
    """The heat map of one label.

    Args:
        findings: with ``fairness``.
        label: which.
    """
    assert findings.fairness is not None
    auroc = findings.overall.labels[label].auroc
    rows = []
    for subgroup in findings.fairness.subgroups[:SHOWN]:
        numbers = subgroup.labels[label]
        cells = {name: _cell(name, getattr(numbers, name), numbers.intervals.get(name), auroc) for name in COLUMNS}
        rows.append(GapRow(subgroup.identity, subgroup.value, subgroup.items, numbers.known, numbers.positive, cells))
    return rows


def gaps(findings: Findings) -> list[Gap]:
    """All gaps that have an interval."""
    return list(_gaps(findings))


def _gaps(findings: Findings) -> Iterator[Gap]:
    for subgroup in findings.fairness.subgroups if findings.fairness is not None else []:
        for label, numbers in subgroup.labels.items():
            for kind in GAPS:
                size, interval = getattr(numbers, kind), numbers.intervals.get(kind)
                if size is not None and interval is not None:
                    yield Gap(label, subgroup.value, kind, size, interval, numbers.known, numbers.positive)


def _cell(name: str, value: float | None, interval: Interval | None, auroc: float | None) -> GapCell:
    whole = 0.0 if name in GAPS else auroc
    if value is None or whole is None:
        return GapCell(value, interval, None, False)
    sure = interval is not None and not interval.low <= whole <= interval.high
    difference = whole - value if name == "false_positive_gap" else value - whole
    return GapCell(value, interval, difference, sure)
