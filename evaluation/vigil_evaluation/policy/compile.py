"""Compile a policy: find the lowest thresholds at which every constraint is shown to hold, or report what is infeasible.

Actions are processed from the strictest to the mildest. Each label's threshold is the lowest that satisfies the label's own
constraints, since that catches the most; shared budgets, such as reviewers' time, are then allocated where they catch the most
harm (:mod:`vigil_evaluation.policy.shared_budget`). A milder action gets the items that the stricter ones leave.

:mod:`vigil_evaluation.policy.threshold_search` states the probability that the constraints hold on new items. The precision
of a milder action is over the items between two thresholds, and the upper one is chosen on the same items. This is safe: the
stricter action stopped there because the items below looked worse than they are, if anything (Harris's inequality: the events
that stop it there and that let the milder one pass depend on the targets of the items below in opposite directions).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from vigil_data.errors import UserError
from vigil_data.progress import ProgressCallback
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.policy.constraint_check import check_rules, decide_traffic, items_with_action
from vigil_evaluation.policy.constraints import REVIEW, Appeals, CellKey, Rule
from vigil_evaluation.policy.infeasibility import InfeasiblePolicy
from vigil_evaluation.policy.market_compilation import MarketCompilation, compile_market
from vigil_evaluation.policy.policy_data import Traffic, read_traffic
from vigil_evaluation.policy.specs import MarketConstraints, Policy, actions_of, labels_of, market_constraints
from vigil_evaluation.sampling_weights import INCLUSION_PROBABILITY, WEIGHT
from vigil_evaluation.stats.selection_tests import label_selection

MIN_ITEMS_HIT = 30
"""Fewest affected items of an action for a note about unknown targets."""

MIN_KNOWN_RATIO = 0.75
"""Smallest ratio of the fraction of known targets among affected items to that among all items without a note."""


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
        works.append(MarketCompilation(policy, scope, traffic.take(rows_N), weights))
        compile_market(works[-1], advance)
    facts = {**(facts or {}), "items": f"{traffic.items:,}", "unit": cluster or "item"}
    if weighted := [name for name in (INCLUSION_PROBABILITY, WEIGHT) if name in table.column_names]:
        facts["weights"] = " and ".join(weighted)
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
    if traffic.weights.inclusion_N is not None:
        return [f"{line}; the constraints hold if the probabilities are right" for line in lines]
    if lines and not assume_random:
        raise UserError(
            *(f"policy {policy.name}: {line}" for line in lines),
            "constraints shown on such items say nothing about the others; add a column "
            f"{INCLUSION_PROBABILITY}, the probability with which each row was chosen to be labelled, or accept guarantees for "
            "items like the labelled ones: --assume-random",
        )
    return [f"guarantees hold for items like the labelled ones only; {line}" for line in lines]


def _compiled(
    works: Sequence[MarketCompilation],
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
    correlations = {rule: correlation for work in works for rule, correlation in work.correlations.items()}
    results = tuple(check_rules(compiled, rules, traffic, correlations))
    numbered = {f"note {i}": note for i, note in enumerate([*notes, *_mostly_unknown(compiled, rules, traffic)], start=1)}
    return replace(compiled, constraints=results, facts={**facts, **numbered})


def _mostly_unknown(policy: CompiledPolicy, rules: Sequence[Rule], traffic: Traffic) -> Iterator[str]:
    """Yield a note for each action whose items are of unknown target more often than all items, without this being stated."""
    if traffic.weights.inclusion_N is not None:
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
