"""Compare two models on the same items and the same bootstrap replicates, so that shared variance cancels."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from vigil_data.errors import UserError
from vigil_data.progress import ProgressCallback
from vigil_evaluation.comparison.alignment import AlignedPredictions, ScoredModel, align
from vigil_evaluation.comparison.paired_differences import (
    DECISION_METRICS,
    LOWER_IS_BETTER,
    PairedDifferences,
    paired_differences,
    required_targets,
)
from vigil_evaluation.comparison.prediction_flips import find_flips
from vigil_evaluation.comparison.results import CellVerdict, ComparedModel, Comparison, ComparisonCell, ReleaseGate, describe_cell
from vigil_evaluation.slices.grouping import Grouping, TableColumns, groupings, resampling_units
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats.bootstrap import Resampling
from vigil_evaluation.stats.intervals import Interval
from vigil_evaluation.stats.multiple_testing import cell_statistics, step_down

DEFAULT_SLICES = ("language", "market", "content_type")
"""Columns to slice by, in addition to presence, unless others are given."""

DEFAULT_CLUSTER = "author"
"""Column of the units that are resampled together, if the table has it and no other is given."""

CORRECTION_DRAWS = 5_000
"""Draws from the joint distribution of all differences; corrected p-values are multiples of 1 / this."""

MIN_REPLICATES = 200

CORRECTION = "step-down max-T over the joint bootstrap replicates (Westfall and Young 1993; Romano and Wolf 2005)"


def compare(
    champion: ScoredModel,
    challenger: ScoredModel,
    spec: EvaluationSpec,
    gate: ReleaseGate | None = None,
    *,
    common: bool = False,
    progress: ProgressCallback | None = None,
) -> tuple[Comparison, pa.Table]:
    """Compare two models on the same items.

    Args:
        champion: the model in use.
        challenger: the candidate.
        spec: slices, cluster, replicates, confidence and settings of the metrics (default slices: those of
            :data:`DEFAULT_SLICES` that the tables have; default cluster: :data:`DEFAULT_CLUSTER`).
        gate: conditions to pass (default: no regression by more than 0.01).
        common: compare the common items instead of refusing tables of different items.
        progress: called with (task, done, total).

    Returns:
        The comparison, and a table of every decision that differs.

    Raises:
        UserError: if settings are invalid, the tables have different items or targets, or no metric can be compared.
    """
    report, gate = progress or (lambda _task, _done, _total: None), gate or ReleaseGate()
    gate.check()
    if spec.replicates < MIN_REPLICATES:
        raise UserError(f"replicates {spec.replicates}: a comparison needs at least {MIN_REPLICATES}")
    report("aligning items", 0, None)
    aligned = align(champion, challenger, common)
    cuts = (_thresholds(champion, aligned.labels), _thresholds(challenger, aligned.labels))
    spec = _with_defaults(spec, gate, aligned.table)
    columns = TableColumns(aligned.table)
    made, absent = groupings(columns, spec)
    if asked := [name for name in gate.slices if name in absent]:
        raise UserError(f"slices: {', '.join(asked)} is in neither table; its columns are {_columns(aligned)}")
    # A slice of a constant column equals all items.
    made = [grouping for grouping in made if len(grouping.values) > 1 or grouping.values_left_out]
    report("comparing metrics, labels and slices", 0, None)
    resampling = Resampling(spec.replicates, spec.seed, resampling_units(columns, spec.cluster))
    found = paired_differences(aligned, made, cuts, gate.metrics, resampling=resampling, spec=spec)
    if not (~np.isnan(found.gains_C)).any():
        few = f"no label has {spec.enough} known targets of each class among the {aligned.summary.items} items"
        raise UserError(f"no metric can be compared: {few}")
    report("correcting for the number of comparisons", 0, None)
    cells = _cells(found, aligned, made, gate, spec)
    report("finding flipped decisions", 0, None)
    flipped, table = find_flips(aligned, cuts, (champion.policy, challenger.policy))
    failed = [cell for cell in cells if cell.verdict in ("regression", "not shown")]
    comparison = Comparison(
        passed=not failed,
        failures=[describe_cell(cell, gate.tolerance_of(cell.metric)) for cell in failed],
        champion=_side(champion),
        challenger=_side(challenger),
        alignment=aligned.summary,
        labels=list(aligned.labels),
        absent_slices=absent,
        compared=sum(cell.delta is not None for cell in cells),
        tested=sum(cell.verdict not in ("the same", "not comparable") for cell in cells),
        cells=cells,
        flips=flipped,
        **_settings(gate, spec, resampling, aligned),
    )
    return comparison, table


def _settings(gate: ReleaseGate, spec: EvaluationSpec, resampling: Resampling, aligned: AlignedPredictions) -> dict[str, Any]:
    """Return the settings that a comparison records."""
    units_N = resampling.clusters
    return {
        "cluster": None if units_N is None else spec.cluster,
        "units": aligned.summary.items if units_N is None else int(units_N.max()) + 1,
        "weighted": aligned.weights_N is not None,
        "metrics": list(gate.metrics),
        "tolerance": {metric: gate.tolerance_of(metric) for metric in gate.metrics},
        "alpha": gate.alpha,
        "require": gate.require,
        "confidence": spec.confidence,
        "replicates": spec.replicates,
        "enough": spec.enough,
        "correction": CORRECTION,
    }


def _with_defaults(spec: EvaluationSpec, gate: ReleaseGate, table: pa.Table) -> EvaluationSpec:
    """Return the spec with default slices and cluster where it has none."""
    slices = spec.slices or tuple(name for name in DEFAULT_SLICES if name in table.column_names and not gate.slices)
    cluster = spec.cluster
    if cluster is None and DEFAULT_CLUSTER in table.column_names and table.column(DEFAULT_CLUSTER).null_count < table.num_rows:
        cluster = DEFAULT_CLUSTER
    return spec.model_copy(update={"slices": tuple(dict.fromkeys([*slices, *gate.slices])), "cluster": cluster})


def _cells(
    found: PairedDifferences, aligned: AlignedPredictions, made: Sequence[Grouping], gate: ReleaseGate, spec: EvaluationSpec
) -> list[ComparisonCell]:
    """Return every comparison with its verdict."""
    tolerances = np.array([gate.tolerance_of(metric) for metric in gate.metrics])[found.metric_C]
    comparable = ~np.isnan(found.gains_C)
    tested = comparable & (found.differing_C > 0)
    decisions = np.isin(found.metric_C, [place for place, metric in enumerate(gate.metrics) if metric in DECISION_METRICS])
    errors, units, differing = (values[tested] for values in (found.errors_C, found.units_C, found.differing_C))
    worse, better = (
        (cell_statistics(excess[tested], errors, units, differing, decisions[tested]), sign)
        for excess, sign in ((-found.gains_C - tolerances, -1), (found.gains_C, 1))
    )
    p_worse, p_better = np.where(comparable, 1.0, np.nan), np.where(comparable, 1.0, np.nan)
    p_worse[tested], p_better[tested] = step_down((worse, better), found.samples_RC[:, tested], CORRECTION_DRAWS, spec.seed)
    groups: list[tuple[str | None, str | None]] = [(None, None)]
    groups += [(grouping.column, value) for grouping in made for value in grouping.values]
    ends = {name: getattr(found, f"{name}_C").tolist() for name in ("champion", "challenger", "low", "high", "known", "positive")}
    places = zip(found.metric_C.tolist(), found.label_C.tolist(), found.group_C.tolist(), strict=True)
    cells = []
    for at, (metric, label, group) in enumerate(places):
        low, high = ends["low"][at], ends["high"][at]
        cell = ComparisonCell(
            gate.metrics[metric],
            None if label < 0 else aligned.labels[label],
            column=groups[group][0],
            value=groups[group][1],
            known=ends["known"][at],
            positive=ends["positive"][at],
            champion=_number(ends["champion"][at]),
            challenger=_number(ends["challenger"][at]),
            delta=_number(ends["challenger"][at] - ends["champion"][at]) if comparable[at] else None,
            interval=None if np.isnan(low) else Interval(low, high),
            p_worse=_number(p_worse[at]),
            p_better=_number(p_better[at]),
            verdict="not comparable",
        )
        verdict = _verdict(cell, gate, bool(tested[at])) if comparable[at] else "not comparable"
        why = None if comparable[at] else _why(cell, spec.enough, aligned.weights_N is not None)
        cells.append(replace(cell, verdict=verdict, why=why))
    first = {"regression": 0, "not shown": 1, "improvement": 2}
    return sorted(cells, key=lambda cell: (first.get(cell.verdict, 3), _sort_key(cell)))


def _sort_key(cell: ComparisonCell) -> tuple[float, float]:
    """Sort key: the smallest p-value first, then the largest change; other cells keep their order."""
    if cell.verdict == "improvement":
        return (cell.p_better or 0.0, -cell.gain)
    return (cell.p_worse or 0.0, cell.gain) if cell.verdict in ("regression", "not shown") else (0.0, 0.0)


def _verdict(cell: ComparisonCell, gate: ReleaseGate, tested: bool) -> CellVerdict:
    if cell.p_worse is not None and cell.p_worse <= gate.alpha:
        return "regression"
    if gate.require == "non-inferiority":
        reach = cell.interval or Interval(-np.inf, np.inf)
        worst = -reach.high if cell.metric in LOWER_IS_BETTER else reach.low
        # Identical models lose nothing, even where a tolerance of 0 leaves no room for an interval.
        if not worst > -gate.tolerance_of(cell.metric) and (reach.low, reach.high) != (0.0, 0.0):
            return "not shown"
    if not tested:
        return "the same"
    return "improvement" if cell.p_better is not None and cell.p_better <= gate.alpha else "no evidence"


def _why(cell: ComparisonCell, enough: int, weighted: bool) -> str:
    """Explain why a cell cannot be compared."""
    wanted, negative = required_targets(cell.metric), cell.known - cell.positive
    have = {"positives": cell.positive, "negatives": negative, "known targets": cell.known}
    if min(have.get(wanted, min(cell.positive, negative)), cell.known) < enough:
        return f"needs {enough} {wanted}: {cell.positive} positive and {negative} negative are known"
    if weighted and cell.champion is None and cell.challenger is None:
        known = f"{cell.positive} positive and {negative} negative are known"
        return f"needs {enough} effective {wanted}: {known}, but few of them have most of the weight"
    lacking = [name for name, number in (("champion", cell.champion), ("challenger", cell.challenger)) if number is None]
    if lacking:
        return f"not defined for the {' and the '.join(lacking)}"
    return "not defined in most replicates"


def _thresholds(side: ScoredModel, labels: Iterable[str]) -> dict[str, float]:
    if absent := [label for label in labels if label not in side.thresholds]:
        raise UserError(f"{side.name}: no threshold for {', '.join(absent)}")
    return {label: float(side.thresholds[label]) for label in labels}


def _side(side: ScoredModel) -> ComparedModel:
    policy = None if side.policy is None else f"{side.policy.name} version {side.policy.version}"
    return ComparedModel(side.name, side.kind, {k: float(v) for k, v in side.thresholds.items()}, policy, dict(side.facts))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _columns(aligned: AlignedPredictions) -> str:
    return ", ".join(name for name in aligned.table.column_names if name != "id")
