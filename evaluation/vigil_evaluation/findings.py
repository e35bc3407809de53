"""All numbers of a predictions table: by label, over labels, by the modalities present and by slice."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from vigil_data.errors import UserError
from vigil_evaluation.metrics import (
    Floats,
    auroc,
    average_precision,
    brier,
    calibration_error,
    decisions_at,
    recall_at_fpr,
)
from vigil_evaluation.predictions import arrays
from vigil_evaluation.specs import EvaluationSpec

MAX_GROUPS = 200
"""The most values of one column that are broken down; what is left out is counted."""

METRICS = (
    "average_precision",
    "auroc",
    "recall_at_fpr",
    "f1",
    "precision",
    "recall",
    "false_positive_rate",
    "accuracy",
    "brier",
    "calibration_error",
)
"""The numbers of a label that are averaged over labels; docs/metrics.md defines each."""


@dataclass(frozen=True, slots=True)
class LabelFindings:
    """The numbers of one label over one group of items; ``None`` where one is not defined."""

    known: int
    positive: int
    threshold: float
    average_precision: float | None
    auroc: float | None
    recall_at_fpr: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    false_positive_rate: float | None
    accuracy: float | None
    brier: float | None
    calibration_error: float | None
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


@dataclass(frozen=True, slots=True)
class Macro:
    """The mean of one metric over the labels for which it is defined, and how many those are."""

    value: float | None
    labels: int


@dataclass(frozen=True, slots=True)
class Group:
    """The numbers of a group of items.

    Attributes:
        value: what the items share, such as ``text+image``; ``None`` where the column is null, and for the group of all.
        items: how many.
        judged: how many have at least one known target.
        all_right: share of the judged whose every known target is decided rightly at the thresholds.
        macro: metric to its mean over labels.
        labels: label to its numbers.
    """

    value: str | None
    items: int
    judged: int
    all_right: float | None
    macro: dict[str, Macro]
    labels: dict[str, LabelFindings]


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The groups of one column, the largest first.

    Attributes:
        column: the column's name.
        groups: at most :data:`MAX_GROUPS`.
        values_left_out: how many values beyond those the column has.
        items_left_out: how many items have them.
    """

    column: str
    groups: list[Group]
    values_left_out: int
    items_left_out: int


@dataclass(frozen=True, slots=True)
class Findings:
    """All that is found in one predictions table.

    Attributes:
        facts: what the table is of (run, split, dataset, …), shown as given.
        false_positive_rate: the rate of ``recall_at_fpr``.
        overall: all items.
        by: breakdowns, ``presence`` first.
        absent_slices: columns that were asked for and that the table does not have.
    """

    facts: dict[str, str]
    false_positive_rate: float
    overall: Group
    by: list[Breakdown]
    absent_slices: list[str]

    def to_json(self) -> str:
        """The findings as JSON text, which docs/metrics.md documents; a number that is not defined is null."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


def evaluate(
    table: pa.Table, labels: Sequence[str], thresholds: Mapping[str, float], spec: EvaluationSpec, facts: Mapping[str, str]
) -> Findings:
    """Find all numbers of a predictions table.

    Args:
        table: see :mod:`vigil_evaluation.predictions`; broken down by ``presence`` if it has that, and by the slices of ``spec``.
        labels: in the taxonomy's order.
        thresholds: label to the lowest probability that is flagged.
        spec: the false-positive rate of recall and the columns to slice by.
        facts: what the table is of, for its reader.

    Raises:
        UserError: if a threshold is absent or not a number, if the table's columns are wrong, or if a slice holds lists.
    """
    problems = [f"thresholds: label {label} has none" for label in labels if label not in thresholds]
    problems += [f"thresholds: label {k} has {thresholds[k]}" for k in labels if not np.isfinite(thresholds.get(k, 0.0))]
    if problems:
        raise UserError(*problems)
    targets_NL, probabilities_NL = arrays(table, labels)
    limits = {label: float(thresholds[label]) for label in labels}

    def group(rows: NDArray[np.int64] | slice, value: str | None) -> Group:
        return _group(value, targets_NL[rows], probabilities_NL[rows], limits, spec.false_positive_rate)

    columns = list(dict.fromkeys(("presence", *spec.slices)))
    breakdowns = []
    for column in (name for name in columns if name in table.column_names):
        values, rows = _values(table, column)
        left_out = rows[MAX_GROUPS:]
        groups = [group(r, value) for value, r in zip(values[:MAX_GROUPS], rows[:MAX_GROUPS], strict=True)]
        breakdowns.append(Breakdown(column, groups, len(left_out), sum(len(r) for r in left_out)))
    absent = [name for name in columns if name not in table.column_names and name != "presence"]
    return Findings(dict(facts), spec.false_positive_rate, group(slice(None), None), breakdowns, absent)


def macro_average_precision(targets_NL: ArrayLike, probabilities_NL: ArrayLike) -> float | None:
    """Mean average precision over the labels for which it is defined.

    Args:
        targets_NL: in [0, 1], NaN for unknown.
        probabilities_NL: or logits: any scores.

    Returns:
        ``None`` if no label has both a known positive and a known negative.
    """
    targets, scores = np.asarray(targets_NL), np.asarray(probabilities_NL)
    return mean([average_precision(targets[:, i], scores[:, i]) for i in range(targets.shape[1])]).value


def mean(values: Sequence[float | None]) -> Macro:
    """The mean of the values that are defined, beside their number."""
    defined = [value for value in values if value is not None]
    return Macro(float(np.mean(defined)) if defined else None, len(defined))


def _group(value: str | None, targets_NL: Floats, probabilities_NL: Floats, limits: Mapping[str, float], rate: float) -> Group:
    known_NL = ~np.isnan(targets_NL)
    right_NL = ((targets_NL >= 0.5) == (probabilities_NL >= np.array(list(limits.values())))) | ~known_NL
    judged_N = known_NL.any(axis=1)
    judged = int(judged_N.sum())
    by_label = {
        label: _label(targets_NL[:, i], probabilities_NL[:, i], limit, rate) for i, (label, limit) in enumerate(limits.items())
    }
    macro = {metric: mean([getattr(numbers, metric) for numbers in by_label.values()]) for metric in METRICS}
    all_right = float(right_NL[judged_N].all(axis=1).mean()) if judged else None
    return Group(value, len(targets_NL), judged, all_right, macro, by_label)


def _label(targets_N: Floats, probabilities_N: Floats, threshold: float, rate: float) -> LabelFindings:
    at = decisions_at(targets_N, probabilities_N, threshold)
    return LabelFindings(
        known=sum(at),
        positive=at.true_positives + at.false_negatives,
        threshold=threshold,
        average_precision=average_precision(targets_N, probabilities_N),
        auroc=auroc(targets_N, probabilities_N),
        recall_at_fpr=recall_at_fpr(targets_N, probabilities_N, rate),
        f1=at.f1,
        precision=at.precision,
        recall=at.recall,
        false_positive_rate=at.false_positive_rate,
        accuracy=at.accuracy,
        brier=brier(targets_N, probabilities_N),
        calibration_error=calibration_error(targets_N, probabilities_N),
        true_positives=at.true_positives,
        false_positives=at.false_positives,
        false_negatives=at.false_negatives,
        true_negatives=at.true_negatives,
    )


def _values(table: pa.Table, column: str) -> tuple[list[str | None], list[NDArray[np.int64]]]:
    """The values of a column as text and the rows of each, the most frequent first."""
    array = table.column(column)
    if pa.types.is_nested(array.type):
        raise UserError(f"evaluation.slices: column {column} holds {array.type}; slice by a column with one plain value an item")
    rows: dict[str | None, list[int]] = {}
    for row, value in enumerate(array.to_pylist()):
        rows.setdefault(None if value is None else str(value), []).append(row)
    order = sorted(rows, key=lambda value: (-len(rows[value]), value is None, value or ""))
    return list(order), [np.array(rows[value], np.int64) for value in order]
