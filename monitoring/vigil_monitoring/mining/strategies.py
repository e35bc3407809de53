"""Scores of decisions: how much a label is expected to teach. Non-negative, functions of the row alone, on arrays."""

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats

ACTED_FROM = 0.5
"""Highest probability from which a decision without an action counts as acted on."""

MIN_SIMILARITY = 0.5
"""Cosine similarity to a known error below which a decision is unrelated to it."""


def uncertainty(probability_NL: Floats) -> Floats:
    """Return the largest uncertainty ``4 p (1 - p)`` of any label, 1 at p = 0.5 (Lewis and Gale 1994, section 3).

    Args:
        probability_NL: probabilities, ``[N, L]``; NaN counts as sure.
    """
    p_NL = np.nan_to_num(probability_NL)
    return np.asarray((4 * p_NL * (1 - p_NL)).max(1, initial=0.0))


def relevance(probability_NL: Floats) -> Floats:
    """Return the largest probability of any label: what is likely to be positive is rare and teaches most about it.

    Relevance sampling: Lewis and Gale, "A Sequential Algorithm for Training Text Classifiers" (1994), section 3.

    Args:
        probability_NL: probabilities, ``[N, L]``; NaN counts as 0.
    """
    return np.asarray(np.nan_to_num(probability_NL).max(1, initial=0.0))


def expected_change(
    probability_NL: Floats, decisive_N: NDArray[np.int64], acted_N: NDArray[np.bool_], reach_N: Floats, minutes_N: Floats
) -> Floats:
    """Return the expected change of decisions by a review, times reach, over reviewers' minutes.

    A review changes the decision about an item that was acted on if the decisive label does not hold, with probability ``1 - p``;
    one that was not acted on, if any label holds, with at least the largest ``p``. Both are as good as the calibration.

    Args:
        probability_NL: probabilities, ``[N, L]``.
        decisive_N: index of the label that decided, ``[N]``.
        acted_N: whether an action was taken, ``[N]``.
        reach_N: views of each item, or 1, ``[N]``.
        minutes_N: reviewers' minutes that each item is expected to cost, positive, ``[N]``.
    """
    p_NL = np.nan_to_num(probability_NL)
    changed_N = np.where(acted_N, 1 - p_NL[np.arange(len(p_NL)), decisive_N], p_NL.max(1, initial=0.0))
    return np.asarray(changed_N * reach_N / minutes_N)


def similarity_to(embedding_ND: Floats, anchors_KD: Floats, least: float = MIN_SIMILARITY) -> Floats:
    """Return how near each item is to its nearest anchor: 0 at a cosine similarity of ``least`` and below, 1 for a copy.

    Args:
        embedding_ND: unit vectors, ``[N, D]``; zeros for items without an embedding.
        anchors_KD: unit vectors of known errors, ``[K, D]``.
        least: cosine similarity of unrelated items.
    """
    if not len(anchors_KD):
        return np.zeros(len(embedding_ND))
    return np.asarray(np.clip(((embedding_ND @ anchors_KD.T).max(1) - least) / (1 - least), 0.0, 1.0))


def cluster_lift(recent_C: NDArray[np.int64], known_C: NDArray[np.int64]) -> Floats:
    """Return how much more frequent each cluster is than among known items, less one; 0 for clusters that are not.

    Frequencies are smoothed by one item in each cluster, so that a cluster without a known item has a finite lift.

    Args:
        recent_C: items of the traffic in each cluster, ``[C]``.
        known_C: known items in each, ``[C]``.
    """
    size = len(recent_C)
    recent, known = ((count_C + 1) / (count_C.sum() + size) for count_C in (recent_C, known_C))
    return np.asarray(np.maximum(recent / known - 1, 0.0))


def typicality(embedding_ND: Floats, neighbours_KD: Floats, nearest: int = 20) -> Floats:
    """Return one over the mean distance of each item to its nearest neighbours (Hacohen, Dekel and Weinshall 2022, equation 1).

    Args:
        embedding_ND: the items, ``[N, D]``.
        neighbours_KD: items of the same cluster, ``[K, D]``; the items themselves may be among them.
        nearest: number of neighbours, or all if there are fewer.
    """
    squared_NK = (embedding_ND**2).sum(1)[:, None] + (neighbours_KD**2).sum(1) - 2 * embedding_ND @ neighbours_KD.T
    distance_NK = np.sqrt(np.maximum(squared_NK, 0.0))
    kept = min(nearest + 1, distance_NK.shape[1])
    near_NK = np.sort(np.partition(distance_NK, kept - 1, axis=1)[:, :kept], axis=1)
    # An item that is among the neighbours is not its own.
    own_N = near_NK[:, 0] < 1e-6
    total_N = np.where(own_N, near_NK[:, 1:].sum(1), near_NK[:, : max(kept - 1, 1)].sum(1))
    return np.asarray(max(kept - 1, 1) / np.maximum(total_N, 1e-6))
