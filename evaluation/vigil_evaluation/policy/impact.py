"""What a compiled policy does to a table's items: volumes, costs, appeals, harm that is caught, and whether it keeps its word."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.presence import PRESENCE
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.policy.compiled_policy import CompiledPolicy, DecisionCodes
from vigil_evaluation.policy.constraint_check import ItemThresholds, check_rules, decide_traffic, items_with_action
from vigil_evaluation.policy.constraint_tests import ConstraintCounts, confidence_bounds, inverse_design_effect
from vigil_evaluation.policy.constraints import ACTIONS, REVIEW, ConstraintResult, Rule
from vigil_evaluation.policy.policy_data import MARKET, Traffic, evaluation_traffic, read_traffic
from vigil_evaluation.stats.intervals import Interval


@dataclass(frozen=True, slots=True)
class ActionImpact:
    """What one action does.

    Attributes:
        action: which; ``review`` counts all items that people look at, whatever else is done with them meanwhile.
        items: how many get it.
        share: of all items.
        interval: of the share.
        judged: those whose decisive label has a known target.
        right: share of the judged of which that label is true; ``None`` for ``allow`` and where none is judged.
        right_interval: of that share.
        cost: of all its items.
        appeals: how many are expected to be appealed; ``None`` without appeals, or where too little is known.
        overturned: how many of those are expected to be overturned.
        appeals_cost: of the appeals.
    """

    action: str
    items: int
    share: float
    interval: Interval | None
    judged: int
    right: float | None
    right_interval: Interval | None
    cost: float
    appeals: float | None
    overturned: float | None
    appeals_cost: float | None


@dataclass(frozen=True, slots=True)
class LabelImpact:
    """What becomes of one label's positives.

    Attributes:
        label: which.
        severity: how much harm a miss does.
        positives: items known to be it.
        caught: share of them that get any action, for whichever label; ``None`` without positives.
        caught_interval: of that share.
        by_action: action to the share of the positives that get it, ``allow`` included.
        negatives: items known not to be it.
        decided: items for which it is the decisive label.
    """

    label: str
    severity: float
    positives: int
    caught: float | None
    caught_interval: Interval | None
    by_action: dict[str, float | None]
    negatives: int
    decided: int


@dataclass(frozen=True, slots=True)
class GroupImpact:
    """What happens to the items of one value of a column.

    Attributes:
        column: which.
        value: ``None`` where the column is null.
        items: how many.
        actions: action to the share of them that get it; items in review beside another action count under both.
    """

    column: str
    value: str | None
    items: int
    actions: dict[str, float]


@dataclass(frozen=True, slots=True)
class PolicyImpact:
    """What a policy does to some items.

    Attributes:
        name: of the policy.
        version: of the policy.
        digest: of the policy.
        review: whether review goes ``before`` milder actions or ``alongside`` them.
        items: how many.
        confidence: of the intervals.
        actions: the mildest first.
        labels: in the order of precedence.
        constraints: each rule and what these items say of it.
        harm_caught: share of the harm, known positives weighed by the severities of their labels, that gets any action.
        cost: of all actions and appeals; ``None`` where appeals cannot be told.
        by: presence, market, and the columns of which the policy speaks, value by value.
    """

    name: str
    version: int
    digest: str
    review: str | None
    items: int
    confidence: float
    actions: list[ActionImpact]
    labels: list[LabelImpact]
    constraints: list[ConstraintResult]
    harm_caught: float | None
    cost: float | None
    by: list[GroupImpact]


MAX_COLUMN_VALUES = 50
"""Values of a column that are listed; the rarer ones are left out."""


def policy_impact(
    policy: CompiledPolicy,
    table: pa.Table,
    *,
    columns: Sequence[str] = (),
    cluster: str | None = None,
    confidence: float = 0.95,
) -> PolicyImpact:
    """Find what a policy does to the items of a table.

    Args:
        policy: the policy.
        table: see :mod:`vigil_evaluation.predictions`; columns of which the policy speaks and that it lacks are passed over.
        columns: by which the outcome is broken down further.
        cluster: column of the items that belong together; each item on its own if not given.
        confidence: of the intervals.

    Raises:
        UserError: if the table lacks a label of the policy.
    """
    columns = [*_constraint_columns(policy), *columns]
    return _impact(policy, read_traffic(table, policy.labels, columns, cluster, lenient=True), columns, confidence)


def evaluation_impact(policy: CompiledPolicy, data: EvaluationData) -> PolicyImpact:
    """Return what a policy does to the items of an evaluation, broken down by its slices; see :func:`policy_impact`."""
    columns = [*_constraint_columns(policy), *(name for name in data.spec.slices if name in data.columns)]
    return _impact(policy, evaluation_traffic(data, policy.labels, columns), columns, data.spec.confidence)


def _constraint_columns(policy: CompiledPolicy) -> list[str]:
    return [result.rule.column for result in policy.constraints if result.rule.column is not None]


def _impact(policy: CompiledPolicy, traffic: Traffic, columns: Sequence[str], confidence: float) -> PolicyImpact:
    codes = decide_traffic(policy, traffic)
    rules = [result.rule for result in policy.constraints if result.rule.column is None or result.rule.column in traffic.columns]
    actions = [_action(policy, traffic, codes, action, confidence) for action in policy.actions]
    appeals = [outcome.appeals_cost for outcome in actions if outcome.action in policy.appeals]
    costs = sum(outcome.cost for outcome in actions)
    return PolicyImpact(
        policy.name,
        policy.version,
        policy.digest,
        policy.review,
        traffic.items,
        confidence,
        actions,
        [_label(policy, traffic, codes, label, confidence) for label in policy.labels],
        list(check_rules(policy, rules, traffic)),
        harm_caught(policy, traffic, codes.actions_N > 0),
        None if any(cost is None for cost in appeals) else costs + sum(cost for cost in appeals if cost is not None),
        _groups(policy, traffic, codes, dict.fromkeys([PRESENCE, MARKET, *columns])),
    )


def harm_caught(policy: CompiledPolicy, traffic: Traffic, acted_N: NDArray[np.bool_]) -> float | None:
    """Share of the harm of known positives, by severity, of the items that are acted on; ``None`` without harm."""
    severity_L = np.array([policy.severities.get(label, 1.0) for label in traffic.labels])
    whole = float((traffic.positive_NL @ severity_L).sum())
    return float((traffic.positive_NL[acted_N] @ severity_L).sum()) / whole if whole else None


class ShareEstimate(NamedTuple):
    """A share and its interval; ``None`` where it is a share of nothing."""

    value: float | None
    interval: Interval | None


def estimate_share(
    outcome_N: NDArray[np.bool_], traffic: Traffic, within_N: NDArray[np.bool_], confidence: float
) -> ShareEstimate:
    """A share of some items with its Clopper-Pearson interval, by effective counts where items belong together."""
    rows = int(within_N.sum())
    if not rows:
        return ShareEstimate(None, None)
    rule = Rule("review", None, None, "share_of_traffic", 0.5, confidence)
    hit = outcome_N[within_N]
    effective = inverse_design_effect(hit, None if traffic.units_N is None else traffic.units_N[within_N])
    evidence = ConstraintCounts(None, np.array([float(hit.sum())]), np.array([float(rows)]), np.array([effective]))
    low, high = confidence_bounds(rule, evidence, (1 + confidence) / 2)
    return ShareEstimate(float(hit.mean()), Interval(float(low[0]), float(high[0])))


def _action(policy: CompiledPolicy, traffic: Traffic, codes: DecisionCodes, action: str, confidence: float) -> ActionImpact:
    hit_N = items_with_action(policy, codes, action)
    everything_N = np.ones(traffic.items, bool)
    share = estimate_share(hit_N, traffic, everything_N, confidence)
    items, cost = int(hit_N.sum()), policy.costs.get(action, 0.0) * int(hit_N.sum())
    if action == ACTIONS[0] or not items:
        appeals = (0.0, 0.0, 0.0) if action in policy.appeals else (None, None, None)
        return ActionImpact(action, items, share.value or 0.0, share.interval, 0, None, None, cost, *appeals)
    right_N, wrong_N, _ = decisive_label_targets(policy, traffic, codes, action)
    judged_N = hit_N & (right_N | wrong_N)
    right = estimate_share(right_N, traffic, judged_N, confidence)
    told = policy.appeals.get(action)
    appeals = (None, None, None)
    if told is not None and right.value is not None:
        overturned = told.wrong * (1 - right.value) * items
        appealed = overturned + told.right * right.value * items
        appeals = (appealed, overturned, appealed * told.cost)
    judged = int(judged_N.sum())
    return ActionImpact(action, items, share.value or 0.0, share.interval, judged, right.value, right.interval, cost, *appeals)


def decisive_label_targets(
    policy: CompiledPolicy, traffic: Traffic, codes: DecisionCodes, action: str | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Of each item whether its decisive label is known to be true, whether it is known not to be, and which label that is.

    Args:
        policy: the policy.
        traffic: the items.
        codes: what the policy decides on them.
        action: ``review`` asks for the label that sends an item to review, where that goes beside another action.
    """
    label_N = codes.label_N.astype(np.int64)
    if action == REVIEW and policy.review == "alongside":
        cuts = ItemThresholds(policy, traffic)
        calls = [traffic.probabilities_NL[:, at] >= cuts.of(label, action) for at, label in enumerate(traffic.labels)]
        label_N = np.where(codes.review_N, np.array(calls).argmax(axis=0), -1)
    decided_N, each = label_N >= 0, np.arange(traffic.items)
    at_N = np.maximum(label_N, 0)
    return traffic.positive_NL[each, at_N] & decided_N, traffic.negative_NL[each, at_N] & decided_N, label_N


def _label(policy: CompiledPolicy, traffic: Traffic, codes: DecisionCodes, label: str, confidence: float) -> LabelImpact:
    at = traffic.labels.index(label)
    positive_N = traffic.positive_NL[:, at]
    caught = estimate_share(codes.actions_N > 0, traffic, positive_N, confidence)
    by: Mapping[str, NDArray[np.bool_]] = {
        action: items_with_action(policy, codes, action)[positive_N] for action in policy.actions
    }
    return LabelImpact(
        label,
        policy.severities.get(label, 1.0),
        int(positive_N.sum()),
        caught.value,
        caught.interval,
        {action: float(hit.mean()) if len(hit) else None for action, hit in by.items()},
        int(traffic.negative_NL[:, at].sum()),
        int((codes.label_N == policy.labels.index(label)).sum()),
    )


def _groups(policy: CompiledPolicy, traffic: Traffic, codes: DecisionCodes, columns: Iterable[str]) -> list[GroupImpact]:
    found = []
    for name in (name for name in columns if name in traffic.columns):
        column = traffic.columns[name]
        for place, value in [*enumerate(column.values[:MAX_COLUMN_VALUES]), (-1, None)]:
            rows_N = column.codes_N == place
            if rows_N.any():
                shares = {action: float(items_with_action(policy, codes, action)[rows_N].mean()) for action in policy.actions}
                found.append(GroupImpact(name, value, int(rows_N.sum()), shares))
    return found
