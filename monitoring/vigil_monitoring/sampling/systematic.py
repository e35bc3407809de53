"""Systematic sampling of rows in random order, with inclusion probabilities proportional to size and a fixed sample size.

Rows stand in the order of their keys, which is random, and each takes as much of a line as its size is. The points that divide
the line into ``n`` equal parts, moved by a random start, choose the rows on which they fall (Madow 1949; in random order: Goodman
and Kish 1950; Hartley and Rao 1962). Sizes are integers, so inclusion probabilities are exactly ``n · size / total``. In random
order the design has high entropy, so that the variance of Hájek (1964) and its approximations hold (Brewer, Donadio 2003; Tillé
and Haziza 2010).

Rows whose size is at least ``total / n`` are taken with certainty first.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Cut(NamedTuple):
    """Certain rows of a stratum.

    Attributes:
        certain: number of rows that are taken with certainty.
        size: the smallest size of these; 0 if there are none.
        points: number of rows drawn from the others.
        rest: total size of the others.
    """

    certain: int
    size: int
    points: int
    rest: int


def certainty_cut(largest: Sequence[int], total: int, rows: int, sample: int) -> Cut:
    """Return which rows of a stratum are certain.

    Args:
        largest: the largest sizes, descending, at least ``min(rows, sample)`` of them.
        total: total size of the stratum.
        rows: number of its rows.
        sample: rows to draw, at most ``rows``.
    """
    if sample >= rows:
        return Cut(rows, 1, 0, 0)
    certain, rest = 0, total
    while certain < sample and largest[certain] * (sample - certain) >= rest:
        rest -= largest[certain]
        certain += 1
    return Cut(certain, largest[certain - 1] if certain else 0, sample - certain, rest)


def random_start(cut: Cut, seed: int, stratum: str) -> int:
    """Return the start of a stratum's points, uniform among the integers below ``cut.rest``."""
    word = int.from_bytes(blake2b(f"{seed}\0{stratum}".encode(), digest_size=8).digest(), "big")
    return (word * cut.rest) >> 64


def points_from(cut: Cut, start: int) -> Ints:
    """Return the points that choose rows on the line of sizes, each in [0, ``cut.rest``)."""
    return np.array([(start + place * cut.rest) // cut.points for place in range(cut.points)], np.int64)


def expected_sizes(largest: Sequence[Ints], totals: Ints, budget: int) -> Floats:
    """Return the sample size that each stratum is due: its sum of ``min(1, c · size)``, with ``c`` such that all are the budget.

    Args:
        largest: of each stratum, its largest sizes.
        totals: total size of each stratum.
        budget: rows to draw in all, fewer than there are.
    """
    sizes = np.concatenate(largest)
    strata = np.repeat(np.arange(len(largest)), [len(of) for of in largest])
    order = np.argsort(-sizes, kind="stable")
    sizes, strata = sizes[order], strata[order]
    before = np.concatenate([[0], np.cumsum(sizes)])[: len(sizes)]
    total = int(totals.sum())
    place = np.arange(len(sizes))
    uncertain = sizes.astype(np.float64) * np.maximum(budget - place, 0) < total - before
    certain = int(np.argmax(uncertain)) if uncertain.any() else len(sizes)
    held = np.bincount(strata[:certain], sizes[:certain].astype(np.float64), len(totals))
    count = np.bincount(strata[:certain], minlength=len(totals))
    rest = total - int(sizes[:certain].sum())
    return count + (budget - certain) * (totals - held) / max(rest, 1)


def allocate(due: Floats, least: Ints, most: Ints, budget: int) -> Ints:
    """Round the sizes that strata are due, within limits, so that they add up to the budget.

    Args:
        due: sample size of each stratum, positive.
        least: smallest size of each.
        most: largest size of each.
        budget: their sum; from ``least.sum()`` to ``most.sum()``.
    """
    low, high = 0.0, (most / np.maximum(due, 1e-300)).max()
    for _ in range(200):  # the factor by which sizes within their limits add up to the budget
        factor = (low + high) / 2
        if np.clip(factor * due, least, most).sum() < budget:
            low = factor
        else:
            high = factor
    exact = np.clip(high * due, least, most)
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    missing = budget - int(sizes.sum())
    order = np.lexsort((np.arange(len(due)), sizes - exact))
    room = order[sizes[order] < most[order]]
    sizes[room[:missing]] += 1
    return np.asarray(sizes)
