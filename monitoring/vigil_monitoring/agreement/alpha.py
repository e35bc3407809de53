"""Krippendorff's alpha: agreement of any number of reviewers beyond chance, where not everybody answers everything."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.stats.intervals import Interval, interval

Level = Literal["nominal", "ordinal", "interval"]

BLOCK_CELLS = 20_000_000
"""Most numbers of bootstrap replicates in memory at once."""


@dataclass(frozen=True, slots=True)
class Alpha:
    """Krippendorff's alpha of a label.

    Attributes:
        value: 1 for perfect agreement, 0 for agreement by chance, negative for less; ``None`` without two different answers.
        interval: by bootstrap over items; ``None`` where alpha is undefined.
        level: how far two answers differ.
        items: items with two or more answers: the others say nothing about agreement.
        answers: answers on these items.
    """

    value: float | None
    interval: Interval | None
    level: Level
    items: int
    answers: int


def krippendorff_alpha(
    item_A: NDArray[np.integer],
    value_A: Floats,
    level: Level = "nominal",
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Alpha:
    """Return Krippendorff's alpha with a bootstrap interval over items.

    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), part C for any number of observers and missing answers,
    part D for the differences of ordinal and interval data. Alpha is one minus the ratio of observed to expected disagreement.

    Args:
        item_A: item of each answer, any whole numbers, ``[A]``.
        value_A: the answers, ``[A]``; NaN ("cannot tell") is no answer.
        level: ``nominal``: answers are equal or not; ``ordinal``: ranks apart; ``interval``: the squared difference.
        replicates: bootstrap replicates; 0 for no interval.
        confidence: of the interval.
        seed: random seed of the bootstrap.
    """
    there_A = ~np.isnan(value_A)
    values_V, code_A = np.unique(value_A[there_A], return_inverse=True)
    unit_A = np.unique(item_A[there_A], return_inverse=True)[1]
    counts_NV = np.zeros((int(unit_A.max(initial=-1)) + 1, len(values_V)))
    np.add.at(counts_NV, (unit_A, code_A), 1)
    counts_NV = counts_NV[counts_NV.sum(1) >= 2]
    items, answers = len(counts_NV), int(counts_NV.sum())
    value = float(_alpha(np.ones((1, items)), counts_NV, values_V, level)[0])
    if np.isnan(value):
        return Alpha(None, None, level, items, answers)
    random, samples = np.random.default_rng(seed), []
    block = max(BLOCK_CELLS // max(items, len(values_V) ** 2), 1)
    for first in range(0, replicates, block):
        weights_RN = random.multinomial(items, np.full(items, 1 / items), size=min(block, replicates - first))
        samples.append(_alpha(weights_RN.astype(np.float64), counts_NV, values_V, level))
    drawn_R = np.concatenate(samples) if samples else np.empty(0)
    return Alpha(value, interval(value, drawn_R, confidence) if samples else None, level, items, answers)


def _alpha(weights_RN: Floats, counts_NV: Floats, values_V: Floats, level: Level) -> Floats:
    """Return alpha for each weighting of the items, ``[R]``; NaN where all answers are equal."""
    size = len(values_V)
    pairable_N1 = counts_NV.sum(1, keepdims=True)
    # Pairs of values within an item, an answer not with itself, over the number of its answers less one.
    scaled_NV = counts_NV / np.maximum(pairable_N1 - 1, 1)
    observed_RVV = np.empty((len(weights_RN), size, size))
    for place in range(size):
        pairs_NV = scaled_NV[:, place : place + 1] * counts_NV
        pairs_NV[:, place] -= scaled_NV[:, place]
        observed_RVV[:, place] = weights_RN @ pairs_NV
    marginal_RV = observed_RVV.sum(2)
    total_R = marginal_RV.sum(1)
    difference = _difference(marginal_RV, values_V, level)
    disagreement_R = (observed_RVV * difference).sum((1, 2))
    expected_R = (marginal_RV[:, :, None] * marginal_RV[:, None, :] * difference).sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected_R > 0, 1 - (total_R - 1) * disagreement_R / expected_R, np.nan)


def _difference(marginal_RV: Floats, values_V: Floats, level: Level) -> Floats:
    """Return the squared difference of two values, ``[V, V]``, or ``[R, V, V]`` where it depends on how frequent values are."""
    if level == "nominal":
        return 1 - np.eye(len(values_V))
    if level == "interval":
        return (values_V[:, None] - values_V[None, :]) ** 2
    # Ranks from c to d, half of the answers at each end: differences of the mid-ranks.
    middle_RV = np.cumsum(marginal_RV, axis=1) - marginal_RV / 2
    return (middle_RV[:, :, None] - middle_RV[:, None, :]) ** 2
