"""Keys of rows: 64-bit hashes of text columns, computed for a batch at once.

The draw orders rows by their keys. A key depends on the seed, the row's id and its time, and on nothing else, so the order in
which rows are stored has no effect.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WORD = 8


def mix(value: Keys) -> Keys:
    """Return the output function of SplitMix64 (Steele, Lea, Flood 2014, figure 17): all bits depend on all bits."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def text_keys(column: pa.Array, seed: int) -> Keys:
    """Return a key of each text, uint64 ``[N]``; equal texts have equal keys, and null has one too.

    Args:
        column: strings, without an offset or with one.
        seed: another seed gives unrelated keys.
    """
    rows = len(column)
    _, offsets, data = column.buffers()
    if rows == 0 or data is None or data.size == 0:
        start_N = length_N = np.zeros(rows, np.int64)
        words = np.zeros(1, np.uint64)
    else:
        offset_N = np.frombuffer(offsets, np.int32, rows + 1, offset=4 * column.offset).astype(np.int64)
        start_N, length_N = offset_N[:-1] - offset_N[0], np.diff(offset_N)
        text = bytes(memoryview(data)[offset_N[0] : offset_N[-1]]) + bytes(_WORD)
        # Every eight bytes that begin at any byte, as one integer each, without a copy.
        words = np.ndarray((len(text) - _WORD + 1,), "<u8", text, strides=(1,))
    if column.null_count:
        length_N = np.where(column.is_valid().to_numpy(zero_copy_only=False), length_N, 0)
    key_N = mix(np.full(rows, np.uint64(seed % 2**64)) + _GOLDEN * (length_N.astype(np.uint64) + np.uint64(1)))
    rest_N = np.arange(rows)
    at = 0
    while len(rest_N := rest_N[length_N[rest_N] > at]):
        left_N = np.minimum(length_N[rest_N] - at, _WORD).astype(np.uint64)
        unused_N = (np.uint64(_WORD) - left_N) * np.uint64(8)
        word_N = words[start_N[rest_N] + at] << unused_N  # bytes behind the text fall out
        key_N[rest_N] = mix((key_N[rest_N] ^ word_N) + _GOLDEN)
        at += _WORD
    return key_N


def joined_keys(parts: Sequence[Keys]) -> Keys:
    """Return one key of several; their order counts."""
    key = np.zeros_like(parts[0])
    for part in parts:
        key = mix((key ^ part) + _GOLDEN)
    return key


def row_keys(batch: pa.RecordBatch, seed: int, *, timed: bool) -> Keys:
    """Return the key of each row.

    Args:
        batch: rows with ``id``, and ``time`` if ``timed``.
        seed: seed of the draw.
        timed: whether the time is a part of the key: an id may be decided several times.
    """
    ids = text_keys(batch.column("id"), seed)
    if not timed:
        return ids
    times = batch.column("time").cast(pa.int64()).fill_null(-1).to_numpy().view(np.uint64)
    return joined_keys([ids, times])
