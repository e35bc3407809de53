"""Pairs of binary codes within a Hamming distance, by multi-index hashing (Norouzi et al. 2012).

Codes are cut into chunks of 16 bits. If two codes differ in at most d bits, some chunk of theirs differs in at most d // chunks
bits; so it is enough to look up every chunk with up to that many of its bits flipped. No pair is missed.

Example:
    >>> pairs = hamming_pairs(np.array([[0, 0], [0, 1], [255, 255]], np.uint8), 1, lambda left, right: left < right)
    >>> [(left.tolist(), right.tolist()) for left, right, _ in pairs]
    [([0], [1])]
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vigil_data.quality.near.candidates import BLOCK, Pairs, Wanted

_CHUNK_BITS = 16


def distances(left_SB: NDArray[np.uint8], right_SB: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of differing bits of each pair of codes, uint8 ``[S, B]``."""
    counts: NDArray[np.int64] = np.bitwise_count(left_SB ^ right_SB).sum(axis=-1, dtype=np.int64)
    return counts


def hamming_pairs(code_SB: NDArray[np.uint8], most: int, wanted: Wanted) -> Iterator[Pairs]:
    """Yield pairs of codes that differ in at most ``most`` bits, with their distance; some several times.

    Args:
        code_SB: codes, uint8 ``[S, B]`` with an even number of bytes.
        most: largest distance.
        wanted: which pairs are compared, given as first and second with first < second.
    """
    chunks = np.ascontiguousarray(code_SB).view(np.uint16)
    flips = most // chunks.shape[1]
    masks = [sum(1 << bit for bit in bits) for count in range(flips + 1) for bits in combinations(range(_CHUNK_BITS), count)]
    for chunk in range(chunks.shape[1]):
        key = chunks[:, chunk].astype(np.int64)
        order = np.argsort(key, kind="stable")
        counts = np.bincount(key, minlength=1 << _CHUNK_BITS)
        starts = np.cumsum(counts) - counts
        for mask in masks:
            for left, right in _matches(key ^ mask, order, starts, counts):
                kept = wanted(left, right)
                one, other = left[kept], right[kept]
                distance = distances(code_SB[one], code_SB[other])
                near = distance <= most
                if near.any():
                    yield one[near], other[near], distance[near].astype(np.float64)


def _matches(
    key: NDArray[np.int64], order: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs of a code and a later one in the bucket of its key, in blocks."""
    found = counts[key]
    ends = np.cumsum(found)
    first = 0
    while first < len(key):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + BLOCK, side="right")))
        sizes = found[first:last]
        left = np.repeat(np.arange(first, last), sizes)
        within = np.arange(len(left)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        right = order[np.repeat(starts[key[first:last]], sizes) + within]
        later = right > left
        if later.any():
            yield left[later], right[later]
        first = last
