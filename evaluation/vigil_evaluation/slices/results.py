"""Results for groups of items: metrics of each label, and averages over labels, each with its interval."""

from dataclasses import dataclass

from vigil_evaluation.stats.intervals import Interval


@dataclass(frozen=True, slots=True)
class LabelMetrics:
    """Metrics of one label over one group of items; ``None`` where undefined or based on too few known targets.

    Attributes:
        known: items whose target is known, whatever their weights.
        positive: known items that are positive.
        effective: number of equally weighted items that would be as precise (Kish 1965); ``known`` without weights.
        threshold: the lowest probability that is flagged.
        intervals: interval of each metric that is not ``None``.

    ``true_positives`` and the other three count items, whatever their weights.
    """

    known: int
    positive: int
    effective: float
    threshold: float
    average_precision: float | None
    auroc: float | None
    partial_auroc: float | None
    recall_at_fpr: float | None
    recall_at_precision: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    false_positive_rate: float | None
    accuracy: float | None
    brier: float | None
    log_loss: float | None
    calibration_error: float | None
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    intervals: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class MacroAverage:
    """Mean of one metric over the labels for which it is defined, the number of those labels, and an interval."""

    value: float | None
    labels: int
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class MicroAverage:
    """One metric over all known pairs of item and label, and its interval."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class GroupMetrics:
    """Metrics of one group of items.

    Attributes:
        value: what the items share, such as ``text+image``; ``None`` where the column is null, and for the group of all items.
        items: number of items.
        traffic: number of items of traffic that these represent; ``items`` without weights.
        judged: items with at least one known target.
        all_right: share of the judged items whose every known target is decided correctly at the thresholds.
        all_right_interval: interval of that share.
        macro: average of each metric over labels.
        micro: each metric over all labels pooled.
        labels: metrics of each label.
    """

    value: str | None
    items: int
    traffic: float
    judged: int
    all_right: float | None
    all_right_interval: Interval | None
    macro: dict[str, MacroAverage]
    micro: dict[str, MicroAverage]
    labels: dict[str, LabelMetrics]


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Groups of one column or of two crossed columns, the largest first.

    Attributes:
        column: name of the column; for a cross both names, joined by a multiplication sign.
        groups: at most :data:`vigil_evaluation.slices.grouping.MAX_GROUPS`, or ``MAX_CROSSED`` for a cross.
        values_left_out: number of further values.
        items_left_out: number of items with one of those values.
    """

    column: str
    groups: list[GroupMetrics]
    values_left_out: int
    items_left_out: int
