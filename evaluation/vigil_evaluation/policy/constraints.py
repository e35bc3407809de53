"""Constraints of a policy, resolved for one action, label and market, and their results; plain data in a compiled policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from vigil_data.json_fields import Count, Fraction, NonNegative, OneOf

ACTIONS = ("allow", "label", "limit", "age_gate", "review", "remove")
"""All actions, from the mildest to the strictest."""

REVIEW = "review"
"""The action that sends an item to human review."""

CellKey = tuple[str | None, str | None]
"""A market and a presence pattern; ``None`` stands for all that have no thresholds of their own."""

Thresholds = Mapping[str, Mapping[str, float]]
"""Label to action to the lowest probability that triggers it; an action that is absent is never triggered."""

METRICS = ("precision", "false_positive_rate", "recall", "miss_rate", "expected_miss_rate", "share_of_traffic", "overturned")
"""Metrics that a constraint can bound; docs/policy.md defines them."""

TRAFFIC_METRICS = ("share_of_traffic", "overturned")
"""Metrics of all labels together; each label satisfies the others by itself."""

LOWER_BOUNDED_METRICS = ("precision", "recall")
"""Metrics with a lower bound; the others have an upper bound."""

THRESHOLD_FLOOR_METRICS = ("precision", "false_positive_rate", "share_of_traffic", "overturned")
"""Metrics whose constraints keep thresholds from falling; those of the others keep thresholds from rising."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One constraint, resolved.

    Attributes:
        action: the action that it constrains.
        label: the label that satisfies it; ``None`` for a constraint on all labels together.
        market: the market; ``None`` for all without constraints of their own.
        metric: one of :data:`METRICS`.
        bound: the least (precision, recall) or the largest (the others) allowed value of the metric.
        confidence: confidence at which it holds on items like those that the policy is compiled on; see docs/policy.md.
        column: the constraint holds for every value of this column; ``None`` for all items together.
        over: values with at most this many items are exempt.
    """

    action: Annotated[str, OneOf(ACTIONS)]
    label: str | None
    market: str | None
    metric: Annotated[str, OneOf(METRICS)]
    bound: Fraction
    confidence: Fraction
    column: str | None = None
    over: Count = 0

    @property
    def at_least(self) -> bool:
        """Whether the bound is a lower bound."""
        return self.metric in LOWER_BOUNDED_METRICS

    def __str__(self) -> str:
        words = f"{self.metric.replace('_', ' ')} at {'least' if self.at_least else 'most'} {format_percent(self.bound)}"
        if self.column is not None:
            words += f" in every {self.column}" + (f" with over {self.over} items" if self.over else "")
        return words

    @property
    def place(self) -> str:
        """The thresholds that it constrains, such as ``hate/remove in market de``."""
        of = self.action if self.label is None else f"{self.label}/{self.action}"
        return of if self.market is None else f"{of} in market {self.market}"


@dataclass(frozen=True, slots=True)
class ConstraintResult:
    """A constraint, measured on some items.

    Attributes:
        rule: the constraint.
        group: the value of the rule's column with the worst result; ``None`` without a column.
        estimate: the metric on these items, weighted if they have weights; ``None`` where no target is known.
        low: lower end of its two-sided interval at the rule's confidence.
        high: upper end.
        bound: one-sided confidence bound of the metric, compared with the rule's bound: a lower bound for "at least".
        margin: distance of that bound from the rule's bound; negative if the constraint is not shown to hold.
        count: items that count towards the metric: correct ones, flagged ones, missed ones.
        rows: items in the metric's denominator.
        met: whether the estimate satisfies the constraint.
        confirmed: whether the one-sided bound does.
    """

    rule: Rule
    group: str | None
    estimate: float | None
    low: float | None
    high: float | None
    bound: float | None
    margin: float | None
    count: Count
    rows: Count
    met: bool | None
    confirmed: bool | None

    @property
    def status(self) -> str:
        """The result in a word or two: ``confirmed``, ``not confirmed`` (may hold by chance), ``violated`` or ``unknown``."""
        if self.estimate is None:
            return "unknown"
        return "confirmed" if self.confirmed else "not confirmed" if self.met else "violated"


@dataclass(frozen=True, slots=True)
class Appeals:
    """Expected appeals against an action.

    Attributes:
        wrong: fraction of the wrong actions that are appealed, and then overturned.
        right: fraction of the correct actions that are appealed, and then upheld.
        cost: cost of one appeal.
    """

    wrong: Fraction
    right: Fraction
    cost: NonNegative


def preceding_actions(action: str, review: str | None) -> tuple[str, ...]:
    """Return the stricter actions whose items this action does not get; review ``alongside`` milder actions takes none."""
    stricter = ACTIONS[ACTIONS.index(action) + 1 :]
    return tuple(other for other in stricter if not (other == REVIEW and review == "alongside"))


def format_percent(share: float) -> str:
    """Format a fraction as policies write it: 0.005 is ``0.5 %``."""
    return f"{100 * share:.10g} %"
