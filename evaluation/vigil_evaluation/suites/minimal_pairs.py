"""Minimal pairs: two items that differ in one thing, and whether the decision follows what is expected of both.

Where the gold label flips, the decision should flip with it (contrast sets, Gardner et al. 2020; Hatemoji, Kirk et al. 2022);
where it stays, the decision should stay (invariance tests, Ribeiro et al. 2020, section 2.1).
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
"""Pairs listed for each label and each way to fail."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PairMetrics:
    """The pairs of one label.

    Attributes:
        unknown: pairs of which nothing can be said, because a target is unknown.
        follows: of the pairs whose gold label flips, those that are decided rightly on both sides.
        stuck: of those pairs, how many are decided alike on both sides.
        reversed: of those pairs, how many are decided wrongly on both sides.
        rise: of those pairs, the mean of the positive side's probability less the negative side's.
        changes: of the pairs whose gold label stays, those whose decision does not: failures of invariance.
        shift: of those pairs, the mean distance of the two probabilities.
    """

    unknown: int
    follows: Proportion
    stuck: int
    reversed: int
    rise: MeanEstimate
    changes: Proportion
    shift: MeanEstimate


@dataclass(frozen=True, slots=True)
class PairGroup:
    """The pairs that one perturbation makes, or all of them (``None``)."""

    perturbation: str | None
    pairs: int
    labels: dict[str, PairMetrics]


@dataclass(frozen=True, slots=True)
class FailedPair:
    """A pair that failed.

    Attributes:
        label: of what.
        failure: ``not followed`` where the gold label flips, ``changed`` where it stays.
        original: id of the one item.
        perturbed: id of the other.
        perturbation: its name, if the table has it.
        targets: of the two; ``None`` is unknown.
        probabilities: of the two.
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
    """All pairs of a table.

    Attributes:
        column: the column that links them.
        pairs: how many.
        alone: items that name a counterpart which the table does not have.
        overall: all pairs.
        by: the pairs of each perturbation; empty if the table does not tell them.
        worst: the pairs that failed by most, label by label, at most ten of each way to fail.
    """

    column: str
    pairs: int
    alone: int
    overall: PairGroup
    by: list[PairGroup]
    worst: list[FailedPair]


class PairLinks(NamedTuple):
    """Rows of the P pairs, ``[P]`` each, and how many items have none to be paired with."""

    original_P: Rows
    perturbed_P: Rows
    alone: int


def link_pairs(ids: Sequence[str], values: Sequence[str | None]) -> PairLinks:
    """Pair items up.

    A value is the id of the item's counterpart: the original that it was made from, or, given on both sides, the other half. If
    no value is an item's id, items of the same value belong together, and each is paired with the first of them.

    Args:
        ids: of the N items.
        values: of the column, ``None`` where an item has no counterpart.
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
        # A pair that both sides name has no side that came first but in the order of the table.
        known[ends] = ends if ends in known else (original, perturbed)
    pairs = np.array(list(known.values()), np.int64).reshape(-1, 2)
    return PairLinks(pairs[:, 0], pairs[:, 1], alone)


def minimal_pair_results(data: EvaluationData, column: str, units: ResamplingUnits) -> MinimalPairResults | None:
    """Find what becomes of minimal pairs.

    Args:
        data: the predictions table; its column ``perturbation`` names what made a pair, and ``pair_gold`` is ``stays`` where the
            gold label does, which tells of items whose target is unknown.
        column: the column that links the items.
        units: what is resampled together; without one, the pairs of one original.

    Returns:
        ``None`` if there is no pair.
    """
    table, spec = data.table, data.spec
    ids = table.column("id").to_pylist()
    found = link_pairs(ids, [None if value is None else str(value) for value in table.column(column).to_pylist()])
    count = len(found.original_P)
    if not count:
        return None
    kept, told = _optional_column(table, "pair_gold"), _optional_column(table, "perturbation")
    names_P = [told[row] for row in found.perturbed_P.tolist()]
    judged = _judge(data, found, names_P, np.array([kept[row] == "stays" for row in found.perturbed_P.tolist()]))
    resampled = units.of(found.original_P) if units.codes_N is not None else ResamplingUnits(column, _together(found))
    overall = _groups([None], np.zeros(count, np.int32), judged, resampled, spec)[0]
    by: list[PairGroup] = []
    if any(name is not None for name in names_P):
        grouped = grouping(TableColumns(pa.table({"perturbation": pa.array(names_P, pa.string())})), "perturbation")
        by = [g for g in _groups(grouped.values, grouped.codes_N, judged, resampled, spec) if g.perturbation is not None]
    worst = [failed for i in range(len(data.labels)) for failed in _worst(i, ids, data, found, judged)]
    return MinimalPairResults(column, count, found.alone, overall, by, worst)


class _PairOutcomes(NamedTuple):
    """Of each pair and label, ``[P, L]``: 1 for yes, 0 for no, or a number; NaN where the pair is not of that sort."""

    labels: Sequence[str]
    names_P: Sequence[str | None]
    follows_PL: Floats
    stuck_PL: Floats
    reversed_PL: Floats
    rise_PL: Floats
    changes_PL: Floats
    shift_PL: Floats


def _judge(data: EvaluationData, found: PairLinks, names_P: Sequence[str | None], said_P: NDArray[np.bool_]) -> _PairOutcomes:
    one, other = found.original_P, found.perturbed_P
    known_NL, gold_NL, flagged_NL = ~np.isnan(data.targets_NL), data.targets_NL >= 0.5, data.flagged_NL
    known_PL, alike_PL = known_NL[one] & known_NL[other], gold_NL[one] == gold_NL[other]
    flips_PL = known_PL & ~alike_PL
    stays_PL = np.where(known_PL, alike_PL, said_P[:, None])
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
        np.where(stays_PL, np.abs(moved_PL), np.nan),
    )


def _together(found: PairLinks) -> NDArray[np.int32]:
    """Of each pair its unit: pairs that share an item, directly or through others, are resampled together."""
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
    judged: _PairOutcomes,
    units: ResamplingUnits,
    spec: EvaluationSpec,
) -> list[PairGroup]:
    follows, changes = (
        group_proportions(hits, codes_P, len(names), units, spec) for hits in (judged.follows_PL, judged.changes_PL)
    )
    rises, shifts = (group_means(values, codes_P, len(names), units, spec) for values in (judged.rise_PL, judged.shift_PL))
    made = []
    for g, name in enumerate(names):
        inside = codes_P == g
        numbers = {
            label: PairMetrics(
                unknown=int(inside.sum()) - follows[g][i].count - changes[g][i].count,
                follows=follows[g][i],
                stuck=int(np.nansum(judged.stuck_PL[inside, i])),
                reversed=int(np.nansum(judged.reversed_PL[inside, i])),
                rise=rises[g][i],
                changes=changes[g][i],
                shift=shifts[g][i],
            )
            for i, label in enumerate(judged.labels)
        }
        made.append(PairGroup(name, int(inside.sum()), numbers))
    return made


def _worst(i: int, ids: Sequence[str], data: EvaluationData, found: PairLinks, judged: _PairOutcomes) -> Iterator[FailedPair]:
    """The pairs of label ``i`` that failed, by how much."""
    ways = (
        ("not followed", judged.follows_PL[:, i] == 0, judged.rise_PL[:, i]),
        ("changed", judged.changes_PL[:, i] == 1, -judged.shift_PL[:, i]),
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
                perturbation=judged.names_P[place],
                targets=(targets[0], targets[1]),
                probabilities=(float(probabilities_N[one]), float(probabilities_N[other])),
            )


def _optional_column(table: pa.Table, column: str) -> list[str | None]:
    if column not in table.column_names:
        return [None] * table.num_rows
    return [None if value is None else str(value) for value in table.column(column).to_pylist()]
