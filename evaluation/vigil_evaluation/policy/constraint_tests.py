"""Tests of a constraint at each candidate threshold: counts, exact p-values and confidence bounds.

The null hypothesis of a p-value is that the constraint is violated: it is the probability of counts at least as good if the true
metric equalled the bound. Counts are binomial, so p-values are exact for any number of items (Clopper and Pearson 1934).

Items of one unit, such as an author, are correlated. Where units are given, counts are divided by the design effect
1 + r (m - 1): m is the mean size of the unit of an item, r the correlation within units (Kish 1965; Korn and Graubard 1998 use
effective counts in this way). r is estimated where at least :data:`MIN_RARER_OUTCOMES` of the rarer outcome are observed, plus
one standard error, and is at least 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.constraints import Rule
from vigil_evaluation.stats.binomial import clopper_pearson_bounds, intraclass_correlation, kish_design_effect

MIN_RARER_OUTCOMES = 30
"""Fewest observations of the rarer outcome to estimate the correlation within units."""

SIGNIFICANCE_FRACTION = 0.75
"""Fraction of a constraint's error probability that tests use. The rest covers what is not exact: design effects, and other
choices on the same items (the order in which labels share a budget, thresholds by presence)."""


@dataclass(frozen=True, slots=True)
class ConstraintCounts:
    """Counts at each of K candidate thresholds, for one group of items.

    Attributes:
        group: value of the rule's column; ``None`` without one.
        count_K: items that count towards the metric.
        rows_K: items in its denominator.
        effective_K: inverse of the design effect.
    """

    group: str | None
    count_K: Floats
    rows_K: Floats
    effective_K: Floats

    def scaled(self, by: float) -> "ConstraintCounts":
        """Return the counts of ``by`` times as many items of the same kind."""
        return replace(self, count_K=self.count_K * by, rows_K=self.rows_K * by)


def p_values(rule: Rule, counts: ConstraintCounts) -> Floats:
    """Return the p-value of the hypothesis that the constraint is violated, ``[K]``; 1 where there are no items."""
    count_K, rows_K = counts.count_K * counts.effective_K, counts.rows_K * counts.effective_K
    if rule.metric == "expected_miss_rate":
        return np.where(_expected_miss_bound(count_K, rows_K) <= rule.bound, 0.0, 1.0)
    if rule.metric == "miss_rate":
        return _p_at_least(count_K, rows_K, 1 - rule.bound)
    return _p_at_least(count_K, rows_K, rule.bound) if rule.at_least else _p_at_most(count_K, rows_K, rule.bound)


def significance_level(rule: Rule) -> float:
    """Return the largest p-value at which a constraint is shown to hold."""
    return SIGNIFICANCE_FRACTION * (1 - rule.confidence)


def metric_estimates(rule: Rule, counts: ConstraintCounts) -> Floats:
    """Return the observed metric, ``[K]``; NaN where there are no items."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share_K: Floats = counts.count_K / counts.rows_K
    return 1 - share_K if rule.metric in ("miss_rate", "expected_miss_rate") else share_K


def confidence_bounds(rule: Rule, counts: ConstraintCounts, confidence: float) -> tuple[Floats, Floats]:
    """Return the one-sided lower and the one-sided upper confidence bound of the metric, ``[K]`` each."""
    count_K, rows_K = counts.count_K * counts.effective_K, counts.rows_K * counts.effective_K
    low_K, high_K = clopper_pearson_bounds(count_K, rows_K, confidence)
    if rule.metric in ("miss_rate", "expected_miss_rate"):
        low_K, high_K = 1 - high_K, 1 - low_K
    if rule.metric == "expected_miss_rate":
        return low_K, _expected_miss_bound(count_K, rows_K)
    return low_K, high_K


def count_at_candidates(
    first_M: NDArray[np.int64],
    candidates: int,
    base_M: NDArray[np.bool_],
    event_M: NDArray[np.bool_] | None,
    *,
    units_M: NDArray[np.int32] | None,
    groups: Sequence[tuple[str | None, NDArray[np.bool_] | None]],
) -> list[ConstraintCounts]:
    """Count items at every candidate threshold, from the strictest on.

    Args:
        first_M: first candidate that each item reaches; ``candidates`` or more if it reaches none.
        candidates: K.
        base_M: items in the metric's denominator.
        event_M: items that count among those that reach a candidate (precision); ``None`` if reaching it counts.
        units_M: unit of each item; see the module.
        groups: name and items of each group; ``None`` for all items.
    """
    correlation = 0.0
    if units_M is not None:
        count_K, rows_K = _counts(first_M, candidates, base_M, event_M)
        at = _reference_candidate(count_K, rows_K)
        if at is not None:
            reached_M = base_M if event_M is None else base_M & (first_M <= at)
            outcome_M = first_M <= at if event_M is None else event_M
            correlation = intraclass_correlation(outcome_M[reached_M], units_M[reached_M])
    found = []
    for name, within_M in groups:
        mine_M = base_M if within_M is None else base_M & within_M
        count_K, rows_K = _counts(first_M, candidates, mine_M, event_M)
        effective_K = np.ones(candidates)
        if units_M is not None and correlation > 0:
            effective_K = 1 / (1 + correlation * (_mean_unit_size(first_M, candidates, mine_M, event_M, units_M) - 1))
        found.append(ConstraintCounts(name, count_K, rows_K, effective_K))
    return found


def inverse_design_effect(outcome_N: NDArray[np.bool_], units_N: NDArray[np.int32] | None) -> float:
    """Return the inverse of the design effect of a fraction of all items."""
    return 1 / kish_design_effect(outcome_N, units_N)


def _counts(
    first_M: NDArray[np.int64], candidates: int, base_M: NDArray[np.bool_], event_M: NDArray[np.bool_] | None
) -> tuple[Floats, Floats]:
    reached_K = _cumulated(first_M[base_M], candidates)
    if event_M is None:
        return reached_K, np.full(candidates, float(base_M.sum()))
    return _cumulated(first_M[base_M & event_M], candidates), reached_K


def _cumulated(first: NDArray[np.int64], candidates: int) -> Floats:
    return np.cumsum(np.bincount(np.minimum(first, candidates), minlength=candidates + 1)[:candidates]).astype(np.float64)


def _reference_candidate(count_K: Floats, rows_K: Floats) -> int | None:
    """Return the strictest candidate with enough of both outcomes, else that with most of the rarer; ``None`` without any."""
    rarer_K = np.minimum(count_K, rows_K - count_K)
    if not rarer_K.max(initial=0):
        return None
    enough = np.flatnonzero(rarer_K >= MIN_RARER_OUTCOMES)
    return int(enough[0]) if len(enough) else int(rarer_K.argmax())


def _mean_unit_size(
    first_M: NDArray[np.int64],
    candidates: int,
    base_M: NDArray[np.bool_],
    event_M: NDArray[np.bool_] | None,
    units_M: NDArray[np.int32],
) -> Floats:
    """Return the mean size of the unit of an item in the metric's denominator, ``[K]``."""
    if event_M is None:
        sizes = np.bincount(units_M[base_M]).astype(np.float64)
        return np.full(candidates, (sizes**2).sum() / max(sizes.sum(), 1.0))
    first, units = first_M[base_M], units_M[base_M]
    order = np.lexsort((first, units))
    began = np.append(True, units[order][1:] != units[order][:-1]) if len(order) else np.empty(0, bool)
    place = np.arange(len(order)) - np.maximum.accumulate(np.where(began, np.arange(len(order)), 0))
    # The m-th item of a unit, counted from 0, raises the sum of squared sizes by 2 m + 1.
    added = np.bincount(np.minimum(first[order], candidates), weights=2 * place + 1.0, minlength=candidates + 1)[:candidates]
    return np.maximum(np.cumsum(added) / np.maximum(_cumulated(first, candidates), 1), 1.0)


def _p_at_least(count_K: ArrayLike, rows_K: ArrayLike, bound: float) -> Floats:
    """Return the probability of at least this count if the true fraction is ``bound``."""
    from scipy.special import betainc

    count, rows = np.asarray(count_K, np.float64), np.asarray(rows_K, np.float64)
    some = count > 0
    return np.where(some, betainc(np.where(some, count, 1.0), np.where(some, rows - count + 1, 1.0), bound), 1.0)


def _p_at_most(count_K: ArrayLike, rows_K: ArrayLike, bound: float) -> Floats:
    """Return the probability of at most this count if the true fraction is ``bound``."""
    count, rows = np.asarray(count_K, np.float64), np.asarray(rows_K, np.float64)
    return _p_at_least(rows - count, rows, 1 - bound)


def _expected_miss_bound(caught_K: Floats, rows_K: Floats) -> Floats:
    """Return the upper bound of the expected miss rate of one new positive (conformal risk control, Angelopoulos et al. 2022)."""
    return (rows_K - caught_K + 1) / (rows_K + 1)
