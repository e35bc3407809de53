"""Sharing what an action may cost the traffic as a whole, such as the reviewers' time, between labels.

All labels' thresholds come down one after another along a path, on which those steps come first that catch the most harm, by the
labels' severities, for every item that they add. The path ends where a further step could break a rule. How far a rule lets it go
is tested along the path, on which an item that two labels would send counts once. Volumes only grow along it, so the order of
tests is fixed.

The harm of a step is estimated by the share of positives among its items, made to fall with the probability (isotonic
regression). Targets decide in which order labels take turns, and so hardly bear on whether the volume, which rests on
probabilities alone, is estimated too low. Where wrong calls are bounded they would, so there the probabilities are taken at their
word.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.constraint_tests import ConstraintCounts, inverse_design_effect, p_values, significance_level
from vigil_evaluation.policy.constraints import Rule
from vigil_evaluation.policy.threshold_candidates import ThresholdCandidates


class BudgetRequest(NamedTuple):
    """What one label would do with a budget.

    Attributes:
        candidates: its thresholds.
        usable_K: those that keep the label's own rules.
        needed: the candidate that it must come down to in any case; -1 for none.
        severity: of the label.
        positive_N: known positives.
        negative_N: known negatives.
    """

    candidates: ThresholdCandidates
    usable_K: NDArray[np.bool_]
    needed: int
    severity: float
    positive_N: NDArray[np.bool_]
    negative_N: NDArray[np.bool_]


class BudgetAllocation(NamedTuple):
    """How far a budget goes.

    Attributes:
        chosen: of each claim its candidate; -1 if the label gets nothing.
        stopped: the rule that lets the path go no farther; ``None`` if it goes to its end.
        needed: whether what is needed in any case keeps the rules.
    """

    chosen: list[int]
    stopped: Rule | None
    needed: bool


def allocate_budget(
    claims: Sequence[BudgetRequest],
    free_N: NDArray[np.bool_],
    rules: Sequence[tuple[Rule, float, Sequence[NDArray[np.bool_]]]],
    units_N: NDArray[np.int32] | None,
) -> BudgetAllocation:
    """Bring thresholds down as far as the rules allow.

    Args:
        claims: of each label.
        free_N: items that no stricter action takes.
        rules: on the traffic; with the share of wrong actions that count (1 but for ``overturned``), and the items of each group.
        units_N: see :mod:`vigil_evaluation.policy.constraint_tests`.
    """
    turns = _turns(claims, free_N, by_targets=all(rule.metric != "overturned" for rule, *_ in rules))
    length = max((int(turn_K.max(initial=0)) for turn_K in turns), default=0) + 1
    entries = [_entry(claim, turn_K, length) for claim, turn_K in zip(claims, turns, strict=True)]
    entry_N = np.where(free_N, np.min(entries, axis=0), length)
    farthest, stopped = length - 1, None
    for rule, weight, groups in rules:
        if rule.metric == "overturned":
            kept_J = _overturned(rule, weight, claims, entries, free_N=free_N, length=length, units_N=units_N)
        else:
            kept_J = _volume(rule, entry_N, groups, length, units_N)
        reach = int(np.argmin(kept_J)) - 1 if not kept_J.all() else length - 1
        if reach < farthest:
            farthest, stopped = reach, rule
    return BudgetAllocation(
        [_reached(c, t, max(farthest, 0)) for c, t in zip(claims, turns, strict=True)], stopped, farthest >= 0
    )


def _turns(claims: Sequence[BudgetRequest], free_N: NDArray[np.bool_], by_targets: bool) -> list[NDArray[np.int64]]:
    """Of each claim's candidates the place on the path where it is reached; 0 for those that are needed."""
    owners, worth = [], []
    for i, claim in enumerate(claims):
        seen_N = free_N & by_targets
        worth_K = claim.severity * isotonic_positive_share(claim.candidates, claim.positive_N & seen_N, claim.negative_N & seen_N)
        owners.append(np.full(len(worth_K), i))
        worth.append(worth_K)
    owner, order = np.concatenate(owners), np.argsort(-np.concatenate(worth), kind="stable")
    needed = np.concatenate([np.arange(len(w)) <= claim.needed for w, claim in zip(worth, claims, strict=True)])
    place = np.zeros(len(owner), np.int64)
    place[order] = np.cumsum(~needed[order])
    place[needed] = 0
    return [place[owner == i] for i in range(len(claims))]


def isotonic_positive_share(of: ThresholdCandidates, positive_N: NDArray[np.bool_], negative_N: NDArray[np.bool_]) -> Floats:
    """Share of positives among the items that come in with each candidate, made never to rise, ``[K]``.

    Steps of which no target is known are as the ones before. A label of which none is known takes its probabilities at their
    word.
    """
    count = len(of.thresholds_K)
    positives, negatives = (
        np.bincount(np.minimum(of.first_N[kind], count), minlength=count + 1)[:count] for kind in (positive_N, negative_N)
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
    """Whether the share of the following block is not smaller, or that of one of them unknown."""
    return not block[1] or not following[1] or following[0] * block[1] >= block[0] * following[1]


def _entry(claim: BudgetRequest, turn_K: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Of each item the place on the path from which on the label calls for it; ``length`` if nowhere."""
    count = len(turn_K)
    following = np.append(np.where(claim.usable_K, turn_K, length), length)
    # The first usable candidate at or after each: the path reaches candidates in order, so that is the least place behind.
    following = np.minimum.accumulate(following[::-1])[::-1]
    return np.asarray(following[np.minimum(claim.candidates.first_N, count)])


def _reached(claim: BudgetRequest, turn_K: NDArray[np.int64], farthest: int) -> int:
    reached = np.flatnonzero(claim.usable_K & (turn_K <= farthest))
    return int(reached[-1]) if len(reached) else -1


def _volume(
    rule: Rule,
    entry_N: NDArray[np.int64],
    groups: Sequence[NDArray[np.bool_]],
    length: int,
    units_N: NDArray[np.int32] | None,
) -> NDArray[np.bool_]:
    """Where on the path a share of traffic is shown to be small enough, ``[J]``."""
    kept_J = np.ones(length, bool)
    for within_N in groups:
        count_J = np.cumsum(np.bincount(entry_N[within_N], minlength=length + 1)[:length]).astype(np.float64)
        rows = float(within_N.sum())
        at = int(np.searchsorted(count_J, rule.bound * rows, side="right")) - 1
        effective = 1.0
        if units_N is not None and at >= 0:
            effective = inverse_design_effect(entry_N[within_N] <= at, units_N[within_N])
        evidence = ConstraintCounts(None, count_J, np.full(length, rows), np.full(length, effective))
        # Nothing at all is a share that needs no showing.
        kept_J &= (p_values(rule, evidence) <= significance_level(rule)) | (count_J == 0)
    return kept_J


def _overturned(
    rule: Rule,
    weight: float,
    claims: Sequence[BudgetRequest],
    entries: Sequence[NDArray[np.int64]],
    *,
    free_N: NDArray[np.bool_],
    length: int,
    units_N: NDArray[np.int32] | None,
) -> NDArray[np.bool_]:
    """Where on the path wrong calls that are overturned are shown to be few enough, ``[J]``."""
    wrong, known = [], []
    for claim, entry_N in zip(claims, entries, strict=True):
        known_N = claim.positive_N | claim.negative_N
        called_N = np.where(claim.negative_N & free_N, entry_N, length)
        count_J = np.cumsum(np.bincount(called_N, minlength=length + 1)[:length]).astype(np.float64)
        at = int(np.searchsorted(count_J * weight, rule.bound * known_N.sum(), side="right")) - 1
        effective = 1.0
        if units_N is not None and at >= 0:
            effective = inverse_design_effect(called_N[known_N] <= at, units_N[known_N])
        wrong.append(count_J * effective)
        known.append(known_N.sum() * effective)
    return np.asarray(weighted_upper(np.array(wrong), np.array(known), 1 - significance_level(rule)) * weight <= rule.bound)


def weighted_upper(count_LJ: Floats, rows_L: Floats, confidence: float) -> Floats:
    """Upper bound of a sum of small rates, each counted on rows of its own (Fay and Feuer 1997, gamma intervals), ``[J]``.

    Args:
        count_LJ: events of each of L rates, in J cases.
        rows_L: what each is a share of.
        confidence: one-sided.
    """
    from scipy.special import gammaincinv

    if not (rows_L > 0).all():
        return np.full(count_LJ.shape[1], np.inf)
    weights_L = 1 / rows_L
    mean_J = weights_L @ count_LJ + weights_L.max(initial=0)
    variance_J = weights_L**2 @ count_LJ + weights_L.max(initial=0) ** 2
    return np.asarray(gammaincinv(mean_J**2 / variance_J, confidence) * variance_J / mean_J)
