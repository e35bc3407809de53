"""The predictions table: the interface between a model of any kind and its evaluation.

One row per item: ``id``; for each label ``target.LABEL`` (null for unknown) and ``probability.LABEL``; ``presence``, the item's
modalities, such as ``text+image``; and any further columns to slice by.

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


def read_predictions(path: StrPath) -> pa.Table:
    """Read a predictions table from a Parquet file.

    Raises:
        UserError: if the file is missing, not Parquet, or has no pair of target and probability columns.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file of predictions ({str(error).splitlines()[0]})") from None
    if not prediction_labels(table):
        raise UserError(f"{path}: no label has both columns target.LABEL and probability.LABEL")
    return table


def prediction_labels(table: pa.Table) -> tuple[str, ...]:
    """Return the labels with both a target and a probability column, in the order of the target columns."""
    names = [name.removeprefix("target.") for name in table.column_names if name.startswith("target.")]
    return tuple(name for name in names if f"probability.{name}" in table.column_names)


def prediction_arrays(table: pa.Table, labels: Sequence[str]) -> tuple[Floats, Floats]:
    """Return targets and probabilities, float64 ``[N, L]`` each; an unknown target is NaN.

    Args:
        table: a predictions table.
        labels: the columns of the arrays, in order.

    Raises:
        UserError: a line for each column that is missing, not numeric or outside [0, 1], and for null or repeated ids.
    """
    problems = _id_problems(table)
    targets_NL, probabilities_NL = np.full((2, table.num_rows, len(labels)), np.nan)
    for i, label in enumerate(labels):
        for kind, into in (("target", targets_NL), ("probability", probabilities_NL)):
            name = f"{kind}.{label}"
            values = _floats(table, name)
            if values is None:
                absent = name not in table.column_names
                problems.append(f"predictions: column {name} is {'absent' if absent else 'not numeric'}")
                continue
            into[:, i] = values
            unknown = np.isnan(values)
            wrong = ~((values >= 0) & (values <= 1)) & ~(unknown if kind == "target" else np.zeros_like(unknown))
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                first = f"the first {values[row]} in row {row}"
                problems.append(f"predictions: column {name} has {int(wrong.sum())} values that are not in [0, 1], {first}")
    if problems:
        raise UserError(*problems)
    return targets_NL, probabilities_NL


def _floats(table: pa.Table, name: str) -> Floats | None:
    if name not in table.column_names:
        return None
    column = table.column(name)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        return None
    return np.asarray(column.cast(pa.float64()).fill_null(np.nan).to_numpy(), np.float64)


def _id_problems(table: pa.Table) -> list[str]:
    if "id" not in table.column_names:
        return ["predictions: column id is absent"]
    ids = table.column("id")
    problems = [f"predictions: {ids.null_count} rows have no id"] if ids.null_count else []
    counted = ids.drop_null().value_counts()
    if repeats := len(ids) - ids.null_count - len(counted):
        first = counted.filter(pc.greater(counted.field("counts"), 1))[0]["values"]
        problems.append(f"predictions: {repeats} rows repeat an id, the first is {first}")
    return problems
