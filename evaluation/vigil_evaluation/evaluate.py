"""Find everything that an evaluation finds in a predictions table."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from vigil_data.errors import UserError
from vigil_evaluation.calibration.conformal_coverage import ConformalFindings, conformal_findings
from vigil_evaluation.fairness.subgroup_metrics import fairness
from vigil_evaluation.metrics.label_confusion import confusion
from vigil_evaluation.policy.impact import PolicyFindings, policy_findings
from vigil_evaluation.predictions import arrays
from vigil_evaluation.results import Findings
from vigil_evaluation.slices.breakdown import EvaluationData, breakdowns, overall
from vigil_evaluation.slices.discovery import discover
from vigil_evaluation.slices.grouping import clusters, groupable, groupings
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats.bootstrap import Resampling
from vigil_evaluation.suites.results import functionality_findings

if TYPE_CHECKING:
    from vigil_evaluation.calibration.calibrators import Calibrated
    from vigil_evaluation.policy.compiled_policy import CompiledPolicy


def evaluate(
    table: pa.Table,
    labels: Sequence[str],
    thresholds: Mapping[str, float],
    spec: EvaluationSpec,
    facts: Mapping[str, str],
    *,
    calibrated: "Calibrated | None" = None,
    policy: "CompiledPolicy | None" = None,
    progress: Callable[[str], None] | None = None,
) -> Findings:
    """Find all numbers of a predictions table.

    Args:
        table: see :mod:`vigil_evaluation.predictions`; broken down by ``presence`` if it has that, and by what ``spec`` names.
        labels: in the taxonomy's order.
        thresholds: label to the lowest probability that is flagged.
        spec: what is measured, with which intervals, and by what it is broken down.
        facts: what the table is of, for its reader.
        calibrated: what made the table's probabilities, if it is known.
        policy: what is done with them, if it is known.
        progress: told what is measured.

    Raises:
        UserError: if a threshold is absent or not a number, if the table's columns are wrong, or if a slice holds lists.
    """
    say = progress or (lambda _: None)
    problems = [f"thresholds: label {label} has none" for label in labels if label not in thresholds]
    problems += [f"thresholds: label {k} has {thresholds[k]}" for k in labels if not np.isfinite(thresholds.get(k, 0.0))]
    if problems:
        raise UserError(*problems)
    targets_NL, probabilities_NL = arrays(table, labels)
    made, absent = groupings(table, spec)
    units_N = clusters(table, spec)
    if spec.cluster is not None and units_N is None:
        absent.append(spec.cluster)
    limits = {label: float(thresholds[label]) for label in labels}
    resampling = Resampling(spec.replicates, spec.seed, units_N)
    judged = EvaluationData(targets_NL, probabilities_NL, limits, resampling, spec)
    everything = overall(judged, say)
    by = breakdowns(judged, made, say)
    say("worst slices")
    worst = discover(table, _searched(table, spec), judged.right_N, resampling, spec.confidence)
    auroc = {label: numbers.auroc for label, numbers in everything.labels.items()}
    return Findings(
        facts=dict(facts),
        false_positive_rate=spec.false_positive_rate,
        precision=spec.precision,
        confidence=spec.confidence,
        replicates=spec.replicates,
        cluster=None if units_N is None else spec.cluster,
        units=table.num_rows if units_N is None else int(units_N.max(initial=-1)) + 1,
        enough=spec.enough,
        overall=everything,
        by=by,
        absent_slices=absent,
        worst=worst,
        fairness=fairness(judged, table, auroc, say) if spec.identities else None,
        confusion=confusion(targets_NL, probabilities_NL, limits, spec.enough) if len(labels) > 1 else None,
        conformal=_abstaining(judged, table, calibrated),
        calibration=calibrated.calibration.notes() if calibrated is not None else {},
        functionality=functionality_findings(table, labels, limits, spec),
        policy=_decided(judged, table, policy),
    )


def _searched(table: pa.Table, spec: EvaluationSpec) -> list[str]:
    """The columns in which the worst slices are searched: all by which anything is broken down, with one plain value an item."""
    crossed = [name for pair in spec.crosses for name in pair]
    functionality = [spec.functionality] if spec.functionality is not None else []
    named = dict.fromkeys(["presence", *spec.slices, *crossed, *functionality])
    named |= {name: None for name in spec.identities if name in table.column_names and not _is_share(table, name)}
    return [name for name in named if name in table.column_names and groupable(table, name)]


def _abstaining(judged: EvaluationData, table: pa.Table, calibrated: "Calibrated | None") -> ConformalFindings | None:
    if calibrated is None:
        return None
    presence = table.column("presence").to_pylist() if "presence" in table.column_names else None
    targets_NL, probabilities_NL, labels = judged.targets_NL, judged.probabilities_NL, list(judged.thresholds)
    confidence = judged.spec.confidence
    return conformal_findings(calibrated, targets_NL, probabilities_NL, labels, confidence=confidence, presence_N=presence)


def _decided(judged: EvaluationData, table: pa.Table, policy: "CompiledPolicy | None") -> PolicyFindings | None:
    if policy is None:
        return None
    spec = judged.spec
    columns = [name for name in spec.slices if name in table.column_names]
    cluster = spec.cluster if judged.resampling.clusters is not None else None
    return policy_findings(policy, table, list(judged.thresholds), columns=columns, cluster=cluster, confidence=spec.confidence)


def _is_share(table: pa.Table, column: str) -> bool:
    return bool(pa.types.is_floating(table.column(column).type))
