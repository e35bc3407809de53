"""Results of functional tests (HateCheck, Röttger et al. 2021), by label and by the group that items are about.

If rows have weights, proportions and means are weighted as in the breakdowns of an evaluation, and counts are not. Minimal pairs
are constructed, so each pair counts once.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.fairness.identity_columns import identity_groups
from vigil_evaluation.metrics import Floats
from vigil_evaluation.slices.grouping import TableColumns, grouping, resampling_units
from vigil_evaluation.stats.proportions import Proportion, ResamplingUnits, group_proportions
from vigil_evaluation.suites.minimal_pairs import MinimalPairResults, minimal_pair_results

SCHEMA_VERSION = 1
"""Version of suite.json (docs/suites.md); incremented when a field is removed or changes its meaning."""

MAX_GROUPS = 60
"""Most groups of one column in the map of functionality by group; the others are counted."""


@dataclass(frozen=True, slots=True)
class SuiteColumns:
    """Names of the columns of a suite.

    Attributes:
        targets: columns with the group that an item is about, after the spec's ``identities``; absent ones are ignored.
        pair: column with the id of an item's counterpart.
        template: column with the template of an item; items of one template are resampled together.
    """

    targets: tuple[str, ...] = ("identity", "target_identity")
    pair: str = "pair"
    template: str = "template"


@dataclass(frozen=True, slots=True)
class FunctionalityLabelResult:
    """Result of one label in one functional test.

    Attributes:
        positive: known positives.
        expected: fraction of positives among known targets, by weight if items have weights; ``None`` if no target is known.
        accuracy: fraction of known targets that are decided correctly at the label's threshold.
        mean_probability: mean over items of known target; ``None`` if there are fewer than ``enough``.
    """

    positive: int
    expected: float | None
    accuracy: Proportion
    mean_probability: float | None


@dataclass(frozen=True, slots=True)
class FunctionalityResult:
    """Result of one functional test.

    Attributes:
        name: the functionality.
        items: number of items.
        all_right: fraction of items with all known targets decided correctly, among those with any known target.
        labels: label to its result.
    """

    name: str
    items: int
    all_right: Proportion
    labels: dict[str, FunctionalityLabelResult]


@dataclass(frozen=True, slots=True)
class GroupAccuracyMap:
    """Accuracy by functionality (rows) and by the group that items are about (columns).

    Attributes:
        column: column that names the group; ``identities`` for all boolean and numeric columns together.
        functionalities: F functionalities, as in the results.
        values: V groups, the largest first.
        values_left_out: number of further groups.
        items: number of items, ``[F][V]``.
        known: label to the number of known targets, ``[F][V]``.
        accuracy: label to the accuracy, ``[F][V]``; ``None`` where fewer than ``enough`` targets are known.
        overall: label to the accuracy over all functionalities, ``[V]``.
    """

    column: str
    functionalities: list[str]
    values: list[str]
    values_left_out: int
    items: list[list[int]]
    known: dict[str, list[list[int]]]
    accuracy: dict[str, list[list[float | None]]]
    overall: dict[str, list[Proportion]]


@dataclass(frozen=True, slots=True)
class FunctionalTestResults:
    """Results of all functional tests of a table.

    Attributes:
        column: column that names the functionality.
        labels: the labels.
        unit: column of the units that are resampled together; ``None`` if items are independent.
        confidence: confidence of each interval.
        enough: fewest items behind a number; those with fewer are null.
        items: items that belong to a functionality.
        cases: results of the functionalities, in their order in the table.
        cases_left_out: functionalities beyond the 200 largest.
        targets: accuracy by the groups that items are about.
        pairs: results of the minimal pairs; ``None`` without pairs.
    """

    column: str
    labels: list[str]
    unit: str | None
    confidence: float
    enough: int
    items: int
    cases: list[FunctionalityResult]
    cases_left_out: int
    targets: list[GroupAccuracyMap]
    pairs: MinimalPairResults | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResults:
    """Results of a model on a suite: the content of suite.json.

    Attributes:
        schema_version: version of the JSON form.
        suite: name of the suite.
        facts: provenance, as text.
        descriptions: functionality to what it tests, where that is known.
        thresholds: label to the lowest flagged probability.
        skipped: labels of the suite that the model lacks.
        findings: results of the functional tests.
    """

    schema_version: int = SCHEMA_VERSION
    suite: str
    facts: dict[str, str]
    descriptions: dict[str, str]
    thresholds: dict[str, float]
    skipped: list[str]
    findings: FunctionalTestResults

    def to_json(self) -> str:
        """Return the JSON text; undefined numbers are null."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


def functional_test_results(data: EvaluationData, columns: SuiteColumns | None = None) -> FunctionalTestResults | None:
    """Compute the results of every functional test.

    Args:
        data: predictions; the spec names the column of the functionality, in which null belongs to no test.
        columns: names of the other columns (default: see :class:`SuiteColumns`).

    Returns:
        The results; ``None`` if the table lacks the column or it is null everywhere.

    Raises:
        UserError: if a column has an unsuitable type, such as lists.
    """
    spec, columns = data.spec, columns or SuiteColumns()
    name = spec.functionality
    if name is None or name not in data.columns or data.table.column(name).null_count == data.table.num_rows:
        return None
    cases = _in_order(data.columns, name)
    measure = _SuiteData(cases, data, _units(data, columns))
    pairs = minimal_pair_results(data, columns.pair, measure.units) if columns.pair in data.columns else None
    return FunctionalTestResults(
        column=name,
        labels=data.labels,
        unit=measure.units.column,
        confidence=spec.confidence,
        enough=spec.enough,
        items=int((cases.codes_N >= 0).sum()),
        cases=_cases(measure),
        cases_left_out=cases.left_out,
        targets=_maps(columns, measure),
        pairs=pairs,
    )


@dataclass(frozen=True, slots=True)
class _Groups:
    names: list[str]
    codes_N: NDArray[np.int32]
    left_out: int


@dataclass(frozen=True, slots=True)
class _SuiteData:
    """Inputs of all results."""

    cases: _Groups
    data: EvaluationData
    units: ResamplingUnits


def _in_order(columns: TableColumns, column: str) -> _Groups:
    """Return the values of a column without null, in the order of the table."""
    found = grouping(columns, column)
    present, first = np.unique(found.codes_N, return_index=True)
    order = [int(code) for code in present[np.argsort(first)] if code >= 0 and found.values[code] is not None]
    place = np.full(len(found.values) + 1, -1, np.int32)  # The last entry belongs to -1.
    place[order] = np.arange(len(order))
    return _Groups([str(found.values[code]) for code in order], place[found.codes_N], found.values_left_out)


def _units(data: EvaluationData, columns: SuiteColumns) -> ResamplingUnits:
    """Return templates as units if items share them, else the spec's cluster."""
    for name in (columns.template, data.spec.cluster):
        codes_N = resampling_units(data.columns, name)
        if name is not None and codes_N is not None and len(codes_N) and codes_N.max() + 1 < len(codes_N):
            return ResamplingUnits(name, codes_N)
    return ResamplingUnits()


def _cases(measure: _SuiteData) -> list[FunctionalityResult]:
    cases, data, enough = measure.cases, measure.data, measure.data.spec.enough
    columns = np.column_stack([data.right_NL, data.right_N])
    label_N = data.weights.label_N
    found = group_proportions(columns, cases.codes_N, len(cases.names), measure.units, measure.data.spec, label_N)
    made = []
    for g, name in enumerate(cases.names):
        inside = cases.codes_N == g
        numbers = {}
        for i, label in enumerate(data.labels):
            known = inside & ~np.isnan(data.targets_NL[:, i])
            positive_K, count = data.targets_NL[known, i] >= 0.5, int(known.sum())
            weights_K = None if label_N is None else label_N[known]
            expected = _mean(positive_K, weights_K) if count else None
            mean = _mean(data.probabilities_NL[known, i], weights_K) if count >= enough else None
            numbers[label] = FunctionalityLabelResult(int(positive_K.sum()), expected, found[g][i], mean)
        made.append(FunctionalityResult(name, int(inside.sum()), found[g][-1], numbers))
    return made


def _mean(values_K: NDArray[np.number] | NDArray[np.bool_], weights_K: Floats | None) -> float:
    if weights_K is None:
        return float(values_K.sum() / len(values_K)) if values_K.dtype == np.bool_ else float(values_K.mean())
    return float(np.average(values_K.astype(np.float64), weights=weights_K))


def _maps(columns: SuiteColumns, measure: _SuiteData) -> list[GroupAccuracyMap]:
    made = []
    flags: dict[str, NDArray[np.bool_]] = {}
    table, named = measure.data.table, measure.data.identities
    others = identity_groups(measure.data.columns, columns.targets)[0]
    for identity in [*named, *(one for one in others if one.column not in {identity.column for identity in named})]:
        groups = {value: np.zeros(table.num_rows, np.bool_) for value in identity.values}
        for v, value in enumerate(identity.values):
            groups[value][identity.rows_M[identity.groups_M == v]] = True
        held = table.column(identity.column).type
        if pa.types.is_boolean(held) or pa.types.is_floating(held) or pa.types.is_integer(held):
            flags |= groups
        elif groups:
            made.append(_map(identity.column, groups, identity.values_left_out, measure))
    if flags:
        made.append(_map("identities", flags, 0, measure))
    return made


def _map(column: str, groups: Mapping[str, NDArray[np.bool_]], left_out: int, measure: _SuiteData) -> GroupAccuracyMap:
    cases, labels, right_NL, enough = measure.cases, measure.data.labels, measure.data.right_NL, measure.data.spec.enough
    kept = sorted(groups, key=lambda value: -int(groups[value].sum()))[:MAX_GROUPS]
    items_FV, label_N = np.zeros((len(cases.names), len(kept)), np.int64), measure.data.weights.label_N
    known_LFV = np.zeros((len(labels), *items_FV.shape), np.int64)
    mass_LFV, right_LFV = np.zeros((2, *known_LFV.shape))
    overall: dict[str, list[Proportion]] = {label: [] for label in labels}
    for v, value in enumerate(kept):
        rows = np.flatnonzero(groups[value] & (cases.codes_N >= 0))
        codes, right = cases.codes_N[rows], right_NL[rows]
        items_FV[:, v] = np.bincount(codes, minlength=len(cases.names))
        weights = np.ones(len(rows)) if label_N is None else label_N[rows]
        together = group_proportions(
            right,
            *(np.zeros(len(rows), np.int32), 1, measure.units.of(rows), measure.data.spec),
            None if label_N is None else weights,
        )[0]
        for i, label in enumerate(labels):
            judged, hit = ~np.isnan(right[:, i]), right[:, i] == 1
            known_LFV[i, :, v] = np.bincount(codes[judged], minlength=len(cases.names))
            mass_LFV[i, :, v] = np.bincount(codes[judged], weights[judged], len(cases.names))
            right_LFV[i, :, v] = np.bincount(codes[hit], weights[hit], len(cases.names))
            overall[label].append(together[i])
    accuracy_LFV = np.where(known_LFV >= enough, right_LFV / np.where(known_LFV > 0, mass_LFV, 1.0), np.nan)
    accuracy = {
        label: [[None if np.isnan(a) else float(a) for a in row] for row in accuracy_LFV[i]] for i, label in enumerate(labels)
    }
    known = {label: known_LFV[i].tolist() for i, label in enumerate(labels)}
    left_out += len(groups) - len(kept)
    return GroupAccuracyMap(column, cases.names, kept, left_out, items_FV.tolist(), known, accuracy, overall)
