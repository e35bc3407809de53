"""Compiles a policy: finds the lowest thresholds at which every constraint is shown to hold, or says what cannot be shown.

Actions are taken in turn from the strictest on. Each label's threshold for it is the lowest that keeps the label's own rules, for
that catches the most; what the labels share, such as the reviewers' time, is then given to where it catches the most harm
(:mod:`vigil_evaluation.policy.shared_budget`). What a milder action gets is what the stricter ones have left.

See :mod:`vigil_evaluation.policy.threshold_candidates` for the probability that the constraints hold on further items.
Precision of a milder action speaks of the items between two thresholds, of which the upper is itself chosen on the items. That is
safe: the stricter action stopped where it did because the items below looked worse than they are, if anything (Harris's
inequality: what makes it stop there, and what makes the milder one pass, pull the targets of the items below opposite ways).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from vigil_data.errors import UserError
from vigil_data.presence import PRESENCE
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.policy.constraint_check import check_rules, decide_traffic, items_with_action
from vigil_evaluation.policy.constraints import ACTIONS, REVIEW, Appeals, CellKey, Rule, format_percent, preceding_actions
from vigil_evaluation.policy.infeasibility import ClosestFeasible, InfeasibleAction, InfeasiblePolicy, closest_feasible_bound
from vigil_evaluation.policy.market_constraints import MarketConstraints, actions_of, labels_of, market_constraints
from vigil_evaluation.policy.modality_thresholds import split_by_presence
from vigil_evaluation.policy.policy_data import Traffic, read_traffic
from vigil_evaluation.policy.shared_budget import BudgetAllocation, BudgetRequest, allocate_budget
from vigil_evaluation.policy.specs import Policy
from vigil_evaluation.policy.threshold_search import ThresholdSearch, rule_groups, search_thresholds

MIN_ITEMS_HIT = 30
MIN_KNOWN_RATIO = 0.75
"""Of the share of known targets among all items; if among those hit there are fewer, that is said."""

PresenceCuts = dict[str, dict[str, dict[str | None, float]]]
"""Label, action and presence (``None`` for all others) to threshold."""


@dataclass(frozen=True, slots=True)
class _MarketCompilation:
    """The compilation of one market.

    Attributes:
        policy: the policy.
        scope: what holds in the market.
        traffic: its items.
        severities: of the labels.
        cuts: what has been found.
        problems: what has not.
        notes: for the reader.
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
        """Of each item the lowest threshold of the label's actions that go before this one, ``[N]``."""
        review = self.policy.review if REVIEW in self.policy.actions else None
        above_N = np.full(self.traffic.items, np.inf)
        for other in preceding_actions(action, review):
            above_N = np.minimum(above_N, self.per_item(self.cuts.get(label, {}).get(other, {})))
        return above_N

    def per_item(self, by: Mapping[str | None, float]) -> Floats:
        """Of each item its threshold, infinite without one, ``[N]``."""
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
    facts: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> CompiledPolicy | InfeasiblePolicy:
    """Find the thresholds of a policy on a calibration split.

    Unknown targets are never taken for negatives: they count neither for nor against a label. Shares of traffic are of all rows.

    Args:
        policy: what is asked.
        table: see :mod:`vigil_evaluation.predictions`, of items like those that the policy is to decide on, drawn at random from
            them, and on which neither the model nor its calibration was fitted more than need be.
        labels: that the table has.
        severities: label to how much harm a miss does; 1 each where neither this nor the policy says.
        cluster: column of the items that belong together, such as author; each item on its own if not given.
        facts: what the table is of, for the reader.
        progress: told what is being done.

    Returns:
        The compiled policy, or what cannot be shown and the nearest that can.

    Raises:
        UserError: if the table lacks labels or columns that the policy speaks of, or a market has no items.
    """
    wanted = labels_of(policy)
    if absent := [label for label in wanted if label not in labels]:
        raise UserError(f"the policy {policy.name} speaks of {', '.join(absent)}; the predictions have {', '.join(labels)}")
    traffic = read_traffic(table, wanted, policy.columns, cluster)
    weights = {label: policy.severities.get(label, (severities or {}).get(label, 1.0)) for label in wanted}
    works = []
    for scope in market_constraints(policy):
        rows_N = traffic.in_market(scope.market, tuple(policy.markets))
        if not rows_N.any():
            which = "no named market" if scope.market is None else f"market {scope.market}"
            raise UserError(f"no item of the predictions is in {which}; the policy {policy.name} cannot be compiled for it")
        works.append(_MarketCompilation(policy, scope, traffic.take(rows_N), weights))
        _compile_scope(works[-1], progress or (lambda _: None))
    told = {**(facts or {}), "items": f"{traffic.items:,}", "unit": cluster or "item"}
    if problems := [problem for work in works for problem in work.problems]:
        return InfeasiblePolicy(policy.name, policy.version, tuple(problems), told)
    notes = [note for work in works for note in work.notes]
    return _compiled(works, weights, told, notes, traffic)


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
    told = tuple(check_rules(compiled, rules, traffic))
    noted = {f"note {i}": note for i, note in enumerate([*notes, *_hardly_known(compiled, rules, traffic)], start=1)}
    return replace(compiled, constraints=told, facts={**facts, **noted})


def _hardly_known(policy: CompiledPolicy, rules: Sequence[Rule], traffic: Traffic) -> Iterator[str]:
    """Actions that hit items of unknown target more than others do: what is shown of them speaks of the known ones."""
    codes = decide_traffic(policy, traffic)
    for place, label in enumerate(policy.labels):
        at = traffic.labels.index(label)
        known_N = traffic.positive_NL[:, at] | traffic.negative_NL[:, at]
        for action in dict.fromkeys(rule.action for rule in rules if rule.label == label):
            hit_N = items_with_action(policy, codes, action) & (codes.label_N == place)
            if hit_N.sum() >= MIN_ITEMS_HIT and known_N[hit_N].mean() < MIN_KNOWN_RATIO * known_N.mean():
                yield (
                    f"{label}/{action}: of {hit_N.sum():,} items hit, the target is known of {known_N[hit_N].mean():.0%}, and of "
                    f"all items of {known_N.mean():.0%}; what is shown speaks of the known ones, so label some of the others"
                )


def _compile_scope(work: _MarketCompilation, say: Callable[[str], None]) -> None:
    for action in reversed(ACTIONS[1:]):
        labels = [label for label, may in work.scope.labels.items() if action in may]
        found: dict[str, ThresholdSearch] = {}
        for label in labels:
            say(work.place(label, action))
            mine = work.scope.of(action, label)
            one = search_thresholds(work.traffic, label, mine, work.above(label, action), work.place(label, action))
            if one.usable().any():
                found[label] = one
            else:
                work.problems.append(one.problem())
        shared = work.scope.of(action, None)
        if found and shared:
            _share(work, action, found, shared)
        else:
            for label, one in found.items():
                cut = float(one.candidates.thresholds_K[np.flatnonzero(one.usable())[-1]])
                split = None
                if work.policy.presence == "where_it_pays" and not one.from_below:
                    split = split_by_presence(work.traffic, label, one.rules, work.above(label, action), cut)
                work.cuts.setdefault(label, {})[action] = {None: cut} if split is None else split.cuts
                if split is not None:
                    work.notes.append(f"{one.place}: thresholds by presence, which {split.gain}")


def _share(work: _MarketCompilation, action: str, found: Mapping[str, ThresholdSearch], rules: Sequence[Rule]) -> None:
    spent = _spend(work, action, found, rules)
    if not spent.needed:
        work.problems.append(_too_much_needed(work, action, found, rules))
        return
    if max(spent.chosen) < 0:
        work.problems.append(_nothing_to_spend(work, action, found, rules))
        return
    for (label, one), k in zip(found.items(), spent.chosen, strict=True):
        if k >= 0:
            work.cuts.setdefault(label, {})[action] = {None: float(one.candidates.thresholds_K[k])}
        else:
            work.notes.append(f"{one.place}: gets nothing of what the labels share; other labels catch more with it")


def _spend(
    work: _MarketCompilation, action: str, found: Mapping[str, ThresholdSearch], rules: Sequence[Rule]
) -> BudgetAllocation:
    claims, free_N = [], np.ones(work.traffic.items, bool)
    for label in work.scope.labels:
        at = work.traffic.labels.index(label)
        free_N &= ~(work.traffic.probabilities_NL[:, at] >= work.above(label, action))
    for label, one in found.items():
        at = work.traffic.labels.index(label)
        needed = int(np.flatnonzero(one.usable())[0]) if one.from_below else -1
        above = one.usable(one.from_above)
        positive_N, negative_N = work.traffic.positive_NL[:, at], work.traffic.negative_NL[:, at]
        claims.append(BudgetRequest(one.candidates, above, needed, work.severities[label], positive_N, negative_N))
    appeals = work.policy.actions[action].appeals  # type: ignore[index]  # it is one of the actions
    wrong = appeals.wrong if appeals else 1.0
    everything_N = np.ones(work.traffic.items, bool)
    told = [
        (rule, wrong, [everything_N if within is None else within for _, within in rule_groups(rule, work.traffic)])
        for rule in rules
    ]
    return allocate_budget(claims, free_N, told, work.traffic.units_N)


def _too_much_needed(
    work: _MarketCompilation, action: str, found: Mapping[str, ThresholdSearch], rules: Sequence[Rule]
) -> InfeasibleAction:
    """What the labels must catch takes more than they may share."""
    ways = []
    for rule in rules:
        others = [other for other in rules if other is not rule]
        at = closest_feasible_bound(rule, lambda other, others=others: _spend(work, action, found, [*others, other]).needed)  # type: ignore[misc]
        if at is not None:
            ways.append(f"{rule.metric.replace('_', ' ')} at most {format_percent(at)}")
    for label, one in found.items():
        for i in one.from_below:

            def feasible(other: Rule, label: str = label, one: ThresholdSearch = one, i: int = i) -> bool:
                changed = replace(one, rules=(*one.rules[:i], other, *one.rules[i + 1 :]))
                return bool(changed.usable().any()) and _spend(work, action, {**found, label: changed}, rules).needed

            at = closest_feasible_bound(one.rules[i], feasible)
            if at is not None:
                side = "least" if one.rules[i].at_least else "most"
                ways.append(f"{label} with {one.rules[i].metric.replace('_', ' ')} at {side} {format_percent(at)}")
    asked = [f"{label} with {one.rules[i]}" for label, one in found.items() for i in one.from_below]
    why = f"{' and '.join(asked)} cannot be had within {' and '.join(map(str, rules))}"
    return InfeasibleAction(work.place(None, action), why + (f"; feasible: {', or '.join(ways)}" if ways else ""), ())


def _nothing_to_spend(
    work: _MarketCompilation, action: str, found: Mapping[str, ThresholdSearch], rules: Sequence[Rule]
) -> InfeasibleAction:
    """Not even the first step is shown to keep what the labels share."""
    told = []
    for rule in rules:
        others = [other for other in rules if other is not rule]
        at = closest_feasible_bound(
            rule, lambda other, others=others: max(_spend(work, action, found, [*others, other]).chosen) >= 0
        )  # type: ignore[misc]
        told.append(ClosestFeasible(rule, feasible_at=at))
    few = f"{work.traffic.items:,} items can show to be few enough"
    why = f"even the strictest thresholds that keep the labels' own rules hit more than {few}"
    return InfeasibleAction(work.place(None, action), why, tuple(told))
