"""Check the constraints of a compiled policy on items, at its thresholds."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vigil_data.presence import PRESENCE
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.compiled_policy import CompiledPolicy, DecisionCodes
from vigil_evaluation.policy.constraint_tests import (
    ConstraintCounts,
    confidence_bounds,
    count_at_candidates,
    inverse_design_effect,
    metric_estimates,
    p_values,
    weight_sums,
)
from vigil_evaluation.policy.constraints import REVIEW, ConstraintResult, Rule, preceding_actions
from vigil_evaluation.policy.policy_data import MARKET, Traffic
from vigil_evaluation.policy.shared_budget import weighted_upper
from vigil_evaluation.policy.threshold_search import rule_groups


def decide_traffic(policy: CompiledPolicy, traffic: Traffic) -> DecisionCodes:
    """Return a policy's decision on each item."""
    presence = traffic.columns[PRESENCE].texts() if PRESENCE in traffic.columns else None
    market = traffic.columns[MARKET].texts() if MARKET in traffic.columns else None
    given = None if presence is None else [value or "" for value in presence]
    return policy.decide_codes(traffic.probabilities_NL, traffic.labels, given, market)


def items_with_action(policy: CompiledPolicy, codes: DecisionCodes, action: str) -> NDArray[np.bool_]:
    """Return which items get an action; all reviewed items count for ``review``."""
    if action == REVIEW:
        return codes.review_N
    return np.asarray(codes.actions_N == policy.actions.index(action))


def check_rules(
    policy: CompiledPolicy, rules: Iterable[Rule], traffic: Traffic, correlations: Mapping[Rule, float] | None = None
) -> Iterable[ConstraintResult]:
    """Measure rules at a policy's thresholds.

    Args:
        policy: the policy.
        rules: rules on columns that the traffic has.
        traffic: the items.
        correlations: rule to the correlation within units (default: estimated at the thresholds). A compilation passes those of
            its search, which estimates them before it knows the thresholds; other ones could contradict what it has shown.
    """
    correlations = correlations or {}
    codes = decide_traffic(policy, traffic)
    cuts = ItemThresholds(policy, traffic)
    named = [market for market, _ in policy.cells if market is not None]
    for rule in rules:
        rows_N = traffic.in_market(rule.market, named)
        if rule.metric == "overturned":
            yield _overturned(policy, rule, traffic, rows_N, cuts)
            continue
        counts = _counts(policy, rule, traffic, codes, rows_N=rows_N, cuts=cuts, correlation=correlations.get(rule))
        yield _worst_group(rule, counts)


class ItemThresholds:
    """Thresholds of each item."""

    def __init__(self, policy: CompiledPolicy, traffic: Traffic) -> None:
        self._policy = policy
        presence, market = (
            traffic.columns[name].texts() if name in traffic.columns else [None] * traffic.items for name in (PRESENCE, MARKET)
        )
        pairs = list(zip(presence, market, strict=True))
        places = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
        self._pairs = list(places)
        self._place_N = np.fromiter((places[pair] for pair in pairs), np.int64, traffic.items)

    def of(self, label: str, action: str) -> Floats:
        """Return the threshold of each item, infinite without one, ``[N]``."""
        each = [self._policy.thresholds(*pair).get(label, {}).get(action, np.inf) for pair in self._pairs]
        return np.array([*each, np.inf])[self._place_N]

    def above(self, label: str, action: str) -> Floats:
        """Return the lowest threshold of the preceding actions, ``[N]``."""
        above_N = np.full(len(self._place_N), np.inf)
        for other in preceding_actions(action, self._policy.review):
            above_N = np.minimum(above_N, self.of(label, other))
        return above_N


def _counts(
    policy: CompiledPolicy,
    rule: Rule,
    traffic: Traffic,
    codes: DecisionCodes,
    *,
    rows_N: NDArray[np.bool_],
    cuts: ItemThresholds,
    correlation: float | None,
) -> list[ConstraintCounts]:
    part = traffic.take(rows_N)
    event: NDArray[np.bool_] | None = None
    possible, weights = None, part.weights.label_N
    if rule.label is None:
        weights = part.weights.item_N
        base, reached = np.ones(part.items, bool), items_with_action(policy, codes, rule.action)[rows_N]
    else:
        at = traffic.labels.index(rule.label)
        probabilities, above = part.probabilities_NL[:, at], cuts.above(rule.label, rule.action)[rows_N]
        reached = probabilities >= cuts.of(rule.label, rule.action)[rows_N]
        if rule.metric == "precision":
            base, event = part.positive_NL[:, at] | part.negative_NL[:, at], part.positive_NL[:, at]
            reached, possible = reached & (probabilities < above), probabilities < above
        else:
            base = part.negative_NL[:, at] if rule.metric == "false_positive_rate" else part.positive_NL[:, at]
            reached = reached | (probabilities >= above)
    column = None if rule.column is None else part.columns[rule.column]
    # On other items than those compiled on, no value of the column may be frequent enough.
    if column is not None and not (np.bincount(column.codes_N[column.codes_N >= 0], minlength=1) > rule.over).any():
        return []
    return count_at_candidates(
        np.where(reached, 0, 1),
        1,
        base,
        event,
        units_M=part.units_N,
        groups=rule_groups(rule, part),
        weights_M=weights,
        possible_M=possible,
        correlation=correlation,
    )


def _worst_group(rule: Rule, groups: Sequence[ConstraintCounts]) -> ConstraintResult:
    """Return the result of the group that does worst."""
    known = [counts for counts in groups if counts.rows_K[0] > 0]
    if not known:
        return ConstraintResult(rule, None, None, None, None, None, None, 0, 0, None, None)
    worst = max(known, key=lambda counts: (float(p_values(rule, counts)[0]), _excess(rule, counts)))
    estimate = float(metric_estimates(rule, worst)[0])
    low, high = confidence_bounds(rule, worst, rule.confidence)
    bound = float((low if rule.at_least else high)[0])
    margin = bound - rule.bound if rule.at_least else rule.bound - bound
    between = confidence_bounds(rule, worst, (1 + rule.confidence) / 2)
    ends = (float(between[0][0]), float(between[1][0]))
    met = estimate >= rule.bound if rule.at_least else estimate <= rule.bound
    count, rows = int(worst.count_K[0]), int(worst.rows_K[0])
    return ConstraintResult(rule, worst.group, estimate, *ends, bound, margin, count, rows, bool(met), margin >= 0)


def _excess(rule: Rule, counts: ConstraintCounts) -> float:
    estimate = float(metric_estimates(rule, counts)[0])
    return rule.bound - estimate if rule.at_least else estimate - rule.bound


def _overturned(
    policy: CompiledPolicy, rule: Rule, traffic: Traffic, rows_N: NDArray[np.bool_], cuts: ItemThresholds
) -> ConstraintResult:
    """Measure wrong actions, summed over labels, times the fraction of them that is appealed."""
    weight = policy.appeals[rule.action].wrong if rule.action in policy.appeals else 1.0
    taken_N = np.zeros(traffic.items, bool)
    for at, label in enumerate(traffic.labels):
        taken_N |= traffic.probabilities_NL[:, at] >= cuts.above(label, rule.action)
    weights_N = traffic.weights.label_N
    one_N = np.ones(traffic.items) if weights_N is None else weights_N
    counts, rows, squares, largest = [], [], [], []
    number, items, estimate = 0.0, 0, 0.0
    for at, label in enumerate(traffic.labels):
        cut_N = cuts.of(label, rule.action)
        if not np.isfinite(cut_N[rows_N]).any():
            continue
        known_N = rows_N & (traffic.positive_NL[:, at] | traffic.negative_NL[:, at])
        hit_N = (traffic.probabilities_NL[:, at] >= cut_N) & ~taken_N
        wrong_N = known_N & traffic.negative_NL[:, at] & hit_N
        sums, _ = weight_sums(np.where(hit_N, 0, 1), 1, wrong_N, None, one_N, rows_N)
        units = None if traffic.units_N is None else traffic.units_N[known_N]
        effective = inverse_design_effect(wrong_N[known_N], units, None if weights_N is None else weights_N[known_N])
        whole = float(one_N[known_N].sum())
        counts.append(sums.sum_K * effective)
        squares.append(sums.squares_K * effective)
        largest.append(sums.largest_K)
        rows.append(whole * effective)
        number, items = number + wrong_N.sum() * effective, max(items, int(known_N.sum() * effective))
        estimate += weight * float(sums.sum_K[0]) / whole if known_N.any() else np.nan
    if not rows or not np.isfinite(estimate):
        return ConstraintResult(rule, None, None, None, None, None, None, 0, 0, None, None)
    sums_of = None if weights_N is None else (np.array(squares), np.array(largest))
    upper, high = (
        weight * float(weighted_upper(np.array(counts), np.array(rows), confidence, sums_of)[0])
        for confidence in (rule.confidence, (1 + rule.confidence) / 2)
    )
    return ConstraintResult(
        rule, None, estimate, None, min(high, 1.0), min(upper, 1.0), rule.bound - upper, round(number), items,
        estimate <= rule.bound, upper <= rule.bound,
    )  # fmt: skip
