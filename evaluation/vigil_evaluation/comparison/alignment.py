"""Two models' predictions of the same items, row beside row, and refused where they are not of the same items."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import UserError, capped
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.predictions import prediction_arrays

MAX_IDS_SHOWN = 3
"""The most ids that a message names."""

TARGET_TOLERANCE = 1e-6
"""How far the targets of one item may lie apart and be called equal: they are stored as float32."""


@dataclass(frozen=True, slots=True)
class ScoredModel:
    """One of the two models that are compared, by its predictions.

    Attributes:
        name: how to speak of it.
        table: see :mod:`vigil_evaluation.predictions`.
        labels: of the table, in the order that they are shown in.
        thresholds: label to the lowest probability that is flagged.
        kind: ``table``, ``run`` or ``bundle``.
        policy: what is done with the probabilities, if it is known.
        facts: what the table is of, for its reader.
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
    """How two tables were brought together.

    Attributes:
        items: that both have.
        only_champion: items that the champion alone has, which are left out.
        only_challenger: likewise.
        labels_only_champion: labels that the champion alone has, which are left out.
        labels_only_challenger: likewise.
        targets_of_one: label to how many targets only one of the tables knows; these count as unknown.
        columns_that_differ: column to the items in which the tables disagree; what the champion's says is taken.
    """

    items: int
    only_champion: int
    only_challenger: int
    labels_only_champion: list[str]
    labels_only_challenger: list[str]
    targets_of_one: dict[str, int]
    columns_that_differ: dict[str, int]


@dataclass(frozen=True, slots=True)
class AlignedPredictions:
    """Two models' predictions of N items and L labels.

    Attributes:
        table: ``id`` and every column that is neither target nor probability, of either table.
        labels: that both have, in the champion's order.
        targets_NL: those that both know, NaN for the others.
        champion_NL: its probabilities.
        challenger_NL: its probabilities.
        how: what was left out.
    """

    table: pa.Table
    labels: tuple[str, ...]
    targets_NL: Floats
    champion_NL: Floats
    challenger_NL: Floats
    how: AlignmentSummary


def align(champion: ScoredModel, challenger: ScoredModel, common: bool = False) -> AlignedPredictions:
    """Put two tables side by side, by id and in the champion's order.

    Args:
        champion: what is in use.
        challenger: what is to replace it.
        common: compare the items that both have, rather than refuse tables of different ones.

    Raises:
        UserError: if ids repeat or differ, no label is in both, or the targets of an item contradict each other.
    """
    labels = tuple(label for label in champion.labels if label in set(challenger.labels))
    if not labels:
        raise UserError(
            f"no label is in both: {champion.name} has {_named(champion.labels)}; {challenger.name} {_named(challenger.labels)}"
        )
    sides = [_checked(side, lambda side=side: prediction_arrays(side.table, labels)) for side in (champion, challenger)]  # type: ignore[misc]
    rows_M, others_M, only, only_other = _rows(champion, challenger, common)
    (targets, probabilities), (other_targets, other_probabilities) = sides
    first_ML, second_ML = targets[rows_M], other_targets[others_M]
    table = champion.table.take(pa.array(rows_M))
    _refuse_contradictions(table, labels, first_ML, second_ML, (champion.name, challenger.name))
    known_ML = ~np.isnan(first_ML) & ~np.isnan(second_ML)
    of_one = (np.isnan(first_ML) != np.isnan(second_ML)).sum(axis=0)
    joined, differ = _joined(table, challenger.table.take(pa.array(others_M)))
    how = AlignmentSummary(
        items=len(rows_M),
        only_champion=only,
        only_challenger=only_other,
        labels_only_champion=[label for label in champion.labels if label not in labels],
        labels_only_challenger=[label for label in challenger.labels if label not in labels],
        targets_of_one={label: int(n) for label, n in zip(labels, of_one, strict=True) if n},
        columns_that_differ=differ,
    )
    return AlignedPredictions(
        joined,
        labels,
        np.where(known_ML, first_ML, np.nan),
        probabilities[rows_M],
        other_probabilities[others_M],
        how,
    )


def _checked(side: ScoredModel, read: Callable[[], tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    try:
        return read()
    except UserError as error:
        raise UserError(*(f"{side.name}: {line}" for line in error.lines)) from None


def _rows(champion: ScoredModel, challenger: ScoredModel, common: bool) -> tuple[NDArray[np.int64], NDArray[np.int64], int, int]:
    """The rows of either table that hold the same items, and how many items each alone has."""
    ids, others = (side.table.column("id").combine_chunks().cast(pa.string()) for side in (champion, challenger))
    there = pc.index_in(ids, others)
    rows = np.flatnonzero(np.asarray(there.is_valid()))
    at = np.asarray(there.drop_null(), np.int64)
    missing = ids.filter(there.is_null())
    more = others.filter(pc.invert(pc.is_in(others, ids)))
    if not len(rows):
        what = f"no item is in both: the first id of {champion.name} is {_first(ids)}, of {challenger.name} {_first(others)}"
        raise UserError(what)
    if (len(missing) or len(more)) and not common:
        lacks = [
            f"{len(absent)} of the {len(of)} items of {owner} are not in {other} ({_first(absent)})"
            for absent, of, owner, other in (
                (missing, ids, champion.name, challenger.name),
                (more, others, challenger.name, champion.name),
            )
            if len(absent)
        ]
        mend = "predict both on one dataset (--data), or compare what both have (--common)"
        raise UserError(f"{'; '.join(lacks)}; {mend}")
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
        at = f"such as {table.column('id')[row]}, which is {values}"
        problems.append(f"target {labels[place]}: {count} items have two, {at}; both must be judged by the same targets")
    if problems:
        raise UserError(*capped(problems))


def _joined(first: pa.Table, second: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """``id`` and the other columns of either table, and in how many rows a column that both have differs."""
    names = [name for name in first.column_names if not name.startswith(("target.", "probability."))]
    joined = first.select(names)
    differ = {}
    for name in second.column_names:
        if name.startswith(("target.", "probability.")) or name == "id":
            continue
        if name not in names:
            joined = joined.append_column(name, second.column(name))
        elif rows := _rows_apart(first.column(name), second.column(name)):
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
