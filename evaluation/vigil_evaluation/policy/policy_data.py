"""Read a predictions table into the arrays that policies are compiled and measured on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.presence import PRESENCE
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.metrics import Floats
from vigil_evaluation.predictions import prediction_arrays
from vigil_evaluation.sampling_weights import SamplingWeights, read_sampling_weights
from vigil_evaluation.slices.grouping import TableColumns, resampling_units

MARKET = "market"


@dataclass(frozen=True, slots=True)
class CategoricalColumn:
    """A column of plain values as integer codes.

    Attributes:
        values: distinct values, the most frequent first, without null.
        codes_N: index of each item's value; -1 for null.
    """

    values: tuple[str, ...]
    codes_N: NDArray[np.int32]

    def texts(self) -> list[str | None]:
        """Return the value of each item."""
        named = [*self.values, None]
        return [named[code] for code in self.codes_N.tolist()]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Items with probabilities and targets.

    Attributes:
        labels: names of the columns.
        probabilities_NL: calibrated, float32.
        positive_NL: whether the target is known and at least 0.5.
        negative_NL: whether the target is known and less than 0.5.
        columns: columns of the policy by name, and ``presence`` and ``market`` if the table has them.
        units_N: unit of each item, such as its author; ``None`` if items are independent.
        weights: number of items that each row represents.
    """

    labels: tuple[str, ...]
    probabilities_NL: NDArray[np.float32]
    positive_NL: NDArray[np.bool_]
    negative_NL: NDArray[np.bool_]
    columns: Mapping[str, CategoricalColumn]
    units_N: NDArray[np.int32] | None
    weights: SamplingWeights = SamplingWeights()  # noqa: RUF009  it is frozen

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.probabilities_NL)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Traffic":
        """Return the selected items."""
        return replace(
            self,
            probabilities_NL=self.probabilities_NL[rows],
            positive_NL=self.positive_NL[rows],
            negative_NL=self.negative_NL[rows],
            columns={name: CategoricalColumn(column.values, column.codes_N[rows]) for name, column in self.columns.items()},
            units_N=None if self.units_N is None else self.units_N[rows],
            weights=self.weights.take(rows),
        )

    def in_market(self, market: str | None, named: Sequence[str]) -> NDArray[np.bool_]:
        """Return which items are in a market, or with ``None`` in any market that is not ``named``; ``[N]``."""
        if MARKET not in self.columns:
            return np.full(self.items, market is None)
        column = self.columns[MARKET]
        if market is not None:
            return np.asarray(column.codes_N == (column.values.index(market) if market in column.values else -2))
        others = [place for place, value in enumerate(column.values) if value in named]
        return ~np.isin(column.codes_N, others)


def read_traffic(
    table: pa.Table, labels: Sequence[str], columns: Sequence[str] = (), cluster: str | None = None, lenient: bool = False
) -> Traffic:
    """Read a predictions table.

    Args:
        table: see :mod:`vigil_evaluation.predictions`.
        labels: labels to read.
        columns: columns that the policy uses.
        cluster: column of the items that belong together.
        lenient: ignore columns that the table lacks.

    Raises:
        UserError: a line for each column that is absent or cannot be used.
    """
    table_columns = TableColumns(table)
    _check(table_columns, columns, cluster, lenient=lenient)
    arrays = prediction_arrays(table, labels)
    weights = read_sampling_weights(table, arrays[0])
    return _traffic(table_columns, labels, arrays, columns, units_N=resampling_units(table_columns, cluster), weights=weights)


def evaluation_traffic(data: EvaluationData, labels: Sequence[str], columns: Sequence[str]) -> Traffic:
    """Return the items of an evaluation; see :func:`read_traffic`. Columns that the table lacks are ignored."""
    _check(data.columns, columns, None, lenient=True)
    if set(labels) <= set(data.labels):
        places = [data.labels.index(label) for label in labels]
        arrays = data.targets_NL[:, places], data.probabilities_NL[:, places]
    else:
        arrays = prediction_arrays(data.table, labels)
    return _traffic(data.columns, labels, arrays, columns, units_N=data.resampling.clusters, weights=data.weights)


def _check(table_columns: TableColumns, columns: Sequence[str], cluster: str | None, *, lenient: bool) -> None:
    problems = []
    for name in dict.fromkeys([*columns, *([cluster] if cluster is not None else [])]):
        if name not in table_columns:
            use = "which the policy names" if name in columns else "by which items belong together (cluster)"
            problems += [] if lenient else [f"predictions: column {name}, {use}, is absent"]
        elif not table_columns.groupable(name):
            kind = table_columns.table.column(name).type
            problems.append(f"predictions: column {name} has type {kind}; a policy needs one plain value per item")
    if problems:
        raise UserError(*problems)


def _traffic(
    table_columns: TableColumns,
    labels: Sequence[str],
    arrays: tuple[Floats, Floats],
    columns: Sequence[str],
    *,
    units_N: NDArray[np.int32] | None,
    weights: SamplingWeights,
) -> Traffic:
    targets_NL, probabilities_NL = arrays
    read = [name for name in dict.fromkeys([PRESENCE, MARKET, *columns]) if table_columns.groupable(name)]
    with np.errstate(invalid="ignore"):
        return Traffic(
            tuple(labels),
            probabilities_NL.astype(np.float32),
            targets_NL >= 0.5,
            targets_NL < 0.5,
            {name: _column(table_columns, name) for name in read},
            units_N,
            weights,
        )


def _column(columns: TableColumns, name: str) -> CategoricalColumn:
    texts, codes_N = columns[name].texts(), columns[name].codes_N
    place = np.full(len(texts), -1, np.int32)
    kept = [i for i, value in enumerate(texts) if value is not None]
    place[kept] = np.arange(len(kept), dtype=np.int32)
    return CategoricalColumn(tuple(text for text in texts if text is not None), place[codes_N])
