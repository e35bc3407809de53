"""Minimal pairs: two items that differ in one aspect, and whether the decisions on both are as expected.

If the gold label flips, the decision should flip (contrast sets, Gardner et al. 2020; Hatemoji, Kirk et al. 2022); if it stays,
the decision should stay (invariance tests, Ribeiro et al. 2020, section 2.1).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.metrics import Floats
from vigil_evaluation.slices.grouping import TableColumns, grouping
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats.proportions import MeanEstimate, Proportion, ResamplingUnits, group_means, group_proportions

MAX_FAILED_PAIRS = 10
"""Most listed pairs for each label and kind of failure."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PairMetrics:
    """Metrics of one label over pairs.

    Attributes:
        unknown: pairs that cannot be tested because a target is unknown.
        follows: fraction of the pairs whose gold label flips that are decided correctly on both sides.
        stuck: number of those pairs with the same decision on both sides.
        reversed: number of those pairs with a wrong decision on both sides.
        rise: mean probability of the positive side minus that of the negative side, over those pairs.
        changes: fraction of the pairs whose gold label stays with different decisions: failures of invariance.
        unflagged: number of those pairs whose original is flagged and whose perturbed item is not.
        shift: mean absolute difference of the two probabilities, over those pairs.
    """

    unknown: int
    follows: Proportion
    stuck: int
    reversed: int
    rise: MeanEstimate
    changes: Proportion
    unflagged: int
    shift: MeanEstimate


@dataclass(frozen=True, slots=True)
class PairGroup:
    """Metrics of the pairs of one perturbation, or of all pairs (``None``)."""

    perturbation: str | None
    pairs: int
    labels: dict[str, PairMetrics]


@dataclass(frozen=True, slots=True)
class FailedPair:
    """A pair that failed.

    Attributes:
        label: the label.
        failure: ``not followed`` if the gold label flips, ``changed`` if it stays.
        original: id of the original item.
        perturbed: id of the perturbed item.
        perturbation: name of the perturbation, if the table has it.
        targets: targets of the two; ``None`` if unknown.
        probabilities: probabilities of the two.
    """

    label: str
    failure: str
    original: str
    perturbed: str
    perturbation: str | None
    targets: tuple[float | None, float | None]
    probabilities: tuple[float, float]


@dataclass(frozen=True, slots=True)
class MinimalPairResults:
    """Results of all minimal pairs of a table.

    Attributes:
        column: column that links the pairs.
        pairs: number of pairs.
        alone: items whose counterpart is not in the table.
        overall: metrics of all pairs.
        by: metrics by perturbation; empty if the table has none.
        worst: the worst failures by label, at most ten of each kind.
    """

    column: str
    pairs: int
    alone: int
    overall: PairGroup
    by: list[PairGroup]
    worst: list[FailedPair]


class PairLinks(NamedTuple):
    """Rows of the P pairs, ``[P]`` each, and the number of items without a counterpart."""

    original_P: Rows
    perturbed_P: Rows
    alone: int


def link_pairs(ids: Sequence[str], values: Sequence[str | None]) -> PairLinks:
    """Link the items of pairs.

    A value is the id of the item's counterpart: its original, or, if given on both sides, the other item. If no value is the id
    of an item, each item is paired with the first item of the same value.

    Args:
        ids: ids of the N items.
        values: values of the pair column; ``None`` for items without a counterpart.
    """
    row_of = {id_: row for row, id_ in enumerate(ids)}
    named = [(row, value) for row, value in enumerate(values) if value is not None]
    if any(value in row_of for _, value in named):
        edges = [(row_of[value], row) for row, value in named if value in row_of and row_of[value] != row]
        alone = len(named) - len(edges)
    else:
        first: dict[str, int] = {}
        edges = [(original, row) for row, value in named if (original := first.setdefault(value, row)) != row]
        paired = {row for edge in edges for row in edge}
        alone = sum(row not in paired for row, _ in named)
    known: dict[tuple[int, int], tuple[int, int]] = {}
    for original, perturbed in edges:
        ends = (min(original, perturbed), max(original, perturbed))
        # If both sides name each other, the first in the table is the original.
        known[ends] = ends if ends in known else (original, perturbed)
    pairs = np.array(list(known.values()), np.int64).reshape(-1, 2)
    return PairLinks(pairs[:, 0], pairs[:, 1], alone)


def minimal_pair_results(data: EvaluationData, column: str, units: ResamplingUnits) -> MinimalPairResults | None:
    """Compute the results of minimal pairs.

    Args:
        data: predictions; the column ``perturbation`` names the perturbation of a pair, and ``pair_gold`` is ``stays`` where the
            gold label stays, which also holds for items of unknown target.
        column: column that links the pairs.
        units: units that are resampled together (without units: the pairs that share an item).

    Returns:
        The results; ``None`` without pairs.
    """
    table, spec = data.table, data.spec
    ids = table.column("id").to_pylist()
    found = link_pairs(ids, [None if value is None else str(value) for value in table.column(column).to_pylist()])
    count = len(found.original_P)
    if not count:
        return None
    gold, perturbations = _optional_column(table, "pair_gold"), _optional_column(table, "perturbation")
    names_P = [perturbations[row] for row in found.perturbed_P.tolist()]
    outcomes = _outcomes(data, found, names_P, np.array([gold[row] == "stays" for row in found.perturbed_P.tolist()]))
    resampled = units.of(found.original_P) if units.codes_N is not None else ResamplingUnits(column, _together(found))
    overall = _groups([None], np.zeros(count, np.int32), outcomes, resampled, spec)[0]
    by: list[PairGroup] = []
    if any(name is not None for name in names_P):
        grouped = grouping(TableColumns(pa.table({"perturbation": pa.array(names_P, pa.string())})), "perturbation")
        by = [g for g in _groups(grouped.values, grouped.codes_N, outcomes, resampled, spec) if g.perturbation is not None]
    worst = [failed for i in range(len(data.labels)) for failed in _worst(i, ids, data, found, outcomes)]
    return MinimalPairResults(column, count, found.alone, overall, by, worst)


class _PairOutcomes(NamedTuple):
    """Outcomes of each pair and label, ``[P, L]``: 1 for yes, 0 for no, or a number; NaN for pairs of the other kind."""

    labels: Sequence[str]
    names_P: Sequence[str | None]
    follows_PL: Floats
    stuck_PL: Floats
    reversed_PL: Floats
    rise_PL: Floats
    changes_PL: Floats
    unflagged_PL: Floats
    shift_PL: Floats


def _outcomes(
    data: EvaluationData, found: PairLinks, names_P: Sequence[str | None], stated_stays_P: NDArray[np.bool_]
) -> _PairOutcomes:
    one, other = found.original_P, found.perturbed_P
    known_NL, gold_NL, flagged_NL = ~np.isnan(data.targets_NL), data.targets_NL >= 0.5, data.flagged_NL
    known_PL, alike_PL = known_NL[one] & known_NL[other], gold_NL[one] == gold_NL[other]
    flips_PL = known_PL & ~alike_PL
    stays_PL = np.where(known_PL, alike_PL, stated_stays_P[:, None])
    same_PL = flagged_NL[one] == flagged_NL[other]
    right_PL = (flagged_NL[one] == gold_NL[one]) & (flagged_NL[other] == gold_NL[other])
    moved_PL = data.probabilities_NL[other] - data.probabilities_NL[one]
    return _PairOutcomes(
        data.labels,
        names_P,
        np.where(flips_PL, right_PL, np.nan),
        np.where(flips_PL, same_PL, np.nan),
        np.where(flips_PL, ~same_PL & ~right_PL, np.nan),
        np.where(flips_PL, np.where(gold_NL[other], moved_PL, -moved_PL), np.nan),
        np.where(stays_PL, ~same_PL, np.nan),
        np.where(stays_PL, flagged_NL[one] & ~flagged_NL[other], np.nan),
        np.where(stays_PL, np.abs(moved_PL), np.nan),
    )


def _together(found: PairLinks) -> NDArray[np.int32]:
    """Return the unit of each pair: pairs that share an item, directly or through others, are resampled together."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while (above := parent.setdefault(row, row)) != row:
            parent[row] = parent[above]
            row = parent[row]
        return row

    for one, other in zip(found.original_P.tolist(), found.perturbed_P.tolist(), strict=True):
        parent[root(one)] = root(other)
    return np.unique([root(row) for row in found.original_P.tolist()], return_inverse=True)[1].astype(np.int32)


def _groups(
    names: Sequence[str | None],
    codes_P: NDArray[np.int32],
    outcomes: _PairOutcomes,
    units: ResamplingUnits,
    spec: EvaluationSpec,
) -> list[PairGroup]:
    follows, changes = (
        group_proportions(hits, codes_P, len(names), units, spec) for hits in (outcomes.follows_PL, outcomes.changes_PL)
    )
    rises, shifts = (group_means(values, codes_P, len(names), units, spec) for values in (outcomes.rise_PL, outcomes.shift_PL))
    made = []
    for g, name in enumerate(names):
        inside = codes_P == g
        numbers = {
            label: PairMetrics(
                unknown=int(inside.sum()) - follows[g][i].count - changes[g][i].count,
                follows=follows[g][i],
                stuck=int(np.nansum(outcomes.stuck_PL[inside, i])),
                reversed=int(np.nansum(outcomes.reversed_PL[inside, i])),
                rise=rises[g][i],
                changes=changes[g][i],
                unflagged=int(np.nansum(outcomes.unflagged_PL[inside, i])),
                shift=shifts[g][i],
            )
            for i, label in enumerate(outcomes.labels)
        }
        made.append(PairGroup(name, int(inside.sum()), numbers))
    return made


def _worst(i: int, ids: Sequence[str], data: EvaluationData, found: PairLinks, outcomes: _PairOutcomes) -> Iterator[FailedPair]:
    """Yield the worst failures of label ``i``."""
    ways = (
        ("not followed", outcomes.follows_PL[:, i] == 0, outcomes.rise_PL[:, i]),
        ("changed", outcomes.changes_PL[:, i] == 1, -outcomes.shift_PL[:, i]),
    )
    targets_N, probabilities_N = data.targets_NL[:, i], data.probabilities_NL[:, i]
    for failure, failed_P, order_P in ways:
        places = np.flatnonzero(failed_P)
        for place in places[np.argsort(order_P[places], kind="stable")][:MAX_FAILED_PAIRS]:
            one, other = int(found.original_P[place]), int(found.perturbed_P[place])
            targets = [None if np.isnan(targets_N[row]) else float(targets_N[row]) for row in (one, other)]
            yield FailedPair(
                label=data.labels[i],
                failure=failure,
                original=ids[one],
                perturbed=ids[other],
                perturbation=outcomes.names_P[place],
                targets=(targets[0], targets[1]),
                probabilities=(float(probabilities_N[one]), float(probabilities_N[other])),
            )


def _optional_column(table: pa.Table, column: str) -> list[str | None]:
    if column not in table.column_names:
        return [None] * table.num_rows
    return [None if value is None else str(value) for value in table.column(column).to_pylist()]
