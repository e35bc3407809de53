"""Search for the threshold of one label's action: candidates, and which of them are shown to satisfy its constraints.

The best of many thresholds on the same items is biased towards looking good. Learn then Test (Angelopoulos et al. 2021) corrects
for this: candidates are tested in an order that does not depend on the targets, so that the probability that any candidate that
violates the constraint passes is at most the constraint's error probability.

- Recall, false-positive and miss rates are monotone in the threshold, and so are their p-values: testing from the safe end until
  one fails is testing in a fixed sequence, which needs no correction for the number of tests.
- Precision is not monotone. Sequences start at several candidates, each with twice as many items as the one before, and run until
  a test fails. They divide the error probability, and each inherits what the sequence before it has not lost (fallback procedure,
  Wiens and Dmitrienko 2005). Where few positives are expected, from the probabilities, there is only one sequence.
- With weights, p-values of rates need not be monotone; candidates are then tested one after the other until one fails.
- A constraint for every value of a column passes where it passes for each value, without correction (intersection-union test,
  Berger 1982).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.constraint_tests import (
    ConstraintCounts,
    confidence_bounds,
    count_at_candidates,
    p_values,
    significance_level,
)
from vigil_evaluation.policy.constraints import THRESHOLD_FLOOR_METRICS, Rule
from vigil_evaluation.policy.infeasibility import ClosestFeasible, closest_feasible_bound, required_items_factor
from vigil_evaluation.policy.policy_data import Traffic

CANDIDATE_GROWTH = 1.02
"""Ratio of the items of successive candidates beyond the first :data:`MAX_DENSE_CANDIDATES`."""

MAX_DENSE_CANDIDATES = 50
"""Number of the highest items that are all candidates."""

MIN_ITEMS_FOR_PRECISION = 30
"""Fewest items at the start of a sequence for precision."""

MAX_SEQUENCES = 8
_SEQUENCE_SPACING = 2.0
_MIN_POSITIVES_RATIO = 4
"""Another sequence starts only if this many times as many positives are expected in all."""

MIN_ITEMS_FACTOR = 1.1
"""Smallest reported factor of additional items, for constraints that fail by chance."""

Groups = list[tuple[str | None, NDArray[np.bool_] | None]]


class ThresholdCandidates(NamedTuple):
    """Candidate thresholds of one label.

    Attributes:
        thresholds_K: float32 numbers, descending, each between two neighbouring probabilities.
        first_N: first candidate that each item reaches; K if it reaches none.
    """

    thresholds_K: Floats
    first_N: NDArray[np.int64]


def choose_candidates(probabilities_N: NDArray[np.float32], known_N: NDArray[np.bool_], below: float) -> ThresholdCandidates:
    """Choose candidates by how many items, and how many of known target, reach them, independently of the targets.

    Args:
        probabilities_N: probabilities of all items.
        known_N: whether the target is known.
        below: threshold of a stricter action; candidates are below it.
    """
    values, place_N = np.unique(probabilities_N, return_inverse=True)
    values, place_N = values[::-1].astype(np.float64), len(values) - 1 - place_N
    under = int(np.searchsorted(-values, -below, side="right")) if np.isfinite(below) else 0
    chosen = np.zeros(len(values), bool)
    inside_N = place_N >= under
    for counted_N in (inside_N, inside_N & known_N):
        reached = np.cumsum(np.bincount(place_N[counted_N], minlength=len(values)))
        step = np.where(
            reached <= MAX_DENSE_CANDIDATES,
            reached,
            MAX_DENSE_CANDIDATES + np.floor(np.log(np.maximum(reached, 1) / MAX_DENSE_CANDIDATES) / np.log(CANDIDATE_GROWTH)),
        )
        chosen |= np.diff(step, prepend=0) > 0
    chosen[:under] = False
    at = np.flatnonzero(chosen)
    upper, lower = values[at], np.append(values, 0.0)[at + 1]
    middle = ((upper + lower) / 2).astype(np.float32).astype(np.float64)
    thresholds = np.where((lower < middle) & (middle <= upper), middle, upper)
    return ThresholdCandidates(thresholds, np.searchsorted(at, place_N))


def passing_candidates(rule: Rule, groups: Sequence[ConstraintCounts], expected: float) -> NDArray[np.bool_]:
    """Return which candidates are shown to satisfy a constraint, ``[K]``.

    Args:
        rule: the constraint.
        groups: counts of each group of items.
        expected: positives expected from the probabilities, which determine the number of sequences for precision.
    """
    p_K: Floats = np.max([p_values(rule, counts) for counts in groups], axis=0)
    if rule.metric != "precision":
        passed_K = p_K <= significance_level(rule)
        if groups[0].weights is None:
            return passed_K
        from_safe_end = slice(None, None, 1 if rule.metric in THRESHOLD_FLOOR_METRICS else -1)
        return np.asarray(np.logical_and.accumulate(passed_K[from_safe_end])[from_safe_end])
    rows_K = np.min([counts.effective_rows(rule.bound) for counts in groups], axis=0)
    return _fallback(p_K, _starts(rows_K, rule.bound, significance_level(rule), expected), significance_level(rule))


def would_pass(rule: Rule, groups: Sequence[ConstraintCounts], times: float) -> bool:
    """Return whether a constraint would be shown at some candidate with ``times`` as many items of the same kind, approximately.

    Candidates that few items reach now are ignored, since their counts may be due to chance.
    """
    p_K: Floats = np.max([p_values(rule, counts.scaled(times)) for counts in groups], axis=0)
    reached_K = np.min([counts.rows_K for counts in groups], axis=0) >= MAX_DENSE_CANDIDATES / 5
    # With a margin for chance, and for the sequences of precision.
    return bool((p_K[reached_K] <= significance_level(rule) / MAX_SEQUENCES).any())


def _starts(rows_K: Floats, bound: float, allowed: float, expected: float) -> Floats:
    """Return the fraction of the error probability of each candidate: positive where a sequence starts."""
    parts_K = np.zeros(len(rows_K))
    if not len(rows_K):
        return parts_K
    # The fewest items, all of them positive, that pass with the full error probability.

    fewest = max(np.log(allowed) / np.log(bound), MIN_ITEMS_FOR_PRECISION) if bound > 0 else MIN_ITEMS_FOR_PRECISION
    count = min(1 + int(np.log(max(expected / _MIN_POSITIVES_RATIO / fewest, 1.0)) / np.log(_SEQUENCE_SPACING)), MAX_SEQUENCES)
    needed = (
        max(np.ceil(np.log(allowed / count) / np.log(bound)), MIN_ITEMS_FOR_PRECISION) if bound > 0 else MIN_ITEMS_FOR_PRECISION
    )
    for i in range(count):
        enough = np.flatnonzero(rows_K >= needed * _SEQUENCE_SPACING**i)
        parts_K[enough[0] if len(enough) else -1] += 1 / count
    return parts_K


def _fallback(p_K: Floats, parts_K: Floats, allowed: float) -> NDArray[np.bool_]:
    passed, carried = np.zeros(len(p_K), bool), 0.0
    for k in range(int(np.argmax(parts_K > 0)), len(p_K)):
        carried += parts_K[k]
        passed[k] = carried > 0 and p_K[k] <= carried * allowed
        if not passed[k]:
            carried = 0.0
    return passed


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

    def with_rule(self, rule: Rule, other: Rule) -> "ThresholdSearch":
        """Return the search with another rule."""
        return replace(self, rules=tuple(other if each is rule else each for each in self.rules))

    def restricted(self, rules: Sequence[Rule]) -> "ThresholdSearch":
        """Return the search with only those of its rules that are among the given ones."""
        kept = [i for i, rule in enumerate(self.rules) if rule in rules]
        return replace(self, rules=tuple(self.rules[i] for i in kept), counts=tuple(self.counts[i] for i in kept))

    def closest_bound(self, i: int, *, alone: bool = False) -> float | None:
        """Return the closest feasible bound of the ``i``-th rule, with the other rules or without them."""
        within_K = self.usable([] if alone else [j for j in range(len(self.rules)) if j != i])
        return closest_feasible_bound(self.rules[i], lambda other: bool((self.passing(other, i) & within_K).any()))

    def closest_feasible(self, i: int) -> ClosestFeasible:
        """Explain why the ``i``-th rule is infeasible by itself."""
        rule = self.rules[i]
        others = tuple(str(other) for j, other in enumerate(self.rules) if j != i)
        at = self.closest_bound(i)
        without: tuple[str, ...] = ()
        if at is None and others:
            at = self.closest_bound(i, alone=True)
            without = others if at is not None else ()
        times = required_items_factor(lambda by: would_pass(rule, self.counts[i], by))
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
    count, weights_N = len(found.thresholds_K), traffic.weights.label_N
    counts = []
    for rule in rules:
        possible_N = None
        if rule.metric == "precision":
            given, possible_N = (found.first_N, count, known_N & ~taken_N, positive_N), ~taken_N
        else:
            base_N = negative_N if rule.metric == "false_positive_rate" else positive_N
            given = (np.where(taken_N, 0, found.first_N), count, base_N, None)  # type: ignore[assignment]
        more: dict[str, Any] = {"weights_M": weights_N, "possible_M": possible_N}
        groups = rule_groups(rule, traffic)
        counts.append(count_at_candidates(*given, units_M=traffic.units_N, groups=groups, **more) if count else [])
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
