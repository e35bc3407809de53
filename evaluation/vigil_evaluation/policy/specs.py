"""Schema of a policy's YAML, and its resolution into labels, actions and constraints for each market."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from vigil_data.specs import Spec
from vigil_evaluation.policy.constraints import (
    ACTIONS,
    LOWER_BOUNDED_METRICS,
    THRESHOLD_FLOOR_METRICS,
    TRAFFIC_METRICS,
    Rule,
    parse_constraint,
    parse_share,
)

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Action = Literal["label", "limit", "age_gate", "review", "remove"]
Proportion = Annotated[float, BeforeValidator(parse_share), Field(ge=0, le=1)]
Metric = Literal[
    "precision", "false_positive_rate", "recall", "miss_rate", "expected_miss_rate", "share_of_traffic", "overturned"
]


class Constraint(Spec):
    """A constraint on an action, written as a sentence."""

    metric: Metric
    bound: Annotated[float, Field(ge=0, le=1)]
    column: str | None = None
    over: int = Field(0, ge=0)
    labels: tuple[Label, ...] = ()
    confidence: Annotated[float, Field(ge=0.5, lt=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            return parse_constraint(value)
        if isinstance(value, Mapping):
            return value
        raise ValueError("must be a sentence, such as: precision at least 95 %")

    @model_validator(mode="after")
    def _can_hold(self) -> "Constraint":
        if self.bound >= 1 and self.metric in LOWER_BOUNDED_METRICS:
            raise ValueError("at least 100 % can never be shown on a sample; lower the bound")
        if self.bound <= 0 and self.metric not in LOWER_BOUNDED_METRICS:
            raise ValueError("at most 0 % can never be shown on a sample; raise the bound")
        if self.labels and self.metric in TRAFFIC_METRICS:
            raise ValueError("a share of traffic covers all labels; remove 'for LABEL'")
        if self.column is not None and self.metric == "overturned":
            raise ValueError("overturned is a share of all traffic; remove 'in every …'")
        return self


class AppealsSpec(Spec):
    """Expected appeals against an action."""

    wrong: Proportion = Field(description="fraction of the wrong actions that are appealed, and then overturned")
    right: Proportion = Field(
        0.0, description="fraction of the correct actions that are appealed, and then upheld", validate_default=True
    )
    cost: float = Field(0.0, ge=0, description="cost of one appeal, in the unit of all costs")


class ActionSpec(Spec):
    """Constraints and costs of an action."""

    must: tuple[Constraint, ...] = Field((), description="constraint sentences; see docs/policy.md")
    cost: float = Field(0.0, ge=0, description="cost of each item that gets the action")
    appeals: AppealsSpec | None = None


class MarketAction(Spec):
    """Constraints on an action in one market."""

    must: tuple[Constraint, ...] = Field(description="constraint sentences that replace the general ones")


class Market(Spec):
    """Exceptions of one market."""

    actions: Mapping[Action, MarketAction] = Field({}, description="actions with other constraints in this market")
    labels: Mapping[Label, tuple[Action, ...]] = Field(
        {}, description="labels with other actions in this market; an empty list for none"
    )


class Policy(Spec):
    """Actions that labels may lead to, and the constraints on each."""

    name: Name
    version: int = Field(1, ge=1)
    description: str = Field("", description="purpose of the policy")
    confidence: Annotated[float, BeforeValidator(parse_share), Field(gt=0.5, lt=1)] = Field(
        0.95, description="confidence of each constraint that does not state its own"
    )
    together: bool = Field(False, description="whether all constraints must hold jointly at that confidence, not each by itself")
    review: Literal["before", "alongside"] = Field(
        "before",
        description="before: an item sent to review waits there; alongside: a milder action that it qualifies for is taken",
    )
    presence: Literal["where_it_pays", "never"] = Field(
        "where_it_pays", description="separate thresholds by presence pattern, where they catch more on held-out items"
    )
    actions: Mapping[Action, ActionSpec] = Field(min_length=1, description="the actions in use")
    labels: Mapping[Label, tuple[Action, ...]] = Field(
        min_length=1, description="label to the actions it may lead to; where two trigger the same one, the first label decides"
    )
    severities: Mapping[Label, Annotated[float, Field(ge=0)]] = Field(
        {}, description="harm of a miss, in place of the taxonomy's"
    )
    markets: Mapping[str, Market] = Field({}, description="exceptions where the column market has this value")

    @model_validator(mode="after")
    def _fits(self) -> "Policy":
        problems = _problems(self, None)
        for market in self.markets:
            problems += _problems(self, market)
        if unknown := sorted(set(self.severities) - set(self.labels)):
            problems += [f"severities.{label}: the label leads to no action" for label in unknown]
        if problems:
            raise ValueError("\n".join(dict.fromkeys(problems)))
        return self

    def labels_of(self, market: str | None) -> dict[str, tuple[Action, ...]]:
        """Return the actions of each label in a market; ``None`` for all markets that are not named."""
        return {**self.labels, **({} if market is None else self.markets[market].labels)}

    def must(self, action: Action, market: str | None) -> tuple[Constraint, ...]:
        """Return the constraints on an action in a market."""
        other = None if market is None else self.markets[market].actions.get(action)
        return self.actions[action].must if other is None else other.must

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the policy reads, in addition to presence."""
        everywhere = [block.must for block in self.actions.values()]
        musts = everywhere + [block.must for market in self.markets.values() for block in market.actions.values()]
        named = [constraint.column for must in musts for constraint in must if constraint.column is not None]
        return tuple(dict.fromkeys([*(["market"] if self.markets else []), *named]))


def _problems(policy: Policy, market: str | None) -> list[str]:
    """Return inconsistencies, each with the key of its value."""
    where = "" if market is None else f"markets.{market}."
    labels = policy.labels_of(market)
    used = {action for of in labels.values() for action in of}
    problems = [f"{where}labels.{label} names {a} twice" for label, of in labels.items() for a in set(of) if of.count(a) > 1]
    for label, of in labels.items():
        problems += [f"{where}labels.{label} leads to {a}, which is not under actions" for a in of if a not in policy.actions]
    if not used:
        problems.append(f"{where}labels lead to no action")
    if market is None:
        elsewhere = {a for other in policy.markets.values() for of in other.labels.values() for a in of}
        problems += [
            f"actions.{action} has no label that leads to it" for action in policy.actions if action not in used | elsewhere
        ]
    else:
        problems += [
            f"{where}actions.{a} has no label that leads to it here" for a in policy.markets[market].actions if a not in used
        ]
    for action in policy.actions:
        if action in used:
            problems += _problems_of_action(policy, market, action, [label for label, of in labels.items() if action in of])
    return problems


def _problems_of_action(policy: Policy, market: str | None, action: Action, of: Sequence[str]) -> list[str]:
    own = market is not None and action in policy.markets[market].actions
    where = f"markets.{market}.actions.{action}" if own else f"actions.{action}"
    must, appeals = policy.must(action, market), policy.actions[action].appeals
    problems = []
    if own or market is None:
        wrong = sorted({label for constraint in must for label in constraint.labels} - set(of))
        problems += [f"{where}.must constrains {label}, which does not lead to {action}" for label in wrong]
    if any(c.metric == "overturned" for c in must) and not (appeals and appeals.wrong):
        problems.append(f"{where}.must constrains overturned, which needs appeals.wrong, the fraction of wrong actions appealed")
    free = [x for x in of if not any(c.metric in THRESHOLD_FLOOR_METRICS and (not c.labels or x in c.labels) for c in must)]
    if free:
        problems.append(f"{where}.must sets no lower limit on thresholds of {', '.join(free)}; add, say: precision at least 90 %")

    return problems


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
