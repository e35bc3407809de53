"""The predictions table: the interface between a model of any kind and its evaluation.

One row per item: ``id``; for each label ``probability.LABEL`` and ``target.LABEL`` (null for unknown; without the column, all
are unknown); ``presence``, the item's modalities, such as ``text+image``; and any further columns to slice by.

Example:
    >>> table = read_predictions("predictions.parquet")
    >>> targets_NL, probabilities_NL = prediction_arrays(table, prediction_labels(table))
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_evaluation.metrics import Floats

MAX_COLUMNS_SHOWN = 8
"""Most columns of a table that a message lists."""


def read_predictions(path: StrPath) -> pa.Table:
    """Read a predictions table, such as one that `vigil score` wrote, from a Parquet file.

    Raises:
        UserError: if the file is missing, not Parquet, or has no rows or no column of probabilities.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        lance = "; write Parquet with `vigil score … --to FILE.parquet`" if str(path).endswith(".lance") else ""
        raise UserError(f"{path}: not a readable Parquet file of predictions ({str(error).splitlines()[0]}){lance}") from None
    check_predictions(table, str(path))
    return table


def check_predictions(table: pa.Table, name: str) -> None:
    """Check that a table has rows, and a label with probabilities.

    Args:
        table: a predictions table.
        name: name of the table, for messages.

    Raises:
        UserError: one line, if it does not.
    """
    if not prediction_labels(table):
        columns = ", ".join(table.column_names[:MAX_COLUMNS_SHOWN]) or "none"
        raise UserError(f"{name}: has no column probability.LABEL; its columns are {columns}")
    if not table.num_rows:
        raise UserError(f"{name}: the table has no rows, so there is nothing to evaluate")


def scored_items(table: pa.Table, name: str) -> tuple[pa.Table, int]:
    """Return the items that were scored, and the number of the others, which have an ``error`` in the table of `vigil score`.

    Args:
        table: a predictions table.
        name: name of the table, for messages.

    Raises:
        UserError: if no item was scored.
    """
    if "error" not in table.column_names or (failed := len(table) - table.column("error").null_count) == 0:
        return table, 0
    if failed == len(table):
        raise UserError(f"{name}: all {failed} items have an error and no probabilities, the first: {table.column('error')[0]}")
    return table.filter(pc.is_null(table.column("error"))), failed


def prediction_labels(table: pa.Table) -> tuple[str, ...]:
    """Return the labels with a column of probabilities, in the order of these columns."""
    return tuple(name.removeprefix("probability.") for name in table.column_names if name.startswith("probability."))


def labelled(table: pa.Table, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels with a known target of any item."""
    columns = set(table.column_names)
    return tuple(k for k in labels if f"target.{k}" in columns and table.column(f"target.{k}").null_count < table.num_rows)


def with_probabilities(table: pa.Table, labels: Sequence[str], probabilities_NL: Floats) -> pa.Table:
    """Return a table with other probabilities, such as calibrated ones, rounded to float32.

    Args:
        table: a predictions table.
        labels: labels of the columns of ``probabilities_NL``.
        probabilities_NL: in [0, 1].
    """
    for label, rounded_N in zip(labels, probabilities_NL.astype(np.float32).T, strict=True):
        name = f"probability.{label}"
        table = table.set_column(table.column_names.index(name), name, pa.array(rounded_N))
    return table


def prediction_arrays(table: pa.Table, labels: Sequence[str]) -> tuple[Floats, Floats]:
    """Return targets and probabilities, float64 ``[N, L]`` each; an unknown target is NaN.

    Args:
        table: a predictions table. Targets are numbers or truth values; all are unknown where the column is absent.
        labels: the columns of the arrays, in order.

    Raises:
        UserError: a line for each column of probabilities that is missing, for each that is not numeric or outside [0, 1], and
            for null or repeated ids.
    """
    problems = _id_problems(table)
    targets_NL, probabilities_NL = np.full((2, table.num_rows, len(labels)), np.nan)
    for i, label in enumerate(labels):
        for kind, into in (("target", targets_NL), ("probability", probabilities_NL)):
            name = f"{kind}.{label}"
            if name not in table.column_names:
                if kind == "probability":
                    problems.append(f"predictions: column {name} is absent")
                continue
            values = _floats(table, name)
            if values is None:
                problems.append(f"predictions: column {name} has type {table.column(name).type}; it must be numeric")
                continue
            into[:, i] = values
            unknown = np.isnan(values)
            wrong = ~((values >= 0) & (values <= 1)) & ~(unknown if kind == "target" else np.zeros_like(unknown))
            if wrong.any():
                row, count = int(np.flatnonzero(wrong)[0]), int(wrong.sum())
                first = "null" if table.column(name)[row].as_py() is None else f"{values[row]:g}"
                what = f"{count} value{'' if count == 1 else 's'} outside [0, 1], the first {first} in row {row + 1}"
                problems.append(f"predictions: column {name} has {what}")
    if problems:
        raise UserError(*problems)
    return targets_NL, probabilities_NL


def _floats(table: pa.Table, name: str) -> Floats | None:
    """Return a column of numbers, or of truth values for a target; ``None`` if it is of another type."""
    column = table.column(name)
    numeric = pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)
    if not (numeric or (name.startswith("target.") and pa.types.is_boolean(column.type))):
        return None
    return np.asarray(column.cast(pa.float64()).fill_null(np.nan).to_numpy(), np.float64)


def _id_problems(table: pa.Table) -> list[str]:
    if "id" not in table.column_names:
        return ["predictions: column id is absent"]
    ids = table.column("id")
    problems = [f"predictions: rows without an id: {ids.null_count}"] if ids.null_count else []
    counted = ids.drop_null().value_counts()
    if repeats := len(ids) - ids.null_count - len(counted):
        first = counted.filter(pc.greater(counted.field("counts"), 1))[0]["values"]
        problems.append(f"predictions: rows that repeat an id: {repeats}, the first id is {first}")
    return problems
