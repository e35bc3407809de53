"""A policy spelled out: in each market the labels, their actions, and every rule that a label or the traffic must keep."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vigil_evaluation.policy.constraints import ACTIONS, TRAFFIC_METRICS, Rule
from vigil_evaluation.policy.specs import Action, Constraint, Policy


@dataclass(frozen=True, slots=True)
class MarketConstraints:
    """What holds in one market.

    Attributes:
        market: which; ``None`` for all that the policy does not name.
        labels: label to its actions, in the order of precedence; labels without any are left out.
        rules: that the labels with their actions, and the traffic, must keep.
    """

    market: str | None
    labels: Mapping[str, tuple[Action, ...]]
    rules: tuple[Rule, ...]

    def of(self, action: str, label: str | None) -> list[Rule]:
        """The rules of one label's action, or of an action over all labels."""
        return [rule for rule in self.rules if rule.action == action and rule.label == label]


def market_constraints(policy: Policy) -> list[MarketConstraints]:
    """Spell a policy out: the scope of all markets that are not named, then those of the named ones.

    Where all rules are to hold together, each gets its share of the doubt (Bonferroni).
    """
    found = [_scope(policy, market) for market in (None, *policy.markets)]
    if not policy.together:
        return found
    count = sum(len(scope.rules) for scope in found)
    return [
        replace(scope, rules=tuple(replace(rule, confidence=1 - (1 - rule.confidence) / count) for rule in scope.rules))
        for scope in found
    ]


def actions_of(policy: Policy) -> tuple[str, ...]:
    """The actions of a policy, the mildest first, ``allow`` included."""
    return tuple(action for action in ACTIONS if action == ACTIONS[0] or action in policy.actions)


def labels_of(policy: Policy) -> tuple[str, ...]:
    """The labels that lead to an action in some market, in the order of precedence."""
    named = [label for market in (None, *policy.markets) for label, may in policy.labels_of(market).items() if may]
    return tuple(dict.fromkeys(named))


def _scope(policy: Policy, market: str | None) -> MarketConstraints:
    labels = {label: may for label, may in policy.labels_of(market).items() if may}
    rules: list[Rule] = []
    for action in reversed(ACTIONS[1:]):
        if action not in policy.actions:
            continue
        must = policy.must(action, market)
        for label in (label for label, may in labels.items() if action in may):
            rules += [_rule(c, action, label, market, policy) for c in _kept_by(label, must)]
        if any(action in may for may in labels.values()):
            rules += [_rule(c, action, None, market, policy) for c in must if c.metric in TRAFFIC_METRICS]
    return MarketConstraints(market, labels, tuple(rules))


def _kept_by(label: str, must: tuple[Constraint, ...]) -> list[Constraint]:
    """The constraints of a label: one that names it takes the place of the general ones of the same metric."""
    mine = [c for c in must if c.metric not in TRAFFIC_METRICS and (not c.labels or label in c.labels)]
    named = {c.metric for c in mine if c.labels}
    return [c for c in mine if c.labels or c.metric not in named]


def _rule(constraint: Constraint, action: str, label: str | None, market: str | None, policy: Policy) -> Rule:
    confidence = policy.confidence if constraint.confidence is None else constraint.confidence
    return Rule(action, label, market, constraint.metric, constraint.bound, confidence, constraint.column, constraint.over)
