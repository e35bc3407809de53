"""Slices of traffic by its columns: the same names for rows of the traffic and rows of a queue."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import UserError

Codes = NDArray[np.int64]

NONE = "(none)"
"""Value of rows where the column is null."""

MAX_SLICES = 1000
"""Most values of a column to slice by."""

TIME_SLICES: Mapping[str, str] = {"day": "%Y-%m-%d", "week": "%G-W%V", "month": "%Y-%m"}
"""Slices of the column ``time``, UTC: ``2026-11-29``, ``2026-W48`` (ISO 8601), ``2026-11``."""

SLICE_COLUMNS = ("content_type", "language", "market", "presence", "action", "decisive", "review", "bundle", "policy")
"""Columns that both traffic and queues have, to slice by; ``decisive`` is the label of the first reason."""


def check_slices(names: Sequence[str], option: str = "--by") -> tuple[str, ...]:
    """Return the names, each once.

    Raises:
        UserError: for a name that no queue has.
    """
    known = (*TIME_SLICES, *SLICE_COLUMNS)
    for name in names:
        if name not in known:
            raise UserError(f"{option} {name}: slices are by {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def source_column(name: str) -> str:
    """Return the column of the traffic from which a slice follows."""
    return "time" if name in TIME_SLICES else "reasons" if name == "decisive" else name


def slice_values(name: str, column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the slice of each row as text, without nulls.

    Args:
        name: name of the slices.
        column: ``time`` for slices of time, else the column itself.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if name in TIME_SLICES:
        days = column.cast(pa.timestamp("us"), safe=False).cast(pa.date32(), safe=False)
        unique = pc.unique(days)
        texts = pa.array([NONE if day is None else day.strftime(TIME_SLICES[name]) for day in unique.to_pylist()])
        return texts.take(pc.index_in(days, unique))
    if pa.types.is_boolean(column.type):
        column = pc.if_else(column, "yes", "no")
    return pc.fill_null(column.cast(pa.string()), NONE)


class SliceCodes:
    """Numbers of the slices of one column, in the order in which they first occur."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def values(self) -> list[str]:
        """Slices by their number."""
        return list(self._numbers)

    def encode(self, values: pa.Array) -> Codes:
        """Return the number of each row's slice; new slices get the next numbers.

        Raises:
            UserError: for more than :data:`MAX_SLICES` of them.
        """
        encoded = values.dictionary_encode()
        given = [self._numbers.setdefault(value, len(self._numbers)) for value in encoded.dictionary.to_pylist()]
        if len(self._numbers) > MAX_SLICES:
            raise UserError(f"{self.name} has more than {MAX_SLICES:,} values; slice by a column with fewer")
        numbers: Codes = np.asarray(given, np.int64)
        found_N: Codes = numbers[encoded.indices.to_numpy(zero_copy_only=False)]
        return found_N

    def known(self, values: pa.Array) -> Codes:
        """Return the number of each row's slice; -1 for one that :meth:`encode` did not meet."""
        found: Codes = np.asarray([self._numbers.get(value, -1) for value in values.to_pylist()], np.int64)
        return found


class Slice(NamedTuple):
    """One slice.

    Attributes:
        by: name of the slices; empty for all traffic.
        value: which of them.
    """

    by: str
    value: str
