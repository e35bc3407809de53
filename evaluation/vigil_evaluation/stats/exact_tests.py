"""Is one share of errors larger than another? Exact tests of many pairs of shares at once, and the correction for so many."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats

MAX_TERMS = 100_000
"""Terms of a tail that are added; what comes after is below any rounding for tables of up to 10**9 items."""


class ErrorCounts(NamedTuple):
    """Items and the errors among them, arrays of one shape; whole numbers, or effective ones of :func:`effective`."""

    errors: NDArray[np.float64]
    items: NDArray[np.float64]


def fisher_p_values(some: ErrorCounts, others: ErrorCounts) -> Floats:
    """One-sided p-values of Fisher's exact test that ``some`` have a larger share of errors than ``others``.

    Args:
        some: ``[K]``, whole numbers.
        others: ``[K]``, the items compared with; none of them are among ``some``.

    Returns:
        ``[K]``; 1 where ``some`` have no larger a share, which no test would call worse.
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
        # Past the mean each term of the hypergeometric tail is smaller than the one before.
        term = term * np.maximum(k - x, 0) * np.maximum(n - x, 0) / ((x + 1) * np.maximum(m - k - n + x + 1, 1))
        total += term
        x = x + 1
        if not (term > 1e-17 * total).any():
            break
    p_values[asked] = np.minimum(np.exp(log_first + np.log(total)), 1.0)
    return p_values
