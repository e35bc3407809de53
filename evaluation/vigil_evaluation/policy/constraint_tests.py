"""Tests of a constraint at each candidate threshold: counts, exact p-values and confidence bounds.

The null hypothesis of a p-value is that the constraint is violated: it is the probability of counts at least as good if the true
metric equalled the bound. Counts are binomial, so p-values are exact for any number of items (Clopper and Pearson 1934).

Items of one unit, such as an author, are correlated. Where units are given, counts are divided by the design effect
1 + r (m - 1): m is the mean size of the unit of an item, r the correlation within units (Kish 1965; Korn and Graubard 1998 use
effective counts in this way). r is estimated where at least :data:`MIN_RARER_OUTCOMES` of the rarer outcome are observed, plus
one standard error, and is at least 0.

Where rows have weights (:mod:`vigil_evaluation.sampling_weights`), the metric is a ratio of sums of weights, and the sums are
divided by the weight of one effective item, which gives the beta distribution of the test the variance that the ratio has if the
constraint is just violated. If the tested share is b, that weight is (1 - b) times the mean weight of an item that counts, plus b
times that of one that does not; means are weighted by the weights. The outcome that speaks against the constraint may be rare and
unobserved among the heaviest rows, so its sums include one pseudo-item of the largest weight that such a row could have (Fay and
Feuer 1997, who bound sums of weighted Poisson counts in this way). With equal weights all this is the exact test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.constraints import Rule
from vigil_evaluation.stats.binomial import clopper_pearson_bounds, intraclass_correlation, kish_design_effect

BISECTIONS = 50
"""Halvings of the unit interval to invert a test of weighted counts."""

MIN_RARER_OUTCOMES = 30
"""Fewest observations of the rarer outcome to estimate the correlation within units."""

SIGNIFICANCE_FRACTION = 0.75
"""Fraction of a constraint's error probability that tests use. The rest covers what is not exact: design effects, and other
choices on the same items (the order in which labels share a budget, thresholds by presence)."""


@dataclass(frozen=True, slots=True)
class WeightSums:
    """Weights of the items with one outcome, at each of K candidate thresholds.

    Attributes:
        sum_K: sum of the weights.
        squares_K: sum of their squares.
        largest_K: largest weight of a row, of known target or not, that may have this outcome.
    """

    sum_K: Floats
    squares_K: Floats
    largest_K: Floats

    def scaled(self, by: float) -> "WeightSums":
        """Return the sums of ``by`` times as many items of the same kind."""
        return replace(self, sum_K=self.sum_K * by, squares_K=self.squares_K * by)

    def mean_weight(self, pseudo_item: bool) -> Floats:
        """Return the mean weight of an item, weighted by the weights themselves, ``[K]``; see the module."""
        added_K = np.where((self.sum_K > 0) & (not pseudo_item), 0.0, self.largest_K)
        mean_K: Floats = (self.squares_K + added_K**2) / (self.sum_K + added_K)
        return mean_K


@dataclass(frozen=True, slots=True)
class ConstraintCounts:
    """Counts at each of K candidate thresholds, for one group of items.

    Attributes:
        group: value of the rule's column; ``None`` without one.
        count_K: items that count towards the metric.
        rows_K: items in its denominator.
        effective_K: inverse of the design effect of units.
        weights: weights of the items that count, and of the others in the denominator; ``None`` for equal weights.
        correlation: correlation within units that the design effect rests on.
    """

    group: str | None
    count_K: Floats
    rows_K: Floats
    effective_K: Floats
    weights: tuple[WeightSums, WeightSums] | None = None
    correlation: float = 0.0

    def scaled(self, by: float) -> "ConstraintCounts":
        """Return the counts of ``by`` times as many items of the same kind."""
        weights = None if self.weights is None else (self.weights[0].scaled(by), self.weights[1].scaled(by))
        return replace(self, count_K=self.count_K * by, rows_K=self.rows_K * by, weights=weights)

    def effective_rows(self, bound: float) -> Floats:
        """Return the effective number of items in the denominator if all count, which does not depend on targets, ``[K]``.

        Args:
            bound: share that is tested.
        """
        if self.weights is None:
            return self.rows_K * self.effective_K
        count, rest = self.weights
        sum_K = count.sum_K + rest.sum_K
        mean_K = (count.squares_K + rest.squares_K) / np.where(sum_K > 0, sum_K, 1.0)
        rows_K: Floats = sum_K / ((1 - bound) * mean_K + bound * rest.largest_K) * self.effective_K
        return rows_K


def p_values(rule: Rule, counts: ConstraintCounts) -> Floats:
    """Return the p-value of the hypothesis that the constraint is violated, ``[K]``; 1 where there are no items."""
    if counts.weights is not None:
        if rule.metric == "expected_miss_rate":
            return np.where(_weighted_expected_miss_bound(counts) <= rule.bound, 0.0, 1.0)
        bound = 1 - rule.bound if rule.metric == "miss_rate" else rule.bound
        return _weighted_p(counts, bound, at_least=rule.at_least or rule.metric == "miss_rate")
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
        if counts.weights is not None:
            share_K = counts.weights[0].sum_K / (counts.weights[0].sum_K + counts.weights[1].sum_K)
    return 1 - share_K if rule.metric in ("miss_rate", "expected_miss_rate") else share_K


def confidence_bounds(rule: Rule, counts: ConstraintCounts, confidence: float) -> tuple[Floats, Floats]:
    """Return the one-sided lower and the one-sided upper confidence bound of the metric, ``[K]`` each."""
    if counts.weights is None:
        count_K, rows_K = counts.count_K * counts.effective_K, counts.rows_K * counts.effective_K
        low_K, high_K = clopper_pearson_bounds(count_K, rows_K, confidence)
    else:
        low_K, high_K = _weighted_bound(counts, confidence, upper=False), _weighted_bound(counts, confidence, upper=True)
    if rule.metric in ("miss_rate", "expected_miss_rate"):
        low_K, high_K = 1 - high_K, 1 - low_K
    if rule.metric == "expected_miss_rate":
        weighted = counts.weights is not None
        return low_K, _weighted_expected_miss_bound(counts) if weighted else _expected_miss_bound(count_K, rows_K)
    return low_K, high_K


def count_at_candidates(
    first_M: NDArray[np.int64],
    candidates: int,
    base_M: NDArray[np.bool_],
    event_M: NDArray[np.bool_] | None,
    *,
    units_M: NDArray[np.int32] | None,
    groups: Sequence[tuple[str | None, NDArray[np.bool_] | None]],
    weights_M: Floats | None = None,
    possible_M: NDArray[np.bool_] | None = None,
    correlation: float | None = None,
) -> list[ConstraintCounts]:
    """Count items at every candidate threshold, from the strictest on.

    Args:
        first_M: first candidate that each item reaches; ``candidates`` or more if it reaches none.
        candidates: K.
        base_M: items in the metric's denominator.
        event_M: items that count among those that reach a candidate (precision); ``None`` if reaching it counts.
        units_M: unit of each item; see the module.
        groups: name and items of each group; ``None`` for all items.
        weights_M: number of items that each represents; ``None`` if all count the same.
        possible_M: items that would be in the denominator if their target were known (default: all).
        correlation: correlation within units (default: estimated on these items).
    """
    if correlation is None and units_M is not None:
        count_K, rows_K = _counts(first_M, candidates, base_M, event_M)
        at = _reference_candidate(count_K, rows_K)
        if at is not None:
            reached_M = base_M if event_M is None else base_M & (first_M <= at)
            outcome_M = first_M <= at if event_M is None else event_M
            weighted = None if weights_M is None else weights_M[reached_M]
            correlation = intraclass_correlation(outcome_M[reached_M], units_M[reached_M], weighted)
    correlation = correlation or 0.0
    found = []
    for name, within_M in groups:
        mine_M = base_M if within_M is None else base_M & within_M
        count_K, rows_K = _counts(first_M, candidates, mine_M, event_M)
        effective_K = np.ones(candidates)
        if units_M is not None and correlation > 0:
            if weights_M is None:
                sizes_K = _mean_unit_size(first_M, candidates, mine_M, event_M, units_M)
            else:
                sizes_K = _mean_unit_weight(first_M[mine_M], candidates, event_M is None, units_M[mine_M], weights_M[mine_M])
            effective_K = 1 / (1 + correlation * (sizes_K - 1))
        weights = None
        if weights_M is not None:
            open_M = np.ones_like(base_M) if possible_M is None else possible_M
            open_M = open_M if within_M is None else open_M & within_M
            weights = weight_sums(first_M, candidates, mine_M, event_M, weights_M, open_M)
        found.append(ConstraintCounts(name, count_K, rows_K, effective_K, weights, correlation))
    return found


def inverse_design_effect(
    outcome_N: NDArray[np.bool_], units_N: NDArray[np.int32] | None, weights_N: Floats | None = None
) -> float:
    """Return the inverse of the design effect that units have on a fraction of all items."""
    return 1 / kish_design_effect(outcome_N, units_N, weights_N)


def _counts(
    first_M: NDArray[np.int64], candidates: int, base_M: NDArray[np.bool_], event_M: NDArray[np.bool_] | None
) -> tuple[Floats, Floats]:
    reached_K = _cumulated(first_M[base_M], candidates)
    if event_M is None:
        return reached_K, np.full(candidates, float(base_M.sum()))
    return _cumulated(first_M[base_M & event_M], candidates), reached_K


def _cumulated(first: NDArray[np.int64], candidates: int, weights: Floats | None = None) -> Floats:
    at = np.bincount(np.minimum(first, candidates), weights, minlength=candidates + 1)
    return np.cumsum(at[:candidates]).astype(np.float64)


def weight_sums(  # noqa: PLR0917 (arrays of the same items)
    first_M: NDArray[np.int64],
    candidates: int,
    base_M: NDArray[np.bool_],
    event_M: NDArray[np.bool_] | None,
    weights_M: Floats,
    possible_M: NDArray[np.bool_],
) -> tuple[WeightSums, WeightSums]:
    """Return the weights of the items that count, and of the others in the denominator."""
    reached, missed = _largest(first_M[possible_M], candidates, weights_M[possible_M])
    if event_M is not None:
        count, rest = (
            WeightSums(*_cumulated_powers(first_M[kind_M], candidates, weights_M[kind_M]), reached)
            for kind_M in (base_M & event_M, base_M & ~event_M)
        )
        return count, rest
    first, weights = first_M[base_M], weights_M[base_M]
    sum_K, squares_K = _cumulated_powers(first, candidates, weights)
    # What rounding leaves of a difference of equal sums is zero.
    some_K = _cumulated(first, candidates) < len(first)
    rest_K, rest_squares_K = some_K * (weights.sum() - sum_K), some_K * ((weights**2).sum() - squares_K)
    return WeightSums(sum_K, squares_K, reached), WeightSums(rest_K, rest_squares_K, missed)


def _cumulated_powers(first: NDArray[np.int64], candidates: int, weights: Floats) -> tuple[Floats, Floats]:
    """Return the cumulative sums of the weights and of their squares, ``[K]`` each."""
    return _cumulated(first, candidates, weights), _cumulated(first, candidates, weights**2)


def _largest(first: NDArray[np.int64], candidates: int, weights: Floats) -> tuple[Floats, Floats]:
    """Return the largest weight of the rows that reach each candidate, and of those that do not.

    Where there are no such rows, that of the nearest candidate with some.
    """
    at = np.zeros(candidates + 1)
    np.maximum.at(at, np.minimum(first, candidates), weights)
    reached_K = np.maximum.accumulate(at)[:candidates]
    missed_K = np.maximum.accumulate(at[::-1])[::-1][1:]
    overall = float(weights.max(initial=0.0)) or 1.0
    first_some = reached_K[reached_K > 0][:1]
    last_some = missed_K[missed_K > 0][-1:]
    return (
        np.where(reached_K > 0, reached_K, first_some if len(first_some) else overall),
        np.where(missed_K > 0, missed_K, last_some if len(last_some) else overall),
    )


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


def _mean_unit_weight(
    first: NDArray[np.int64], candidates: int, whole: bool, units: NDArray[np.int32], weights: Floats
) -> Floats:
    """Return the same in items of the mean weight: squared sums of units over the sum of squares (Kish 1965), ``[K]``."""
    if whole:
        squares = float((weights**2).sum())
        return np.full(candidates, (np.bincount(units, weights) ** 2).sum() / squares if squares else 1.0)
    order = np.lexsort((first, units))
    weights, total = weights[order], np.cumsum(weights[order])
    began = np.append(True, units[order][1:] != units[order][:-1]) if len(order) else np.empty(0, bool)
    before = total - weights
    before -= np.maximum.accumulate(np.where(began, before, 0.0))
    # An item of weight w raises the squared sum s of its unit by w (2 s + w).
    added_K = _cumulated(first[order], candidates, weights * (2 * before + weights))
    squares_K = _cumulated(first[order], candidates, weights**2)
    return np.maximum(added_K / np.where(squares_K > 0, squares_K, 1.0), 1.0)


def _weighted_p(counts: ConstraintCounts, bound: float | Floats, *, at_least: bool) -> Floats:
    """Return the probability of a share at least as good if the true share is ``bound``, ``[K]``; see the module."""
    from scipy.special import betainc

    assert counts.weights is not None
    good, bad = counts.weights if at_least else counts.weights[::-1]
    tested = bound if at_least else 1 - bound
    item_K = (1 - tested) * good.mean_weight(pseudo_item=False) + tested * bad.mean_weight(pseudo_item=True)
    good_K = good.sum_K * counts.effective_K / item_K
    bad_K = bad.sum_K * counts.effective_K / item_K + np.maximum(bad.largest_K / item_K, 1.0)
    some_K = good_K > 0
    return np.where(some_K, betainc(np.where(some_K, good_K, 1.0), bad_K, tested), 1.0)


def _weighted_bound(counts: ConstraintCounts, confidence: float, *, upper: bool) -> Floats:
    """Return the one-sided bound of the share at which its test just rejects, ``[K]``; NaN without items."""
    assert counts.weights is not None
    low_K, high_K = np.zeros(len(counts.count_K)), np.ones(len(counts.count_K))
    for _ in range(BISECTIONS):
        middle_K = (low_K + high_K) / 2
        rejected_K = _weighted_p(counts, middle_K, at_least=not upper) <= 1 - confidence
        above_K = ~rejected_K if upper else rejected_K
        low_K, high_K = np.where(above_K, middle_K, low_K), np.where(above_K, high_K, middle_K)
    return np.where(counts.rows_K > 0, high_K if upper else low_K, np.nan)


def _weighted_expected_miss_bound(counts: ConstraintCounts) -> Floats:
    """Return the upper bound of the expected miss rate of one new positive of the largest weight.

    Weighted exchangeability (Tibshirani et al. 2019): the new positive counts with its weight, which is unknown.
    """
    assert counts.weights is not None
    caught, missed = counts.weights
    new = np.maximum(caught.largest_K.max(initial=0.0), missed.largest_K.max(initial=0.0))
    missed_K = missed.sum_K * counts.effective_K + new
    bound_K: Floats = missed_K / (missed_K + caught.sum_K * counts.effective_K)
    return bound_K


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
