"""Allocate a shared budget of an action, such as reviewers' time, among labels.

The thresholds of all labels are lowered step by step along one path, in descending order of the harm caught per added item,
weighted by the labels' severities. The path ends where a further step could violate a constraint. The limit of a constraint is
tested along the path, on which an item that two labels trigger counts once. Volumes increase along it, so the order of tests is
fixed.

The harm of a step is estimated by the fraction of positives among its items, made monotone in the probability (isotonic
regression). Targets only determine the order of labels, and so hardly bias the volume, which depends on probabilities alone.
They would bias a bound on wrong actions; there the probabilities are used as they are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.constraint_tests import (
    ConstraintCounts,
    inverse_design_effect,
    p_values,
    significance_level,
    weight_sums,
)
from vigil_evaluation.policy.constraints import Rule
from vigil_evaluation.policy.threshold_search import ThresholdCandidates
from vigil_evaluation.sampling_weights import SamplingWeights


class BudgetRequest(NamedTuple):
    """Candidate thresholds of one label that compete for a budget.

    Attributes:
        candidates: candidate thresholds.
        usable_K: whether a candidate satisfies the label's own constraints.
        required: the candidate that must be reached; -1 for none.
        severity: harm of a miss.
        positive_N: known positives.
        negative_N: known negatives.
    """

    candidates: ThresholdCandidates
    usable_K: NDArray[np.bool_]
    required: int
    severity: float
    positive_N: NDArray[np.bool_]
    negative_N: NDArray[np.bool_]


class BudgetAllocation(NamedTuple):
    """Allocation of a budget.

    Attributes:
        chosen: candidate of each label; -1 if it gets nothing.
        limiting_rule: the constraint that ends the path; ``None`` if it reaches its end.
        feasible: whether the required candidates satisfy the constraints.
    """

    chosen: list[int]
    limiting_rule: Rule | None
    feasible: bool


def allocate_budget(
    requests: Sequence[BudgetRequest],
    free_N: NDArray[np.bool_],
    rules: Sequence[tuple[Rule, float, Sequence[NDArray[np.bool_]]]],
    units_N: NDArray[np.int32] | None,
    weights: SamplingWeights = SamplingWeights(),  # noqa: B008  it is frozen
) -> BudgetAllocation:
    """Lower thresholds as far as the constraints allow.

    Args:
        requests: candidates of each label.
        free_N: items that no stricter action takes.
        rules: constraints on the traffic, each with the fraction of wrong actions that count (1 except for ``overturned``) and
            the items of each group.
        units_N: see :mod:`vigil_evaluation.policy.constraint_tests`.
        weights: number of items that each row represents.
    """
    by_targets = all(rule.metric != "overturned" for rule, *_ in rules)
    steps = _path_steps(requests, free_N, by_targets=by_targets, weights_N=weights.label_N)
    length = max((int(step_K.max(initial=0)) for step_K in steps), default=0) + 1
    entries = [_first_steps(request, step_K, length) for request, step_K in zip(requests, steps, strict=True)]
    entry_N = np.where(free_N, np.min(entries, axis=0), length)
    farthest, limiting = length - 1, None
    for rule, weight, groups in rules:
        if rule.metric == "overturned":
            kept_J = _overturned(
                rule, weight, requests, entries, free_N=free_N, length=length, units_N=units_N, weights_N=weights.label_N
            )
        else:
            kept_J = _volume(rule, entry_N, groups, length, units_N=units_N, weights_N=weights.item_N)
        reach = int(np.argmin(kept_J)) - 1 if not kept_J.all() else length - 1
        if reach < farthest:
            farthest, limiting = reach, rule
    return BudgetAllocation(
        [_last_usable(c, t, max(farthest, 0)) for c, t in zip(requests, steps, strict=True)], limiting, farthest >= 0
    )


def _path_steps(
    requests: Sequence[BudgetRequest], free_N: NDArray[np.bool_], *, by_targets: bool, weights_N: Floats | None
) -> list[NDArray[np.int64]]:
    """Return the step of the path at which each candidate is reached, for each label; 0 for required ones."""
    owners, worth = [], []
    for i, request in enumerate(requests):
        seen_N = free_N & by_targets
        worth_K = request.severity * isotonic_positive_share(
            request.candidates, request.positive_N & seen_N, request.negative_N & seen_N, weights_N
        )
        owners.append(np.full(len(worth_K), i))
        worth.append(worth_K)
    owner, order = np.concatenate(owners), np.argsort(-np.concatenate(worth), kind="stable")
    required = np.concatenate([np.arange(len(w)) <= request.required for w, request in zip(worth, requests, strict=True)])
    place = np.zeros(len(owner), np.int64)
    place[order] = np.cumsum(~required[order])
    place[required] = 0
    return [place[owner == i] for i in range(len(requests))]


def isotonic_positive_share(
    of: ThresholdCandidates, positive_N: NDArray[np.bool_], negative_N: NDArray[np.bool_], weights_N: Floats | None = None
) -> Floats:
    """Return the fraction of positives among the items that each candidate adds, made non-increasing, ``[K]``.

    Candidates without known targets take the fraction of the one before; a label without any known target, its probabilities.
    """
    count = len(of.thresholds_K)
    positives, negatives = (
        np.bincount(np.minimum(of.first_N[kind], count), None if weights_N is None else weights_N[kind], minlength=count + 1)[
            :count
        ]
        for kind in (positive_N, negative_N)
    )
    if not (positives.sum() + negatives.sum()):
        return of.thresholds_K.copy()
    blocks: list[list[float]] = []
    for right, wrong in zip(positives.tolist(), negatives.tolist(), strict=True):
        blocks.append([right, right + wrong, 1])
        while len(blocks) > 1 and _rises(blocks[-2], blocks[-1]):
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return np.repeat([right / rows for right, rows, _ in blocks], [int(steps) for *_, steps in blocks])


def _rises(block: list[float], following: list[float]) -> bool:
    """Return whether the fraction of the following block is not smaller, or that of either is unknown."""
    return not block[1] or not following[1] or following[0] * block[1] >= block[0] * following[1]


def _first_steps(request: BudgetRequest, step_K: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return the first step of the path at which the label triggers the action for each item; ``length`` if never."""
    count = len(step_K)
    following = np.append(np.where(request.usable_K, step_K, length), length)
    # The path reaches candidates in order, so the first usable candidate at or after each has the smallest step of those.
    following = np.minimum.accumulate(following[::-1])[::-1]
    return np.asarray(following[np.minimum(request.candidates.first_N, count)])


def _last_usable(request: BudgetRequest, step_K: NDArray[np.int64], farthest: int) -> int:
    reached = np.flatnonzero(request.usable_K & (step_K <= farthest))
    return int(reached[-1]) if len(reached) else -1


def _volume(
    rule: Rule,
    entry_N: NDArray[np.int64],
    groups: Sequence[NDArray[np.bool_]],
    length: int,
    *,
    units_N: NDArray[np.int32] | None,
    weights_N: Floats | None,
) -> NDArray[np.bool_]:
    """Return where on the path a share of traffic is shown to be small enough, ``[J]``."""
    kept_J = np.ones(length, bool)
    for within_N in groups:
        count_J = np.cumsum(np.bincount(entry_N[within_N], minlength=length + 1)[:length]).astype(np.float64)
        rows, sums, whole_J, whole = float(within_N.sum()), None, count_J, float(within_N.sum())
        mine_N = None if weights_N is None else weights_N[within_N]
        if mine_N is not None:
            everything = np.ones(len(mine_N), bool)
            sums = weight_sums(entry_N[within_N], length, everything, None, mine_N, everything)
            whole_J, whole = sums[0].sum_K, float(mine_N.sum())
        at = int(np.searchsorted(whole_J, rule.bound * whole, side="right")) - 1
        effective = 1.0
        if units_N is not None and at >= 0:
            effective = inverse_design_effect(entry_N[within_N] <= at, units_N[within_N], mine_N)
        counts = ConstraintCounts(None, count_J, np.full(length, rows), np.full(length, effective), sums)
        # A share of no items needs no test.
        kept_J &= (p_values(rule, counts) <= significance_level(rule)) | (count_J == 0)
    return kept_J


def _overturned(
    rule: Rule,
    weight: float,
    requests: Sequence[BudgetRequest],
    entries: Sequence[NDArray[np.int64]],
    *,
    free_N: NDArray[np.bool_],
    length: int,
    units_N: NDArray[np.int32] | None,
    weights_N: Floats | None,
) -> NDArray[np.bool_]:
    """Return where on the path overturned actions are shown to be few enough, ``[J]``."""
    wrong, known, squares, largest = [], [], [], []
    for request, entry_N in zip(requests, entries, strict=True):
        known_N = request.positive_N | request.negative_N
        called_N = np.where(request.negative_N & free_N, entry_N, length)
        count_J = np.cumsum(np.bincount(called_N, minlength=length + 1)[:length]).astype(np.float64)
        squares_J, largest_J, mine_N = count_J, np.ones(length), None if weights_N is None else weights_N[known_N]
        if weights_N is not None:
            sums, _ = weight_sums(entry_N, length, request.negative_N & free_N, None, weights_N, free_N)
            count_J, squares_J, largest_J = sums.sum_K, sums.squares_K, sums.largest_K
        rows = float(known_N.sum() if mine_N is None else mine_N.sum())
        at = int(np.searchsorted(count_J * weight, rule.bound * rows, side="right")) - 1
        effective = 1.0
        if units_N is not None and at >= 0:
            effective = inverse_design_effect(called_N[known_N] <= at, units_N[known_N], mine_N)
        wrong.append(count_J * effective)
        squares.append(squares_J * effective)
        largest.append(largest_J)
        known.append(rows * effective)
    sums_of = None if weights_N is None else (np.array(squares), np.array(largest))
    upper_J = weighted_upper(np.array(wrong), np.array(known), 1 - significance_level(rule), sums_of)
    return np.asarray(upper_J * weight <= rule.bound)


def weighted_upper(count_LJ: Floats, rows_L: Floats, confidence: float, weights: tuple[Floats, Floats] | None = None) -> Floats:
    """Return the upper bound of a sum of small rates with separate denominators, ``[J]`` (gamma intervals, Fay and Feuer 1997).

    Args:
        count_LJ: events of each of L rates, in J cases; with weights, the sum of theirs.
        rows_L: denominator of each rate.
        confidence: one-sided confidence.
        weights: sum of the squared weights of the events, and the largest weight of an event, ``[L, J]`` each; ``None`` if all
            weights are 1.
    """
    from scipy.special import gammaincinv

    if not (rows_L > 0).all():
        return np.full(count_LJ.shape[1], np.inf)
    weights_L = 1 / rows_L
    squares_LJ, largest_J = count_LJ, weights_L.max(initial=0)
    if weights is not None:
        squares_LJ, largest_J = weights[0], (weights_L[:, None] * weights[1]).max(axis=0, initial=0)
    mean_J = weights_L @ count_LJ + largest_J
    variance_J = weights_L**2 @ squares_LJ + largest_J**2
    return np.asarray(gammaincinv(mean_J**2 / variance_J, confidence) * variance_J / mean_J)
