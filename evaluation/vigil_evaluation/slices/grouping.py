"""Columns of a predictions table as groups of items: one group number for each row."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.presence import PRESENCE
from vigil_evaluation.specs import EvaluationSpec

MAX_GROUPS = 200
"""Largest number of values of one column that are kept; the others are counted."""

MAX_CROSSED = 50
"""Largest number of pairs of values of two columns that are kept."""

CROSS = " × "  # noqa: RUF001
"""Separator between the names of two crossed columns."""

NULL = "null"
"""Text for null within a value of a cross."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Groups of one column or of two crossed columns.

    Attributes:
        column: name of the column, or both names joined by :data:`CROSS`.
        values: value of each group, the most frequent first; ``None`` where the column is null.
        codes_N: place in ``values`` of each row's group; -1 for rows whose value is left out.
        values_left_out: number of further values.
        items_left_out: number of rows with one of those values.
    """

    column: str
    values: list[str | None]
    codes_N: NDArray[np.int32]
    values_left_out: int
    items_left_out: int


class EncodedColumn(NamedTuple):
    """A column as integers.

    Attributes:
        values: distinct values, the most frequent first, null among them.
        codes_N: place in ``values`` of each row's value.
        counts: number of rows with each value.
    """

    values: pa.Array
    codes_N: NDArray[np.int64]
    counts: NDArray[np.int64]

    def texts(self, most: int | None = None) -> list[str | None]:
        """Return the ``most`` frequent values (default: all) as text."""
        return _texts(self.values[:most])


class TableColumns:
    """The columns of a table; each is encoded once, when it is first used.

    Example:
        >>> columns = TableColumns(pa.table({"language": ["en", "de", "en"]}))
        >>> grouping(columns, "language").values
        ['en', 'de']
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._encoded: dict[str, EncodedColumn] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.table.column_names

    def __getitem__(self, name: str) -> EncodedColumn:
        """Return a column of strings, numbers, truth values or times as integers.

        Raises:
            UserError: if the column holds lists or structs.
        """
        if name not in self._encoded:
            if problem := self.problem(name):
                raise UserError(problem)
            self._encoded[name] = encode(self.table.column(name))
        return self._encoded[name]

    def groupable(self, name: str) -> bool:
        """Whether the table has the column, with one plain value per item."""
        if name not in self:
            return False
        held = self.table.column(name).type
        return not pa.types.is_nested(held.value_type if pa.types.is_dictionary(held) else held)

    def problem(self, name: str) -> str | None:
        """Return the error message for a column that cannot be grouped by."""
        if self.groupable(name):
            return None
        return f"evaluation: column {name} holds {self.table.column(name).type}; group by a column with one plain value an item"


def grouping(columns: TableColumns, column: str, most: int = MAX_GROUPS) -> Grouping:
    """Return the groups of a column; null is a group of its own.

    Args:
        columns: the table.
        column: column of strings, numbers, truth values or times.
        most: number of groups that are kept, the largest ones.

    Raises:
        UserError: if the column holds lists or structs.
    """
    encoded = columns[column]
    codes_N, values_left_out, items_left_out = _keep(encoded.codes_N, encoded.counts, most)
    return Grouping(column, encoded.texts(most), codes_N, values_left_out, items_left_out)


def cross(columns: TableColumns, first: str, second: str, most: int = MAX_CROSSED) -> Grouping:
    """Return the groups of the joint values of two columns, such as ``en, text+image``.

    Args:
        columns: the table.
        first: a column, as for :func:`grouping`.
        second: another.
        most: number of groups that are kept, the largest ones.

    Raises:
        UserError: if a column holds lists or structs.
    """
    one, other = columns[first], columns[second]
    across = max(len(other.values), 1)
    pairs, codes_N, counts = np.unique(one.codes_N * across + other.codes_N, return_inverse=True, return_counts=True)
    # Groups of equal size follow the order of the columns' values: the frequent ones first.
    order = np.argsort(-counts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    kept_N, values_left_out, items_left_out = _keep(place[codes_N], counts[order], most)
    at = pairs[order[:most]]
    firsts, seconds = _texts(one.values.take(pa.array(at // across))), _texts(other.values.take(pa.array(at % across)))
    values: list[str | None] = [
        f"{NULL if a is None else a}, {NULL if b is None else b}" for a, b in zip(firsts, seconds, strict=True)
    ]
    return Grouping(f"{first}{CROSS}{second}", values, kept_N, values_left_out, items_left_out)


def groupings(columns: TableColumns, spec: EvaluationSpec) -> tuple[list[Grouping], list[str]]:
    """Return the groupings by which an evaluation breaks its metrics down.

    Args:
        columns: the predictions table.
        spec: names the slices and the crosses.

    Returns:
        Groupings by ``presence`` if the table has it, the slices and the crosses; and the requested columns that are absent.

    Raises:
        UserError: a line for each column that holds lists or structs.
    """
    single = list(dict.fromkeys((PRESENCE, *spec.slices)))
    crossed = list(dict.fromkeys(spec.crosses))
    asked = dict.fromkeys([*spec.slices, *(name for pair in crossed for name in pair)])
    absent = [name for name in asked if name not in columns]
    present = [name for name in dict.fromkeys([*single, *asked]) if name in columns]
    if problems := [problem for name in present if (problem := columns.problem(name))]:
        raise UserError(*problems)
    made = [grouping(columns, name) for name in single if name in present]
    made += [cross(columns, *pair) for pair in crossed if set(pair) <= set(present)]
    return made, absent


def resampling_units(columns: TableColumns, column: str | None) -> NDArray[np.int32] | None:
    """Return the unit of each row that is resampled as one, ``[N]`` from 0; a null is a unit of its own.

    Args:
        columns: the predictions table.
        column: column whose values are the units, such as ``author``.

    Returns:
        ``None`` without a column, or if the table lacks it: each row is its own unit.

    Raises:
        UserError: if the column holds lists or structs.
    """
    if column is None or column not in columns:
        return None
    values, codes_N, _ = columns[column]
    without_N = np.asarray(values.is_null())[codes_N]
    units_N = np.where(without_N, len(values) + np.cumsum(without_N), codes_N)
    return np.unique(units_N, return_inverse=True)[1].astype(np.int32)


def encode(values: pa.ChunkedArray) -> EncodedColumn:
    """Return values of any type that Arrow can sort as integers."""
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
    return EncodedColumn(distinct.take(pa.array(order)), place[at_N], counts[order])


def _keep(codes_N: NDArray[np.int64], counts: NDArray[np.int64], most: int) -> tuple[NDArray[np.int32], int, int]:
    """Return the codes below ``most`` and -1 for the others, and the number of values and of rows left out."""
    kept_N = np.where(codes_N < most, codes_N, -1).astype(np.int32)
    return kept_N, max(len(counts) - most, 0), int(counts[most:].sum())


def _texts(values: pa.Array) -> list[str | None]:
    return [None if value is None else str(value) for value in values.to_pylist()]
