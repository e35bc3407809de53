"""Candidate thresholds of one label, and which of them are shown to keep a rule.

Thresholds are chosen by looking at the items, and the best-looking of many thresholds looks better than it is. Learn then Test
(Angelopoulos et al. 2021) keeps this honest: candidates are tested in an order that does not depend on the targets, so that the
chance that any candidate passes which breaks the rule is at most the doubt that the rule allows.

- Recall, false-positive and miss rates only grow from one candidate to the next, and so do p-values: testing from the safe end on
  until one fails is testing in a fixed order, and costs nothing for being done many times.
- Precision goes up and down. Candidates are tested from the strictest on until one fails, beginning anew at places with twice
  as many items each time. The places share the doubt, and each takes along what the chain before it has not lost (fallback
  procedure, Wiens and Dmitrienko 2005). Where few positives are expected, by the probabilities, there is one place alone.
- A rule for every value of a column passes where it passes for each value, which needs no correction (an intersection-union test,
  Berger 1982).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.constraint_tests import ConstraintCounts, p_values, significance_level
from vigil_evaluation.policy.constraints import Rule

CANDIDATE_GROWTH = 1.02
"""From one candidate to the next so many more items are reached, once there are :data:`MAX_DENSE_CANDIDATES`."""

MAX_DENSE_CANDIDATES = 50
"""Up to so many items each makes a candidate."""

MIN_ITEMS_FOR_PRECISION = 30
"""A search for precision begins with no fewer items: of few, chance alone makes too many wrong."""

MAX_SEQUENCES = 8
_SEQUENCE_SPACING = 2.0
_MIN_POSITIVES_RATIO = 4
"""A search begins anew only where so many times as many positives are expected in all."""


class ThresholdCandidates(NamedTuple):
    """Candidate thresholds of one label.

    Attributes:
        thresholds_K: float32 numbers, falling; between two neighbouring probabilities.
        first_N: of each item the first candidate that it reaches; K if it reaches none.
    """

    thresholds_K: Floats
    first_N: NDArray[np.int64]


def choose_candidates(probabilities_N: NDArray[np.float32], known_N: NDArray[np.bool_], below: float) -> ThresholdCandidates:
    """Choose candidates by how many items, and how many of known target, reach them; targets are not looked at.

    Args:
        probabilities_N: of all items.
        known_N: whose target is known.
        below: candidates are below this, the threshold of a stricter action.
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
    """Which candidates are shown to keep a rule, ``[K]``.

    Args:
        rule: the rule.
        groups: what each group of items says.
        expected: positives that the probabilities let expect; decides in how many places a search for precision begins.
    """
    p_K: Floats = np.max([p_values(rule, evidence) for evidence in groups], axis=0)
    if rule.metric != "precision":
        return p_K <= significance_level(rule)
    rows_K = np.min([evidence.rows_K * evidence.effective_K for evidence in groups], axis=0)
    return _fallback(p_K, _starts(rows_K, rule.bound, significance_level(rule), expected), significance_level(rule))


def would_pass(rule: Rule, groups: Sequence[ConstraintCounts], times: float) -> bool:
    """Whether a rule would about be shown somewhere if there were ``times`` as many items of the same kind.

    Candidates that few items reach now are passed over: what they say may be chance.
    """
    p_K: Floats = np.max([p_values(rule, evidence.scaled(times)) for evidence in groups], axis=0)
    steady_K = np.min([evidence.rows_K for evidence in groups], axis=0) >= MAX_DENSE_CANDIDATES / 5
    # With room for chance, and for the places in which a search for precision begins.
    return bool((p_K[steady_K] <= significance_level(rule) / MAX_SEQUENCES).any())


def _starts(rows_K: Floats, bound: float, allowed: float, expected: float) -> Floats:
    """The part of the doubt that each candidate brings along: of those where a search begins."""
    parts_K = np.zeros(len(rows_K))
    if not len(rows_K):
        return parts_K
    # So many items, all of them right, could just pass with all of the doubt.
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
