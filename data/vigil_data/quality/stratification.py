"""Assignment of groups to splits: sizes as wanted, and labels in proportion.

Iterative stratification (Sechidis et al. 2011, "On the stratification of multi-label data") over groups instead of rows, and over
what is known of each label: positives and negatives are two classes, and unknown targets none. The rarest class is spread first.

Example:
    >>> assign(np.array([0, 1, 2, 2]), np.zeros((4, 0)), [0.5, 0.5], seed=0).tolist()
    [1, 1, 0, 0]
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array


def assign(group_N: NDArray[np.int64], class_NC: NDArray[np.generic], fractions: Sequence[float], seed: int) -> NDArray[np.int64]:
    """Return the split of each row.

    All rows of a group are in one split. A split's size differs from the wanted one by less than the largest group: a group goes
    only where it fits, and if it fits nowhere, where most is missing.

    Args:
        group_N: group of each row, from 0.
        class_NC: whether each row is in each class to spread.
        fractions: wanted share of each split; their sum is 1.
        seed: of the order of groups of equal size, and of ties.
    """
    groups = int(group_N.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    size_G = np.bincount(group_N, minlength=groups)
    membership = csr_array((np.ones(len(group_N)), (group_N, np.arange(len(group_N)))), shape=(groups, len(group_N)))
    count_GC = csr_array(membership @ csr_array(class_NC.astype(np.float64)))
    order = np.lexsort((rng.permutation(groups), -size_G))
    fraction_S = np.asarray(fractions, np.float64)
    state = _State(size_G, count_GC, _whole(fraction_S * len(group_N), len(group_N)), fraction_S, rng)
    rank_G = np.empty(groups, np.int64)
    rank_G[order] = np.arange(groups)
    columns = csc_array(count_GC)
    members = [columns.indices[columns.indptr[c] : columns.indptr[c + 1]] for c in range(columns.shape[1])]
    members = [found[np.argsort(rank_G[found])] for found in members]
    waiting = set(range(len(members)))
    while waiting:
        open_members = {c: members[c][state.split_G[members[c]] < 0] for c in waiting}
        rarest = min(waiting, key=lambda c: (len(open_members[c]), c))
        waiting.remove(rarest)
        for group in open_members[rarest].tolist():
            state.place(group, rarest)
    for group in order[state.split_G[order] < 0].tolist():
        state.place(group, None)
    return state.split_G[group_N]


def _whole(wanted_S: NDArray[np.float64], total: int) -> list[int]:
    """Return whole numbers with the given total, by largest remainder."""
    floor_S = np.floor(wanted_S).astype(np.int64)
    floor_S[np.argsort(floor_S - wanted_S, kind="stable")[: total - int(floor_S.sum())]] += 1
    return [int(count) for count in floor_S]


class _State:
    """Groups placed so far, and what is missing in each split."""

    def __init__(
        self,
        size_G: NDArray[np.int64],
        count_GC: csr_array,
        missing: list[int],
        fraction_S: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> None:
        self.split_G = np.full(len(size_G), -1, np.int64)
        self._sizes = size_G.tolist()
        self._starts, self._classes, self._counts = (part.tolist() for part in (count_GC.indptr, count_GC.indices, count_GC.data))
        self._missing = missing
        totals = np.asarray(count_GC.sum(axis=0)).ravel()
        self._wanted = [(totals * fraction).tolist() for fraction in fraction_S]
        self._ties = rng.random(len(size_G)).tolist()
        self._used = [split for split, fraction in enumerate(fraction_S) if fraction > 0]

    def place(self, group: int, of_class: int | None) -> None:
        """Put a group where most of a class is missing, or most rows, among the splits in which it fits."""
        size, missing = self._sizes[group], self._missing
        fitting = [split for split in self._used if missing[split] >= size]
        if not fitting:
            most = max(missing[split] for split in self._used)
            fitting = [split for split in self._used if missing[split] == most]
        first = int(self._ties[group] * len(self._used))
        count = len(self._missing)
        split = max(
            fitting,
            key=lambda s: (0 if of_class is None else self._wanted[s][of_class], missing[s], (s + first) % count),
        )
        self.split_G[group] = split
        missing[split] -= size
        wanted = self._wanted[split]
        for place in range(self._starts[group], self._starts[group + 1]):
            wanted[self._classes[place]] -= self._counts[place]
