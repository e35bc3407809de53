"""A predictions table from a model's scores and a dataset's columns, whether a run or a bundle scored; torch is not needed."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.loading.sampler import Rows

ALWAYS = ("author", "language", "market", "content_type", "source")
"""Columns that a predictions table has whenever the dataset does: policies, comparisons and clusters read them."""


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
    """Put a predictions table together, whatever model made the probabilities.

    Args:
        ids: of the N items, each among ``rows``.
        labels: L labels.
        targets_NL: NaN for unknown.
        probabilities_NL: calibrated.
        present: of each item, the modalities that it has.
        dataset: where ``columns`` and :data:`ALWAYS` are; one that it lacks is left out,
            and one of the latter that is null in all rows.
        rows: row numbers that hold the items.
        columns: to be taken over.
    """
    wanted = [name for name in dict.fromkeys([*columns, *ALWAYS]) if name in dataset.columns]
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


def groups_of(by: str | None, ids: Sequence[str], presence: Sequence[str], dataset: Dataset) -> list[str | None] | None:
    """The value by which each item is calibrated.

    Args:
        by: ``presence``, a column of the dataset, or ``None`` for no groups.
        ids: of the items.
        presence: of the items.
        dataset: holds the column; where it does not, all items are calibrated by the pooled calibrator.

    Returns:
        A value as text for each item; ``None`` without groups.
    """
    if by is None or by not in ("presence", *dataset.columns):
        return None
    if by == "presence":
        return list(presence)
    table = dataset.table(["id", by])
    values = dict(zip(table.column("id").to_pylist(), table.column(by).to_pylist(), strict=True))
    return [None if values[id_] is None else str(values[id_]) for id_ in ids]
