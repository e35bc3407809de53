"""What a policy asks and the items cannot show, with the nearest that they can."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from vigil_evaluation.policy.constraints import Rule, format_percent

BOUND_STEPS = 1000
"""Feasible bounds are given in steps of one part in this, or for small bounds in a hundredth of them."""


@dataclass(frozen=True, slots=True)
class ClosestFeasible:
    """How near the items come to one rule.

    Attributes:
        rule: the rule.
        bound: the best one-sided bound of its metric at any single threshold; ``None`` where nothing is known.
        threshold: where that is.
        count: items that count towards the metric there.
        rows: items that it is a share of.
        group: the value of the rule's column for which that is the worst.
        feasible_at: the nearest bound to promise with which the policy could be kept, all else being the same.
        more: about how many more labelled items would show what is promised, if they are like those that there are; ``None``
            where no number would.
        kind: of which items those are: ``positive`` or ``negative``; empty for any.
        without: the label's other rules, if only without them ``feasible_at`` is feasible.
    """

    rule: Rule
    bound: float | None = None
    threshold: float | None = None
    count: int = 0
    rows: int = 0
    group: str | None = None
    feasible_at: float | None = None
    more: int | None = None
    kind: str = ""
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = f"{self.rule} cannot be shown at {format_percent(self.rule.confidence)} confidence"
        if self.bound is not None:
            side = "lower" if self.rule.at_least else "upper"
            where = f"threshold {self.threshold:.4g}, " if self.threshold is not None else ""
            of = "" if self.group is None else f" for {self.group}"
            within = self.bound >= self.rule.bound if self.rule.at_least else self.bound <= self.rule.bound
            but = ", too little for thresholds chosen among many" if within else ""
            words += f": the best {side} bound{of} at any threshold is {_short(self.bound)} ({where}{self._counted()}){but}"
        ways = []
        if self.feasible_at is not None:
            without = f" without {' and '.join(self.without)}" if self.without else ""
            ways.append(f"feasible at {'least' if self.rule.at_least else 'most'} {format_percent(self.feasible_at)}{without}")
        if self.more is not None:
            ways.append(f"{'or ' if ways else 'feasible '}with about {self.more:,} more labelled {self.kind or 'item'}s")
        elif self.feasible_at is not None and self.kind:
            ways.append("and more labels alone would not help")
        return words + ("; " + ", ".join(ways) if ways else "")

    def _counted(self) -> str:
        what = {
            "precision": "right",
            "recall": "caught",
            "miss_rate": "caught",
            "expected_miss_rate": "caught",
            "false_positive_rate": "hit wrongly",
        }.get(self.rule.metric, "hit")
        return f"{self.count:,} of {self.rows:,} {what}"


@dataclass(frozen=True, slots=True)
class InfeasibleAction:
    """Why one label's action, or one action of all labels, finds no threshold.

    Attributes:
        place: such as ``hate/remove``.
        why: in words.
        rules: how near the items come to the rules that stand in the way.
    """

    place: str
    why: str
    rules: tuple[ClosestFeasible, ...]

    def __str__(self) -> str:
        parts = [self.why] if self.why else []
        return f"{self.place}: " + "; ".join([*parts, *map(str, self.rules)])


@dataclass(frozen=True, slots=True)
class InfeasiblePolicy:
    """A policy that cannot be shown to be kept.

    Attributes:
        name: of the policy.
        version: of the policy.
        problems: what stands in the way, all of it.
        facts: what the policy was compiled on.
    """

    name: str
    version: int
    problems: tuple[InfeasibleAction, ...]
    facts: dict[str, str]

    @property
    def lines(self) -> list[str]:
        """For people: what cannot be shown, and the nearest that can."""
        return [f"policy {self.name} version {self.version} is infeasible", *map(str, self.problems)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"feasible": False, **asdict(self)}


def closest_feasible_bound(rule: Rule, feasible: Callable[[Rule], bool]) -> float | None:
    """The bound nearest to the rule's with which it is feasible, rounded to the safe side; ``None`` if none is.

    Args:
        rule: as it is promised; infeasible.
        feasible: whether a rule like it can be kept.
    """
    loosest = 0.0 if rule.at_least else 1.0
    if not feasible(replace(rule, bound=loosest + (1e-6 if rule.at_least else -1e-6))):
        return None
    good, bad = loosest, rule.bound
    for _ in range(24):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if feasible(replace(rule, bound=middle)) else (good, middle)
    # Sequences begin elsewhere for another bound, so what is named is tried as it is named.
    unit = BOUND_STEPS if max(good, rule.bound) >= 0.05 else 100 * BOUND_STEPS
    step = (good * unit) // 1 if rule.at_least else -((-good * unit) // 1)
    for back in range(20):
        named = min(max((step - back if rule.at_least else step + back) / unit, 0.0), 1.0)
        if 0 < named < 1 and feasible(replace(rule, bound=named)):
            return float(named)
    return None


def required_items_factor(feasible: Callable[[float], bool], most: float = 1000.0) -> float | None:
    """By how much there must be more items of the same kind for a rule to be feasible; ``None`` if ``most`` is not enough."""
    if not feasible(most):
        return None
    low, high = 1.0, most
    for _ in range(24):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return high


def _short(share: float) -> str:
    return f"{100 * share:.3g} %"
