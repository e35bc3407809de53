"""What a policy promises, one rule at a time, and what was found of it; plain data that a compiled policy carries along."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vigil_data import json_fields

ACTIONS = ("allow", "label", "limit", "age_gate", "review", "remove")
"""All actions there are, the mildest first."""

REVIEW = "review"
"""The action that is people's."""

CellKey = tuple[str | None, str | None]
"""A market and a presence pattern; ``None`` stands for all that have no thresholds of their own."""

Thresholds = Mapping[str, Mapping[str, float]]
"""Label to action to the lowest probability that calls for it; an action that is absent is never called for."""

METRICS = ("precision", "false_positive_rate", "recall", "miss_rate", "expected_miss_rate", "share_of_traffic", "overturned")
"""What a rule can bound; docs/policy.md defines each."""

TRAFFIC_METRICS = ("share_of_traffic", "overturned")
"""Rules over all labels together; the others are kept by each label by itself."""

LOWER_BOUNDED_METRICS = ("precision", "recall")
"""Metrics of which a rule wants much; of the others it wants little."""

THRESHOLD_FLOOR_METRICS = ("precision", "false_positive_rate", "share_of_traffic", "overturned")
"""Rules that keep thresholds from falling; the others keep them from rising."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One promise of a policy.

    Attributes:
        action: of which action.
        label: kept by which label; ``None`` for a rule over all labels together.
        market: in which market; ``None`` for all that have no rules of their own.
        metric: one of :data:`METRICS`.
        bound: the least (precision, recall) or the most (the others) that it may be.
        confidence: with which it is to hold on items like those that the policy is compiled on; see docs/policy.md.
        column: it is to hold for every value of this column; ``None`` for all items together.
        over: values with at most so many items are passed over.
    """

    action: str
    label: str | None
    market: str | None
    metric: str
    bound: float
    confidence: float
    column: str | None = None
    over: int = 0

    @property
    def at_least(self) -> bool:
        """Whether the metric is to be at least the bound, rather than at most."""
        return self.metric in LOWER_BOUNDED_METRICS

    def __str__(self) -> str:
        words = f"{self.metric.replace('_', ' ')} at {'least' if self.at_least else 'most'} {format_percent(self.bound)}"
        if self.column is not None:
            words += f" in every {self.column}" + (f" with over {self.over} items" if self.over else "")
        return words

    @property
    def place(self) -> str:
        """Which thresholds it speaks of, such as ``hate/remove in de``."""
        of = self.action if self.label is None else f"{self.label}/{self.action}"
        return of if self.market is None else f"{of} in market {self.market}"

    @classmethod
    def from_dict(cls, value: Any, where: str) -> "Rule":
        """Read one that was written as JSON.

        Raises:
            UserError: one line, if it is malformed.
        """
        read = json_fields.mapping(value, where, cls.__slots__)
        for name, allowed in (("action", ACTIONS), ("metric", METRICS)):
            if read[name] not in allowed:
                json_fields.wrong(f"{where}.{name}", f"must be one of {', '.join(allowed)}")
        return cls(
            read["action"],
            optional_text(read["label"], f"{where}.label"),
            optional_text(read["market"], f"{where}.market"),
            read["metric"],
            json_fields.number(read["bound"], f"{where}.bound", 0, 1),
            json_fields.number(read["confidence"], f"{where}.confidence", 0, 1),
            optional_text(read["column"], f"{where}.column"),
            json_fields.count(read["over"], f"{where}.over"),
        )


@dataclass(frozen=True, slots=True)
class ConstraintResult:
    """What some items say of a rule.

    Attributes:
        rule: the promise.
        group: the value of the rule's column that does worst; ``None`` without a column.
        estimate: the metric on these items; ``None`` where nothing is known of it.
        low: lower end of its interval at the rule's confidence (both sides together).
        high: upper end.
        bound: the one-sided bound at the rule's confidence that is compared with what was promised: below it for "at least".
        margin: how far that bound is on the right side of the promise; negative if it is not.
        count: items that count towards the metric: right ones, flagged ones, missed ones.
        rows: items that it is a share of.
        met: whether the estimate keeps the promise.
        confirmed: whether the bound does.
    """

    rule: Rule
    group: str | None
    estimate: float | None
    low: float | None
    high: float | None
    bound: float | None
    margin: float | None
    count: int
    rows: int
    met: bool | None
    confirmed: bool | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any, where: str) -> "ConstraintResult":
        """Read what :meth:`to_dict` made.

        Raises:
            UserError: one line, if it is malformed.
        """
        read = json_fields.mapping(value, where, cls.__slots__)
        numbers = {
            name: None if read[name] is None else json_fields.number(read[name], f"{where}.{name}")
            for name in ("estimate", "low", "high", "bound", "margin")
        }
        for name in ("met", "confirmed"):
            if read[name] is not None and not isinstance(read[name], bool):
                json_fields.wrong(f"{where}.{name}", "must be true, false or null")
        return cls(
            Rule.from_dict(read["rule"], f"{where}.rule"),
            optional_text(read["group"], f"{where}.group"),
            numbers["estimate"],
            numbers["low"],
            numbers["high"],
            numbers["bound"],
            numbers["margin"],
            json_fields.count(read["count"], f"{where}.count"),
            json_fields.count(read["rows"], f"{where}.rows"),
            read["met"],
            read["confirmed"],
        )


@dataclass(frozen=True, slots=True)
class Appeals:
    """What follows from an action that its author can appeal.

    Attributes:
        wrong: share of the wrong actions that are appealed, and then overturned.
        right: share of the right ones that are appealed, and then upheld.
        cost: of one appeal.
    """

    wrong: float
    right: float
    cost: float


def preceding_actions(action: str, review: str | None) -> tuple[str, ...]:
    """The stricter actions that take an item away from this one; ``alongside`` milder actions review takes none."""
    stricter = ACTIONS[ACTIONS.index(action) + 1 :]
    return tuple(other for other in stricter if not (other == REVIEW and review == "alongside"))


def format_percent(share: float) -> str:
    """A share as a policy says it: 0.005 is ``0.5 %``."""
    return f"{100 * share:.10g} %"


def optional_text(value: Any, where: str) -> str | None:
    """A string or null.

    Raises:
        UserError: if it is neither.
    """
    return None if value is None else json_fields.text(value, where)
