"""Weights of a table whose labelled items are not a random sample: how many items of traffic each row represents.

Two optional columns of a predictions table carry the sampling design (Horvitz and Thompson 1952):

- ``inclusion_probability``: probability with which the row was chosen to be labelled, in (0, 1]; its targets count
  ``1 / p`` times.
- ``weight``: number of items that the row represents, if the rows themselves are a sample of the traffic.

Where both are given, targets count ``weight / inclusion_probability`` times.

Example:
    >>> weights = read_sampling_weights(pa.table({"inclusion_probability": [1.0, 0.1]}), np.array([[1.0], [0.0]]))
    >>> weights.label_N
    array([ 1., 10.])
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.items import INCLUSION_PROBABILITY as INCLUSION_PROBABILITY
from vigil_data.items import WEIGHT as WEIGHT
from vigil_evaluation.metrics import Floats


@dataclass(frozen=True, slots=True, eq=False)
class SamplingWeights:
    """Weights of the rows of a table; ``None`` where all rows count the same.

    Attributes:
        label_N: number of items that a row's known targets represent, ``[N]``; 0 where the row was not labelled and the design
            does not say with which probability it would have been.
        item_N: number of items that a row represents in shares of traffic, such as volumes of actions, ``[N]``. If every row of
            a table with inclusion probabilities has a known target, the table is the labelled sample, and rows count as their
            targets do; otherwise the table is the traffic, and each row counts ``weight`` times, or once.
    """

    label_N: Floats | None = None
    item_N: Floats | None = None

    @property
    def inclusion_N(self) -> Floats | None:
        """Probability with which each row was chosen to be labelled, NaN where none is stated, ``[N]``; ``None`` if none is."""
        if self.label_N is None or (self.item_N is not None and np.array_equal(self.item_N, self.label_N)):
            return None
        above = 1.0 if self.item_N is None else self.item_N
        with np.errstate(divide="ignore"):
            return np.where(self.label_N > 0, above / self.label_N, np.nan)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "SamplingWeights":
        """Return the weights of the selected rows."""
        parts = [None if weights_N is None else weights_N[rows] for weights_N in (self.label_N, self.item_N)]
        return SamplingWeights(*parts)


def read_sampling_weights(table: pa.Table, targets_NL: Floats) -> SamplingWeights:
    """Read the columns ``inclusion_probability`` and ``weight`` of a predictions table; equal weights without either.

    Args:
        table: see :mod:`vigil_evaluation.predictions`.
        targets_NL: its targets, NaN for unknown.

    Raises:
        UserError: if a weight is missing, not numeric or not positive, or if a row with a known target has no inclusion
            probability in (0, 1].
    """
    labelled_N: NDArray[np.bool_] = np.asarray(~np.isnan(targets_NL).all(axis=1))
    problems: list[str] = []
    weight_N = _column(table, WEIGHT, np.ones(len(targets_NL), np.bool_), np.inf, problems)
    probability_N = _column(table, INCLUSION_PROBABILITY, labelled_N, 1.0, problems)
    if problems:
        raise UserError(*problems)
    if probability_N is None:
        return SamplingWeights(weight_N, weight_N)
    label_N = (1.0 if weight_N is None else weight_N) * np.nan_to_num(1 / probability_N)
    return SamplingWeights(label_N, label_N if labelled_N.all() else weight_N)


def _column(table: pa.Table, name: str, required_N: NDArray[np.bool_], most: float, problems: list[str]) -> Floats | None:
    """Return a column of positive numbers up to ``most``, NaN for null; ``None`` if the table lacks it."""
    if name not in table.column_names:
        return None
    column = table.column(name)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        problems.append(f"predictions: column {name} is not numeric")
        return None
    values_N = np.asarray(column.cast(pa.float64()).fill_null(np.nan).to_numpy(), np.float64)
    allowed_N = (values_N > 0) & (values_N <= most) & np.isfinite(values_N)
    wrong_N = ~allowed_N & (required_N | ~np.isnan(values_N))
    if wrong_N.any():
        row = int(np.flatnonzero(wrong_N)[0])
        allowed = f"in (0, {most:g}]" if np.isfinite(most) else "positive and finite"
        where = "" if required_N.all() else " of rows with a known target"
        first = "null" if np.isnan(values_N[row]) else f"{values_N[row]:g}"
        problems.append(
            f"predictions: column {name} has {int(wrong_N.sum())} values{where} that are not {allowed}, "
            f"the first {first} in row {row + 1}"
        )
    return values_N
