"""What is found in a predictions table, as plain data: by label, over labels, by slice, and of single questions."""

import json
from dataclasses import asdict, dataclass, field

from vigil_evaluation.calibration.calibrators import CalibrationNote
from vigil_evaluation.calibration.conformal_coverage import ConformalFindings
from vigil_evaluation.fairness.results import Fairness
from vigil_evaluation.metrics.label_confusion import LabelConfusion
from vigil_evaluation.policy.impact import PolicyFindings
from vigil_evaluation.slices.discovery import Discovery
from vigil_evaluation.stats.intervals import Interval
from vigil_evaluation.suites.results import SuiteFindings

SCHEMA_VERSION = 2
"""Of the JSON form, docs/metrics.schema.json; raised when a field changes its meaning or goes."""


@dataclass(frozen=True, slots=True)
class LabelFindings:
    """The numbers of one label over one group of items; ``None`` where one is not defined or rests on too few known targets.

    Attributes:
        known: items whose target is known.
        positive: those of them that are positive.
        threshold: the lowest probability that is flagged.
        intervals: metric to its interval; a metric that is ``None`` has none.
    """

    known: int
    positive: int
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
class Macro:
    """The mean of one metric over the labels for which it is defined, how many those are, and its interval."""

    value: float | None
    labels: int
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Micro:
    """One metric over all known pairs of item and label taken together, and its interval."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Group:
    """The numbers of a group of items.

    Attributes:
        value: what the items share, such as ``text+image``; ``None`` where the column is null, and for the group of all.
        items: how many.
        judged: how many have at least one known target.
        all_right: share of the judged whose every known target is decided rightly at the thresholds.
        all_right_interval: of that share.
        macro: metric to its mean over labels.
        micro: metric to its value over all labels taken together.
        labels: label to its numbers.
    """

    value: str | None
    items: int
    judged: int
    all_right: float | None
    all_right_interval: Interval | None
    macro: dict[str, Macro]
    micro: dict[str, Micro]
    labels: dict[str, LabelFindings]


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The groups of one column, or of two crossed, the largest first.

    Attributes:
        column: the column's name; of a cross both, with a multiplication sign between.
        groups: at most :data:`vigil_evaluation.slices.grouping.MAX_GROUPS`, of a cross ``MAX_CROSSED``.
        values_left_out: how many values beyond those there are.
        items_left_out: how many items have them.
    """

    column: str
    groups: list[Group]
    values_left_out: int
    items_left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that is found in one predictions table.

    Attributes:
        schema_version: of the JSON form.
        facts: what the table is of (run, split, dataset, …), shown as given.
        false_positive_rate: the rate of ``recall_at_fpr`` and the reach of ``partial_auroc``.
        precision: the precision of ``recall_at_precision``.
        confidence: of each interval.
        replicates: of the bootstrap behind each interval; 0 for no intervals.
        cluster: the column of the units that are resampled together; ``None`` if each item is its own.
        units: how many units are resampled.
        enough: fewest known positives (negatives) for a number that needs them.
        overall: all items.
        by: breakdowns: ``presence`` first, then the slices, then the crosses.
        absent_slices: columns that were asked for and that the table does not have.
        worst: the slices on which decisions are worst.
        fairness: subgroups by the identity columns; ``None`` if none was asked for.
        confusion: which labels are taken for which; ``None`` with one label alone.
        conformal: what abstaining would give; ``None`` without a calibration split.
        calibration: label to how its probabilities are calibrated; empty if that is not known.
        functionality: functional tests; ``None`` if the table has none.
        policy: what the compiled policy does to these items; ``None`` without a policy.
    """

    schema_version: int = SCHEMA_VERSION
    facts: dict[str, str]
    false_positive_rate: float
    precision: float
    confidence: float
    replicates: int
    cluster: str | None
    units: int
    enough: int
    overall: Group
    by: list[Breakdown]
    absent_slices: list[str]
    worst: Discovery | None = None
    fairness: Fairness | None = None
    confusion: LabelConfusion | None = None
    conformal: ConformalFindings | None = None
    calibration: dict[str, CalibrationNote] = field(default_factory=dict)
    functionality: SuiteFindings | None = None
    policy: PolicyFindings | None = None

    def to_json(self) -> str:
        """The findings as JSON text, which docs/metrics.md documents; a number that is not defined is null."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"
