"""Candidate thresholds of one label, and which of them are shown to satisfy a constraint.

The best of many thresholds on the same items is biased towards looking good. Learn then Test (Angelopoulos et al. 2021) corrects
for this: candidates are tested in an order that does not depend on the targets, so that the probability that any candidate that
violates the constraint passes is at most the constraint's error probability.

- Recall, false-positive and miss rates are monotone in the threshold, and so are their p-values: testing from the safe end until
  one fails is testing in a fixed sequence, which needs no correction for the number of tests.
- Precision is not monotone. Sequences start at several candidates, each with twice as many items as the one before, and run until
  a test fails. They divide the error probability, and each inherits what the sequence before it has not lost (fallback procedure,
  Wiens and Dmitrienko 2005). Where few positives are expected, from the probabilities, there is only one sequence.
- A constraint for every value of a column passes where it passes for each value, without correction (intersection-union test,
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
"""Ratio of the items of successive candidates beyond the first :data:`MAX_DENSE_CANDIDATES`."""

MAX_DENSE_CANDIDATES = 50
"""Number of the highest items each of which is a candidate."""

MIN_ITEMS_FOR_PRECISION = 30
"""Fewest items at the start of a sequence for precision."""

MAX_SEQUENCES = 8
_SEQUENCE_SPACING = 2.0
_MIN_POSITIVES_RATIO = 4
"""Another sequence starts only if this many times as many positives are expected in all."""


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
        return p_K <= significance_level(rule)
    rows_K = np.min([counts.rows_K * counts.effective_K for counts in groups], axis=0)
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
