"""Compile a policy: find the lowest thresholds at which every constraint is shown to hold, or report what is infeasible.

Actions are processed from the strictest to the mildest. Each label's threshold is the lowest that satisfies the label's own
constraints, since that catches the most; shared budgets, such as reviewers' time, are then allocated where they catch the most
harm (:mod:`vigil_evaluation.policy.shared_budget`). A milder action gets the items that the stricter ones leave.

:mod:`vigil_evaluation.policy.threshold_search` states the probability that the constraints hold on new items. The precision
of a milder action is over the items between two thresholds, and the upper one is chosen on the same items. This is safe: the
stricter action stopped there because the items below looked worse than they are, if anything (Harris's inequality: the events
that stop it there and that let the milder one pass depend on the targets of the items below in opposite directions).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from vigil_data.errors import UserError
from vigil_data.presence import PRESENCE
from vigil_data.progress import ProgressCallback
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.policy.constraint_check import check_rules, decide_traffic, items_with_action
from vigil_evaluation.policy.constraints import ACTIONS, REVIEW, Appeals, CellKey, Rule, format_percent, preceding_actions
from vigil_evaluation.policy.infeasibility import ClosestFeasible, InfeasibleAction, InfeasiblePolicy, closest_feasible_bound
from vigil_evaluation.policy.modality_thresholds import split_by_presence
from vigil_evaluation.policy.policy_data import Traffic, read_traffic
from vigil_evaluation.policy.shared_budget import BudgetAllocation, BudgetRequest, allocate_budget
from vigil_evaluation.policy.specs import MarketConstraints, Policy, actions_of, labels_of, market_constraints
from vigil_evaluation.policy.threshold_search import ThresholdSearch, rule_groups, search_thresholds
from vigil_evaluation.sampling_weights import INCLUSION_PROBABILITY
from vigil_evaluation.stats.selection_tests import label_selection

MIN_ITEMS_HIT = 30
"""Fewest affected items of an action for a note about unknown targets."""

MIN_KNOWN_RATIO = 0.75
"""Smallest ratio of the fraction of known targets among affected items to that among all items without a note."""

PresenceCuts = dict[str, dict[str, dict[str | None, float]]]
"""Label, action and presence (``None`` for all others) to threshold."""


@dataclass(frozen=True, slots=True)
class _MarketCompilation:
    """Compilation of one market.

    Attributes:
        policy: the policy.
        scope: constraints of the market.
        traffic: its items.
        severities: label to the harm of a miss.
        cuts: thresholds found so far.
        problems: infeasible actions found so far.
        notes: remarks for reports.
    """

    policy: Policy
    scope: MarketConstraints
    traffic: Traffic
    severities: Mapping[str, float]
    cuts: PresenceCuts = field(default_factory=dict)
    problems: list[InfeasibleAction] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def place(self, label: str | None, action: str) -> str:
        return Rule(action, label, self.scope.market, "precision", 0.0, 0.0).place

    def above(self, label: str, action: str) -> Floats:
        """Return the lowest threshold of the label's actions that precede this one for each item, ``[N]``."""
        review = self.policy.review if REVIEW in self.policy.actions else None
        above_N = np.full(self.traffic.items, np.inf)
        for other in preceding_actions(action, review):
            above_N = np.minimum(above_N, self.per_item(self.cuts.get(label, {}).get(other, {})))
        return above_N

    def per_item(self, by: Mapping[str | None, float]) -> Floats:
        """Return the threshold of each item, infinite without one, ``[N]``."""
        if PRESENCE not in self.traffic.columns or set(by) <= {None}:
            return np.full(self.traffic.items, by.get(None, np.inf))
        column = self.traffic.columns[PRESENCE]
        values = [by.get(value, by.get(None, np.inf)) for value in (*column.values, None)]
        return np.array(values)[column.codes_N]


def compile_policy(
    policy: Policy,
    table: pa.Table,
    labels: Sequence[str],
    *,
    severities: Mapping[str, float] | None = None,
    cluster: str | None = None,
    assume_random: bool = False,
    facts: Mapping[str, str] | None = None,
    progress: ProgressCallback | None = None,
) -> CompiledPolicy | InfeasiblePolicy:
    """Find the thresholds of a policy on a calibration split.

    Unknown targets are not negatives: they count neither for nor against a label. Shares of traffic are of all rows. Rows that
    were labelled with different probabilities count by them (:mod:`vigil_evaluation.sampling_weights`).

    Args:
        policy: the policy.
        table: see :mod:`vigil_evaluation.predictions`; a random sample of the items that the policy will decide on, which the
            model was not trained on. Its labelled rows are a random sample of them, or have inclusion probabilities.
        labels: labels of the table.
        severities: label to the harm of a miss (default: 1); the policy's own take precedence.
        cluster: column of the items that belong together, such as author (default: items are independent).
        assume_random: compile although the labelled items are shown not to be a random sample; the policy records it.
        facts: provenance of the table, as text.
        progress: called with ``searching thresholds``, the label-action pairs done and their number.

    Returns:
        The compiled policy, or what is infeasible with the closest feasible bounds.

    Raises:
        UserError: if the table lacks labels or columns of the policy, a market has no items, or the labelled items are not a
            random sample and the table states no inclusion probabilities.
    """
    wanted = labels_of(policy)
    if absent := [label for label in wanted if label not in labels]:
        raise UserError(f"policy {policy.name}: no predictions of {', '.join(absent)}; there are {', '.join(labels)}")
    traffic = read_traffic(table, wanted, policy.columns, cluster)
    scopes = market_constraints(policy)
    selected = _selection_notes(policy, traffic, scopes, assume_random=assume_random)
    weights = {label: policy.severities.get(label, (severities or {}).get(label, 1.0)) for label in wanted}
    works = []
    searches = sum(len(actions) for scope in scopes for actions in scope.labels.values())
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("searching thresholds", done, searches)

    for scope in scopes:
        rows_N = traffic.in_market(scope.market, tuple(policy.markets))
        if not rows_N.any():
            which = "no named market" if scope.market is None else f"market {scope.market}"
            raise UserError(f"policy {policy.name}: no item of the predictions is in {which}, which it needs thresholds for")
        works.append(_MarketCompilation(policy, scope, traffic.take(rows_N), weights))
        _compile_market(works[-1], advance)
    facts = {**(facts or {}), "items": f"{traffic.items:,}", "unit": cluster or "item"}
    if problems := [problem for work in works for problem in work.problems]:
        return InfeasiblePolicy(policy.name, policy.version, tuple(problems), facts)
    notes = [*selected, *(note for work in works for note in work.notes)]
    return _compiled(works, weights, facts, notes, traffic)


def _selection_notes(policy: Policy, traffic: Traffic, scopes: Sequence[MarketConstraints], *, assume_random: bool) -> list[str]:
    """Return a note for each label whose known targets depend on a score or a column, and whose constraints need them.

    Raises:
        UserError: if the table states no inclusion probabilities, and the labelled items are not assumed to be a random sample.
    """
    rules = [rule for scope in scopes for rule in scope.rules]
    constrained = {rule.label for rule in rules if rule.label is not None}
    overturned = {rule.action for rule in rules if rule.metric == "overturned"}
    constrained |= {label for scope in scopes for label, may in scope.labels.items() if overturned & set(may)}
    known_NL = traffic.positive_NL | traffic.negative_NL
    selection = label_selection(
        known_NL, traffic.probabilities_NL, traffic.labels, traffic.columns, traffic.units_N, traffic.weights
    )
    lines = (
        []
        if selection is None
        else [line for label, line in zip(selection.labels, selection.lines, strict=True) if label in constrained]
    )
    if _states_inclusion(traffic):
        return [f"{line}; the constraints hold if the probabilities are right" for line in lines]
    if lines and not assume_random:
        raise UserError(
            *(f"policy {policy.name}: {line}" for line in lines),
            "constraints shown on such items say nothing about the others; add a column "
            f"{INCLUSION_PROBABILITY}, the probability with which each row was chosen to be labelled, or accept guarantees for "
            "items like the labelled ones: --assume-random",
        )
    return [f"guarantees hold for items like the labelled ones only; {line}" for line in lines]


def _states_inclusion(traffic: Traffic) -> bool:
    """Return whether the table states with which probabilities rows were chosen to be labelled."""
    return traffic.weights.label_N is not traffic.weights.item_N


def _compiled(
    works: Sequence[_MarketCompilation],
    weights: Mapping[str, float],
    facts: Mapping[str, str],
    notes: Sequence[str],
    traffic: Traffic,
) -> CompiledPolicy:
    policy = works[0].policy
    cells: dict[CellKey, dict[str, dict[str, float]]] = {}
    for work in works:
        presences = dict.fromkeys([None, *(key for by in work.cuts.values() for cut in by.values() for key in cut)])
        for presence in presences:
            cells[work.scope.market, presence] = {
                label: {action: cut for action in by if (cut := by[action].get(presence, by[action].get(None))) is not None}
                for label, by in work.cuts.items()
            }
    compiled = CompiledPolicy(
        policy.name,
        policy.version,
        actions_of(policy),
        labels_of(policy),
        policy.review if REVIEW in policy.actions else None,
        cells,
        {action: block.cost for action, block in policy.actions.items()},
        {
            action: Appeals(block.appeals.wrong, block.appeals.right, block.appeals.cost)
            for action, block in policy.actions.items()
            if block.appeals is not None
        },
        weights,
    )
    rules = [rule for work in works for rule in work.scope.rules]
    results = tuple(check_rules(compiled, rules, traffic))
    numbered = {f"note {i}": note for i, note in enumerate([*notes, *_mostly_unknown(compiled, rules, traffic)], start=1)}
    return replace(compiled, constraints=results, facts={**facts, **numbered})


def _mostly_unknown(policy: CompiledPolicy, rules: Sequence[Rule], traffic: Traffic) -> Iterator[str]:
    """Yield a note for each action whose items are of unknown target more often than all items, without this being stated."""
    if _states_inclusion(traffic):
        return
    codes = decide_traffic(policy, traffic)
    for place, label in enumerate(policy.labels):
        at = traffic.labels.index(label)
        known_N = traffic.positive_NL[:, at] | traffic.negative_NL[:, at]
        for action in dict.fromkeys(rule.action for rule in rules if rule.label == label):
            hit_N = items_with_action(policy, codes, action) & (codes.label_N == place)
            if hit_N.sum() >= MIN_ITEMS_HIT and known_N[hit_N].mean() < MIN_KNOWN_RATIO * known_N.mean():
                yield (
                    f"{label}/{action}: the target of {known_N[hit_N].mean():.0%} of the {hit_N.sum():,} affected items is known "
                    f"and of all items {known_N.mean():.0%}; label more of these, as constraints are tested on known targets"
                )


def _compile_market(work: _MarketCompilation, advance: Callable[[], None]) -> None:
    for action in reversed(ACTIONS[1:]):
        labels = [label for label, may in work.scope.labels.items() if action in may]
        found: dict[str, ThresholdSearch] = {}
        for label in labels:
            mine = work.scope.rules_of(action, label)
            one = search_thresholds(work.traffic, label, mine, work.above(label, action), work.place(label, action))
            if one.usable().any():
                found[label] = one
            else:
                work.problems.append(one.problem())
            advance()
        shared = work.scope.rules_of(action, None)
        if found and shared:
            _share_budget(work, action, found, shared)
        else:
            for label, one in found.items():
                cut = float(one.candidates.thresholds_K[np.flatnonzero(one.usable())[-1]])
                split = None
                if work.policy.presence == "where_it_pays" and not one.ceiling_rules:
                    split = split_by_presence(work.traffic, label, one.rules, work.above(label, action), cut)
                work.cuts.setdefault(label, {})[action] = {None: cut} if split is None else split.cuts
                if split is not None:
                    work.notes.append(f"{one.place}: thresholds by presence {split.gain}")


def _share_budget(work: _MarketCompilation, action: str, found: Mapping[str, ThresholdSearch], rules: Sequence[Rule]) -> None:
    budget = _allocate(work, action, found, rules)
    if not budget.feasible:
        work.problems.append(_budget_too_small(work, action, found, rules))
        return
    if max(budget.chosen) < 0:
        work.problems.append(_budget_not_shown(work, action, found, rules))
        return
    for (label, one), k in zip(found.items(), budget.chosen, strict=True):
        if k >= 0:
            work.cuts.setdefault(label, {})[action] = {None: float(one.candidates.thresholds_K[k])}
        else:
            work.notes.append(f"{one.place}: gets no part of the shared budget; other labels catch more with it")


def _allocate(
    work: _MarketCompilation, action: str, found: Mapping[str, ThresholdSearch], rules: Sequence[Rule]
) -> BudgetAllocation:
    requests, free_N = [], np.ones(work.traffic.items, bool)
    for label in work.scope.labels:
        at = work.traffic.labels.index(label)
        free_N &= ~(work.traffic.probabilities_NL[:, at] >= work.above(label, action))
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


def _budget_too_small(
    work: _MarketCompilation, action: str, found: Mapping[str, ThresholdSearch], rules: Sequence[Rule]
) -> InfeasibleAction:
    """Explain that what the labels must catch exceeds the shared budget."""
    ways = []
    for rule in rules:
        others = [other for other in rules if other is not rule]
        at = closest_feasible_bound(rule, lambda other, others=others: _allocate(work, action, found, [*others, other]).feasible)  # type: ignore[misc]
        if at is not None:
            ways.append(f"{rule.metric.replace('_', ' ')} at most {format_percent(at)}")
    for label, one in found.items():
        for i in one.ceiling_rules:

            def feasible(other: Rule, label: str = label, one: ThresholdSearch = one, i: int = i) -> bool:
                changed = replace(one, rules=(*one.rules[:i], other, *one.rules[i + 1 :]))
                return bool(changed.usable().any()) and _allocate(work, action, {**found, label: changed}, rules).feasible

            at = closest_feasible_bound(one.rules[i], feasible)
            if at is not None:
                side = "least" if one.rules[i].at_least else "most"
                ways.append(f"{label} with {one.rules[i].metric.replace('_', ' ')} at {side} {format_percent(at)}")
    asked = [f"{label} with {one.rules[i]}" for label, one in found.items() for i in one.ceiling_rules]
    why = f"{' and '.join(asked)} is infeasible within {' and '.join(map(str, rules))}"
    return InfeasibleAction(work.place(None, action), why + (f"; feasible: {', or '.join(ways)}" if ways else ""), ())


def _budget_not_shown(
    work: _MarketCompilation, action: str, found: Mapping[str, ThresholdSearch], rules: Sequence[Rule]
) -> InfeasibleAction:
    """Explain that not even the strictest thresholds are shown to satisfy the shared constraints."""
    closest = []
    for rule in rules:
        others = [other for other in rules if other is not rule]
        at = closest_feasible_bound(
            rule,
            lambda other, others=others: max(_allocate(work, action, found, [*others, other]).chosen) >= 0,  # type: ignore[misc]
        )
        closest.append(ClosestFeasible(rule, feasible_at=at))
    why = (
        f"even the strictest thresholds that satisfy the labels' own constraints affect more items than can be shown to be few "
        f"enough on {work.traffic.items:,} items"
    )
    return InfeasibleAction(work.place(None, action), why, tuple(closest))
