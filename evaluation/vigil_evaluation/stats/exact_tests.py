"""Is one share of errors larger than another? Exact tests of many pairs of shares at once, and the correction for so many."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_evaluation.metrics import Floats

MAX_TERMS = 100_000
"""Terms of a tail that are added; what comes after is below any rounding for tables of up to 10**9 items."""


class Counts(NamedTuple):
    """Items and the errors among them, arrays of one shape; whole numbers, or effective ones of :func:`effective`."""

    errors: NDArray[np.float64]
    items: NDArray[np.float64]


def worse(some: Counts, others: Counts) -> Floats:
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


def design_effect(errors_C: ArrayLike, items_C: ArrayLike) -> float:
    """How many times the variance of a share of errors is that of as many independent items, at least 1 (Rao and Scott 1992).

    Args:
        errors_C: errors in each unit that is sampled as a whole; units without an item do not count.
        items_C: items in each.

    Returns:
        Infinity with fewer than two units. Where all items or none are errors nothing can be seen of the variance, and the items
        of a unit are taken to be copies of one.
    """
    errors, items = np.asarray(errors_C, np.float64), np.asarray(items_C, np.float64)
    units, total = int((items > 0).sum()), float(items.sum())
    if units < 2:
        return float("inf")
    share = float(errors.sum()) / total
    if share in (0.0, 1.0):
        return max(float((items**2).sum()) / total, 1.0)
    spread = float(((errors - share * items) ** 2).sum()) * units / (units - 1)
    return max(spread / (total * share * (1 - share)), 1.0)


def holm(p_values: Floats) -> Floats:
    """P-values corrected by Holm's step-down method (1979): rejecting those up to a level errs at all with at most that chance.

    Args:
        p_values: ``[K]``, of tests that may depend on each other in any way.
    """
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return corrected
