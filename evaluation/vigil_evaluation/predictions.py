"""The predictions table: the seam between whatever model made the probabilities and the numbers that are made of them.

One row for each item: ``id``; for each label ``target.LABEL`` (null is unknown) and ``probability.LABEL``; ``presence``, the
modalities that the item has, such as ``text+image``; and any other columns to slice by.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigil_data.errors import UserError
from vigil_evaluation.metrics import Floats


def read_predictions(path: Path) -> pa.Table:
    """Read a predictions table from a Parquet file.

    Raises:
        UserError: if the file is absent, is not Parquet, or has no pair of target and probability columns.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file of predictions ({str(error).splitlines()[0]})") from None
    if not prediction_labels(table):
        raise UserError(f"{path}: no label has both columns target.LABEL and probability.LABEL")
    return table


def prediction_labels(table: pa.Table) -> tuple[str, ...]:
    """The labels that have both a target and a probability column, in the order of the target columns."""
    names = [name.removeprefix("target.") for name in table.column_names if name.startswith("target.")]
    return tuple(name for name in names if f"probability.{name}" in table.column_names)


def prediction_arrays(table: pa.Table, labels: Sequence[str]) -> tuple[Floats, Floats]:
    """The targets and the probabilities of a predictions table, float64 ``[N, L]`` each; an unknown target is NaN.

    Args:
        table: a predictions table.
        labels: which labels, in which order.

    Raises:
        UserError: naming every column that is absent, not numeric, or holds values outside [0, 1], and what is wrong with ``id``.
    """
    problems = _problems_of_ids(table)
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


def _problems_of_ids(table: pa.Table) -> list[str]:
    if "id" not in table.column_names:
        return ["predictions: column id is absent"]
    ids = table.column("id")
    problems = [f"predictions: {ids.null_count} rows have no id"] if ids.null_count else []
    counted = ids.drop_null().value_counts()
    if repeats := len(ids) - ids.null_count - len(counted):
        first = counted.filter(pc.greater(counted.field("counts"), 1))[0]["values"]
        problems.append(f"predictions: {repeats} rows repeat an id, the first is {first}")
    return problems
