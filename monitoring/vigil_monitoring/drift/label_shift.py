"""Label shift: the prevalence that explains the probabilities of traffic, if nothing but the prevalence has changed.

Under label shift, positives and negatives look as they did, and only their proportion differs. Calibrated probabilities of the
reference then determine the distribution of probabilities within each class, and no reviews are needed. The assumption cannot be
proved by scores; how far the shifted distribution is from the observed one shows how wrong it is at least.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS = 60
"""Bisections of the interval of prevalences."""


class ClassHistograms(NamedTuple):
    """Distribution of the probabilities of the reference, in total and within each class.

    Attributes:
        share_B: share of the items in each bin.
        probability_B: mean probability in each bin.
        prevalence: mean probability.
    """

    share_B: Floats
    probability_B: Floats
    prevalence: float


def class_histograms(counts_B: Floats, sums_B: Floats) -> ClassHistograms | None:
    """Return the histograms of a calibrated label; ``None`` if it has no items, or no uncertainty at all."""
    items = counts_B.sum()
    if not items:
        return None
    prevalence = float(sums_B.sum() / items)
    if not 0 < prevalence < 1:
        return None
    return ClassHistograms(counts_B / items, np.where(counts_B > 0, sums_B / np.maximum(counts_B, 1), prevalence), prevalence)


def shifted_prevalence(reference: ClassHistograms, counts_TB: Floats) -> Floats:
    """Return the maximum-likelihood prevalence of each window under label shift, ``[T]``; NaN without items.

    It is the fixed point of the EM algorithm of Saerens, Latinne, Decaestecker (2002, "Adjusting the outputs of a classifier to
    new a priori probabilities", section 2.2) on calibrated probabilities (Alexandari, Kundaje, Shrikumar 2020, section 3). The
    likelihood of binned probabilities is concave in the prevalence, so its derivative is bisected.
    """
    positive_B = reference.probability_B / reference.prevalence
    negative_B = (1 - reference.probability_B) / (1 - reference.prevalence)
    low_T, high_T = np.zeros(len(counts_TB)), np.ones(len(counts_TB))
    # A bin that the reference never saw tells nothing about the classes.
    counts_TB = np.where(reference.share_B > 0, counts_TB, 0.0)
    for _ in range(_STEPS):
        middle_T = (low_T + high_T) / 2
        mixed_TB = middle_T[:, None] * positive_B + (1 - middle_T[:, None]) * negative_B
        rising_T = (counts_TB * (positive_B - negative_B) / np.maximum(mixed_TB, 1e-300)).sum(axis=1) > 0
        low_T, high_T = np.where(rising_T, middle_T, low_T), np.where(rising_T, high_T, middle_T)
    return np.where(counts_TB.sum(axis=1) > 0, (low_T + high_T) / 2, np.nan)


def black_box_prevalence(reference: ClassHistograms, counts_B: Floats) -> float | None:
    """Return the prevalence from the share of items above one edge, at most 1 and at least 0.

    Black-box shift estimation (Lipton, Wang, Smola 2018, section 3) with two predictions, at the edge where a change of the
    prevalence is largest in standard errors; the rates of both classes are those that the probabilities state.

    Returns:
        The estimate; ``None`` if no edge separates the classes, or there are no items.
    """
    above_B, items = reference.share_B[::-1].cumsum()[::-1], counts_B.sum()
    hits_B = (reference.share_B * reference.probability_B)[::-1].cumsum()[::-1] / reference.prevalence
    alarms_B = (reference.share_B * (1 - reference.probability_B))[::-1].cumsum()[::-1] / (1 - reference.prevalence)
    spread_B = above_B * (1 - above_B)
    power_B = np.where(spread_B > 1e-12, (hits_B - alarms_B) ** 2 / np.maximum(spread_B, 1e-12), 0.0)
    best = int(power_B.argmax())
    if not items or power_B[best] <= 0:
        return None
    share = counts_B[best:].sum() / items
    return float(np.clip((share - alarms_B[best]) / (hits_B[best] - alarms_B[best]), 0, 1))


def shifted_shares(reference: ClassHistograms, prevalence: float) -> Floats:
    """Return the share of each bin if only the prevalence were another."""
    positive_B = reference.share_B * reference.probability_B / reference.prevalence
    negative_B = reference.share_B * (1 - reference.probability_B) / (1 - reference.prevalence)
    return prevalence * positive_B + (1 - prevalence) * negative_B


class ShiftFit(NamedTuple):
    """How well another prevalence explains the probabilities of some traffic.

    Attributes:
        prevalence: maximum-likelihood prevalence under label shift.
        distance: total variation distance of the traffic's histogram from the reference.
        unexplained: its distance from the histogram that the prevalence alone would give.
    """

    prevalence: float
    distance: float
    unexplained: float


def fit_shift(reference: ClassHistograms, counts_B: Floats) -> ShiftFit:
    """Return the prevalence under label shift of traffic with at least one item, and what it leaves unexplained."""
    prevalence = float(shifted_prevalence(reference, counts_B[None])[0])
    share_B = counts_B / counts_B.sum()
    if np.isnan(prevalence):
        prevalence = reference.prevalence
    apart = (np.abs(share_B - known_B).sum() / 2 for known_B in (reference.share_B, shifted_shares(reference, prevalence)))
    return ShiftFit(prevalence, *map(float, apart))
