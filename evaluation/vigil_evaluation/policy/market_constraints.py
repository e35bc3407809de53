"""Resolve a policy into labels, actions and constraints for each market."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vigil_evaluation.policy.constraints import ACTIONS, TRAFFIC_METRICS, Rule
from vigil_evaluation.policy.specs import Action, Constraint, Policy


@dataclass(frozen=True, slots=True)
class MarketConstraints:
    """Labels and constraints of one market.

    Attributes:
        market: the market; ``None`` for all that the policy does not name.
        labels: label to its actions, in the order of precedence; labels without actions are omitted.
        rules: constraints on each label's actions and on the traffic.
    """

    market: str | None
    labels: Mapping[str, tuple[Action, ...]]
    rules: tuple[Rule, ...]

    def rules_of(self, action: str, label: str | None) -> list[Rule]:
        """Return the rules of one label's action, or of an action over all labels (``None``)."""
        return [rule for rule in self.rules if rule.action == action and rule.label == label]


def market_constraints(policy: Policy) -> list[MarketConstraints]:
    """Resolve a policy: first for all markets that are not named, then for each named one.

    If all rules must hold together, each gets an equal part of the error probability (Bonferroni).
    """
    found = [_resolve(policy, market) for market in (None, *policy.markets)]
    if not policy.together:
        return found
    count = sum(len(resolved.rules) for resolved in found)
    return [
        replace(resolved, rules=tuple(replace(rule, confidence=1 - (1 - rule.confidence) / count) for rule in resolved.rules))
        for resolved in found
    ]


def actions_of(policy: Policy) -> tuple[str, ...]:
    """Return the actions of a policy from the mildest to the strictest, including ``allow``."""
    return tuple(action for action in ACTIONS if action == ACTIONS[0] or action in policy.actions)


def labels_of(policy: Policy) -> tuple[str, ...]:
    """Return the labels that lead to an action in any market, in the order of precedence."""
    named = [label for market in (None, *policy.markets) for label, may in policy.labels_of(market).items() if may]
    return tuple(dict.fromkeys(named))


def _resolve(policy: Policy, market: str | None) -> MarketConstraints:
    labels = {label: may for label, may in policy.labels_of(market).items() if may}
    rules: list[Rule] = []
    for action in reversed(ACTIONS[1:]):
        if action not in policy.actions:
            continue
        must = policy.must(action, market)
        for label in (label for label, may in labels.items() if action in may):
            rules += [_rule(c, action, label, market, policy) for c in _constraints_of(label, must)]
        if any(action in may for may in labels.values()):
            rules += [_rule(c, action, None, market, policy) for c in must if c.metric in TRAFFIC_METRICS]
    return MarketConstraints(market, labels, tuple(rules))


def _constraints_of(label: str, must: tuple[Constraint, ...]) -> list[Constraint]:
    """Return the constraints of a label; one that names it replaces the general ones of the same metric."""
    mine = [c for c in must if c.metric not in TRAFFIC_METRICS and (not c.labels or label in c.labels)]
    named = {c.metric for c in mine if c.labels}
    return [c for c in mine if c.labels or c.metric not in named]


def _rule(constraint: Constraint, action: str, label: str | None, market: str | None, policy: Policy) -> Rule:
    confidence = policy.confidence if constraint.confidence is None else constraint.confidence
    return Rule(action, label, market, constraint.metric, constraint.bound, confidence, constraint.column, constraint.over)
