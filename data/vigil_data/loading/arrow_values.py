"""Python values of stored columns: those of ``to_pylist``, without an object of Arrow for each list and each number."""

from itertools import pairwise
from typing import Any

import pyarrow as pa


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column, ``None`` for null."""
    return [value for chunk in column.chunks for value in _values(chunk)]


def _values(array: pa.Array) -> list[Any]:
    if not len(array):
        return []
    if pa.types.is_list(array.type):
        ends = array.offsets.to_numpy().tolist()
        flat = _values(array.values.slice(ends[0], ends[-1] - ends[0]))
        found: list[Any] = [flat[start - ends[0] : end - ends[0]] for start, end in pairwise(ends)]
    elif pa.types.is_floating(array.type):
        found = array.to_numpy(zero_copy_only=False).tolist()
    else:
        nested: list[Any] = array.to_pylist()
        return nested
    if array.null_count:
        return [value if valid else None for value, valid in zip(found, array.is_valid().to_pylist(), strict=True)]
    return found
