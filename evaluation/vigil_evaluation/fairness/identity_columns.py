"""Groups of people that items are about, from identity columns in any of three formats."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_evaluation.slices.grouping import TableColumns, encode, grouping

MAX_SUBGROUPS = 100
"""Largest number of groups of one column that are kept; the others are counted."""


@dataclass(frozen=True, slots=True)
class IdentityGroups:
    """Groups that one column names.

    Attributes:
        column: name of the column.
        values: its groups, the largest first.
        rows_M: row of each of the M memberships, rising.
        groups_M: place in ``values`` of each membership's group.
        known_N: whether membership is known for each row; other rows are in no comparison.
        values_left_out: number of further groups.
    """

    column: str
    values: list[str]
    rows_M: NDArray[np.int64]
    groups_M: NDArray[np.int32]
    known_N: NDArray[np.bool_]
    values_left_out: int


def identity_groups(columns: TableColumns, names: Sequence[str]) -> tuple[list[IdentityGroups], list[str]]:
    """Return the groups that identity columns name, in any of three formats.

    - Text: the group that the item is about; null for none.
    - A list of texts: the groups that it is about; null or empty for none.
    - Truth values, or numbers (a share of annotators): whether it is about the group that the column is named after (without a
      prefix up to a dot); true from 0.5 on. Null is unknown.

    Args:
        columns: the predictions table.
        names: identity columns; a name that is no column stands for all columns that start with it and a dot.

    Returns:
        The groups of each column, and the names without a column.

    Raises:
        UserError: a line for each column of another type.
    """
    found, absent, problems, table = [], [], [], columns.table
    for name in dict.fromkeys(names):
        held = [name] if name in table.column_names else [c for c in table.column_names if c.startswith(f"{name}.")]
        if not held:
            absent.append(name)
        for column in held:
            identity = _identity(columns, column)
            if identity is None:
                kind = table.column(column).type
                problems.append(
                    f"evaluation.identities: column {column} holds {kind}; give texts, lists of texts, or one number an item"
                )
            else:
                found.append(identity)
    if problems:
        raise UserError(*problems)
    return found, absent


def _identity(columns: TableColumns, column: str) -> IdentityGroups | None:
    table = columns.table
    kind = table.column(column).type
    if pa.types.is_boolean(kind) or pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return _share(table, column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(table, column) if _is_text(kind.value_type) else None
    return _texts(columns, column) if _is_text(kind) or pa.types.is_null(kind) else None


def _is_text(kind: pa.DataType) -> bool:
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(held) or pa.types.is_large_string(held))


def _share(table: pa.Table, column: str) -> IdentityGroups:
    shares_N = np.asarray(table.column(column).cast(pa.float64()).fill_null(np.nan).to_numpy())
    rows_M = np.flatnonzero(shares_N >= 0.5)
    values = [column.rpartition(".")[2]] if len(rows_M) else []
    return IdentityGroups(column, values, rows_M, np.zeros(len(rows_M), np.int32), ~np.isnan(shares_N), 0)


def _texts(columns: TableColumns, column: str) -> IdentityGroups:
    made = grouping(columns, column, MAX_SUBGROUPS + 1)
    rows = len(made.codes_N)
    return _kept(column, made.values, np.arange(rows), made.codes_N, rows=rows, values_left_out=made.values_left_out)


def _lists(table: pa.Table, column: str) -> IdentityGroups:
    lists = table.column(column).combine_chunks()
    rows_M = np.asarray(pc.list_parent_indices(lists)).astype(np.int64)
    encoded = encode(pa.chunked_array([pc.list_flatten(lists)]))
    # An item that names a group twice is a member once.
    _, once = np.unique(rows_M * max(len(encoded.values), 1) + encoded.codes_N, return_index=True)
    rows_M, codes_M = rows_M[once], encoded.codes_N[once]
    order = np.argsort(-np.bincount(codes_M, minlength=len(encoded.values)), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    kept_M = np.where(place[codes_M] <= MAX_SUBGROUPS, place[codes_M], -1).astype(np.int32)
    values = [encoded.texts()[place] for place in order[: MAX_SUBGROUPS + 1]]
    left_out = max(len(encoded.values) - MAX_SUBGROUPS - 1, 0)
    return _kept(column, values, rows_M, kept_M, rows=table.num_rows, values_left_out=left_out)


def _kept(
    column: str,
    values: list[str | None],
    rows_M: NDArray[np.int64],
    codes_M: NDArray[np.int32],
    *,
    rows: int,
    values_left_out: int,
) -> IdentityGroups:
    """Drop null, which is no group, and the groups beyond the largest number."""
    named = [i for i, value in enumerate(values) if value is not None]
    place = np.full(len(values) + 1, -1, np.int32)
    place[named[:MAX_SUBGROUPS]] = np.arange(min(len(named), MAX_SUBGROUPS))
    groups_M = place[codes_M]
    among = groups_M >= 0
    names = [str(values[i]) for i in named[:MAX_SUBGROUPS]]
    left_out = values_left_out + max(len(named) - MAX_SUBGROUPS, 0)
    return IdentityGroups(column, names, rows_M[among], groups_M[among], np.ones(rows, np.bool_), left_out)
