"""Constraints of a policy, resolved for one action, label and market, and their results; plain data in a compiled policy.

Constraints are written as sentences, such as ``false-positive rate at most 0.5 % in every language with over 500 items``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

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
        words = format_bound(self, self.bound)
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


def format_bound(rule: Rule, bound: float) -> str:
    """Format a rule's metric with another bound, such as ``precision at least 85 %``."""
    return f"{rule.metric.replace('_', ' ')} at {'least' if rule.at_least else 'most'} {format_percent(bound)}"


def format_percent(share: float) -> str:
    """Format a fraction as policies write it: 0.005 is ``0.5 %``."""
    return f"{100 * share:.10g} %"


_NUMBER = r"(\d+(?:\.\d+)?)\s*(%?)"
_LEAST, _MOST = r"(?:at least|>=|≥)", r"(?:at most|<=|≤)"

_HEADS = {
    "precision": rf"precision {_LEAST} {_NUMBER}",
    "false_positive_rate": rf"false[- ]positive[- ]rate {_MOST} {_NUMBER}",
    "recall": rf"recall {_LEAST} {_NUMBER}",
    "expected_miss_rate": rf"expected miss rate {_MOST} {_NUMBER}",
    "miss_rate": rf"miss rate {_MOST} {_NUMBER}",
    "share_of_traffic": rf"{_MOST} {_NUMBER} of traffic",
    "overturned": rf"overturned {_MOST} {_NUMBER} of traffic",
}

_TAILS = {
    "column": r" in every ([A-Za-z_][A-Za-z0-9_.]*)(?: with over (\d[\d,_]*) items)?",
    "labels": r" for ([a-z][a-z0-9_]*(?:(?:, | and )[a-z][a-z0-9_]*)*)",
    "confidence": rf" (?:with|at) {_NUMBER} confidence",
}

EXAMPLES = (
    "precision at least 95 %",
    "false-positive rate at most 0.5 % in every language with over 500 items",
    "recall at least 60 % for hate",
    "miss rate at most 30 %",
    "expected miss rate at most 20 %",
    "at most 2 % of traffic",
    "overturned at most 0.1 % of traffic",
)
"""One example per metric. A column, labels, and ``with 90 % confidence`` may follow."""


def parse_constraint(sentence: str) -> dict[str, Any]:
    """Parse a constraint sentence.

    Args:
        sentence: one of :data:`EXAMPLES` with other numbers, columns and labels.

    Returns:
        ``metric`` and ``bound``; if stated, also ``column``, ``over``, ``labels`` and ``confidence``.

    Raises:
        ValueError: if it does not parse; the message lists the valid forms.
    """
    text = " ".join(sentence.split())
    for metric, head in _HEADS.items():
        if found := re.match(head, text, re.IGNORECASE):
            read = {"metric": metric, "bound": parse_share(found.group(1) + found.group(2))}
            return read | _tails(text[found.end() :], sentence)
    raise ValueError(f"is not a constraint: {sentence!r}; write one of: {' | '.join(EXAMPLES)}")


def parse_share(value: Any) -> Any:
    """Convert a fraction to a number: ``5 %`` is 0.05, and 0.05 is itself; other values are returned unchanged."""
    if isinstance(value, str) and (found := re.fullmatch(_NUMBER, value.strip())):
        number = float(found.group(1))
        # Dividing by 100 gives the float closest to the written number, which multiplying by 0.01 does not.
        return number / 100 if found.group(2) else number
    return value


def _tails(rest: str, sentence: str) -> dict[str, Any]:
    read: dict[str, Any] = {}
    while rest:
        for name, tail in _TAILS.items():
            if name not in read and (found := re.match(tail, rest, re.IGNORECASE)):
                break
        else:
            raise ValueError(
                f"does not parse from {rest.strip()!r} on, in {sentence!r}; after the number write: "
                "in every COLUMN with over 500 items | for LABEL | with 90 % confidence"
            )
        if name == "column":
            read |= {"column": found.group(1), "over": int(re.sub(r"[,_]", "", found.group(2) or "0"))}
        elif name == "labels":
            read["labels"] = tuple(re.split(r", | and ", found.group(1)))
        else:
            read["confidence"] = parse_share(found.group(1) + found.group(2))
        rest = rest[found.end() :]
    return read
