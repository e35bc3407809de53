"""Assignment of units and of blocks of time to arms, which a router and the analysis compute alike.

A unit's place is the first 8 bytes of SHA-256 of ``SALT:UNIT`` (UTF-8) as a big-endian number, divided by 2**64; the challenger
has the units whose place is less than its share. Pairs of blocks of a switchback count from 1970-01-01 UTC; the first block of
pair ``P`` has the challenger where the place of ``SALT:P`` is less than a half, and else the second block.

Example:
    >>> "challenger" if unit_place("scam-2", author) < 0.5 else "champion"
"""

from hashlib import sha256
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MICROSECONDS_PER_MINUTE = 60_000_000


class Blocks(NamedTuple):
    """Places of N moments in a switchback.

    Attributes:
        pairs_N: number of the pair of blocks, int64.
        challenger_N: whether the challenger decides.
        minutes_N: minutes since the start of the block.
    """

    pairs_N: NDArray[np.int64]
    challenger_N: NDArray[np.bool_]
    minutes_N: Floats


def unit_place(salt: str, unit: str) -> float:
    """Return the place of a unit in [0, 1), uniform over units and independent between salts."""
    return int.from_bytes(sha256(f"{salt}:{unit}".encode()).digest()[:8], "big") / 2**64


def unit_places(salt: str, units: pa.Array) -> Floats:
    """Return the place of each unit, NaN for null.

    Args:
        salt: of the split.
        units: text, ``[N]``.
    """
    encoded = units.dictionary_encode()
    places = np.array([unit_place(salt, unit) for unit in encoded.dictionary.to_pylist()] + [np.nan])
    return np.asarray(places[encoded.indices.fill_null(len(places) - 1).to_numpy(zero_copy_only=False)])


def switchback_blocks(salt: str, block_minutes: int, microseconds_N: NDArray[np.int64]) -> Blocks:
    """Return pair and arm of each moment.

    Args:
        salt: fixes the random order within each pair.
        block_minutes: length of a block.
        microseconds_N: since 1970-01-01 UTC.
    """
    length = block_minutes * MICROSECONDS_PER_MINUTE
    block, within = np.divmod(microseconds_N, length)
    pairs, second = np.divmod(block, 2)
    unique, inverse = np.unique(pairs, return_inverse=True)
    first_N = np.array([unit_place(salt, str(pair)) < 0.5 for pair in unique.tolist()], bool)[inverse]
    return Blocks(pairs, first_N == (second == 0), within / MICROSECONDS_PER_MINUTE)
