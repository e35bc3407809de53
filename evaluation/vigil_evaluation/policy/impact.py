"""Impact of a compiled policy on items: decisions, volumes, costs, appeals, harm caught, and whether its constraints hold."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.presence import PRESENCE
from vigil_data.progress import ProgressCallback
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.compiled_policy import CompiledPolicy, DecisionCodes
from vigil_evaluation.policy.constraint_check import ItemThresholds, check_rules, decide_traffic, items_with_action
from vigil_evaluation.policy.constraint_tests import ConstraintCounts, confidence_bounds, inverse_design_effect, weight_sums
from vigil_evaluation.policy.constraints import ACTIONS, REVIEW, ConstraintResult, Rule
from vigil_evaluation.policy.policy_data import MARKET, Traffic, evaluation_traffic, read_traffic
from vigil_evaluation.stats.intervals import Interval


@dataclass(frozen=True, slots=True)
class ActionImpact:
    """Impact of one action.

    Attributes:
        action: the action; ``review`` counts all reviewed items, also those that get another action meanwhile.
        items: items that get it.
        share: fraction of all items, by their weights.
        interval: interval of the fraction.
        judged: items whose decisive label has a known target.
        right: fraction of these whose decisive label is true; ``None`` for ``allow`` and without such items.
        right_interval: interval of that fraction.
        cost: total cost of its items; with weights, costs and appeals are those of as many items of the weighted traffic.
        appeals: expected number of appeals; ``None`` without appeals, or if no target is known.
        overturned: expected number of overturned appeals.
        appeals_cost: expected cost of the appeals.
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
    """Impact on the positives of one label.

    Attributes:
        label: the label.
        severity: harm of a miss.
        positives: known positives.
        caught: fraction of them that get any action, for any label; ``None`` without positives.
        caught_interval: interval of that fraction.
        by_action: action to the fraction of the positives that get it, including ``allow``.
        negatives: known negatives.
        decided: items whose decisive label it is.
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
    """Impact on the items with one value of a column.

    Attributes:
        column: the column.
        value: the value; ``None`` for null.
        items: items with the value.
        actions: action to the weighted fraction of them that get it; items reviewed alongside another action count for both.
    """

    column: str
    value: str | None
    items: int
    actions: dict[str, float]


@dataclass(frozen=True, slots=True)
class PolicyImpact:
    """Impact of a policy on items.

    Attributes:
        name: name of the policy.
        version: version of the policy.
        digest: SHA-256 of the policy.
        review: whether review goes ``before`` milder actions or ``alongside`` them.
        items: number of items.
        confidence: confidence of the intervals.
        actions: impact of each action, from the mildest to the strictest.
        labels: impact on each label, in the order of precedence.
        constraints: each rule, measured on these items.
        harm_caught: fraction of the harm that gets any action: known positives weighted by the severities of their labels.
        cost: expected cost of all actions and appeals; ``None`` if appeals cannot be estimated.
        by: impact by value of presence, market and the policy's columns.
        notes: notes of the compilation, such as that the labelled items were assumed to be a random sample.
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
    notes: list[str]


REASON = pa.struct([("label", pa.string()), ("action", pa.string()), ("probability", pa.float32()), ("threshold", pa.float32())])
"""Type of a reason, as in the table of `vigil score`."""

DECISION_ROWS = 65_536
"""Rows that are decided between two reports of progress."""

MAX_COLUMN_VALUES = 50
"""Most listed values of a column; the rarest are omitted."""


def policy_impact(
    policy: CompiledPolicy,
    table: pa.Table,
    *,
    columns: Sequence[str] = (),
    cluster: str | None = None,
    confidence: float = 0.95,
) -> PolicyImpact:
    """Measure the impact of a policy on the items of a table.

    Args:
        policy: the policy.
        table: see :mod:`vigil_evaluation.predictions`; constraints on columns that it lacks are ignored.
        columns: additional columns to break the impact down by.
        cluster: column of the items that belong together (default: items are independent).
        confidence: confidence of the intervals.

    Raises:
        UserError: if the table lacks a label of the policy.
    """
    columns = [*_constraint_columns(policy), *columns]
    return _impact(policy, read_traffic(table, policy.labels, columns, cluster, lenient=True), columns, confidence)


def evaluation_impact(policy: CompiledPolicy, data: EvaluationData) -> PolicyImpact:
    """Measure the impact of a policy on the items of an evaluation, broken down by its slices; see :func:`policy_impact`."""
    columns = [*_constraint_columns(policy), *(name for name in data.spec.slices if name in data.columns)]
    return _impact(policy, evaluation_traffic(data, policy.labels, columns), columns, data.spec.confidence)


def decisions_table(policy: CompiledPolicy, table: pa.Table, progress: ProgressCallback | None = None) -> pa.Table:
    """Decide on each item of a table.

    Args:
        policy: the policy.
        table: see :mod:`vigil_evaluation.predictions`; without presence or market, the thresholds for all others apply.
        progress: called with ``deciding``, the items done and their number.

    Returns:
        One row per item, with columns named as in the table of `vigil score`: ``id``; ``probability.LABEL``; ``action``, whether
        the item goes to ``review``, and all ``reasons``; ``label`` and ``threshold`` of the decisive reason, null for allowed
        items; ``presence`` and ``market`` if the table has them; ``policy``, its name and version.

    Raises:
        UserError: if the table lacks a label of the policy.
    """
    traffic = read_traffic(table, policy.labels, lenient=True)
    texts = {name: traffic.columns[name].texts() for name in (PRESENCE, MARKET) if name in traffic.columns}
    presence = [value or "" for value in texts.get(PRESENCE, [""] * traffic.items)]
    parts: dict[str, list[pa.Array]] = {}
    for start in range(0, max(traffic.items, 1), DECISION_ROWS):
        rows = slice(start, start + DECISION_ROWS)
        market = texts[MARKET][rows] if MARKET in texts else None
        decisions = policy.decide(traffic.probabilities_NL[rows], traffic.labels, presence[rows], market)
        first = [decision.reasons[0] if decision.reasons else None for decision in decisions]
        columns = {
            "action": pa.array([decision.action for decision in decisions], pa.string()),
            "review": pa.array([decision.review for decision in decisions], pa.bool_()),
            "label": pa.array([reason and reason.label for reason in first], pa.string()),
            "threshold": pa.array([reason and reason.threshold for reason in first], pa.float32()),
            "reasons": pa.array([[asdict(r) for r in decision.reasons] for decision in decisions], pa.list_(REASON)),
        }
        for name, values in columns.items():
            parts.setdefault(name, []).append(values)
        if progress is not None:
            progress("deciding", min(start + DECISION_ROWS, traffic.items), traffic.items)
    probabilities = {f"probability.{label}": pa.array(traffic.probabilities_NL[:, i]) for i, label in enumerate(traffic.labels)}
    decided = {name: pa.chunked_array(values) for name, values in parts.items()}
    kept = {name: pa.array(values, pa.string()) for name, values in texts.items()}
    titles = pa.DictionaryArray.from_arrays(np.zeros(traffic.items, np.int32), [policy.title])
    return pa.table({"id": table.column("id"), **probabilities, **decided, **kept, "policy": titles})


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
        policy.notes,
    )


def harm_caught(policy: CompiledPolicy, traffic: Traffic, acted_N: NDArray[np.bool_]) -> float | None:
    """Return the fraction of harm, known positives weighted by severity, in items with an action; ``None`` without harm."""
    severity_L = np.array([policy.severities.get(label, 1.0) for label in traffic.labels])
    harm_N = traffic.positive_NL @ severity_L
    if traffic.weights.label_N is not None:
        harm_N = harm_N * traffic.weights.label_N
    total = float(harm_N.sum())
    return float(harm_N[acted_N].sum()) / total if total else None


class ShareEstimate(NamedTuple):
    """A fraction and its interval; ``None`` without items."""

    value: float | None
    interval: Interval | None


def estimate_share(
    outcome_N: NDArray[np.bool_],
    traffic: Traffic,
    within_N: NDArray[np.bool_],
    confidence: float,
    weights_N: Floats | None = None,
) -> ShareEstimate:
    """Estimate a fraction with its Clopper-Pearson interval, from effective counts if items have units or weights."""
    rows = int(within_N.sum())
    if not rows:
        return ShareEstimate(None, None)
    rule = Rule("review", None, None, "share_of_traffic", 0.5, confidence)
    hit, weights, sums = outcome_N[within_N], None, None
    if weights_N is not None:
        weights, everything = weights_N[within_N], np.ones(rows, bool)
        sums = weight_sums(np.where(hit, 0, 1), 1, everything, None, weights, everything)
    effective = inverse_design_effect(hit, None if traffic.units_N is None else traffic.units_N[within_N], weights)
    counts = ConstraintCounts(None, np.array([float(hit.sum())]), np.array([float(rows)]), np.array([effective]), sums)
    low, high = confidence_bounds(rule, counts, (1 + confidence) / 2)
    return ShareEstimate(float(np.average(hit, weights=weights)), Interval(float(low[0]), float(high[0])))


def _action(policy: CompiledPolicy, traffic: Traffic, codes: DecisionCodes, action: str, confidence: float) -> ActionImpact:
    hit_N = items_with_action(policy, codes, action)
    everything_N = np.ones(traffic.items, bool)
    share = estimate_share(hit_N, traffic, everything_N, confidence, traffic.weights.item_N)
    items = int(hit_N.sum())
    volume = items if traffic.weights.item_N is None or share.value is None else share.value * traffic.items
    cost = policy.costs.get(action, 0.0) * volume
    if action == ACTIONS[0] or not items:
        appeals = (0.0, 0.0, 0.0) if action in policy.appeals else (None, None, None)
        return ActionImpact(action, items, share.value or 0.0, share.interval, 0, None, None, cost, *appeals)
    right_N, wrong_N, _ = decisive_label_targets(policy, traffic, codes, action)
    judged_N = hit_N & (right_N | wrong_N)
    right = estimate_share(right_N, traffic, judged_N, confidence, traffic.weights.label_N)
    expected = policy.appeals.get(action)
    appeals = (None, None, None)
    if expected is not None and right.value is not None:
        overturned = expected.wrong * (1 - right.value) * volume
        appealed = overturned + expected.right * right.value * volume
        appeals = (appealed, overturned, appealed * expected.cost)
    judged = int(judged_N.sum())
    return ActionImpact(action, items, share.value or 0.0, share.interval, judged, right.value, right.interval, cost, *appeals)


def decisive_label_targets(
    policy: CompiledPolicy, traffic: Traffic, codes: DecisionCodes, action: str | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Return whether each item's decisive label is known to be true, whether it is known to be false, and its index.

    Args:
        policy: the policy.
        traffic: the items.
        codes: the policy's decisions on them.
        action: ``review`` selects the label that sends an item to review, where that goes alongside another action.
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
    weights_N = traffic.weights.label_N
    caught = estimate_share(codes.actions_N > 0, traffic, positive_N, confidence, weights_N)
    weights = None if weights_N is None else weights_N[positive_N]
    by: Mapping[str, NDArray[np.bool_]] = {
        action: items_with_action(policy, codes, action)[positive_N] for action in policy.actions
    }
    return LabelImpact(
        label,
        policy.severities.get(label, 1.0),
        int(positive_N.sum()),
        caught.value,
        caught.interval,
        {action: float(np.average(hit, weights=weights)) if len(hit) else None for action, hit in by.items()},
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
                weights = None if traffic.weights.item_N is None else traffic.weights.item_N[rows_N]
                shares = {
                    action: float(np.average(items_with_action(policy, codes, action)[rows_N], weights=weights))
                    for action in policy.actions
                }
                found.append(GroupImpact(name, value, int(rows_N.sum()), shares))
    return found
