"""Compile the actions of one market, and explain what is infeasible by the smallest set of constraints that conflict.

An action is infeasible if its constraints cannot all be shown to hold on the items that stricter actions leave. The explanation
names a smallest conflicting set: constraints, and stricter actions with what limits them, are left out one by one where the
action stays infeasible without them (deletion filter, Chinneck and Dravnieks 1991).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vigil_data.presence import PRESENCE
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.constraints import (
    ACTIONS,
    REVIEW,
    THRESHOLD_FLOOR_METRICS,
    Rule,
    format_bound,
    preceding_actions,
)
from vigil_evaluation.policy.infeasibility import (
    ClosestFeasible,
    ConflictElement,
    InfeasibleAction,
    closest_feasible_bound,
    closest_stricter_bound,
    minimal_conflict,
)
from vigil_evaluation.policy.modality_thresholds import split_by_presence
from vigil_evaluation.policy.policy_data import Traffic
from vigil_evaluation.policy.shared_budget import BudgetAllocation, BudgetRequest, allocate_budget
from vigil_evaluation.policy.specs import MarketConstraints, Policy
from vigil_evaluation.policy.threshold_search import ThresholdSearch, rule_groups, search_thresholds

PresenceCuts = dict[str, dict[str, dict[str | None, float]]]
"""Label, action and presence (``None`` for all others) to threshold."""


@dataclass(frozen=True, slots=True)
class MarketCompilation:
    """Compilation of one market.

    Attributes:
        policy: the policy.
        scope: constraints of the market.
        traffic: its items.
        severities: label to the harm of a miss.
        cuts: thresholds found so far.
        problems: infeasible actions found so far.
        notes: remarks for reports.
        correlations: constraint to the correlation within units with which it was tested.
    """

    policy: Policy
    scope: MarketConstraints
    traffic: Traffic
    severities: Mapping[str, float]
    cuts: PresenceCuts = field(default_factory=dict)
    problems: list[InfeasibleAction] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    correlations: dict[Rule, float] = field(default_factory=dict)

    def place(self, label: str | None, action: str) -> str:
        """Return the name of a label's action, or of an action of all labels."""
        return Rule(action, label, self.scope.market, "precision", 0.0, 0.0).place

    def takers(self, label: str | None, action: str) -> tuple[str, ...]:
        """Return the actions that take items before this one, for the label or for any, from the mildest to the strictest."""
        review = self.policy.review if REVIEW in self.policy.actions else None
        labels = self.cuts if label is None else [label]
        before = preceding_actions(action, review)
        return tuple(other for other in before if any(other in self.cuts.get(one, {}) for one in labels))

    def above(self, label: str, action: str, takers: Sequence[str] | None = None) -> Floats:
        """Return the lowest threshold of the label's actions that take items before this one, for each item, ``[N]``.

        Args:
            label: the label.
            action: the action.
            takers: the actions that take items (default: all that do).
        """
        above_N = np.full(self.traffic.items, np.inf)
        for other in self.takers(label, action) if takers is None else takers:
            above_N = np.minimum(above_N, self.per_item(self.cuts.get(label, {}).get(other, {})))
        return above_N

    def per_item(self, by: Mapping[str | None, float]) -> Floats:
        """Return the threshold of each item, infinite without one, ``[N]``."""
        if PRESENCE not in self.traffic.columns or set(by) <= {None}:
            return np.full(self.traffic.items, by.get(None, np.inf))
        column = self.traffic.columns[PRESENCE]
        values = [by.get(value, by.get(None, np.inf)) for value in (*column.values, None)]
        return np.array(values)[column.codes_N]

    def with_rule(self, rule: Rule, other: Rule | None) -> "MarketCompilation":
        """Return the compilation with another rule, or without it, as it was before the rule's action was compiled."""
        stricter = ACTIONS[ACTIONS.index(rule.action) + 1 :]
        cuts = {label: {action: cut for action, cut in by.items() if action in stricter} for label, by in self.cuts.items()}
        rules = tuple(kept for each in self.scope.rules if (kept := other if each is rule else each) is not None)
        return replace(self, scope=replace(self.scope, rules=rules), cuts=cuts, problems=[], notes=[], correlations={})


def compile_market(work: MarketCompilation, advance: Callable[[], None]) -> None:
    """Find the thresholds of all actions, from the strictest to the mildest.

    Args:
        work: receives thresholds, problems and notes.
        advance: called after each label of an action.
    """
    for action in reversed(ACTIONS[1:]):
        _compile_action(work, action, advance)


def _compile_action(work: MarketCompilation, action: str, advance: Callable[[], None] | None = None) -> None:
    """Find the thresholds of one action; problems are explained unless ``advance`` is ``None``."""
    found: dict[str, ThresholdSearch] = {}
    for label in (label for label, may in work.scope.labels.items() if action in may):
        one = _search(work, label, action)
        if one.usable().any():
            found[label] = one
            tested = zip(one.rules, one.counts, strict=True)
            work.correlations.update({rule: counts[0].correlation for rule, counts in tested if counts})
        else:
            work.problems.append(InfeasibleAction(one.place, "", ()) if advance is None else _explain_label(work, label, one))
        if advance is not None:
            advance()
    shared = work.scope.rules_of(action, None)
    if found and shared:
        _share_budget(work, action, found, shared, explain=advance is not None)
        return
    for label, one in found.items():
        cut = float(one.candidates.thresholds_K[np.flatnonzero(one.usable())[-1]])
        split = None
        if work.policy.presence == "where_it_pays" and not one.ceiling_rules:
            split = split_by_presence(work.traffic, label, one.rules, work.above(label, action), cut)
        work.cuts.setdefault(label, {})[action] = {None: cut} if split is None else split.cuts
        if split is not None:
            work.notes.append(f"{one.place}: thresholds by presence {split.gain}")


def _search(work: MarketCompilation, label: str, action: str, takers: Sequence[str] | None = None) -> ThresholdSearch:
    rules, above_N = work.scope.rules_of(action, label), work.above(label, action, takers)
    return search_thresholds(work.traffic, label, rules, above_N, work.place(label, action))


def _share_budget(
    work: MarketCompilation, action: str, found: Mapping[str, ThresholdSearch], rules: Sequence[Rule], *, explain: bool
) -> None:
    budget = _allocate(work, action, found, rules)
    if not _spent(budget):
        place = work.place(None, action)
        work.problems.append(_explain_budget(work, action, found, rules) if explain else InfeasibleAction(place, "", ()))
        return
    for (label, one), k in zip(found.items(), budget.chosen, strict=True):
        if k >= 0:
            work.cuts.setdefault(label, {})[action] = {None: float(one.candidates.thresholds_K[k])}
        else:
            work.notes.append(f"{one.place}: gets no part of the shared budget; other labels catch more with it")


def _spent(budget: BudgetAllocation) -> bool:
    """Return whether a budget suffices for what the labels require, and for any item."""
    return budget.feasible and max(budget.chosen) >= 0


def _allocate(
    work: MarketCompilation,
    action: str,
    found: Mapping[str, ThresholdSearch],
    rules: Sequence[Rule],
    takers: Sequence[str] | None = None,
) -> BudgetAllocation:
    requests, free_N = [], np.ones(work.traffic.items, bool)
    for label in work.scope.labels:
        at = work.traffic.labels.index(label)
        free_N &= ~(work.traffic.probabilities_NL[:, at] >= work.above(label, action, takers))
    for label, one in found.items():
        at = work.traffic.labels.index(label)
        required = int(np.flatnonzero(one.usable())[0]) if one.ceiling_rules else -1
        usable_K = one.usable(one.floor_rules)
        positive_N, negative_N = work.traffic.positive_NL[:, at], work.traffic.negative_NL[:, at]
        requests.append(BudgetRequest(one.candidates, usable_K, required, work.severities[label], positive_N, negative_N))
    appeals = work.policy.actions[action].appeals  # type: ignore[index]  # it is one of the actions
    wrong = appeals.wrong if appeals else 1.0
    everything_N = np.ones(work.traffic.items, bool)
    limits = [
        (rule, wrong, [everything_N if within is None else within for _, within in rule_groups(rule, work.traffic)])
        for rule in rules
    ]
    return allocate_budget(requests, free_N, limits, work.traffic.units_N, work.traffic.weights)


def _explain_label(work: MarketCompilation, label: str, one: ThresholdSearch) -> InfeasibleAction:
    """Explain why no threshold satisfies a label's own constraints on an action."""
    action = one.rules[0].action
    takers = work.takers(label, action)
    searches = {takers: one}

    def infeasible(kept: Sequence[ConflictElement]) -> bool:
        taking = tuple(other for other in takers if other in kept)
        if taking not in searches:
            searches[taking] = _search(work, label, action, taking)
        return not searches[taking].restricted([each for each in kept if isinstance(each, Rule)]).usable().any()

    if infeasible(takers):
        limits = _limits(work, label, minimal_conflict(takers, infeasible).takers)
        why = "stricter actions leave no items, so it would never be used"
        return InfeasibleAction(one.place, why + _feasible_with(_tighter(work, label, action, limits)), ())
    alone = [rule for rule in one.rules if infeasible([*takers, rule])]
    inherent = [rule for rule in alone if infeasible([rule])]
    # Rules that fail below the same stricter actions are named together, as they have the same remedy.
    conflicts: dict[tuple[str, ...], list[Rule]] = {}
    for rules in [[rule] for rule in alone if rule not in inherent] or ([] if alone else [list(one.rules)]):
        conflict = minimal_conflict([*takers, *rules], infeasible)
        conflicts.setdefault(tuple(conflict.takers), []).extend(conflict.rules)
    whys = []
    for taking, rules in conflicts.items():
        limits = _limits(work, label, taking)
        bounds = [(rule, one.closest_bound(one.rules.index(rule))) for rule in rules]
        ways = [format_bound(rule, at) for rule, at in bounds if at is not None] + _tighter(work, label, action, limits)
        names = (" or " if alone else " and ").join(map(str, rules)) + (" together" if len(rules) > 1 and not alone else "")
        whys.append(f"no threshold{_below(limits)} is shown to satisfy {names}{_feasible_with(ways)}")
    return InfeasibleAction(one.place, "; ".join(whys), tuple(one.closest_feasible(one.rules.index(rule)) for rule in inherent))


def _explain_budget(
    work: MarketCompilation, action: str, found: Mapping[str, ThresholdSearch], shared: Sequence[Rule]
) -> InfeasibleAction:
    """Explain why labels that are feasible by themselves are not within the constraints that they share."""
    takers = work.takers(None, action)
    searches: dict[tuple[str, ...], Mapping[str, ThresholdSearch]] = {takers: found}
    own = [one.rules[i] for one in found.values() for i in (*one.floor_rules, *one.ceiling_rules)]

    def infeasible(kept: Sequence[ConflictElement]) -> bool:
        taking = tuple(other for other in takers if other in kept)
        if taking not in searches:
            searches[taking] = {label: _search(work, label, action, taking) for label in found}
        rules = [each for each in kept if isinstance(each, Rule)]
        ones = {label: one.restricted(rules) for label, one in searches[taking].items()}
        limits = [rule for rule in shared if rule in rules]
        return not all(one.usable().any() for one in ones.values()) or (
            bool(limits) and not _spent(_allocate(work, action, ones, limits, taking))
        )

    conflict = minimal_conflict([*takers, *own, *shared], infeasible)
    asked, limits = ([rule for rule in conflict.rules if rule in kind] for kind in (own, shared))

    def closest(rule: Rule) -> float | None:
        def feasible(other: Rule) -> bool:
            ones = {label: one.with_rule(rule, other) for label, one in found.items()}
            limits = [other if each is rule else each for each in shared]
            return all(one.usable().any() for one in ones.values()) and _spent(_allocate(work, action, ones, limits))

        return closest_feasible_bound(rule, feasible)

    place = work.place(None, action)
    if not asked:
        why = (
            f"even the strictest thresholds affect more items than can be shown to be few enough on {work.traffic.items:,} items"
        )
        return InfeasibleAction(place, why, tuple(ClosestFeasible(rule, feasible_at=closest(rule)) for rule in limits))
    bounds, below = [(rule, closest(rule)) for rule in (*limits, *asked)], _limits(work, None, conflict.takers)
    ways = [
        (f"{rule.label} with " if rule.label else "") + format_bound(rule, at) for rule, at in bounds if at is not None
    ] + _tighter(work, None, action, below)
    names = " and ".join(f"{rule.label} with {rule}" for rule in asked)
    why = f"{names} is infeasible within {' and '.join(map(str, limits))}{_below(below)}"
    return InfeasibleAction(place, why + (f"; feasible: {', or '.join(ways)}" if ways else ""), ())


def _limits(work: MarketCompilation, label: str | None, takers: Sequence[str]) -> dict[str, list[Rule]]:
    """Return the constraints that limit what stricter actions take from a label, or from all, by action."""
    labels = list(work.cuts) if label is None else [label]
    found = {}
    for taker in takers:
        rules = [
            rule
            for rule in work.scope.rules
            if rule.action == taker and rule.metric in THRESHOLD_FLOOR_METRICS and rule.label in (None, *labels)
        ]
        binding = []
        for rule in rules if len(rules) > 1 else []:
            trial = work.with_rule(rule, None)
            _compile_action(trial, taker)
            if any(trial.cuts.get(one, {}).get(taker) != work.cuts.get(one, {}).get(taker) for one in labels):
                binding.append(rule)
        found[taker] = binding or rules
    return found


def _below(limits: Mapping[str, Sequence[Rule]]) -> str:
    names = [f"{taker} ({', '.join(dict.fromkeys(map(str, rules)))})" for taker, rules in limits.items()]
    return f" below {' and '.join(names)}" if names else ""


def _tighter(work: MarketCompilation, label: str | None, action: str, limits: Mapping[str, Sequence[Rule]]) -> list[str]:
    """Return the closest stricter bounds of stricter actions; each makes an action feasible."""
    ways = []
    for rule in (rule for rules in limits.values() for rule in rules):
        at = closest_stricter_bound(rule, lambda other, rule=rule: _resolves(work, label, action, rule, other))  # type: ignore[misc]
        if at is not None:
            ways.append(f"{format_bound(rule, at)} for {rule.place}")
    return ways


def _resolves(work: MarketCompilation, label: str | None, action: str, rule: Rule, other: Rule) -> bool:
    """Return whether an action becomes feasible with another bound on a stricter one, without a new problem before it."""
    trial = work.with_rule(rule, other)
    known = {problem.place for problem in work.problems}
    for between in reversed(ACTIONS[ACTIONS.index(action) + 1 : ACTIONS.index(rule.action) + 1]):
        _compile_action(trial, between)
        if any(problem.place not in known for problem in trial.problems):
            return False
    if label is not None:
        return bool(_search(trial, label, action).usable().any())
    _compile_action(trial, action)
    return all(problem.place in known for problem in trial.problems)


def _feasible_with(ways: Sequence[str]) -> str:
    return f"; feasible with {', or with '.join(ways)}" if ways else ""
