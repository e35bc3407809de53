"""Variance of totals from one sample, by Hájek (1964), as an independent check of samples and of expected half-widths."""

import numpy as np


def hajek_variance(values_KN: np.ndarray, probability_N: np.ndarray, stratum_N: np.ndarray) -> np.ndarray:
    """Return the estimated variance of the Horvitz-Thompson totals of K values, stratum by stratum."""
    found_K = np.zeros(len(values_KN))
    for name in set(stratum_N.tolist()):
        own = (stratum_N == name) & (probability_N < 1)
        if own.sum() > 1:
            missed = 1 - probability_N[own]
            expanded = values_KN[:, own] / probability_N[own]
            centre = (expanded * missed).sum(1, keepdims=True) / missed.sum()
            found_K += own.sum() / (own.sum() - 1) * (missed * (expanded - centre) ** 2).sum(1)
    return found_K
