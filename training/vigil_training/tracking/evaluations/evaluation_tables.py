"""Rows of the tables and curves of an evaluation that a tracking service shows; each table has a bounded number of rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.metrics import operating_points, precision_recall_curve, reliability, roc_curve
from vigil_evaluation.report.evidence import ItemExample, SegmentEvidence
from vigil_evaluation.report.hardest_errors import ERRORS_PER_KIND, hardest_errors
from vigil_evaluation.report.threshold_explorer import threshold_explorer
from vigil_evaluation.results import EvaluationResults
from vigil_evaluation.slices.results import LabelMetrics
from vigil_evaluation.suites.results import FunctionalTestResults

MAX_ROWS = 10_000
"""Rows of a table: W&B draws no more than these."""

CURVE_POINTS = 200
"""Points of a curve, if there are at most 50 labels."""

FPR_DECADES = 6
"""Points of the ROC curve are spread over the logarithm of the rate, down to ten to the minus this power."""

MAX_EXAMPLES = 300

_NUMBERS = ("average_precision", "auroc", "f1", "precision", "recall", "false_positive_rate", "recall_at_fpr")
_LABEL_COLUMNS = ("known", "positive", *_NUMBERS, "low", "high")

KINDS = ("false positive", "false negative", "uncertain")


class Rows(NamedTuple):
    """A table: names of its columns, and its rows."""

    columns: list[str]
    rows: list[list[Any]]


class Example(NamedTuple):
    """An item that is decided wrongly with confidence, or whose probability is near the threshold.

    Attributes:
        label: the label.
        kind: one of :data:`KINDS`.
        row: row of the predictions table.
        id: id of the item.
        probability: probability of the label.
        target: target of the label; ``None`` for unknown.
    """

    label: str
    kind: str
    row: int
    id: str
    probability: float
    target: float | None


def label_rows(results: EvaluationResults) -> Rows:
    """Return the metrics of each label over all items; ``low`` and ``high`` are the interval of the average precision."""
    rows = [[label, *_label_values(found)] for label, found in results.overall.labels.items()]
    return Rows(["label", *_LABEL_COLUMNS], rows[:MAX_ROWS])


def slice_rows(results: EvaluationResults) -> Rows:
    """Return the metrics of each label in each slice; ``low`` and ``high`` are the interval of the average precision."""
    rows = [
        [breakdown.column, "(none)" if group.value is None else group.value, group.items, label, *_label_values(found)]
        for breakdown in results.by
        for group in breakdown.groups
        for label, found in group.labels.items()
    ]
    return Rows(["column", "value", "items", "label", *_LABEL_COLUMNS], rows[:MAX_ROWS])


def functionality_rows(tests: FunctionalTestResults) -> Rows:
    """Return the accuracy of each label in each functional test, with its interval."""
    columns = ["functionality", "items", "label", "known", "expected", "accuracy", "low", "high", "mean_probability"]
    rows = []
    for case in tests.cases:
        for label, found in case.labels.items():
            low, high = found.accuracy.interval or (None, None)
            numbers = (found.accuracy.count, found.expected, found.accuracy.value, low, high, found.mean_probability)
            rows.append([case.name, case.items, label, *numbers])
    return Rows(columns, rows[:MAX_ROWS])


def curve_rows(data: EvaluationData) -> dict[str, Rows]:
    """Return the curves of all labels: ``precision_recall``, ``roc``, ``reliability`` and ``threshold``.

    A label without a known positive or negative has no curve, and one without known targets no reliability diagram.
    """
    count = max(2, min(CURVE_POINTS, MAX_ROWS // max(len(data.labels), 1)))
    weights_N = data.weights.label_N
    curves = {
        "precision_recall": Rows(["label", "recall", "precision"], []),
        "roc": Rows(["label", "false_positive_rate", "recall"], []),
        "reliability": Rows(["label", "probability", "target", "items"], []),
        "threshold": Rows(["label", "threshold", "precision", "recall", "false_positive_rate", "flagged"], []),
    }
    for i, (label, threshold) in enumerate(data.thresholds.items()):
        targets_N, probabilities_N = data.targets_NL[:, i], data.probabilities_NL[:, i]
        points = operating_points(targets_N, probabilities_N, weights_N)
        if points.positives and points.negatives:
            found = precision_recall_curve(points, count - 2), roc_curve(points, count - 2, FPR_DECADES)
            for name, (across, up) in zip(("precision_recall", "roc"), found, strict=True):
                curves[name].rows.extend([label, x, y] for x, y in zip(across.tolist(), up.tolist(), strict=True))
        if points.positives or points.negatives:
            bins = reliability(targets_N, probabilities_N, weights_N=weights_N)
            each = zip(bins.probability.tolist(), bins.target.tolist(), bins.items.tolist(), strict=True)
            curves["reliability"].rows.extend([label, *values] for values in each)
        explorer = threshold_explorer(points, probabilities_N, threshold, data.weights.item_N)
        kept = np.unique(np.linspace(0, len(explorer.candidates) - 1, min(count, len(explorer.candidates))).round().astype(int))
        for candidate in (explorer.candidates[k] for k in kept.tolist()):
            known = candidate.true_positives + candidate.false_positives
            curves["threshold"].rows.append(
                [
                    label,
                    candidate.threshold,
                    _share(candidate.true_positives, known),
                    _share(candidate.true_positives, points.positives),
                    _share(candidate.false_positives, points.negatives),
                    _share(candidate.flagged, explorer.items),
                ]
            )
    return curves


def find_examples(data: EvaluationData) -> list[Example]:
    """Return the most confident errors of each label, and the items whose probability is nearest to its threshold."""
    most = max(1, min(ERRORS_PER_KIND, MAX_EXAMPLES // (len(KINDS) * max(len(data.labels), 1))))
    found: list[tuple[str, str, int, float, float]] = []
    for i, (label, threshold) in enumerate(data.thresholds.items()):
        targets_N, probabilities_N = data.targets_NL[:, i], data.probabilities_NL[:, i]
        errors = hardest_errors(targets_N, probabilities_N, threshold)
        wrong = {kind: of.rows[:most].tolist() for kind, of in zip(KINDS, errors, strict=False)}
        listed = {row for rows in wrong.values() for row in rows}
        nearest = np.argsort(np.abs(probabilities_N - threshold), kind="stable")[: most + len(listed)].tolist()
        wrong[KINDS[2]] = [row for row in nearest if row not in listed][:most]
        found += [
            (label, kind, row, float(probabilities_N[row]), float(targets_N[row])) for kind, rows in wrong.items() for row in rows
        ]
    ids = data.table.column("id").take([row for _, _, row, _, _ in found]).to_pylist() if found else []
    return [
        Example(label, kind, row, str(id_), probability, None if np.isnan(target) else target)
        for (label, kind, row, probability, target), id_ in zip(found[:MAX_EXAMPLES], ids, strict=False)
    ]


def describe_evidence(example: ItemExample | None, label: str) -> str:
    """Return where the segments are on which the decision about a label rests, and their weights; nothing of their content."""
    evidence: Sequence[SegmentEvidence] = () if example is None else example.evidence.get(label, ())
    return "; ".join(f"{segment.location} ({segment.weight:.0%})" for segment in evidence)


def slice_values(data: EvaluationData, columns: Sequence[str], examples: Sequence[Example]) -> Iterator[Mapping[str, str]]:
    """Yield the values of some columns of each example."""
    rows = data.table.select(list(columns)).take([example.row for example in examples]).to_pylist()
    for row in rows or [{}] * len(examples):
        yield {name: "" if row[name] is None else str(row[name]) for name in columns}


def _label_values(found: LabelMetrics) -> list[Any]:
    low, high = found.intervals.get("average_precision") or (None, None)
    return [found.known, found.positive, *(getattr(found, name) for name in _NUMBERS), low, high]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
