"""Results of evaluating a predictions table, as plain data and as the JSON of metrics.json."""

import json
from dataclasses import asdict, dataclass, field

from vigil_evaluation.calibration.calibrators import CalibrationSummary
from vigil_evaluation.calibration.conformal_coverage import ConformalCoverage
from vigil_evaluation.fairness.results import FairnessResults
from vigil_evaluation.metrics.label_confusion import LabelConfusion
from vigil_evaluation.policy.impact import PolicyImpact
from vigil_evaluation.slices.discovery import SliceDiscovery
from vigil_evaluation.slices.results import Breakdown, GroupMetrics
from vigil_evaluation.stats.selection_tests import LabelSelection
from vigil_evaluation.suites.results import FunctionalTestResults
from vigil_evaluation.volumes import Volumes

SCHEMA_VERSION = 2
"""Version of the JSON form, docs/metrics.schema.json; raised when a field changes its meaning or is removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResults:
    """Everything measured on one predictions table.

    Attributes:
        schema_version: version of the JSON form.
        facts: description of the table (run, split, dataset, …), shown as given.
        false_positive_rate: rate of ``recall_at_fpr``, and the upper limit of ``partial_auroc``.
        precision: precision of ``recall_at_precision``.
        confidence: of each interval.
        replicates: bootstrap replicates behind each interval; 0 for no intervals.
        cluster: column of the units that are resampled together; ``None`` if each item is its own unit.
        units: number of units.
        enough: fewest known positives (negatives) for a metric that needs them; under weights, fewest effective ones (Kish 1965).
        weighted: whether items have weights: metrics and intervals are weighted, counts of items are not.
        label_selection: whether the labelled items are a random sample, or were chosen with the stated inclusion probabilities;
            ``None`` if that cannot be tested, as no label has both known and unknown targets. Its ``lines`` are warnings.
        overall: all items.
        by: breakdowns by ``presence``, the slices and the crosses, in this order.
        volumes: share of the items that are flagged, in the groups of ``overall`` and ``by``.
        absent_slices: requested columns that the table lacks.
        worst: slices with the worst decisions.
        fairness: subgroups by the identity columns; ``None`` if none was requested.
        confusion: labels that are mistaken for each other; ``None`` with a single label.
        conformal: effect of abstaining; ``None`` without conformal thresholds.
        calibration: how the probabilities of each label were calibrated; empty if unknown.
        functionality: functional tests; ``None`` if the table has none.
        policy: impact of the compiled policy on these items; ``None`` without a policy.
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
    weighted: bool
    label_selection: LabelSelection | None
    overall: GroupMetrics
    by: list[Breakdown]
    volumes: Volumes
    absent_slices: list[str]
    worst: SliceDiscovery | None = None
    fairness: FairnessResults | None = None
    confusion: LabelConfusion | None = None
    conformal: ConformalCoverage | None = None
    calibration: dict[str, CalibrationSummary] = field(default_factory=dict)
    functionality: FunctionalTestResults | None = None
    policy: PolicyImpact | None = None

    @property
    def labelled(self) -> bool:
        """Whether the target of any label of any item is known."""
        return self.overall.judged > 0

    def to_json(self) -> str:
        """Return the results as JSON text (docs/metrics.md); undefined numbers are null."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"
