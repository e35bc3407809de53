"""Search for near-duplicates among fingerprints of any modality: clusters, and matches between two sides.

Example:
    >>> prints = TextPrints.of(["See you at the harbour tonight!", "see you at the harbor tonight", "An unrelated sentence here"])
    >>> clusters(prints, 0.6).tolist()
    [0, 0, 1]
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vigil_data.quality.near.candidates import Pairs, Wanted


class Prints(Protocol):
    """Fingerprints of texts, images or audio files."""

    @property
    def code_S(self) -> NDArray[np.uint64]:
        """Digest of equal content; 0 for none."""

    def take(self, index: NDArray[np.int64]) -> Self:
        """Return some of them, in the given order."""

    def pairs(self, threshold: float, wanted: Wanted) -> Iterator[Pairs]:
        """Yield pairs of near-duplicates; some several times, but each only where ``wanted``."""


class Components:
    """Connected components of a graph to which edges are added.

    Attributes:
        label_N: component of each node, from 0; edges added since the last :meth:`merge` are not in it.
    """

    def __init__(self, nodes: int) -> None:
        self.label_N = np.arange(nodes)
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting = 0

    def differ(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the two nodes of each pair are in different components."""
        differ: NDArray[np.bool_] = self.label_N[left] != self.label_N[right]
        return differ

    def add(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """Add edges; they are merged when there are many."""
        self._pending.append((left, right))
        self._waiting += len(left)
        if self._waiting > 1024 + len(self.label_N) // 16:
            self.merge()

    def merge(self) -> None:
        """Merge the components that added edges connect."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not self._waiting:
            return
        ends = [self.label_N[np.concatenate(side)] for side in zip(*self._pending, strict=True)]
        count = int(self.label_N.max()) + 1
        graph = coo_array((np.ones(len(ends[0]), np.int8), (ends[0], ends[1])), shape=(count, count))
        self.label_N = connected_components(graph, directed=False)[1].astype(np.int64)[self.label_N]
        self._pending, self._waiting = [], 0


def clusters(prints: Prints, threshold: float) -> NDArray[np.int64]:
    """Return the cluster of each: connected near-duplicates, in the order of their first members.

    Clusters are numbered from 0; -1 is for what has no content.
    """
    code_S = prints.code_S
    label_S = np.full(len(code_S), -1, np.int64)
    present = np.flatnonzero(code_S)
    _, first, distinct = np.unique(code_S[present], return_index=True, return_inverse=True)
    components = Components(len(first))
    for left, right, _ in prints.take(present[first]).pairs(threshold, components.differ):
        components.add(left, right)
    components.merge()
    found = components.label_N[distinct]
    _, start, number = np.unique(found, return_index=True, return_inverse=True)
    label_S[present] = np.argsort(np.argsort(start))[number]
    return label_S


class Matches(NamedTuple):
    """For each fingerprint a match on the other side.

    Attributes:
        partner_S: its index; -1 for none.
        score_S: Jaccard index of texts, 1 for equal letters; differing bits of images or share of differing bits of audio, 0 for
            equal files.
        equal_S: whether the content is equal.
    """

    partner_S: NDArray[np.int64]
    score_S: NDArray[np.float64]
    equal_S: NDArray[np.bool_]


def matches(prints: Prints, side_S: NDArray[np.int64], threshold: float, *, equal_score: float, best: bool = False) -> Matches:
    """Find near-duplicates between two sides.

    Args:
        prints: the fingerprints of both sides.
        side_S: 0 or 1 for each.
        threshold: of the modality.
        equal_score: score of equal content.
        best: find the closest match of each (default: any, which is faster).
    """
    code_S = prints.code_S
    present = np.flatnonzero(code_S)
    keys = np.stack([code_S[present], side_S[present].astype(np.uint64)])
    kinds, first, kind_of = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    first, kind_of = present[first], kind_of.ravel()
    partner_K = np.full(len(first), -1, np.int64)
    score_K = np.full(len(first), np.nan)
    twins = np.flatnonzero((kinds[0, 1:] == kinds[0, :-1]) & (kinds[1, 1:] != kinds[1, :-1]))
    for mine, theirs in ((twins, twins + 1), (twins + 1, twins)):
        partner_K[mine], score_K[mine] = theirs, equal_score
    equal_K = partner_K >= 0
    side_K = side_S[first]

    def wanted(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        open_pair = ~(equal_K[left] & equal_K[right]) if best else (partner_K[left] < 0) | (partner_K[right] < 0)
        across: NDArray[np.bool_] = (side_K[left] != side_K[right]) & open_pair
        return across

    for left, right, score in prints.take(first).pairs(threshold, wanted):
        closest_last = np.argsort(-np.abs(score - equal_score), kind="stable")
        for one, other in ((left, right), (right, left)):
            mine, theirs, near = one[closest_last], other[closest_last], score[closest_last]
            closer = (partner_K[mine] < 0) | (np.abs(near - equal_score) < np.abs(score_K[mine] - equal_score))
            closer &= ~equal_K[mine]
            partner_K[mine[closer]], score_K[mine[closer]] = theirs[closer], near[closer]
    partner_S, score_S = np.full(len(code_S), -1, np.int64), np.full(len(code_S), np.nan)
    equal_S = np.zeros(len(code_S), np.bool_)
    partner_S[present] = np.where(partner_K >= 0, first[partner_K], -1)[kind_of]
    score_S[present] = score_K[kind_of]
    equal_S[present] = equal_K[kind_of]
    return Matches(partner_S, score_S, equal_S)
