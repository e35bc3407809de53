"""What items say of a rule at each candidate threshold: counts, exact p-values, and bounds.

A p-value is that of the hypothesis that the rule is broken: the chance to see counts at least as good if the true metric lay just
on the wrong side of what is promised. Counts are binomial, so it is exact (Clopper and Pearson 1934), however few they are.

Items of one author resemble each other. Where units are given, counts are divided by the design effect 1 + r (m - 1): m is the
mean size of a unit as an item of the sample meets it, r the correlation within units (Kish 1965; Korn and Graubard 1998 use
effective counts in this way). r is measured where at least :data:`MIN_RARER_OUTCOMES` of the rarer outcome are seen, taken one standard error
higher, and never below 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.constraints import Rule
from vigil_evaluation.stats.binomial import clopper_pearson_bounds, intraclass_correlation, kish_design_effect

MIN_RARER_OUTCOMES = 30

SIGNIFICANCE_FRACTION = 0.75
"""Of the doubt that a rule allows, tests use so much. The rest is for what is not exact: design effects, and choices beside
thresholds that are made on the same items (the order in which labels share a budget, thresholds by presence)."""


@dataclass(frozen=True, slots=True)
class ConstraintCounts:
    """Counts at each of K candidate thresholds, for one group of items.

    Attributes:
        group: value of the rule's column; ``None`` without one.
        count_K: items that count towards the metric.
        rows_K: items that it is a share of.
        effective_K: one divided by the design effect.
    """

    group: str | None
    count_K: Floats
    rows_K: Floats
    effective_K: Floats

    def scaled(self, by: float) -> "ConstraintCounts":
        """As if there were ``by`` times as many items of the same kind."""
        return replace(self, count_K=self.count_K * by, rows_K=self.rows_K * by)


def p_values(rule: Rule, evidence: ConstraintCounts) -> Floats:
    """Of the hypothesis that the rule is broken, ``[K]``; 1 where there is nothing to go by."""
    count_K, rows_K = evidence.count_K * evidence.effective_K, evidence.rows_K * evidence.effective_K
    if rule.metric == "expected_miss_rate":
        return np.where(_expected_miss(count_K, rows_K) <= rule.bound, 0.0, 1.0)
    if rule.metric == "miss_rate":
        return _p_at_least(count_K, rows_K, 1 - rule.bound)
    return _p_at_least(count_K, rows_K, rule.bound) if rule.at_least else _p_at_most(count_K, rows_K, rule.bound)


def significance_level(rule: Rule) -> float:
    """The largest p-value with which a rule counts as shown."""
    return SIGNIFICANCE_FRACTION * (1 - rule.confidence)


def metric_estimates(rule: Rule, evidence: ConstraintCounts) -> Floats:
    """The metric as it is seen, ``[K]``; NaN where there is nothing to go by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share_K: Floats = evidence.count_K / evidence.rows_K
    return 1 - share_K if rule.metric in ("miss_rate", "expected_miss_rate") else share_K


def confidence_bounds(rule: Rule, evidence: ConstraintCounts, confidence: float) -> tuple[Floats, Floats]:
    """One-sided lower and one-sided upper bound of the metric, each at a confidence, ``[K]``."""
    count_K, rows_K = evidence.count_K * evidence.effective_K, evidence.rows_K * evidence.effective_K
    low_K, high_K = clopper_pearson_bounds(count_K, rows_K, confidence)
    if rule.metric in ("miss_rate", "expected_miss_rate"):
        low_K, high_K = 1 - high_K, 1 - low_K
    if rule.metric == "expected_miss_rate":
        return low_K, _expected_miss(count_K, rows_K)
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
    """Count at every candidate threshold, from the strictest on.

    Args:
        first_M: of each item the first candidate that it reaches; ``candidates`` or more if it reaches none.
        candidates: K.
        base_M: the items that the metric is a share of.
        event_M: of those that reach a candidate, the ones that count (precision); ``None`` if reaching it is what counts.
        units_M: see the module.
        groups: name and items of each group; no items mean all.
    """
    correlation = 0.0
    if units_M is not None:
        count_K, rows_K = _counts(first_M, candidates, base_M, event_M)
        at = _steady(count_K, rows_K)
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
            effective_K = 1 / (1 + correlation * (_met_size(first_M, candidates, mine_M, event_M, units_M) - 1))
        found.append(ConstraintCounts(name, count_K, rows_K, effective_K))
    return found


def inverse_design_effect(outcome_N: NDArray[np.bool_], units_N: NDArray[np.int32] | None) -> float:
    """One divided by the design effect of a share of all items."""
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


def _steady(count_K: Floats, rows_K: Floats) -> int | None:
    """The strictest candidate with enough of both outcomes, else the one that has most of the rarer; ``None`` without any."""
    rarer_K = np.minimum(count_K, rows_K - count_K)
    if not rarer_K.max(initial=0):
        return None
    enough = np.flatnonzero(rarer_K >= MIN_RARER_OUTCOMES)
    return int(enough[0]) if len(enough) else int(rarer_K.argmax())


def _met_size(
    first_M: NDArray[np.int64],
    candidates: int,
    base_M: NDArray[np.bool_],
    event_M: NDArray[np.bool_] | None,
    units_M: NDArray[np.int32],
) -> Floats:
    """Mean size of the unit of an item that the metric is a share of, ``[K]``."""
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
    """Chance of at least so many if the true share were ``bound``."""
    from scipy.special import betainc

    count, rows = np.asarray(count_K, np.float64), np.asarray(rows_K, np.float64)
    some = count > 0
    return np.where(some, betainc(np.where(some, count, 1.0), np.where(some, rows - count + 1, 1.0), bound), 1.0)


def _p_at_most(count_K: ArrayLike, rows_K: ArrayLike, bound: float) -> Floats:
    """Chance of at most so many if the true share were ``bound``."""
    count, rows = np.asarray(count_K, np.float64), np.asarray(rows_K, np.float64)
    return _p_at_least(rows - count, rows, 1 - bound)


def _expected_miss(caught_K: Floats, rows_K: Floats) -> Floats:
    """What the miss rate of one further positive is expected to be at most (Angelopoulos et al. 2022, conformal risk control)."""
    return (rows_K - caught_K + 1) / (rows_K + 1)
