"""Pairs of candidates from buckets of equal keys, in blocks of bounded memory."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""First and second of each pair, and their similarity or distance."""

Wanted = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
"""Whether each pair is worth comparing: not if both are in one cluster already, or on one side of a comparison."""

BLOCK = 1 << 20
"""Pairs that are compared at once."""


def bucket_pairs(
    key_S: NDArray[np.generic], place_S: NDArray[np.int64], neighbours: int, wanted: Wanted
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs with equal keys.

    Args:
        key_S: key of each.
        place_S: order within a bucket, by similarity.
        neighbours: number of places up to which two of a bucket are compared.
        wanted: which pairs are yielded.
    """
    order = np.lexsort((place_S, key_S))
    ordered = key_S[order]
    end = np.searchsorted(ordered, ordered, side="right")
    left_in_bucket = end - np.arange(len(ordered))
    alive = np.flatnonzero(left_in_bucket > 1)
    for distance in range(1, neighbours + 1):
        alive = alive[left_in_bucket[alive] > distance]
        if not len(alive):
            return
        for first in range(0, len(alive), BLOCK):
            block = alive[first : first + BLOCK]
            left, right = order[block], order[block + distance]
            kept = wanted(left, right)
            if kept.any():
                yield left[kept], right[kept]
