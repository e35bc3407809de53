"""Threshold search for one label's action: candidates, counts for each constraint, and the candidates that pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.constraint_tests import ConstraintCounts, confidence_bounds, count_at_candidates
from vigil_evaluation.policy.constraints import THRESHOLD_FLOOR_METRICS, Rule, format_percent
from vigil_evaluation.policy.infeasibility import ClosestFeasible, InfeasibleAction, closest_feasible_bound, required_items_factor
from vigil_evaluation.policy.policy_data import Traffic
from vigil_evaluation.policy.threshold_candidates import ThresholdCandidates, choose_candidates, passing_candidates, would_pass

MIN_ITEMS_FACTOR = 1.1
"""Smallest reported factor of additional items, for constraints that fail by chance."""

Groups = list[tuple[str | None, NDArray[np.bool_] | None]]


@dataclass(frozen=True, slots=True)
class ThresholdSearch:
    """Search for the threshold of one label's action.

    Attributes:
        place: name of the label and action, such as ``hate/remove``.
        candidates: candidate thresholds.
        rules: constraints that the label satisfies by itself.
        counts: counts for each rule, by group.
        expected: expected positives among the items that stricter actions leave.
        known: number of known positives and of known negatives.
    """

    place: str
    candidates: ThresholdCandidates
    rules: tuple[Rule, ...]
    counts: tuple[list[ConstraintCounts], ...]
    expected: float
    known: tuple[int, int]

    def passing(self, rule: Rule, i: int) -> NDArray[np.bool_]:
        """Return where the ``i``-th rule, possibly with another bound, is shown to hold, ``[K]``."""
        if not len(self.candidates.thresholds_K):
            return np.zeros(0, bool)
        return passing_candidates(rule, self.counts[i], self.expected)

    def usable(self, which: Sequence[int] | None = None) -> NDArray[np.bool_]:
        """Return where all rules, or the given ones, are shown to hold, ``[K]``."""
        usable_K = np.ones(len(self.candidates.thresholds_K), bool)
        for i in range(len(self.rules)) if which is None else which:
            usable_K &= self.passing(self.rules[i], i)
        return usable_K

    @property
    def floor_rules(self) -> list[int]:
        """Indices of the rules that keep thresholds from falling."""
        return [i for i, rule in enumerate(self.rules) if rule.metric in THRESHOLD_FLOOR_METRICS]

    @property
    def ceiling_rules(self) -> list[int]:
        """Indices of the rules that keep thresholds from rising."""
        return [i for i, rule in enumerate(self.rules) if rule.metric not in THRESHOLD_FLOOR_METRICS]

    def problem(self) -> InfeasibleAction:
        """Explain why no candidate satisfies all rules, with the closest feasible bounds."""
        if not len(self.candidates.thresholds_K):
            return InfeasibleAction(self.place, "stricter actions leave no items, so it would never be used", ())
        alone = [i for i, rule in enumerate(self.rules) if not self.passing(rule, i).any()]
        closest = tuple(self._closest(i, bool(alone)) for i in alone or range(len(self.rules)))
        if alone:
            return InfeasibleAction(self.place, "", closest)
        ways = [
            f"{c.rule.metric.replace('_', ' ')} {_at(c.rule)} {format_percent(c.feasible_at)}" for c in closest if c.feasible_at
        ]
        rules = " and ".join(map(str, self.rules))
        why = f"no threshold is shown to satisfy {rules} together" + (
            f"; feasible with {', or with '.join(ways)}" if ways else ""
        )
        return InfeasibleAction(self.place, why, ())

    def _closest(self, i: int, alone: bool) -> ClosestFeasible:
        rule = self.rules[i]
        others = [j for j in range(len(self.rules)) if j != i]
        within_K = self.usable(others)
        at = closest_feasible_bound(rule, lambda other: bool((self.passing(other, i) & within_K).any()))
        without: tuple[str, ...] = ()
        if at is None and others:
            at = closest_feasible_bound(rule, lambda other: bool(self.passing(other, i).any()))
            without = tuple(str(self.rules[j]) for j in others) if at is not None else ()
        times = required_items_factor(lambda by: would_pass(rule, self.counts[i], by)) if alone else None
        kind = "negative" if rule.metric == "false_positive_rate" else "positive"
        more = None
        if times is not None:
            more = round_up((max(times, MIN_ITEMS_FACTOR) - 1) * self.known[1 if kind == "negative" else 0])
        return replace(self._best(i), feasible_at=at, more=more, kind=kind, without=without)

    def _best(self, i: int) -> ClosestFeasible:
        """Return the candidate with the best bound for the rule, and the worst group there."""
        rule = self.rules[i]
        side = 0 if rule.at_least else 1
        bound_GK = np.array([confidence_bounds(rule, counts, rule.confidence)[side] for counts in self.counts[i]])
        filled_GK = np.where(np.isnan(bound_GK), -1.0 if rule.at_least else 2.0, bound_GK)
        worst_K = filled_GK.min(axis=0) if rule.at_least else filled_GK.max(axis=0)
        k = int(worst_K.argmax() if rule.at_least else worst_K.argmin())
        g = int(filled_GK[:, k].argmin() if rule.at_least else filled_GK[:, k].argmax())
        counts = self.counts[i][g]
        if np.isnan(bound_GK[g, k]):
            return ClosestFeasible(rule, group=counts.group)
        threshold = float(self.candidates.thresholds_K[k])
        return ClosestFeasible(
            rule, float(bound_GK[g, k]), threshold, int(counts.count_K[k]), int(counts.rows_K[k]), counts.group
        )


def search_thresholds(traffic: Traffic, label: str, rules: Sequence[Rule], above_N: Floats, place: str) -> ThresholdSearch:
    """Choose candidate thresholds and count items at each for every constraint.

    Args:
        traffic: items of a market.
        label: the label.
        rules: constraints that the label satisfies by itself.
        above_N: lowest threshold of a stricter action for each item, infinite without one.
        place: name of the label and action, for messages.

    Raises:
        UserError: if all values of a constraint's column are too rare.
    """
    at = traffic.labels.index(label)
    probabilities_N = traffic.probabilities_NL[:, at]
    positive_N, negative_N = traffic.positive_NL[:, at], traffic.negative_NL[:, at]
    known_N = positive_N | negative_N
    taken_N = probabilities_N >= above_N
    found = choose_candidates(probabilities_N, known_N, float(above_N.max(initial=-np.inf)))
    count = len(found.thresholds_K)
    counts = []
    for rule in rules:
        if rule.metric == "precision":
            given = (found.first_N, count, known_N & ~taken_N, positive_N)
        else:
            base_N = negative_N if rule.metric == "false_positive_rate" else positive_N
            given = (np.where(taken_N, 0, found.first_N), count, base_N, None)  # type: ignore[assignment]
        counts.append(count_at_candidates(*given, units_M=traffic.units_N, groups=rule_groups(rule, traffic)) if count else [])
    expected = float(probabilities_N[known_N & ~taken_N].sum())
    return ThresholdSearch(place, found, tuple(rules), tuple(counts), expected, (int(positive_N.sum()), int(negative_N.sum())))


def rule_groups(rule: Rule, traffic: Traffic) -> Groups:
    """Return the groups of items for which a constraint must hold.

    Raises:
        UserError: if no value of its column has enough items.
    """
    if rule.column is None:
        return [(None, None)]
    column = traffic.columns[rule.column]
    sizes = np.bincount(column.codes_N[column.codes_N >= 0], minlength=len(column.values))
    kept = [i for i, size in enumerate(sizes.tolist()) if size > rule.over]
    if not kept:
        raise UserError(
            f"{rule.place}: {rule}: no value of {rule.column} has over {rule.over} of the {traffic.items} items; require fewer"
        )
    return [(column.values[i], column.codes_N == i) for i in kept]


def round_up(count: float) -> int:
    """Round a number of items up to two significant digits, at least 1."""
    if count <= 1:
        return 1
    unit = 10 ** max(int(np.floor(np.log10(count))) - 1, 0)
    return int(-(-count // unit) * unit)


def _at(rule: Rule) -> str:
    return "at least" if rule.at_least else "at most"
