"""Fisher's exact test of many pairs of error rates at once."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats

MAX_TERMS = 100_000
"""Largest number of terms of a tail; the rest is below rounding error for tables of up to 10**9 items."""


class ErrorCounts(NamedTuple):
    """Numbers of errors and of items, arrays of one shape; integers, or effective numbers rounded to integers."""

    errors: NDArray[np.float64]
    items: NDArray[np.float64]


def fisher_p_values(some: ErrorCounts, others: ErrorCounts) -> Floats:
    """Return one-sided p-values of Fisher's exact test that ``some`` have a higher error rate than ``others``.

    Args:
        some: ``[K]``, integers.
        others: ``[K]``, integers; disjoint from ``some``.

    Returns:
        ``[K]``; 1 where the error rate of ``some`` is not higher.
    """
    from scipy.special import gammaln

    errors, items = (np.asarray(values, np.float64) for values in some)
    all_errors, all_items = errors + np.asarray(others.errors), items + np.asarray(others.items)
    p_values = np.ones(len(errors))
    asked = np.flatnonzero(errors * all_items > all_errors * items)
    if not len(asked):
        return p_values
    x, n, k, m = errors[asked], items[asked], all_errors[asked], all_items[asked]

    def log_choose(of: Floats, taken: Floats) -> Floats:
        return np.asarray(gammaln(of + 1) - gammaln(taken + 1) - gammaln(of - taken + 1), np.float64)

    log_first = log_choose(k, x) + log_choose(m - k, n - x) - log_choose(m, n)
    total, term = np.ones(len(asked)), np.ones(len(asked))
    for _ in range(MAX_TERMS):
        # Beyond the mean, each term of the hypergeometric tail is smaller than the previous one.
        term = term * np.maximum(k - x, 0) * np.maximum(n - x, 0) / ((x + 1) * np.maximum(m - k - n + x + 1, 1))
        total += term
        x = x + 1
        if not (term > 1e-17 * total).any():
            break
    p_values[asked] = np.minimum(np.exp(log_first + np.log(total)), 1.0)
    return p_values
