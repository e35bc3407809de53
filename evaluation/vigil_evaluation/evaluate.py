"""Evaluate a predictions table: metrics with intervals, slices, fairness, confusion, abstaining, functional tests and policy."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from vigil_data.progress import ProgressCallback
from vigil_evaluation.calibration.conformal_coverage import conformal_coverage
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.fairness.subgroup_metrics import measure_fairness
from vigil_evaluation.metrics.label_confusion import confusion_between_labels
from vigil_evaluation.policy.impact import evaluation_impact
from vigil_evaluation.results import EvaluationResults
from vigil_evaluation.slices.breakdown import measure_groups
from vigil_evaluation.slices.discovery import discover_slices
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.suites.results import functional_test_results
from vigil_evaluation.volumes import measure_volumes

if TYPE_CHECKING:
    from vigil_evaluation.calibration.calibrators import FittedCalibration
    from vigil_evaluation.policy.compiled_policy import CompiledPolicy


def evaluate_table(
    table: pa.Table,
    labels: Sequence[str],
    thresholds: Mapping[str, float],
    spec: EvaluationSpec,
    facts: Mapping[str, str],
    *,
    calibrated: "FittedCalibration | None" = None,
    policy: "CompiledPolicy | None" = None,
    progress: ProgressCallback | None = None,
) -> EvaluationResults:
    """Evaluate a predictions table.

    Args:
        table: see :mod:`vigil_evaluation.predictions`; broken down by ``presence``, if it has that column, and by what ``spec``
            names.
        labels: in the taxonomy's order.
        thresholds: label to the lowest probability that is flagged.
        spec: settings.
        facts: description of the table for readers.
        calibrated: the calibration that produced the table's probabilities, if known.
        policy: the compiled policy that acts on them, if known.
        progress: called with each task.

    Raises:
        UserError: if a threshold is missing or not finite, or if a column is missing or of the wrong type.
    """
    return evaluate_data(
        EvaluationData.from_table(table, labels, thresholds, spec), facts, calibrated=calibrated, policy=policy, progress=progress
    )


def evaluate_data(
    data: EvaluationData,
    facts: Mapping[str, str],
    *,
    calibrated: "FittedCalibration | None" = None,
    policy: "CompiledPolicy | None" = None,
    progress: ProgressCallback | None = None,
) -> EvaluationResults:
    """Evaluate a parsed predictions table; see :func:`evaluate_table` for the arguments."""
    progress, spec = progress or (lambda *_: None), data.spec
    overall, by = measure_groups(data, progress)
    progress("volumes", 0, None)
    volumes = measure_volumes(data)
    progress("worst slices", 0, None)
    return EvaluationResults(
        facts=dict(facts),
        false_positive_rate=spec.false_positive_rate,
        precision=spec.precision,
        confidence=spec.confidence,
        replicates=spec.replicates,
        cluster=None if data.resampling.clusters is None else spec.cluster,
        units=data.units,
        enough=spec.enough,
        weighted=data.weights.label_N is not None,
        label_selection=data.label_selection,
        overall=overall,
        by=by,
        volumes=volumes,
        absent_slices=list(data.absent_slices),
        worst=discover_slices(
            data.columns, data.searched_columns, data.right_N, data.resampling, spec.confidence, data.weights.label_N
        ),
        fairness=measure_fairness(data, {name: m.auroc for name, m in overall.labels.items()}, progress)
        if spec.identities
        else None,
        confusion=confusion_between_labels(
            data.targets_NL, data.probabilities_NL, data.thresholds, spec.enough, data.weights.label_N
        )
        if len(data.labels) > 1
        else None,
        conformal=None
        if calibrated is None
        else conformal_coverage(
            calibrated,
            data.targets_NL,
            data.probabilities_NL,
            data.labels,
            confidence=spec.confidence,
            presence_N=data.presence_N,
            weights=data.weights,
        ),
        calibration={} if calibrated is None else calibrated.calibration.summaries(),
        functionality=functional_test_results(data),
        policy=None if policy is None else evaluation_impact(policy, data),
    )
