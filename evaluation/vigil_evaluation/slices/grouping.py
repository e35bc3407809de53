"""Columns as groups of items: one number for each row of a table that says in which group it is."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_evaluation.specs import EvaluationSpec

MAX_GROUPS = 200
"""The most values of one column that are kept; what is left out is counted."""

MAX_CROSSED = 50
"""The most pairs of values of two columns that are kept."""

CROSS = " × "  # noqa: RUF001
"""Between the names of two columns that are crossed."""

NULL = "null"
"""How a null is written within the value of a cross."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """The groups of one column, or of two crossed.

    Attributes:
        column: the column's name, or both with :data:`CROSS` between.
        values: what the items of each group share, the most frequent first; ``None`` where the column is null.
        codes_N: of each row the place of its group in ``values``; -1 for the rows whose value is left out.
        values_left_out: how many values beyond those there are.
        items_left_out: how many rows have them.
    """

    column: str
    values: list[str | None]
    codes_N: NDArray[np.int32]
    values_left_out: int
    items_left_out: int


class Encoded(NamedTuple):
    """A column as numbers: the distinct values, the most frequent first and null among them, and the place of each row's."""

    values: pa.Array
    codes_N: NDArray[np.int64]
    counts: NDArray[np.int64]


def grouping(table: pa.Table, column: str, most: int = MAX_GROUPS) -> Grouping:
    """The groups of a column; null is a group of its own.

    Args:
        table: any table that has the column.
        column: strings, numbers, truth values or times.
        most: how many groups are kept, the largest ones.

    Raises:
        UserError: if the column holds lists or the like.
    """
    encoded = encode(table, column)
    codes_N, values_left_out, items_left_out = _keep(encoded.codes_N, encoded.counts, most)
    return Grouping(column, _texts(encoded.values[:most]), codes_N, values_left_out, items_left_out)


def cross(table: pa.Table, first: str, second: str, most: int = MAX_CROSSED) -> Grouping:
    """The groups of the joint values of two columns, such as ``en, text+image``.

    Args:
        table: any table that has the columns.
        first: as for :func:`grouping`.
        second: likewise.
        most: how many groups are kept, the largest ones.

    Raises:
        UserError: if a column holds lists or the like.
    """
    one, other = encode(table, first), encode(table, second)
    joint_N = one.codes_N * max(len(other.values), 1) + other.codes_N
    pairs, codes_N, counts = np.unique(joint_N, return_inverse=True, return_counts=True)
    # Equally large groups follow the order of the columns' values: the frequent ones first.
    order = np.argsort(-counts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    kept_N, values_left_out, items_left_out = _keep(place[codes_N], counts[order], most)
    at = pairs[order[:most]]
    firsts = _texts(one.values.take(pa.array(at // max(len(other.values), 1))))
    seconds = _texts(other.values.take(pa.array(at % max(len(other.values), 1))))
    values: list[str | None] = [
        f"{NULL if a is None else a}, {NULL if b is None else b}" for a, b in zip(firsts, seconds, strict=True)
    ]
    return Grouping(f"{first}{CROSS}{second}", values, kept_N, values_left_out, items_left_out)


def groupings(table: pa.Table, spec: EvaluationSpec) -> tuple[list[Grouping], list[str]]:
    """Everything by which an evaluation breaks its numbers down.

    Args:
        table: a predictions table.
        spec: names the slices and the crosses.

    Returns:
        ``presence`` if the table has it, then the slices, then the crosses; and the columns that the table lacks.

    Raises:
        UserError: a line for each column that holds lists or the like.
    """
    columns = list(dict.fromkeys(("presence", *spec.slices)))
    crossed = list(dict.fromkeys(spec.crosses))
    asked = dict.fromkeys([*spec.slices, *(name for pair in crossed for name in pair)])
    absent = [name for name in asked if name not in table.column_names]
    present = [name for name in dict.fromkeys([*columns, *asked]) if name in table.column_names]
    if problems := [problem for name in present if (problem := _problem(table, name))]:
        raise UserError(*problems)
    made = [grouping(table, name) for name in columns if name in present]
    made += [cross(table, *pair) for pair in crossed if set(pair) <= set(present)]
    return made, absent


def clusters(table: pa.Table, spec: EvaluationSpec) -> NDArray[np.int32] | None:
    """The units that are resampled together, ``[N]`` from 0 on; a row without one is a unit of its own.

    Args:
        table: a predictions table.
        spec: names the column.

    Returns:
        ``None`` if the spec names none or the table lacks it: each row is its own.

    Raises:
        UserError: if the column holds lists or the like.
    """
    if spec.cluster is None or spec.cluster not in table.column_names:
        return None
    values, codes_N, _ = encode(table, spec.cluster)
    without_N = np.asarray(values.is_null())[codes_N]
    units_N = np.where(without_N, len(values) + np.cumsum(without_N), codes_N)
    return np.unique(units_N, return_inverse=True)[1].astype(np.int32)


def encode(table: pa.Table, column: str) -> Encoded:
    """A column as numbers.

    Args:
        table: any table that has the column.
        column: strings, numbers, truth values or times.

    Raises:
        UserError: if the column holds lists or the like.
    """
    if problem := _problem(table, column):
        raise UserError(problem)
    values = table.column(column)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    elif pa.types.is_null(values.type):
        values = values.cast(pa.string())
    coded = values.dictionary_encode().unify_dictionaries().combine_chunks()
    distinct = pa.concat_arrays([coded.dictionary, pa.nulls(1, coded.dictionary.type)])
    at_N = np.asarray(coded.indices.fill_null(len(distinct) - 1)).astype(np.int64)
    counts = np.bincount(at_N, minlength=len(distinct)).astype(np.int64)
    found = pa.table({"count": counts, "value": distinct})
    order = np.asarray(pc.sort_indices(found, [("count", "descending"), ("value", "ascending")]))  # null comes last among equals
    order = order[counts[order] > 0].astype(np.int64)
    place = np.zeros(len(distinct), np.int64)
    place[order] = np.arange(len(order))
    return Encoded(distinct.take(pa.array(order)), place[at_N], counts[order])


def groupable(table: pa.Table, column: str) -> bool:
    """Whether a column has one plain value an item, rather than lists or the like."""
    held = table.column(column).type
    return not pa.types.is_nested(held.value_type if pa.types.is_dictionary(held) else held)


def _problem(table: pa.Table, column: str) -> str | None:
    if groupable(table, column):
        return None
    return f"evaluation: column {column} holds {table.column(column).type}; group by a column with one plain value an item"


def _keep(codes_N: NDArray[np.int64], counts: NDArray[np.int64], most: int) -> tuple[NDArray[np.int32], int, int]:
    """The codes below ``most``, the others -1; how many values and how many rows are left out."""
    kept_N = np.where(codes_N < most, codes_N, -1).astype(np.int32)
    return kept_N, max(len(counts) - most, 0), int(counts[most:].sum())


def _texts(values: pa.Array) -> list[str | None]:
    return [None if value is None else str(value) for value in values.to_pylist()]
