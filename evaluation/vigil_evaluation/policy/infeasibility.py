"""Infeasible policies: the constraints that cannot be shown to hold, with the closest feasible bounds."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from vigil_evaluation.policy.constraints import Rule, format_percent

BOUND_STEPS = 1000
"""Feasible bounds are multiples of 1 / this; small ones, of a hundredth of that."""

STRICTER_BOUNDS = 12
"""Bounds between a constraint's and the strictest one that are tried, since a range of them may be feasible."""


ConflictElement = Rule | str
"""A constraint, or a stricter action that takes items."""


class Conflict(NamedTuple):
    """Constraints that conflict, and the stricter actions whose items they lack."""

    rules: list[Rule]
    takers: list[str]


@dataclass(frozen=True, slots=True)
class ClosestFeasible:
    """The closest feasible bound of one constraint.

    Attributes:
        rule: the constraint.
        bound: best one-sided confidence bound of its metric at any threshold; ``None`` without known targets.
        threshold: the threshold of that bound.
        count: items that count towards the metric there.
        rows: items in its denominator.
        group: value of the rule's column with the worst bound there.
        feasible_at: the closest bound with which the policy is feasible, everything else unchanged.
        more: approximate number of additional labelled items of the same kind with which the constraint is feasible; ``None`` if
            no number is.
        kind: kind of those items: ``positive`` or ``negative``; empty for any.
        without: the label's other constraints, if ``feasible_at`` is feasible only without them.
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
            but = ", not enough for a threshold chosen among many" if within else ""
            words += f": the best {side} bound{of} at any threshold is {_short(self.bound)} ({where}{self._counted()}){but}"
        ways = []
        if self.feasible_at is not None:
            without = f" without {' and '.join(self.without)}" if self.without else ""
            ways.append(f"feasible at {'least' if self.rule.at_least else 'most'} {format_percent(self.feasible_at)}{without}")
        if self.more is not None:
            ways.append(f"{'or ' if ways else 'feasible '}with about {self.more:,} more labelled {self.kind or 'item'}s")
        elif self.feasible_at is not None and self.kind:
            ways.append("and more labels alone do not help")
        return words + ("; " + ", ".join(ways) if ways else "")

    def _counted(self) -> str:
        what = {
            "precision": "correct",
            "recall": "caught",
            "miss_rate": "caught",
            "expected_miss_rate": "caught",
            "false_positive_rate": "wrongly affected",
        }.get(self.rule.metric, "affected")
        return f"{self.count:,} of {self.rows:,} {what}"


@dataclass(frozen=True, slots=True)
class InfeasibleAction:
    """Why an action of one label, or of all labels, has no feasible threshold.

    Attributes:
        place: name of the label and action, such as ``hate/remove``.
        why: the reason.
        rules: closest feasible bounds of the violated constraints.
    """

    place: str
    why: str
    rules: tuple[ClosestFeasible, ...]

    def __str__(self) -> str:
        parts = [self.why] if self.why else []
        return f"{self.place}: " + "; ".join([*parts, *map(str, self.rules)])


@dataclass(frozen=True, slots=True)
class InfeasiblePolicy:
    """A policy whose constraints cannot all be shown to hold.

    Attributes:
        name: name of the policy.
        version: version of the policy.
        problems: every infeasible action.
        facts: provenance of the items that it was compiled on.
    """

    name: str
    version: int
    problems: tuple[InfeasibleAction, ...]
    facts: dict[str, str]

    @property
    def lines(self) -> list[str]:
        """Message lines: what is infeasible, and the closest feasible bounds."""
        return [f"policy {self.name} version {self.version} is infeasible", *map(str, self.problems)]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"feasible": False, **asdict(self)}


def closest_feasible_bound(rule: Rule, feasible: Callable[[Rule], bool]) -> float | None:
    """Return the bound closest to the rule's that is feasible, rounded to the safe side; ``None`` if none is.

    Args:
        rule: an infeasible constraint.
        feasible: whether the constraint with another bound is feasible.
    """
    loosest = 0.0 if rule.at_least else 1.0
    if not feasible(replace(rule, bound=loosest + (1e-6 if rule.at_least else -1e-6))):
        return None
    good, bad = loosest, rule.bound
    for _ in range(24):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if feasible(replace(rule, bound=middle)) else (good, middle)
    # Test sequences start elsewhere for another bound, so the rounded bound is tested again.
    unit = BOUND_STEPS if max(good, rule.bound) >= 0.05 else 100 * BOUND_STEPS
    step = (good * unit) // 1 if rule.at_least else -((-good * unit) // 1)
    for back in range(20):
        named = min(max((step - back if rule.at_least else step + back) / unit, 0.0), 1.0)
        if 0 < named < 1 and feasible(replace(rule, bound=named)):
            return float(named)
    return None


def closest_stricter_bound(rule: Rule, feasible: Callable[[Rule], bool]) -> float | None:
    """Return the stricter bound closest to the rule's that is feasible, rounded to the safe side; ``None`` if none is.

    Args:
        rule: a constraint that allows a stricter action too many items.
        feasible: whether the constraint with another bound is feasible.
    """
    strictest, bad = 1.0 if rule.at_least else 0.0, rule.bound
    for i in range(1, STRICTER_BOUNDS):
        good = rule.bound + (strictest - rule.bound) * i / STRICTER_BOUNDS
        if feasible(replace(rule, bound=good)):
            break
        bad = good
    else:
        return None
    unit = BOUND_STEPS if rule.bound >= 0.05 else 100 * BOUND_STEPS
    for _ in range(24):
        if abs(good - bad) <= 1 / (2 * unit):
            break
        middle = (good + bad) / 2
        good, bad = (middle, bad) if feasible(replace(rule, bound=middle)) else (good, middle)
    step = -((-good * unit) // 1) if rule.at_least else (good * unit) // 1
    for back in range(5):
        named = (step + back if rule.at_least else step - back) / unit
        if 0 < named < 1 and feasible(replace(rule, bound=named)):
            return float(named)
    return None


def minimal_conflict(elements: Sequence[ConflictElement], infeasible: Callable[[Sequence[ConflictElement]], bool]) -> Conflict:
    """Return elements that are infeasible together, and without any of them are not (deletion filter).

    Args:
        elements: elements that are infeasible together; earlier ones are left out first.
        infeasible: whether some of them are infeasible together.
    """
    kept = list(elements)
    for element in elements:
        without = [other for other in kept if other is not element]
        if infeasible(without):
            kept = without
    return Conflict([each for each in kept if isinstance(each, Rule)], [each for each in kept if isinstance(each, str)])


def required_items_factor(feasible: Callable[[float], bool], most: float = 1000.0) -> float | None:
    """Return the factor of items of the same kind with which a constraint is feasible; ``None`` if ``most`` is not enough."""
    if not feasible(most):
        return None
    low, high = 1.0, most
    for _ in range(24):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return high


def _short(share: float) -> str:
    return f"{100 * share:.3g} %"
