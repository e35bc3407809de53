"""Align the predictions of two models by item, and refuse tables of different items or contradictory targets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import UserError, capped
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.predictions import prediction_arrays
from vigil_evaluation.sampling_weights import INCLUSION_PROBABILITY, WEIGHT, read_sampling_weights

Result = TypeVar("Result")

MAX_IDS_SHOWN = 3
"""Most ids in a message."""

TARGET_TOLERANCE = 1e-6
"""Largest difference of equal targets, since they are stored as float32."""

WEIGHT_TOLERANCE = 1e-5
"""Largest relative difference of equal weights, which may be stored as float32."""


@dataclass(frozen=True, slots=True)
class ScoredModel:
    """A model to compare, with its predictions.

    Attributes:
        name: name for reports.
        table: see :mod:`vigil_evaluation.predictions`.
        labels: labels of the table, in display order.
        thresholds: label to the lowest flagged probability.
        kind: ``table``, ``run`` or ``bundle``.
        policy: its compiled policy, if any.
        facts: provenance, as text.
    """

    name: str
    table: pa.Table
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    kind: str = "table"
    policy: CompiledPolicy | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AlignmentSummary:
    """Summary of an alignment.

    Attributes:
        items: common items.
        only_champion: items of the champion only, which are excluded.
        only_challenger: items of the challenger only, which are excluded.
        labels_only_champion: labels of the champion only, which are excluded.
        labels_only_challenger: labels of the challenger only, which are excluded.
        targets_of_one: label to the number of targets known in one table only; these count as unknown.
        columns_that_differ: column to the number of items whose values differ; the champion's value is used.
        weights_of_one: the model whose table alone states sampling weights, which are taken for both: ``champion`` or
            ``challenger``; ``None`` if both tables state them, or neither.
    """

    items: int
    only_champion: int
    only_challenger: int
    labels_only_champion: list[str]
    labels_only_challenger: list[str]
    targets_of_one: dict[str, int]
    columns_that_differ: dict[str, int]
    weights_of_one: str | None = None


@dataclass(frozen=True, slots=True)
class AlignedPredictions:
    """Two models' predictions of N items and L labels.

    Attributes:
        table: ``id`` and every column of either table that is neither target nor probability.
        labels: common labels, in the champion's order.
        targets_NL: targets known in both tables, NaN for the others.
        champion_NL: probabilities of the champion.
        challenger_NL: probabilities of the challenger.
        summary: what was excluded.
        weights_N: number of items that the targets of each item represent; ``None`` for 1 each.
    """

    table: pa.Table
    labels: tuple[str, ...]
    targets_NL: Floats
    champion_NL: Floats
    challenger_NL: Floats
    summary: AlignmentSummary
    weights_N: Floats | None = None


def align(champion: ScoredModel, challenger: ScoredModel, common: bool = False) -> AlignedPredictions:
    """Align two tables by id, in the champion's order.

    Args:
        champion: the model in use.
        challenger: the candidate.
        common: compare the common items instead of refusing tables of different items.

    Raises:
        UserError: if ids repeat or differ, the tables have no common label, or the targets or the sampling weights of an item
            contradict each other.
    """
    labels = tuple(label for label in champion.labels if label in set(challenger.labels))
    if not labels:
        raise UserError(
            f"no common label: {champion.name} has {_named(champion.labels)}; {challenger.name} {_named(challenger.labels)}"
        )
    sides = [_checked(side.name, lambda side=side: prediction_arrays(side.table, labels)) for side in (champion, challenger)]  # type: ignore[misc]
    rows_M, others_M, only, only_other = _rows(champion, challenger, common)
    (targets, probabilities), (other_targets, other_probabilities) = sides
    first_ML, second_ML = targets[rows_M], other_targets[others_M]
    table = champion.table.take(pa.array(rows_M))
    _refuse_contradictions(table, labels, first_ML, second_ML, (champion.name, challenger.name))
    known_ML = ~np.isnan(first_ML) & ~np.isnan(second_ML)
    of_one = (np.isnan(first_ML) != np.isnan(second_ML)).sum(axis=0)
    other_table, targets_NL = challenger.table.take(pa.array(others_M)), np.where(known_ML, first_ML, np.nan)
    weights, of_one_table = _common_weights((table, other_table), targets_NL, (champion.name, challenger.name))
    joined, differ = _joined(table, other_table)
    summary = AlignmentSummary(
        items=len(rows_M),
        only_champion=only,
        only_challenger=only_other,
        labels_only_champion=[label for label in champion.labels if label not in labels],
        labels_only_challenger=[label for label in challenger.labels if label not in labels],
        targets_of_one={label: int(n) for label, n in zip(labels, of_one, strict=True) if n},
        columns_that_differ=differ,
        weights_of_one=of_one_table,
    )
    return AlignedPredictions(
        joined,
        labels,
        targets_NL,
        probabilities[rows_M],
        other_probabilities[others_M],
        summary,
        weights,
    )


def _checked(name: str, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except UserError as error:
        raise UserError(*(f"{name}: {line}" for line in error.lines)) from None


def _common_weights(
    tables: tuple[pa.Table, pa.Table], targets_NL: Floats, names: tuple[str, str]
) -> tuple[Floats | None, str | None]:
    """Return the sampling weights of the aligned items, and the model that alone states them."""
    first_N, second_N = (
        _checked(name, lambda table=table: read_sampling_weights(table, targets_NL)).label_N  # type: ignore[misc]
        for name, table in zip(names, tables, strict=True)
    )
    if first_N is None or second_N is None:
        return (second_N, None if second_N is None else "challenger") if first_N is None else (first_N, "champion")
    known_N = ~np.isnan(targets_NL).all(axis=1)
    apart_N = known_N & ~np.isclose(first_N, second_N, rtol=WEIGHT_TOLERANCE, atol=0)
    if apart_N.any():
        row = int(np.flatnonzero(apart_N)[0])
        at = f"such as {tables[0].column('id')[row]}: {first_N[row]:g} in {names[0]} and {second_N[row]:g} in {names[1]}"
        raise UserError(
            f"columns {INCLUSION_PROBABILITY} and {WEIGHT}: {int(apart_N.sum())} items represent different numbers of items, "
            f"{at}; state one sampling design for both, or leave the columns out of one table"
        )
    return first_N, None


def _rows(champion: ScoredModel, challenger: ScoredModel, common: bool) -> tuple[NDArray[np.int64], NDArray[np.int64], int, int]:
    """Return the rows of the common items in either table, and the number of items of each table only."""
    ids, others = (side.table.column("id").combine_chunks().cast(pa.string()) for side in (champion, challenger))
    there = pc.index_in(ids, others)
    rows = np.flatnonzero(np.asarray(there.is_valid()))
    at = np.asarray(there.drop_null(), np.int64)
    missing = ids.filter(there.is_null())
    more = others.filter(pc.invert(pc.is_in(others, ids)))
    if not len(rows):
        raise UserError(f"no common item: {champion.name} starts with {_first(ids)}, {challenger.name} with {_first(others)}")
    if (len(missing) or len(more)) and not common:
        lacks = [
            f"{len(absent)} of the {len(of)} items of {owner} are not in {other} ({_first(absent)})"
            for absent, of, owner, other in (
                (missing, ids, champion.name, challenger.name),
                (more, others, challenger.name, champion.name),
            )
            if len(absent)
        ]
        raise UserError(f"{'; '.join(lacks)}; predict both on one dataset (--data), or compare the common items (--common)")
    return rows, at, len(missing), len(more)


def _refuse_contradictions(
    table: pa.Table, labels: Sequence[str], first_ML: Floats, second_ML: Floats, names: tuple[str, str]
) -> None:
    apart_ML = np.abs(first_ML - second_ML) > TARGET_TOLERANCE
    problems = []
    for place in np.flatnonzero(apart_ML.any(axis=0)).tolist():
        row = int(np.flatnonzero(apart_ML[:, place])[0])
        values = f"{first_ML[row, place]:g} in {names[0]} and {second_ML[row, place]:g} in {names[1]}"
        count = int(apart_ML[:, place].sum())
        at = f"such as {table.column('id')[row]}: {values}"
        problems.append(f"target {labels[place]}: {count} items have different targets, {at}; use the same targets for both")
    if problems:
        raise UserError(*capped(problems))


def _joined(first: pa.Table, second: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Return ``id`` and the other columns of either table, and the number of rows in which a common column differs."""
    names = [name for name in first.column_names if not name.startswith(("target.", "probability."))]
    joined = first.select(names)
    differ = {}
    for name in second.column_names:
        if name.startswith(("target.", "probability.")) or name == "id":
            continue
        if name not in names:
            joined = joined.append_column(name, second.column(name))
        elif name not in (INCLUSION_PROBABILITY, WEIGHT) and (rows := _rows_apart(first.column(name), second.column(name))):
            differ[name] = rows
    return joined, differ


def _rows_apart(one: pa.ChunkedArray, other: pa.ChunkedArray) -> int:
    if one.equals(other):
        return 0
    return sum(a != b for a, b in zip(one.to_pylist(), other.to_pylist(), strict=True))


def _first(ids: pa.Array) -> str:
    shown = ", ".join(str(id_) for id_ in ids[:MAX_IDS_SHOWN])
    return f"{shown}, …" if len(ids) > MAX_IDS_SHOWN else shown


def _named(labels: Sequence[str]) -> str:
    return ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")
