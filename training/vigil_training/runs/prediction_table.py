"""The predictions table, from probabilities of a run or a bundle and the columns of a dataset; torch is not needed."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.table_schema import SAMPLING
from vigil_data.errors import UserError
from vigil_data.loading.sampler import Rows
from vigil_evaluation.sampling_weights import SamplingWeights, read_sampling_weights

STANDARD_COLUMNS = ("author", "language", "market", "content_type", "source", *SAMPLING.names)
"""Columns that a predictions table has whenever the dataset has them: policies, comparisons, clusters and weights read them."""


def predictions_table(
    ids: Sequence[str],
    labels: Sequence[str],
    targets_NL: NDArray[np.floating],
    probabilities_NL: NDArray[np.floating],
    present: Sequence[str],
    *,
    dataset: Dataset,
    rows: Rows,
    columns: Sequence[str],
) -> pa.Table:
    """Make a predictions table.

    Args:
        ids: ids of the N items, each among ``rows``.
        labels: names of the L labels.
        targets_NL: targets, NaN where unknown.
        probabilities_NL: calibrated probabilities.
        present: modalities that each item has.
        dataset: has ``columns`` and :data:`STANDARD_COLUMNS`. Those that it lacks are left out, and so are standard columns that
            are null in all rows.
        rows: row numbers of the items.
        columns: columns to copy.
    """
    wanted = [name for name in dict.fromkeys([*columns, *STANDARD_COLUMNS]) if name in dataset.columns]
    known = dataset.table(["id", *wanted], rows)
    wanted = [name for name in wanted if name in columns or known.column(name).null_count < known.num_rows]
    place = {id_: i for i, id_ in enumerate(known.column("id").to_pylist())}
    known = known.take(pa.array([place[id_] for id_ in ids], pa.int64()))
    made: dict[str, pa.Array] = {"id": pa.array(ids, pa.string())}
    for i, label in enumerate(labels if len(ids) else ()):
        made[f"target.{label}"] = pa.array(targets_NL[:, i].astype(np.float32), pa.float32(), mask=np.isnan(targets_NL[:, i]))
        made[f"probability.{label}"] = pa.array(probabilities_NL[:, i].astype(np.float32))
    made["presence"] = pa.array(present, pa.string())
    return pa.table(made | {name: known.column(name) for name in wanted if name not in made})


def dataset_weights(
    dataset: Dataset, targets_NL: NDArray[np.floating], *, ids: Sequence[str] | None = None, rows: Rows | None = None
) -> SamplingWeights:
    """Return how many items each item of a dataset represents, from its columns ``inclusion_probability`` and ``weight``.

    Args:
        dataset: may have these columns; a column that is null in all of the items is ignored.
        targets_NL: targets of the N items, NaN where unknown.
        ids: ids of the items, in the order of the targets (default: those of the rows).
        rows: row numbers that hold the items (default: all rows).

    Raises:
        UserError: if an item with a known target has no inclusion probability in (0, 1], or a weight is not positive.
    """
    wanted = [name for name in SAMPLING.names if name in dataset.columns]
    if not wanted:
        return SamplingWeights()
    table = dataset.table(["id", *wanted], rows)
    if ids is not None:
        place = {id_: i for i, id_ in enumerate(table.column("id").to_pylist())}
        table = table.take(pa.array([place[id_] for id_ in ids], pa.int64()))
    stated = [name for name in wanted if table.column(name).null_count < table.num_rows]
    try:
        return read_sampling_weights(table.select(["id", *stated]), np.asarray(targets_NL, np.float64))
    except UserError as error:
        raise UserError(*(f"{dataset.path}: {line.removeprefix('predictions: ')}" for line in error.lines)) from None


def calibration_groups(by: str | None, ids: Sequence[str], presence: Sequence[str], dataset: Dataset) -> list[str | None] | None:
    """Return the group by which each item is calibrated.

    Args:
        by: a column of the dataset, ``presence``, or ``None``.
        ids: ids of the items.
        presence: modalities that each item has.
        dataset: has the column; if it does not, all items are calibrated by the pooled calibrator.

    Returns:
        A group name for each item; ``None`` without groups.
    """
    if by is None or by not in ("presence", *dataset.columns):
        return None
    if by == "presence":
        return list(presence)
    table = dataset.table(["id", by])
    values = dict(zip(table.column("id").to_pylist(), table.column(by).to_pylist(), strict=True))
    return [None if values[id_] is None else str(values[id_]) for id_ in ids]
