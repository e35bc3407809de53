"""What a reader should be told before the tables: what stands out, and the mistakes that the model is most sure of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from vigil_evaluation.findings import Breakdown, Findings, LabelFindings
from vigil_evaluation.metrics import Floats

ENOUGH = 20
"""A group of fewer judged items is not singled out."""

BELOW = 0.05
"""How far below the whole a group must be to be singled out."""

POORLY_CALIBRATED = 0.1
MISTAKES = 5


@dataclass(frozen=True, slots=True)
class Mistake:
    """An item that the model decides wrongly: its id, its probability, and its columns as text."""

    id: str
    probability: float
    columns: str


def highlights(findings: Findings) -> list[str]:
    """What stands out, one sentence each: the weakest label, labels without a number, weak groups, poor calibration."""
    labels = findings.overall.labels
    ranked = {label: n.average_precision for label, n in labels.items() if n.average_precision is not None}
    lines = []
    if len(ranked) > 1:
        weakest = min(ranked, key=lambda label: ranked[label])
        lines.append(f"The weakest label is {weakest}, with an average precision of {ranked[weakest]:.3f}.")
    if unranked := [f"{label} ({_why(n)})" for label, n in labels.items() if n.average_precision is None]:
        lines.append(f"Without a ranking, and so in no average: {', '.join(unranked)}.")
    lines += [_weak_group(findings, *weak) for weak in _weak_groups(findings)]
    if poor := [
        f"{label} (off by {n.calibration_error:.2f})"
        for label, n in labels.items()
        if n.calibration_error is not None and n.calibration_error > POORLY_CALIBRATED and n.known >= ENOUGH
    ]:
        lines.append(f"Do not read these labels' probabilities as frequencies: {', '.join(poor)}.")
    if findings.absent_slices:
        lines.append(f"Columns asked for but absent from the predictions: {', '.join(findings.absent_slices)}.")
    return lines


def mistakes(
    table: pa.Table, targets_N: Floats, probabilities_N: Floats, threshold: float, columns: Sequence[str]
) -> tuple[list[Mistake], list[Mistake]]:
    """The wrong decisions that the model is most sure of: items flagged wrongly, then items missed.

    Args:
        table: the predictions table.
        targets_N: of one label, NaN for unknown.
        probabilities_N: of that label.
        threshold: the lowest probability that is flagged.
        columns: which columns to show beside an item's id.
    """

    def shown(wrong_N: np.ndarray, direction: int) -> list[Mistake]:
        rows = np.flatnonzero(wrong_N)
        surest = rows[np.argsort(direction * probabilities_N[rows], kind="stable")][:MISTAKES]
        taken = table.select(list(dict.fromkeys(["id", *columns]))).take(pa.array(surest, pa.int64())).to_pylist()
        return [
            Mistake(str(row["id"]), float(probabilities_N[i]), ", ".join(str(row[c]) for c in columns if row[c] is not None))
            for i, row in zip(surest, taken, strict=True)
        ]

    flagged = probabilities_N >= threshold
    return shown((targets_N < 0.5) & flagged, -1), shown((targets_N >= 0.5) & ~flagged, 1)


def _why(numbers: LabelFindings) -> str:
    if not numbers.known:
        return "no item has a known target"
    if not numbers.positive:
        return f"none of its {numbers.known:,} known items is positive"
    return f"all of its {numbers.known:,} known items are positive"


def _weak_groups(findings: Findings) -> list[tuple[Breakdown, str, int, float]]:
    """At most three groups, the weakest first."""
    overall = findings.overall.all_right
    if overall is None:
        return []
    weak = [
        (breakdown, "not known" if group.value is None else group.value, group.judged, group.all_right)
        for breakdown in findings.by
        for group in breakdown.groups
        if group.judged >= ENOUGH and group.all_right is not None and group.all_right < overall - BELOW
    ]
    return sorted(weak, key=lambda entry: entry[3])[:3]


def _weak_group(findings: Findings, breakdown: Breakdown, value: str, judged: int, all_right: float) -> str:
    return (
        f"Where {breakdown.column} is {value}, {all_right:.1%} of {judged:,} items are decided rightly, "
        f"against {findings.overall.all_right:.1%} of all."
    )
